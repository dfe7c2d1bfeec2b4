"""Gradients of convolutions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx

from onnxedge.autodiff.backward import Backward, Gradients, NoGradient, attribute
from onnxedge.autodiff.geometry import Geometry, geometry
from onnxedge.autodiff.pools import taps

_SHORT = 4  #: longest stride whose phases are taken one by one


def convolution(back: Backward, node: onnx.NodeProto, grads: Gradients) -> Gradients:
    """Data: a transposed convolution. Weight: a product of the output's gradient with shifted copies of the input."""
    dy, (x, w, *_) = str(grads[0]), node.input
    shape, out, weight = back.shape(x), back.shape(node.output[0]), back.shape(w)
    places, groups = geometry(node, shape[2:], out[2:], weight[2:]), attribute(node, "group", 1)
    result: list[str | None] = [None, None, None]
    if back.needs(node, 0):
        result[0] = _data_gradient(back, dy, w, places, groups)
    if back.needs(node, 1):
        result[1] = _weight_gradient(back, x, dy, (shape, out, weight), places, groups)
    if back.needs(node, 2):
        result[2] = back.total(dy, [0, *range(2, places.rank + 2)], keep=False)
    return result


def _data_gradient(back: Backward, dy: str, w: str, places: Geometry, groups: int) -> str:
    rank = places.rank
    if groups == 1 and {*places.kernel, *places.strides} == {1} and not any(places.pads):
        return back.make("Conv", dy, back.make("Transpose", w, perm=[1, 0, *range(2, rank + 2)]))
    axes = zip(places.size, places.reached, places.begins, places.ends, strict=True)
    more = [n - (r - b - e) for n, r, b, e in axes]
    options = {"strides": list(places.strides), "dilations": list(places.dilations), "pads": places.pads}
    if any(extra >= stride for extra, stride in zip(more, places.strides, strict=True)) or min(more) < 0:
        raise NoGradient("Conv that leaves out more of its input than a stride")
    return back.make("ConvTranspose", dy, w, group=groups, output_padding=more, **options)


def transposed_convolution(back: Backward, node: onnx.NodeProto, grads: Gradients) -> Gradients:
    """Data: the convolution that it transposes. Weight: that of this convolution, with data and gradient exchanged."""
    dy, (x, w, *_) = str(grads[0]), node.input
    shape, out, weight = back.shape(x), back.shape(node.output[0]), back.shape(w)
    groups, more = attribute(node, "group", 1), attribute(node, "output_padding", None) or [0]
    places = geometry(node, out[2:], shape[2:], weight[2:])
    automatic = attribute(node, "auto_pad", b"NOTSET") != b"NOTSET" or attribute(node, "output_shape", None)
    if automatic or any(m >= s for m, s in zip(more, places.strides, strict=False)):
        raise NoGradient("ConvTranspose with a given output shape, or more padding than a stride")
    options = {"strides": list(places.strides), "dilations": list(places.dilations), "pads": places.pads}
    result: list[str | None] = [None, None, None]
    if back.needs(node, 0):
        result[0] = back.make("Conv", dy, w, group=groups, **options)
    if back.needs(node, 1):
        result[1] = _weight_gradient(back, dy, x, (out, shape, weight), places, groups)
    if back.needs(node, 2):
        result[2] = back.total(dy, [0, *range(2, places.rank + 2)], keep=False)
    return result


Shapes = tuple[Sequence[int], Sequence[int], Sequence[int]]  #: of input, output and weight


def _weight_gradient(back: Backward, x: str, dy: str, shapes: Shapes, places: Geometry, groups: int) -> str:
    if places.rank <= 2 and max(places.strides) <= _SHORT:
        return _by_phases(back, x, dy, shapes, places, groups)
    return (_by_taps if groups > 1 or places.rank > 2 else _by_convolution)(back, x, dy, shapes, places, groups)


def _by_taps(back: Backward, x: str, dy: str, shapes: Shapes, places: Geometry, groups: int) -> str:
    """Multiply the gradient with what each element of the kernel meets."""
    (n, ci, *_), (_, co, *space), weight = shapes
    outer, count, area = co // groups, math.prod(places.kernel), math.prod(space)
    if any(places.pads):
        x = back.make("Pad", x, np.array([0, 0, *places.begins, 0, 0, *places.ends], np.int64))
    columns = back.reshape(back.concat(taps(back, x, places), 1), [n, count, groups, ci // groups, area])
    rows = back.make("Transpose", back.reshape(dy, [n, 1, groups, outer, area]), perm=[0, 1, 2, 4, 3])
    product = back.make("MatMul", columns, rows)
    moved = back.make("Transpose", back.total(product, [0], keep=False), perm=[1, 3, 2, 0])  # [G, Co/G, Ci/G, K]
    return back.reshape(moved, weight)


def _by_convolution(back: Backward, x: str, dy: str, shapes: Shapes, places: Geometry, _: int) -> str:
    """Convolve the input with the output's gradient, strides for dilations, samples for channels."""
    rank, weight = places.rank, shapes[2]
    turn = [1, 0, *range(2, rank + 2)]
    options = {"pads": places.pads, "dilations": list(places.strides), "strides": list(places.dilations)}
    made = back.make("Conv", back.make("Transpose", x, perm=turn), back.make("Transpose", dy, perm=turn), **options)
    axes = list(range(2, rank + 2))  # what a stride left out makes a few elements more
    cut = back.slices(made, axes, [0] * rank, list(weight[2:]), [1] * rank)
    return back.make("Transpose", cut, perm=turn)


def _by_phases(back: Backward, x: str, dy: str, shapes: Shapes, places: Geometry, groups: int) -> str:
    """Take every s-th row and column of the input, from each of the first s: between those there are no strides."""
    (n, ci, *_), (_, co, *_), weight = shapes
    (h, w), (oh, ow) = (_two(value) for value in (places.size, places.out))
    rows, columns = _phases(places, 0 if places.rank == 2 else None), _phases(places, places.rank - 1)
    strides = _two(places.strides)
    if max(strides) > 1:
        x = back.reshape(x, [n, ci, h, w])
    lines, order = [], [[tap for _, found in phases for tap, _ in found] for phases in (rows, columns)]
    for top, down in rows:
        line = []
        for left, right in columns:
            size = (-(-max(h - top, 0) // strides[0]), -(-max(w - left, 0) // strides[1]))
            shifts = [shift for _, shift in down], [shift for _, shift in right]
            if 0 in size:
                zeros = np.zeros((co, weight[1], len(down), len(right)), np.float32)
                line.append(back.constant(zeros))
                continue
            part = x if strides == (1, 1) else back.slices(x, [2, 3], [top, left], [h, w], strides)
            line.append(_by_shifts(back, part, dy, (n, ci, *size), (n, co, oh, ow), groups, shifts))
        lines.append(back.concat(line, 3))
    result = back.concat(lines, 2)
    for axis, places_of in zip((2, 3), order, strict=True):
        if places_of != sorted(places_of):
            result = back.make("Gather", result, np.argsort(places_of), axis=axis)
    return result if len(weight) == 4 else back.reshape(result, weight)


def _phases(places: Geometry, axis: int | None) -> list[tuple[int, list[tuple[int, int]]]]:
    """Return for each phase of a stride the elements of the kernel that meet it, and how far each is shifted."""
    if axis is None:
        return [(0, [(0, 0)])]
    stride, found = places.strides[axis], dict[int, list[tuple[int, int]]]()
    for tap in range(places.kernel[axis]):
        shift, phase = divmod(tap * places.dilations[axis] - places.begins[axis], stride)
        found.setdefault(phase, []).append((tap, shift))
    return list(found.items())


_Four = tuple[int, int, int, int]


def _by_shifts(
    back: Backward, x: str, dy: str, size: _Four, out: _Four, groups: int, shifts: tuple[list[int], list[int]]
) -> str:
    """Return [Co, Ci/G, rows, columns]: sums of the gradient times the input, shifted by some rows and some columns.

    With images laid flat and rows of equal length R, a shift by i rows and j columns is one by ``i R + j``, of which
    the gradient takes the first part and the input the second: as many copies as rows and columns, not as pairs of
    them, and one product. What would come round from the next row is set to 0 before.
    """
    (n, ci, h, w), (_, co, oh, ow), (down, right) = size, out, shifts
    row, first = max(w, ow), min(down)
    ahead = max(0, *(first * row + shift for shift in right))
    theirs = [(shift - first) * row + ahead for shift in down]
    ours = [ahead - first * row - shift for shift in right]
    length = max(*(offset + oh * row for offset in theirs), *(offset + h * row for offset in ours))
    data = _flat(back, x, size, row)
    copies = []
    for shift in right:
        column = np.arange(row) - shift
        mask = ((column >= 0) & (column < ow)).astype(np.float32)
        copy = data
        if not mask[:w].all():
            masked = back.make("Mul", back.reshape(data, [n, ci, h, row]), mask)
            copy = back.reshape(masked, [n, ci, h * row])
        copies.append(copy)
    right_side = _apart(back, list(zip(ours, copies, strict=True)), (n, ci, h * row), length)
    gradient = _flat(back, dy, out, row)
    left_side = _apart(back, [(offset, gradient) for offset in theirs], (n, co, oh * row), length)
    counts = [n, groups] if groups > 1 else [n]
    left_side = back.reshape(left_side, [*counts, co // groups * len(down), length])
    right_side = back.reshape(right_side, [*counts, ci // groups * len(right), length])
    rank = len(counts) + 2
    turned = back.make("Transpose", right_side, perm=[*range(rank - 2), rank - 1, rank - 2])
    product = back.total(back.make("MatMul", left_side, turned), [0], keep=False)
    if len(down) == len(right) == 1:
        return back.reshape(product, [co, ci // groups, 1, 1])
    apart = back.reshape(product, [co, len(down), ci // groups, len(right)])
    return back.make("Transpose", apart, perm=[0, 2, 1, 3])


def _two(values: Sequence[int], default: int = 1) -> tuple[int, int]:
    """Return the numbers of two axes; one axis is a single row."""
    return (int(values[0]), int(values[1])) if len(values) == 2 else (default, int(values[0]))


def _flat(back: Backward, value: str, shape: _Four, row: int) -> str:
    """Return [N, C, H * row], zeros behind each row."""
    n, c, h, w = shape
    if w < row:
        value = back.make("Pad", back.reshape(value, shape), np.array([0, 0, 0, 0, 0, 0, 0, row - w], np.int64))
    return back.reshape(value, [n, c, h * row])


def _apart(back: Backward, parts: Sequence[tuple[int, str]], shape: tuple[int, int, int], length: int) -> str:
    """Put copies one behind the other, each in ``length`` elements from its offset on, zeros around."""
    n, c, size = shape
    pieces: list[str] = []
    gap = 0
    for offset, copy in parts:
        gap += offset
        pieces += [*_gap(back, n, c, gap), copy]
        gap = length - offset - size
    return back.concat([*pieces, *_gap(back, n, c, gap)], 2)


def _gap(back: Backward, n: int, c: int, length: int) -> list[str]:
    return [back.make("Expand", np.zeros(1, np.float32), np.array([n, c, length], np.int64))] if length else []
