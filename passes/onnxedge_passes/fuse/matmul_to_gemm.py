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
    graph_of,
    insert_before,
    new_initializer,
    replace_uses,
    sole_consumer,
)
from onnxedge_passes.cleanup.worklist import Outcome, Refused, Rule, node_opset, retire
from onnxedge_passes.fuse.affine import linear_before, per_channel


@dataclass(frozen=True, kw_only=True)
class MatmulToGemm(Rule):
    """Turn a MatMul of a matrix by a constant weight, and the bias added to it, into one Gemm.

    Before: ``y = Add(MatMul(x, W), b)`` with ``x: [M, K]``, ``W: [K, N]`` and ``b: [N]``, ``[1, N]`` or one number
    After:  ``y = Gemm(x, W, b)``

    Left alone: inputs that are no matrix or of unknown rank; biases that differ from row to row; a product with other
    readers; weights computed at run time.
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
            source, operand = node.inputs[side], constant(node.inputs[1 - side])
            linear = linear_before(source) if operand is not None else None
            if source is None or operand is None or linear is None or linear.node.op_type != "MatMul":
                continue
            row = per_channel(operand, linear)
            if row is None or linear.rank != 2 or constant(linear.node.inputs[1]) is None:
                continue
            if sole_consumer(source) is not node:
                return Refused("not turned into a Gemm: the product has other readers or is exported")
            bias = node.inputs[1 - side]
            if operand.shape != (linear.channels,):
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
