"""Operands that the graph computes and that a constant can stand for: shapes of Reshape and Expand, ends of Slice."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from onnxedge.api import set_constant
from onnxedge_passes.cleanup.constants.knowledge import Knowledge
from onnxedge_passes.cleanup.shapes.size_rules import Elements
from onnxedge_passes.cleanup.shapes.symbolic import Expr, Item
from onnxedge_passes.cleanup.worklist import input_at, retire

_LAST = 2**31 - 1  #: end of a Slice that means "to the last", for both integer types


def settle_operand(node: ir.Node, known: Knowledge) -> bool:
    """Write a computed shape as a constant where its dynamic dimensions can be said in another way; tell whether so."""
    if node.op_type not in _RULES or input_at(node, 0) is None:
        return False
    index, rule = _RULES[node.op_type]
    operand = input_at(node, index)
    found = known.elements.get(operand) if operand is not None else None
    if operand is None or found is None or found.ndim != 1 or not any(isinstance(d, Expr) for d in found.tolist()):
        return False
    target = rule(node, found.tolist(), known.sizes.of(node.inputs[0]) or [], known.elements_of)
    kind = known.types.of(operand)
    if target is None or kind is None:
        return False
    set_constant(node, index, np.array(target, ir.DataType(kind.elem_type).numpy()))
    retire(operand.producer())
    return True


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


Rule = Callable[[ir.Node, list[Item], list[Item], Elements], list[int] | None]
"""Returns the constant for a node, of the operand's elements, some of them known as a size alone, the sizes of the
node's data (empty where its rank is not known), and what tells the elements of another operand."""

_RULES: dict[str, tuple[int, Rule]] = {
    "Reshape": (1, _reshape_target),
    "Expand": (1, _expand_target),
    "Slice": (2, _slice_ends),
}  #: which input of a node may be said in another way, and how
