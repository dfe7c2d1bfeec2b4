"""Concats and Splits that are parts of one another, or undo each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxedge.api import Context, constant, is_standard, replace_uses, sole_consumer
from onnxedge_passes.cleanup.merge_slices import cuts
from onnxedge_passes.cleanup.worklist import Outcome, Rule, input_at, node_before, node_opset, replace_node, retire


@dataclass(frozen=True, kw_only=True)
class MergeConcats(Rule):
    """Join Concats along one axis, leave out empty parts, and cancel Concats, Splits and Slices of the same parts.

    Before: ``y = Concat<axis=1>(Concat<axis=1>(a, b), c)``; ``p, q = Split<axis=1>(x); y = Concat<axis=1>(p, q)``
    After:  ``y = Concat<axis=1>(a, b, c)``; ``y = x``

    Left alone: an inner Concat with other readers; parts in another order; sizes that are not known.
    accuracy: exact. Source: own.
    """

    name: ClassVar[str] = "merge-concats"
    roots: ClassVar[tuple[str, ...]] = ("Concat", "Split")

    def rewrite(self, node: ir.Node, context: Context) -> Outcome:
        """Look at what a Concat puts together, or at what a Split takes apart."""
        if node_opset(node) < 4 or any(value is None for value in node.inputs[:1]):
            return None
        if node.op_type == "Split":
            return _split_of_concat(node)
        parts = [value for value in node.inputs if value is not None]
        whole = _whole(node, parts)
        if whole is not None:
            if not replace_uses(node.outputs[0], whole):
                return None
            retire(node)
            return whole
        return _flattened(node, parts)


def _axis(node: ir.Node, value: ir.Value | None) -> int | None:
    """Return the axis of a Concat, Split or Slice counted from the start, None where the rank is not known."""
    axis = node.attributes.get_int("axis", 0)
    if axis >= 0:
        return axis
    return axis + len(value.shape) if value is not None and value.shape is not None else None


def _flattened(node: ir.Node, parts: Sequence[ir.Value]) -> Outcome:
    axis = _axis(node, parts[0])
    if axis is None:
        return None
    made: list[ir.Value] = []
    for value in parts:
        inner = value.producer()
        if (
            inner is not None
            and inner.op_type == "Concat"
            and is_standard(inner)
            and inner.graph is node.graph
            and sole_consumer(value) is node
            and _axis(inner, inner.inputs[0]) == axis
        ):
            made += [part for part in inner.inputs if part is not None]
        else:
            made.append(value)
    full = [value for value in made if _size_at(value, axis) != 0]
    if len(full) == len(parts) == len(made) or not full:
        return None
    return replace_node(node, "Concat", full, {"axis": axis})


def _whole(node: ir.Node, parts: Sequence[ir.Value]) -> ir.Value | None:
    """Return the value that a Concat puts together again from its pieces, None where it is none."""
    makers = [value.producer() for value in parts]
    first = makers[0]
    if first is None or len(parts) < 2 or not first.inputs or first.inputs[0] is None or not is_standard(first):
        return None
    source, axis = first.inputs[0], _axis(node, parts[0])
    if first.op_type == "Split":
        same = len(parts) == len(first.outputs) and all(a is b for a, b in zip(parts, first.outputs, strict=True))
        return source if same and axis is not None and _axis(first, source) == axis else None
    low = 0
    for maker in makers:
        if maker is None or maker.op_type != "Slice" or not is_standard(maker) or maker.inputs[0] is not source:
            return None
        made = cuts(maker) if node_opset(node) >= 10 else None
        size = source.shape[axis] if source.shape is not None and axis is not None and axis < len(source.shape) else 0
        if made is None or len(made) != 1 or made[0].step != 1 or not isinstance(size, int) or source.shape is None:
            return None
        if made[0].axis % len(source.shape) != axis:
            return None
        start, end, _ = slice(made[0].start, made[0].end).indices(size)
        if start != low or end < start:
            return None
        low = end
    return source if low == size else None


def _split_of_concat(node: ir.Node) -> Outcome:
    """Let the readers of a Split's parts read what the Concat before it was made from."""
    concat = node_before(node, "Concat")
    axis = _axis(node, node.inputs[0])
    if concat is None or axis is None or _axis(concat, concat.inputs[0]) != axis:
        return None
    if len(concat.inputs) != len(node.outputs):
        return None
    shapes = [_size_at(value, axis) for value in concat.inputs]
    sizes = _split_sizes(node, sum(size for size in shapes if size is not None))
    if None in shapes or sizes != shapes or any(value.is_graph_output() for value in node.outputs):
        return None
    for value, part in zip(node.outputs, concat.inputs, strict=True):
        assert part is not None
        replace_uses(value, part)
    first = concat.inputs[0]
    retire(node)
    return first


def _size_at(value: ir.Value | None, axis: int) -> int | None:
    """Return the size of one axis of a value, None where it is not known."""
    if value is None or value.shape is None or axis >= len(value.shape):
        return None
    size = value.shape[axis]
    return size if isinstance(size, int) else None


def _split_sizes(node: ir.Node, whole: int) -> list[int | None] | None:
    if node_opset(node) >= 13:
        given = constant(input_at(node, 1))
        if given is None and input_at(node, 1) is not None:
            return None
        parts = given.tolist() if given is not None else None
    else:
        found = node.attributes.get_ints("split", None)
        parts = list(found) if found is not None else None
    if parts is None:
        count = len(node.outputs)
        if whole % count:
            return None
        parts = [whole // count] * count
    return list(np.array(parts).tolist())
