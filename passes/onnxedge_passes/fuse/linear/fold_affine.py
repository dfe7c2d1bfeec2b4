"""Multiplications and additions of per-channel constants after a linear operator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxedge.api import Accuracy, Array, Context, bypass, constant, is_standard, sole_consumer
from onnxedge_passes.cleanup.worklist import Outcome, Refused, Rule, node_opset
from onnxedge_passes.fuse.linear.affine import LINEAR, Linear, along, linear_before, per_channel, rescale

_SOURCES = (*LINEAR, "Reshape")  #: what a linear operator may be found behind, looked at before a constant is read


@dataclass(frozen=True, kw_only=True)
class FoldAffine(Rule):
    """Fold per-channel constants that are multiplied or added after Conv, ConvTranspose, Gemm and MatMul.

    Before: ``y = Add(Mul(Conv(x, W, b), k), c)`` with ``k, c: [1, Co, 1, 1]`` or scalars
    After:  ``y = Conv(x, W * k, b * k + c)``

    Sub and Div likewise, and behind a Reshape that leaves the columns of a Gemm or MatMul as they are. A MatMul has no
    bias: an addition after it stays, or becomes a Gemm's (``matmul-to-gemm``).
    Left alone: constants that differ along other axes or change the shape; outputs with other readers or exported;
    weights computed at run time, that a caller may override, or that others read too.
    accuracy: rounding. Source: own.
    """

    name: ClassVar[str] = "fold-affine"
    accuracy: ClassVar[Accuracy] = "rounding"
    roots: ClassVar[tuple[str, ...]] = ("Mul", "Add", "Sub", "Div")

    def rewrite(self, node: ir.Node, context: Context) -> Outcome:
        """Find the linear operator on one side and the constant on the other."""
        if node_opset(node) < 7 or len(node.inputs) != 2:
            return None
        for side in (0, 1):
            outcome = _fold(node, side)
            if outcome is not None:
                return outcome
        return None


def _fold(node: ir.Node, side: int) -> Outcome:
    """Fold a node whose input ``side`` comes from a linear operator and whose other one is constant."""
    source = node.inputs[side]
    before = source.producer() if source is not None else None
    if before is None or before.op_type not in _SOURCES:
        return None
    operand = constant(node.inputs[1 - side])
    if source is None or operand is None or operand.dtype.kind != "f" or (node.op_type == "Div" and side == 1):
        return None
    linear = linear_before(source)
    row = per_channel(operand, linear) if linear is not None else None
    if linear is None:
        linear, row = _behind_reshape(source, operand)
    if linear is None or row is None or (linear.node.op_type == "MatMul" and node.op_type in ("Add", "Sub")):
        return None
    if sole_consumer(source) is not node:
        return Refused(f"{node.op_type} not folded: its input has other readers or is exported")
    ones, zeros = np.ones(linear.channels), np.zeros(linear.channels)
    match node.op_type:
        case "Mul":
            scale, shift = row, zeros
        case "Div":
            with np.errstate(all="ignore"):
                scale, shift = ones / row, zeros
        case "Add":
            scale, shift = ones, row
        case _:
            scale, shift = (ones, -row) if side == 0 else (-ones, row)
    refused = rescale(linear, scale, shift)
    if refused is not None:
        return refused
    return source if bypass(node, side) else None


def _behind_reshape(value: ir.Value, operand: Array) -> tuple[Linear | None, Array | None]:
    """Return the Gemm or MatMul whose rows a Reshape groups, and the operand as float64 [channels] of it."""
    view = value.producer()
    if view is None or view.op_type != "Reshape" or not is_standard(view) or value.shape is None:
        return None, None
    product = view.inputs[0]
    linear = linear_before(product)
    if linear is None or linear.axis != -1 or product is None or sole_consumer(product) is not view:
        return None, None
    if operand.size != 1 and list(value.shape)[-1:] != [linear.channels]:
        return None, None
    return linear, along(operand, -1, len(value.shape), linear.channels)
