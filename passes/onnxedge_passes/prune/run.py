"""One pruning of a model whose groups are known: choose what goes, refit, compare, cut."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from onnxedge.api import Array, Comparison, Context, Feed, Result, Session, find_importance
from onnxedge_passes.prune.allocation import Measure, Plan
from onnxedge_passes.prune.compensation import Constants, Repaired, masked_constants, repair
from onnxedge_passes.prune.feeds import Feeds
from onnxedge_passes.prune.groups import Groups
from onnxedge_passes.prune.importance import Curve, curves
from onnxedge_passes.prune.linear import linear_problem
from onnxedge_passes.prune.plans import Planner
from onnxedge_passes.prune.reconstruction import reconstruct
from onnxedge_passes.prune.search import Clocked, Tried, largest_cut
from onnxedge_passes.prune.statistics import BY_WEIGHTS, Statistics
from onnxedge_passes.prune.stream import held_bytes
from onnxedge_passes.prune.surgery import remnants
from onnxedge_passes.prune.taylor import find_slopes
from onnxedge_passes.prune.trial import carry_out, check, masked

if TYPE_CHECKING:
    from onnxedge.api import Data
    from onnxedge_passes.prune.prune import Prune

_BATCH = 32
_STREAM_BYTES = 1 << 30  #: activations of both streams that the refit may hold
_CAPTURE_BYTES = 1 << 28  #: activations that one run for the statistics may give out
_MET = 0.03  #: a latency further than this share from its budget is told
_REFIT_SECONDS = 60.0  #: no further plan for a latency is refitted when as much is spent
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

    @property
    def quality(self) -> float:
        """Signal to error on held-out samples, decibels; the lowest where nothing could be compared."""
        sqnr = self.comparison.worst_sqnr_db
        return -math.inf if math.isnan(sqnr) else sqnr


class Pruning:
    """One pruning of a model whose groups are known.

    Attributes:
        planner: chooses the widths.
        figures: for the report.
        fit: calibration samples that statistics are taken of.
        mended: those that the refit uses.
    """

    def __init__(self, options: Prune, groups: Groups, gammas: Mapping[ir.Node, Array], context: Context) -> None:
        self.options, self.groups, self.gammas, self.context = options, groups, gammas, context
        self.model = groups.labels.facts.model
        self.remnants = remnants(groups)
        self.planner = Planner(options, groups, self.remnants, context)
        self.budget, self.share = self.planner.budget, self.planner.share
        self.figures: dict[str, Any] = self.planner.figures
        self.figures |= {"groups": len(groups.free), "locked": len(groups.locked)}
        self._score = None if options.importance == "obs" else find_importance(options.importance)
        data = context.calibration
        held_out = 0.25 if self.share is None or self.budget == "latency" else 0.125  # what decides needs more of them
        fit, held = data.slice(0, options.samples).split(held_out)
        if data.synthetic:
            context.note(None, "chosen and refitted on synthetic samples: what real data needs is not known to it")
        batch, limit = self._sizes(fit)
        batch = min(batch, max(len(held), 1))  # batches of one shape in both
        self._batches = list(held.batches(batch))
        self.fit = Feeds(fit, batch)
        self.mended: Sequence[Feed] = self.fit if limit is None else list(fit.feeds(batch, limit))
        session = Session(self.model, threads=context.threads)
        self._references = [session.run(b.feed) for b in self._batches]

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
        if limit >= len(fit) or self.options.repair != "block":
            return batch, None
        self.context.note(None, f"blocks trained on {limit} samples of {len(fit)}: more would take too much memory")
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
        if found is None or found.plan.kept == self.planner.meter.full:
            self.context.note(None, "left alone: nothing can be removed within the bounds")
            self._tell_costs(self.planner.meter.full)
            return Result(figures=self.figures)
        return self._cut(found)

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
            slopes=find_slopes(self.options.importance, self.groups, self.fit, self.context, constants),
            seed=self.context.seed,
        )

    @cached_property
    def _first_curves(self) -> list[Curve]:
        return self.curves()

    def _statistics(self, constants: Constants | None) -> Statistics | None:
        if self.options.importance in BY_WEIGHTS:
            return None
        return Statistics(self.groups, self.fit, self.context, with_grams=self._score is None, weights=constants)

    def _outcome(self, share: float) -> Outcome | None:
        """Cut to a share in as many steps as asked for; each step sees what the refitted model before it carries."""
        repaired: Repaired | None = None
        for step in range(1, self.options.steps):
            found, gone = self._carried(repaired)
            plan = self.planner.plan(found, share ** (step / self.options.steps), gone, told=False)
            if plan.kept != self.planner.meter.full:
                repaired = self.repair(self.planner.removed(plan, found))
        found, gone = self._carried(repaired)
        if self.budget == "latency":
            return self._best(self.planner.clocked(found, share, gone), found, share)
        return self._mended(self.planner.plan(found, share, gone), found)

    def _carried(self, repaired: Repaired | None) -> tuple[list[Curve], Array | None]:
        """Return the error curves of what is left after a removal, and what is gone."""
        return (self._first_curves, None) if repaired is None else (self.curves(repaired), repaired.removed)

    def _mended(self, plan: Plan, found: Sequence[Curve]) -> Outcome | None:
        """Refit what a plan leaves; None where it leaves everything."""
        if plan.kept == self.planner.meter.full:
            return None
        repaired = self.repair(self.planner.removed(plan, found))
        return Outcome(plan, repaired, self._compare(repaired.constants))

    def _best(self, plans: Sequence[Clocked], found: Sequence[Curve], share: float) -> Outcome | None:
        """Keep the plan, of some that take equally long, that is nearest to the original once it is refitted."""
        timed, outcome = max(
            self._refitted(plans, found), key=lambda pair: pair[1].quality if pair[1] is not None else math.inf
        )
        measured = {"latency_predicted": timed.plan.share, "latency_measured": timed.ratio}
        self.figures |= {key: round(value, 4) for key, value in measured.items()}
        if abs(timed.ratio - share) > _MET * share:
            nearest = f"{timed.ratio:.3f} is measured, the nearest that the widths give"
            self.context.note(None, f"latency={share:g}: {nearest}")
        return outcome

    def _refitted(self, plans: Sequence[Clocked], found: Sequence[Curve]) -> Iterator[tuple[Clocked, Outcome | None]]:
        """Refit plans one by one, the first in any case, as long as there is time."""
        end = time.monotonic() + _REFIT_SECONDS
        for number, timed in enumerate(self.context.progress.track(plans, "prune: plans", len(plans)), 1):
            if number > 1 and time.monotonic() > end:
                return
            self.figures["plans_refitted"] = number
            yield timed, self._mended(timed.plan, found)

    def repair(self, removed: Array) -> Repaired:
        """Return what goes and the weights that are left, mended as the options say."""
        if self.options.repair == "none":
            return Repaired(removed, masked_constants(self.groups, removed), 0)
        return repair(
            self.groups,
            removed,
            self.fit,
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
        ratio = self.planner.clock.ratio(found.repaired.removed)
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
        check(whole, self.model, self._batches[0].feed if self._batches else self.fit[0], self.context.threads)
        comparison = self._trained(original) or found.comparison
        narrowed = sum(0 < kept < full for kept, full in zip(plan.kept, self.planner.meter.full, strict=True))
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

    def _tell_costs(self, kept: Sequence[int]) -> None:
        for budget in ("macs", "params"):
            measured = Measure(self.groups, budget)
            samples = self.groups.labels.facts.samples if budget == "macs" else 1
            self.figures[f"{budget}_before"] = round(measured.total / samples)
            self.figures[f"{budget}_after"] = round(measured.at(kept) / samples)
