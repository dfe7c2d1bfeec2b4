"""If with a condition that is known, or that does not matter: the branch that is taken."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxedge.api import Context, Pass, Result, constant, is_standard, remove_node
from onnxedge_passes.cleanup.control.control_flow import branches_of, is_dangling, needed_nodes
from onnxedge_passes.cleanup.control.equal_graphs import same_results
from onnxedge_passes.cleanup.control.splice import Splicer, hand_over, inline_nodes, needs_newer_identity


@dataclass(frozen=True, kw_only=True)
class InlineIf(Pass):
    """Put the nodes of the branch that is taken in the place of an If whose condition is constant.

    Before: ``y = If(true, then: t = Relu(x); return t, else: ...)``
    After:  ``y = Relu(x)``

    The same where both branches compute the same, bit by bit: equal operators on equal constants and outer values.
    Outer values that the branch reads stay what they are, its initializers move along; names are kept where nothing
    else in the model has them. In local functions, too, and inside of other subgraphs.
    Left alone: conditions that are computed when the model runs or that a caller may override.
    accuracy: exact. Source: ONNX operator If; own.
    """

    name: ClassVar[str] = "inline-if"

    def run(self, model: ir.Model, context: Context) -> Result:
        """Go through the graphs from the outside in, so that a branch that is dropped is not looked at.

        Again where something was inlined: two branches may have become equal by it.
        """
        said, rewrites = len(context.notes), 0
        while made := inline_nodes(model, lambda node, splicer: _inline(node, splicer, context)):
            context.forget_notes(said)
            rewrites += made
        return Result(rewrites=rewrites)


def _inline(node: ir.Node, splicer: Splicer, context: Context) -> list[ir.Node] | None:
    """Inline an If and return the nodes that stand in its place, or None where it is left alone."""
    if node.op_type != "If" or not is_standard(node):
        return None
    condition, branches = constant(node.inputs[0]), branches_of(node)
    matters = condition is not None or branches is None or not same_results(*branches)
    if not matters:
        condition = np.array(True)
    if condition is None:
        context.note(node, "not inlined: its condition is computed when the model runs")
        return None
    branch = node.attributes.get("then_branch" if condition.any() else "else_branch")
    if condition.size != 1 or branch is None or branch.is_ref():
        context.note(node, "not inlined: the node is not valid")
        return None
    body = branch.as_graph()
    if len(body.outputs) != len(node.outputs) or any(is_dangling(value) for value in body.outputs):
        context.note(node, "not inlined: its branch gives back a value that it does not compute")
        return None
    if needs_newer_identity(node, body.outputs, body):
        context.note(node, "not inlined: the opset has no Identity of sequences or optionals")
        return None
    if not matters:
        _drop_dead(body)  # the other branch may not have it, and it may fail
    moved, results = splicer.move(node, body, {})
    hand_over(node, results)
    return moved


def _drop_dead(body: ir.Graph) -> None:
    needed = needed_nodes(body)
    for node in reversed(list(body)):
        if node not in needed:
            remove_node(node)
