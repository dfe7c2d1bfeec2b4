"""Ifs whose condition follows from another If's, or from what the model demands: decided ahead."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from onnxedge.api import (
    Array,
    Context,
    Pass,
    Result,
    constant,
    drop_if_unused,
    graph_of,
    is_standard,
    new_initializer,
    node_label,
    replace_input,
)
from onnxedge_passes.cleanup.axes import named_axes
from onnxedge_passes.cleanup.control.control_flow import Order, branches_of, has_control_flow, needed_nodes
from onnxedge_passes.cleanup.control.facts import Case, Facts
from onnxedge_passes.cleanup.shapes.symbolic import Expr, Item, subtract, symbol
from onnxedge_passes.cleanup.worklist import input_at, root_graphs

Cases = dict[bool, Case]

_NEVER = "never"  #: instead of a condition's value: the If does not run


@dataclass(frozen=True, kw_only=True)
class DecideConditions(Pass):
    """Write true or false for a condition that can be nothing else, and one condition for two that are the same.

    Before: ``v = If(c){Squeeze(x, 1)}{x}; d = Equal(Size(Shape(v)), 2); y = If(d){...}{...}`` with ``x`` of three axes
    After:  ``y = If(c){...}{...}``, with its branches the other way round where ``d`` is ``Not(c)``

    Both cases of a condition are followed through the graph: types, sizes and small integers, as far as they follow
    from the model's inputs and constants. An If inside of a branch that runs in one case alone is decided by it. Where
    one case ends at an operator that cannot take its input (a Conv, Gemm, Transpose, LSTM, GRU or RNN with a wrong
    number of axes), the condition has its other value, if the branch that stays fails in that case, too: Squeeze
    of the axis whose size is asked for, as PyTorch's ``squeeze`` writes it.
    Left alone: conditions of which nothing follows; one whose wrong value would not fail any more.
    accuracy: exact. Source: ONNX operator If; own.
    """

    name: ClassVar[str] = "decide-conditions"
    max_visits: int = 20_000  #: nodes that are looked at, in all, to find out what follows from conditions

    def run(self, model: ir.Model, context: Context) -> Result:
        """Go through the nests, each until nothing more follows: the main graph and each function."""
        if not has_control_flow(model):
            return Result()
        rewrites, left = 0, self.max_visits
        for root in root_graphs(model):
            made, said = 1, len(context.notes)
            while made and left > 0:
                context.forget_notes(said)
                made, left = _decide_in(root, left, context)
                rewrites += made
        if left <= 0:
            context.note(None, f"not followed to the end: conditions on which more than {self.max_visits} nodes depend")
        return Result(rewrites=rewrites)


def _decide_in(root: ir.Graph, left: int, context: Context) -> tuple[int, int]:
    """Decide what can be in a graph and those inside; return the number of changes, and of visits that are left."""
    graphs = [graph for graph in (root, *root.subgraphs()) if _conditions(graph)]
    if not graphs:
        return 0, left
    rewrites, facts = 0, Facts(root)
    for graph in graphs:
        order = Order(graph)
        for condition in _conditions(graph):
            if facts.truth(condition) is not None:
                continue
            cases = {truth: Case(facts, condition, truth) for truth in (True, False)}
            left -= sum(case.follow(order, condition, left // 2) for case in cases.values())
            rewrites += _decide(condition, _ifs(graph, condition), facts, cases, context)
    return rewrites, left


def _conditions(graph: ir.Graph) -> list[ir.Value]:
    """Return the computed conditions of the Ifs that stand in a graph itself, each once."""
    found = [node.inputs[0] for node in graph if branches_of(node) is not None]
    return [value for value in dict.fromkeys(found) if value is not None and constant(value) is None]


def _ifs(graph: ir.Graph, condition: ir.Value) -> list[ir.Node]:
    return [use.node for use in condition.uses() if use.node.graph is graph and branches_of(use.node) is not None]


def _decide(condition: ir.Value, nodes: list[ir.Node], facts: Facts, cases: Cases, context: Context) -> int:
    """Write what the two cases of a condition tell; return the number of Ifs that were changed."""
    for truth in (True, False):
        failing, other = cases[not truth].impossible, cases[truth]
        if failing is None or other.impossible is not None or not nodes:
            continue
        if other.is_valid and any(_fails_unless(node, truth, facts) for node in nodes):
            for node in nodes:
                _set_condition(node, truth)
            return len(nodes)
        reason = f"{node_label(failing)} fails where its condition is {str(not truth).lower()}, nothing else would"
        context.note(nodes[0], f"not decided: {reason}")
    found = dict.fromkeys([*cases[True].decided, *cases[False].decided])
    return sum(_settle(node, condition, cases, context) for node in found if constant(node.inputs[0]) is None)


def _settle(node: ir.Node, condition: ir.Value, cases: Cases, context: Context) -> bool:
    """Write what follows for one If, if anything does."""
    answers = {truth: _answer(cases, truth, node) for truth in (True, False)}
    if {*answers.values()} == {True, False}:
        if node.inputs[0] is condition:
            return False
        _replace_condition(node, condition)
        if not answers[True]:
            _swap_branches(node)
        return True
    if None in answers.values() or len({*answers.values()} - {_NEVER}) > 1:
        return False
    if not all(cases[truth].is_valid for truth, answer in answers.items() if answer != _NEVER):
        context.note(node, "not decided: what never runs would not be valid in the place of the If")
        return False
    _set_condition(node, True in answers.values())
    return True


def _answer(cases: Cases, truth: bool, node: ir.Node) -> bool | str | None:
    """Return the condition of an If in one case: unknown is None, and :data:`_NEVER` where it does not run then."""
    if node in cases[truth].decided:
        return cases[truth].decided[node][0]
    _, within = cases[not truth].decided[node]
    return _NEVER if not cases[truth].dropped.isdisjoint(within) else None


def _fails_unless(node: ir.Node, truth: bool, facts: Facts) -> bool:
    """Tell whether one branch of an If fails where the condition is the opposite: it squeezes what is asked for.

    Args:
        node: the If, whose condition tells whether a size is 1.
        truth: which branch.
        facts: what is known of the sizes.
    """
    branches, condition = branches_of(node), node.inputs[0]
    asked = _size_asked_for(facts.element(condition), truth) if condition is not None else None
    if branches is None or asked is None:
        return False
    branch = branches[0] if truth else branches[1]
    for inner in needed_nodes(branch):
        if inner.op_type != "Squeeze" or not is_standard(inner):
            continue
        axes, row = named_axes(inner), facts.sizes.of(input_at(inner, 0))
        if axes is None or row is None:
            continue
        if any(-len(row) <= axis < len(row) and row[axis] == asked for axis in axes):
            return True
    return False


def _size_asked_for(array: Array | None, truth: bool) -> Any:
    """Return the size that is 1 where a condition is true, or where it is false; None for other conditions."""
    item: Item | None = array.item() if array is not None and array.size == 1 else None
    if not isinstance(item, Expr):
        return None
    for monomial, factor in item.terms:
        for base, power in monomial:
            match base.key:
                case ("equal", False, (left, right)) if (left == 1 or right == 1) and factor == (1 if truth else -1):
                    plain = symbol(base.key)
                    if power == 1 and item == (plain if truth else subtract(1, plain)):
                        return right if left == 1 else left
    return None


def _set_condition(node: ir.Node, truth: bool) -> None:
    _replace_condition(node, new_initializer(graph_of(node), np.array(truth), "condition"))


def _replace_condition(node: ir.Node, value: ir.Value) -> None:
    old = node.inputs[0]
    replace_input(node, 0, value)
    if old is not None:
        drop_if_unused(old)


def _swap_branches(node: ir.Node) -> None:
    first, second = (node.attributes[name].as_graph() for name in ("then_branch", "else_branch"))
    node.attributes["then_branch"] = ir.AttrGraph("then_branch", second)
    node.attributes["else_branch"] = ir.AttrGraph("else_branch", first)
