"""Views around elementwise operators."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxedge.api import Context, constant, constant_tensor, is_standard, operator, replace_uses, set_constant
from onnxedge_passes.cleanup.worklist import Outcome, Rule, input_at, node_opset, retire

_VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")
_MOST_NODES = 24  #: elementwise nodes between the views

Dims = list[int | None]


@dataclass(frozen=True, kw_only=True)
class CancelViews(Rule):
    """Compute elementwise operators in the shape from before a Reshape that a later one restores.

    Before: ``y = Reshape(Relu(Reshape(x, [-1, 8, 4])), [-1, 32])`` with ``x: [N, 32]``
    After:  ``y = Relu(x)``

    Left alone: operands other than scalars and rows that fit the last axes of both shapes; values with other readers;
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
        kept = found.nodes[0].outputs[0]
        views = [view for view in found.views if view is not None]
        if not replace_uses(node.outputs[0], kept):
            return None
        retire(node, *views)
        return kept


@dataclass
class _Between:
    """What stands between the views: elementwise nodes, last first, and the views that they read."""

    nodes: list[ir.Node] = field(default_factory=list)
    views: list[ir.Node] = field(default_factory=list)


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
    elif not value.is_graph_output():  # declared shapes of outputs are not to be believed
        dims = _dims(value)
    return dims if dims is not None and dims.count(None) <= 1 and 0 not in dims else None


def _dims(value: ir.Value | None) -> Dims | None:
    if value is None or value.shape is None:
        return None
    return [size if isinstance(size, int) else None for size in value.shape]


def _between(root: ir.Node, source: ir.Value, target: Dims) -> _Between | None:
    found = _Between()
    queue, seen = [source], {id(root)}
    middle: Dims | None = None
    for value in queue:
        node = value.producer()
        if node is None or not is_standard(node) or node.graph is not root.graph or value.is_graph_output():
            return None
        if id(node) in seen:
            continue
        seen.add(id(node))
        if node.op_type in _VIEWS:
            shape = _dims(value)
            if not node.inputs or not _is_same(_dims(node.inputs[0]), target) or shape is None:
                return None
            if middle is not None and (shape != middle or shape.count(None) > 1):
                return None
            middle = shape
            found.views.append(node)
        elif operator(node).kind == "elementwise" and len(node.outputs) == 1 and len(found.nodes) < _MOST_NODES:
            found.nodes.append(node)
            queue += [v for v in node.inputs if v is not None and constant_tensor(v) is None]
        else:
            return None
    inside = {id(node) for node in (root, *found.nodes)}
    if middle is None or any(id(use.node) not in inside for node in found.nodes for use in node.outputs[0].uses()):
        return None
    fits = all(_fits(value, middle, target) for node in found.nodes for value in node.inputs)
    return found if fits else None


def _is_same(mine: Dims | None, other: Dims) -> bool:
    """Tell whether two shapes of the same elements are equal: they are where all sizes but one are."""
    if mine is None or len(mine) != len(other) or 0 in mine:
        return False
    pairs = [(a, b) for a, b in zip(mine, other, strict=True) if a is None or a != b]
    return len(pairs) <= 1 and all(a is None or b is None for a, b in pairs)


def _fits(value: ir.Value | None, middle: Dims, target: Dims) -> bool:
    """Tell whether a constant is broadcast alike in both shapes."""
    tensor = constant_tensor(value)
    if tensor is None or tensor.size == 1:
        return True
    rank = len(tensor.shape)
    return rank <= min(len(middle), len(target)) and middle[-rank:] == target[-rank:] and None not in target[-rank:]


def _rewire(node: ir.Node, found: _Between, target: Dims) -> None:
    for index, value in enumerate(node.inputs):
        if value is None:
            continue
        producer = value.producer()
        if producer is not None and any(producer is view for view in found.views):
            node.replace_input_with(index, producer.inputs[0])
        elif (array := constant(value)) is not None and array.ndim > len(target):
            set_constant(node, index, np.reshape(array, ()))
    node.outputs[0].shape = ir.Shape(target)
