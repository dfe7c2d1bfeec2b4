"""Weights stored as integers that the runtime turns into float when it loads the model."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from onnxedge.api import Context, constant_tensor, opset, weight_axes

from .emission import Emitter
from .rounding import aligned, round_weight

LEAST_SIZE = 1024  #: elements under which two more nodes weigh more than what they save


def storable(model: ir.Model) -> list[tuple[ir.Value, int]]:
    """Return the float32 constants of the main graph that are worth storing as integers, with their channel axis."""
    found: list[tuple[ir.Value, int]] = []
    for value in constants(model):
        tensor = constant_tensor(value)
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensor.size < LEAST_SIZE or value.is_graph_output():
            continue
        dims = list(tensor.shape.numpy())
        axis = _channel_axis(value, len(dims))
        if len(dims) >= 2 and 3 * tensor.size > 4 * dims[axis] + 200 and value.uses():
            found.append((value, axis))
    return found


def constants(model: ir.Model) -> list[ir.Value]:
    """Return initializers and outputs of Constant nodes of the main graph, in order."""
    nodes = [node.outputs[0] for node in model.graph if node.op_type == "Constant"]
    return [*model.graph.initializers.values(), *nodes]


def _channel_axis(value: ir.Value, rank: int) -> int:
    """Return the axis that has a scale each: a contraction's output axis, an embedding's rows, else the last."""
    for use in value.uses():
        axes = weight_axes(use.node)
        if axes is not None and axes.index == use.idx:
            return axes.output if rank == 2 or "Conv" in use.node.op_type else rank - 1
        if use.node.op_type == "Gather" and use.idx == 0:
            return use.node.attributes.get_int("axis", 0) % rank
    return rank - 1


def store(model: ir.Model, context: Context, emitter: Emitter, allowed: Callable[[ir.Value], bool]) -> tuple[int, int]:
    """Replace float constants by integers and the nodes that make them float again.

    Returns:
        Number of constants stored, bytes saved.
    """
    form = emitter.rules.folded
    if form == "dequantize" and opset(model) < 13:
        form = "cast-mul"
    count = saved = 0
    for value, axis in storable(model):
        tensor = constant_tensor(value)
        assert tensor is not None
        array = tensor.numpy()
        if not allowed(value):
            continue
        if not np.isfinite(array).all():
            context.note(value, "kept as float: holds infinities or NaN")
            continue
        weight = round_weight(array, axis)
        emitter.restore_constant(value, weight.codes, aligned(weight.scale, array.ndim, axis), axis, form)
        count += 1
        saved += 3 * array.size - 4 * weight.scale.size
    return count, saved
