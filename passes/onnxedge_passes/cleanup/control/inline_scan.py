"""Scan over an axis of one element: its body without the loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxedge.api import Context, Pass, Result, insert_before
from onnxedge_passes.cleanup.axes import axes_for
from onnxedge_passes.cleanup.control.control_flow import body_of, is_dangling
from onnxedge_passes.cleanup.control.splice import Splicer, hand_over, inline_nodes
from onnxedge_passes.cleanup.worklist import Refused, node_opset, output_used


@dataclass(frozen=True, kw_only=True)
class InlineScan(Pass):
    """Put the body of a Scan that runs once in its place.

    Before: ``y, s = Scan<num_scan_inputs=1>(v, x, body: (v, e) -> (Add(v, e), Exp(e)))`` with ``x: float[1, N]``
    After:  ``e = Squeeze(x, 0); y = Add(v, e); s = Unsqueeze(Exp(e), 0)``

    In whatever direction, along whatever axes. In local functions and inside of other subgraphs, too.
    Left alone: axes of another or unknown size; the form of opset 8, which scans each element of a batch.
    accuracy: exact. Source: ONNX operator Scan; own.
    """

    name: ClassVar[str] = "inline-scan"

    def run(self, model: ir.Model, context: Context) -> Result:
        """Go through the graphs from the outside in."""
        return Result(rewrites=inline_nodes(model, lambda node, splicer: _inline(node, splicer, context)))


def _inline(node: ir.Node, splicer: Splicer, context: Context) -> list[ir.Node] | None:
    """Inline a Scan and return the nodes that stand in its place, or None where it is left alone."""
    body = body_of(node, "Scan")
    if body is None:
        return None
    plan = _plan(node, body)
    if isinstance(plan, Refused):
        context.note(node, f"not inlined: {plan.reason}")
        return None
    scanned, stacked = plan
    states = len(node.inputs) - len(scanned)
    arguments: dict[ir.Value, ir.Value | None] = dict(zip(body.inputs, node.inputs, strict=True))
    for parameter, axis in zip(body.inputs[states:], scanned, strict=True):
        arguments[parameter] = _view(node, "Squeeze", arguments[parameter], axis, parameter)
    moved, results = splicer.move(node, body, arguments)
    scans = [
        _view(node, "Unsqueeze", value, axis, old) if output_used(old) else None
        for value, axis, old in zip(results[states:], stacked, node.outputs[states:], strict=True)
    ]
    hand_over(node, [*results[:states], *scans])
    return moved


def _plan(node: ir.Node, body: ir.Graph) -> tuple[Sequence[int], Sequence[int]] | Refused:
    """Return the axis of each scan input and of each scan output, or why the Scan stays."""
    if node_opset(node) < 9:
        return Refused("Scan of opset 8 goes over a batch, too")
    count = node.attributes.get_int("num_scan_inputs", 0)
    states = len(node.inputs) - count
    outputs = len(node.outputs) - states
    valid = len(body.inputs) == len(node.inputs) and len(body.outputs) == len(node.outputs) and None not in node.inputs
    if not valid or count < 1 or states < 0 or outputs < 0:
        return Refused("the node is not valid")
    scanned = node.attributes.get_ints("scan_input_axes", None) or [0] * count
    stacked = node.attributes.get_ints("scan_output_axes", None) or [0] * outputs
    if len(scanned) != count or len(stacked) != outputs:
        return Refused("the node is not valid")
    shapes = [value.shape if value is not None else None for value in node.inputs[states:]]
    known = [
        shape[axis]
        for shape, axis in zip(shapes, scanned, strict=True)
        if shape is not None and -len(shape) <= axis < len(shape)
    ]
    if 1 not in known:
        return Refused("how often it runs is computed when the model runs, or it is more than once")
    if any(is_dangling(value) for value in body.outputs):
        return Refused("its body gives back a value that it does not compute")
    return scanned, stacked


def _view(node: ir.Node, op_type: str, value: ir.Value | None, axis: int, like: ir.Value) -> ir.Value:
    """Take an axis of one element away, or give it."""
    operands, attributes = axes_for(node, op_type, [axis], f"axis_{axis}")
    return insert_before(node, op_type, [value, *operands], attributes=attributes, like=[like]).outputs[0]
