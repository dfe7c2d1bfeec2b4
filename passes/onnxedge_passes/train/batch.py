"""The batch of a graph that is trained: free, where the graph lets it be."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from onnxedge.api import Array, CannotRun, Session, forked, graphs_of, infer_shapes, model_inputs

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
