"""Reductions followed by what drops or restores the reduced axes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxedge.api import (
    Context,
    constant,
    graph_of,
    is_standard,
    new_initializer,
    sole_consumer,
    static_shape,
)
from onnxedge_passes.cleanup.worklist import Outcome, Rule, input_at, node_opset, replace_node

_SAME_ALONE = ("ReduceMax", "ReduceMin", "ReduceProd")  #: give a single element back bit by bit, -0.0 and NaN too
_SAME_OF_NOTHING = (*_SAME_ALONE, "ReduceSum", "ReduceMean")  #: give their data back where they reduce no axis
_REDUCTIONS = (
    *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMean", "ReduceSum", "ReduceSumSquare"),
    *_SAME_ALONE,
)


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
        reduction = source.producer()
        if reduction is None or not is_standard(reduction) or reduction.graph is not node.graph:
            return None
        if reduction.op_type not in (*_REDUCTIONS, "ArgMax", "ArgMin") or sole_consumer(source) is not node:
            return None
        rank = _rank(reduction.inputs[0])
        axes = _reduced_axes(reduction)
        keeps = reduction.attributes.get_int("keepdims", 1) != 0
        if axes is None or rank is None or (node.op_type != "Reshape" and keeps == (node.op_type == "Unsqueeze")):
            return None
        if not _matches(node, reduction, {axis % rank for axis in axes}):
            return None
        attributes = {name: attribute.value for name, attribute in reduction.attributes.items()}
        return replace_node(node, reduction.op_type, list(reduction.inputs), {**attributes, "keepdims": int(not keeps)})


def _rank(value: ir.Value | None) -> int | None:
    return len(value.shape) if value is not None and value.shape is not None else None


def _operand(node: ir.Node, index: int, since: int) -> list[int] | None:
    if node_opset(node) < since:
        found = node.attributes.get_ints("axes", None)
        return list(found) if found is not None else None
    given = constant(input_at(node, index))
    return [int(axis) for axis in given.ravel()] if given is not None else None


def _reduced_axes(node: ir.Node) -> list[int] | None:
    """Return the axes that a reduction names, None where it names none or computes them."""
    if node.op_type in ("ArgMax", "ArgMin"):
        return [node.attributes.get_int("axis", 0)]
    return _operand(node, 1, _since(node)) or None


def _since(node: ir.Node) -> int:
    """Return the opset since which the axes of a reduction are an input."""
    return 13 if node.op_type == "ReduceSum" else 18


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
    named = _operand(node, 1, 13)
    if named is not None:
        return {axis % rank for axis in named} == axes
    shape = static_shape(reduction.outputs[0])
    return input_at(node, 1) is None and shape is not None and {a for a, d in enumerate(shape) if d == 1} == axes


def _reduces_nothing(node: ir.Node) -> bool:
    if node_opset(node) < _since(node) or not node.attributes.get_int("noop_with_empty_axes", 0):
        return False
    given = constant(input_at(node, 1))
    return input_at(node, 1) is None or (given is not None and given.size == 0)


def _squeezed(node: ir.Node, source: ir.Value) -> Outcome:
    """Replace a reduction of single elements by a Squeeze; the one that keeps its axes is an Expand to nothing."""
    axes = _reduced_axes(node)
    if node.op_type not in _SAME_ALONE or axes is None or source.shape is None:
        return None
    if any(source.shape[axis] != 1 for axis in axes):
        return None
    if node.attributes.get_int("keepdims", 1):
        return replace_node(node, "Identity", [source])
    if node_opset(node) < 13:
        return replace_node(node, "Squeeze", [source], {"axes": axes})
    operand = new_initializer(graph_of(node), np.array(axes, np.int64), f"{node.outputs[0].name}_axes")
    return replace_node(node, "Squeeze", [source, operand])
