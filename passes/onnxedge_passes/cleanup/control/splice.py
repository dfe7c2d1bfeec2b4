"""Put the nodes of a subgraph, or of a function's copy, in the place of the node that runs them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import onnx_ir as ir

from onnxedge.api import (
    add_initializer,
    graph_of,
    insert_before,
    join_scope,
    remove_node,
    subgraphs,
    unique_name,
    unique_node_name,
)
from onnxedge_passes.cleanup.worklist import node_opset, root_graphs

#: Opset from which Identity takes values that are no tensors.
_IDENTITY_OF: dict[type, int] = {ir.SequenceType: 14, ir.OptionalType: 16}


def inline_nodes(model: ir.Model, inline: Callable[[ir.Node, Splicer], list[ir.Node] | None]) -> int:
    """Ask ``inline`` for each node, and for those that it moved, from the outside in; return how many it inlined.

    Args:
        model: edited in place.
        inline: returns the nodes that now stand in a node's place, None for a node that stays.
    """
    return sum(inline_within(root, inline) for root in root_graphs(model))


def inline_within(root: ir.Graph, inline: Callable[[ir.Node, Splicer], list[ir.Node] | None]) -> int:
    """Do the same in one nest: the main graph or a function, with the subgraphs inside."""
    count = 0
    splicer = Splicer(root)
    stack = list(reversed(root))
    while stack:
        node = stack.pop()
        moved = inline(node, splicer)
        if moved is None:
            for graph in subgraphs(node):
                stack.extend(reversed(graph))
        else:
            stack.extend(reversed(moved))
            count += 1
    return count


class Splicer:
    """Move bodies into the graphs of one nest: the main graph or a function, with all subgraphs.

    Names: what is unique in the nest stays; names that two bodies share, as the branches of an If may, are numbered.

    Args:
        root: the outermost graph.
    """

    def __init__(self, root: ir.Graph) -> None:
        self._root = root
        self._counted = False
        self._values: Counter[str] = Counter()
        self._nodes: Counter[str] = Counter()

    def move(
        self, node: ir.Node, body: ir.Graph, arguments: Mapping[ir.Value, ir.Value | None], *, copied: bool = False
    ) -> tuple[list[ir.Node], list[ir.Value]]:
        """Move a body's nodes and initializers before ``node`` and return them and what stands for its outputs.

        Args:
            node: the node that runs the body; stays, and so do its outputs.
            body: its graph; empty afterwards.
            arguments: what the body's inputs stand for, None for an optional input that is missing.
            copied: the body comes from elsewhere, and none of its names is known here.
        """
        graph = graph_of(node)
        self._count()
        results = [arguments.get(value, value) for value in body.outputs]
        body.outputs.clear()
        for parameter, argument in arguments.items():
            _substitute(parameter, argument)
        if copied:
            join_scope(body, graph)
        moved = list(body)
        body.remove(moved)
        for inner in moved:
            self._rename(graph, inner, copied)
        graph.insert_before(node, moved)
        for value in list(body.initializers.values()):
            self._move_initializer(graph, body, value, results, copied)
        return moved, [value for value in results if value is not None]

    def _rename(self, graph: ir.Graph, node: ir.Node, copied: bool) -> None:
        if node.name and (copied or self._is_shared(self._nodes, node.name)):
            node.name = unique_node_name(graph, node.name)
        for value in node.outputs:
            self._rename_value(graph, value, copied)
        if not copied:
            return
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                self._rename_nested(graph, attribute.as_graph())
            elif attribute.type == ir.AttributeType.GRAPHS:
                for nested in attribute.as_graphs():
                    self._rename_nested(graph, nested)

    def _rename_nested(self, graph: ir.Graph, nested: ir.Graph) -> None:
        initializers = list(nested.initializers.values())
        nested.initializers.clear()
        for value in dict.fromkeys([*nested.inputs, *initializers]):
            self._rename_value(graph, value, copied=True)
        for value in initializers:
            nested.register_initializer(value)
        for node in nested:
            self._rename(graph, node, copied=True)

    def _rename_value(self, graph: ir.Graph, value: ir.Value, copied: bool) -> None:
        if value.name and (copied or self._is_shared(self._values, value.name)):
            value.name = unique_name(graph, value.name)

    def _count(self) -> None:
        """Count the names of the nest, once; those of bodies that are dropped later keep counting."""
        if self._counted:
            return
        self._counted = True
        for nested in (self._root, *self._root.subgraphs()):
            self._values.update(value.name or "" for value in (*nested.inputs, *nested.initializers.values()))
            for node in nested:
                self._values.update(value.name or "" for value in node.outputs)
                self._nodes[node.name or ""] += 1

    def _is_shared(self, counts: Counter[str], name: str) -> bool:
        """Tell whether another value, or node, of the nest has this name too; the last of them keeps it."""
        if counts[name] < 2:
            return False
        counts[name] -= 1
        return True

    def _move_initializer(
        self, graph: ir.Graph, body: ir.Graph, value: ir.Value, results: list[ir.Value | None], copied: bool
    ) -> None:
        del body.initializers[value.name or ""]
        self._rename_value(graph, value, copied)
        added = add_initializer(graph, value)  # in a function the output of a Constant node
        if added is not value:
            value.replace_all_uses_with(added)
            results[:] = [added if result is value else result for result in results]


def _substitute(parameter: ir.Value, argument: ir.Value | None) -> None:
    if argument is not None:
        parameter.replace_all_uses_with(argument, replace_graph_outputs=True)
        return
    for use in tuple(parameter.uses()):
        use.node.replace_input_with(use.idx, None)


def captured(node: ir.Node) -> list[ir.Value]:
    """Return the values that the subgraphs of a node read from outside of it, each once."""
    values: dict[ir.Value, None] = {}
    for graph in subgraphs(node):
        within = [graph, *graph.subgraphs()]
        read = [value for inner in graph.all_nodes() for value in inner.inputs if value is not None]
        values.update(dict.fromkeys(value for value in read if value.graph not in within))
    return list(values)


def needs_newer_identity(node: ir.Node, results: Sequence[ir.Value | None], body: ir.Graph) -> bool:
    """Tell whether handing over needs an Identity of a sequence or an optional that the opset does not have.

    Args:
        node: whose outputs are handed over.
        results: what will stand for each output; None for one that is made on the way.
        body: the graph that is about to be moved.
    """
    for old, new in zip(node.outputs, results, strict=True):
        if not old.is_graph_output() or new is None:
            continue
        kind = old.type if old.type is not None else new.type
        least = _IDENTITY_OF.get(type(kind), 1) if kind is not None else 1
        if node_opset(node) < least and not _can_be_output(new, node, results, body):
            return True
    return False


def _can_be_output(value: ir.Value, node: ir.Node, results: Sequence[ir.Value | None], body: ir.Graph) -> bool:
    producer = value.producer()
    if producer is None or sum(result is value for result in results) > 1:
        return False
    return producer.graph is body or (producer.graph is node.graph and not value.is_graph_output())


def hand_over(node: ir.Node, results: Sequence[ir.Value | None]) -> None:
    """Let ``results`` stand for the outputs of a node and remove it; the graph's outputs keep name and type."""
    for old, new in zip(node.outputs, results, strict=True):
        if new is None:
            continue
        if not old.is_graph_output():
            old.replace_all_uses_with(new)
            if new.type is None:
                new.type, new.shape = old.type, old.shape
            continue
        producer = new.producer()
        if producer is None or producer.graph is not node.graph or new.is_graph_output():
            new = insert_before(node, "Identity", [new], like=[old]).outputs[0]
        name = old.name
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        old.name = f"{name}_replaced"
        new.name, new.type, new.shape = name, old.type, old.shape
        for key, item in old.metadata_props.items():
            new.metadata_props.setdefault(key, item)
    remove_node(node)
