"""Operands that the graph computes and that a constant can stand for: shapes of Reshape and Expand, ends of Slice."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from onnxedge.api import Array
from onnxedge_passes.cleanup.shapes.symbolic import Expr, Item
from onnxedge_passes.cleanup.worklist import input_at

_LAST = 2**31 - 1  #: end of a Slice that means "to the last", for both integer types
Elements = Callable[[ir.Value], Array | None]


def operand_index(node: ir.Node) -> int | None:
    """Return which input of a node may be said in another way, None where none may."""
    return {"Reshape": 1, "Expand": 1, "Slice": 2}.get(node.op_type)


def said_as_constant(node: ir.Node, found: list[Item], sizes: list[Item], elements: Elements) -> list[int] | None:
    """Return the constant that stands for a computed operand, None where there is none.

    Args:
        node: Reshape, Expand or Slice.
        found: the operand's elements, some of them known as a size alone.
        sizes: of the node's data; empty where its rank is not known.
        elements: returns what is known of the elements of another operand.
    """
    rule = {"Reshape": _reshape_target, "Expand": _expand_target, "Slice": _slice_ends}[node.op_type]
    return rule(node, found, sizes, elements)


def _reshape_target(node: ir.Node, found: list[Item], sizes: list[Item], elements: Elements) -> list[int] | None:
    """Return a Reshape's shape with ``0`` for each dimension that is copied and ``-1`` for one that is not."""
    if node.attributes.get_int("allowzero", 0):
        return None
    target: list[int | None] = []
    for axis, item in enumerate(found):
        if isinstance(item, int):
            if item == 0 and not (axis < len(sizes) and sizes[axis] == 0):
                return None  # a zero that was computed copies a dimension: left to the runtime
            target.append(item)
        else:
            target.append(0 if axis < len(sizes) and item == sizes[axis] else None)
    if target.count(None) == 1 and all(d is None or d > 0 for d in target):
        target = [-1 if d is None else d for d in target]
    return [d for d in target if d is not None] if None not in target else None


def _expand_target(node: ir.Node, found: list[Item], sizes: list[Item], elements: Elements) -> list[int] | None:
    """Return an Expand's shape with 1 for each dimension that the data has already."""
    aligned = [None] * (len(found) - len(sizes)) + sizes[max(len(sizes) - len(found), 0) :]
    target = [1 if item == have else item for item, have in zip(found, aligned, strict=True)]
    return [item for item in target if isinstance(item, int)] if all(isinstance(d, int) for d in target) else None


def _slice_ends(node: ir.Node, found: list[Item], sizes: list[Item], elements: Elements) -> list[int] | None:
    """Return a Slice's ends with the largest number for each that is the dimension itself."""
    axes, steps = (elements(v) if (v := input_at(node, index)) is not None else None for index in (3, 4))
    where = axes.ravel().tolist() if axes is not None else list(range(len(found)))
    if (axes is None and input_at(node, 3) is not None) or (steps is None and input_at(node, 4) is not None):
        return None
    if not sizes or any(isinstance(step, Expr) or step < 0 for step in (steps.ravel() if steps is not None else ())):
        return None
    ends = [_LAST if item == sizes[axis] else item for axis, item in zip(where, found, strict=True)]
    return [item for item in ends if isinstance(item, int)] if all(isinstance(d, int) for d in ends) else None
