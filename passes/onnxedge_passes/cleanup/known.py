"""Integers that the graph computes from shapes: known element by element, some of them only as 'that dimension'."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxedge.api import Array
from onnxedge_passes.cleanup.inference import Dims
from onnxedge_passes.cleanup.worklist import input_at, node_opset

_LIMIT = 64  #: elements of the largest array that is followed


@dataclass(frozen=True)
class Dim:
    """Stand for a dimension whose size is known when the model runs; equal keys are equal sizes."""

    key: Hashable


Lookup = Callable[[ir.Value], Array | None]


def propagate(
    node: ir.Node, elements: Lookup, dims: Callable[[ir.Value], Dims | None], names: Callable[[str], bool]
) -> Array | None:
    """Return the elements of a node's first output as an object array of ``int`` and :class:`Dim`, or None.

    Args:
        node: a node of the default domain.
        elements: returns what is known of a value's elements, constants included.
        dims: returns the dimensions of a value.
        names: tells whether a dimension's symbol stands for one size everywhere.
    """
    if node.op_type in ("Shape", "Size"):
        return _shape(node, dims, names)
    rule = _RULES.get(node.op_type)
    if rule is None or not node.inputs:
        return None
    inputs = [elements(value) if value is not None else None for value in node.inputs]
    if inputs[0] is None or any(array is not None and array.size > _LIMIT for array in inputs):
        return None
    try:
        result = rule(node, inputs)
    except (IndexError, ValueError, TypeError, OverflowError, ZeroDivisionError):
        return None  # what the runtime would refuse, too, or arithmetic on an unknown dimension
    return result if result is not None and result.size <= _LIMIT else None


def _shape(node: ir.Node, dims: Callable[[ir.Value], Dims | None], names: Callable[[str], bool]) -> Array | None:
    value = input_at(node, 0)
    have = dims(value) if value is not None else None
    if value is None or have is None:
        return None
    sizes = [
        d if isinstance(d, int) else Dim(d) if d is not None and names(d) else Dim((id(value), axis))
        for axis, d in enumerate(have)
    ]
    if node.op_type == "Size":
        if not all(isinstance(d, int) for d in sizes):
            return None
        return _objects(int(np.prod([d for d in sizes if isinstance(d, int)], dtype=object)) if sizes else 1)
    start, end = (node.attributes.get_int(key, default) for key, default in (("start", 0), ("end", len(sizes))))
    return _objects(sizes[start:end])


def _objects(items: Any) -> Array:
    if not isinstance(items, list):
        array = np.empty((), object)
        array[()] = items
        return array
    row = np.empty(len(items), object)
    row[:] = items
    return row


def _gather(node: ir.Node, inputs: list[Array | None]) -> Array | None:
    data, indices = inputs
    if data is None or indices is None or data.ndim != 1:
        return None
    return np.asarray(data[indices.astype(np.int64)] if indices.ndim else _objects(data[int(indices)]))


def _slice(node: ir.Node, inputs: list[Array | None]) -> Array | None:
    data = inputs[0]
    if data is None or data.ndim != 1:
        return None
    if node_opset(node) < 10:
        start, end = (node.attributes.get_ints(key, ()) for key in ("starts", "ends"))
        return data[start[0] : end[0]] if len(start) == 1 and len(end) == 1 else None
    parts: list[int | None] = []
    for index, given in enumerate(inputs[1:], start=1):
        if input_at(node, index) is not None and (given is None or given.size != 1):
            return None
        parts.append(int(given.item()) if given is not None else None)
    first, last, _, step = [*parts, None, None][:4]
    if first is None or last is None:
        return None
    return data[first : last if last > -(2**31) else None : step]


def _concat(node: ir.Node, inputs: list[Array | None]) -> Array | None:
    arrays = [array for array in inputs if array is not None and array.ndim == 1]
    return np.concatenate([a.astype(object) for a in arrays]) if len(arrays) == len(node.inputs) else None


def _unsqueeze(node: ir.Node, inputs: list[Array | None]) -> Array | None:
    data = inputs[0]
    return data.reshape(1) if data is not None and data.ndim == 0 else None


def _squeeze(node: ir.Node, inputs: list[Array | None]) -> Array | None:
    data = inputs[0]
    return data.reshape(()) if data is not None and data.shape == (1,) else None


def _reshape(node: ir.Node, inputs: list[Array | None]) -> Array | None:
    data, shape = inputs[0], inputs[1] if len(inputs) > 1 else None
    if data is None or shape is None or 0 in shape.tolist():
        return None
    return data.reshape([int(d) for d in shape])


def _cast(node: ir.Node, inputs: list[Array | None]) -> Array | None:
    return inputs[0] if node.attributes.get_int("to") in (ir.DataType.INT64, ir.DataType.INT32) else None


def _identity(node: ir.Node, inputs: list[Array | None]) -> Array | None:
    return inputs[0]


def _arithmetic(node: ir.Node, inputs: list[Array | None]) -> Array | None:
    left, right = inputs
    if left is None or right is None or node_opset(node) < 7:
        return None
    left, right = np.broadcast_arrays(left.astype(object), right.astype(object))
    flat = [_ARITHMETIC[node.op_type](a, b) for a, b in zip(left.ravel().tolist(), right.ravel().tolist(), strict=True)]
    return _objects(flat).reshape(left.shape)


def _truncated(a: int, b: int) -> int:
    quotient = abs(a) // abs(b)
    return quotient if (a < 0) == (b < 0) else -quotient


def _product(a: Any, b: Any) -> Any:
    """Multiply; a dimension times 1 is that dimension."""
    return a if b == 1 else b if a == 1 else a * b


_ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "Add": lambda a, b: a if b == 0 else a + b,
    "Sub": lambda a, b: a if b == 0 else a - b,
    "Mul": _product,
    "Div": lambda a, b: a if b == 1 else _truncated(a, b),
}

_RULES: dict[str, Callable[[ir.Node, list[Array | None]], Array | None]] = {
    "Gather": _gather,
    "Slice": _slice,
    "Concat": _concat,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Reshape": _reshape,
    "Cast": _cast,
    "Identity": _identity,
    **dict.fromkeys(_ARITHMETIC, _arithmetic),
}
