"""Loop that is known to run once, or not at all: its body without the loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxedge.api import (
    Array,
    Context,
    Pass,
    Result,
    constant,
    graph_of,
    insert_before,
    new_initializer,
    static_shape,
)
from onnxedge_passes.cleanup.axes import axes_for
from onnxedge_passes.cleanup.control.control_flow import body_of, is_dangling
from onnxedge_passes.cleanup.control.splice import Splicer, hand_over, inline_nodes, needs_newer_identity
from onnxedge_passes.cleanup.worklist import input_at, output_used


@dataclass(frozen=True, kw_only=True)
class InlineLoop(Pass):
    """Put the body of a Loop that runs once in its place, and the initial values of one that never runs.

    Before: ``y, s = Loop(1, true, x, body: (i, c, v) -> (c, Relu(v), Exp(v)))``
    After:  ``y = Relu(x); s = Unsqueeze(Exp(x), 0)``

    A Loop runs once when its trip count is 1, or is no less and the body's own condition is constant false. One that
    never runs gives back its initial values and empty scan outputs, of the shape that the body declares, as ONNX
    Runtime does. In local functions and inside of other subgraphs, too.
    Left alone: any other Loop; an empty scan output of unknown shape.
    accuracy: exact. Source: ONNX operator Loop; own.
    """

    name: ClassVar[str] = "inline-loop"

    def run(self, model: ir.Model, context: Context) -> Result:
        """Go through the graphs from the outside in."""
        return Result(rewrites=inline_nodes(model, lambda node, splicer: _inline(node, splicer, context)))


def _inline(node: ir.Node, splicer: Splicer, context: Context) -> list[ir.Node] | None:
    """Inline a Loop and return the nodes that stand in its place, or None where it is left alone."""
    body = body_of(node, "Loop")
    if body is None:
        return None
    carried = node.inputs[2:]
    if len(body.inputs) != len(carried) + 2 or len(body.outputs) != len(node.outputs) + 1 or None in carried:
        context.note(node, "not inlined: the node is not valid")
        return None
    runs = _trip_count(node, body)
    if runs is None or runs > 1:
        often = "how often it runs is computed when the model runs" if runs is None else "it runs more than once"
        context.note(node, f"not inlined: {often}")
        return None
    if any(is_dangling(value) for value in body.outputs):
        context.note(node, "not inlined: its body gives back a value that it does not compute")
        return None
    if needs_newer_identity(node, _results_ahead(node, body) if runs else [*carried, *_nothing(node)], body):
        context.note(node, "not inlined: the opset has no Identity of sequences or optionals")
        return None
    return _inline_once(node, body, splicer) if runs else _inline_never(node, body, context)


def _trip_count(node: ir.Node, body: ir.Graph) -> int | None:
    """Return how often a Loop runs, 2 for more than once, None where that is not known."""
    limit, condition, again = _scalar(input_at(node, 0)), _scalar(input_at(node, 1)), _scalar(body.outputs[0])
    if (limit is not None and limit.item() <= 0) or (condition is not None and not condition.item()):
        return 0
    if (input_at(node, 0) is not None and limit is None) or (input_at(node, 1) is not None and condition is None):
        return None
    if limit is not None and limit.item() == 1:
        return 1
    if again is not None and not again.item():
        return 1
    return 2 if again is not None else None


def _scalar(value: ir.Value | None) -> Array | None:
    """Return a constant of one element, also behind the Identity that a body needs to give back an outer value."""
    while value is not None and (producer := value.producer()) is not None and producer.op_type == "Identity":
        value = input_at(producer, 0)
    array = constant(value)
    return array if array is not None and array.size == 1 else None


def _results_ahead(node: ir.Node, body: ir.Graph) -> list[ir.Value | None]:
    """Return what will stand for each output of a Loop that runs once, None for a scan output."""
    initial = dict(zip(body.inputs[2:], node.inputs[2:], strict=True))
    carried = [initial.get(value, value) for value in body.outputs[1 : len(node.inputs) - 1]]
    return [*carried, *_nothing(node)]


def _nothing(node: ir.Node) -> list[None]:
    """Return a None for each scan output."""
    return [None] * (len(node.outputs) - len(node.inputs) + 2)


def _inline_once(node: ir.Node, body: ir.Graph, splicer: Splicer) -> list[ir.Node]:
    graph = graph_of(node)
    arguments: dict[ir.Value, ir.Value | None] = dict(zip(body.inputs[2:], node.inputs[2:], strict=True))
    for parameter, array in zip(body.inputs, (np.array(0, np.int64), np.array(True)), strict=False):
        if parameter.uses() or any(value is parameter for value in body.outputs[1:]):
            arguments[parameter] = new_initializer(graph, array, parameter.name or "loop")
    moved, results = splicer.move(node, body, arguments)
    count = len(node.inputs) - 2
    scans = [_stacked(node, value, old) for value, old in zip(results[1 + count :], node.outputs[count:], strict=True)]
    hand_over(node, [*results[1 : 1 + count], *scans])
    return moved


def _stacked(node: ir.Node, value: ir.Value, old: ir.Value) -> ir.Value | None:
    """Give a scan output its axis of one iteration."""
    if not output_used(old):
        return None
    operands, attributes = axes_for(node, "Unsqueeze", [0], "axis_0")
    return insert_before(node, "Unsqueeze", [value, *operands], attributes=attributes, like=[old]).outputs[0]


def _inline_never(node: ir.Node, body: ir.Graph, context: Context) -> list[ir.Node] | None:
    count = len(node.inputs) - 2
    empty: list[Array | None] = []
    for old, value in zip(node.outputs[count:], body.outputs[1 + count :], strict=True):
        shape = static_shape(value)
        if output_used(old) and (shape is None or value.dtype is None or value.dtype == ir.DataType.STRING):
            context.note(node, "not inlined: the shape of an empty scan output is not known")
            return None
        known = shape is not None and value.dtype is not None and output_used(old)
        empty.append(np.empty((0, *shape), value.dtype.numpy()) if known else None)  # type: ignore[union-attr,misc]
    scans = [
        new_initializer(graph_of(node), array, old.name or "empty") if array is not None else None
        for array, old in zip(empty, node.outputs[count:], strict=True)
    ]
    hand_over(node, [*node.inputs[2:], *scans])
    return []
