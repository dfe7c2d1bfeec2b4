"""What is kept of one activation while samples stream by: of fixed size, whatever the number of samples."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from onnxedge.api import Array

Method = Literal["minmax", "average", "percentile", "entropy", "mse", "mixed"]
Choice = tuple[Method, float]  #: a method and its percentile, 0 for the others
Range = tuple[float, float]
BINS = 8192
HISTOGRAM_BYTES = 8 * BINS
_BLOCK = 1 << 16  #: elements sorted into bins at one time; what the processor keeps at hand


@dataclass
class Channels:
    """Hold what was seen of each channel of one tensor.

    Attributes:
        low, high: least and greatest value, float32 [C].
        square: mean square, float64 [C].
    """

    low: Array
    high: Array
    square: Array

    def merge(self, other: Channels, share: float) -> None:
        """Take up other samples' values, a share of all that were seen then."""
        self.low, self.high = np.minimum(self.low, other.low), np.maximum(self.high, other.high)
        self.square = self.square + share * (other.square - self.square)


@dataclass
class Observed:
    """Hold what was seen of one tensor.

    Attributes:
        low, high: least and greatest value; NaN or infinite where the tensor is.
        average: mean over samples of each sample's least and greatest value.
        samples: number of samples seen.
        elements: number of values seen.
        mean: mean of each channel, float64 [C], where asked for.
        channels: what was seen of each channel, where asked for; not kept in files.
        counts: histogram, int64 [BINS] over low..high; None before the second pass and after :meth:`settle`.
        ranges: what each method makes of it.
    """

    low: float = np.inf
    high: float = -np.inf
    average: Range = (0.0, 0.0)
    samples: int = 0
    elements: int = 0
    mean: Array | None = None
    channels: Channels | None = None
    counts: Array | None = None
    ranges: dict[Choice, Range] = field(default_factory=dict)

    @property
    def finite(self) -> bool:
        """Tell whether something was seen and all of it was finite."""
        return bool(np.isfinite(self.low) and np.isfinite(self.high))

    def extend(self, array: Array, count: int, axis: int | None) -> None:
        """Take up the values of some samples: first pass.

        Args:
            array: float, samples along axis 0 where that has ``count`` entries; else one array that serves them all.
            count: number of samples.
            axis: channel axis, None where nothing of channels is wanted.
        """
        if not array.size:
            return
        rows = count if array.ndim and array.shape[0] == count else 1
        view = _view(array, rows, axis)
        low, high = (_over_space(ufunc, view) for ufunc in (np.minimum, np.maximum))  # [rows, C]
        lows, highs = low.reshape(rows, -1).min(axis=1), high.reshape(rows, -1).max(axis=1)
        self.low = float(np.minimum(self.low, lows.min()))  # NaN stays NaN
        self.high = float(np.maximum(self.high, highs.max()))
        part = count / (self.samples + count)
        old_low, old_high = self.average
        self.average = (
            old_low + part * (float(lows.mean(dtype=np.float64)) - old_low),
            old_high + part * (float(highs.mean(dtype=np.float64)) - old_high),
        )
        self.samples += count
        if axis is not None and array.ndim:
            wide = np.promote_types(array.dtype, np.float32)
            mean = _over_space(np.add, view, wide).mean(axis=0, dtype=np.float64) / (view.shape[1] * view.shape[3])
            cells = view.reshape(-1, *view.shape[2:])
            square = np.einsum("ncx,ncx->c", cells, cells, dtype=np.float32).astype(np.float64)
            seen = Channels(low.min(axis=0), high.max(axis=0), square * view.shape[2] / array.size)
            share = array.size / (self.elements + array.size)
            self.mean = mean if self.mean is None else self.mean + share * (mean - self.mean)
            if self.channels is None:
                self.channels = seen
            else:
                self.channels.merge(seen, share)
        self.elements += array.size

    @property
    def bin_width(self) -> float:
        """Return the width of a bin; 0 where the values are all one, or not finite."""
        width = (self.high - self.low) / BINS if self.finite else 0.0
        return width if width > float(np.finfo(np.float32).tiny) else 0.0

    def count(self, array: Array) -> None:
        """Sort values into bins: second pass."""
        if not self.bin_width:
            return
        if self.counts is None:
            self.counts = np.zeros(BINS, np.int64)
        flat, low, scale = array.reshape(-1), np.float32(self.low), np.float32(1.0 / self.bin_width)
        for start in range(0, flat.size, _BLOCK):
            with np.errstate(over="ignore"):
                bins = flat[start : start + _BLOCK].astype(np.float32, copy=False) - low
                bins *= scale
            np.clip(bins, 0, BINS - 1, out=bins)
            self.counts += np.bincount(bins.astype(np.intp), minlength=BINS)

    def merge(self, other: Observed) -> None:
        """Take up what was seen of the same tensor on other samples, as if all had been seen here.

        Exact but for the histogram, whose bins are spread evenly over the bins of the joint range.
        """
        if not other.samples:
            return
        low, high = float(np.minimum(self.low, other.low)), float(np.maximum(self.high, other.high))
        joint = Observed(low, high)
        parts = [entry for entry in (self, other) if entry.samples]
        if parts and all(entry.counts is not None or not entry.bin_width for entry in parts) and joint.bin_width:
            joint.counts = sum((entry.binned(low, joint.bin_width) for entry in parts), np.zeros(BINS, np.int64))
        part = other.samples / (self.samples + other.samples)
        self.average = (
            self.average[0] + part * (other.average[0] - self.average[0]),
            self.average[1] + part * (other.average[1] - self.average[1]),
        )
        if self.mean is not None and other.mean is not None and self.mean.shape == other.mean.shape:
            share = other.elements / (self.elements + other.elements)
            self.mean = self.mean + share * (other.mean - self.mean)
        else:
            self.mean = other.mean if not self.samples else None
        self.low, self.high, self.counts, self.channels = low, high, joint.counts, None
        self.samples += other.samples
        self.elements += other.elements
        self.ranges = {}

    def binned(self, low: float, width: float) -> Array:
        """Return the histogram, int64 [BINS], in bins of another width from another lowest value."""
        if self.counts is None:  # all values are one
            single = np.zeros(BINS, np.int64)
            single[min(int((self.low - low) / width), BINS - 1)] = self.elements
            return single
        edges = self.low + np.arange(BINS + 1) * self.bin_width
        rising = np.concatenate([[0], np.cumsum(self.counts)])
        wanted = low + np.arange(BINS + 1) * width
        wanted[-1] = np.inf
        return np.diff(np.rint(np.interp(wanted, edges, rising)).astype(np.int64))


def _view(array: Array, rows: int, axis: int | None) -> Array:
    """Return an array as [rows, A, C, B], with its channel axis as C; one channel for none."""
    if axis is None or not array.ndim:
        return array.reshape(rows, 1, 1, -1)
    axis %= array.ndim
    rows = rows if axis else 1
    return array.reshape(rows, int(np.prod(array.shape[:axis], dtype=np.int64)) // rows, array.shape[axis], -1)


def _over_space(ufunc: np.ufunc, view: Array, dtype: Any = None) -> Array:
    """Reduce [rows, A, C, B] to [rows, C], the longer of A and B in one go."""
    part = view[..., 0] if view.shape[3] == 1 else ufunc.reduce(view, axis=3, dtype=dtype)
    return np.asarray(part[:, 0] if part.shape[1] == 1 else ufunc.reduce(part, axis=1, dtype=dtype))
