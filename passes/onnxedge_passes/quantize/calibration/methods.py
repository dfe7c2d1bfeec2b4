"""Ranges of activations from what was seen of them: min-max, average, percentile, entropy, least squared error."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from onnxedge.api import Array

from .observed import BINS, Choice, Observed, Range

LEVELS = 256
GUARD = 2.0  #: entropy takes no range whose squared error is more than so many times that of min-max (3 dB)
_FACTORS = np.geomspace(1.0, 0.05, 40)  #: what the ends of the range are multiplied by in a search
_TINY = 1e-9
Objective = Callable[["Histogram", Array, Array], Array]


class Histogram:
    """Hold the filled bins of a histogram.

    Attributes:
        centres, share: float64 [B] middle of each filled bin, and the share of all values in it.
        symmetric: whether the grid that values are rounded to has its zero point at 0.
    """

    def __init__(self, entry: Observed, *, symmetric: bool) -> None:
        counts = entry.counts
        assert counts is not None
        filled = np.flatnonzero(counts)
        self.centres = entry.low + (filled + 0.5) * entry.bin_width
        self.share = counts[filled] / counts.sum()
        self.symmetric = symmetric

    def codes(self, low: float | Array, high: float | Array) -> tuple[Array, Array, Array]:
        """Return (codes before clipping, least code, step) of rounding to LEVELS steps over ranges: [F, B], [F], [F].

        Codes are counted from 0 at the value 0.
        """
        low, high = np.atleast_1d(low), np.atleast_1d(high)
        if self.symmetric:
            step, least = np.maximum(-low, high) / (LEVELS // 2 - 1), np.full(low.shape, 1.0 - LEVELS // 2)
        else:
            step = (high - low) / (LEVELS - 1)
            least = -np.rint(-low / step)
        return np.rint(self.centres / step[:, None]), least, step


def settle(entry: Observed, choices: Iterable[Choice], *, symmetric: bool) -> None:
    """Choose a range by each method and drop the histogram."""
    entry.ranges |= {choice: chosen_range(entry, choice, symmetric=symmetric) for choice in choices}
    entry.counts = None


def chosen_range(entry: Observed, choice: Choice, *, symmetric: bool = False) -> Range:
    """Return the range to quantize, which always holds 0.

    ``minmax``: all values. ``average``: mean over samples of each sample's least and greatest value, so that every
    sample weighs the same in whatever order they come. ``percentile``: a share of the values, what lies outside is
    split between both ends. ``mse``: least expected squared error of rounding and clipping. ``entropy``: least
    Kullback-Leibler divergence (Migacz 2017, TensorRT), of the ranges that are no worse than :data:`GUARD` allows: the
    divergence alone can cut off all but the values near 0.

    Args:
        entry: with a histogram for the last three; without one they are ``minmax``.
        choice: method and percentile.
        symmetric: the grid has its zero point at 0.
    """
    method, percentile = choice
    low, high = min(entry.low, 0.0), max(entry.high, 0.0)
    if method == "average":
        return max(low, min(entry.average[0], 0.0)), min(high, max(entry.average[1], 0.0))
    if method == "minmax" or entry.counts is None or not entry.counts.any():
        return low, high
    if method == "percentile":
        return _percentile(entry, percentile, low, high)
    histogram = Histogram(entry, symmetric=symmetric)
    return _searched(histogram, squared_errors if method == "mse" else guarded_divergences, low, high)


def _percentile(entry: Observed, percentile: float, low: float, high: float) -> Range:
    assert entry.counts is not None
    tail = (1.0 - percentile / 100.0) / (1.0 if low == 0.0 or high == 0.0 else 2.0)
    rising = np.concatenate([[0.0], np.cumsum(entry.counts) / entry.counts.sum()])
    edges = entry.low + np.arange(BINS + 1) * entry.bin_width
    below, above = (float(v) for v in np.interp([tail, 1.0 - tail], rising, edges))
    return (max(low, min(0.0, below)) if low < 0.0 else 0.0), (min(high, max(0.0, above)) if high > 0.0 else 0.0)


def _searched(histogram: Histogram, objective: Objective, low: float, high: float) -> Range:
    """Return the range of the least objective: both ends are moved together, then each alone, twice."""

    def best(lows: Array, highs: Array) -> Range:
        least = int(np.argmin(objective(histogram, lows, highs)))
        return float(lows[least]), float(highs[least])

    found = best(low * _FACTORS, high * _FACTORS)
    if histogram.symmetric or low == 0.0 or high == 0.0:
        return found
    for _ in range(2):
        found = best(low * _FACTORS, np.full(len(_FACTORS), found[1]))
        found = best(np.full(len(_FACTORS), found[0]), high * _FACTORS)
    return found


def squared_errors(histogram: Histogram, lows: Array, highs: Array) -> Array:
    """Return the expected squared error of rounding and clipping to each range, float64 [F]."""
    codes, least, step = histogram.codes(lows, highs)
    top = LEVELS // 2 - 1 if histogram.symmetric else least[:, None] + LEVELS - 1
    errors = np.clip(codes, least[:, None], top) * step[:, None] - histogram.centres
    return np.asarray((errors**2) @ histogram.share)


def guarded_divergences(histogram: Histogram, lows: Array, highs: Array) -> Array:
    """Return the divergence of each range, float64 [F]; infinite where the squared error is beyond the guard."""
    ends = np.array([min(float(histogram.centres[0]), 0.0)]), np.array([max(float(histogram.centres[-1]), 0.0)])
    allowed = squared_errors(histogram, lows, highs) <= GUARD * squared_errors(histogram, *ends)
    allowed |= (lows <= ends[0]) & (highs >= ends[1])
    pairs = zip(lows, highs, allowed, strict=True)
    return np.array([divergence(histogram, low, high) if ok else np.inf for low, high, ok in pairs])


def divergence(histogram: Histogram, low: float, high: float) -> float:
    """Return the Kullback-Leibler divergence between values clipped to a range and the same rounded to LEVELS steps.

    What is clipped is added to the outermost bins of the one, not of the other; each step's share is spread evenly
    over the bins that it stands for.
    """
    inside = np.flatnonzero((histogram.centres >= low) & (histogram.centres <= high))
    if not inside.size:
        return np.inf
    share = histogram.share[inside]
    codes, least, _ = histogram.codes(low, high)
    steps = np.clip(codes[0, inside] - least, 0, LEVELS - 1).astype(np.int64)
    mass, width = np.bincount(steps, weights=share), np.bincount(steps)
    rounded = mass[steps] / width[steps]
    clipped = share.copy()
    clipped[0] += histogram.share[: inside[0]].sum()
    clipped[-1] += histogram.share[inside[-1] + 1 :].sum()
    return float((clipped * np.log(clipped / np.maximum(rounded / rounded.sum(), _TINY))).sum())
