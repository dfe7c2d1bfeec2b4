"""Scales, zero points and rounding: floats to integers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from onnxedge.api import Array, Quantization

LARGEST_BIAS = float(2**30)  #: a bias beyond this many steps makes its channel's scale coarser instead of overflowing


@dataclass(frozen=True)
class Grid:
    """Hold the scale and zero point of an activation.

    Attributes:
        scale: float32 step.
        zero_point: integer that stands for 0.0.
        dtype: of 8 bits, or of 16 where the target has kernels for that.
    """

    scale: float
    zero_point: int
    dtype: Literal["uint8", "int8", "uint16", "int16"]

    @property
    def bits(self) -> int:
        """Return 8 or 16."""
        return 16 if self.dtype.endswith("16") else 8

    def quantize(self, array: Array) -> Array:
        """Round an array to the grid's integers (half to even, as QuantizeLinear does)."""
        info = np.iinfo(self.dtype)
        codes = np.rint(np.asarray(array, np.float32) / np.float32(self.scale)) + self.zero_point
        return np.asarray(np.clip(codes, info.min, info.max), self.dtype)


def activation_grid(low: float, high: float, rules: Quantization, *, wide: bool = False) -> Grid:
    """Return the grid of an activation over low..high, which holds 0; zero point at the dtype's minimum if low is 0.

    Args:
        low, high: its range.
        rules: of the target.
        wide: in 16 bits.
    """
    dtype = rules.wide_activation if wide and rules.wide_activation else rules.activation
    info = np.iinfo(dtype)
    if rules.activation_symmetric:
        return Grid(_step(max(-low, high), int(info.max)), 0, dtype)
    least, steps = int(info.min), int(info.max) - int(info.min)
    scale = _step(high - low, steps)
    zero = 0 if low == 0.0 else int(np.clip(np.rint(-low / scale), 0, steps))
    return Grid(scale, least + zero, dtype)


def bounded_grid(
    low: float, high: float, bounds: tuple[float, float], rules: Quantization, *, wide: bool = False
) -> Grid:
    """Return a grid that lies inside a Clip's bounds, so that the runtime can drop the Clip."""
    low, high = max(low, bounds[0]), min(high, bounds[1])
    grid = activation_grid(low, high, rules, wide=wide)
    if rules.activation_symmetric:
        return grid
    info = np.iinfo(grid.dtype)
    zero, steps = grid.zero_point - int(info.min), int(info.max) - int(info.min)
    limits = [grid.scale]
    if zero and np.isfinite(bounds[0]):
        limits.append(-bounds[0] / zero)
    if zero < steps and np.isfinite(bounds[1]):
        limits.append(bounds[1] / (steps - zero))
    scale = min(limits)
    if scale < grid.scale:
        scale = float(np.nextafter(np.float32(scale), np.float32(0)))
    return Grid(scale, grid.zero_point, grid.dtype)


def _step(width: float, steps: int) -> float:
    step = np.float32(width) / np.float32(steps)
    return float(step) if step > np.finfo(np.float32).tiny else 1.0


@dataclass(frozen=True)
class Weight:
    """Hold a weight on its integer grid.

    Attributes:
        codes: int8, shape of the weight.
        scale: float32 [C] per channel, or [] per tensor.
        axis: channel axis, None per tensor.
        limit: largest magnitude of a code.
    """

    codes: Array
    scale: Array
    axis: int | None
    limit: int = 127

    def like(self, other: Weight | None) -> Weight:
        """Return another rounding of the same weight where it has the same scales, else this one."""
        if other is None or other.axis != self.axis or other.limit > self.limit:
            return self
        return other if np.array_equal(other.scale, self.scale) and other.codes.shape == self.codes.shape else self

    def restored(self) -> Array:
        """Return the float32 weight that the integers stand for."""
        return self.codes.astype(np.float32) * aligned(self.scale, self.codes.ndim, self.axis)


def aligned(vector: Array, rank: int, axis: int | None) -> Array:
    """Return a per-channel vector in the shape that broadcasts along ``axis`` of a tensor of the given rank."""
    if axis is None:
        return vector
    return vector.reshape([-1 if i == axis else 1 for i in range(rank)])


def round_weight(
    weight: Array, axis: int | None, *, least_scale: Array | None = None, search: bool = True, limit: int = 127
) -> Weight:
    """Round a weight to symmetric int8 with the scale per channel of least squared error.

    Args:
        weight: float32, any shape.
        axis: channel axis, None for one scale.
        least_scale: float32 [C] or [], scales that a channel must not go below (for the range of its int32 bias).
        search: try smaller scales than the channel's maximum asks for.
        limit: largest magnitude of a code, up to 127.
    """
    rows = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1) if axis is not None else weight.reshape(1, -1)
    top = np.abs(rows).max(axis=1, initial=0.0).astype(np.float32) / np.float32(limit)
    top = np.where(top > np.finfo(np.float32).tiny, top, np.float32(1.0)).astype(np.float32)
    best = top
    if search and rows.shape[1] > 4:
        least = _error(rows, top, limit)
        for factor in np.arange(0.98, 0.70, -0.02, dtype=np.float32):
            scale = top * factor
            error = _error(rows, scale, limit)
            better = error < least * np.float32(0.999)
            best, least = np.where(better, scale, best), np.where(better, error, least)
    if least_scale is not None:
        best = np.maximum(best, np.asarray(least_scale, np.float32).reshape(-1))
    scale = best.astype(np.float32) if axis is not None else best.astype(np.float32).reshape(())
    codes = np.clip(np.rint(weight / aligned(scale, weight.ndim, axis)), -limit, limit).astype(np.int8)
    return Weight(codes, scale, axis, limit)


def _error(rows: Array, scale: Array, limit: int) -> Array:
    codes = np.clip(np.rint(rows / scale[:, None]), -limit, limit)
    return np.asarray(((codes * scale[:, None] - rows) ** 2).sum(axis=1))
