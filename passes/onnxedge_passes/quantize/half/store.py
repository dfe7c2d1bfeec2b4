"""Weights stored in 16 bits that the runtime makes float32 when it loads the model."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxedge.api import Context, Result, constant_tensor, insert_before, move_uses, new_initializer
from onnxedge_passes.quantize.storage import constants

from .rewrite import narrow

LEAST_SIZE = 256  #: elements under which one more node weighs more than what it saves


def store(model: ir.Model, half: ir.DataType, context: Context, *, least_db: float) -> Result:
    """Replace float32 constants of the main graph by narrower ones and a Cast each.

    Args:
        model: edited in place.
        half: FLOAT16 or BFLOAT16.
        context: for notes.
        least_db: signal to rounding of a weight, short of which it stays.
    """
    saved = count = 0
    graph = model.graph
    for value in constants(graph):
        tensor = constant_tensor(value)
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensor.size < LEAST_SIZE:
            continue
        if value.is_graph_output() or not value.uses():
            continue
        array = tensor.numpy()
        narrowed = narrow(array, half)
        reason = _loss(array, narrowed, least_db)
        if reason:
            context.note(value, f"kept as float32: {reason}")
            continue
        name = value.name or "weight"
        stored = new_initializer(graph, narrowed, f"{name}_{half.name.lower()}")
        to = {"to": int(ir.DataType.FLOAT)}
        cast = insert_before(graph[0], "Cast", [stored], attributes=to, like=[value])
        move_uses(value, cast.outputs[0])
        maker = value.producer()
        if maker is not None:
            graph.remove(maker, safe=True)
        elif not value.is_graph_input():
            del graph.initializers[name]
        count += 1
        saved += tensor.nbytes // 2
    if any(True for _ in graph.subgraphs()) or model.functions:
        context.note(None, "weights in subgraphs and local functions stay float32")
    summary = f"{count} weights stored in {half.name.lower()}, {saved} bytes saved" if count else "nothing to store"
    return Result(rewrites=count, summary=summary, figures={"stored_weights": count, "bytes_saved": saved})


def _loss(array: np.ndarray[tuple[int, ...], np.dtype[np.float32]], narrowed: np.ndarray, least_db: float) -> str:
    """Return why an array should not be rounded, empty where it may."""
    wide = narrowed.astype(np.float32)
    finite = np.isfinite(array)
    if not np.isfinite(wide[finite]).all():
        return f"it reaches {np.abs(array[finite]).max():.3g}, beyond the range"
    off = np.square((array - wide)[finite], dtype=np.float64).sum()
    power = np.square(array[finite], dtype=np.float64).sum()
    if off > 0 and 10 * np.log10(power / off) < least_db:
        return f"rounding leaves {10 * np.log10(power / off):.0f} dB"
    return ""
