"""The gradients of operators that slide a window: convolutions and pools."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx

from onnxedge_passes.prune.gradient import Backward, Gradients, NoGradient, attribute


def convolution(back: Backward, node: onnx.NodeProto, grads: Gradients) -> Gradients:
    """Data: a transposed convolution. Weight: a product of the output's gradient with shifted copies of the input."""
    dy, (x, w, *_) = str(grads[0]), node.input
    shape, out, weight = back.shape(x), back.shape(node.output[0]), back.shape(w)
    rank, groups = len(shape) - 2, attribute(node, "group", 1)
    if attribute(node, "auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        raise NoGradient("Conv with auto_pad")
    kernel, pads = weight[2:], attribute(node, "pads", [0] * (2 * rank))
    strides, dilations = (attribute(node, name, [1] * rank) for name in ("strides", "dilations"))
    result: list[str | None] = [None, None, None]
    if back.needs(node, 0):
        reached = [
            s * (o - 1) + (k - 1) * d + 1 - b - e
            for s, o, k, d, b, e in zip(strides, out[2:], kernel, dilations, pads[:rank], pads[rank:], strict=True)
        ]
        more = [size - r for size, r in zip(shape[2:], reached, strict=True)]
        places = {"strides": strides, "dilations": dilations, "pads": pads, "output_padding": more}
        result[0] = back.make("ConvTranspose", dy, w, group=groups, **places)
    if back.needs(node, 1):
        result[1] = _weight_gradient(back, x, dy, (shape, out, weight), (groups, strides, dilations, pads))
    if back.needs(node, 2):
        result[2] = back.total(dy, [0, *range(2, rank + 2)], keep=False)
    return result


def _weight_gradient(
    back: Backward,
    x: str,
    dy: str,
    sizes: Sequence[tuple[int, ...]],
    geometry: tuple[int, list[int], list[int], list[int]],
) -> str:
    (n, ci, *_), (_, co, *space), weight = sizes
    groups, strides, dilations, pads = geometry
    kernel, rank, area = weight[2:], len(space), math.prod(space)
    if any(pads):
        x = back.make("Pad", x, np.array([0, 0, *pads[:rank], 0, 0, *pads[rank:]], np.int64))
    shifted = _taps(back, x, kernel, sizes[1], strides, dilations)
    taps = len(shifted)
    columns = back.make("Concat", *shifted, axis=1) if taps > 1 else shifted[0]
    if groups == 1:
        rows = back.make("Transpose", back.reshape(dy, [n, co, area]), perm=[0, 2, 1])
        product = back.make("MatMul", back.reshape(columns, [n, taps * ci, area]), rows)
        moved = back.make("Transpose", back.total(product, [0], keep=False), perm=[1, 0])  # [Co, K * Ci]
        return back.reshape(back.make("Transpose", back.reshape(moved, [co, taps, ci]), perm=[0, 2, 1]), weight)
    outer = co // groups
    rows = back.make("Transpose", back.reshape(dy, [n, 1, groups, outer, area]), perm=[0, 1, 2, 4, 3])
    product = back.make("MatMul", back.reshape(columns, [n, taps, groups, ci // groups, area]), rows)
    moved = back.make("Transpose", back.total(product, [0], keep=False), perm=[1, 3, 2, 0])  # [G, Co/G, Ci/G, K]
    return back.reshape(moved, weight)


def average_pool(back: Backward, node: onnx.NodeProto, grads: Gradients) -> Gradients:
    shape, out = back.shape(node.input[0]), back.shape(node.output[0])
    rank, kernel = len(shape) - 2, attribute(node, "kernel_shape", [])
    pads, strides = attribute(node, "pads", [0] * (2 * rank)), attribute(node, "strides", [1] * rank)
    plain = attribute(node, "auto_pad", b"NOTSET") == b"NOTSET" and not attribute(node, "ceil_mode", 0)
    if not plain or (any(pads) and not attribute(node, "count_include_pad", 0)) or attribute(node, "dilations", None):
        raise NoGradient("AveragePool that counts its padding, or rounds up")
    weight = np.full((shape[1], 1, *kernel), 1 / math.prod(kernel), np.float32)
    more = [
        size - (s * (o - 1) + k - b - e)
        for size, s, o, k, b, e in zip(shape[2:], strides, out[2:], kernel, pads[:rank], pads[rank:], strict=True)
    ]
    places = {"strides": strides, "pads": pads, "output_padding": more}
    return [back.make("ConvTranspose", str(grads[0]), weight, group=shape[1], **places)]


def transposed_convolution(back: Backward, node: onnx.NodeProto, grads: Gradients) -> Gradients:
    """Data: the convolution that it transposes. Weight: that of this convolution, with data and gradient exchanged."""
    dy, (x, w, *_) = str(grads[0]), node.input
    shape, out, weight = back.shape(x), back.shape(node.output[0]), back.shape(w)
    rank, groups = len(shape) - 2, attribute(node, "group", 1)
    pads = attribute(node, "pads", [0] * (2 * rank))
    strides, dilations, more = (
        attribute(node, name, [default] * rank)
        for name, default in (("strides", 1), ("dilations", 1), ("output_padding", 0))
    )
    automatic = attribute(node, "auto_pad", b"NOTSET") != b"NOTSET" or attribute(node, "output_shape", None)
    if automatic or any(m >= s for m, s in zip(more, strides, strict=True)):
        raise NoGradient("ConvTranspose with a given output shape, or more padding than a stride")
    result: list[str | None] = [None, None, None]
    if back.needs(node, 0):
        result[0] = back.make("Conv", dy, w, group=groups, strides=strides, dilations=dilations, pads=pads)
    if back.needs(node, 1):
        result[1] = _weight_gradient(back, dy, x, (out, shape, weight), (groups, strides, dilations, pads))
    if back.needs(node, 2):
        result[2] = back.total(dy, [0, *range(2, rank + 2)], keep=False)
    return result


def max_pool(back: Backward, node: onnx.NodeProto, grads: Gradients) -> Gradients:
    """Give the gradient to the places that hold the maximum, in equal parts where there are several."""
    shape, out = back.shape(node.input[0]), back.shape(node.output[0])
    channels, rank, kernel = shape[1], len(shape) - 2, attribute(node, "kernel_shape", [])
    pads = attribute(node, "pads", [0] * (2 * rank))
    strides, dilations = (attribute(node, name, [1] * rank) for name in ("strides", "dilations"))
    if attribute(node, "auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        raise NoGradient("MaxPool with auto_pad")
    reached = [s * (o - 1) + (k - 1) * d + 1 for s, o, k, d in zip(strides, out[2:], kernel, dilations, strict=True)]
    before = [0, 0, *pads[:rank]]
    after = [0, 0, *(r - b - size for r, b, size in zip(reached, pads[:rank], shape[2:], strict=True))]
    low = np.array(np.finfo(np.float32).min, np.float32)
    x = back.make("Pad", node.input[0], np.array(before + after, np.int64), low)
    taps = [
        back.make("Unsqueeze", tap, np.array([2], np.int64)) for tap in _taps(back, x, kernel, out, strides, dilations)
    ]
    columns = back.make("Concat", *taps, axis=2)  # [N, C, K, *out]
    top = back.make("Unsqueeze", node.output[0], np.array([2], np.int64))
    holds = back.make("Cast", back.make("Equal", columns, top), to=onnx.TensorProto.FLOAT)
    part = back.make("Div", back.make("Unsqueeze", str(grads[0]), np.array([2], np.int64)), back.total(holds, [2]))
    spread = back.reshape(back.make("Mul", holds, part), [shape[0], channels * len(taps), *out[2:]])
    places = np.tile(np.eye(len(taps), dtype=np.float32), (channels, 1)).reshape(-1, 1, *kernel)
    dx = back.make("ConvTranspose", spread, places, group=channels, strides=strides, dilations=dilations)
    return [back.make("Pad", dx, np.array([-n for n in before + after], np.int64))]


def _taps(
    back: Backward, x: str, kernel: Sequence[int], out: Sequence[int], strides: list[int], dilations: list[int]
) -> list[str]:
    """Return for each element of a kernel the inputs that it meets, in the output's shape."""
    taps, rank = [], len(kernel)
    for offset in np.ndindex(*kernel):
        starts = [o * d for o, d in zip(offset, dilations, strict=True)]
        ends = [start + (size - 1) * s + 1 for start, size, s in zip(starts, out[2:], strides, strict=True)]
        taps.append(back.slices(x, range(2, rank + 2), starts, ends, strides))
    return taps
