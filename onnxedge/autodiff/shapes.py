"""Gradients of operators that move elements about."""

from __future__ import annotations

import math

import numpy as np
import onnx

from onnxedge.autodiff.backward import Array, Backward, Gradients, NoGradient, attribute, scalar

_PLACES = 1 << 22  #: elements of the matrix that stands for a Gather, at most
_ADDS = 16  #: opset from which elements can be added where they are scattered


def view(back: Backward, node: onnx.NodeProto, grads: Gradients) -> Gradients:
    """Put the gradient back into the shape of the input."""
    return [back.reshape(str(grads[0]), back.shape(node.input[0]))]


def dropout(back: Backward, node: onnx.NodeProto, grads: Gradients) -> Gradients:
    """Pass the gradient where nothing is dropped."""
    mode = back.operand(node, 2)
    if mode is not None and mode.any():
        raise NoGradient("Dropout while it drops")
    return [grads[0]]


def transpose(back: Backward, node: onnx.NodeProto, grads: Gradients) -> Gradients:
    """Turn the axes back."""
    rank = len(back.shape(node.input[0]))
    perm = attribute(node, "perm", list(reversed(range(rank))))
    return [back.make("Transpose", str(grads[0]), perm=np.argsort(perm).tolist())]


def concat(back: Backward, node: onnx.NodeProto, grads: Gradients) -> Gradients:
    """Cut the gradient where the inputs meet."""
    axis, result, start = attribute(node, "axis", 0), list[str | None](), 0
    for index, name in enumerate(node.input):
        stop = start + back.shape(name)[axis]
        wanted = back.needs(node, index)
        result.append(back.slices(str(grads[0]), [axis], [start], [stop], [1]) if wanted else None)
        start = stop
    return result


def split(back: Backward, node: onnx.NodeProto, grads: Gradients) -> Gradients:
    """Put the gradients side by side; 0 for a part that nothing depends on."""
    parts = [
        np.zeros(back.shape(name), np.float32) if gradient is None else gradient
        for name, gradient in zip(node.output, grads, strict=True)
    ]
    return [back.make("Concat", *parts, axis=attribute(node, "axis", 0))]


def slices(back: Backward, node: onnx.NodeProto, grads: Gradients) -> Gradients:
    """Put zeros around the gradient, and between its elements where there are steps."""
    given = [array.reshape(-1).tolist() for k in range(1, 5) if (array := back.operand(node, k)) is not None]
    shape, spread = back.shape(node.input[0]), list(back.shape(node.output[0]))
    if len(node.input) > 4 and not node.input[3]:
        given.insert(2, list(range(len(given[0]))))
    axes = given[2] if len(given) > 2 else list(range(len(given[0])))
    steps = given[3] if len(given) > 3 else [1] * len(axes)
    rank, dy, before = len(shape), str(grads[0]), [0] * len(shape)
    for axis, start, step in zip((a % rank for a in axes), given[0], steps, strict=True):
        if step < 1:
            raise NoGradient("Slice that runs backwards")
        before[axis] = min(max(start + shape[axis] if start < 0 else start, 0), shape[axis])
        if step > 1:
            apart = back.reshape(dy, [*spread[: axis + 1], 1, *spread[axis + 1 :]])
            pads = [0] * (2 * rank + 2)
            pads[rank + 1 + axis + 1] = step - 1
            spread[axis] *= step
            dy = back.reshape(back.make("Pad", apart, np.array(pads, np.int64)), spread)
    # a last step may reach past the end: its zeros are cut off by a negative pad
    after = [size - b - o for size, b, o in zip(shape, before, spread, strict=True)]
    return [back.make("Pad", dy, np.array(before + after, np.int64))]


def pad(back: Backward, node: onnx.NodeProto, grads: Gradients) -> Gradients:
    """Cut off what was put around, and put zeros where something was cut off."""
    given, named = back.operand(node, 1), back.operand(node, 3)
    if given is None or attribute(node, "mode", b"constant") != b"constant":
        raise NoGradient("Pad other than with a constant")
    shape = back.shape(node.input[0])
    rank, count = len(shape), given.size // 2
    axes = range(rank) if named is None else [int(axis) % rank for axis in named.reshape(-1)]
    pads = [0] * (2 * rank)
    for place, axis in enumerate(axes):
        pads[axis], pads[rank + axis] = int(given.reshape(-1)[place]), int(given.reshape(-1)[count + place])
    if min(pads, default=0) < 0:
        return [back.make("Pad", str(grads[0]), np.array([-n for n in pads], np.int64))]
    along = [axis for axis in range(rank) if pads[axis] or pads[rank + axis]]
    begins = [pads[axis] for axis in along]
    ends = [pads[axis] + shape[axis] for axis in along]
    return [back.slices(str(grads[0]), along, begins, ends, [1] * len(along)) if along else grads[0]]


def expand(back: Backward, node: onnx.NodeProto, grads: Gradients) -> Gradients:
    """Sum over the copies."""
    return [back.fit(str(grads[0]), back.shape(node.output[0]), node.input[0])]


def tile(back: Backward, node: onnx.NodeProto, grads: Gradients) -> Gradients:
    """Sum over the copies, which are an axis of their own before each axis."""
    shape, out = back.shape(node.input[0]), back.shape(node.output[0])
    if 0 in out or 0 in shape:
        raise NoGradient("Tile of nothing")
    apart = [part for size, wide in zip(shape, out, strict=True) for part in (wide // size, size)]
    axes = [axis for axis in range(0, len(apart), 2) if apart[axis] != 1]
    return [back.reshape(back.total(back.reshape(str(grads[0]), apart), axes), shape)]


def trilu(back: Backward, node: onnx.NodeProto, grads: Gradients) -> Gradients:
    """Leave out the same triangle."""
    return [back.make("Trilu", str(grads[0]), *node.input[1:], upper=attribute(node, "upper", 1))]


def gather(back: Backward, node: onnx.NodeProto, grads: Gradients) -> Gradients:
    """Sum what was taken from each place.

    As a product with a matrix of zeros and ones where the places are few and known, else by adding them one by one.
    """
    (x, indices), dy = node.input, str(grads[0])
    shape, out, known = back.shape(x), back.shape(node.output[0]), back.known.get(indices)
    axis, places = attribute(node, "axis", 0) % len(shape), back.shape(indices)
    rank, count = len(places), math.prod(places)
    rows, columns = math.prod(shape[:axis]), math.prod(out[axis + rank :])
    if known is not None and shape[axis] * count <= _PLACES:
        taken = np.zeros((shape[axis], count), np.float32)
        taken[known.reshape(-1), np.arange(count)] = 1
        return [back.reshape(back.make("MatMul", taken, back.reshape(dy, [rows, count, columns])), shape)]
    _needs_adding(back, node)
    moved = back.reshape(dy, [rows, count, columns])
    if rows != 1:
        moved = back.make("Transpose", moved, perm=[1, 0, 2])
    updates = back.reshape(moved, [count, rows * columns])
    size = np.array(shape[axis], np.int64)
    flat = back.reshape(back.make("Cast", indices, to=onnx.TensorProto.INT64), [count])
    flat = back.make("Where", back.make("Less", flat, np.array(0, np.int64)), back.make("Add", flat, size), flat)
    zeros = _zeros(back, [shape[axis], rows * columns])
    summed = back.make("ScatterND", zeros, back.reshape(flat, [count, 1]), updates, reduction="add")
    if rows == 1:
        return [back.reshape(summed, shape)]
    apart = back.reshape(summed, [shape[axis], rows, columns])
    return [back.reshape(back.make("Transpose", apart, perm=[1, 0, 2]), shape)]


def gather_elements(back: Backward, node: onnx.NodeProto, grads: Gradients) -> Gradients:
    """Put what was taken back; one element along an axis is found by comparing each place with its index."""
    (x, indices), dy = node.input, str(grads[0])
    shape, places = back.shape(x), back.shape(indices)
    axis = attribute(node, "axis", 0) % len(shape)
    if places == tuple(1 if a == axis else size for a, size in enumerate(shape)):
        count = np.arange(shape[axis], dtype=np.int64).reshape([-1] + [1] * (len(shape) - axis - 1))
        wide = back.make("Cast", indices, to=onnx.TensorProto.INT64)
        last = np.array(shape[axis], np.int64)
        wide = back.make("Where", back.make("Less", wide, np.array(0, np.int64)), back.make("Add", wide, last), wide)
        return [back.make("Mul", back.mask(back.make("Equal", wide, count)), dy)]
    _needs_adding(back, node)
    return [back.make("ScatterElements", _zeros(back, shape), indices, dy, axis=axis, reduction="add")]


def gather_places(back: Backward, node: onnx.NodeProto, grads: Gradients) -> Gradients:
    """GatherND: add each part of the gradient where it was taken."""
    if attribute(node, "batch_dims", 0):
        raise NoGradient("GatherND with batch axes")
    _needs_adding(back, node)
    zeros = _zeros(back, back.shape(node.input[0]))
    return [back.make("ScatterND", zeros, node.input[1], str(grads[0]), reduction="add")]


def scatter(back: Backward, node: onnx.NodeProto, grads: Gradients) -> Gradients:
    """Leave out what was overwritten; take from there what was put in."""
    dy, (_, indices, updates) = str(grads[0]), node.input
    if attribute(node, "reduction", b"none") != b"none":
        raise NoGradient(f"{node.op_type} with a reduction")
    result: list[str | None] = [None, None, None]
    along = {"axis": attribute(node, "axis", 0)} if node.op_type == "ScatterElements" else {}
    if back.needs(node, 0):
        zeros = _zeros(back, back.shape(updates))
        result[0] = back.make(node.op_type, dy, indices, zeros, **along)
    if back.needs(node, 2):
        result[2] = back.make(node.op_type.replace("Scatter", "Gather"), dy, indices, **along)
    return result


def top(back: Backward, node: onnx.NodeProto, grads: Gradients) -> Gradients:
    """Put the gradient where the elements were."""
    axis = attribute(node, "axis", -1)
    return [
        back.make("ScatterElements", _zeros(back, back.shape(node.input[0])), node.output[1], str(grads[0]), axis=axis)
    ]


def _needs_adding(back: Backward, node: onnx.NodeProto) -> None:
    if back.opset < _ADDS:
        raise NoGradient(f"{node.op_type} at places computed at run time, below opset {_ADDS}")


def _zeros(back: Backward, shape: list[int] | tuple[int, ...]) -> str:
    size: Array = np.array(shape, np.int64)
    return back.make("Expand", scalar(0), size)
