"""Reductions followed by what drops or restores the reduced axes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxedge.api import Context, constant, static_shape
from onnxedge_passes.cleanup.axes import REDUCTIONS, axes_for, named_axes, takes_axes_as_input
from onnxedge_passes.cleanup.worklist import (
    Outcome,
    Rule,
    attributes_of,
    input_at,
    node_before,
    node_opset,
    replace_node,
)

_SAME_ALONE = ("ReduceMax", "ReduceMin", "ReduceProd")  #: give a single element back bit by bit, -0.0 and NaN too
_SAME_OF_NOTHING = (*_SAME_ALONE, "ReduceSum", "ReduceMean")  #: give their data back where they reduce no axis


@dataclass(frozen=True, kw_only=True)
class MergeReductions(Rule):
    """Let a reduction keep or drop its axes itself.

    Before: ``y = Squeeze(ReduceMean<axes=[2], keepdims=1>(x), 2)``; ``y = Unsqueeze(ArgMax<axis=1, keepdims=0>(x), 1)``
    After:  ``y = ReduceMean<axes=[2], keepdims=0>(x)``; ``y = ArgMax<axis=1, keepdims=1>(x)``

    ReduceMax, ReduceMin and ReduceProd over axes of size 1 alone become a Squeeze or nothing; they, ReduceSum and
    ReduceMean over no axes (``noop_with_empty_axes``) nothing.
    Left alone: a reduction with other readers; sums over one element (``-0.0`` becomes ``0.0``).
    accuracy: exact. Source: own.
    """

    name: ClassVar[str] = "merge-reductions"
    roots: ClassVar[tuple[str, ...]] = ("Squeeze", "Unsqueeze", "Reshape", *_SAME_OF_NOTHING)

    def rewrite(self, node: ir.Node, context: Context) -> Outcome:
        """Merge a node with the reduction before it, or take a reduction of single elements for what it is."""
        source = node.inputs[0]
        if source is None:
            return None
        if node.op_type in _SAME_OF_NOTHING:
            return replace_node(node, "Identity", [source]) if _reduces_nothing(node) else _squeezed(node, source)
        reduction = node_before(node, *REDUCTIONS, "ArgMax", "ArgMin", alone=True)
        if reduction is None:
            return None
        rank = _rank(reduction.inputs[0])
        axes = _reduced_axes(reduction)
        keeps = reduction.attributes.get_int("keepdims", 1) != 0
        if axes is None or rank is None or (node.op_type != "Reshape" and keeps == (node.op_type == "Unsqueeze")):
            return None
        if any(not -rank <= axis < rank for axis in axes):
            return None  # the runtime refuses it
        if not _matches(node, reduction, {axis % rank for axis in axes}):
            return None
        attributes = {**attributes_of(reduction), "keepdims": int(not keeps)}
        return replace_node(node, reduction.op_type, list(reduction.inputs), attributes)


def _rank(value: ir.Value | None) -> int | None:
    return len(value.shape) if value is not None and value.shape is not None else None


def _reduced_axes(node: ir.Node) -> list[int] | None:
    """Return the axes that a reduction names, None where it names none or computes them."""
    if node.op_type in ("ArgMax", "ArgMin"):
        return [node.attributes.get_int("axis", 0)]
    return named_axes(node) or None


def _matches(node: ir.Node, reduction: ir.Node, axes: set[int]) -> bool:
    """Tell whether a node drops, or adds, just the axes that are reduced."""
    rank = _rank(reduction.inputs[0])
    assert rank is not None
    if node.op_type == "Reshape":
        before, after = static_shape(reduction.outputs[0]), constant(input_at(node, 1))
        if before is None or after is None or node_opset(node) < 5:
            return False
        if reduction.attributes.get_int("keepdims", 1):
            wanted = [size for axis, size in enumerate(before) if axis not in axes]
        else:
            sizes = iter(before)
            wanted = [1 if axis in axes else next(sizes) for axis in range(rank)]
        return bool(np.array_equal(after, wanted)) and 0 not in wanted
    named = named_axes(node)
    if named is not None:
        return {axis % rank for axis in named} == axes
    shape = static_shape(reduction.outputs[0])
    return input_at(node, 1) is None and shape is not None and {a for a, d in enumerate(shape) if d == 1} == axes


def _reduces_nothing(node: ir.Node) -> bool:
    if not takes_axes_as_input(node) or not node.attributes.get_int("noop_with_empty_axes", 0):
        return False
    given = constant(input_at(node, 1))
    return input_at(node, 1) is None or (given is not None and given.size == 0)


def _squeezed(node: ir.Node, source: ir.Value) -> Outcome:
    """Replace a reduction of single elements by a Squeeze; the one that keeps its axes is an Expand to nothing."""
    axes = _reduced_axes(node)
    if node.op_type not in _SAME_ALONE or axes is None or source.shape is None:
        return None
    rank = len(source.shape)
    if any(not -rank <= axis < rank or source.shape[axis] != 1 for axis in axes):
        return None
    if node.attributes.get_int("keepdims", 1):
        return replace_node(node, "Identity", [source])
    operands, attributes = axes_for(node, "Squeeze", axes, f"{node.outputs[0].name}_axes")
    return replace_node(node, "Squeeze", [source, *operands], attributes)
