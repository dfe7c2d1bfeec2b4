"""The noise that rounding will cause, predicted from what was observed, and the factors that make it least.

A value that is rounded to one grid has the same error in all its channels, so that a factor that makes a channel
larger makes its error, in its own units, smaller; until it sets the range itself. The weight that reads the channel
gets smaller by the same factor and is rounded to the grid of its largest channel, so that it is the other way around
there. What both do to the outputs of the layers that read is added up, relative to the power of these outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxedge.api import Array

STRENGTHS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  #: how much of a channel's range is moved into the weights
LARGEST = 2.0**12  #: ranges are taken to differ by no more: what was hardly seen of a channel may be more elsewhere
_TINY = 1e-30


@dataclass(frozen=True, eq=False)
class Activation:
    """What is known of a value that is rounded: of each slot its least and greatest value, float64 [S].

    Attributes:
        slots: roots, int64 [S], each once.
        low, high: float64 [S].
        symmetric: the grid has its zero point in the middle.
    """

    slots: Array
    low: Array
    high: Array
    symmetric: bool

    def step(self, factors: Array) -> float:
        """Return the step of its grid, for factors of all slots."""
        scaled = factors[self.slots]
        low, high = min(float((self.low * scaled).min()), 0.0), max(float((self.high * scaled).max()), 0.0)
        return max(-low, high) / 127.0 if self.symmetric else (high - low) / 255.0


@dataclass(frozen=True, eq=False)
class Layer:
    """What is known of a weight that is rounded: arrays [A, B], its axes without those of the kernel.

    Attributes:
        largest: greatest absolute value over the kernel.
        square: sum of squares over the kernel.
        taps: elements of the kernel.
        makes, reads: roots of its slots.
        power: mean square of the input channel that each element reads.
        axis: 0 or 1, the one with a scale for each element; None for one scale.
    """

    largest: Array
    square: Array
    taps: int
    makes: Array
    reads: Array
    power: Array
    axis: int | None

    @property
    def signal(self) -> float:
        """Return the power of the output, summed over its channels, as if all inputs were independent."""
        return max(float((self.square * self.power).sum()), _TINY)

    def noise(self, factors: Array) -> float:
        """Return what rounding the weight does to the output, relative to its power."""
        out, inside = factors[self.makes], factors[self.reads]
        scaled = self.largest * out / inside
        others = None if self.axis is None else 1 - self.axis
        step = scaled.max(axis=others, keepdims=True) / 127.0
        return float(((step * inside / out) ** 2 * self.power).sum()) * self.taps / 12.0 / self.signal


@dataclass(frozen=True, eq=False)
class Part:
    """Slots that have to be looked at together, and all that their factors change.

    Attributes:
        slots: roots, int64 [S].
        activations, layers: that carry them.
        limits: the greatest factor of each slot that has one; 1 for what must stay.
    """

    slots: Array
    activations: Sequence[Activation]
    layers: Sequence[Layer]
    limits: Mapping[int, float]

    def noise(self, factors: Array, weight: Array) -> float:
        """Return the noise that all layers together get, relative to their outputs; ``weight`` as of importance."""
        total = sum(layer.noise(factors) for layer in self.layers)
        for activation in self.activations:
            inside = (weight[activation.slots] / factors[activation.slots] ** 2).sum()
            total += activation.step(factors) ** 2 / 12.0 * float(inside)
        return total


def importance(layers: Sequence[Layer], count: int) -> Array:
    """Return how much error in each of all slots, as power, does to the layers that read it, float64 [count]."""
    found = np.zeros(count)
    for layer in layers:
        share = layer.square / layer.signal
        found += np.bincount(layer.reads.reshape(-1), weights=share.reshape(-1), minlength=count)
    return found


def best_factors(part: Part, factors: Array) -> tuple[Array, float]:
    """Return factors of all slots with those of a part chosen anew, and how many dB of noise that takes away.

    Of each strength the factors are ``weight^(1 - strength) / range^strength`` (Xiao et al. 2022, arXiv:2211.10438,
    eq. 4; 0.5 is Nagel et al. 2019, arXiv:1906.04721, eq. 11), with the range of a channel in all values that carry it
    and the largest share that it has of a row of a weight that reads it.
    """
    count = factors.size
    weight = importance(part.layers, count)
    ranges, shares = np.zeros(count), np.zeros(count)
    for activation in part.activations:
        ends = np.maximum(np.abs(activation.low), np.abs(activation.high)) * factors[activation.slots]
        np.maximum.at(ranges, activation.slots, ends)
    for layer in part.layers:
        scaled = layer.largest / np.maximum(factors[layer.reads], _TINY) * factors[layer.makes]
        whole = scaled.max(axis=None if layer.axis is None else 1 - layer.axis, keepdims=True)
        np.maximum.at(shares, layer.reads, scaled / np.maximum(whole, _TINY))
    least = before = part.noise(factors, weight)
    best = factors
    for strength in STRENGTHS:
        tried = _limited(part, factors, _factors(part.slots, ranges, shares, strength))
        noise = part.noise(tried, weight)
        if np.isfinite(noise) and noise < least:
            best, least = tried, noise
    return best, float(10.0 * np.log10(max(before, _TINY) / max(least, _TINY)))


def _factors(slots: Array, ranges: Array, shares: Array, strength: float) -> Array:
    """Return a factor for each slot of a part, the greatest range unchanged; 1 where nothing is known."""
    own, read = ranges[slots], shares[slots]
    known = (own > _TINY) & (read > _TINY)
    if not known.any():
        return np.ones(slots.size)
    floor = own.max() / LARGEST
    wanted = read[known] ** (1.0 - strength) / np.maximum(own[known], floor) ** strength
    wanted *= own.max() / (own[known] * wanted).max()
    found = np.ones(slots.size)
    found[known] = np.clip(wanted, 1.0 / LARGEST**2, LARGEST**2)
    return found


def _limited(part: Part, factors: Array, wanted: Array) -> Array:
    tried = factors.copy()
    tried[part.slots] *= wanted
    for slot, limit in part.limits.items():
        tried[slot] = min(tried[slot], limit) if limit > 1.0 else 1.0
    return tried
