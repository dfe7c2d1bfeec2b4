"""Chains of operators that only look at the same elements in another way."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxedge.api import (
    Context,
    constant,
    graph_of,
    insert_before,
    is_standard,
    new_initializer,
    replace_uses,
    sole_consumer,
    static_shape,
)
from onnxedge_passes.cleanup.axes import axes_for, named_axes
from onnxedge_passes.cleanup.worklist import (
    Outcome,
    Refused,
    Rule,
    input_at,
    node_before,
    node_opset,
    replace_node,
    retire,
)

_VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")


@dataclass(frozen=True, kw_only=True)
class MergeViews(Rule):
    """Merge Reshape, Flatten, Squeeze, Unsqueeze and Transpose nodes that follow each other.

    Before: ``y = Reshape(Unsqueeze(x, 0), [4, 8])``; ``y = Transpose<perm=[1, 0]>(Transpose<perm=[1, 0]>(x))``
    After:  ``y = Reshape(x, [4, 8])``; ``y = x``

    A Transpose between Reshapes that only add or remove dimensions of size 1 changes places with the first one, so
    that both can meet their like.
    Left alone: a shape with zeros that copy dimensions that are not known; inner values that others than views read;
    shapes computed at run time; a Squeeze of an axis that is not known to be 1, which the merged view would not check.
    accuracy: exact. Source: own.
    """

    name: ClassVar[str] = "merge-views"
    roots: ClassVar[tuple[str, ...]] = (*_VIEWS, "Transpose")

    def rewrite(self, node: ir.Node, context: Context) -> Outcome:
        """Merge a node with the one before it."""
        source, before = node.inputs[0], node_before(node, *self.roots)
        if source is None or before is None or node_opset(node) < 5 or input_at(before, 0) is None:
            return None
        alone = sole_consumer(source) is node
        if node.op_type == "Transpose" and before.op_type == "Transpose":
            return _merge_transposes(node, before, alone)
        if node.op_type == "Transpose":
            return _swap(node, before) if alone else None
        if before.op_type not in _VIEWS or not (alone or _is_viewed_only(source)):
            return None
        merged = _merge_axes(node, before)
        return merged if merged is not None else _merge_reshapes(node, before)


def _is_viewed_only(value: ir.Value) -> bool:
    """Tell whether each reader of a value is a view, too, so that it goes when all of them are merged."""
    readers = [use.node for use in value.uses()]
    return not value.is_graph_output() and all(n.op_type in _VIEWS and is_standard(n) for n in readers)


def _axes(node: ir.Node) -> list[int] | None:
    """Return the axes of a Squeeze or Unsqueeze where they are counted from the start."""
    axes = named_axes(node) if node.op_type in ("Squeeze", "Unsqueeze") else None
    return axes if axes and min(axes) >= 0 else None


def _merge_axes(node: ir.Node, before: ir.Node) -> Outcome:
    """Merge Unsqueezes or Squeezes by their axes, and cancel one of each, whatever the shape is."""
    first, second = _axes(before), _axes(node)
    if first is None or second is None or before.inputs[0] is None:
        return None
    if before.op_type == node.op_type:
        inner, outer = (first, second) if node.op_type == "Unsqueeze" else (second, first)
        rank = max(inner) + len(outer) + max(outer) + 1
        free = [axis for axis in range(rank) if axis not in outer]  # where the axes between the two come to stand
        axes = sorted([*outer, *(free[axis] for axis in inner)])
        operands, attributes = axes_for(node, node.op_type, axes, f"{node.outputs[0].name}_axes")
        return replace_node(node, node.op_type, [before.inputs[0], *operands], attributes)
    if before.op_type != node.op_type and sorted(first) == sorted(second):
        source = before.inputs[0]
        if _may_raise(before):
            return _REFUSED
        if not replace_uses(node.outputs[0], source):
            return None
        retire(node)
        return source
    return None


_REFUSED = Refused("views not merged: an axis that Squeeze removes is not known to be 1, which nobody would check")


def _may_raise(node: ir.Node) -> bool:
    """Tell whether a node is a Squeeze that may find an axis not to be 1."""
    source = node.inputs[0]
    if node.op_type != "Squeeze" or source is None:
        return False
    axes = named_axes(node)
    if axes is None and len(node.inputs) < 2:
        return False  # it removes what is 1
    dims = list(source.shape) if source.shape is not None and not source.is_graph_output() else []
    return axes is None or not all(-len(dims) <= axis < len(dims) and dims[axis] == 1 for axis in axes)


def _merge_reshapes(node: ir.Node, before: ir.Node) -> Outcome:
    target = view_target(node)
    if target is None:
        return None
    if _may_raise(before) or _may_raise(node):
        return _REFUSED
    target = _counted(target, before)
    if target is None:
        return None
    shape = new_initializer(graph_of(node), np.array(target, np.int64), f"{node.outputs[0].name}_shape")
    return replace_node(node, "Reshape", [before.inputs[0], shape])


def _counted(target: list[int], before: ir.Node) -> list[int] | None:
    """Return a shape for as many elements as a Reshape to a fixed shape takes, to raise an error where that does.

    None where that is another number.
    """
    shape = constant(input_at(before, 1)) if before.op_type == "Reshape" else None
    if shape is None or (shape <= 0).any():
        return target
    count, fixed = int(shape.prod()), math.prod(d for d in target if d != -1)
    full = [count // fixed if d == -1 else d for d in target]
    return full if math.prod(full) == count else None


def view_target(node: ir.Node) -> list[int] | None:
    """Return a shape without zeros that a Reshape can take from any view of its input, None where there is none."""
    middle = node.inputs[0]
    if node.op_type == "Reshape":
        shape = constant(input_at(node, 1))
        if shape is None:
            return None
        target = shape.tolist()
        if 0 not in target:
            return [int(d) for d in target]
        dims = list(middle.shape) if middle is not None and middle.shape is not None else []
        resolved = [dims[i] if d == 0 and i < len(dims) else d for i, d in enumerate(target)]
        unknown = [i for i, d in enumerate(resolved) if not isinstance(d, int)]
        if len(unknown) == 1 and -1 not in resolved:
            resolved[unknown[0]] = -1
        if node.attributes.get_int("allowzero", 0) or not all(isinstance(d, int) and d != 0 for d in resolved):
            return None
        return [int(d) for d in resolved]  # type: ignore[arg-type]
    out = node.outputs[0]
    if out.shape is None or out.is_graph_output():  # declared shapes of outputs are not to be believed
        return None
    known = [d if isinstance(d, int) else -1 for d in out.shape]
    return known if known.count(-1) <= 1 and 0 not in known else None


def _perm(node: ir.Node, rank: int) -> list[int]:
    return list(node.attributes.get_ints("perm", range(rank)[::-1]))


def _merge_transposes(node: ir.Node, before: ir.Node, alone: bool) -> Outcome:
    given = node.attributes.get_ints("perm", None) or before.attributes.get_ints("perm", None)
    rank = len(given) if given is not None else 2  # where both reverse the axes they cancel, however many there are
    first, second = _perm(before, rank), _perm(node, rank)
    perm, source = [first[axis] for axis in second], before.inputs[0]
    if perm == list(range(len(perm))) and source is not None and replace_uses(node.outputs[0], source):
        retire(node)
        return source
    return replace_node(node, "Transpose", [source], {"perm": perm}) if alone and given is not None else None


def _swap(node: ir.Node, before: ir.Node) -> Outcome:
    """Turn ``Transpose(Reshape(x))`` into ``Reshape(Transpose(x))`` where the Reshape only moves dimensions of size 1.

    Only where another Reshape follows that takes the second one in, so that a node is saved.
    """
    after = sole_consumer(node.outputs[0])
    if before.op_type not in _VIEWS or after is None or after.op_type not in _VIEWS or view_target(after) is None:
        return None
    inner, outer = static_shape(before.inputs[0]), static_shape(before.outputs[0])
    result = static_shape(node.outputs[0])
    if inner is None or outer is None or result is None or after.outputs[0].is_graph_output():
        return None
    real = [axis for axis, d in enumerate(inner) if d != 1]
    shown = [axis for axis, d in enumerate(outer) if d != 1]
    if [inner[a] for a in real] != [outer[a] for a in shown] or 0 in inner:
        return None
    moved = [real[shown.index(axis)] for axis in _perm(node, len(outer)) if outer[axis] != 1]
    order = iter(moved)
    perm = [next(order) if d != 1 else axis for axis, d in enumerate(inner)]
    turned = insert_before(node, "Transpose", [before.inputs[0]], attributes={"perm": perm}, name=node.name)
    turned.outputs[0].type = node.outputs[0].type
    turned.outputs[0].shape = ir.Shape([inner[axis] for axis in perm])
    shape = new_initializer(graph_of(node), np.array(result, np.int64), f"{node.outputs[0].name}_shape")
    return replace_node(node, "Reshape", [turned.outputs[0], shape])
