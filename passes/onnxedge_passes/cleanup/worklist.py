"""Rewrite rules and the one driver that applies them, for the families ``fold`` and ``fuse``."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import onnx_ir as ir

from onnxedge.api import (
    Context,
    Pass,
    Result,
    graph_of,
    graphs_of,
    insert_after,
    insert_before,
    is_standard,
    remove_node,
    replace_uses,
    scope_of,
    sole_consumer,
    use_count,
)

MAX_ROUNDS = 32  #: a rule set that still rewrites after this many sweeps over the graph is stopped

_MAX_REWRITES = 16  #: of one rule for each node of a graph in one sweep; above, it undoes its own or another's work

_MANY_READERS = 64  #: readers of a value with more of them wait for the next sweep, or each rewrite would queue all


@dataclass(frozen=True)
class Refused:
    """Say why a match that is nearly one was left alone."""

    reason: str


Outcome = ir.Value | Refused | None


@dataclass(frozen=True, kw_only=True)
class Rule(Pass):
    """Rewrite what ends in one node of a given operator; usable alone as a pass, or with others in one sweep."""

    roots: ClassVar[tuple[str, ...]]  #: operators of the default domain that a match ends with

    def rewrite(self, node: ir.Node, context: Context) -> Outcome:
        """Rewrite the match that ends in ``node`` and return the value that now stands for its output.

        Returns None where nothing matches, and :class:`Refused` for a near miss; in both cases nothing is changed.
        """
        raise NotImplementedError(f"rule {type(self).__name__} has no rewrite method")

    def run(self, model: ir.Model, context: Context) -> Result:
        """Apply this rule alone until it finds nothing more."""
        return apply_rules(model, (self,), context)


def apply_rules(model: ir.Model, rules: Sequence[Rule], context: Context) -> Result:
    """Apply rules to the main graph, subgraphs and local functions until none of them rewrites anything.

    Nodes wait in a queue, last node first, so that the longest match wins; a rewrite queues its neighbours again.
    The reasons of the last sweep, in which nothing was rewritten, become notes.
    """
    by_root: defaultdict[str, list[Rule]] = defaultdict(list)
    for rule in rules:
        for root in rule.roots:
            by_root[root].append(rule)
    counts = {rule.name: 0 for rule in rules}
    for _ in range(MAX_ROUNDS):
        refusals: list[tuple[str, ir.Node, str]] = []
        before = sum(counts.values())
        for graph in list(graphs_of(model)):
            _sweep(graph, by_root, counts, refusals, context)
        if sum(counts.values()) == before:
            break
    for name, node, reason in refusals:
        with context.speaking(name):
            context.note(node, reason)
    made = {name: count for name, count in counts.items() if count}
    summary = ", ".join(f"{name} {count}" for name, count in made.items()) if len(rules) > 1 else ""
    return Result(rewrites=sum(made.values()), summary=summary, figures=counts)


def _sweep(
    graph: ir.Graph,
    by_root: dict[str, list[Rule]],
    counts: dict[str, int],
    refusals: list[tuple[str, ir.Node, str]],
    context: Context,
) -> None:
    twice = {key for key, count in Counter(id(value) for value in graph.outputs).items() if count > 1}
    limit = _MAX_REWRITES * (len(graph) + 64)
    most = {name: count + limit for name, count in counts.items()}
    queue = deque(node for node in reversed(graph) if node.op_type in by_root)
    queued = {id(node) for node in queue}
    while queue:
        node = queue.popleft()
        queued.discard(id(node))
        if node.graph is None or not is_standard(node):
            continue
        if twice and any(id(value) in twice for value in node.outputs):
            continue
        for rule in by_root.get(node.op_type, ()):
            if counts[rule.name] > most[rule.name]:
                refusals.append((rule.name, node, "stopped: its rewrites do not end"))
                continue
            outcome = rule.rewrite(node, context)
            if isinstance(outcome, Refused):
                refusals.append((rule.name, node, outcome.reason))
            elif outcome is not None:
                counts[rule.name] += 1
                near = [n for n in _neighbours(outcome, graph) if id(n) not in queued and n.op_type in by_root]
                queue.extend(near)
                queued.update(id(n) for n in near)
                break


def _neighbours(value: ir.Value, graph: ir.Graph) -> Iterable[ir.Node]:
    """Return the producer of a value, its readers and its sources, each once, where they stand in ``graph``."""
    producer = value.producer()
    nodes = [producer, *(use.node for use in value.uses())] if use_count(value) <= _MANY_READERS else [producer]
    if producer is not None:
        nodes += [source.producer() for source in producer.inputs if source is not None]
    here = (node for node in nodes if node is not None and node.graph is not None and graph_of(node) is graph)
    return dict.fromkeys(here)


def retire(*nodes: ir.Node | None) -> None:
    """Remove nodes that nobody reads any more, and in turn what only they read."""
    stack = [node for node in nodes if node is not None]
    while stack:
        node = stack.pop()
        if node.graph is None or any(output_used(value) for value in node.outputs):
            continue
        sources = [value.producer() for value in node.inputs if value is not None]
        remove_node(node)
        stack.extend(source for source in dict.fromkeys(sources) if source is not None)


def replace_node(
    node: ir.Node, op_type: str, inputs: Sequence[ir.Value | None], attributes: dict[str, Any] | None = None
) -> ir.Value:
    """Put a node of another kind in the place of one with one output, and return the new output."""
    made = insert_before(node, op_type, inputs, attributes=attributes, name=node.name, like=node.outputs)
    replace_uses(node.outputs[0], made.outputs[0])
    retire(node)
    return made.outputs[0]


def insert_behind(
    value: ir.Value, graph: ir.Graph, op_type: str, inputs: Sequence[ir.Value | None], **options: Any
) -> ir.Node:
    """Put a node right behind the producer of a value, or first of all in a graph where that stands outside of it."""
    producer = value.producer()
    if producer is not None and producer.graph is not None and graph_of(producer) is graph:
        return insert_after(producer, op_type, inputs, **options)
    return insert_before(graph[0], op_type, inputs, **options)


def replace_by(node: ir.Node, value: ir.Value) -> ir.Value:
    """Let the readers of a node with one output read a value that is there already, and return it.

    By way of an Identity where the value cannot be the graph's output itself, as an input of the graph cannot.
    """
    if not replace_uses(node.outputs[0], value):
        return replace_node(node, "Identity", [value])
    retire(node)
    return value


def attributes_of(node: ir.Node) -> dict[str, Any]:
    """Return the attributes of a node by name, for another node that is to have them."""
    return {name: attribute.value for name, attribute in node.attributes.items()}


def root_graphs(model: ir.Model) -> list[ir.Graph]:
    """Return the graphs that stand in no other one: the main graph and those of the local functions."""
    return [model.graph, *(function.graph for function in model.functions.values())]


def graph_opset(graph: ir.Graph) -> int:
    """Return the opset version of the default domain that a graph, or the function that it is of, is written in."""
    imports = scope_of(graph).opset_imports
    return imports.get("", imports.get("ai.onnx", 0))


def node_opset(node: ir.Node) -> int:
    """Return the opset version of the default domain that a node is written in."""
    return graph_opset(graph_of(node))


def node_before(node: ir.Node, *op_types: str, index: int = 0, alone: bool = False) -> ir.Node | None:
    """Return the node of the default domain in the same graph that computes an input of another one, None for others.

    Args:
        node: the reader.
        op_types: operators that it may be of, any for none.
        index: of the input.
        alone: only a node whose result nobody else reads.
    """
    value = input_at(node, index)
    before = value.producer() if value is not None else None
    if value is None or before is None or before.graph is not node.graph or not is_standard(before):
        return None
    if op_types and before.op_type not in op_types:
        return None
    return before if not alone or sole_consumer(value) is node else None


def input_at(node: ir.Node, index: int) -> ir.Value | None:
    """Return input ``index`` of a node, None where it is missing or empty."""
    return node.inputs[index] if index < len(node.inputs) else None


def output_used(value: ir.Value) -> bool:
    """Tell whether anybody reads a value or it is exported."""
    return use_count(value) > 0 or value.is_graph_output()


def is_exported_twice(value: ir.Value) -> bool:
    """Tell whether a value is several outputs of its graph, so that no other value can take its place."""
    producer = value.producer()
    if producer is None or producer.graph is None or not value.is_graph_output():
        return False
    return sum(output is value for output in graph_of(producer).outputs) > 1
