"""Matrices added to a Gemm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxedge.api import Accuracy, Context, insert_before, is_standard, replace_uses, sole_consumer
from onnxedge_passes.cleanup.shapes.sizes import same_size
from onnxedge_passes.cleanup.worklist import Outcome, Refused, Rule, input_at, node_opset, retire


@dataclass(frozen=True, kw_only=True)
class FoldGemmSum(Rule):
    """Let a Gemm without a bias add what is added to it.

    Before: ``y = Add(Gemm(x, W), r)`` with ``r: [M, N]``, ``[1, N]``, ``[M, 1]`` or ``[N]``; Sum of two likewise
    After:  ``y = Gemm(x, W, r)``

    Left alone: a product with other readers; shapes that are not known to broadcast to the product's.
    accuracy: rounding. Source: ONNX Gemm, opset 11.
    """

    name: ClassVar[str] = "fold-gemm-sum"
    accuracy: ClassVar[Accuracy] = "rounding"
    roots: ClassVar[tuple[str, ...]] = ("Add", "Sum")

    def rewrite(self, node: ir.Node, context: Context) -> Outcome:
        """Find the Gemm on one side."""
        if len(node.inputs) != 2 or node_opset(node) < 11:
            return None
        for side in (0, 1):
            product, other = node.inputs[side], node.inputs[1 - side]
            gemm = product.producer() if product is not None else None
            if product is None or other is None or other is product or gemm is None or gemm.op_type != "Gemm":
                continue
            if not is_standard(gemm) or gemm.graph is not node.graph or input_at(gemm, 2) is not None:
                continue
            if sole_consumer(product) is not node:
                return Refused("sum not folded into the Gemm: the product has other readers or is exported")
            if not _broadcasts_to(other, product):
                return Refused("sum not folded into the Gemm: shapes are not known to fit")
            attributes = {
                name: gemm.attributes[name].value for name in ("alpha", "transA", "transB") if name in gemm.attributes
            }
            inputs = [*gemm.inputs[:2], other]
            made = insert_before(node, "Gemm", inputs, attributes=attributes, name=gemm.name, like=node.outputs)
            replace_uses(node.outputs[0], made.outputs[0])
            retire(node)
            return made.outputs[0]
        return None


def _broadcasts_to(operand: ir.Value, data: ir.Value) -> bool:
    """Tell whether an operand is known to broadcast to the shape of the data."""
    if operand.shape is None or data.shape is None or len(operand.shape) > len(data.shape):
        return False
    tail = list(data.shape)[len(data.shape) - len(operand.shape) :]
    return all(mine == 1 or same_size(mine, have) for mine, have in zip(operand.shape, tail, strict=True))
