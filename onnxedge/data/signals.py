"""Synthetic samples that are not white noise: images with structure, band-limited audio, drifting features."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def smooth_field(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Return float64 [C, *space], mean about 0, deviation 1: octaves of noise, most of it at low frequency.

    Channels share three quarters of their variance, as the colours of photographs do.
    """
    channels, space = shape[0], shape[1:]
    total = np.zeros(shape)
    sides = max(space, default=1)
    cells, weight = 2, 1.0
    while True:
        grid = math.sqrt(0.75) * rng.standard_normal((1, *(_cells(n, cells) for n in space)))
        grid = grid + math.sqrt(0.25) * rng.standard_normal((channels, *(_cells(n, cells) for n in space)))
        for axis, size in enumerate(space, start=1):
            grid = _stretched(grid, axis, size)
        total += weight * grid
        if cells >= sides:
            break
        cells, weight = cells * 2, weight * 0.6
    return _normalized(total)


def image(rng: np.random.Generator, channels: int, height: int, width: int) -> Array:
    """Return float64 [C, H, W], over many images of mean 0 and deviation about 1: a smooth field with some edges."""
    field = smooth_field(rng, (channels, height, width))
    for _ in range(4):
        top, left = int(rng.integers(height)), int(rng.integers(width))
        bottom, right = top + 1 + int(rng.integers(height)) // 2, left + 1 + int(rng.integers(width)) // 2
        field[:, top:bottom, left:right] += rng.normal(0, 1.0, (channels, 1, 1)) * 0.3 + rng.normal(0, 0.8)
    contrast, brightness = rng.uniform(0.5, 1.2), rng.normal(0, 0.45)
    return _normalized(field) * contrast + brightness


def audio(rng: np.random.Generator, length: int) -> Array:
    """Return float64 [T], deviation about 1: noise whose spectrum falls with frequency, some tones, in bursts."""
    steps = np.arange(length)
    spectrum = np.fft.rfft(rng.standard_normal(length))
    spectrum /= np.maximum(np.arange(len(spectrum)), max(1.0, length / 200)) ** rng.uniform(0.5, 1.2)
    wave = _normalized(np.fft.irfft(spectrum, length))
    base = rng.uniform(0.004, 0.02)  # cycles a sample: 64 to 320 Hz at 16 kHz
    for harmonic in range(1, 7):
        wave += rng.normal(0, 0.6 / harmonic) * np.sin(2 * np.pi * (base * harmonic * steps + rng.random()))
    knots = np.abs(rng.normal(0.3, 0.5, max(2, length // 2000 + 2)))
    envelope = np.interp(np.linspace(0, len(knots) - 1, length), np.arange(len(knots)), knots)
    return _normalized(wave * (0.05 + envelope)) * rng.uniform(0.4, 1.4)


def features(rng: np.random.Generator, steps: int, size: int) -> Array:
    """Return float64 [T, F], deviation about 1: each feature drifts along T around a level of its own."""
    drift = smooth_field(rng, (size, steps)).T if steps > 4 else np.zeros((steps, size))
    return 0.6 * rng.standard_normal(size) + 0.6 * drift + 0.53 * rng.standard_normal((steps, size))


def sample(rng: np.random.Generator, shape: tuple[int, ...], *, channels_last: bool, is_audio: bool = False) -> Array:
    """Return one float64 sample of a shape: [C, H, W] or [H, W, C] an image, [T, F] or [F] features, or audio."""
    if 0 in shape:
        return np.zeros(shape)
    if is_audio:
        return audio(rng, math.prod(shape)).reshape(shape)
    if len(shape) == 3 and channels_last:
        return np.moveaxis(image(rng, shape[2], *shape[:2]), 0, -1)
    if len(shape) == 3:
        return image(rng, *shape)
    if len(shape) == 2:
        return features(rng, *shape)
    return rng.standard_normal(shape)


def _cells(size: int, cells: int) -> int:
    return max(2, min(size, cells + 1))


def _stretched(grid: Array, axis: int, size: int) -> Array:
    """Interpolate linearly along an axis; no matrix product, whose sums might depend on the number of threads."""
    places = np.linspace(0, grid.shape[axis] - 1, size)
    low = np.minimum(places.astype(np.int64), grid.shape[axis] - 2)
    part = (places - low).reshape([-1 if i == axis else 1 for i in range(grid.ndim)])
    result: Array = grid.take(low, axis) * (1 - part) + grid.take(low + 1, axis) * part
    return result


def _normalized(array: Array) -> Array:
    deviation = array.std()
    result: Array = (array - array.mean()) / deviation if deviation > 0 else array - array.mean()
    return result
