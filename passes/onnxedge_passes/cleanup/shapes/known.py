"""Integers that the graph computes from shapes: followed element by element, as numbers or expressions in sizes."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxedge.api import Array, constant_tensor
from onnxedge_passes.cleanup.shapes import logic, symbolic
from onnxedge_passes.cleanup.shapes.symbolic import Expr, Item, symbol
from onnxedge_passes.cleanup.worklist import input_at, node_opset

LIMIT = 64  #: elements of the largest array that is followed
_CONSTANT_BYTES = 512  #: size of the largest constant that is looked at
INTEGERS = (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL)  #: what is followed; booleans are 0 and 1

Sizes = Callable[[ir.Value], list[Item] | None]
Inputs = list[Array | None]


def propagate(node: ir.Node, elements: Callable[[ir.Value], Array | None], sizes: Sizes) -> list[Array | None]:
    """Return the elements of a node's outputs as object arrays of :data:`symbolic.Item`, None where unknown.

    Args:
        node: a node of the default domain.
        elements: returns what is known of a value's elements, constants included.
        sizes: returns the sizes of a value's axes.
    """
    if node.op_type in ("Shape", "Size"):
        return [_shape(node, sizes)]
    if node.op_type not in _RULES or not node.inputs:
        return []
    inputs: Inputs = []
    for value in node.inputs:
        array = elements(value) if value is not None else None
        if array is None and value is not None and node.op_type != "Concat":
            return []
        inputs.append(array)
    if node.op_type == "Concat" and any(array is not None for array in inputs):
        inputs = [
            _unknown(value, sizes) if array is None else array for value, array in zip(node.inputs, inputs, strict=True)
        ]
    if any(array is not None and array.size > LIMIT for array in inputs):
        return []
    if any(array is None and value is not None for value, array in zip(node.inputs, inputs, strict=True)):
        return []
    try:
        result = _RULES[node.op_type](node, inputs)
    except (IndexError, ValueError, TypeError, OverflowError, ZeroDivisionError, AttributeError):
        return []  # what the runtime would refuse, too, or a size that has to be a number here
    results = result if isinstance(result, list) else [result]
    return [array if array is not None and array.size <= LIMIT else None for array in results]


def elements_of_constant(value: ir.Value) -> Array | None:
    """Return the elements of a small constant of integers, None for another value."""
    tensor = constant_tensor(value)
    if tensor is None or tensor.dtype not in INTEGERS or tensor.nbytes > _CONSTANT_BYTES:
        return None
    return tensor.numpy().astype(object)


def fits(found: Array, dtype: ir.DataType) -> bool:
    """Tell whether no number in an array overflows its type; expressions are sizes and do not."""
    if dtype == ir.DataType.BOOL:
        return all(isinstance(item, Expr) or 0 <= item <= 1 for item in found.ravel())
    limits = np.iinfo(dtype.numpy())
    return all(
        limits.min <= number <= limits.max
        for item in found.ravel()
        for number in ([factor for _, factor in item.terms] if isinstance(item, Expr) else [item])
    )


def _unknown(value: ir.Value | None, sizes: Sizes) -> Array | None:
    """Return a symbol for each element of a small value that nothing is known of."""
    have = sizes(value) if value is not None else None
    if have is None or len(have) != 1 or not isinstance(have[0], int) or have[0] > LIMIT:
        return None
    return _objects([symbol((value, "element", index), None) for index in range(have[0])])


def _shape(node: ir.Node, sizes: Sizes) -> Array | None:
    value = input_at(node, 0)
    have = sizes(value) if value is not None else None
    if have is None:
        return None
    if node.op_type == "Size":
        return _objects(symbolic.product(have))
    start, end = (node.attributes.get_int(key, default) for key, default in (("start", 0), ("end", len(have))))
    return _objects(have[start:end])


def _objects(items: Any) -> Array:
    if not isinstance(items, list):
        array = np.empty((), object)
        array[()] = items
        return array
    row = np.empty(len(items), object)
    row[:] = items
    return row


def _first(inputs: Inputs) -> Array:
    if inputs[0] is None:
        raise ValueError("input is missing")
    return inputs[0]


def _numbers(array: Array | None) -> list[int]:
    """Return the elements of an array, all of them plain numbers.

    Raises:
        TypeError: one is known as an expression only, or the array is missing.
    """
    if array is None or any(isinstance(item, Expr) for item in array.ravel()):
        raise TypeError("not known as numbers")
    return [int(item) for item in array.ravel()]


def _given(node: ir.Node, inputs: Inputs, index: int, name: str) -> list[int] | None:
    """Return an operand that is an input in newer opsets and an attribute in older ones."""
    if index < len(inputs) and inputs[index] is not None:
        return _numbers(inputs[index])
    found = node.attributes.get_ints(name, None)
    return list(found) if found is not None else None


def _gather(node: ir.Node, inputs: Inputs) -> Array:
    data, indices = _first(inputs), inputs[1]
    if indices is None:
        raise ValueError("indices are missing")
    where = np.array(_numbers(indices), np.int64).reshape(indices.shape)
    found = data.take(where, axis=node.attributes.get_int("axis", 0))
    return found if isinstance(found, np.ndarray) else _objects(found)


def _slice(node: ir.Node, inputs: Inputs) -> Array:
    data = _first(inputs)
    starts, ends = (_given(node, inputs, i, name) for i, name in ((1, "starts"), (2, "ends")))
    if starts is None or ends is None:
        raise ValueError("bounds are missing")
    axes = _given(node, inputs, 3, "axes") or list(range(len(starts)))
    steps = _given(node, inputs, 4, "steps") or [1] * len(starts)
    index = [slice(None)] * data.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        index[axis] = slice(start, end if end > -(2**31) or step > 0 else None, step)
    return data[tuple(index)]


def _concat(node: ir.Node, inputs: Inputs) -> Array:
    arrays = [array for array in inputs if array is not None]
    return np.concatenate(arrays, axis=node.attributes.get_int("axis", 0))


def _split(node: ir.Node, inputs: Inputs) -> list[Array | None]:
    data, axis, count = _first(inputs), node.attributes.get_int("axis", 0), len(node.outputs)
    parts = _given(node, inputs, 1, "split")
    if parts is None:
        size = -(-data.shape[axis] // count)
        parts = [min(size, data.shape[axis] - size * i) for i in range(count)]
    if sum(parts) != data.shape[axis] or len(parts) != count:
        raise ValueError("parts do not add up")
    return list(np.split(data, np.cumsum(parts)[:-1], axis=axis))


def _unsqueeze(node: ir.Node, inputs: Inputs) -> Array:
    axes = _given(node, inputs, 1, "axes")
    if axes is None:
        raise ValueError("axes are missing")
    return np.expand_dims(_first(inputs), tuple(axes))


def _squeeze(node: ir.Node, inputs: Inputs) -> Array:
    axes = _given(node, inputs, 1, "axes")
    return _first(inputs).squeeze(tuple(axes) if axes is not None else None)


def _reshape(node: ir.Node, inputs: Inputs) -> Array:
    data, shape = _first(inputs), _given(node, inputs, 1, "shape")
    if shape is None or 0 in shape:
        raise ValueError("zeros copy or not")
    return data.reshape(shape)


def _transpose(node: ir.Node, inputs: Inputs) -> Array:
    return _first(inputs).transpose(node.attributes.get_ints("perm", None))


def _expand(node: ir.Node, inputs: Inputs) -> Array:
    data, shape = _first(inputs), _numbers(inputs[1])
    if np.prod(shape, dtype=object) > LIMIT:
        raise ValueError("too large")
    return np.broadcast_to(data, np.broadcast_shapes(data.shape, tuple(shape)))


def _tile(node: ir.Node, inputs: Inputs) -> Array:
    data, repeats = _first(inputs), _numbers(inputs[1])
    if data.size * np.prod(repeats, dtype=object) > LIMIT or len(repeats) != data.ndim:
        raise ValueError("too large")
    return np.tile(data, repeats)


def _constant_of_shape(node: ir.Node, inputs: Inputs) -> Array:
    shape = _numbers(inputs[0])
    value = node.attributes.get_tensor("value", None)
    if value is None or value.dtype not in INTEGERS or np.prod(shape, dtype=object) > LIMIT:
        raise ValueError("no integers, or too large")
    return np.full(shape, int(value.numpy().item()), object)


def _range(node: ir.Node, inputs: Inputs) -> Array:
    start, limit, delta = (_numbers(array)[0] for array in inputs)
    items = range(start, limit, delta)
    if len(items) > LIMIT:
        raise ValueError("too large")
    return _objects(list(items))


def _scatter_nd(node: ir.Node, inputs: Inputs) -> Array:
    data, indices, updates = inputs
    if data is None or indices is None or updates is None or data.ndim != 1 or indices.shape[-1] != 1:
        raise ValueError("one axis only")
    if node.attributes.get_string("reduction", "none") != "none":
        raise ValueError("replacing only")
    made = data.copy()
    for index, item in zip(_numbers(indices), updates.ravel(), strict=True):
        made[index] = item
    return made


def _cast(node: ir.Node, inputs: Inputs) -> Array:
    to = node.attributes.get_int("to", 0)
    if to == ir.DataType.BOOL:
        return _mapped(lambda item: logic.equal(item, 0, opposite=True), _first(inputs))
    if to not in (ir.DataType.INT64, ir.DataType.INT32):
        raise ValueError("no integers")
    return _first(inputs)


def _identity(node: ir.Node, inputs: Inputs) -> Array:
    return _first(inputs)


def _mapped(function: Callable[..., Item], *arrays: Array) -> Array:
    """Apply a function of items to arrays, with broadcasting."""
    rows = np.broadcast_arrays(*arrays)
    flat = [function(*items) for items in zip(*(row.ravel().tolist() for row in rows), strict=True)]
    return _objects(flat).reshape(rows[0].shape)


def _elementwise(function: Callable[..., Item]) -> Callable[[ir.Node, Inputs], Array]:
    def rule(node: ir.Node, inputs: Inputs) -> Array:
        if node_opset(node) < 7 or any(array is None for array in inputs):
            raise ValueError("broadcasting by attribute")
        return _mapped(function, *(array for array in inputs if array is not None))

    return rule


def _folded(function: Callable[[Item, Item], Item]) -> Callable[..., Item]:
    return lambda *items: reduce(function, items)


def _mod(node: ir.Node, inputs: Inputs) -> Array:
    if node.attributes.get_int("fmod", 0):
        raise ValueError("another remainder")
    return _elementwise(symbolic.modulo)(node, inputs)


def _reduce(function: Callable[[Item, Item], Item], empty: int | None) -> Callable[[ir.Node, Inputs], Array]:
    def rule(node: ir.Node, inputs: Inputs) -> Array:
        data = _first(inputs)
        if data.ndim != 1 or (data.size == 0 and empty is None):
            raise ValueError("one axis only")
        axes = _given(node, inputs, 1, "axes")
        if axes not in (None, [0], [-1]) or (axes is None and node.attributes.get_int("noop_with_empty_axes", 0) != 0):
            raise ValueError("reduces nothing")
        items: list[Item] = [*([empty] if empty is not None else []), *data.tolist()]
        total = reduce(function, items)
        return _objects([total] if node.attributes.get_int("keepdims", 1) else total)

    return rule


_RULES: dict[str, Callable[[ir.Node, Inputs], Array | list[Array | None]]] = {
    "Gather": _gather,
    "Slice": _slice,
    "Concat": _concat,
    "Split": _split,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Reshape": _reshape,
    "Transpose": _transpose,
    "Expand": _expand,
    "Tile": _tile,
    "ConstantOfShape": _constant_of_shape,
    "Range": _range,
    "ScatterND": _scatter_nd,
    "Cast": _cast,
    "Identity": _identity,
    "Add": _elementwise(symbolic.add),
    "Sub": _elementwise(symbolic.subtract),
    "Mul": _elementwise(symbolic.multiply),
    "Div": _elementwise(symbolic.divide),
    "Mod": _mod,
    "Neg": _elementwise(symbolic.negate),
    "Abs": _elementwise(logic.absolute),
    "Min": _elementwise(_folded(symbolic.smaller)),
    "Max": _elementwise(_folded(symbolic.larger)),
    "Equal": _elementwise(logic.equal),
    "Less": _elementwise(logic.less),
    "Greater": _elementwise(lambda left, right: logic.less(right, left)),
    "LessOrEqual": _elementwise(lambda left, right: logic.less(right, left, opposite=True)),
    "GreaterOrEqual": _elementwise(lambda left, right: logic.less(left, right, opposite=True)),
    "And": _elementwise(logic.both),
    "Or": _elementwise(logic.either),
    "Not": _elementwise(logic.negation),
    "Where": _elementwise(logic.choice),
    "ReduceProd": _reduce(symbolic.multiply, 1),
    "ReduceSum": _reduce(symbolic.add, 0),
    "ReduceMax": _reduce(symbolic.larger, None),
    "ReduceMin": _reduce(symbolic.smaller, None),
}
