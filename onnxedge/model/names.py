"""Names of nodes and values that nothing in a graph, around it or inside it has."""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx_ir as ir

from onnxedge.model.graph import nest, unordered
from onnxedge.model.spill import SPILLS_FROM_BYTES


@dataclass
class Scope:
    """What a graph shares with the graphs around and inside it: taken names, opset imports, function or not.

    ONNX forbids shadowing between a subgraph and the graphs around it, so names are unique over the whole nest.
    """

    opset_imports: dict[str, int]
    is_function: bool = False
    spills: bool = False  #: new weights go to a file: those of the model are many and in files of their own
    names: dict[str, int] = field(default_factory=dict)  #: taken value name -> last number tried behind it
    node_names: dict[str, int] = field(default_factory=dict)  #: the same for nodes: ONNX Runtime refuses equal ones

    def take_names(self, graph: ir.Graph) -> None:
        """Take the names of a graph's values and nodes."""
        nodes = list(unordered(graph))
        made = [value for node in nodes for value in node._outputs]
        self.names.update((value.name or "", 0) for value in (*graph.inputs, *graph.initializers.values(), *made))
        self.node_names.update((node.name or "", 0) for node in nodes)


_SCOPE = "onnxedge.scope"


def refresh_scopes(model: ir.Model) -> None:
    """Read the taken names of every graph anew; the manager calls it before each pass, whoever edited the graph."""
    _refresh(model.graph, Scope(model.graph.opset_imports))
    for function in model.functions.values():
        _refresh(function.graph, Scope(function.opset_imports, is_function=True))


def _refresh(graph: ir.Graph, scope: Scope) -> None:
    external_bytes = 0
    for nested in nest(graph):
        nested.meta[_SCOPE] = scope
        tensors = (value.const_value for value in nested.initializers.values())
        external_bytes += sum(t.nbytes for t in tensors if isinstance(t, ir.ExternalTensor))
        scope.spills = external_bytes > SPILLS_FROM_BYTES
        scope.take_names(nested)


def scope_of(graph: ir.Graph) -> Scope:
    """Return the scope of a graph, its own alone for a graph that :func:`refresh_scopes` has not seen."""
    scope = graph.meta.get(_SCOPE)
    if scope is None:
        scope = Scope(graph.opset_imports)
        scope.take_names(graph)
        graph.meta[_SCOPE] = scope
    assert isinstance(scope, Scope)
    return scope


def unique_name(graph: ir.Graph, wish: str) -> str:
    """Return ``wish``, or ``wish_1``, ``wish_2``... if a value anywhere in the graph's nest has that name already."""
    return _claim(scope_of(graph).names, wish)


def unique_node_name(graph: ir.Graph, wish: str) -> str:
    """Return ``wish``, or a numbered one if a node anywhere in the graph's nest has that name already."""
    return _claim(scope_of(graph).node_names, wish)


def join_scope(graph: ir.Graph, outer: ir.Graph) -> None:
    """Let a graph that is moved into another one's nest, and what is nested in it, share that one's scope."""
    for nested in nest(graph):
        nested.meta[_SCOPE] = scope_of(outer)


def _claim(taken: dict[str, int], wish: str) -> str:
    if wish and wish not in taken:
        taken[wish] = 0
        return wish
    count = taken.get(wish, 0)
    while True:
        count += 1
        name = f"{wish}_{count}"
        if name not in taken:
            taken[wish], taken[name] = count, 0
            return name
