"""How slots run through operators that only move elements: the same move on the array of slots."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import onnx_ir as ir

from onnxedge.api import Array, constant

from .slots import FIXED, Slots, compressed

_PRIMES = (7, 11, 13, 17, 19, 23)  #: stand for sizes that are not known
_LARGEST = 1 << 24  #: elements of an array of slots that is worked on


def _data(node: ir.Node, slots: Slots) -> Array | None:
    return slots.of.get(node.inputs[0]) if node.inputs and node.inputs[0] is not None else None


def _reshape(node: ir.Node, slots: Slots) -> bool:
    """Let channels through a view; sizes that are not known are tried with odd ones."""
    data = _data(node, slots)
    before = _sizes(node.inputs[0], data) if data is not None else None
    shape = node.outputs[0].shape
    if data is None or before is None or shape is None:
        return False
    source = node.inputs[0].shape if node.inputs[0] is not None else None
    known = {str(d.value): n for d, n in zip(source or (), before, strict=True) if not isinstance(d, int) and d.value}
    total = int(np.prod(before))
    after = [d if isinstance(d, int) else known.get(str(d.value), 0) if d.value else 0 for d in shape]
    if after.count(0) == 1:
        rest = int(np.prod([size for size in after if size]))
        after = [total // rest if size == 0 else size for size in after]
    if not 0 < total <= _LARGEST or int(np.prod(after)) != total:
        return False
    return slots.set(node.outputs[0], compressed(np.broadcast_to(data, before).reshape(after)))


def _sizes(value: ir.Value | None, data: Array) -> list[int] | None:
    """Return the sizes of a value's axes, primes for those that are not known; None where slots do not fit them."""
    if value is None or value.shape is None or len(value.shape) != data.ndim:
        return None
    primes = iter(_PRIMES)
    symbols: dict[str, int] = {}
    sizes: list[int] = []
    for dim, have in zip(value.shape, data.shape, strict=True):
        size = dim if isinstance(dim, int) else have if have > 1 else 0
        if not size and not isinstance(dim, int):
            size = symbols.get(str(dim.value), 0) if dim.value else 0
            size = size or next(primes, 29)
            if dim.value:
                symbols[str(dim.value)] = size
        if have not in (1, size):
            return None
        sizes.append(size)
    return sizes


def _transpose(node: ir.Node, slots: Slots) -> bool:
    data = _data(node, slots)
    if data is None:
        return False
    order = list(node.attributes.get_ints("perm", []) or range(data.ndim)[::-1])
    return slots.set(node.outputs[0], np.transpose(data, order))


def _ints(node: ir.Node, index: int, attribute: str) -> list[int] | None:
    """Return integers that are an input in newer opsets and an attribute in older ones; None if computed or absent."""
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is not None:
        array = constant(value)
        return None if array is None else [int(v) for v in array.reshape(-1)]
    found = node.attributes.get_ints(attribute, None)
    return None if found is None else list(found)


def _pad(node: ir.Node, slots: Slots) -> bool:
    """Let channels through padding with zeros, or with what is there, of axes along which they do not differ."""
    data = _data(node, slots)
    pads = _ints(node, 1, "pads")
    if data is None or pads is None or (len(node.inputs) > 3 and node.inputs[3] is not None):
        return False
    if len(pads) != 2 * data.ndim or any(p and data.shape[i % data.ndim] != 1 for i, p in enumerate(pads)):
        return False
    if node.attributes.get_string("mode", "constant") == "constant":
        fill = node.inputs[2] if len(node.inputs) > 2 else None
        array = constant(fill) if fill is not None else np.array(node.attributes.get_float("value", 0.0))
        if array is None or array.any():
            return False
    return slots.set(node.outputs[0], data)


def _size_along(value: ir.Value | None, axis: int) -> int | None:
    if value is None or value.shape is None:
        return None
    dim = value.shape[axis]
    return dim if isinstance(dim, int) else None


def _concat(node: ir.Node, slots: Slots) -> bool:
    """Put the slots of all parts side by side; along other axes they are joined."""
    rank = len(node.outputs[0].shape) if node.outputs[0].shape is not None else 0
    axis = node.attributes.get_int("axis", None)
    if not rank or axis is None or not any(v in slots.of for v in node.inputs if v is not None):
        return False
    axis %= rank
    parts: list[Array] = []
    for value in node.inputs:
        size = _size_along(value, axis)
        found = slots.of.get(value) if value is not None else None
        found = np.full([1] * rank, FIXED) if found is None else found
        if found.ndim != rank or (size is None and found.shape[axis] == 1):
            size = 1 if found.ndim == rank else None
        if size is None:
            return False
        parts.append(np.broadcast_to(found, [size if i == axis else n for i, n in enumerate(found.shape)]))
    if all(_alike(part, axis) for part in parts):  # channels lie along other axes
        joint = parts[0].take([0], axis=axis)
        for part in parts[1:]:
            joint = slots.join(joint, part.take([0], axis=axis))
        return slots.set(node.outputs[0], np.array(joint))
    if any(_size_along(v, axis) is None for v in node.inputs):
        return False
    shape = np.broadcast_shapes(*(part.take([0], axis=axis).shape for part in parts))
    whole = [np.broadcast_to(p, [p.shape[axis] if i == axis else n for i, n in enumerate(shape)]) for p in parts]
    return slots.set(node.outputs[0], np.concatenate(whole, axis=axis))


def _alike(part: Array, axis: int) -> bool:
    return bool((part == part.take([0], axis=axis)).all()) and part.size // part.shape[axis] > 1


def _slice(node: ir.Node, slots: Slots) -> bool:
    data = _data(node, slots)
    starts, ends = _ints(node, 1, "starts"), _ints(node, 2, "ends")
    if data is None or starts is None or ends is None:
        return False
    given = len(node.inputs) > 3 and node.inputs[3] is not None
    axes, steps = _ints(node, 3, "axes"), _ints(node, 4, "steps")
    if (given and axes is None) or (len(node.inputs) > 4 and node.inputs[4] is not None and steps is None):
        return False
    axes = [a % data.ndim for a in (axes if axes is not None else range(len(starts)))]
    cut: list[slice] = [slice(None)] * data.ndim
    for i, axis in enumerate(axes):
        if data.shape[axis] != 1:
            step = steps[i] if steps is not None else 1
            if step < 0:
                return False
            cut[axis] = slice(starts[i], ends[i], step)
    return slots.set(node.outputs[0], data[tuple(cut)])


def _split(node: ir.Node, slots: Slots) -> bool:
    data = _data(node, slots)
    if data is None:
        return False
    axis = node.attributes.get_int("axis", 0) % data.ndim
    sizes = [_size_along(v, axis) for v in node.outputs]
    known = [size or 0 for size in sizes]
    if data.shape[axis] != 1 and (None in sizes or sum(known) != data.shape[axis]):
        return False
    ends = np.cumsum(known)
    for output, size, end in zip(node.outputs, known, ends, strict=True):
        part = data if data.shape[axis] == 1 else data.take(range(end - size, end), axis=axis)
        slots.set(output, part)
    return True


def _gather(node: ir.Node, slots: Slots) -> bool:
    """Let channels through a choice along an axis on which they do not differ, or of constant positions."""
    data = _data(node, slots)
    if data is None or node.outputs[0].shape is None:
        return False
    axis = node.attributes.get_int("axis", 0) % data.ndim
    indices = constant(node.inputs[1])
    added = len(node.outputs[0].shape) - data.ndim + 1
    if data.shape[axis] == 1:
        return slots.set(node.outputs[0], data.reshape([*data.shape[:axis], *[1] * added, *data.shape[axis + 1 :]]))
    return indices is not None and slots.set(node.outputs[0], data.take(indices.astype(np.int64), axis=axis))


MOVES: Mapping[str, Callable[[ir.Node, Slots], bool]] = MappingProxyType(
    {
        "Reshape": _reshape,
        "Flatten": _reshape,
        "Squeeze": _reshape,
        "Unsqueeze": _reshape,
        "Transpose": _transpose,
        "Pad": _pad,
        "Concat": _concat,
        "Slice": _slice,
        "Split": _split,
        "Gather": _gather,
    }
)
