"""The lengths that GroupQueryAttention wants as inputs, from the shape of a value that all blocks can see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard

import numpy as np
import onnx_ir as ir

from onnxedge.api import Array, graph_of, insert_before, new_initializer
from onnxedge_passes.cleanup.worklist import node_opset
from onnxedge_passes.fuse.attention.axes import Axis, expanded, length
from onnxedge_passes.fuse.attention.shapes import Size, is_named


def lengths(node: ir.Node, query: ir.Value, batch: Axis, tokens: Axis) -> tuple[ir.Value, ir.Value]:
    """Return the last key's index for each of the batch, int32 ``[B]``, and the number of keys, int32.

    The number is computed as the largest of the batch and one more, so that the operator says what is wrong with an
    empty batch: on a number above 0 it divides by the size of the batch and ends the process (ONNX Runtime 1.31).
    """
    rows, columns = length(batch), length(tokens)
    if rows is not None and columns is not None:
        return _constant(node, np.full(rows, columns - 1, np.int32)), _constant(node, np.array(columns, np.int32))
    source, places = _source(node, query, batch, tokens)
    count = _constant(node, np.array([rows])) if rows is not None else _size(node, source, places[0])
    if columns is not None:
        one = _constant(node, np.array([columns - 1], np.int32))
        last = _made(node, "Expand", [one, count], ir.DataType.INT32, [None])
    else:
        before = _made(node, "Sub", [_size(node, source, places[1]), _constant(node, np.array([1]))])
        each = _made(node, "Expand", [before, count], dims=[None])
        last = _made(node, "Cast", [each], ir.DataType.INT32, [None], to=int(ir.DataType.INT32))
    most = _made(node, "ReduceMax", [last], ir.DataType.INT32, [], keepdims=0)
    return last, _made(node, "Add", [most, _constant(node, np.array(1, np.int32))], ir.DataType.INT32, [])


def _source(node: ir.Node, query: ir.Value, batch: Axis, tokens: Axis) -> tuple[ir.Value, tuple[int, int]]:
    """Return a value with both axes, and their places: an input of the graph where there is one."""
    free = [axis for axis in (batch, tokens) if length(axis) is None]
    wanted = [[factor.size for factor in expanded(axis)] for axis in free]
    for value in graph_of(node).inputs:
        names = [dim.value if isinstance(dim, ir.SymbolicDim) else None for dim in value.shape or ()]
        at = [names.index(sizes[0]) for sizes in wanted if len(sizes) == 1 and _is_among(sizes[0], names)]
        if len(at) == len(free):
            return value, (at[0], at[-1])
    return query, (0, 1)


def _is_among(size: Size, names: Sequence[str | None]) -> TypeGuard[str]:
    return is_named(size) and size in names


def _constant(node: ir.Node, array: Array) -> ir.Value:
    return new_initializer(graph_of(node), array, "attention_lengths")


def _size(node: ir.Node, value: ir.Value, axis: int) -> ir.Value:
    if node_opset(node) >= 15:
        return _made(node, "Shape", [value], start=axis, end=axis + 1)
    shape = _made(node, "Shape", [value], dims=[None])
    return _made(node, "Gather", [shape, _constant(node, np.array([axis]))])


def _made(
    node: ir.Node,
    op_type: str,
    inputs: Sequence[ir.Value],
    dtype: ir.DataType = ir.DataType.INT64,
    dims: Sequence[int | None] = (1,),
    **attributes: int,
) -> ir.Value:
    """Put a node before the block and return its output, of one element where nothing else is said."""
    made = insert_before(node, op_type, list(inputs), attributes=attributes, outputs=["attention_lengths"])
    value = made.outputs[0]
    value.type, value.shape = ir.TensorType(dtype), ir.Shape(dims)
    return value
