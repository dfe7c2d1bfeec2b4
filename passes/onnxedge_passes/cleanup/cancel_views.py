"""Views around elementwise operators."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxedge.api import (
    Context,
    constant,
    constant_tensor,
    graph_of,
    is_standard,
    operator,
    replace_uses,
    set_constant,
    use_count,
)
from onnxedge_passes.cleanup.axes import named_axes
from onnxedge_passes.cleanup.worklist import Outcome, Rule, input_at, node_opset, retire

_VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")
_MOST_NODES = 64  #: elementwise nodes between the views

Dims = list[int | None]


@dataclass(frozen=True, kw_only=True)
class CancelViews(Rule):
    """Compute elementwise operators in the shape from before a Reshape that later ones restore.

    Before: ``y = Reshape(Relu(Reshape(x, [-1, 8, 4])), [-1, 32])`` with ``x: [N, 32]``
    After:  ``y = Relu(x)``

    Whatever reads the values in between must be such an operator or such a view, so that no view is needed afterwards.
    Left alone: operands other than scalars, rows that fit the last axes of both shapes, and constants where the shapes
    differ in axes of size 1 alone (the Squeeze and Unsqueeze around a convolution over time); values that others read;
    final shapes that are not known in more than one dimension.
    accuracy: exact. Source: own.
    """

    name: ClassVar[str] = "cancel-views"
    roots: ClassVar[tuple[str, ...]] = _VIEWS

    def rewrite(self, node: ir.Node, context: Context) -> Outcome:
        """Walk back from the second view to the first ones."""
        source, target = node.inputs[0], _target(node)
        if source is None or target is None or node_opset(node) < 7 or constant_tensor(source) is not None:
            return None
        found = _between(node, source, target)
        if found is None or not found.nodes:
            return None
        for inner in found.nodes:
            _rewire(inner, found, target)
        kept = source
        for view in found.exits:
            kept = view.inputs[0] or source
            replace_uses(view.outputs[0], kept)
        retire(*found.exits, *found.views)
        return kept


@dataclass
class _Between:
    """What stands between the views: elementwise nodes, the views that they read, and those that read them."""

    nodes: list[ir.Node] = field(default_factory=list)
    views: list[ir.Node] = field(default_factory=list)
    exits: list[ir.Node] = field(default_factory=list)
    middle: Dims = field(default_factory=list)


def _target(node: ir.Node) -> Dims | None:
    """Return the sizes that a view gives, None for each one not known; None where more than one is not."""
    value = node.outputs[0]
    dims: Dims | None = None
    if node.op_type == "Reshape" and node_opset(node) >= 5:
        shape = constant(input_at(node, 1))
        have = _dims(node.inputs[0])
        if shape is not None and (0 not in shape or have is not None):
            copied = [have[axis] if have is not None and axis < len(have) else None for axis in range(shape.size)]
            dims = [copied[a] if d == 0 else None if d == -1 else int(d) for a, d in enumerate(shape.tolist())]
    elif node.op_type in ("Squeeze", "Unsqueeze"):
        dims = _with_axes(node)
    elif not value.is_graph_output():  # declared shapes of outputs are not to be believed
        dims = _dims(value)
    return dims if dims is not None and dims.count(None) <= 1 and 0 not in dims else None


def _with_axes(node: ir.Node) -> Dims | None:
    """Return the sizes behind a Squeeze or Unsqueeze of known axes."""
    have, axes = _dims(node.inputs[0]), named_axes(node)
    if have is None or not axes:
        return None
    if node.op_type == "Squeeze":
        gone = {axis % len(have) for axis in axes if have}
        return [size for axis, size in enumerate(have) if axis not in gone]
    whole = len(have) + len(axes)
    new, rest = {axis % whole for axis in axes}, iter(have)
    return [1 if axis in new else next(rest) for axis in range(whole)] if len(new) == len(axes) else None


def _dims(value: ir.Value | None) -> Dims | None:
    if value is None or value.shape is None:
        return None
    return [size if isinstance(size, int) else None for size in value.shape]


def _between(root: ir.Node, source: ir.Value, target: Dims) -> _Between | None:
    """Collect what is computed between views, None where anything else has a part in it."""
    found = _Between()
    queue, seen = [source], {source}
    middle: Dims | None = None
    for value in queue:
        producer = value.producer()
        if producer is None or value.is_graph_output() or use_count(value) > _MOST_NODES:
            return None
        if producer.op_type in _VIEWS and is_standard(producer):
            shape = _dims(value)
            if not producer.inputs or not _is_same(_dims(producer.inputs[0]), target) or shape is None:
                return None
            if middle is not None and (shape != middle or shape.count(None) > 1):
                return None
            middle = shape
            found.views.append(producer)
        for node in (*(() if producer in found.views else (producer,)), *(use.node for use in value.uses())):
            if node.graph is not root.graph or not is_standard(node):
                return None
            if node.op_type in _VIEWS and node.inputs[0] is value and producer not in found.views:
                if node is not root and _target(node) != target:
                    return None
                found.exits += [node] if node not in found.exits else []
            elif operator(node).kind == "elementwise" and len(node.outputs) == 1 and len(found.nodes) < _MOST_NODES:
                if node not in found.nodes:
                    found.nodes.append(node)
                    around = [v for v in (*node.inputs, *node.outputs) if v is not None and constant_tensor(v) is None]
                    queue += [v for v in around if v not in seen]
                    seen.update(around)
            else:
                return None
    exported = [view.outputs[0] for view in found.exits if view.outputs[0].is_graph_output()]
    if middle is None or (exported and sum(output in exported for output in graph_of(root).outputs) > 1):
        return None
    fits = all(_fits(value, middle, target) for node in found.nodes for value in node.inputs)
    found.middle = middle
    return found if fits else None


def _is_same(mine: Dims | None, other: Dims) -> bool:
    """Tell whether two shapes of the same elements are equal: they are where all sizes but one are."""
    if mine is None or len(mine) != len(other) or 0 in mine:
        return False
    pairs = [(a, b) for a, b in zip(mine, other, strict=True) if a is None or a != b]
    return len(pairs) <= 1 and all(a is None or b is None for a, b in pairs)


def _fits(value: ir.Value | None, middle: Dims, target: Dims) -> bool:
    """Tell whether a constant is broadcast alike in both shapes, or can be given a shape in which it is."""
    tensor = constant_tensor(value)
    return tensor is None or _fitted(tuple(tensor.shape.numpy()), middle, target) is not None


def _fitted(shape: tuple[int, ...], middle: Dims, target: Dims) -> tuple[int, ...] | None:
    """Return the shape that a constant needs in the second place to be broadcast as in the first one."""
    rank = len(shape)
    if all(size == 1 for size in shape):
        return () if rank > len(target) else shape
    if rank > len(middle):
        return None
    if rank <= len(target) and middle[-rank:] == target[-rank:] and None not in target[-rank:]:
        return shape
    sizes = (1,) * (len(middle) - rank) + shape
    if [d for d in middle if d != 1] != [d for d in target if d != 1]:
        return None
    if any(size != 1 and d == 1 for size, d in zip(sizes, middle, strict=True)):
        return None
    rest = iter(size for size, d in zip(sizes, middle, strict=True) if d != 1)
    return tuple(1 if d == 1 else next(rest) for d in target)


def _rewire(node: ir.Node, found: _Between, target: Dims) -> None:
    for index, value in enumerate(node.inputs):
        if value is None:
            continue
        producer = value.producer()
        if producer is not None and any(producer is view for view in found.views):
            node.replace_input_with(index, producer.inputs[0])
        elif (array := constant(value)) is not None:
            shape = _fitted(array.shape, found.middle, target)
            if shape is not None and shape != array.shape:
                set_constant(node, index, np.reshape(array, shape))
    node.outputs[0].shape = ir.Shape(target)
