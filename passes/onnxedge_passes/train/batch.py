"""The batch of a graph that is trained: free, where the graph lets it be."""

from __future__ import annotations

from collections.abc import Mapping, Set

import numpy as np
import onnx_ir as ir

from onnxedge.api import (
    Array,
    CannotRun,
    Session,
    constant,
    forked,
    graph_of,
    graphs_of,
    infer_shapes,
    insert_before,
    is_standard,
    model_inputs,
    new_initializer,
    static_shape,
)

_TOLERANCE = 1e-3  #: of the largest output, between a batch and its samples one by one


def fixed_batch(model: ir.Model) -> int | None:
    """Return the size of axis 0 that the inputs of a model fix, None where it is free."""
    sizes = {spec.shape[0] for spec in model_inputs(model) if spec.shape}
    fixed = [size for size in sizes if isinstance(size, int)]
    return fixed[0] if fixed else None


def free_batch(model: ir.Model, rows: Mapping[str, Array], threads: int) -> bool:
    """Free the batch that a model fixes, in place; False, with nothing changed, where it computes something else then.

    Args:
        model: edited in place.
        rows: samples by input, [S, ...].
        threads: of ONNX Runtime.
    """
    size = fixed_batch(model)
    if size is None:
        return True
    trial, _ = forked(model)
    _free(trial, size)
    count = 2 * size
    feed = {name: np.concatenate([array[:count]] * count)[:count] for name, array in rows.items()}
    try:
        whole = Session(trial, threads=threads).run(feed)
        session = Session(model, threads=threads)
        parts = [session.run({n: a[i : i + size] for n, a in feed.items()}) for i in range(0, count, size)]
    except CannotRun:
        return False
    for name, array in whole.items():
        expected = np.concatenate([part[name] for part in parts]) if parts[0][name].ndim else parts[0][name]
        if expected.shape != array.shape or not np.allclose(
            array, expected, rtol=0, atol=_TOLERANCE * max(float(np.abs(expected).max()), 1e-6)
        ):
            return False
    _free(model, size)
    infer_shapes(model)
    return True


def _free(model: ir.Model, size: int) -> None:
    """Let axis 0 of inputs and outputs be free, and with it what has the size in it: shapes, tokens of a class."""
    fed = {value for value in model.graph.inputs if not value.is_initializer()}
    for node in list(model.graph):
        if not fed.intersection(node.inputs):
            continue
        fed.update(node.outputs)
        if not is_standard(node):
            continue
        if node.op_type in ("Reshape", "Expand"):
            _free_shape(node, size)
        elif node.op_type == "Concat" and size == 1:
            _repeat_constants(node, fed)
    for value in model.graph.inputs:
        if value.shape is not None and len(value.shape) and not value.is_initializer():
            value.shape = ir.Shape(["N", *list(value.shape)[1:]])
    for value in model.graph.outputs:
        if value.shape is not None and len(value.shape) and value.shape[0] == size:
            value.shape = ir.Shape(["N", *list(value.shape)[1:]])
    outputs = set(model.graph.outputs)
    for graph in graphs_of(model):
        for node in graph:
            for value in node.outputs:
                if value not in outputs:
                    value.shape = None


def _free_shape(node: ir.Node, size: int) -> None:
    """Let the first axis of what a shape makes be what is left, or what it was."""
    dims, whole = constant(node.inputs[1]), static_shape(node.outputs[0])
    if dims is None or not whole or whole[0] % size:
        return
    first = -1 if node.op_type == "Reshape" else 1
    shape = np.array([first, *whole[1:]], np.int64)
    if not np.array_equal(shape, dims):
        node.replace_input_with(1, new_initializer(graph_of(node), shape, f"{node.outputs[0].name}.shape"))


def _repeat_constants(node: ir.Node, fed: Set[ir.Value]) -> None:
    """Repeat constants, such as the token of a class, for each sample that they are put beside."""
    like = next(value for value in node.inputs if value in fed)
    for index, value in enumerate(node.inputs):
        shape = static_shape(value)
        if value is None or value in fed or not shape or shape[0] != 1 or not node.attributes.get_int("axis", 0):
            continue
        graph, one = graph_of(node), np.array([0], np.int64)
        count = insert_before(node, "Gather", [insert_before(node, "Shape", [like]).outputs[0], _held(graph, one)])
        rest = _held(graph, np.array(shape[1:], np.int64))
        whole = insert_before(node, "Concat", [count.outputs[0], rest], attributes={"axis": 0})
        node.replace_input_with(index, insert_before(node, "Expand", [value, whole.outputs[0]]).outputs[0])


def _held(graph: ir.Graph, array: Array) -> ir.Value:
    return new_initializer(graph, array, "batch")
