"""Gradients of reductions, softmax and normalizations."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx

from onnxedge.autodiff.backward import Array, Backward, Gradients, NoGradient, attribute, scalar


def reduction(back: Backward, node: onnx.NodeProto, grads: Gradients) -> Gradients:
    """Spread the gradient over what was reduced, by the slope of each element."""
    x, shape, out = node.input[0], back.shape(node.input[0]), back.shape(node.output[0])
    axes = _axes(back, node, len(shape))
    if axes is None:
        return [grads[0]]
    kept = tuple(1 if axis in axes else size for axis, size in enumerate(shape))

    def wide(name: str) -> str:
        return back.reshape(name, kept) if kept != out else name

    dy, whole = wide(str(grads[0])), np.array(shape, np.int64)
    match node.op_type:
        case "ReduceSum":
            return [back.make("Expand", dy, whole)]
        case "ReduceMean" | "GlobalAveragePool":
            count = max(math.prod(shape[axis] for axis in axes), 1)
            return [back.make("Expand", back.scale(dy, 1 / count), whole)]
        case "ReduceSumSquare":
            return [back.make("Mul", back.scale(dy, 2), x)]
        case "ReduceL1":
            return [back.make("Mul", dy, back.make("Sign", x))]
        case "ReduceL2":  # 0 where all is 0
            return [back.make("Mul", back.make("Div", dy, back.make("Max", wide(node.output[0]), scalar(1e-30))), x)]
        case "ReduceLogSum":
            return [back.make("Expand", back.make("Div", dy, back.make("Exp", wide(node.output[0]))), whole)]
        case "ReduceLogSumExp":
            return [back.make("Mul", dy, back.make("Exp", back.make("Sub", x, wide(node.output[0]))))]
        case _:  # the largest or least; in equal parts where there are several
            holds = back.mask(back.make("Equal", x, wide(node.output[0])))
            return [back.make("Mul", holds, back.make("Div", dy, back.total(holds, axes)))]


def _axes(back: Backward, node: onnx.NodeProto, rank: int) -> list[int] | None:
    """Return the axes that are reduced, None where there are none."""
    if node.op_type.startswith("Global"):
        return list(range(2, rank))
    given = back.operand(node, 1)
    found = attribute(node, "axes", None) if given is None else given.reshape(-1).tolist()
    if not found:
        return None if attribute(node, "noop_with_empty_axes", 0) else list(range(rank))
    return sorted({axis % rank for axis in found})


def softmax(back: Backward, node: onnx.NodeProto, grads: Gradients) -> Gradients:
    """``y (dy - sum(dy y))``, and ``dy - exp(y) sum(dy)`` of the logarithm."""
    y, dy = node.output[0], str(grads[0])
    axis = attribute(node, "axis", -1) % len(back.shape(y))
    if node.op_type == "LogSoftmax":
        return [back.make("Sub", dy, back.make("Mul", back.make("Exp", y), back.total(dy, [axis])))]
    weighted = back.make("Mul", dy, y)
    return [back.make("Sub", weighted, back.make("Mul", y, back.total(weighted, [axis])))]


def layer_normalization(back: Backward, node: onnx.NodeProto, grads: Gradients) -> Gradients:
    """``s (g - mean(g) - z mean(g z))`` with ``g = dy scale``, z the normalised input, s one over its deviation."""
    x, dy, shape = node.input[0], str(grads[0]), back.shape(node.input[0])
    axes = list(range(attribute(node, "axis", -1) % len(shape), len(shape)))
    if len(node.output) > 2 and node.output[1] and node.output[2]:
        centred, scale = back.make("Sub", x, node.output[1]), node.output[2]
    else:
        centred = back.make("Sub", x, _mean(back, x, axes, shape))
        variance = _mean(back, back.make("Mul", centred, centred), axes, shape)
        scale = _inverse_root(back, variance, attribute(node, "epsilon", 1e-5))
    z = back.make("Mul", centred, scale)
    result: list[str | None] = [None, None, None]
    if back.needs(node, 0):
        g = back.make("Mul", dy, node.input[1])
        means = [_mean(back, value, axes, shape) for value in (g, back.make("Mul", g, z))]
        slope = back.make("Sub", back.make("Sub", g, means[0]), back.make("Mul", z, means[1]))
        result[0] = back.make("Mul", scale, slope)
    if back.needs(node, 1):
        result[1] = back.fit(back.make("Mul", dy, z), shape, node.input[1])
    if back.needs(node, 2):
        result[2] = back.fit(dy, shape, node.input[2])
    return result


def _mean(back: Backward, value: str, axes: Sequence[int], shape: Sequence[int]) -> str:
    return back.scale(back.total(value, axes), 1 / max(math.prod(shape[axis] for axis in axes), 1))


def _inverse_root(back: Backward, variance: str, epsilon: float) -> str:
    return back.make("Reciprocal", back.make("Sqrt", back.make("Add", variance, scalar(epsilon))))


def batch_normalization(back: Backward, node: onnx.NodeProto, grads: Gradients) -> Gradients:
    """By running statistics ``dx = dy a`` with ``a = scale s``; by the batch's ``a (dy - mean(dy) - z mean(dy z))``.

    Sums of each channel come first; what is left of the work on all elements is a product and two affine maps.
    Source: Ioffe and Szegedy 2015, arXiv:1502.03167, section 3.
    """
    x, scale, _, *statistics = node.input
    shape, dy, live = back.shape(x), str(grads[0]), attribute(node, "training_mode", 0)
    if live and (len(node.output) < 3 or attribute(node, "momentum", 0.9) != 0):
        raise NoGradient("BatchNormalization in training mode whose outputs are no statistics of the batch")
    mean, variance = node.output[1:3] if live else statistics
    rank, many = len(shape), [0, *range(2, len(shape))]
    s = _inverse_root(back, variance, attribute(node, "epsilon", 1e-5))  # [C], as all that follows
    factor = back.make("Mul", scale, s)
    wanted = [back.needs(node, index) for index in range(3)]
    result: list[str | None] = [None, None, None]
    if wanted[2] or live:
        result[2] = back.total(dy, many, keep=False)
    if wanted[1] or live:
        centred = back.make("Sub", x, _column(back, mean, rank))
        product = back.make("Mul", dy, centred)
        result[1] = back.make("Mul", back.total(product, many, keep=False), s)  # sum of dy z
    if wanted[0] and not live:
        result[0] = back.make("Mul", dy, _column(back, factor, rank))
    elif wanted[0]:
        count = max(math.prod(shape) // max(shape[1], 1), 1)
        along = back.scale(back.make("Mul", factor, back.make("Mul", s, str(result[1]))), -1 / count)
        level = back.scale(back.make("Mul", factor, str(result[2])), -1 / count)
        ones = np.ones(shape[1], np.float32)
        rest = _affine(back, x, along, level, mean, ones)
        zeros = np.zeros(shape[1], np.float32)
        result[0] = back.make("Add", _affine(back, dy, factor, zeros, zeros, ones), rest)
    return result


def _column(back: Backward, value: str, rank: int) -> str:
    """Return [C] as [C, 1, 1...], to go with [N, C, ...]."""
    return back.reshape(value, [-1] + [1] * (rank - 2)) if rank > 2 else value


def _affine(back: Backward, x: str, factor: str, shift: str | Array, centre: str | Array, ones: Array) -> str:
    """Return ``(x - centre) factor + shift`` by channel: what a normalization with a variance of 1 computes at once."""
    return back.make("BatchNormalization", x, factor, shift, centre, ones, epsilon=0.0)
