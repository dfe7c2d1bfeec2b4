"""Search along the allocation: as much as the bounds allow, or as much as the clock asks for."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnxedge_passes.prune.allocation import Plan

if TYPE_CHECKING:
    from onnxedge_passes.prune.run import Outcome

_FIRST, _LEAST = 0.7, 0.3  #: shares of the MACs: tried first, and the least that is tried
_PROBES = 4  #: shares tried, each half way between what was good and what was not
_PROBE_SECONDS = 150.0  #: no further share is tried when as much is spent
_NEAR = 0.02  #: a measured ratio within this share of the budget meets it
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
    plan_for: Callable[[float], Plan], clock: Callable[[Plan], float], share: float, *, seconds: float
) -> tuple[Plan, float]:
    """Ask for plans until one takes the share of the time that is wanted: secant steps inside of a bracket.

    Args:
        plan_for: gives the plan for a predicted share.
        clock: times a plan, as a share of the whole.
        share: wanted, 0..1.
        seconds: when to stop.

    Returns:
        The plan and its measured share: the largest that meets the budget, or the fastest where none does.
    """
    start, asked, low, high = time.monotonic(), share, 0.0, 1.0
    timed: dict[tuple[int, ...], float] = {}
    plans: dict[tuple[int, ...], Plan] = {}
    for _ in range(_TURNS):
        plan = plan_for(asked)
        if plan.kept not in timed:
            timed[plan.kept], plans[plan.kept] = clock(plan), plan
        ratio = timed[plan.kept]
        low, high = (asked, high) if ratio <= share else (low, asked)
        if abs(ratio - share) <= _NEAR * share or high - low < 0.005 or time.monotonic() - start > seconds:
            break
        guess = asked * share / ratio
        asked = guess if low < guess < high else (low + high) / 2
    met = [kept for kept, ratio in timed.items() if ratio <= (1 + _NEAR) * share]
    best = max(met, key=timed.__getitem__) if met else min(timed, key=timed.__getitem__)
    return plans[best], timed[best]
