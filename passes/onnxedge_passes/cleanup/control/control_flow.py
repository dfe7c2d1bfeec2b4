"""Ifs, Loops, Scans and the nodes around them: branches, bodies, who reads what, what an output depends on."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from onnxedge.api import graphs_of, is_standard, subgraphs
from onnxedge_passes.cleanup.control.splice import captured


class Order:
    """The nodes of one graph by position, with who reads what, and which of them an output depends on."""

    def __init__(self, graph: ir.Graph) -> None:
        self.nodes = list(graph)
        self.needed = needed_nodes(graph)
        self.at = {node: index for index, node in enumerate(self.nodes)}
        self._control: dict[ir.Value, list[int]] = {}
        for index, node in enumerate(self.nodes):
            for value in captured(node) if any(subgraphs(node)) else ():
                self._control.setdefault(value, []).append(index)

    def readers(self, value: ir.Value) -> Iterable[int]:
        """Return the positions of the nodes that read a value, themselves or inside of them."""
        own = (self.at[use.node] for use in value.uses() if use.node in self.at)
        return [*own, *self._control.get(value, ())]


def has_control_flow(model: ir.Model) -> bool:
    """Tell whether any graph stands inside of another."""
    return sum(1 for _ in graphs_of(model)) > 1 + len(model.functions)


def branches_of(node: ir.Node) -> tuple[ir.Graph, ir.Graph] | None:
    """Return the two branches of an If of the default domain, None for other nodes."""
    if node.op_type != "If" or not is_standard(node) or len(node.inputs) != 1 or node.inputs[0] is None:
        return None
    found = [node.attributes.get(name) for name in ("then_branch", "else_branch")]
    graphs = [a.as_graph() for a in found if a is not None and not a.is_ref() and a.type == ir.AttributeType.GRAPH]
    if len(graphs) != 2 or any(len(graph.outputs) != len(node.outputs) for graph in graphs):
        return None
    return graphs[0], graphs[1]


def body_of(node: ir.Node, op_type: str) -> ir.Graph | None:
    """Return the body of a Loop or Scan, None for another operator or a body that is a function's attribute."""
    attribute = node.attributes.get("body")
    if node.op_type != op_type or not is_standard(node) or attribute is None or attribute.is_ref():
        return None
    return attribute.as_graph()


def is_dangling(value: ir.Value) -> bool:
    """Tell whether nothing makes a value: an outer value that a body gives back by its name, which ONNX forbids."""
    made = value.producer() is not None or value.is_initializer() or value.is_graph_input()
    return not made


def needed_nodes(graph: ir.Graph) -> set[ir.Node]:
    """Return the nodes of a graph that its outputs depend on: others may never run."""
    wanted, needed = set(graph.outputs), set[ir.Node]()
    for node in reversed(graph):
        if wanted.isdisjoint(node.outputs):
            continue
        needed.add(node)
        wanted.update(value for value in node.inputs if value is not None)
        if any(subgraphs(node)):
            wanted.update(captured(node))
    return needed
