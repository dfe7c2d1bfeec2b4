"""How an operator that keeps its axes is written when its data comes with them in another order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxedge.api import Array, constant, is_standard, operator
from onnxedge_passes.cleanup.axes import takes_axes_as_input
from onnxedge_passes.cleanup.worklist import input_at, node_opset
from onnxedge_passes.layout.orders import Perm, inverse, is_single, rank, sizes


@dataclass(frozen=True)
class Turned:
    """Say what becomes of a node.

    Attributes:
        data: inputs that come turned.
        before: order of their axes: axis ``i`` of a turned input is axis ``before[i]`` of the old one.
        after: the same for the outputs; another rank where axes are split, merged, dropped or added.
        attributes: attributes that change.
        operands: inputs that get another constant.
        picks: elements of a list of sizes to take, in order, so that it is the old one.
    """

    data: tuple[int, ...]
    before: Perm
    after: Perm
    attributes: Mapping[str, Any] = field(default_factory=dict)
    operands: Mapping[int, Array] = field(default_factory=dict)
    picks: Perm | None = None


Rule = Callable[[ir.Node, Perm], Turned | None]


def turned_in_place(node: ir.Node, perm: Perm) -> Turned | None:
    """Return how to write a node that keeps its axes on data in the order ``perm``, None for one that cannot be."""
    if not is_standard(node):  # of a runtime: an activation
        alone = len(node.inputs) == 1 and operator(node).commutes_with_movement
        return Turned((0,), perm, perm) if alone and rank(node.inputs[0]) == len(perm) else None
    rule = _RULES.get(node.op_type)
    if rule is not None:
        return rule(node, perm) if rank(node.inputs[0]) == len(perm) else None
    if operator(node).kind == "elementwise":
        return _elementwise(node, perm)
    return None


def with_axes(node: ir.Node, axes: Sequence[int]) -> dict[str, Any]:
    """Return the part of a :class:`Turned` that gives a node other axes, as its opset writes them."""
    if takes_axes_as_input(node):
        return {"operands": {1: np.array(axes, np.int64)}}
    return {"attributes": {"axes": list(axes)}}


def _elementwise(node: ir.Node, perm: Perm) -> Turned | None:
    data: list[int] = []
    operands: dict[int, Array] = {}
    for index, value in enumerate(node.inputs):
        if value is None or (node.op_type in ("Clip", "Dropout", "CastLike") and index > 0):
            continue
        have = rank(value)
        if have == len(perm):
            data.append(index)
        elif have is None or have > len(perm):
            return None
        elif not is_single(value):
            array = constant(value)
            if array is None:
                return None
            operands[index] = array.reshape((1,) * (len(perm) - have) + array.shape).transpose(perm)
    return Turned(tuple(data), perm, perm, operands=operands) if data else None


def _along_axis(default: int, count: int | None = 1, since: int = 0) -> Rule:
    """Return the rule of an operator that works along one axis of its first inputs, of all of them for None."""

    def rule(node: ir.Node, perm: Perm) -> Turned | None:
        if node_opset(node) < since or any(rank(value) != len(perm) for value in node.inputs[:count]):
            return None
        axis = node.attributes.get_int("axis", default) % len(perm)
        return Turned(tuple(range(len(node.inputs[:count]))), perm, perm, {"axis": perm.index(axis)})

    return rule


def _softmax(node: ir.Node, perm: Perm) -> Turned | None:
    """Turn a softmax; before opset 13 it goes over all axes from one on, which must come last again."""
    if node_opset(node) >= 13:
        return _along_axis(-1)(node, perm)
    first = node.attributes.get_int("axis", 1) % len(perm)
    known = sizes(node.inputs[0]) or []
    over = [perm.index(axis) for axis in range(first, len(perm)) if known[axis] != 1]
    if not over or any(axis < first and known[axis] != 1 for axis in perm[min(over) :]):
        return None
    return Turned((0,), perm, perm, {"axis": min(over)})


def _fixed(front: int = 0, back: int = 0, count: int = 1) -> Rule:
    """Return the rule of an operator some of whose first or last axes must stay where they are."""

    def rule(node: ir.Node, perm: Perm) -> Turned | None:
        whole = tuple(range(len(perm)))
        if perm[:front] != whole[:front] or perm[len(perm) - back :] != whole[len(perm) - back :]:
            return None
        if (
            any(rank(value) != len(perm) for value in node.inputs[:count])
            or sum(bool(v.name) for v in node.outputs) > 1
        ):
            return None
        return Turned(tuple(range(count)), perm, perm)

    return rule


def _last_axes(node: ir.Node, perm: Perm) -> Turned | None:
    return _fixed(back=len(perm) - node.attributes.get_int("axis", -1) % len(perm))(node, perm)


def _batchnorm(node: ir.Node, perm: Perm) -> Turned | None:
    return _fixed(front=2)(node, perm) if node.attributes.get_int("spatial", 1) else None


def _matmul(node: ir.Node, perm: Perm) -> Turned | None:
    if len(perm) > 2 and rank(input_at(node, 1)) == 2:
        return _fixed(back=1)(node, perm)
    return _fixed(back=2, count=2)(node, perm)


def _quantizer(node: ir.Node, perm: Perm) -> Turned | None:
    if node.attributes.get_int("block_size", 0) or rank(input_at(node, 1)) is None:
        return None
    if rank(node.inputs[1]) == 0:
        return Turned((0,), perm, perm)
    axis = node.attributes.get_int("axis", 1) % len(perm)
    return Turned((0,), perm, perm, {"axis": perm.index(axis)}) if node_opset(node) >= 13 else None


def _transpose(node: ir.Node, perm: Perm) -> Turned | None:
    """Turn a Transpose that moves axes only among some that stay together, as a channel shuffle does."""
    given = tuple(node.attributes.get_ints("perm", range(len(perm))[::-1]))
    moved = [axis for place, axis in enumerate(given) if axis != place]
    if not moved or len(given) != len(perm):
        return None
    run = tuple(range(min(moved), max(moved) + 1))
    start = perm.index(run[0])
    if len(run) == len(perm) or perm[start : start + len(run)] != run:
        return None
    places = inverse(perm)
    return Turned((0,), perm, perm, {"perm": [places[given[axis]] for axis in perm]})


def _cumulative(node: ir.Node, perm: Perm) -> Turned | None:
    axis = constant(input_at(node, 1))
    if axis is None or axis.size != 1:
        return None
    return Turned((0,), perm, perm, operands={1: np.full_like(axis, perm.index(int(axis.item()) % len(perm)))})


def _pad(node: ir.Node, perm: Perm) -> Turned | None:
    if node_opset(node) < 11:
        pads = np.array(node.attributes.get_ints("pads", ()), np.int64)
        if pads.size != 2 * len(perm):
            return None
        return Turned((0,), perm, perm, {"pads": pads.reshape(2, -1)[:, list(perm)].ravel().tolist()})
    if input_at(node, 3) is not None:
        axes = constant(node.inputs[3])
        moved = None if axes is None else np.array([perm.index(axis % len(perm)) for axis in axes.tolist()], axes.dtype)
        return None if moved is None else Turned((0,), perm, perm, operands={3: moved})
    given = constant(input_at(node, 1))
    if given is None or given.size != 2 * len(perm):
        return None
    return Turned((0,), perm, perm, operands={1: given.reshape(2, -1)[:, list(perm)].ravel()})


def _slice(node: ir.Node, perm: Perm) -> Turned | None:
    if node_opset(node) < 10:
        count = len(node.attributes.get_ints("starts", ()))
        listed = node.attributes.get_ints("axes", range(count))
        return Turned((0,), perm, perm, {"axes": [perm.index(axis % len(perm)) for axis in listed]})
    starts = constant(input_at(node, 1))
    given = constant(input_at(node, 3))
    if given is None and (starts is None or input_at(node, 3) is not None):
        return None
    axes = given.tolist() if given is not None else range(starts.size if starts is not None else 0)
    dtype = given.dtype if given is not None else np.int64 if starts is None else starts.dtype
    return Turned((0,), perm, perm, operands={3: np.array([perm.index(axis % len(perm)) for axis in axes], dtype)})


def _repeats(node: ir.Node, perm: Perm) -> Turned | None:
    """Turn Tile and Expand, whose second input has a number for each axis."""
    counts = constant(input_at(node, 1))
    if counts is None or counts.ndim != 1 or counts.size > len(perm):
        return None
    padded = np.concatenate([np.ones(len(perm) - counts.size, counts.dtype), counts])
    return Turned((0,), perm, perm, operands={1: padded[list(perm)]})


def _resize(node: ir.Node, perm: Perm) -> Turned | None:
    """Turn a Resize whose first two axes stay as they are in the new order: what every runtime has a kernel for."""
    if len(perm) < 3 or node.attributes.get_ints("axes", None) is not None:
        return None
    if node.op_type == "Upsample" and node_opset(node) < 9:
        factors = np.array(node.attributes.get_floats("scales", ()))
        if factors.size != len(perm) or (factors[list(perm)][:2] != 1).any():
            return None
        return Turned((0,), perm, perm, {"scales": factors[list(perm)].tolist()})
    index = 1 if node_opset(node) < 11 else 2
    if node.attributes.get_string("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        return None
    scales = constant(input_at(node, index))
    if scales is None or scales.size != len(perm) or input_at(node, 3) is not None:
        return None
    new = scales[list(perm)]
    return None if (new[:2] != 1).any() else Turned((0,), perm, perm, operands={index: new})


_RULES: Mapping[str, Rule] = {
    "Concat": _along_axis(0, None),
    "Split": _along_axis(0),
    "GatherElements": _along_axis(0, 2),
    "TopK": _along_axis(-1),
    "LpNormalization": _along_axis(-1),
    "CumSum": _cumulative,
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), _softmax),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), _quantizer),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), _last_axes),
    "BatchNormalization": _batchnorm,
    **dict.fromkeys(("InstanceNormalization", "GroupNormalization"), _fixed(front=2)),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool"), _fixed(front=2)),
    "Trilu": _fixed(back=2),
    "MatMul": _matmul,
    "Transpose": _transpose,
    "Pad": _pad,
    "Slice": _slice,
    **dict.fromkeys(("Tile", "Expand"), _repeats),
    **dict.fromkeys(("Resize", "Upsample"), _resize),
}
