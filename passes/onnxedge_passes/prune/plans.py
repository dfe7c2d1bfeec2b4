"""Widths for a budget; for a latency several that the clock finds near it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, partial
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxedge.api import Array, Context, Feed
from onnxedge_passes.prune.allocation import BUDGETS, Budget, Measure, Plan, allocate, widths
from onnxedge_passes.prune.groups import Groups
from onnxedge_passes.prune.importance import Curve
from onnxedge_passes.prune.latency import Timed
from onnxedge_passes.prune.overrides import restricted
from onnxedge_passes.prune.search import Clocked, by_clock
from onnxedge_passes.prune.trial import Clock, Remnants

if TYPE_CHECKING:
    from onnxedge_passes.prune.prune import Prune

_SHORT = 0.01  #: a plan that misses its budget by more than this share is told
_BLOCKS = (0.85, 1.0, 0.7)  #: what the error of a whole block counts for, in plans for a latency


class Planner:
    """Choose the widths of a model whose groups are known.

    Attributes:
        budget: what is counted; the MACs where none is given.
        share: 0..1, what is kept of it, None where no budget is given.
        figures: what was found on the way, for the report.
    """

    def __init__(self, options: Prune, groups: Groups, remnants: Remnants, context: Context) -> None:
        self._options, self._groups, self._remnants, self._context = options, groups, remnants, context
        given = ((key, getattr(options, key)) for key in BUDGETS if getattr(options, key) is not None)
        found: tuple[Budget, float | None] = next(given, ("macs", None))
        self.budget, self.share = found
        self.figures: dict[str, Any] = {}

    @cached_property
    def meter(self) -> Measure:
        """What the budget counts; for a latency the layers are timed."""
        if self.budget != "latency":
            return Measure(self._groups, self.budget)
        timed = Timed(self._groups, self.choices(), self._feed, self._context, self._options.timing_s / 2)
        self.figures |= {"layers_timed": timed.timed, "layers_guessed": timed.guessed}
        return Measure(self._groups, "latency", timed)

    @cached_property
    def clock(self) -> Clock:
        """Whole models in turns."""
        bare = self.budget == "latency" and self._options.repair != "none"
        return Clock(self._groups, self._remnants, self._feed, self._context, bare=bare, behind=self._options.behind)

    @property
    def _feed(self) -> Feed:
        return next(iter(self._context.calibration.feeds(1)))

    @property
    def _multiple(self) -> int:
        return self._options.multiple or self._context.target.channel_multiple

    def choices(
        self, multiple: int | None = None, gone: Array | None = None, *, exact: bool = False
    ) -> list[list[int]]:
        """Return the widths that each group may have once some units are gone.

        Args:
            multiple: of the channels; default: the option's, or the target's.
            gone: bool [units].
            exact: do not cut narrow groups in finer steps.
        """
        exact = exact or self._options.multiple is not None
        choices = [
            widths(group, multiple or self._multiple, may_vanish=left is not None, exact=exact)
            for group, left in zip(self._groups.free, self._remnants, strict=True)
        ]
        choices = restricted(self._groups, choices, self._options.keep, self._options.exclude)
        if gone is None:
            return choices
        most = [int((~gone[group.units]).sum()) for group in self._groups.free]
        return [[c for c in own if c <= m] or [m] for own, m in zip(choices, most, strict=True)]

    def removed(self, plan: Plan, found: Sequence[Curve]) -> Array:
        """Return bool [units], what goes by a plan."""
        removed = np.zeros(len(self._groups.component), bool)
        for group, kept, curve in zip(self._groups.free, plan.kept, found, strict=True):
            removed[group.units[curve.order[: len(group.units) - kept]]] = True
        return removed

    def plan(self, found: Sequence[Curve], share: float, gone: Array | None = None, *, told: bool = True) -> Plan:
        """Allocate; notes say what falls short, where they are wanted."""
        return allocate(self.meter, found, self._within_reach(share, gone, told=told), share)

    def _within_reach(self, share: float, gone: Array | None, *, told: bool) -> list[list[int]]:
        """Return widths; the multiple is halved down to 4 where the budget cannot be met with it."""
        multiple = self._multiple
        while True:
            choices = self.choices(multiple, gone)
            least = self.meter.at([min(own) for own in choices]) / max(self.meter.total, 1e-30)
            if least <= share + _SHORT or self._options.multiple or multiple % 2 or multiple <= 4:
                break
            multiple //= 2
        if told and multiple != self._multiple:
            text = f"widths are multiples of {multiple}: with {self._multiple} the budget cannot be met"
            self._context.note(None, text)
        if told and least > share + _SHORT:
            text = f"{self.budget}={share:g} is out of reach, {least:.3f} is left: {self._why()}"
            self._context.note(None, text)
        return choices

    def clocked(self, found: Sequence[Curve], share: float, gone: Array | None = None) -> list[Clocked]:
        """Return different plans that take a share of the time by the clock, or come nearest to it.

        The curves do not know how errors add up. So whole blocks are made cheap and dear against narrower ones, with
        widths of full multiples and finer ones; which of the plans is best is for the refitted models to say.
        """
        end, behind = time.monotonic() + self._options.timing_s, self._options.behind
        whole = self.clock.ratio(np.zeros(len(self._groups.component), bool)) if behind else 1.0
        first = min(1.0, share / whole)
        fine, coarse = self._within_reach(first, gone, told=not behind), self.choices(None, gone, exact=True)
        plans: dict[tuple[int, ...], Clocked] = {}
        for factor, choices in product(_BLOCKS, [fine, coarse] if fine != coarse else [fine]):
            left = end - time.monotonic()
            if plans and left <= 0:
                break
            weighed = [priced(curve, factor) for curve in found]
            timed = by_clock(
                partial(allocate, self.meter, weighed, choices),
                lambda plan: self.clock.ratio(self.removed(plan, found)),
                share,
                first,
                left,
            )
            plans.setdefault(timed.plan.kept, timed)
            first = timed.plan.share
        near = [timed for timed in plans.values() if timed.meets(share)]
        return near or [min(plans.values(), key=lambda timed: timed.ratio)]

    def _why(self) -> str:
        """Say what stands in the way of a smaller model."""
        reasons = Counter(group.reason for group in self._groups.locked if group.begins)
        told = ", ".join(f"{reason} ({count})" for reason, count in reasons.most_common(3))
        return f"the other groups are at their least width; locked: {told or 'none'}"


def priced(curve: Curve, factor: float) -> Curve:
    """Return the curve with the error of the whole group, whose place nothing takes, counted so many times."""
    error = curve.error.copy()
    error[-1] *= factor
    return replace(curve, error=error)
