"""Search along the allocation: as much as the bounds allow, or as much as the clock asks for."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING

from onnxedge_passes.prune.allocation import Plan

if TYPE_CHECKING:
    from onnxedge_passes.prune.run import Outcome

_FIRST, _LEAST = 0.7, 0.3  #: shares of the MACs: tried first, and the least that is tried
_PROBES = 4  #: shares tried, each half way between what was good and what was not
_PROBE_SECONDS = 150.0  #: no further share is tried when as much is spent
_NEAR = 0.015  #: a measured ratio within this share of the budget meets it
_TURNS = 7  #: cut models that are timed at most


@dataclass(frozen=True, eq=False)
class Tried:
    """Say whether a removal keeps the bounds.

    Attributes:
        is_good: whether it does.
        outcome: the removal, None where nothing was removed.
    """

    is_good: bool
    outcome: Outcome | None = None


@dataclass(frozen=True)
class Clocked:
    """Hold a plan and the share of the time that it takes on the clock.

    Attributes:
        plan: the widths; its share is what was predicted.
        ratio: measured, 0..1.
    """

    plan: Plan
    ratio: float

    def meets(self, share: float) -> bool:
        """Tell whether it takes no more than a share of the time, as far as the clock can tell."""
        return self.ratio <= (1 + _NEAR) * share


def largest_cut(attempt: Callable[[float], Tried]) -> Tried | None:
    """Return the smallest share of the MACs that keeps the bounds, by bisection; None where none does."""
    start, share, low, high = time.monotonic(), _FIRST, _LEAST, 1.0
    best: Tried | None = None
    for _ in range(_PROBES):
        tried = attempt(share)
        if tried.is_good:
            best, high = (tried if tried.outcome is not None else best), share
        else:
            low = share
        if time.monotonic() - start > _PROBE_SECONDS:
            break
        share = round((low + high) / 2, 3)
    return best


def by_clock(
    plan_for: Callable[[float], Plan], clock: Callable[[Plan], float], share: float, first: float, seconds: float
) -> Clocked:
    """Ask for plans until one takes the share of the time that is wanted: secant steps inside of a bracket.

    Args:
        plan_for: gives the plan for a predicted share.
        clock: times a plan, as a share of the whole.
        share: wanted, 0..1.
        first: predicted share that is tried first.
        seconds: when to stop.

    Returns:
        The plan and its measured share: the largest that meets the budget, or the fastest where none does.
    """
    start, asked, low, high = time.monotonic(), first, 0.0, 1.0
    timed: dict[tuple[int, ...], Clocked] = {}
    for _ in range(_TURNS):
        plan = plan_for(asked)
        if plan.kept not in timed:
            timed[plan.kept] = Clocked(plan, clock(plan))
        ratio = timed[plan.kept].ratio
        low, high = (asked, high) if ratio <= share else (low, asked)
        if abs(ratio - share) <= _NEAR * share or high - low < 0.005 or time.monotonic() - start > seconds:
            break
        guess = asked * share / ratio
        asked = guess if low < guess < high else (low + high) / 2
    met = [found for found in timed.values() if found.meets(share)]
    return max(met, key=attrgetter("ratio")) if met else min(timed.values(), key=attrgetter("ratio"))
