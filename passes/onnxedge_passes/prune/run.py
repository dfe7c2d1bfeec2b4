"""One pruning of a model whose groups are known: choose what goes, refit, compare, cut."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from onnxedge.api import Array, Comparison, Context, Feed, PassError, Result, Session, find_importance
from onnxedge_passes.prune.allocation import BUDGETS, Budget, Measure, Plan, allocate, widths
from onnxedge_passes.prune.compensation import Constants, Repaired, masked_constants, repair
from onnxedge_passes.prune.groups import Groups
from onnxedge_passes.prune.importance import Curve, curves
from onnxedge_passes.prune.latency import Timed
from onnxedge_passes.prune.linear import linear_problem
from onnxedge_passes.prune.overrides import restricted
from onnxedge_passes.prune.reconstruction import reconstruct
from onnxedge_passes.prune.search import Tried, by_clock, largest_cut
from onnxedge_passes.prune.statistics import BY_WEIGHTS, Statistics, measure
from onnxedge_passes.prune.stream import held_bytes
from onnxedge_passes.prune.surgery import remnants
from onnxedge_passes.prune.trial import Clock, carry_out, masked

if TYPE_CHECKING:
    from onnxedge.api import Data
    from onnxedge_passes.prune.prune import Prune

_BATCH = 32
_STREAM_BYTES = 1 << 30  #: activations of both streams that the refit may hold
_CAPTURE_BYTES = 1 << 28  #: activations that one run for the statistics may give out
_SHORT = 0.01  #: a plan that misses its budget by more than this share is told
_MET = 0.03  #: a latency further than this share from its budget is told
_FASTER = 0.99  #: without a budget a cut has to be below this share of the time


@dataclass(frozen=True, eq=False)
class Outcome:
    """A removal that is refitted and compared, ready to be made.

    Attributes:
        plan: the widths.
        repaired: what goes, and the refitted weights.
        comparison: with the original on held-out samples.
    """

    plan: Plan
    repaired: Repaired
    comparison: Comparison


class Pruning:
    """One pruning of a model whose groups are known.

    Attributes:
        fit: calibration samples that statistics are taken of.
        mended: those that the refit uses.
    """

    def __init__(self, options: Prune, groups: Groups, gammas: Mapping[ir.Node, Array], context: Context) -> None:
        self.options, self.groups, self.gammas, self.context = options, groups, gammas, context
        self.model = groups.labels.facts.model
        self.remnants = remnants(groups)
        self.budget, self.share = self._budget()
        self.figures: dict[str, Any] = {"groups": len(groups.free), "locked": len(groups.locked)}
        self._score = None if options.importance == "obs" else find_importance(options.importance)
        data = context.calibration
        held_out = 0.25 if self.share is None else 0.125
        fit, held = data.slice(0, options.samples).split(held_out)
        if data.synthetic:
            context.note(None, "chosen and refitted on synthetic samples: what real data needs is not known to it")
        batch, limit = self._sizes(fit)
        batch = min(batch, max(len(held), 1))  # batches of one shape in both
        self._batches = list(held.batches(batch))
        self.fit = list(fit.feeds(batch))
        self.mended = self.fit if limit is None else list(fit.feeds(batch, limit))
        self._references = [Session(self.model, threads=context.threads).run(b.feed) for b in self._batches]

    def _budget(self) -> tuple[Budget, float | None]:
        for key in BUDGETS:
            value = getattr(self.options, key)
            if value is not None:
                return key, float(value)
        return "macs", None

    def _sizes(self, fit: Data) -> tuple[int, int | None]:
        """Return samples a batch, and how many samples the refit can hold in memory (None for all)."""
        facts = self.groups.labels.facts
        readers = [(linear_problem(self.groups, reader), reader.data) for reader in self.groups.labels.readers]
        data = {value for _, value in readers if value is not None}
        targets = {linear.target for linear, _ in readers if linear is not None}
        captured = 4 * sum(math.prod(facts.shapes.get(value, (0,))) for value in data | targets) / facts.samples
        batch = max(1, min(_BATCH, int(_CAPTURE_BYTES / max(captured, 1))))
        held = 2 * held_bytes(self.model, facts.shapes, data | targets) / facts.samples
        limit = max(_BATCH, int(_STREAM_BYTES / max(held, 1)))
        if limit >= len(fit):
            return batch, None
        self.context.note(None, f"refitted on {limit} samples of {len(fit)}: more would take too much memory")
        return batch, limit

    def run(self) -> Result:
        """Prune to the budget, or as far as the bounds allow where there is none."""
        if self.share is not None:
            found = self._outcome(self.share)
        else:
            tried = largest_cut(self._within_bounds)
            found = tried.outcome if tried is not None else None
            if found is not None and not self._is_faster(found):
                found = None
        if found is None or found.plan.kept == self.meter.full:
            self.context.note(None, "left alone: nothing can be removed within the bounds")
            self._tell_costs(self.meter.full)
            return Result(figures=self.figures)
        return self._cut(found)

    @cached_property
    def meter(self) -> Measure:
        """What the budget counts; for a latency the layers are timed."""
        if self.budget != "latency":
            return Measure(self.groups, self.budget)
        timed = Timed(self.groups, self.choices(), self._feed, self.context, self.options.timing_s / 2)
        self.figures |= {"layers_timed": timed.timed, "layers_guessed": timed.guessed}
        return Measure(self.groups, "latency", timed)

    @cached_property
    def clock(self) -> Clock:
        """Whole models in turns."""
        bare = self.budget == "latency" and self.options.repair != "none"
        return Clock(self.groups, self.remnants, self._feed, self.context.threads, bare=bare)

    @property
    def _feed(self) -> Feed:
        return next(iter(self.context.calibration.feeds(1)))

    @property
    def _multiple(self) -> int:
        return self.options.multiple or self.context.target.channel_multiple

    def choices(self, multiple: int | None = None, gone: Array | None = None) -> list[list[int]]:
        """Return the widths that each group may have once some units are gone."""
        exact = self.options.multiple is not None
        choices = [
            widths(group, multiple or self._multiple, may_vanish=left is not None, exact=exact)
            for group, left in zip(self.groups.free, self.remnants, strict=True)
        ]
        choices = restricted(self.groups, choices, self.options.keep, self.options.exclude)
        if gone is None:
            return choices
        most = [int((~gone[group.units]).sum()) for group in self.groups.free]
        return [[c for c in own if c <= m] or [m] for own, m in zip(choices, most, strict=True)]

    def curves(self, after: Repaired | None = None) -> list[Curve]:
        """Return the error curves of the whole model, or of what is left after a removal."""
        constants = after.constants if after is not None else None
        return curves(
            self.groups,
            self._score,
            self._statistics(constants),
            self.gammas,
            self.options.ridge,
            gone=after.removed if after is not None else None,
            weights=constants,
            seed=self.context.seed,
        )

    @cached_property
    def _first_curves(self) -> list[Curve]:
        return self.curves()

    def _statistics(self, constants: Constants | None) -> Statistics | None:
        if self.options.importance in BY_WEIGHTS:
            return None
        feeds = self.context.progress.track(self.fit, "prune: statistics", len(self.fit))
        return measure(
            self.groups,
            feeds,
            len(self.fit),
            self.context.seed,
            self.context.threads,
            with_grams=self._score is None,
            weights=constants,
        )

    def _outcome(self, share: float) -> Outcome | None:
        """Cut to a share in as many steps as asked for; each step sees what the refitted model before it carries."""
        repaired: Repaired | None = None
        plan: Plan | None = None
        for step in range(1, self.options.steps + 1):
            found = self._first_curves if repaired is None else self.curves(repaired)
            gone = repaired.removed if repaired is not None else None
            plan = self._plan(found, share ** (step / self.options.steps), gone, last=step == self.options.steps)
            if plan.kept != self.meter.full:
                repaired = self.repair(self.removed(plan, found))
        if plan is None or repaired is None:
            return None
        return Outcome(plan, repaired, self._compare(repaired.constants))

    def _plan(self, found: Sequence[Curve], share: float, gone: Array | None, *, last: bool) -> Plan:
        """Allocate; the multiple is halved down to 4 where the budget cannot be met with it."""
        multiple = self._multiple
        while True:
            choices = self.choices(multiple, gone)
            plan = allocate(self.meter, found, choices, share)
            if plan.share <= share + _SHORT or self.options.multiple or multiple % 2 or multiple <= 4:
                break
            multiple //= 2
        if not last:
            return plan
        if multiple != self._multiple:
            told = f"widths are multiples of {multiple}: with {self._multiple} the budget cannot be met"
            self.context.note(None, told)
        if plan.share > share + _SHORT:
            self.context.note(None, f"{self.budget}={share:g} is out of reach, {plan.share:.3f} is left: {self._why()}")
        if self.budget != "latency":
            return plan
        plan, ratio = self.timed_plan(found, choices, share)
        self.figures |= {"latency_predicted": round(plan.share, 4), "latency_measured": round(ratio, 4)}
        if abs(ratio - share) > _MET * share:
            self.context.note(None, f"latency={share:g}: {ratio:.3f} is measured, the nearest that the widths give")
        return plan

    def timed_plan(self, found: Sequence[Curve], choices: Sequence[Sequence[int]], share: float) -> tuple[Plan, float]:
        """Return a plan that takes a share of the time, and what the clock says of it."""
        return by_clock(
            lambda asked: allocate(self.meter, found, choices, asked),
            lambda plan: self.clock.ratio(self.removed(plan, found)),
            share,
            seconds=self.options.timing_s,
        )

    def _why(self) -> str:
        """Say what stands in the way of a smaller model."""
        reasons = Counter(group.reason for group in self.groups.locked if group.begins)
        told = ", ".join(f"{reason} ({count})" for reason, count in reasons.most_common(3))
        return f"the other groups are at their least width; locked: {told or 'none'}"

    def removed(self, plan: Plan, found: Sequence[Curve]) -> Array:
        """Return bool [units], what goes by a plan."""
        removed = np.zeros(len(self.groups.component), bool)
        for group, kept, curve in zip(self.groups.free, plan.kept, found, strict=True):
            removed[group.units[curve.order[: len(group.units) - kept]]] = True
        return removed

    def repair(self, removed: Array) -> Repaired:
        """Return what goes and the weights that are left, mended as the options say."""
        if self.options.repair == "none":
            return Repaired(removed, masked_constants(self.groups, removed), 0)
        return repair(
            self.groups,
            removed,
            self.mended,
            self.context,
            ridge=self.options.ridge,
            reselect=self.options.importance == "obs",
            bare=self.budget == "latency",
        )

    def _compare(self, constants: Constants) -> Comparison:
        """Run the masked model, which computes what the cut one will, against the original on held-out samples."""
        return self._compared(masked(self.model, constants))

    def _compared(self, model: ir.Model) -> Comparison:
        session = Session(model, threads=self.context.threads)
        comparison = Comparison()
        for batch, reference in zip(self._batches, self._references, strict=True):
            comparison.add(reference, session.run(batch.feed), count=batch.count)
        return comparison

    def _within_bounds(self, share: float) -> Tried:
        """Cut to a share and tell whether the answers stay within the bounds."""
        found = self._outcome(share)
        if found is None:
            return Tried(is_good=True)
        comparison, options = found.comparison, self.options
        if len(comparison.sums) == 1 and not math.isnan(comparison.agreement):
            is_good = comparison.agreement >= options.min_agreement
            told = f"agreement {comparison.agreement:.3f} < {options.min_agreement:g}"
        else:
            is_good = comparison.worst_sqnr_db >= options.min_sqnr_db
            told = f"SQNR {comparison.worst_sqnr_db:.1f} dB < {options.min_sqnr_db:g}"
        if not is_good:
            self.context.note(None, f"{share:g} of the MACs given up: {told} on held-out samples")
        return Tried(is_good, found)

    def _is_faster(self, found: Outcome) -> bool:
        """Tell whether the clock shows the cut, where the target runs here."""
        if not self.context.target.runs_here:
            return True
        ratio = self.clock.ratio(found.repaired.removed)
        self.figures["latency_measured"] = round(ratio, 4)
        if ratio < _FASTER:
            return True
        told = f"{found.plan.share:.2f} of the MACs given up: they take {ratio:.2f} of the time"
        self.context.note(None, told)
        return False

    def _cut(self, found: Outcome) -> Result:
        plan, repaired = found.plan, found.repaired
        whole, original = masked(self.model, repaired.constants), masked(self.model, {})
        self._tell_costs(plan.kept)
        names = [
            {"group": group.name, "before": len(group.units) * group.channels, "after": kept * group.channels}
            for group, kept in zip(self.groups.free, plan.kept, strict=True)
        ]
        rewrites = carry_out(self.groups, self.remnants, repaired.removed, repaired.constants)
        self._check(whole)
        comparison = self._trained(original) or found.comparison
        narrowed = sum(0 < kept < full for kept, full in zip(plan.kept, self.meter.full, strict=True))
        vanished = plan.kept.count(0)
        summary = f"{self.budget} {plan.share:.2f} kept, {narrowed} widths narrowed"
        if vanished:
            summary += f", {vanished} blocks dropped"
        self.figures |= {**comparison.figures(), "refitted": repaired.refitted, "widths": names}
        return Result(rewrites=rewrites, summary=summary, figures=self.figures)

    def _trained(self, original: ir.Model) -> Comparison | None:
        """Train the cut model on the original's values where the options say so, and compare it again."""
        if self.options.repair != "block":
            return None
        held = [batch.feed for batch in self._batches]
        self.figures["blocks_trained"] = reconstruct(self.model, original, self.mended, held, self.context)
        return self._compared(self.model)

    def _check(self, whole: ir.Model) -> None:
        """The cut model must compute what the masked one does."""
        feed: Feed = self._batches[0].feed if self._batches else self.fit[0]
        wanted = Session(whole, threads=self.context.threads, level="disable").run(feed)
        found = Session(self.model, threads=self.context.threads, level="disable").run(feed)
        for name, array in wanted.items():
            if array.dtype.kind != "f" or not array.size:
                continue
            scale = float(np.abs(array[np.isfinite(array)]).max(initial=0.0)) or 1.0
            if found[name].shape != array.shape or not np.allclose(
                found[name], array, rtol=1e-2, atol=1e-3 * scale, equal_nan=True
            ):
                raise PassError("prune", f"output {name!r} of the cut model differs from the masked model's")

    def _tell_costs(self, kept: Sequence[int]) -> None:
        for budget in ("macs", "params"):
            measured = Measure(self.groups, budget)
            samples = self.groups.labels.facts.samples if budget == "macs" else 1
            self.figures[f"{budget}_before"] = round(measured.total / samples)
            self.figures[f"{budget}_after"] = round(measured.at(kept) / samples)
