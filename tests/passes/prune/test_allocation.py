"""Allocation: the budget is met, the error is near the least there is, widely read channels cost more."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from onnxedge_passes.prune.allocation import Budget, Measure, allocate, widths
from onnxedge_passes.prune.importance import Curve
from test_budgets import BOTTLENECK, BOTTLENECK_WEIGHTS
from test_groups import analysed
from topologies import RESIDUAL, RESIDUAL_WEIGHTS, build, images

MODELS = {
    "residual": (RESIDUAL, RESIDUAL_WEIGHTS, (3, 8, 8)),
    "bottleneck": (BOTTLENECK, BOTTLENECK_WEIGHTS, (8, 6, 6)),
}


def measure_of(name: str, budget: Budget = "macs") -> tuple[Measure, list[list[int]]]:
    """Return what is counted in a small model, and the widths of its groups."""
    text, weights, shape = MODELS[name]
    groups = analysed(build(text, weights), images(shape))
    return Measure(groups, budget), [widths(group, 2, may_vanish=False, exact=True) for group in groups.free]


def random_curves(measure: Measure, seed: int) -> list[Curve]:
    """Return rising curves, not all of them convex."""
    rng = np.random.default_rng(seed)
    steps = [rng.gamma(0.5, size=size) * np.linspace(0.2, 1, size) for size in measure.full]
    return [Curve(np.arange(len(own)), np.concatenate([[0.0], np.cumsum(own)])) for own in steps]


def cost(measure: Measure, curves: list[Curve], kept: tuple[int, ...]) -> float:
    """Return the error that the allocation goes by."""
    factors = [2.0 if count > 1 else 1.0 for count in measure.readers]
    errors = [c.error[size - k] for c, size, k in zip(curves, measure.full, kept, strict=True)]
    return float(sum(f * e for f, e in zip(factors, errors, strict=True)))


@pytest.mark.parametrize("budget", ["macs", "params", "ratio"])
@pytest.mark.parametrize("name", MODELS)
def test_error_is_near_the_least(name: str, budget: Budget) -> None:
    """All choices are tried; the plan is the best of them, or within a twentieth."""
    measure, choices = measure_of(name, budget)
    sums = [0.0, 0.0]
    for seed, keep in product(range(2), (0.45, 0.7)):
        curves = random_curves(measure, seed)
        plan = allocate(measure, curves, choices, keep)
        assert plan.share <= keep + 1e-9
        assert all(count in allowed for count, allowed in zip(plan.kept, choices, strict=True))
        allowed = (kept for kept in product(*choices) if measure.at(kept) <= keep * measure.total)
        sums[0] += min(cost(measure, curves, kept) for kept in allowed)
        sums[1] += cost(measure, curves, plan.kept)
    assert sums[1] <= 1.05 * sums[0]


def test_out_of_reach_gives_the_least_there_is() -> None:
    measure, choices = measure_of("residual")
    plan = allocate(measure, random_curves(measure, 0), choices, 1e-4)
    assert plan.kept == tuple(allowed[-1] for allowed in choices)
    whole = allocate(measure, random_curves(measure, 0), choices, 1.0)
    assert whole.kept == measure.full
    assert whole.share == pytest.approx(1)


def test_channels_with_several_readers_go_later() -> None:
    """With curves in proportion to what is saved, the stream that two convolutions read stays whole."""
    measure, choices = measure_of("residual", "ratio")
    assert max(measure.readers) > 1
    curves = [Curve(np.arange(size), np.linspace(0, size, size + 1)) for size in measure.full]
    plan = allocate(measure, curves, choices, 0.85)
    narrow = {count for count, kept, full in zip(measure.readers, plan.kept, measure.full, strict=True) if kept < full}
    assert narrow == {1}
