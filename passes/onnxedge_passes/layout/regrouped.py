"""How an operator that splits, merges, adds or drops axes is written when its data comes in another order."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from onnxedge.api import constant, is_standard
from onnxedge_passes.cleanup.axes import REDUCTIONS, named_axes
from onnxedge_passes.cleanup.worklist import input_at, node_opset
from onnxedge_passes.layout.orders import Blocks, Perm, carried, flipped, is_sorted, rank, sizes
from onnxedge_passes.layout.turned import Turned, turned_in_place, with_axes

OLDEST = 7  #: opset from which operators broadcast as they do today
_UNKNOWN = (4294967311, 4294967357, 4294967371, 4294967377, 4294967387, 4294967389, 4294967459, 4294967477)
"""Primes that no size is a multiple of; each stands for the size of an unknown axis, so that products compare."""

Grouping = tuple[Blocks, int]  #: which axes belong together, and the number of axes behind the operator
Group = Callable[[ir.Node], Grouping | None]
Write = Callable[[ir.Node, Perm, Perm], Turned | None]


def turned(node: ir.Node, before: Perm | None, after: Perm | None = None) -> Turned | None:
    """Return how to write a node on data in another order, None for a node that cannot be or need not be.

    Args:
        node: any node.
        before: order in which its data comes; None to find it from the order of the outputs.
        after: order in which the outputs are wished for, where there is a choice.
    """
    if node_opset(node) < OLDEST or rank(input_at(node, 0)) is None:
        return None
    if not is_standard(node) or node.op_type not in _REGROUPING:
        order = before or after
        made = turned_in_place(node, order) if order is not None else None
        return made if made is not None and after in (None, made.after) else None
    group, write = _REGROUPING[node.op_type]
    grouping, have = group(node), rank(node.inputs[0])
    if grouping is None or have is None:
        return None
    blocks, behind = grouping
    if before is None and after is not None:
        before = carried(after, flipped(blocks), have)
    result = carried(before, blocks, behind) if before is not None else None
    if before is None or result is None or len(before) != have:
        return None
    if after is not None:
        owned = {axis for _, theirs in blocks for axis in theirs}
        if len(after) != behind or [a for a in after if a in owned] != [a for a in result if a in owned]:
            return None
        result = after
    return write(node, before, result) if not (is_sorted(before) and is_sorted(result)) else None


def _places(order: Perm, axes: set[int]) -> list[int]:
    return sorted(order.index(axis) for axis in axes)


def _without(gone: set[int], have: int) -> Grouping:
    left = [axis for axis in range(have) if axis not in gone]
    return [((axis,), (place,)) for place, axis in enumerate(left)], len(left)


def _named(node: ir.Node, whole: int) -> set[int] | None:
    """Return the axes that a node names, counted from the start among ``whole``."""
    axes = named_axes(node)
    return {axis % whole for axis in axes} if axes and whole else None


def _reduced(node: ir.Node) -> set[int] | None:
    have = rank(node.inputs[0]) or 0
    if node.op_type in ("ArgMax", "ArgMin"):
        return {node.attributes.get_int("axis", 0) % have} if have else None
    return _named(node, have)


def _group_reduction(node: ir.Node) -> Grouping | None:
    gone, have = _reduced(node), rank(node.inputs[0]) or 0
    if gone is None:
        return None
    return _without(gone if not node.attributes.get_int("keepdims", 1) else set(), have)


def _write_reduction(node: ir.Node, before: Perm, after: Perm) -> Turned | None:
    axes = _places(before, _reduced(node) or set())
    if node.op_type in ("ArgMax", "ArgMin"):
        return Turned((0,), before, after, {"axis": axes[0]})
    return Turned((0,), before, after, **with_axes(node, axes))


def _group_squeeze(node: ir.Node) -> Grouping | None:
    have = rank(node.inputs[0]) or 0
    gone = _named(node, have)
    return _without(gone, have) if gone is not None else None


def _write_squeeze(node: ir.Node, before: Perm, after: Perm) -> Turned | None:
    gone = _named(node, len(before)) or set()
    return Turned((0,), before, after, **with_axes(node, _places(before, gone)))


def _added(node: ir.Node) -> set[int] | None:
    axes = named_axes(node)
    return _named(node, (rank(node.inputs[0]) or 0) + len(axes or ()))


def _group_unsqueeze(node: ir.Node) -> Grouping | None:
    added, have = _added(node), rank(node.inputs[0]) or 0
    if added is None:
        return None
    blocks, _ = _without(added, have + len(added))
    return flipped(blocks), have + len(added)


def _write_unsqueeze(node: ir.Node, before: Perm, after: Perm) -> Turned | None:
    return Turned((0,), before, after, **with_axes(node, _places(after, _added(node) or set())))


def _group_gather(node: ir.Node) -> Grouping | None:
    have, wide = rank(node.inputs[0]), rank(input_at(node, 1))
    if not have or wide is None:
        return None
    cut = node.attributes.get_int("axis", 0) % have
    blocks: list[tuple[Perm, Perm]] = []
    for axis in range(have):
        theirs = range(cut, cut + wide) if axis == cut else (axis if axis < cut else axis + wide - 1,)
        if theirs:
            blocks.append(((axis,), tuple(theirs)))
    return blocks, have - 1 + wide


def _write_gather(node: ir.Node, before: Perm, after: Perm) -> Turned | None:
    axis = node.attributes.get_int("axis", 0) % len(before)
    return Turned((0,), before, after, {"axis": before.index(axis)})


def _group_shape(node: ir.Node) -> Grouping | None:
    return [], 1


def _write_shape(node: ir.Node, before: Perm, after: Perm) -> Turned | None:
    """Read the sizes of turned data, and pick them in the old order."""
    start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", len(before))
    whole = {"start": 0, "end": len(before)} if {"start", "end"} & set(node.attributes) else {}
    places = tuple(before.index(axis) for axis in range(len(before)))
    return Turned((0,), before, after, whole, picks=places[start:end])


def _group_size(node: ir.Node) -> Grouping | None:
    return [], 0


def _write_size(node: ir.Node, before: Perm, after: Perm) -> Turned | None:
    return Turned((0,), before, after)


def _source_sizes(node: ir.Node) -> list[int] | None:
    """Return the sizes that a Reshape is given, a prime for each one not known."""
    known = sizes(node.inputs[0])
    if known is None or known.count(None) > len(_UNKNOWN):
        return None
    stand_ins = iter(_UNKNOWN)
    given = [size if size is not None else next(stand_ins) for size in known]
    return given if all(size is None or 0 < size < _UNKNOWN[0] for size in known) else None


def _target_sizes(node: ir.Node) -> list[int] | None:
    """Return the sizes that a Reshape makes, in the same terms."""
    source, shape = _source_sizes(node), constant(input_at(node, 1))
    if source is None or shape is None or shape.ndim != 1 or node.attributes.get_int("allowzero", 0) != 0:
        return None
    asked = [int(size) for size in shape]
    if any(size < -1 or (size == 0 and axis >= len(source)) for axis, size in enumerate(asked)) or asked.count(-1) > 1:
        return None
    target = [source[axis] if size == 0 else size for axis, size in enumerate(asked)]
    whole, rest = math.prod(source), math.prod(size for size in target if size != -1)
    if whole % rest or (-1 not in target and whole != rest):
        return None
    return [whole // rest if size == -1 else size for size in target]


def _group_reshape(node: ir.Node) -> Grouping | None:
    """Find the shortest runs of axes whose sizes multiply to the same number on both sides."""
    source, target = _source_sizes(node), _target_sizes(node)
    if source is None or target is None:
        return None
    mine, theirs = ([axis for axis, size in enumerate(side) if size != 1] for side in (source, target))
    blocks: list[tuple[Perm, Perm]] = []
    at = to = 0
    while at < len(mine) and to < len(theirs):
        first, second, left, right = at, to, source[mine[at]], target[theirs[to]]
        while left != right:
            if left < right and at + 1 < len(mine):
                at += 1
                left *= source[mine[at]]
            elif right < left and to + 1 < len(theirs):
                to += 1
                right *= target[theirs[to]]
            else:
                return None
        at, to = at + 1, to + 1
        blocks.append((tuple(mine[first:at]), tuple(theirs[second:to])))
    return blocks, len(target)


def _write_reshape(node: ir.Node, before: Perm, after: Perm) -> Turned | None:
    source, target = _source_sizes(node) or [], _target_sizes(node) or []
    shape: list[int] = []
    for place, axis in enumerate(after):
        if target[axis] < _UNKNOWN[0]:
            shape.append(target[axis])
        else:
            shape.append(0 if place < len(before) and source[before[place]] == target[axis] else -1)
    return Turned((0,), before, after, operands={1: np.array(shape, np.int64)}) if shape.count(-1) <= 1 else None


_REGROUPING: Mapping[str, tuple[Group, Write]] = {
    **dict.fromkeys((*REDUCTIONS, "ArgMax", "ArgMin"), (_group_reduction, _write_reduction)),
    "Squeeze": (_group_squeeze, _write_squeeze),
    "Unsqueeze": (_group_unsqueeze, _write_unsqueeze),
    "Gather": (_group_gather, _write_gather),
    "Reshape": (_group_reshape, _write_reshape),
    "Shape": (_group_shape, _write_shape),
    "Size": (_group_size, _write_size),
}
