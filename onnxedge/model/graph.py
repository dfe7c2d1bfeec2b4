"""What is read of an ``onnx_ir`` graph: graphs within graphs, constants, readers, labels, shapes.

Nodes and values are compared by identity, names are labels for people.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir

Array = np.ndarray[Any, Any]


def graphs_of(model: ir.Model) -> Iterator[ir.Graph]:
    """Yield the main graph and every subgraph, then the graphs of local functions."""
    yield from nest(model.graph)
    for function in model.functions.values():
        yield from nest(function.graph)


def nest(graph: ir.Graph) -> list[ir.Graph]:
    """Return a graph and those inside it, outer ones first."""
    found: list[ir.Graph] = []
    stack = [graph]
    while stack:
        outer = stack.pop()
        found.append(outer)
        if any(a.type in _HOLDS_GRAPHS for node in unordered(outer) for a in node._attributes.data.values()):
            stack.extend(reversed([inner for node in outer for inner in subgraphs(node)]))
    return found


def subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    """Yield the graphs in a node's attributes: branches of an If, the body of a Loop or Scan."""
    for attribute in node.attributes.data.values():  # the mapping's own views are slow, and there are many
        if attribute.type not in _HOLDS_GRAPHS or attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        else:
            yield from attribute.as_graphs()


_HOLDS_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def unordered(graph: ir.Graph) -> Iterator[ir.Node]:
    """Yield the nodes of a graph in any order, in a third of the time; it must not be edited meanwhile."""
    return (box.value for box in graph._nodes._value_ids_to_boxes.values() if box.value is not None)


def is_overridable(value: ir.Value) -> bool:
    """Tell whether an initializer is a graph input too, so that the caller may feed another tensor (IR 3 style)."""
    return value.is_graph_input()


def constant_tensor(value: ir.Value | None) -> ir.TensorProtocol | None:
    """Return the tensor behind an initializer or a Constant node without reading its bytes, or None.

    None also for a missing input, for an initializer that the caller may override, and for Constant forms whose
    value is no dense tensor (strings, sparse tensors, a function's attribute reference).
    """
    if value is None:
        return None
    producer = value.producer()
    if producer is None:
        return None if is_overridable(value) else value.const_value
    if producer.op_type != "Constant" or producer.domain not in ("", "ai.onnx"):
        return None
    return constant_node_tensor(producer)


def constant_node_tensor(node: ir.Node) -> ir.TensorProtocol | None:
    """Return the tensor that a Constant node holds, in whichever attribute form, or None for a form not dense."""
    if len(node.attributes) != 1:
        return None
    attribute = next(iter(node.attributes.data.values()))
    if attribute.is_ref():
        return None
    match attribute.name:
        case "value":
            tensor: ir.TensorProtocol = attribute.value  # ``as_tensor`` looks whether it is one, which takes long
            return tensor
        case "value_float":
            return ir.tensor(np.array(attribute.as_float(), np.float32))
        case "value_int":
            return ir.tensor(np.array(attribute.as_int(), np.int64))
        case "value_floats":
            return ir.tensor(np.array(attribute.as_floats(), np.float32))
        case "value_ints":
            return ir.tensor(np.array(attribute.as_ints(), np.int64))
    return None


def constant(value: ir.Value | None) -> Array | None:
    """Return the array behind an initializer or a Constant node, or None where the value is no constant.

    The array may be a read-only view of the model's bytes (memory-mapped for external data): never write into it.
    """
    tensor = constant_tensor(value)
    if tensor is None or tensor.dtype == ir.DataType.STRING:
        return None
    return tensor.numpy()


def is_constant(value: ir.Value | None) -> bool:
    """Tell whether a value is an initializer that nobody can override, or the output of a Constant node."""
    return constant_tensor(value) is not None


def graph_of(node: ir.Node) -> ir.Graph:
    """Return the graph that holds a node.

    Raises:
        ValueError: the node is in no graph.
    """
    graph = node.graph
    if type(graph) is ir.Graph:  # at once: to ask whether it is a function takes long, that class is a protocol
        return graph
    if isinstance(graph, ir.Function):
        return graph.graph
    if graph is None:
        raise ValueError(f"node {node.name!r} is in no graph")
    return graph


def use_count(value: ir.Value) -> int:
    """Return how often nodes read a value, at once: ``uses()`` of onnx_ir 1.1 copies all, however many there are."""
    return len(value._uses)


def sole_consumer(value: ir.Value) -> ir.Node | None:
    """Return the one node that reads a value once, or None where it has other readers or is a graph output."""
    if use_count(value) != 1 or value.is_graph_output():
        return None
    return next(iter(value.uses())).node


def node_label(node: ir.Node) -> str:
    """Return the operator and the node's name as Netron shows them, or the first output's name for a nameless node."""
    domain = f"{node.domain}::" if node.domain not in ("", "ai.onnx") else ""
    outputs = [value.name for value in node.outputs if value.name]
    name = node.name or (f"-> {outputs[0]}" if outputs else "?")
    return f"{domain}{node.op_type} {name!r}"


def opset(model: ir.Model | ir.Graph, domain: str = "") -> int:
    """Return the opset version that a model imports for a domain, 0 where it imports none."""
    imports = model.opset_imports
    return imports.get(domain, imports.get("ai.onnx", 0) if domain == "" else 0)


def static_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """Return the shape of a value whose dimensions are all known, else None."""
    if value is None or value.shape is None or not value.shape.is_static():
        return None
    return tuple(int(d) for d in value.shape)  # type: ignore[arg-type]


def is_standard(node: ir.Node) -> bool:
    """Tell whether a node is of the default ONNX domain."""
    return node.domain in ("", "ai.onnx")
