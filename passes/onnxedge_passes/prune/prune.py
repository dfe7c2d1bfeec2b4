"""Structured pruning: whole channels, heads and blocks, cut out of every tensor that they pass through."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import onnx_ir as ir

from onnxedge.api import (
    Accuracy,
    Array,
    CannotRun,
    Comparison,
    Context,
    Feed,
    Pass,
    PassError,
    Result,
    Session,
    UserError,
    constant,
    constant_tensor,
    forked,
    is_constant,
    set_constant,
    weight_axes,
    weight_bytes,
)
from onnxedge_passes.prune.allocation import Budget, Measure, Plan, allocate, widths
from onnxedge_passes.prune.compensation import Constants, Repaired, masked_constants, repair
from onnxedge_passes.prune.cut import Cut
from onnxedge_passes.prune.facts import Facts
from onnxedge_passes.prune.groups import Groups, find_groups
from onnxedge_passes.prune.importance import Curve, Importance, Statistics, curves, measure
from onnxedge_passes.prune.linear import linear_problem
from onnxedge_passes.prune.stream import held_bytes
from onnxedge_passes.prune.surgery import apply, leave_bias, remnants

if TYPE_CHECKING:
    from onnxedge.api import Data

_BATCH = 32
_STREAM_BYTES = 1 << 30  #: activations of both streams that the refit may hold
_CAPTURE_BYTES = 1 << 28  #: activations that one run for the statistics may give out
_DEFAULT_SHARES = (0.7, 0.85)  #: shares of the MACs that plain `prune` tries, in turn
_SHORT = 0.01  #: a plan that misses its budget by more than this share is told


@dataclass(frozen=True, kw_only=True)
class Prune(Pass):
    """Remove channels, heads and blocks that matter least, and refit what read them.

    Before: ``Conv(W1: [64, 16, 3, 3]) -> Relu -> Conv(W2: [16, 64, 3, 3])``
    After:  ``Conv(W1: [48, 16, 3, 3]) -> Relu -> Conv(W2: [16, 48, 3, 3])``, W2 refitted to the original outputs

    Which channels go together follows from the operators' index maps: residual sums, Concat, Split, Flatten, Pad,
    Slice, depthwise and grouped convolutions, attention heads. BatchNormalization is folded and constants are computed
    first. Without a budget 0.7 of the multiply-accumulates are kept, then 0.85 tried, and the model is left alone where
    held-out samples agree less than ``min_agreement`` (classifiers) or ``min_sqnr_db``, or where there are no
    samples but synthesised ones. With a budget it is carried out and the agreement is reported. The widths are
    multiples of the target's channel multiple, of a half or a quarter of it (4 at least) where a width is less than
    four multiples.
    Left alone: channels that reach a graph output, a subgraph, an operator of another domain, a statistic or softmax
    over channels, a shape computed from the number of channels; weights that a caller may override or that are
    computed at run time; each with its reason.
    accuracy: lossy. Source: optimal brain surgeon by blocks (Frantar and Alistarh 2022, arXiv:2208.11580) with
    least-squares repair (He et al. 2017, arXiv:1707.06168); groups and allocation are our own.
    """

    name: ClassVar[str] = "prune"
    accuracy: ClassVar[Accuracy] = "lossy"
    needs_calibration: ClassVar[bool] = True

    macs: float | None = None  #: 0..1, share of the multiply-accumulates that is kept
    params: float | None = None  #: 0..1, share of the weights that is kept
    ratio: float | None = None  #: 0..1, share of the prunable channels that is kept
    importance: Importance = "obs"  #: what decides which channels go
    multiple: int | None = None  #: widths are multiples of this; default: the target's channel multiple
    repair: Literal["least-squares", "none"] = "least-squares"  #: how the readers of a cut are mended
    samples: int = 256  #: calibration samples that are read, at most
    ridge: float = 1e-3  #: pull of the repair to the old weights, relative to the mean square of its inputs
    min_agreement: float = 0.97  #: without a budget: share of held-out samples whose class must stay
    min_sqnr_db: float = 15.0  #: without a budget, where no output is class scores: least signal to error, decibels

    def requires(self, model: ir.Model, context: Context) -> None:
        """Check the options."""
        given = {key: getattr(self, key) for key in ("macs", "params", "ratio") if getattr(self, key) is not None}
        if len(given) > 1:
            raise UserError(f"prune: {' and '.join(given)} are both given; one budget at a time")
        for key, value in given.items():
            if not 0 < value <= 1:
                raise UserError(f"prune: {key}={value:g} is not a share above 0 and up to 1 (what is kept)")
        if self.multiple is not None and self.multiple < 1:
            raise UserError(f"prune: multiple={self.multiple} must be 1 or more")
        if self.samples < 8:
            raise UserError(f"prune: samples={self.samples} is too few to fit anything; 8 or more")
        if not self.ridge > 0:
            raise UserError(
                f"prune: ridge={self.ridge:g} must be above 0; dead channels make the fit singular without it"
            )

    def run(self, model: ir.Model, context: Context) -> Result:
        """Find the groups, choose what goes, refit on calibration samples, cut."""
        held, dequantized = _held_bytes(model), _has_packed_weights(model)
        gammas = prepare(model, context)
        try:
            groups = analyse(model, context)
        except CannotRun as err:
            context.note(None, f"left alone: {err}")
            return Result()
        tell_locked(groups, context)
        if not groups.free:
            context.note(None, "left alone: no channels can be removed")
            return Result(figures={"groups": 0, "locked": len(groups.locked)})
        if context.calibration.synthetic and self.macs is self.params is self.ratio is None:
            context.note(
                None,
                "left alone: without --calib nothing shows what may go; a budget such as prune(macs=0.7) is obeyed",
            )
            return Result(figures={"groups": len(groups.free), "locked": len(groups.locked)})
        result = _Run(self, groups, gammas, context).run()
        if result.rewrites and not dequantized and _held_bytes(model) > held:
            context.note(None, f"left alone: {_held_bytes(model)} bytes of weights would be held instead of {held}")
            return Result(figures={"groups": len(groups.free), "locked": len(groups.locked)})
        return result


def _held_bytes(model: ir.Model) -> int:
    """Count the bytes of all weights, those of Constant nodes too."""
    nodes = (node for node in model.graph.all_nodes() if node.op_type == "Constant")
    tensors = [constant_tensor(node.outputs[0]) for node in nodes]
    return weight_bytes(model) + sum(t.nbytes for t in tensors if t is not None and t.dtype != ir.DataType.STRING)


def _has_packed_weights(model: ir.Model) -> bool:
    """Tell whether weights are stored as integers: they come out as floats, for ``int8`` to store anew."""
    return any(node.op_type == "DequantizeLinear" and is_constant(node.inputs[0]) for node in model.graph.all_nodes())


def prepare(model: ir.Model, context: Context) -> dict[ir.Node, Array]:
    """Compute constants and fold BatchNormalization; return its gamma by the contraction that it was folded into."""
    from onnxedge_passes.cleanup.fold import Fold
    from onnxedge_passes.fuse.linear.fold_batchnorm import FoldBatchnorm
    from onnxedge_passes.fuse.linear.fold_pad import FoldPad

    quiet = Context(context.target, None, original=context.original, seed=context.seed, threads=context.threads)
    quantized = any(node.op_type == "QuantizeLinear" for node in model.graph.all_nodes())
    Fold(dequantize=not quantized).run(model, quiet)
    gammas: dict[ir.Node, Array] = {}
    for node in model.graph:
        producer = node.inputs[0].producer() if node.op_type == "BatchNormalization" and node.inputs[0] else None
        gamma = constant(node.inputs[1]) if producer is not None else None
        if producer is not None and gamma is not None:
            gammas[producer] = np.abs(gamma)
    FoldBatchnorm().run(model, quiet)
    FoldPad().run(model, quiet)
    return gammas


def analyse(model: ir.Model, context: Context) -> Groups:
    """Find the groups and lock what no cut could follow: half of each free group is taken out on trial.

    Raises:
        CannotRun: the runtime does not run the model.
    """
    feed = next(iter(context.calibration.feeds(size=2, limit=2)))
    groups = find_groups(Facts(model, feed, threads=context.threads))
    while groups.free:
        removed = np.zeros(len(groups.component), bool)
        for group in groups.free:
            removed[group.units[::2]] = True
        failures = Cut(groups, removed).failures
        if not failures:
            break
        for node, labels, reason in failures:
            groups.labels.lock(node, reason, labels)
        groups = Groups(groups.labels)
    return groups


def tell_locked(groups: Groups, context: Context) -> None:
    """Note what cannot be pruned and why."""
    for group in groups.locked:
        if group.begins:
            context.note(group.begins[0].node, f"channels stay: {group.reason}")
    for node in groups.labels.facts.model.graph:
        axes = weight_axes(node)
        weight = node.inputs[axes.index] if axes is not None else None
        if weight is not None and weight.is_initializer() and weight.is_graph_input():
            context.note(
                node,
                "channels stay: its weight is a graph input that may be overridden; put `freeze-initializers` first",
            )


class _Run:
    """One pruning of a model whose groups are known."""

    def __init__(self, options: Prune, groups: Groups, gammas: Mapping[ir.Node, Array], context: Context) -> None:
        self.options, self.groups, self.gammas, self.context = options, groups, gammas, context
        self.model = groups.labels.facts.model
        self.remnants = remnants(groups)
        self.budget, self.share = self._budget()
        data = context.calibration
        held_out = 0.25 if self.share is None else 0.125
        fit, held = data.slice(0, options.samples).split(held_out)
        if data.synthetic:
            context.note(None, "chosen and refitted on synthetic samples: what real data needs is not known to it")
        batch, limit = self._sizes(fit)
        self.batches = list(held.batches(batch))
        self.fit = list(fit.feeds(batch))
        self.mended = self.fit if limit is None else list(fit.feeds(batch, limit))
        self.references = [Session(self.model, threads=context.threads).run(b.feed) for b in self.batches]

    def _budget(self) -> tuple[Budget, float | None]:
        for key in ("macs", "params", "ratio"):
            value = getattr(self.options, key)
            if value is not None:
                return key, float(value)
        return "macs", None

    def _sizes(self, fit: Data) -> tuple[int, int | None]:
        """Return samples a batch, and how many samples the refit can hold in memory (None for all)."""
        facts = self.groups.labels.facts
        readers = [
            (linear_problem(self.groups, reader), reader.node.inputs[0]) for reader in self.groups.labels.readers
        ]
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
        statistics = self._statistics()
        found = curves(self.groups, self.options.importance, statistics, self.gammas, self.options.ridge)
        meter = Measure(self.groups, self.budget)
        shares = (self.share,) if self.share is not None else _DEFAULT_SHARES
        best: tuple[Plan, Repaired, Comparison] | None = None
        for share in shares:
            plan = self._plan(meter, found, share)
            if plan.kept == meter.full:
                continue
            repaired = self._repair(self._removed(plan, found))
            comparison = self._compare(repaired.constants)
            if self.share is not None or self._is_good(comparison):
                best = (plan, repaired, comparison)
                break
            self.context.note(None, f"{share:g} of the MACs given up: {self._told(comparison)} on held-out samples")
        if best is None:
            self.context.note(None, "left alone: nothing can be removed within the bounds")
            return Result(figures=self._figures(meter, meter.full))
        return self._cut(meter, *best)

    def _statistics(self) -> Statistics | None:
        if self.options.importance not in ("obs", "activation"):
            return None
        feeds = self.context.progress.track(self.fit, "prune: statistics", len(self.fit))
        return measure(self.groups, feeds, len(self.fit), self.context.seed, self.context.threads)

    def _plan(self, meter: Measure, found: Sequence[Curve], share: float) -> Plan:
        """Allocate; the multiple is halved down to 4 where the budget cannot be met with it."""
        exact = self.options.multiple is not None
        multiple = self.options.multiple or self.context.target.channel_multiple
        first = multiple
        while True:
            choices = [
                widths(group, multiple, may_vanish=left is not None, exact=exact)
                for group, left in zip(self.groups.free, self.remnants, strict=True)
            ]
            plan = allocate(meter, found, choices, share)
            if plan.share <= share + _SHORT or exact or multiple % 2 or multiple <= 4:
                break
            multiple //= 2
        if multiple != first:
            self.context.note(None, f"widths are multiples of {multiple}: with {first} the budget cannot be met")
        if plan.share > share + _SHORT:
            self.context.note(None, f"{self.budget}={share:g} is out of reach, {plan.share:.3f} is left: {self._why()}")
        return plan

    def _why(self) -> str:
        """Say what stands in the way of a smaller model."""
        reasons = Counter(group.reason for group in self.groups.locked if group.begins)
        told = ", ".join(f"{reason} ({count})" for reason, count in reasons.most_common(3))
        return f"the other groups are at their least width; locked: {told or 'none'}"

    def _removed(self, plan: Plan, found: Sequence[Curve]) -> Array:
        removed = np.zeros(len(self.groups.component), bool)
        for group, kept, curve in zip(self.groups.free, plan.kept, found, strict=True):
            removed[group.units[curve.order[: len(group.units) - kept]]] = True
        return removed

    def _repair(self, removed: Array) -> Repaired:
        if self.options.repair == "none":
            return Repaired(removed, masked_constants(self.groups, removed), 0)
        return repair(
            self.groups,
            removed,
            self.mended,
            self.context,
            ridge=self.options.ridge,
            reselect=self.options.importance == "obs",
        )

    def _compare(self, constants: Constants) -> Comparison:
        """Run the masked model, which computes what the cut one will, against the original on held-out samples."""
        session = Session(masked(self.model, constants), threads=self.context.threads)
        comparison = Comparison()
        for batch, reference in zip(self.batches, self.references, strict=True):
            comparison.add(reference, session.run(batch.feed), count=batch.count)
        return comparison

    def _is_good(self, comparison: Comparison) -> bool:
        if self._has_classes(comparison):
            return comparison.agreement >= self.options.min_agreement
        return comparison.worst_sqnr_db >= self.options.min_sqnr_db

    def _has_classes(self, comparison: Comparison) -> bool:
        return len(comparison.sums) == 1 and not math.isnan(comparison.agreement)

    def _told(self, comparison: Comparison) -> str:
        if self._has_classes(comparison):
            return f"agreement {comparison.agreement:.3f} < {self.options.min_agreement:g}"
        return f"SQNR {comparison.worst_sqnr_db:.1f} dB < {self.options.min_sqnr_db:g}"

    def _cut(self, meter: Measure, plan: Plan, repaired: Repaired, comparison: Comparison) -> Result:
        cut = Cut(self.groups, repaired.removed)
        if cut.failures:
            raise PassError("prune", f"{cut.failures[0][2]}: {cut.failures[0][0].name}")
        whole = masked(self.model, repaired.constants)
        vanished = [left or [] for left, kept in zip(self.remnants, plan.kept, strict=True) if kept == 0]
        left = [remnant for remnants_of_one in vanished for remnant in remnants_of_one]
        ranks = [len(self.groups.labels.facts.shapes[remnant.add.outputs[0]]) for remnant in left]
        figures = self._figures(meter, plan.kept) | comparison.figures() | {"refitted": repaired.refitted}
        names = [
            {"group": group.name, "before": len(group.units) * group.channels, "after": kept * group.channels}
            for group, kept in zip(self.groups.free, plan.kept, strict=True)
        ]
        rewrites = apply(cut, repaired.constants)
        for remnant, rank in zip(left, ranks, strict=True):
            leave_bias(remnant, rank)
        self._check(whole)
        narrowed = sum(0 < kept < full for kept, full in zip(plan.kept, meter.full, strict=True))
        summary = f"{self.budget} {plan.share:.2f} kept, {narrowed} widths narrowed"
        if vanished:
            summary += f", {len(vanished)} blocks dropped"
        return Result(rewrites=rewrites, summary=summary, figures={**figures, "widths": names})

    def _check(self, whole: ir.Model) -> None:
        """The cut model must compute what the masked one does."""
        feed: Feed = self.batches[0].feed if self.batches else self.fit[0]
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

    def _figures(self, meter: Measure, kept: Sequence[int]) -> dict[str, Any]:
        figures: dict[str, Any] = {"groups": len(self.groups.free), "locked": len(self.groups.locked)}
        for budget in ("macs", "params"):
            measured = Measure(self.groups, budget) if budget != meter.budget else meter
            samples = self.groups.labels.facts.samples if budget == "macs" else 1
            figures[f"{budget}_before"] = round(measured.total / samples)
            figures[f"{budget}_after"] = round(measured.at(kept) / samples)
        return figures


def masked(model: ir.Model, constants: Constants) -> ir.Model:
    """Return a copy of a model with some constant inputs replaced."""
    copy, _ = forked(model)
    twin = dict(zip(model.graph, copy.graph, strict=True))
    for (node, index), array in constants.items():
        set_constant(twin[node], index, array)
    return copy
