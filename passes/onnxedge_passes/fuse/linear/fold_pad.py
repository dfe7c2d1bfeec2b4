"""Pad nodes before convolutions and pooling."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxedge.api import Accuracy, Array, Context, constant, constant_tensor, is_standard, static_shape
from onnxedge_passes.cleanup.worklist import Outcome, Refused, Rule, input_at, node_opset, retire

_NOT_NEGATIVE = ("Relu", "Sigmoid", "HardSigmoid", "Softmax", "Abs", "Exp", "Softplus")


@dataclass(frozen=True, kw_only=True)
class FoldPad(Rule):
    """Fold a Pad with zeros into the padding of the Conv, ConvInteger, AveragePool or MaxPool that reads it.

    Before: ``y = Conv<pads=[0, 0, 0, 0]>(Pad<constant>(x, [0, 0, 1, 1, 0, 0, 1, 1]), W)``
    After:  ``y = Conv<pads=[1, 1, 1, 1]>(x, W)``

    Left alone: other modes and values, negative pads, pads of batch or channels; ``auto_pad=SAME_*`` where the size of
    the image is not known; a ConvInteger with a zero point of its own. An AveragePool must have counted its
    own padding or have none. A MaxPool, whose own padding is minus infinity, must be given that or the lowest number
    (only a window of nothing but minus infinity tells them apart; ONNX Runtime's PadFusion does the same), or read what
    is never negative and be given nothing positive. Pooling with ``ceil_mode``, or with pads as large as the kernel, is
    left alone.
    accuracy: rounding. Source: ONNX Pad, Conv, AveragePool, MaxPool.
    """

    name: ClassVar[str] = "fold-pad"
    accuracy: ClassVar[Accuracy] = "rounding"
    roots: ClassVar[tuple[str, ...]] = ("Conv", "ConvInteger", "AveragePool", "MaxPool")

    def rewrite(self, node: ir.Node, context: Context) -> Outcome:
        """Add the pads of the Pad before a node to the node's own."""
        source = node.inputs[0]
        pad = source.producer() if source is not None else None
        if pad is None or pad.op_type != "Pad" or not is_standard(pad) or pad.graph is not node.graph:
            return None
        padded = pad.inputs[0]
        kernel = _kernel(node)
        pads = _spatial_pads(pad, len(kernel) + 2) if kernel is not None else None
        value = _value(pad)
        if padded is None or kernel is None or pads is None or not (value == 0.0 or node.op_type == "MaxPool"):
            return Refused("Pad not folded: not a constant number of zeros around the image")
        own = _own_pads(node, pad.outputs[0], kernel)
        if own is None or own.size != pads.size:
            return Refused("Pad not folded: what it feeds computes its own padding")
        if node.op_type == "ConvInteger" and input_at(node, 2) is not None:
            return Refused("Pad not folded: the integer convolution pads with its zero point")
        if not node.op_type.startswith("Conv"):
            reason = _pool_refusal(node, padded, own, own + pads, np.array(kernel), value)
            if reason:
                return Refused(f"Pad not folded: {reason}")
        node.attributes.pop("auto_pad", None)
        node.attributes["pads"] = ir.AttrInt64s("pads", (own + pads).tolist())
        if node.op_type == "AveragePool":
            node.attributes["count_include_pad"] = ir.AttrInt64("count_include_pad", 1)
        node.replace_input_with(0, padded)
        retire(pad)
        return node.outputs[0]


def _kernel(node: ir.Node) -> tuple[int, ...] | None:
    given = node.attributes.get_ints("kernel_shape", None)
    if given is not None:
        return tuple(given)
    if not node.op_type.startswith("Conv"):
        return None
    tensor, shape = constant_tensor(input_at(node, 1)), static_shape(input_at(node, 1))
    return tuple(int(d) for d in tensor.shape[2:]) if tensor is not None else shape[2:] if shape is not None else None  # type: ignore[arg-type]


def _own_pads(node: ir.Node, data: ir.Value, kernel: tuple[int, ...]) -> Array | None:
    """Return the pads [begin..., end...] that a node adds itself, None where they are not known."""
    auto = node.attributes.get_string("auto_pad", "NOTSET")
    if auto not in ("SAME_UPPER", "SAME_LOWER"):
        return np.array(node.attributes.get_ints("pads", [0] * (2 * len(kernel))))
    sizes = list(data.shape)[2:] if data.shape is not None else []
    if len(sizes) != len(kernel) or any(d != 1 for d in node.attributes.get_ints("dilations", ())):
        return None
    strides = node.attributes.get_ints("strides", [1] * len(kernel))
    begins, ends = [], []
    for size, window, stride in zip(sizes, kernel, strides, strict=True):
        if not isinstance(size, int):
            return None
        total = max((-(-size // stride) - 1) * stride + window - size, 0)
        begins.append(total // 2 if auto == "SAME_UPPER" else total - total // 2)
        ends.append(total - begins[-1])
    return np.array([*begins, *ends])


def _value(pad: ir.Node) -> float:
    """Return what a Pad puts around its data, NaN where that is computed at run time."""
    if node_opset(pad) < 11:
        return pad.attributes.get_float("value", 0.0)
    if input_at(pad, 2) is None:
        return 0.0
    given = constant(pad.inputs[2])
    return float(given.ravel()[0]) if given is not None and given.size == 1 and given.dtype.kind in "fiu" else math.nan


def _lowest(value: ir.Value) -> float:
    """Return the lowest finite number of a type."""
    dtype = value.dtype
    return float(np.finfo(dtype.numpy()).min) if dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16) else -math.inf


def _spatial_pads(pad: ir.Node, rank: int) -> Array | None:
    """Return the spatial pads [begin..., end...] of a Pad with a constant, None for any other Pad."""
    if pad.attributes.get_string("mode", "constant") != "constant":
        return None
    if node_opset(pad) < 11:
        given: Array | None = np.array(pad.attributes.get_ints("pads", pad.attributes.get_ints("paddings", ())))
    else:
        given = constant(input_at(pad, 1))
    if given is None:
        return None
    if input_at(pad, 3) is not None:
        axes = constant(pad.inputs[3])
        if axes is None or given.size != 2 * axes.size:
            return None
        spread = np.zeros((2, rank), np.int64)
        spread[:, axes.astype(np.int64) % rank] = given.reshape(2, -1)
        given = spread.reshape(-1)
    if given.size != 2 * rank or (given < 0).any():
        return None
    sides = given.reshape(2, rank)
    return None if sides[:, :2].any() else np.asarray(sides[:, 2:].reshape(-1))


def _pool_refusal(node: ir.Node, padded: ir.Value, own: Array, pads: Array, kernel: Array, value: float) -> str:
    if node.attributes.get_int("ceil_mode", 0):
        return "pooling with ceil_mode"
    if len(node.outputs) > 1:
        return "pooling that returns indices"
    if (pads.reshape(2, -1) >= kernel).any():
        return "as large as the pooling's kernel"
    if node.op_type == "AveragePool":
        excludes = own.any() and not node.attributes.get_int("count_include_pad", 0)
        if node_opset(node) < 7:
            return "AveragePool before opset 7 cannot count its padding"
        return "the pooling does not count its own padding" if excludes else ""
    if value <= _lowest(padded):
        return ""
    if not value <= 0.0:
        return "what a MaxPool reads may be less than what is put around it"
    producer = padded.producer()
    if producer is None or not is_standard(producer):
        return "what a MaxPool reads may be negative"
    if producer.op_type in _NOT_NEGATIVE:
        return ""
    if producer.op_type == "Clip":
        old = node_opset(producer) < 11
        low = np.array(producer.attributes.get_float("min", -1.0)) if old else constant(input_at(producer, 1))
        if low is not None and (low >= 0).all():
            return ""
    return "what a MaxPool reads may be negative"
