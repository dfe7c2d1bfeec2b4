"""Edits of an ``onnx_ir`` graph that passes share.

Every edit makes new values and new initializers: a weight that two nodes read is never changed under the other one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxedge.model.graph import Array, graph_of, use_count
from onnxedge.model.names import refresh_scopes, scope_of, unique_name, unique_node_name
from onnxedge.model.spill import forget_pages, spilled


def new_initializer(graph: ir.Graph, array: Array, name: str) -> ir.Value:
    """Add an initializer with a name that no value of the graph or of its enclosing graphs has; ``name`` is the wish.

    A local function has no initializers: there a Constant node is put first and its output returned.
    """
    array = spilled(array) if scope_of(graph).spills else np.ascontiguousarray(array).reshape(array.shape)
    tensor = ir.Tensor(array)  # ``ir.tensor`` asks first what it was given, which takes longer than all the rest
    value = ir.val(unique_name(graph, name), const_value=tensor)
    return add_initializer(graph, value)


def add_initializer(graph: ir.Graph, value: ir.Value) -> ir.Value:
    """Register a value with a constant tensor in a graph, as a Constant node inside a local function."""
    if not scope_of(graph).is_function:
        graph.register_initializer(value)
        return value
    node = ir.node("Constant", [], {"value": value.const_value}, name=value.name)
    node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = value.name, value.type, value.shape
    if len(graph):
        graph.insert_before(graph[0], node)
    else:
        graph.append(node)
    return node.outputs[0]


def set_constant(node: ir.Node, index: int, array: Array, name: str | None = None) -> ir.Value:
    """Give input ``index`` of a node a new initializer; the old one stays for its other readers.

    Missing optional inputs in between are filled with empty ones.
    """
    old = node.inputs[index] if index < len(node.inputs) else None
    wish = name or (old.name if old is not None and old.name else f"{node.name or node.op_type}_{index}")
    value = new_initializer(graph_of(node), array, wish)
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    replace_input(node, index, value)
    if old is not None:
        drop_if_unused(old)
    return value


def drop_if_unused(value: ir.Value) -> None:
    """Remove an initializer (or its Constant node) that nobody reads any more and that is no input or output."""
    if use_count(value) or value.is_graph_output() or value.is_graph_input():
        return
    producer = value.producer()
    if producer is not None:
        if producer.op_type == "Constant" and producer.graph is not None:
            producer.graph.remove(producer, safe=True)
    elif value.is_initializer() and value.graph is not None and value.name is not None:
        value.graph.initializers.pop(value.name, None)
        forget_pages(value.const_value)


_WIDE = 32  #: inputs, from which on onnx_ir's way to replace one, by a loop over all of them, is not taken


def replace_input(node: ir.Node, index: int, value: ir.Value | None) -> None:
    """Replace one input of a node, be there thousands."""
    if len(node.inputs) <= _WIDE or node.device_configurations:
        node.replace_input_with(index, value)
    else:
        _write_inputs(node, {index: value})


def _write_inputs(node: ir.Node, values: dict[int, ir.Value | None]) -> None:
    """Replace some inputs of a wide node at once; the only place that knows how onnx_ir 1.1 keeps them."""
    inputs = list(node.inputs)
    for index, value in values.items():
        old, inputs[index] = inputs[index], value
        if old is not None:
            old._remove_usage(node, index)
        if value is not None:
            value._add_usage(node, index)
    node._inputs = tuple(inputs)


def move_uses(old: ir.Value, new: ir.Value) -> None:
    """Let every node that reads ``old`` read ``new``; graph outputs stay as they are."""
    wide: dict[ir.Node, dict[int, ir.Value | None]] = {}
    for node, index in old.uses():
        if len(node.inputs) <= _WIDE or node.device_configurations:
            node.replace_input_with(index, new)
        else:
            wide.setdefault(node, {})[index] = new
    for node, values in wide.items():
        _write_inputs(node, values)


def replace_uses(old: ir.Value, new: ir.Value) -> bool:
    """Let every reader of ``old`` read ``new``; a graph output keeps its name, type and position.

    Returns False, with nothing changed, where ``old`` is a graph output that ``new`` cannot stand in for: ``new`` is
    a graph input, an initializer, a graph output itself, or belongs to another graph.
    """
    if old is new:
        return True
    if old.is_graph_output():
        producer = new.producer()
        if producer is None or new.is_graph_output() or producer.graph is not (p.graph if (p := old.producer()) else 0):
            return False
        outputs = graph_of(producer).outputs
        at = [index for index, output in enumerate(outputs) if output is old]
        if len(at) != 1:
            return False
        name = old.name
        move_uses(old, new)
        outputs[at[0] : at[0] + 1] = [new]  # by an index onnx_ir 1.1 first asks what that is, which takes long
        old.name = f"{name}_replaced"
        new.name, new.type, new.shape = name, old.type, old.shape
        for key, item in old.metadata_props.items():
            new.metadata_props.setdefault(key, item)
        return True
    move_uses(old, new)
    return True


def remove_node(node: ir.Node) -> None:
    """Remove a node whose outputs nobody reads, and the constants that only it read.

    Raises:
        ValueError: an output is still read or is a graph output.
    """
    if node.graph is None:
        return
    if any(use_count(value) or value.is_graph_output() for value in node.outputs):
        raise ValueError(f"node {node.name!r} cannot be removed: an output is read or exported")
    inputs = [value for value in node.inputs if value is not None]
    graph = graph_of(node)
    _write_inputs(node, dict.fromkeys(range(len(node.inputs))))
    node.graph = None
    graph._nodes.remove(node)  # ``graph.remove`` of onnx_ir 1.1 looks at all outputs of the graph each time
    for value in dict.fromkeys([*inputs, *release_captured(node)]):
        drop_if_unused(value)


def release_captured(node: ir.Node) -> list[ir.Value]:
    """Let the subgraphs of a node that was removed read nothing any more, and return what they read from outside."""
    released: list[ir.Value] = []
    for attribute in node.attributes.values():
        if attribute.is_ref() or attribute.type not in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
            continue
        graphs = [attribute.as_graph()] if attribute.type == ir.AttributeType.GRAPH else attribute.as_graphs()
        for graph in graphs:
            within = [graph, *graph.subgraphs()]
            for inner in graph.all_nodes():
                released += [value for value in inner.inputs if value is not None and value.graph not in within]
                for index in range(len(inner.inputs)):
                    inner.replace_input_with(index, None)
            released += [value for value in graph.outputs if value.graph not in within]
            for nested in within:
                nested.outputs.clear()
    return released


def bypass(node: ir.Node, index: int = 0) -> bool:
    """Let readers of a one-output node read its input ``index`` and remove the node; False where that cannot be."""
    source = node.inputs[index]
    if source is None or len([v for v in node.outputs if use_count(v) or v.is_graph_output()]) > 1:
        return False
    if not replace_uses(node.outputs[0], source):
        return False
    remove_node(node)
    return True


def insert_before(anchor: ir.Node, op_type: str, inputs: Sequence[ir.Value | None], **options: Any) -> ir.Node:
    """Create a node (see :func:`new_node`) and put it just before ``anchor``."""
    node = new_node(graph_of(anchor), op_type, inputs, **options)
    graph_of(anchor).insert_before(anchor, node)
    return node


def insert_after(anchor: ir.Node, op_type: str, inputs: Sequence[ir.Value | None], **options: Any) -> ir.Node:
    """Create a node (see :func:`new_node`) and put it just after ``anchor``."""
    node = new_node(graph_of(anchor), op_type, inputs, **options)
    graph_of(anchor).insert_after(anchor, node)
    return node


def new_node(
    graph: ir.Graph,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    *,
    attributes: dict[str, Any] | None = None,
    domain: str = "",
    name: str | None = None,
    outputs: Sequence[str] | int = 1,
    like: Sequence[ir.Value] | None = None,
) -> ir.Node:
    """Create a node that is in no graph yet, with unique output names and a name of its own.

    Args:
        graph: where the node will stand; decides which names are free.
        op_type: operator; ``domain`` other than the default is added to the graph's opset imports when missing.
        inputs: values, None for a missing optional input.
        attributes: plain Python values, tensors or graphs.
        name: wished node name.
        outputs: wished names of the outputs, or their count.
        like: values whose type and shape the outputs take over, in order.
    """
    label = name or (like[0].name if like and like[0].name else op_type.lower())
    names = [label if i == 0 else f"{label}_{i}" for i in range(outputs)] if isinstance(outputs, int) else list(outputs)
    own = unique_node_name(graph, name or label)
    node = ir.node(op_type, inputs, attributes, domain=domain, num_outputs=len(names), name=own)
    for value, wish in zip(node.outputs, names, strict=True):
        value.name = unique_name(graph, wish)
    for value, model_value in zip(node.outputs, like or (), strict=False):
        value.type, value.shape = model_value.type, model_value.shape
    if domain:
        scope_of(graph).opset_imports.setdefault(domain, 1)
    return node


def forked(model: ir.Model, values: Sequence[ir.Value] = ()) -> tuple[ir.Model, list[ir.Value]]:
    """Return a copy of a model that shares its tensors, and the copies of the given values of the main graph."""
    copy = model.clone()
    twin: dict[int, ir.Value] = {}
    for mine, other in ((model.graph.inputs, copy.graph.inputs), (_initializers(model), _initializers(copy))):
        twin.update((id(a), b) for a, b in zip(mine, other, strict=True))
    for node, other_node in zip(model.graph, copy.graph, strict=True):
        twin.update((id(a), b) for a, b in zip(node.outputs, other_node.outputs, strict=True))
    return copy, [twin[id(value)] for value in values]


def _initializers(model: ir.Model) -> list[ir.Value]:
    return list(model.graph.initializers.values())


def replace_content(model: ir.Model, other: ir.Model) -> None:
    """Give a model the graph, functions and opset imports of another; its own metadata and producer stay."""
    model.graph = other.graph
    model.functions.clear()
    model.functions.update(other.functions)
    refresh_scopes(model)
