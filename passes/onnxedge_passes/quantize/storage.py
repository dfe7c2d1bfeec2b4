"""Weights stored as integers that the runtime turns into float when it loads the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx_ir as ir

from onnxedge.api import (
    Array,
    Context,
    constant_tensor,
    drop_if_unused,
    insert_before,
    new_initializer,
    weight_axes,
)
from onnxedge_passes.cleanup.worklist import graph_opset, root_graphs

from .emission import Emitter
from .rounding import aligned, round_weight

LEAST_SIZE = 1024  #: elements under which two more nodes weigh more than what they save
_RECURRENT = ("LSTM", "GRU", "RNN")
_DEQUANTIZE_OPSET = 13  #: from which DequantizeLinear knows channels


def storable(model: ir.Model) -> list[tuple[ir.Value, int]]:
    """Return the float32 constants that are worth storing as integers, with their channel axis.

    Those of bodies of If, Loop and Scan and of local functions, too: where the runtime makes a constant float when it
    loads the model, it does so there.
    """
    found: list[tuple[ir.Value, int]] = []
    for graph in _graphs(model):
        for value in constants(graph):
            tensor = constant_tensor(value)
            if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensor.size < LEAST_SIZE:
                continue
            dims = list(tensor.shape.numpy())
            axis = _channel_axis(value, len(dims))
            if value.is_graph_output() or not value.uses():
                continue
            if len(dims) >= 2 and 3 * tensor.size > 4 * dims[axis] + 200:
                found.append((value, axis))
    return found


def _graphs(model: ir.Model) -> Iterator[ir.Graph]:
    """Yield the main graph, those of the local functions, and all that stand in them."""
    for graph in root_graphs(model):
        yield graph
        yield from graph.subgraphs()


def constants(graph: ir.Graph) -> list[ir.Value]:
    """Return initializers and outputs of Constant nodes of a graph, in order; not those of graphs in it."""
    nodes = [node.outputs[0] for node in graph if node.op_type == "Constant"]
    return [*graph.initializers.values(), *nodes]


def _channel_axis(value: ir.Value, rank: int) -> int:
    """Return the axis with a scale each: a contraction's output axis, an embedding's rows, gates, else the last."""
    for use in value.uses():
        axes = weight_axes(use.node)
        if axes is not None and axes.index == use.idx:
            return axes.output if rank == 2 or "Conv" in use.node.op_type else rank - 1
        if use.node.op_type == "Gather" and use.idx == 0:
            return use.node.attributes.get_int("axis", 0) % rank
        if use.node.op_type in _RECURRENT and use.idx in (1, 2) and rank == 3:
            return 1
    return rank - 1


def store(model: ir.Model, context: Context, emitter: Emitter, allowed: Callable[[ir.Value], bool]) -> tuple[int, int]:
    """Replace float constants by integers and the nodes that make them float again.

    Returns:
        Number of constants stored, bytes saved.
    """
    count = saved = 0
    if emitter.rules.folded == "none":
        return count, saved
    for value, axis in storable(model):
        tensor = constant_tensor(value)
        assert tensor is not None
        if not allowed(value):
            continue
        array = tensor.numpy()
        if not np.isfinite(array).all():
            context.note(value, "kept as float: holds infinities or NaN")
            continue
        weight = round_weight(array, axis).like(emitter.chosen.get(value.name or ""))
        scale = aligned(weight.scale, array.ndim, axis)
        graph = _graph_of(value)
        form = emitter.rules.folded if graph_opset(graph) >= _DEQUANTIZE_OPSET else "cast-mul"
        if graph is model.graph:
            emitter.restore_constant(value, weight.codes, scale, axis, form)
        else:
            _restore(graph, value, weight.codes, scale, axis, form)
        count += 1
        saved += 3 * array.size - 4 * weight.scale.size
    return count, saved


def _graph_of(value: ir.Value) -> ir.Graph:
    maker = value.producer()
    graph = value.graph if maker is None else maker.graph
    graph = graph.graph if isinstance(graph, ir.Function) else graph
    assert isinstance(graph, ir.Graph)
    return graph


def _restore(graph: ir.Graph, value: ir.Value, codes: Array, scale: Array, axis: int, form: str) -> None:
    """Put integers and the nodes that make them float in the place of a constant of a body or a local function."""
    first, name = graph[0], value.name or "weight"
    stored = new_initializer(graph, codes, f"{name}_int8")
    factor = new_initializer(graph, scale.reshape(-1) if form == "dequantize" else scale, f"{name}_scale")
    if form == "dequantize":
        made = insert_before(first, "DequantizeLinear", [stored, factor], attributes={"axis": axis}, like=[value])
    else:
        floats = insert_before(first, "Cast", [stored], attributes={"to": int(ir.DataType.FLOAT)})
        made = insert_before(first, "Mul", [floats.outputs[0], factor], like=[value])
    value.replace_all_uses_with(made.outputs[0])
    drop_if_unused(value)
