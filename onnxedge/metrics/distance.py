"""Distances between the outputs of two models, element by element."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxedge.errors import UserError

Array = np.ndarray[Any, Any]


def sqnr_db(reference: Array, other: Array) -> float:
    """Return the signal to quantization noise ratio, 10 log10(sum r^2 / sum (r - o)^2), in decibels.

    Infinite where the arrays are equal, minus infinite where ``other`` has a value that is not finite and
    ``reference`` has not, or where the reference is zero and the other is not.
    """
    sums = Sums()
    sums.add(reference, other)
    return sums.sqnr_db


def cosine(reference: Array, other: Array) -> float:
    """Return the cosine of the angle between two arrays taken as vectors, -1..1; 1 where both are zero."""
    sums = Sums()
    sums.add(reference, other)
    return sums.cosine


def max_abs_diff(reference: Array, other: Array) -> float:
    """Return the largest |reference - other|; equal values count 0, be they infinite or both NaN; NaN counts inf."""
    a, b = _doubles(reference), _doubles(other)
    same_shape(a, b)
    equal = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore"):
        difference = np.where(equal, 0.0, np.abs(a - b))
    return float(np.nan_to_num(difference, nan=math.inf, posinf=math.inf).max(initial=0.0))


@dataclass
class Sums:
    """Sums over pairs of arrays, in float64, from which SQNR and cosine come."""

    reference: float = 0.0
    other: float = 0.0
    product: float = 0.0
    noise: float = 0.0
    worst: float = 0.0
    nonfinite_reference: int = 0
    nonfinite_other: int = 0
    mismatched: int = 0  #: elements that are not finite on one side only, or infinite on both and not equal

    def add(self, reference: Array, other: Array) -> None:
        """Take in a pair of arrays of one shape."""
        a, b = _doubles(reference), _doubles(other)
        same_shape(a, b)
        good = np.isfinite(a) & np.isfinite(b)
        if not good.all():
            self.nonfinite_reference += int((~np.isfinite(a)).sum())
            self.nonfinite_other += int((~np.isfinite(b)).sum())
            self.mismatched += int((~good & ~((a == b) | (np.isnan(a) & np.isnan(b)))).sum())
            a, b = a[good], b[good]
        difference = a - b
        self.reference += float(np.vdot(a, a))
        self.other += float(np.vdot(b, b))
        self.product += float(np.vdot(a, b))
        self.noise += float(np.vdot(difference, difference))
        self.worst = max(self.worst, float(np.abs(difference).max(initial=0.0)))

    @property
    def sqnr_db(self) -> float:
        """Signal to noise ratio, decibels."""
        if self.mismatched:
            return -math.inf
        if self.noise == 0:
            return math.inf
        return 10 * math.log10(self.reference / self.noise) if self.reference else -math.inf

    @property
    def cosine(self) -> float:
        """Cosine, -1..1."""
        if self.mismatched:
            return 0.0
        if not self.reference or not self.other:
            return 1.0 if self.reference == self.other else 0.0
        return max(-1.0, min(1.0, self.product / math.sqrt(self.reference) / math.sqrt(self.other)))


def _doubles(array: Array) -> Array:
    return np.asarray(array).astype(np.float64)


def same_shape(first: Array, second: Array) -> None:
    """Refuse arrays that differ in shape."""
    if first.shape != second.shape:
        raise UserError(f"metric: outputs differ in shape: {list(first.shape)} and {list(second.shape)}")
