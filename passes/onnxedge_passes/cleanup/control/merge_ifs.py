"""Several Ifs on one condition, asked once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import onnx_ir as ir

from onnxedge.api import Context, Pass, Result, insert_before, new_node, remove_node
from onnxedge_passes.cleanup.control.control_flow import Order, branches_of, has_control_flow
from onnxedge_passes.cleanup.control.facts import Case, Facts
from onnxedge_passes.cleanup.control.splice import Splicer, captured
from onnxedge_passes.cleanup.worklist import output_used, root_graphs

_BRANCHES = ("then_branch", "else_branch")


@dataclass(frozen=True, kw_only=True)
class MergeIfs(Pass):
    """Put Ifs on one condition together.

    Before: ``a = If(c){Exp(x)}{x}; b = If(c){Neg(a)}{Abs(a)}``
    After:  ``a, b = If(c){e = Exp(x); return e, Neg(e)}{...}``

    What only the later branches read is no output any more. The Ifs may stand apart where what lies between does not
    depend on the first, or the second not on what lies between.
    Left alone: Ifs that must stand apart; those on two conditions, even equal ones (see ``decide-conditions``).
    accuracy: exact. Source: ONNX operator If; own.
    """

    name: ClassVar[str] = "merge-ifs"
    max_visits: int = 20_000  #: nodes that are looked at, in all, to find out whether branches stay valid

    def run(self, model: ir.Model, context: Context) -> Result:
        """Go through all graphs, each by itself."""
        if not has_control_flow(model):
            return Result()
        merged = 0
        for root in root_graphs(model):
            nest = _Nest(root, Splicer(root), context, self.max_visits)
            merged += sum(nest.merge_in(graph) for graph in (root, *root.subgraphs()))
        return Result(rewrites=merged)


@dataclass
class _Group:
    """Ifs that can be one, in their order, and the position where it can stand."""

    nodes: list[ir.Node]
    at: int


@dataclass
class _Nest:
    """A main graph or a function, with all subgraphs."""

    root: ir.Graph
    splicer: Splicer
    context: Context
    left: int

    @cached_property
    def facts(self) -> Facts:
        return Facts(self.root)

    def merge_in(self, graph: ir.Graph) -> int:
        """Merge the Ifs that stand in a graph itself, and return by how many there are fewer."""
        found: defaultdict[ir.Value, list[ir.Node]] = defaultdict(list)
        for node in graph:
            if node.op_type == "If" and node.inputs and node.inputs[0] is not None and _is_plain(node):
                found[node.inputs[0]].append(node)
        merged = 0
        for nodes in found.values():
            if len(nodes) < 2:
                continue
            order = Order(graph)
            groups = [group for group in self._groups(nodes, order) if len(group.nodes) > 1]
            for group in groups:
                old, made = _merge(group, order, self.splicer)
                merged += len(group.nodes) - 1
                if "facts" in self.__dict__:
                    for value, new in zip(old, made.outputs, strict=True):
                        self.facts.take(new, value)
        return merged

    def _groups(self, nodes: list[ir.Node], order: Order) -> Iterator[_Group]:
        group = _Group(nodes[:1], order.at[nodes[0]])
        valid: bool | None = None
        for node in nodes[1:]:
            reason = _fit(node, group, order)
            if not reason and any(value.producer() in group.nodes for value in captured(node)):
                valid = self._stay_valid(nodes[0].inputs[0], order) if valid is None else valid
                reason = "" if valid else "what never runs would not be valid in one branch"
            if not reason:
                group.nodes.append(node)
                continue
            self.context.note(node, f"not merged with an If on the same condition: {reason}")
            yield group
            group = _Group([node], order.at[node])
        yield group

    def _stay_valid(self, condition: ir.Value | None, order: Order) -> bool:
        """Tell whether branches that read each other's values, of known shapes then, pass shape inference."""
        assert condition is not None
        cases = [Case(self.facts, condition, truth) for truth in (True, False)]
        for case in cases:
            self.left -= case.follow(order, condition, self.left)
        return all(case.is_valid for case in cases)


def _fit(node: ir.Node, group: _Group, order: Order) -> str:
    """Say why an If cannot join a group; nothing where it can, and the group then stands where all can be."""
    if all(_is_ahead(value, group, order) for value in captured(node)):
        return ""
    here = order.at[node]
    made = [value for member in group.nodes for value in member.outputs]
    members = {order.at[member] for member in group.nodes}
    if any(reader < here and reader not in members for value in made for reader in order.readers(value)):
        return "it reads what is computed from that one"
    group.at = here
    return ""


def _is_plain(node: ir.Node) -> bool:
    """Tell whether the branches of an If give back what they compute, each value once."""
    branches = branches_of(node)
    if branches is None or not any(output_used(value) for value in node.outputs):
        return False
    if any(len(set(branch.outputs)) < len(branch.outputs) for branch in branches):
        return False
    return all(value.graph is g for branch in branches for g in (branch, *branch.subgraphs()) for value in g.outputs)


def _is_ahead(value: ir.Value, group: _Group, order: Order) -> bool:
    """Tell whether a value is there before the position of a group, or is one of its own."""
    producer = value.producer()
    if producer is None or producer not in order.at:
        return True
    return order.at[producer] < group.at or producer in group.nodes


def _merge(group: _Group, order: Order, splicer: Splicer) -> tuple[list[ir.Value], ir.Node]:
    """Put one If in the place of several."""
    first, anchor = group.nodes[0], order.nodes[group.at]
    columns = []
    for name in _BRANCHES:
        body = first.attributes[name].as_graph()
        inside: dict[ir.Value, ir.Value] = dict(zip(first.outputs, body.outputs, strict=True))
        for node in group.nodes[1:]:
            branch = node.attributes[name].as_graph()
            _read_inside(branch, inside)
            end = new_node(body, "Identity", [])  # what the splicer puts nodes before
            body.append(end)
            _, results = splicer.move(end, branch, {})
            remove_node(end)
            inside.update(zip(node.outputs, results, strict=True))
        columns.append((body, inside))
    old = [value for node in group.nodes for value in node.outputs if output_used(value)]
    for body, inside in columns:
        body.outputs[:] = [inside[value] for value in old]
    made = insert_before(
        anchor,
        "If",
        [first.inputs[0]],
        attributes={name: body for name, (body, _) in zip(_BRANCHES, columns, strict=True)},
        name=first.name,
        outputs=len(old),
        like=old,
    )
    for value, new in zip(old, made.outputs, strict=True):
        _take_over(value, new)
    for node in group.nodes:
        for name in _BRANCHES:
            del node.attributes[name]
        remove_node(node)
    return old, made


def _read_inside(branch: ir.Graph, inside: dict[ir.Value, ir.Value]) -> None:
    """Let a branch read what the branch that it joins computes, not the outputs of that If."""
    for node in branch.all_nodes():
        for index, value in enumerate(node.inputs):
            if value is not None and value in inside:
                node.replace_input_with(index, inside[value])


def _take_over(value: ir.Value, new: ir.Value) -> None:
    """Let a new value stand for an output of an If that goes; a graph output keeps its name."""
    name = value.name
    value.replace_all_uses_with(new, replace_graph_outputs=True)
    value.name = f"{name}_merged"
    new.name = name
    for key, item in value.metadata_props.items():
        new.metadata_props.setdefault(key, item)
