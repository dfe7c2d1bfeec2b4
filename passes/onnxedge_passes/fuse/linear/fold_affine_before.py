"""Multiplications, additions and BatchNormalization of per-channel constants before a linear operator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxedge.api import Accuracy, Array, Context, constant, is_constant, is_standard, sole_consumer
from onnxedge_passes.cleanup.worklist import Outcome, Refused, Rule, node_opset, retire
from onnxedge_passes.fuse.linear.affine import LINEAR, Linear, along, input_channels, linear_before, rescale_input
from onnxedge_passes.fuse.linear.fold_batchnorm import inference_affine, is_inference

_ROOTS = frozenset({"Sqrt", "Pow", "LayerNormalization", "RMSNormalization"})


@dataclass(frozen=True, kw_only=True)
class FoldAffineBefore(Rule):
    """Fold per-channel constants that are multiplied or added before Conv, ConvTranspose, Gemm and MatMul.

    Before: ``y = Conv(Add(Mul(x, k), c), W, b)`` with ``k, c: [1, Ci, 1, 1]`` or scalars; BatchNormalization likewise
    After:  ``y = Conv(x, W * k, b + sum(W * c))``

    Sub and Div likewise.
    Left alone: an addition before a convolution that pads (its zeros are not shifted), before ConvTranspose and MatMul;
    constants that differ along other axes or widen the shape; inner values with other readers; weights computed at run
    time, that a caller may override, or that others read too; the scale of a normalization that is yet to be fused.
    accuracy: rounding. Source: own.
    """

    name: ClassVar[str] = "fold-affine-before"
    accuracy: ClassVar[Accuracy] = "rounding"
    roots: ClassVar[tuple[str, ...]] = LINEAR

    def rewrite(self, node: ir.Node, context: Context) -> Outcome:
        """Look at what produces the data of a linear operator with a constant weight."""
        source = node.inputs[0]
        before = source.producer() if source is not None else None
        if source is None or before is None or before.graph is not node.graph or not is_standard(before):
            return None
        if before.op_type not in ("Mul", "Add", "Sub", "Div", "BatchNormalization") or node_opset(node) < 7:
            return None
        linear = linear_before(node.outputs[0])
        if linear is None or not is_constant(node.inputs[1]) or bool(node.attributes.get_int("transA", 0)):
            return None
        found = _affine(before, linear)
        if found is None or isinstance(found, Refused):
            return found
        data, scale, shift = found
        if data is node.inputs[1] or (before.op_type == "Mul" and _ends_normalization(data)):
            return None
        if sole_consumer(source) is not node:
            return Refused(f"{before.op_type} not folded into what reads it: others read it, too, or it is exported")
        refused = rescale_input(linear, scale, shift)
        if refused is not None:
            return Refused(f"{before.op_type} {refused.reason}")
        node.replace_input_with(0, data)
        retire(before)
        return node.outputs[0]


def _affine(before: ir.Node, linear: Linear) -> tuple[ir.Value, Array, Array] | Refused | None:
    """Return the value that a node scales and shifts, and scale and shift: float64 [input channels] each."""
    channels = input_channels(linear)
    if before.op_type == "BatchNormalization":
        data = before.inputs[0]
        if data is None or not is_inference(before) or linear.axis != 1:
            return None
        affine = inference_affine(before)
        return affine if isinstance(affine, Refused) else (data, *affine) if affine[0].shape == (channels,) else None
    for side in (0, 1):
        data, operand = before.inputs[side], constant(before.inputs[1 - side])
        if data is None or operand is None or operand.dtype.kind != "f" or constant(data) is not None:
            continue
        row = _row(data, operand, linear, channels)
        if row is None or (before.op_type == "Div" and side == 1):
            return None
        ones, zeros = np.ones(channels), np.zeros(channels)
        match before.op_type:
            case "Mul":
                return data, row, zeros
            case "Div":
                with np.errstate(all="ignore"):
                    return data, ones / row, zeros
            case "Add":
                return data, ones, row
        return (data, ones, -row) if side == 0 else (data, -ones, row)
    return None


def _row(data: ir.Value, operand: Array, linear: Linear, channels: int) -> Array | None:
    """Return the operand along the channels; the data must have them already, not by broadcast."""
    rank = len(data.shape) if data.shape is not None else 0
    if rank == 0 and operand.ndim:
        return None
    if operand.size > 1 and (data.shape is None or data.shape[linear.axis] != channels):
        return None
    return along(operand, linear.axis, rank, channels)


def _ends_normalization(value: ir.Value, depth: int = 3) -> bool:
    """Tell whether a root was drawn just before: the scale is the gamma of a normalization then."""
    node = value.producer()
    if node is None or depth == 0:
        return False
    return node.op_type in _ROOTS or (
        node.op_type in ("Mul", "Div", "Reciprocal", "Cast", "Add", "Sub")
        and any(source is not None and _ends_normalization(source, depth - 1) for source in node.inputs)
    )
