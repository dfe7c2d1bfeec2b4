"""How an operator is written when its data comes with the axes in another order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxedge.api import Array, constant, is_standard, operator
from onnxedge_passes.cleanup.worklist import input_at, node_opset

Perm = tuple[int, ...]


@dataclass(frozen=True)
class Turned:
    """Say what becomes of a node.

    Attributes:
        data: inputs that come turned.
        before: order of their axes: axis ``i`` of a turned input is axis ``before[i]`` of the old one.
        after: the same for the outputs; another rank where axes are dropped or added.
        attributes: attributes that change.
        operands: inputs that get another constant.
    """

    data: tuple[int, ...]
    before: Perm
    after: Perm
    attributes: Mapping[str, Any] = field(default_factory=dict)
    operands: Mapping[int, Array] = field(default_factory=dict)


def inverse(perm: Sequence[int]) -> Perm:
    """Return the permutation that undoes another one."""
    return tuple(int(axis) for axis in np.argsort(perm))


def composed(first: Sequence[int], second: Sequence[int]) -> Perm:
    """Return the one permutation that stands for two Transposes in a row."""
    return tuple(first[axis] for axis in second)


def rank(value: ir.Value | None) -> int | None:
    """Return the number of axes of a value, None where it is not known."""
    return len(value.shape) if value is not None and value.shape is not None else None


def turned(node: ir.Node, perm: Perm) -> Turned | None:
    """Return how to write a node on data with its axes in the order ``perm``, None for a node that cannot be."""
    if not is_standard(node) or node_opset(node) < 11 or rank(input_at(node, 0)) is None:
        return None
    rule = _RULES.get(node.op_type)
    if rule is not None:
        return rule(node, perm) if rank(node.inputs[0]) == len(perm) else None
    if operator(node).kind == "elementwise":
        return _elementwise(node, perm)
    return None


def keeps_rank(node: ir.Node) -> bool:
    """Tell whether the axes of a node's output are those of its data."""
    if node.op_type in _DROPPING and not node.attributes.get_int("keepdims", 1):
        return False
    return node.op_type not in ("Squeeze", "Unsqueeze")


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
        elif have > 0:
            array = constant(value)
            if array is None:
                return None
            if array.size > 1:
                operands[index] = array.reshape((1,) * (len(perm) - have) + array.shape).transpose(perm)
    return Turned(tuple(data), perm, perm, operands=operands) if data else None


def _axes(node: ir.Node, index: int, since: int) -> list[int] | None:
    """Return the axes that a node names, as attribute or input; None where it names none or computes them."""
    if node_opset(node) < since:
        found = node.attributes.get_ints("axes", None)
        return list(found) if found is not None else None
    given = constant(input_at(node, index))
    return [int(axis) for axis in given.ravel()] if given is not None else None


def _with_axes(node: ir.Node, index: int, since: int, axes: Sequence[int]) -> dict[str, Any]:
    if node_opset(node) < since:
        return {"attributes": {"axes": list(axes)}}
    return {"operands": {index: np.array(axes, np.int64)}}


def _along_axis(default: int, since: int = 0) -> Callable[[ir.Node, Perm], Turned | None]:
    def rule(node: ir.Node, perm: Perm) -> Turned | None:
        if node_opset(node) < since:
            return None
        axis = node.attributes.get_int("axis", default) % len(perm)
        if any(rank(value) != len(perm) for value in (node.inputs if node.op_type == "Concat" else node.inputs[:1])):
            return None
        data = tuple(range(len(node.inputs))) if node.op_type == "Concat" else (0,)
        return Turned(data, perm, perm, {"axis": perm.index(axis)})

    return rule


def _quantizer(node: ir.Node, perm: Perm) -> Turned | None:
    if node.attributes.get_int("block_size", 0) or rank(input_at(node, 1)) is None:
        return None
    if rank(node.inputs[1]) == 0:
        return Turned((0,), perm, perm)
    axis = node.attributes.get_int("axis", 1) % len(perm)
    return Turned((0,), perm, perm, {"axis": perm.index(axis)}) if node_opset(node) >= 13 else None


def _reduction(node: ir.Node, perm: Perm) -> Turned | None:
    since = 13 if node.op_type == "ReduceSum" else 18
    axes = _axes(node, 1, since)
    if not axes:
        return None
    gone = {axis % len(perm) for axis in axes}
    changed = _with_axes(node, 1, since, sorted(perm.index(axis) for axis in gone))
    keeps = node.attributes.get_int("keepdims", 1)
    return Turned((0,), perm, perm if keeps else _without(perm, gone), **changed)


def _arg(node: ir.Node, perm: Perm) -> Turned | None:
    axis = node.attributes.get_int("axis", 0) % len(perm)
    keeps = node.attributes.get_int("keepdims", 1)
    return Turned((0,), perm, perm if keeps else _without(perm, {axis}), {"axis": perm.index(axis)})


def _without(perm: Perm, gone: set[int]) -> Perm:
    """Return the order of the axes that are left when some are dropped."""
    left = [axis for axis in perm if axis not in gone]
    order = sorted(left)
    return tuple(order.index(axis) for axis in left)


def _squeeze(node: ir.Node, perm: Perm) -> Turned | None:
    axes = _axes(node, 1, 13)
    if not axes:
        return None
    gone = {axis % len(perm) for axis in axes}
    changed = _with_axes(node, 1, 13, sorted(perm.index(axis) for axis in gone))
    return Turned((0,), perm, _without(perm, gone), **changed)


def _unsqueeze(node: ir.Node, perm: Perm) -> Turned | None:
    axes = _axes(node, 1, 13)
    if not axes:
        return None
    whole = len(perm) + len(axes)
    new = {axis % whole for axis in axes}
    old = [axis for axis in range(whole) if axis not in new]
    rest = iter(old[axis] for axis in perm)
    after = tuple(axis if axis in new else next(rest) for axis in range(whole))
    return Turned((0,), perm, after)


def _pad(node: ir.Node, perm: Perm) -> Turned | None:
    pads = constant(input_at(node, 1))
    if pads is None or input_at(node, 3) is not None or pads.size != 2 * len(perm):
        return None
    return Turned((0,), perm, perm, operands={1: pads.reshape(2, -1)[:, list(perm)].ravel()})


def _slice(node: ir.Node, perm: Perm) -> Turned | None:
    starts = constant(input_at(node, 1))
    if starts is None:
        return None
    given = constant(input_at(node, 3))
    if given is None and input_at(node, 3) is not None:
        return None
    axes = given.tolist() if given is not None else range(starts.size)
    dtype = given.dtype if given is not None else starts.dtype
    return Turned((0,), perm, perm, operands={3: np.array([perm.index(axis % len(perm)) for axis in axes], dtype)})


def _resize(node: ir.Node, perm: Perm) -> Turned | None:
    """Turn a Resize whose first two axes stay as they are in the new order: what every runtime has a kernel for."""
    scales = constant(input_at(node, 2))
    if scales is None or scales.size != len(perm) or input_at(node, 3) is not None:
        return None
    if node.attributes.get_string("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        return None
    new = scales[list(perm)]
    if len(perm) < 3 or (new[:2] != 1).any() or node.attributes.get_ints("axes", None) is not None:
        return None
    return Turned((0,), perm, perm, operands={2: new})


_DROPPING = (
    *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd"),
    *("ReduceSum", "ReduceSumSquare", "ArgMax", "ArgMin"),
)

_RULES: Mapping[str, Callable[[ir.Node, Perm], Turned | None]] = {
    "Concat": _along_axis(0),
    "Split": _along_axis(0),
    "Softmax": _along_axis(-1, since=13),
    "LogSoftmax": _along_axis(-1, since=13),
    "Hardmax": _along_axis(-1, since=13),
    "QuantizeLinear": _quantizer,
    "DequantizeLinear": _quantizer,
    **dict.fromkeys(_DROPPING, _reduction),
    "ArgMax": _arg,
    "ArgMin": _arg,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Pad": _pad,
    "Slice": _slice,
    "Resize": _resize,
}
