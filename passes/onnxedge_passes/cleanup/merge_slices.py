"""Slices, Gathers, Pads, Tiles and Expands in a row, with constant operands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxedge.api import Array, Context, constant, graph_of, new_initializer
from onnxedge_passes.cleanup.worklist import Outcome, Rule, input_at, node_before, node_opset, replace_node

LAST = 2**63 - 1  #: end of a Slice that means "to the last"
_OPEN = 2**31 - 1  #: ends from here on mean the same


@dataclass(frozen=True, kw_only=True)
class MergeSlices(Rule):
    """Do in one step what two Slices, Gathers, Pads, Tiles or Expands with constant operands do.

    Before: ``y = Slice(Slice(x, [2], [9], [1]), [0], [4], [2])``; ``y = Slice(Concat<axis=1>(a, b), [0], [3], [1])``
    After:  ``y = Slice(x, [2, 0], [9, 4], [1, 2])``; ``y = Slice(a, [0], [3], [1])`` with ``a: [N, 3]``

    Left alone: inner values that others read, too; bounds counted from the end, and steps, on an axis that both cut;
    opsets before 11; Pads of another mode, value, or negative.
    accuracy: exact. Source: own.
    """

    name: ClassVar[str] = "merge-slices"
    roots: ClassVar[tuple[str, ...]] = ("Slice", "Gather", "Pad", "Tile", "Expand")

    def rewrite(self, node: ir.Node, context: Context) -> Outcome:
        """Merge a node with the one before it."""
        source, before = node.inputs[0], node_before(node, node.op_type, "Concat")
        if source is None or before is None or node_opset(node) < 11 or input_at(before, 0) is None:
            return None
        if before.op_type == "Concat":
            return _slice_of_concat(node, before) if node.op_type == "Slice" else None
        if source.is_graph_output():
            return None
        if any(use.node.op_type != node.op_type or use.idx != 0 for use in source.uses()):
            return None
        return _MERGED[node.op_type](node, before)


@dataclass(frozen=True)
class Cut:
    """Hold what a Slice does to one axis."""

    start: int
    end: int
    axis: int
    step: int


def cuts(node: ir.Node) -> list[Cut] | None:
    """Return what a Slice with constant operands does, None for others."""
    parts = [constant(input_at(node, index)) for index in range(1, 5)]
    starts, ends = parts[:2]
    if starts is None or ends is None:
        return None
    if any(part is None and input_at(node, index) is not None for index, part in enumerate(parts, 1)):
        return None
    if any(part is not None and part.shape != (starts.size,) for part in parts):
        return None  # no Slice at all: the runtime refuses it
    axes = parts[2].tolist() if parts[2] is not None else range(starts.size)
    steps = parts[3].tolist() if parts[3] is not None else [1] * starts.size
    given = zip(starts.tolist(), ends.tolist(), axes, steps, strict=True)
    return [Cut(start, LAST if end >= _OPEN else end, axis, step) for start, end, axis, step in given]


def sliced(node: ir.Node, source: ir.Value, made: Sequence[Cut]) -> ir.Value:
    """Put a Slice of another value, or of other bounds, in the place of a node."""
    operands = [[c.start for c in made], [c.end for c in made], [c.axis for c in made], [c.step for c in made]]
    return replace_node(node, "Slice", [source, *(_row(node, row) for row in operands)])


def _row(node: ir.Node, numbers: Sequence[int] | Array, name: str = "bounds") -> ir.Value:
    return new_initializer(graph_of(node), np.array(numbers, np.int64), f"{node.outputs[0].name}_{name}")


def _merge_slices(node: ir.Node, before: ir.Node) -> Outcome:
    first, second = cuts(before), cuts(node)
    if first is None or second is None or len({cut.axis < 0 for cut in (*first, *second)}) > 1:
        return None
    made = {cut.axis: cut for cut in first}
    for cut in second:
        old = made.get(cut.axis)
        if old is None:
            made[cut.axis] = cut
            continue
        if old.step != 1 or cut.step != 1 or min(old.start, old.end, cut.start, cut.end) < 0:
            return None
        end = min(old.end, old.start + cut.end if cut.end < LAST else LAST)
        made[cut.axis] = Cut(old.start + cut.start, end, cut.axis, 1)
    if len(first) != len({cut.axis for cut in first}) or len(second) != len({cut.axis for cut in second}):
        return None
    assert before.inputs[0] is not None
    return sliced(node, before.inputs[0], list(made.values()))


def _slice_of_concat(node: ir.Node, concat: ir.Node) -> Outcome:
    """Slice the one part of a Concat that a Slice falls in."""
    made, whole = cuts(node), node.inputs[0]
    if made is None or whole is None or whole.shape is None:
        return None
    rank = len(whole.shape)
    axis = concat.attributes.get_int("axis", 0) % rank
    mine = [cut for cut in made if cut.axis % rank == axis]
    if len(mine) != 1 or mine[0].step < 1 or mine[0].start < 0 or mine[0].end < 0:
        return None
    (cut,) = mine
    low = 0
    for index, part in enumerate(concat.inputs, 1):  # a part may stand there twice
        size = part.shape[axis] if part is not None and part.shape is not None and len(part.shape) == rank else None
        if part is None or not isinstance(size, int):
            return None
        if low <= cut.start < low + size:
            if cut.end > low + size and index < len(concat.inputs):
                return None
            end = LAST if cut.end >= low + size else cut.end - low
            return sliced(node, part, [Cut(cut.start - low, end, c.axis, c.step) if c is cut else c for c in made])
        low += size
    return None


def _merge_gathers(node: ir.Node, before: ir.Node) -> Outcome:
    inner, outer = constant(input_at(before, 1)), constant(input_at(node, 1))
    axis = node.attributes.get_int("axis", 0)
    if inner is None or outer is None or inner.ndim != 1 or axis != before.attributes.get_int("axis", 0) or axis < 0:
        return None
    if outer.size == 0 or outer.min() < -inner.size or outer.max() >= inner.size:
        return None
    indices = _row(node, inner.astype(np.int64)[outer], "indices")
    return replace_node(node, "Gather", [before.inputs[0], indices], {"axis": axis})


def _merge_pads(node: ir.Node, before: ir.Node) -> Outcome:
    first, second = constant(input_at(before, 1)), constant(input_at(node, 1))
    if first is None or second is None or first.size != second.size or ((first < 0) | (second < 0)).any():
        return None
    both = (node, before)
    if any(n.attributes.get_string("mode", "constant") != "constant" or input_at(n, 3) is not None for n in both):
        return None
    values = [constant(input_at(n, 2)) if input_at(n, 2) is not None else np.zeros(()) for n in both]
    if values[0] is None or values[1] is None or not _is_same(values[0], values[1]):
        return None
    inputs = [before.inputs[0], _row(node, first + second, "pads"), *node.inputs[2:3]]
    return replace_node(node, "Pad", inputs)


def _is_same(mine: Array, other: Array) -> bool:
    return bool(mine.ravel() == other.ravel()) and bool(np.signbit(mine.ravel()) == np.signbit(other.ravel()))


def _merge_tiles(node: ir.Node, before: ir.Node) -> Outcome:
    first, second = constant(input_at(before, 1)), constant(input_at(node, 1))
    if first is None or second is None or first.size != second.size:
        return None
    return replace_node(node, "Tile", [before.inputs[0], _row(node, first * second, "repeats")])


def _merge_expands(node: ir.Node, before: ir.Node) -> Outcome:
    first, second = constant(input_at(before, 1)), constant(input_at(node, 1))
    if first is None or second is None:
        return None
    try:
        shape = np.broadcast_shapes(tuple(first.tolist()), tuple(second.tolist()))
    except ValueError:
        return None
    return replace_node(node, "Expand", [before.inputs[0], _row(node, shape, "shape")])


_MERGED: dict[str, Callable[[ir.Node, ir.Node], Outcome]] = {
    "Slice": _merge_slices,
    "Gather": _merge_gathers,
    "Pad": _merge_pads,
    "Tile": _merge_tiles,
    "Expand": _merge_expands,
}
