"""Sizes of the axes of a value, from what shape inference knows and from the shapes that the graph computes.

A size that is not known stands for itself, as a value and an axis, so that two that are the same are seen to be.
Source: own.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import onnx_ir as ir

from onnxedge.api import constant, is_standard
from onnxedge_passes.cleanup.worklist import input_at

Size = Hashable  #: an int, or anything that stands for one size that is known when the model runs
_DEEP = 24  #: nodes of the longest computation of a shape that is followed


def sizes(value: ir.Value) -> list[Size] | None:
    """Return the size of each dimension, None where the rank is not known; a graph output's shape is not believed."""
    node = value.producer()
    computed = _ASKED[node.op_type](node) if node is not None and node.op_type in _ASKED and is_standard(node) else None
    shape = None if value.is_graph_output() else value.shape
    if shape is None:
        return [_own(value, axis, size) for axis, size in enumerate(computed)] if computed is not None else None
    found: list[Size] = []
    for axis, dim in enumerate(shape):
        known: Size = dim if isinstance(dim, int) else dim.value
        if computed is not None and len(computed) == len(shape) and computed[axis] != -1 and not is_sure(known):
            known = computed[axis]
        found.append(_own(value, axis, known))
    return found


def _own(value: ir.Value, axis: int, size: Size) -> Size:
    return (value, axis) if size is None or size == -1 else size


def _shape_elements(node: ir.Node) -> list[Size] | None:
    """Return what a Reshape asks for: sizes, -1 where the rest goes."""
    asked = elements(input_at(node, 1))
    data = node.inputs[0]
    if asked is None or data is None or node.attributes.get_int("allowzero", 0) != 0:
        return asked
    have = data.shape
    return [
        _dim(data, axis, have[axis]) if size == 0 and have is not None and axis < len(have) else size
        for axis, size in enumerate(asked)
    ]


def _tiled(node: ir.Node) -> list[Size] | None:
    """Return what a Tile makes of sizes, -1 where that is not known."""
    repeats, source = constant(input_at(node, 1)), node.inputs[0]
    if repeats is None or source is None or source.shape is None or repeats.size != len(source.shape):
        return None
    pairs = zip(source.shape, (int(count) for count in repeats), strict=True)
    dims = [_dim(source, axis, d * n if isinstance(d, int) else d) for axis, (d, n) in enumerate(pairs)]
    return [size if isinstance(size, int) or count == 1 else -1 for size, count in zip(dims, repeats, strict=True)]


_ASKED = {"Reshape": _shape_elements, "Tile": _tiled}


def elements(value: ir.Value | None, left: int = _DEEP) -> list[Size] | None:
    """Return the integers of a shape that the graph computes, one by one, sizes of other values among them."""
    array = constant(value)
    if array is not None:
        return [int(d) for d in array.ravel()] if array.size <= 64 and array.dtype.kind == "i" else None
    node = value.producer() if value is not None else None
    if node is None or not is_standard(node) or left <= 0 or not node.inputs or node.inputs[0] is None:
        return None
    if node.op_type == "Shape":
        have = node.inputs[0].shape
        start, end = (node.attributes.get_int(key, default) for key, default in (("start", 0), ("end", 64)))
        return [_dim(node.inputs[0], a, d) for a, d in enumerate(have)][start:end] if have is not None else None
    inner = [elements(source, left - 1) for source in node.inputs]
    data = inner[0]
    if node.op_type == "Concat":
        return None if any(part is None for part in inner) else [size for part in inner for size in part or []]
    if node.op_type == "Cast":
        return data if node.attributes.get_int("to", 0) in (ir.DataType.INT64, ir.DataType.INT32) else None
    if node.op_type in ("Squeeze", "Unsqueeze", "Identity", "Reshape"):
        return data
    where = inner[1] if len(inner) > 1 else None
    if node.op_type == "Slice" and data is not None:
        return _sliced(node, data, inner)
    if node.op_type == "Gather" and data is not None and where is not None:
        inside = all(isinstance(i, int) and -len(data) <= i < len(data) for i in where)
        return [data[i] for i in where if isinstance(i, int)] if inside else None
    return None


def _sliced(node: ir.Node, data: list[Size], inner: Sequence[list[Size] | None]) -> list[Size] | None:
    if len(inner) < 3:
        bounds = [node.attributes.get_ints(key, ()) for key in ("starts", "ends")]
        return data[bounds[0][0] : bounds[1][0]] if all(len(b) == 1 for b in bounds) else None
    numbers = [part[0] if part is not None and len(part) == 1 else None for part in (*inner[1:3], *inner[4:5])]
    known = [number for number in numbers if isinstance(number, int)]
    return data[known[0] : known[1]] if len(known) == len(numbers) and known[2:] in ([], [1]) else None


def _dim(value: ir.Value, axis: int, dim: int | ir.SymbolicDim) -> Size:
    return _own(value, axis, dim if isinstance(dim, int) else dim.value)


def is_sure(size: Size) -> bool:
    """Tell whether a size is a number, or has a name that the model's author gave it."""
    return isinstance(size, int) or is_named(size)


def is_named(size: Size) -> bool:
    """Tell whether a size has the name that the model's author gave it, so that other names are other sizes."""
    return isinstance(size, str) and not size.startswith("unk__")
