"""MatMul and the addition of a bias, as one Gemm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxedge.api import (
    Accuracy,
    Context,
    constant,
    constant_tensor,
    graph_of,
    insert_before,
    new_initializer,
    replace_uses,
    sole_consumer,
)
from onnxedge_passes.cleanup.worklist import Outcome, Refused, Rule, node_opset, retire
from onnxedge_passes.fuse.linear.affine import linear_before, per_channel

_FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16)


@dataclass(frozen=True, kw_only=True)
class MatmulToGemm(Rule):
    """Turn a MatMul of two matrices, and the bias added to it, into one Gemm.

    Before: ``y = Add(MatMul(x, W), b)`` with ``x: [M, K]``, ``W: [K, N]`` and ``b: [N]``, ``[1, N]``, one number, or a
    constant ``[M, N]``
    After:  ``y = Gemm(x, W, b)``

    Left alone: inputs that are no matrix or of unknown rank (onnxsim and OnnxSlim flatten more axes, with a Reshape on
    either side: a node more, in 1.01 of the time of MatMul and Add, of [1, 128, 768] by [768, 768]; where it is fewer
    nodes ``flatten-projections`` does it); a matrix computed at run time that is added, which may be the short cut
    around a layer; a product with other readers; a matrix of unknown width; integers.
    accuracy: rounding. Source: ONNX Gemm, opset 7.
    """

    name: ClassVar[str] = "matmul-to-gemm"
    accuracy: ClassVar[Accuracy] = "rounding"
    roots: ClassVar[tuple[str, ...]] = ("Add",)

    def rewrite(self, node: ir.Node, context: Context) -> Outcome:
        """Find the MatMul on one side and the bias on the other."""
        if node_opset(node) < 7:
            return None
        for side in (0, 1):
            source, bias = node.inputs[side], node.inputs[1 - side]
            linear = linear_before(source)
            if source is None or bias is None or linear is None or linear.node.op_type != "MatMul":
                continue
            if linear.rank != 2 or source.dtype not in _FLOATS:
                continue
            operand = constant(bias)
            row = per_channel(operand, linear) if operand is not None else None
            if row is None and not _fits(bias, source, linear.channels):
                continue
            if sole_consumer(source) is not node:
                return Refused("not turned into a Gemm: the product has other readers or is exported")
            if row is not None and operand is not None and operand.shape != (linear.channels,):
                bias = new_initializer(graph_of(node), np.array(row, operand.dtype), f"{node.outputs[0].name}_bias")
            gemm = insert_before(
                node,
                "Gemm",
                [*linear.node.inputs, bias],
                name=linear.node.name or node.name,
                like=node.outputs,
            )
            replace_uses(node.outputs[0], gemm.outputs[0])
            retire(node)
            return gemm.outputs[0]
        return None


def _fits(bias: ir.Value, product: ir.Value, channels: int) -> bool:
    """Tell whether a Gemm takes a bias as it is: a row of its product, or a constant of its shape."""
    if bias.shape is None or product.shape is None or not 0 < len(bias.shape) <= 2 or bias.shape[-1] != channels:
        return False
    if len(bias.shape) == 1 or bias.shape[0] == 1:
        return True
    return constant_tensor(bias) is not None and bias.shape[0] == product.shape[0]
