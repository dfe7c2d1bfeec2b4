"""Weights on a grid of 16 values for each block of neighbours: round to nearest, and half-quadratic."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxedge.api import Array

MIDDLE = 8  #: zero point of a symmetric grid
_LARGEST = 15
_FACTORS = np.arange(1.0, 0.69, -0.025, dtype=np.float32)  #: shares of a block's range that are tried
_HQQ_NORM, _HQQ_BETA, _HQQ_GROWTH, _HQQ_ROUNDS = 0.7, 10.0, 1.01, 20


@dataclass(frozen=True, eq=False)
class Blocks:
    """Hold a weight [N, K], K padded with zeros to whole blocks of b: B of them.

    Attributes:
        codes: uint8 0..15 [N, B, b].
        scale: float32 [N, B].
        zero: uint8 0..15 [N, B], the code of 0.0.
        columns: K.
        data_scale: float64 [K], what each column was multiplied by before rounding and its data is divided by, or None.
    """

    codes: Array
    scale: Array
    zero: Array
    columns: int
    data_scale: Array | None = None

    @property
    def symmetric(self) -> bool:
        """Tell whether every zero point is the middle."""
        return bool((self.zero == MIDDLE).all())

    def restored(self, dtype: np.dtype[np.floating] | type = np.float32) -> Array:
        """Return float32 [N, K]: what the codes stand for; ``data_scale`` is taken out again."""
        scale = self.scale.astype(dtype).astype(np.float32)
        floats = (self.codes.astype(np.float32) - self.zero[..., None]) * scale[..., None]
        matrix = floats.reshape(len(floats), -1)[:, : self.columns]
        return matrix if self.data_scale is None else np.asarray(matrix / self.data_scale, np.float32)


def blocked(matrix: Array, size: int) -> Array:
    """Return float32 [N, B, b] of a matrix [N, K]."""
    rows, columns = matrix.shape
    padded = np.pad(matrix, [(0, 0), (0, -columns % size)]) if columns % size else matrix
    return np.ascontiguousarray(padded, np.float32).reshape(rows, -1, size)


def grid(parts: Array, *, symmetric: bool, search: bool = True, weight: Array | None = None) -> tuple[Array, Array]:
    """Return scale float32 [...] and zero point uint8 [...] of blocks [..., b], of least squared error.

    Args:
        parts: float32.
        symmetric: zero point in the middle.
        search: try ranges smaller than the block's own.
        weight: [..., b], what a squared error counts.
    """
    low, high = np.minimum(parts.min(axis=-1), 0), np.maximum(parts.max(axis=-1), 0)
    best = _grid(low, high, symmetric)
    if not search:
        return best
    least = _error(parts, best, weight)
    for factor in _FACTORS[1:]:
        other = _grid(low * factor, high * factor, symmetric)
        error = _error(parts, other, weight)
        better = error < least
        best = (np.where(better, other[0], best[0]), np.where(better, other[1], best[1]))
        least = np.where(better, error, least)
    return best


def _grid(low: Array, high: Array, symmetric: bool) -> tuple[Array, Array]:
    if symmetric:
        scale = np.maximum(-low / MIDDLE, high / (MIDDLE - 1))
        return _safe(scale), np.full(scale.shape, MIDDLE, np.uint8)
    scale = _safe((high - low) / _LARGEST)
    return scale, np.clip(np.rint(-low / scale), 0, _LARGEST).astype(np.uint8)


def _safe(scale: Array) -> Array:
    return np.asarray(np.where(scale > np.finfo(np.float16).tiny, scale, 1.0), np.float32)


def codes_of(parts: Array, scale: Array, zero: Array) -> Array:
    """Return uint8 [..., b], the nearest codes."""
    codes = np.rint(parts / scale[..., None]) + zero[..., None]
    return np.asarray(np.clip(codes, 0, _LARGEST), np.uint8)


def _error(parts: Array, on: tuple[Array, Array], weight: Array | None = None) -> Array:
    scale, zero = on
    off = (codes_of(parts, scale, zero).astype(np.float32) - zero[..., None]) * scale[..., None] - parts
    return np.asarray((off * off if weight is None else off * off * weight).sum(axis=-1))


def nearest(matrix: Array, size: int, *, symmetric: bool, search: bool = True, weight: Array | None = None) -> Blocks:
    """Round a matrix [N, K] to the nearest codes.

    Args:
        matrix: floats.
        size: elements of a block.
        symmetric, search: as in :func:`grid`.
        weight: [K], what the squared error of a column counts.
    """
    parts = blocked(matrix, size)
    counts = None if weight is None else blocked(weight[None], size)
    scale, zero = grid(parts, symmetric=symmetric, search=search, weight=counts)
    return Blocks(codes_of(parts, scale, zero), scale, zero, matrix.shape[1])


def half_quadratic(matrix: Array, size: int, *, symmetric: bool) -> Blocks:
    """Round a matrix [N, K] so that few weights are far off, by the l_0.7 norm of the error; no samples are needed.

    Source: Badri and Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning Models", equations 2 to 5.
    There zero points are floats and scales stay; here kernels want integers, so that the scale is fitted as well, by
    least squares, and a block keeps its nearest codes where they have the smaller norm.
    """
    parts = blocked(matrix, size)
    start = nearest(matrix, size, symmetric=symmetric)
    scale, zero, beta = start.scale, start.zero.astype(np.float32), _HQQ_BETA
    best, least = (start.scale, start.zero), _norm(parts, start.scale, start.zero)
    for _ in range(_HQQ_ROUNDS):
        codes = np.clip(np.rint(parts / scale[..., None] + zero[..., None]), 0, _LARGEST)
        off = parts - (codes - zero[..., None]) * scale[..., None]
        size_of = np.abs(off)
        shrunk = np.sign(off) * np.maximum(size_of - np.maximum(size_of, 1e-8) ** (_HQQ_NORM - 1) / beta, 0)
        aim = parts - shrunk
        if not symmetric:
            zero = (codes - aim / scale[..., None]).mean(axis=-1)
        whole = np.clip(np.rint(zero), 0, _LARGEST).astype(np.uint8)
        centred = codes - whole[..., None]
        square = (centred * centred).sum(axis=-1)
        scale = _safe(np.where(square > 0, (aim * centred).sum(axis=-1) / np.maximum(square, 1e-12), scale))
        norm = _norm(parts, scale, whole)
        better = norm < least
        best = (np.where(better, scale, best[0]), np.where(better, whole, best[1]))
        least = np.where(better, norm, least)
        beta *= _HQQ_GROWTH
    return Blocks(codes_of(parts, *best), *best, matrix.shape[1])


def _norm(parts: Array, scale: Array, zero: Array) -> Array:
    off = (codes_of(parts, scale, zero).astype(np.float32) - zero[..., None]) * scale[..., None] - parts
    return np.asarray((np.abs(off) ** _HQQ_NORM).sum(axis=-1))
