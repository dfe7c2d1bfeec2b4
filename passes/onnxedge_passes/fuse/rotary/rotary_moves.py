"""What operators that move elements make of the features of a value, seen on samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxedge.api import Array, constant, is_standard
from onnxedge_passes.fuse.attention.shapes import Size, sizes

FAR = 8  #: nodes between a value and the same with its features moved
_LARGEST = 1 << 22  #: elements of the sample that shows how features are moved
_UNKNOWN = ((2, 3, 5, 7), (11, 5, 2, 3))  #: what unknown dimensions are in two samples, so that no constant is both


def is_moved(
    moved: ir.Value,
    x: ir.Value,
    function: Callable[[Array], Array],
    paired: bool = False,
    column: bool = False,
) -> bool:
    """Tell whether nodes that move elements make ``moved`` of ``x``, as a function does of the row of its features.

    Args:
        moved: what they make.
        x: ``[.., D]``.
        function: of the D features.
        paired: x is ``[.., D/2, 2]``.
        column: ``moved`` has a last axis of 1 besides.
    """
    dims = sizes(x)
    last = 2 if paired else 1
    if dims is None or not last <= len(dims) <= 5 or not all(isinstance(d, int) for d in dims[-last:]):
        return False
    for unknown in _UNKNOWN:
        chosen = dict(zip(dict.fromkeys(d for d in dims if not isinstance(d, int)), unknown, strict=False))
        shape = [d if isinstance(d, int) else chosen[d] for d in dims]
        count = int(np.prod(shape[-last:]))
        if count % 2 or count == 0 or np.prod(shape) > _LARGEST:
            return False
        row = np.arange(1.0, count + 1)
        sample = np.broadcast_to(row, (*shape[:-last], count)).reshape(shape)
        found = _evaluated(moved, x, sample, chosen, FAR)
        wanted = function(row)
        expected = np.broadcast_to(wanted, (*shape[:-last], len(wanted)))
        if found is None or not np.array_equal(found, expected[..., None] if column else expected):
            return False
    return True


def _evaluated(
    value: ir.Value | None, x: ir.Value, sample: Array, chosen: Mapping[Size, int], left: int
) -> Array | None:
    """Return what moves of features make of a sample of x, None where another operator or value takes part.

    Args:
        value: what the moves make.
        x: what they start with.
        sample: stands for x.
        chosen: what stands for its symbolic dimensions.
        left: how many nodes deep to look.
    """
    if value is x:
        return sample
    node = value.producer() if value is not None else None
    if value is None or node is None or left <= 0 or not is_standard(node) or node.op_type not in MOVES:
        return constant(value)
    inputs = [_evaluated(source, x, sample, chosen, left - 1) for source in node.inputs]
    if node.op_type == "Reshape" and inputs[1] is None:
        inputs[1] = _target(value, chosen)
    if any(array is None and source is not None for array, source in zip(inputs, node.inputs, strict=True)):
        return None
    try:
        return MOVES[node.op_type](node, inputs, next(i for i, v in enumerate(node.outputs) if v is value))
    except (ValueError, IndexError, TypeError):
        return None


def _target(value: ir.Value, chosen: Mapping[Size, int]) -> Array | None:
    """Return the shape of a value whose dimensions are known in terms of those that are chosen."""
    dims = sizes(value)
    known = [d if isinstance(d, int) else chosen.get(d) for d in dims or ()]
    return np.array(known) if known and None not in known else None


def _given(node: ir.Node, inputs: list[Any], index: int, name: str) -> list[int] | None:
    if index < len(inputs) and inputs[index] is not None:
        return [int(i) for i in np.ravel(inputs[index])]
    found = node.attributes.get_ints(name, None)
    return list(found) if found is not None else None


def _slice(node: ir.Node, inputs: list[Any], output: int) -> Array:
    data: Array = inputs[0]
    starts, ends = _given(node, inputs, 1, "starts") or [], _given(node, inputs, 2, "ends") or []
    axes = _given(node, inputs, 3, "axes") or list(range(len(starts)))
    steps = _given(node, inputs, 4, "steps") or [1] * len(starts)
    index = [slice(None)] * data.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step < 1:
            raise ValueError("backwards")
        index[axis] = slice(start, end, step)
    return data[tuple(index)]


def _split(node: ir.Node, inputs: list[Any], output: int) -> Array:
    axis, count = node.attributes.get_int("axis", 0), len(node.outputs)
    parts = _given(node, inputs, 1, "split")
    where = list(np.cumsum(parts)[:-1]) if parts is not None else count
    return np.asarray(np.split(inputs[0], where, axis=axis)[output])


def _squeeze(node: ir.Node, inputs: list[Any], output: int) -> Array:
    axes = _given(node, inputs, 1, "axes")
    return np.asarray(np.squeeze(inputs[0], tuple(axes) if axes is not None else None))


def _reshape(node: ir.Node, inputs: list[Any], output: int) -> Array:
    data, shape = inputs
    return np.asarray(np.reshape(data, [data.shape[i] if d == 0 else int(d) for i, d in enumerate(shape)]))


MOVES: dict[str, Callable[[ir.Node, list[Any], int], Array]] = {
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Reshape": _reshape,
    "Neg": lambda node, inputs, output: np.negative(inputs[0]),
    "Mul": lambda node, inputs, output: np.multiply(inputs[0], inputs[1]),
    "Identity": lambda node, inputs, output: np.asarray(inputs[0]),
    "Unsqueeze": lambda node, inputs, output: np.expand_dims(
        inputs[0], tuple(_given(node, inputs, 1, "axes") or [inputs[0].ndim])
    ),
    "Concat": lambda node, inputs, output: np.concatenate(inputs, axis=node.attributes.get_int("axis", 0)),
    "Gather": lambda node, inputs, output: np.take(inputs[0], inputs[1], axis=node.attributes.get_int("axis", 0)),
}
