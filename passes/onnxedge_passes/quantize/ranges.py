"""Ranges of activations, streamed: two passes over the samples, a histogram of fixed size per tensor.

The first pass keeps minimum, maximum and the mean of each channel, the second fills a histogram between minimum and
maximum; memory does not depend on the number of samples. Tensors are captured in groups within a memory budget.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import onnx_ir as ir

from onnxedge.api import Array, Feed, capture

Method = Literal["minmax", "percentile", "entropy", "mse"]
BINS = 2048
LEVELS = 256


@dataclass
class Observed:
    """Hold what was seen of one tensor.

    Attributes:
        low, high: least and greatest value; NaN or infinite where the tensor is.
        mean: mean of each channel, float64 [C], where asked for.
        counts: histogram, int64 [BINS] over low..high, after the second pass.
        elements: number of values seen.
    """

    low: float = np.inf
    high: float = -np.inf
    mean: Array | None = None
    counts: Array = field(default_factory=lambda: np.zeros(BINS, np.int64))
    elements: int = 0

    @property
    def finite(self) -> bool:
        """Tell whether something was seen and all of it was finite."""
        return bool(np.isfinite(self.low) and np.isfinite(self.high))


def observe(
    model: ir.Model,
    values: Sequence[ir.Value],
    feeds: Callable[[], Iterable[Feed]],
    *,
    channels: dict[str, int],
    histograms: bool,
    groups: Sequence[Sequence[ir.Value]],
    threads: int = 1,
    track: Callable[[Iterable[list[Array]], str], Iterator[list[Array]]],
) -> dict[str, Observed]:
    """Run the model over the samples and return what was seen of each value, by name.

    Args:
        model: not changed.
        values: what to watch.
        feeds: gives the samples anew each time it is called.
        channels: value name -> channel axis, for values whose channel means are wanted.
        histograms: make the second pass.
        groups: the values, parted so that one group's tensors fit into memory.
        threads: of the runtime.
        track: shows progress.
    """
    seen = {value.name or "": Observed() for value in values}
    rounds = 2 if histograms else 1
    for second in range(rounds):
        for group in groups:
            watched = [seen[value.name or ""] for value in group]
            axes = [channels.get(value.name or "") for value in group]
            for arrays in track(capture(model, group, feeds(), threads=threads), "histograms" if second else "ranges"):
                for array, entry, axis in zip(arrays, watched, axes, strict=True):
                    if second:
                        _count(entry, array)
                    else:
                        _extend(entry, array, axis)
    return seen


def _extend(entry: Observed, array: Array, axis: int | None) -> None:
    if not array.size:
        return
    entry.low = float(np.minimum(entry.low, array.min()))  # NaN stays NaN
    entry.high = float(np.maximum(entry.high, array.max()))
    if axis is not None and array.ndim:
        others = tuple(i for i in range(array.ndim) if i != axis % array.ndim)
        mean = array.mean(axis=others, dtype=np.float64)
        share = array.size / (entry.elements + array.size)
        entry.mean = mean if entry.mean is None else entry.mean + share * (mean - entry.mean)
    entry.elements += array.size


def _count(entry: Observed, array: Array) -> None:
    if entry.finite and entry.high > entry.low:
        scale = BINS / (entry.high - entry.low)
        bins = ((array.reshape(-1) - np.float32(entry.low)) * np.float32(scale)).astype(np.int32)
        entry.counts += np.bincount(np.clip(bins, 0, BINS - 1, out=bins), minlength=BINS)


def chosen_range(entry: Observed, method: Method, percentile: float) -> tuple[float, float]:
    """Return the range to quantize, which always holds 0.

    ``entropy`` is guarded: a range whose squared error is more than twice that of min-max is not taken.
    """
    low, high = min(entry.low, 0.0), max(entry.high, 0.0)
    if method == "minmax" or not entry.counts.any():
        return low, high
    centres = entry.low + (np.arange(BINS) + 0.5) * (entry.high - entry.low) / BINS
    share = entry.counts / entry.counts.sum()
    if method == "percentile":
        tail = (1.0 - percentile / 100.0) / (1.0 if low == 0.0 or high == 0.0 else 2.0)
        rising = np.cumsum(share)
        first, last = np.searchsorted(rising, tail), np.searchsorted(rising, 1.0 - tail)
        below, above = float(centres[int(first)]), float(centres[min(int(last), BINS - 1)])
        return min(0.0, below) if low < 0.0 else 0.0, max(0.0, above) if high > 0.0 else 0.0
    shrunk = [(low * a, high * b) for a in _factors(low) for b in _factors(high)]
    errors = [_squared_error(centres, share, *pair) for pair in shrunk]
    best = shrunk[int(np.argmin(errors))]
    if method == "mse":
        return best
    divergence = [_divergence(centres, share, *pair) for pair in shrunk]
    pick = int(np.argmin(divergence))
    return shrunk[pick] if errors[pick] <= 2.0 * errors[0] else (low, high)


def _factors(end: float) -> list[float]:
    return [1.0] if end == 0.0 else [1.0, *map(float, np.geomspace(0.97, 0.08, 24))]


def _squared_error(centres: Array, share: Array, low: float, high: float) -> float:
    """Return the expected squared error of rounding to LEVELS steps over low..high and clipping what lies outside."""
    step = (high - low) / (LEVELS - 1)
    if step <= 0.0:
        return np.inf
    beyond = np.maximum(low - centres, 0.0) + np.maximum(centres - high, 0.0)
    inside = share[beyond == 0.0].sum()
    zeros = share[np.abs(centres) < step / 2].sum()  # exact zeros carry no rounding error
    return float((share * beyond**2).sum() + max(inside - zeros, 0.0) * step**2 / 12.0)


def _divergence(centres: Array, share: Array, low: float, high: float) -> float:
    """Return the Kullback-Leibler divergence of the quantized from the true distribution (Migacz 2017, TensorRT)."""
    step = (high - low) / (LEVELS - 1)
    if step <= 0.0:
        return np.inf
    codes = np.clip(np.rint((centres - low) / step), 0, LEVELS - 1).astype(np.int64)
    filled = share > 0
    mass = np.bincount(codes, weights=share, minlength=LEVELS)
    width = np.bincount(codes, weights=filled, minlength=LEVELS)
    inside = (centres >= low) & (centres <= high)
    approximated = np.where(filled, mass[codes] / np.maximum(width[codes], 1), 0.0)
    outside = share[~inside].sum()
    approximated[~inside] = 1e-9
    taken = filled & inside
    clipped = float(outside * np.log(max(outside, 1e-12) / 1e-9)) if outside else 0.0
    return float((share[taken] * np.log(share[taken] / np.maximum(approximated[taken], 1e-12))).sum()) + clipped
