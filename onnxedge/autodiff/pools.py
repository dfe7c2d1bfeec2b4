"""Gradients of pools."""

from __future__ import annotations

import math

import numpy as np
import onnx

from onnxedge.autodiff.backward import Array, Backward, Gradients, NoGradient, attribute
from onnxedge.autodiff.geometry import Geometry, geometry

_ADDS = 16  #: opset from which elements can be added where they are scattered


def average_pool(back: Backward, node: onnx.NodeProto, grads: Gradients) -> Gradients:
    """Give each element its part of the means that it is in: a transposed convolution with ones."""
    shape, out = back.shape(node.input[0]), back.shape(node.output[0])
    kernel = attribute(node, "kernel_shape", [])
    places = geometry(node, shape[2:], out[2:], kernel)
    counts = _counts(places, attribute(node, "count_include_pad", 0) != 0)
    part = back.make("Mul", str(grads[0]), (1 / counts).astype(np.float32))
    ones = np.ones((shape[1], 1, *kernel), np.float32)
    options = {"strides": list(places.strides), "dilations": list(places.dilations)}
    spread = back.make("ConvTranspose", part, ones, group=shape[1], **options)
    after = [n - (r - b) for n, r, b in zip(shape[2:], places.reached, places.begins, strict=True)]
    pads = [0, 0, *(-b for b in places.begins), 0, 0, *after]
    return [back.make("Pad", spread, np.array(pads, np.int64)) if any(pads) else spread]


def _counts(places: Geometry, padded: bool) -> Array:
    """Return [*out]: how many elements each mean is of; of the padding too where ``padded``."""
    total = np.ones(places.out, np.float64)
    for axis in range(places.rank):
        first = np.arange(places.out[axis]) * places.strides[axis]
        inside = first[:, None] + np.arange(places.kernel[axis]) * places.dilations[axis] - places.begins[axis]
        low, high = (-places.begins[axis], places.size[axis] + places.ends[axis]) if padded else (0, places.size[axis])
        count = ((inside >= low) & (inside < high)).sum(1)
        total *= count.reshape([-1 if a == axis else 1 for a in range(places.rank)])
    if (total == 0).any():
        raise NoGradient("AveragePool with a window outside")
    return total


def max_pool(back: Backward, node: onnx.NodeProto, grads: Gradients) -> Gradients:
    """Add the gradient where the maximum was; where nothing can be added yet, in equal parts to all that hold it."""
    if back.opset < _ADDS:
        return _max_pool_by_taps(back, node, grads)
    x, shape = node.input[0], back.shape(node.input[0])
    options = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute if a.name != "storage_order"}
    options = {name: value.decode() if isinstance(value, bytes) else value for name, value in options.items()}
    _, places = back.several("MaxPool", 2, x, **options)
    flat = np.array([-1], np.int64)
    zeros = back.make("Expand", np.zeros(1, np.float32), np.array([math.prod(shape)], np.int64))
    operands = (back.make("Reshape", places, flat), back.make("Reshape", str(grads[0]), flat))
    return [back.reshape(back.make("ScatterElements", zeros, *operands, reduction="add"), shape)]


def _max_pool_by_taps(back: Backward, node: onnx.NodeProto, grads: Gradients) -> Gradients:
    shape, out = back.shape(node.input[0]), back.shape(node.output[0])
    channels, kernel = shape[1], attribute(node, "kernel_shape", [])
    places = geometry(node, shape[2:], out[2:], kernel)
    before = [0, 0, *places.begins]
    after = [0, 0, *(r - b - n for r, b, n in zip(places.reached, places.begins, shape[2:], strict=True))]
    low, axis = np.array(np.finfo(np.float32).min, np.float32), np.array([2], np.int64)
    x = back.make("Pad", node.input[0], np.array(before + after, np.int64), low)
    columns = back.concat([back.make("Unsqueeze", tap, axis) for tap in taps(back, x, places)], 2)  # [N, C, K, *out]
    holds = back.mask(back.make("Equal", columns, back.make("Unsqueeze", node.output[0], axis)))
    part = back.make("Div", back.make("Unsqueeze", str(grads[0]), axis), back.total(holds, [2]))
    count = math.prod(kernel)
    spread = back.reshape(back.make("Mul", holds, part), [shape[0], channels * count, *out[2:]])
    unit = np.tile(np.eye(count, dtype=np.float32), (channels, 1)).reshape(-1, 1, *kernel)
    options = {"strides": list(places.strides), "dilations": list(places.dilations)}
    dx = back.make("ConvTranspose", spread, unit, group=channels, **options)
    return [back.make("Pad", dx, np.array([-n for n in before + after], np.int64))]


def taps(back: Backward, x: str, places: Geometry) -> list[str]:
    """Return for each element of a kernel the elements of a padded input that it meets, in the output's shape."""
    found, axes = [], range(2, places.rank + 2)
    for offset in np.ndindex(*places.kernel):
        starts = [o * d for o, d in zip(offset, places.dilations, strict=True)]
        spans = zip(starts, places.out, places.strides, strict=True)
        ends = [start + (size - 1) * s + 1 for start, size, s in spans]
        found.append(back.slices(x, axes, starts, ends, places.strides))
    return found
