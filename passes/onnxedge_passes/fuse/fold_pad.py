"""Pad nodes before convolutions and pooling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxedge.api import Accuracy, Array, Context, constant, constant_tensor, is_standard
from onnxedge_passes.cleanup.worklist import Outcome, Refused, Rule, input_at, node_opset, retire

_NOT_NEGATIVE = ("Relu", "Sigmoid", "HardSigmoid", "Softmax", "Abs", "Exp", "Softplus")


@dataclass(frozen=True, kw_only=True)
class FoldPad(Rule):
    """Fold a Pad with zeros into the padding of the Conv, AveragePool or MaxPool that reads it.

    Before: ``y = Conv<pads=[0, 0, 0, 0]>(Pad<constant>(x, [0, 0, 1, 1, 0, 0, 1, 1]), W)``
    After:  ``y = Conv<pads=[1, 1, 1, 1]>(x, W)``

    Left alone: other modes and values, negative pads, pads of batch or channels; ``auto_pad=SAME_*``. An AveragePool
    must have counted its own padding or have none, a MaxPool must read what is never negative (its own padding is minus
    infinity); pooling with ``ceil_mode``, or with pads as large as the kernel, is left alone.
    accuracy: rounding. Source: ONNX Pad, Conv, AveragePool, MaxPool.
    """

    name: ClassVar[str] = "fold-pad"
    accuracy: ClassVar[Accuracy] = "rounding"
    roots: ClassVar[tuple[str, ...]] = ("Conv", "AveragePool", "MaxPool")

    def rewrite(self, node: ir.Node, context: Context) -> Outcome:
        """Add the pads of the Pad before a node to the node's own."""
        source = node.inputs[0]
        pad = source.producer() if source is not None else None
        if pad is None or pad.op_type != "Pad" or not is_standard(pad) or pad.graph is not node.graph:
            return None
        padded = pad.inputs[0]
        kernel = _kernel(node)
        pads = _zero_pads(pad, len(kernel) + 2) if kernel is not None else None
        if padded is None or kernel is None or pads is None:
            return Refused("Pad not folded: not a constant number of zeros around the image")
        own = np.array(node.attributes.get_ints("pads", [0] * (2 * len(kernel))))
        if node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID", "") or own.size != pads.size:
            return Refused("Pad not folded: what it feeds computes its own padding")
        if node.op_type != "Conv":
            reason = _pool_refusal(node, padded, own, own + pads, np.array(kernel))
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
    tensor = constant_tensor(input_at(node, 1)) if node.op_type == "Conv" else None
    return tuple(int(d) for d in tensor.shape[2:]) if tensor is not None else None  # type: ignore[arg-type]


def _zero_pads(pad: ir.Node, rank: int) -> Array | None:
    """Return the spatial pads [begin..., end...] of a Pad with zeros, None for any other Pad."""
    if pad.attributes.get_string("mode", "constant") != "constant":
        return None
    if node_opset(pad) < 11:
        given: Array | None = np.array(pad.attributes.get_ints("pads", pad.attributes.get_ints("paddings", ())))
        value: Array | None = np.array(pad.attributes.get_float("value", 0.0))
    else:
        given = constant(input_at(pad, 1))
        value = constant(pad.inputs[2]) if input_at(pad, 2) is not None else np.zeros(1)
    if given is None or value is None or value.any():
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


def _pool_refusal(node: ir.Node, padded: ir.Value, own: Array, pads: Array, kernel: Array) -> str:
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
