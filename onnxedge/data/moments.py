"""Mean and deviation of an input, estimated from the first contraction that reads it; the method is our own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxedge.data.signals import smooth_field
from onnxedge.model.graph import constant

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation of a float input and the range that its values are clipped to.

    Attributes:
        mean, std: [1] or one per channel.
        low, high: range.
        measured: whether they come from the statistics of a normalization, and are no guess.
    """

    mean: Array
    std: Array
    low: float = -np.inf
    high: float = np.inf
    measured: bool = False


STANDARD = Moments(np.zeros(1), np.ones(1))
_UNIT = Moments(np.full(1, 0.45), np.full(1, 0.25), 0.0, 1.0)
_SIGNED = Moments(np.zeros(1), np.full(1, 0.5), -1.0, 1.0)
_BYTES = Moments(np.full(1, 115.0), np.full(1, 64.0), 0.0, 255.0)


def estimated(
    weight: Array, groups: int, offset: Array, after: tuple[Array, Array] | None, slope: Array, shift: Array
) -> Moments | None:
    """Estimate the moments of x where a contraction reads ``slope * x + shift``.

    Args:
        weight: float64 [Co, Ci/G, *K], or [N, K] of a matrix product.
        groups: G.
        offset: [1] or [Co], what is added to the product.
        after: mean and variance [Co] of the BatchNormalization behind it, None where there is none.
        slope, shift: [1] or [C].

    With BatchNormalization behind it, its statistics are those of ``W x + offset``: the deviation of x is that which
    gives a smooth field its variance, the mean of x that which gives its mean, least squares over output channels.
    Without, see :func:`_folded`.
    """
    outputs = weight.shape[0]
    if offset.size not in (1, outputs):
        return None
    deviation = _response(weight)  # [Co]
    if after is not None:
        mean, spread = after[0], np.sqrt(np.maximum(after[1], 1e-12))
        if mean.size != outputs or spread.size != outputs or not np.isfinite(mean + spread).all():
            return None
        sigma = float(np.median(spread / np.maximum(deviation, 1e-9)))
        mu = _input_mean(weight, groups, mean - offset, spread, sigma)
        if mu.size != slope.size and 1 not in (mu.size, slope.size):
            return None
        return named((mu - shift) / slope, np.broadcast_to(sigma / np.abs(slope), np.shape(mu / slope)), True)
    return _folded(weight, offset, deviation, slope, shift)


def _folded(weight: Array, offset: Array, deviation: Array, slope: Array, shift: Array) -> Moments:
    """Guess the moments from a contraction with no normalization behind it, because it was folded into the weights.

    Its outputs then have deviation 1 or so: of the usual ranges of images the one that comes nearest is taken; for
    features the deviation that gives just that, and the mean that takes the outputs' mean to 0, least squares.
    """
    gain = float(np.mean(np.abs(slope)))
    middle = max(float(np.median(deviation)) * gain, 1e-12)
    if weight.ndim == 4:
        best, best_score = STANDARD, np.inf
        for guess in (STANDARD, _UNIT, _SIGNED, _BYTES):
            score = abs(np.log(middle * guess.std[0]))
            if score < best_score - 0.7:  # a factor of two: the first guesses are the usual ones
                best, best_score = guess, score
        return best
    if weight.ndim != 2 or 1 / 8 < middle < 8:
        return STANDARD
    sums = weight.sum(axis=1)
    mean = -float(sums @ np.broadcast_to(offset, sums.shape)) / max(float(sums @ sums), 1e-12)
    return named(np.array([(mean - float(np.mean(shift))) / gain]), np.array([1 / middle]))


def _response(weight: Array) -> Array:
    """Return the deviation [Co] of a contraction's outputs for a smooth field of mean 0 and deviation 1 as input."""
    if weight.ndim == 2:  # features, taken as independent
        return np.asarray(np.sqrt((weight**2).sum(axis=1)))
    kernel = weight.shape[2:]
    rng = np.random.default_rng(0)
    side = tuple(max(32, 2 * k) for k in kernel)
    fields = np.stack([smooth_field(rng, (weight.shape[1], *side)) for _ in range(4)])
    windows = np.lib.stride_tricks.sliding_window_view(fields, kernel, tuple(range(2, 2 + len(kernel))))
    axes = len(kernel)
    patches = np.moveaxis(windows, 1, 1 + axes).reshape(-1, int(np.prod(weight.shape[1:])))
    patches = patches[:: max(1, len(patches) // 500)]
    deviation: Array = np.sqrt(((patches @ weight.reshape(len(weight), -1).T) ** 2).mean(axis=0))
    return deviation


def _input_mean(weight: Array, groups: int, target: Array, scale: Array, sigma: float) -> Array:
    """Return the mean [C] of x for which ``W x`` has the mean ``target``; equations in units of ``scale``."""
    outputs, inputs = weight.shape[0], weight.shape[1] if weight.ndim > 2 else 1
    sums = weight.reshape(outputs, inputs, -1).sum(axis=2) / scale[:, None]
    goal = target / scale
    ridge = np.sqrt(outputs) * 0.03 / max(sigma, 1e-9)  # a mean of many deviations is not believed
    if groups > 1:
        per = outputs // groups
        blocks = [(sums[g * per : (g + 1) * per], goal[g * per : (g + 1) * per]) for g in range(groups)]
    else:
        blocks = [(sums, goal)]
    means = []
    for matrix, values in blocks:
        rows = np.vstack([matrix, np.eye(inputs) * ridge])
        means.append(np.linalg.lstsq(rows, np.concatenate([values, np.zeros(inputs)]), rcond=None)[0])
    return np.concatenate(means)


def named(mean: Array, std: Array, measured: bool = False) -> Moments:
    """Return moments, with a range where they look like those of pixels 0..255 or 0..1.

    They are rounded to three digits: they come from matrix products, whose last bits may differ between machines.
    """
    mean, std = (np.array([float(f"{v:.3g}") for v in part.reshape(-1)]) for part in (mean, np.maximum(std, 1e-6)))
    for known in (_BYTES, _UNIT):
        if 0.15 < mean.mean() / known.high < 0.8 and 0.1 < std.mean() / known.high < 0.5:
            return Moments(mean, std, known.low, known.high, measured)
    return Moments(mean, std, measured=measured)


def normalization_after(value: ir.Value) -> tuple[tuple[Array, Array] | None, Array]:
    """Return (mean, variance) of the BatchNormalization behind a contraction, and the bias added on the way."""
    extra: Array = np.zeros(1)
    for _ in range(3):
        uses = tuple(value.uses())
        if len(uses) != 1:
            break
        node, index = uses[0]
        if node.op_type == "BatchNormalization" and index == 0:
            mean, variance = weight_of(node.inputs[3]), weight_of(node.inputs[4])
            if mean is not None and variance is not None:
                return (mean.astype(np.float64), variance.astype(np.float64)), extra
        if node.op_type == "Add":
            bias = weight_of(node.inputs[1 - index])
            if bias is None or bias.size not in (1, max(bias.shape, default=1)):
                break
            extra = extra + bias.reshape(-1).astype(np.float64)
        elif node.op_type not in ("Identity", "Reshape", "Squeeze", "Unsqueeze", "Transpose"):
            break
        value = node.outputs[0]
    return None, extra


def weight_of(value: ir.Value | None) -> Array | None:
    """Return a constant, also an overridable one (its default is what was trained) or a dequantized one."""
    array = constant(value)
    if array is not None or value is None:
        return array
    producer = value.producer()
    if producer is None:
        tensor = value.const_value
        return None if tensor is None or tensor.dtype == ir.DataType.STRING else tensor.numpy()
    if producer.op_type != "DequantizeLinear":
        return None
    parts = [constant(v) for v in producer.inputs]
    if len(parts) < 2 or parts[0] is None or parts[1] is None or (len(parts) > 2 and parts[2] is None):
        return None
    quantized, scale = parts[0].astype(np.float64), parts[1].astype(np.float64)
    zero = np.zeros(1) if len(parts) < 3 or parts[2] is None else parts[2].astype(np.float64)
    if scale.size > 1:
        axis = producer.attributes.get_int("axis", 1) % quantized.ndim
        if scale.size != quantized.shape[axis]:
            return None
        shape = [1] * quantized.ndim
        shape[axis] = -1
        scale, zero = scale.reshape(shape), zero.reshape(shape) if zero.size > 1 else zero
    return (quantized - zero) * scale
