"""Ranges by each method, against plain NumPy on known distributions."""

from __future__ import annotations

import numpy as np
import pytest
from onnxedge_passes.quantize.calibration.methods import GUARD, Histogram, chosen_range, divergence, squared_errors
from onnxedge_passes.quantize.calibration.observed import BINS, Method, Observed

from onnxedge.api import Array


def samples(kind: str, count: int = 64, size: int = 1000) -> Array:
    """Return float32 [count, size] of a distribution."""
    rng = np.random.default_rng(0)
    shape = (count, size)
    made = {
        "normal": lambda: rng.normal(0.3, 1.0, shape),
        "relu": lambda: np.maximum(rng.normal(0.0, 2.0, shape), 0.0),
        "negative": lambda: -rng.exponential(1.0, shape),
        "laplace": lambda: rng.laplace(0.0, 1.0, shape),
        "outliers": lambda: np.where(rng.random(shape) < 1e-3, rng.normal(0, 60, shape), rng.normal(0, 1, shape)),
        "uniform": lambda: rng.uniform(-1.0, 3.0, shape),
    }[kind]()
    return np.asarray(made, np.float32)


KINDS = ("normal", "relu", "negative", "laplace", "outliers", "uniform")


def observed(array: Array, batch: int = 16) -> Observed:
    """Return what two passes in batches make of samples along axis 0."""
    entry = Observed()
    parts = [array[start : start + batch] for start in range(0, len(array), batch)]
    for part in parts:
        entry.extend(part, len(part), 1)
    for part in parts:
        entry.count(part)
    return entry


def rounded(array: Array, low: float, high: float, symmetric: bool) -> Array:
    """Round to 8 bits over a range, as QuantizeLinear and DequantizeLinear do."""
    x = array.astype(np.float64)
    if symmetric:
        step = max(-low, high) / 127
        return np.asarray(np.clip(np.rint(x / step), -127, 127) * step)
    step = (high - low) / 255
    zero = np.rint(-low / step)
    return np.asarray((np.clip(np.rint(x / step) + zero, 0, 255) - zero) * step)


def error(array: Array, low: float, high: float, symmetric: bool = False) -> float:
    return float(((rounded(array, low, high, symmetric) - array) ** 2).mean())


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_kept(kind: str) -> None:
    array = samples(kind)
    entry = observed(array)
    assert (entry.low, entry.high) == (array.min(), array.max())
    assert entry.counts is not None
    assert entry.counts.sum() == array.size
    assert entry.samples == 64
    np.testing.assert_allclose(entry.average, (array.min(axis=1).mean(), array.max(axis=1).mean()), rtol=1e-6)
    assert entry.mean is not None
    np.testing.assert_allclose(entry.mean, array.mean(axis=0, dtype=np.float64), atol=1e-6)
    edges = np.linspace(array.min(), array.max(), BINS + 1)
    np.testing.assert_allclose(np.cumsum(entry.counts), np.searchsorted(np.sort(array.ravel()), edges[1:]), atol=40)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", [1, 7, 64])
def test_batches_make_no_difference(kind: str, batch: int) -> None:
    array = samples(kind, 21, 50)
    one, other = observed(array, 21), observed(array, batch)
    assert (one.low, one.high) == (other.low, other.high)
    np.testing.assert_array_equal(one.counts, other.counts)
    np.testing.assert_allclose(one.average, other.average, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_minmax_and_average(kind: str) -> None:
    array = samples(kind)
    entry = observed(array)
    assert chosen_range(entry, ("minmax", 0.0)) == (min(array.min(), 0.0), max(array.max(), 0.0))
    low, high = array.min(axis=1).mean(), array.max(axis=1).mean()
    np.testing.assert_allclose(chosen_range(entry, ("average", 0.0)), (min(low, 0), max(high, 0)), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("percentile", [99.0, 99.9, 99.99])
def test_percentile(kind: str, percentile: float) -> None:
    array = samples(kind)
    entry = observed(array)
    low, high = chosen_range(entry, ("percentile", percentile))
    tail = (1.0 - percentile / 100.0) / (1 if low == 0.0 or high == 0.0 else 2)
    width, one = entry.bin_width, 1.5 / array.size
    for sign, end in ((1, low), (-1, high)):
        outside = sign * array.astype(np.float64)
        if end == 0.0:
            assert (outside < -width).sum() == 0
            continue
        assert (outside < sign * end - width).mean() <= tail + one
        assert (outside < sign * end + width).mean() >= tail - one


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("symmetric", [False, True])
def test_mse_is_near_the_best_of_a_fine_search(kind: str, symmetric: bool) -> None:
    array = samples(kind, 16)
    low, high = chosen_range(observed(array), ("mse", 0.0), symmetric=symmetric)
    ends = [np.linspace(0.02, 1.0, 50) * end if end else [0.0] for end in (min(array.min(), 0), max(array.max(), 0))]
    best = min(error(array, a, b, symmetric) for a in ends[0] for b in ends[1] if a < b)
    assert error(array, low, high, symmetric) <= 1.1 * best
    assert error(array, low, high, symmetric) <= 1.001 * error(array, array.min(), array.max(), symmetric)


@pytest.mark.parametrize("kind", KINDS)
def test_expected_errors_are_those_of_the_values(kind: str) -> None:
    array = samples(kind)
    histogram = Histogram(observed(array), symmetric=False)
    for low, high in ((-1.0, 2.0), (-3.0, 3.0), (-0.5, 4.0)):
        expected = squared_errors(histogram, np.array([low]), np.array([high]))[0]
        assert expected == pytest.approx(error(array, low, high), rel=0.02, abs=2 * observed(array).bin_width ** 2)


def plain_divergence(entry: Observed, low: float, high: float) -> float:
    """Return the divergence by loops over all bins, after Migacz 2017."""
    assert entry.counts is not None
    step = (high - low) / 255
    centres = [entry.low + (i + 0.5) * entry.bin_width for i in range(BINS)]
    inside = [i for i in range(BINS) if low <= centres[i] <= high and entry.counts[i]]
    reference = {i: float(entry.counts[i]) for i in inside}
    for i in range(BINS):
        if entry.counts[i] and i not in reference:
            reference[inside[0] if centres[i] < low else inside[-1]] += float(entry.counts[i])
    steps: dict[int, list[int]] = {}
    for i in inside:
        steps.setdefault(min(max(round(centres[i] / step) + round(-low / step), 0), 255), []).append(i)
    spread = {i: sum(entry.counts[j] for j in bins) / len(bins) for bins in steps.values() for i in bins}
    total, kept = sum(reference.values()), sum(spread.values())
    return sum(p / total * np.log((p / total) / max(spread[i] / kept, 1e-9)) for i, p in reference.items())


@pytest.mark.parametrize("kind", KINDS)
def test_divergence(kind: str) -> None:
    entry = observed(samples(kind, 8))
    histogram = Histogram(entry, symmetric=False)
    for share in (1.0, 0.6, 0.3):
        low, high = min(entry.low, 0.0) * share, max(entry.high, 0.0) * share
        assert divergence(histogram, low, high) == pytest.approx(plain_divergence(entry, low, high), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("symmetric", [False, True])
def test_entropy_never_collapses(kind: str, symmetric: bool) -> None:
    array = samples(kind)
    low, high = chosen_range(observed(array), ("entropy", 0.0), symmetric=symmetric)
    whole = error(array, min(array.min(), 0.0), max(array.max(), 0.0), symmetric)
    assert error(array, low, high, symmetric) <= 1.05 * GUARD * whole


def test_the_guard_is_needed() -> None:
    """Nearly all values are alike: the divergence alone keeps those and cuts off what carries the signal."""
    rng = np.random.default_rng(0)
    array = np.where(rng.random((16, 4000)) < 0.99, rng.uniform(0, 0.05, (16, 4000)), rng.uniform(0, 8, (16, 4000)))
    entry = observed(array.astype(np.float32))
    histogram = Histogram(entry, symmetric=False)
    free = min(np.geomspace(1, 0.05, 40), key=lambda share: divergence(histogram, 0.0, entry.high * share))
    assert error(array, 0.0, entry.high * free) > 10 * error(array, 0.0, entry.high)
    assert error(array, *chosen_range(entry, ("entropy", 0.0))) <= 1.05 * GUARD * error(array, 0.0, entry.high)


@pytest.mark.parametrize("method", ["minmax", "average", "percentile", "entropy", "mse"])
@pytest.mark.parametrize("value", [0.0, 2.5, -3.0])
def test_one_value_all_over(method: Method, value: float) -> None:
    low, high = chosen_range(observed(np.full((4, 5), value, np.float32)), (method, 99.99))
    assert (low, high) == (min(value, 0.0), max(value, 0.0))


def test_values_that_are_not_finite() -> None:
    for strange in (np.nan, np.inf, -np.inf):
        array = samples("normal", 4, 10)
        array[2, 3] = strange
        entry = observed(array)
        assert not entry.finite
        assert entry.counts is None


def test_extreme_values_are_counted() -> None:
    array = np.array([[-3e38, 3e38, 0.0, 1.0]], np.float32)
    entry = observed(array)
    assert entry.counts is not None
    assert entry.counts.sum() == 4
    tiny = observed(np.array([[0.0, 1e-42]], np.float32))
    assert chosen_range(tiny, ("mse", 0.0)) == (0.0, pytest.approx(1e-42, rel=0.01))


@pytest.mark.parametrize("method", ["minmax", "average", "percentile", "entropy", "mse"])
def test_shards_merge_as_if_seen_together(method: Method) -> None:
    """Exact but for the bins, which are spread over those of the joint range."""
    array = samples("laplace", 60)
    array[40:] *= 3
    whole, parts = observed(array), [observed(array[:25]), observed(array[25:26]), observed(array[26:])]
    merged = parts[0]
    for part in parts[1:]:
        merged.merge(part)
    assert (merged.low, merged.high, merged.samples, merged.elements) == (whole.low, whole.high, 60, array.size)
    assert merged.counts is not None
    assert merged.counts.sum() == array.size
    assert merged.mean is not None
    assert whole.mean is not None
    np.testing.assert_allclose(merged.mean, whole.mean, atol=1e-7)
    one, other = (chosen_range(entry, (method, 99.9)) for entry in (merged, whole))
    np.testing.assert_allclose(one, other, rtol=0.08 if method in ("entropy", "mse") else 1e-3)


def test_a_shard_of_one_value_merges() -> None:
    merged = observed(np.zeros((3, 10), np.float32))
    merged.merge(observed(samples("normal", 4, 10)))
    assert merged.counts is not None
    assert merged.counts.sum() == 70
    assert merged.counts.max() >= 30
    empty = Observed()
    empty.merge(merged)
    assert (empty.low, empty.high, empty.samples) == (merged.low, merged.high, 7)
    merged.merge(Observed())
    assert merged.samples == 7
