"""Structured pruning: whole channels, heads and blocks, cut out of every tensor that they pass through."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import onnx_ir as ir

from onnxedge.api import (
    Accuracy,
    Array,
    CannotRun,
    Context,
    Pass,
    Result,
    UserError,
    Variations,
    constant,
    constant_tensor,
    find_importance,
    find_pass,
    is_constant,
    weight_axes,
    weight_bytes,
)
from onnxedge_passes.prune.allocation import BUDGETS
from onnxedge_passes.prune.branches import close_branches, open_branches
from onnxedge_passes.prune.cut import Cut
from onnxedge_passes.prune.facts import Facts
from onnxedge_passes.prune.groups import Groups, find_groups
from onnxedge_passes.prune.overrides import shares, tell_unused
from onnxedge_passes.prune.run import Pruning
from onnxedge_passes.prune.stored import restore, unpack

if TYPE_CHECKING:
    from onnxedge.api import ChannelGroups


_ON_TRIAL = (slice(None, None, 2), slice(1, None), slice(1, None, 3))  #: units of each group that are taken out


@dataclass(frozen=True, kw_only=True)
class Prune(Pass):
    """Remove channels, heads and blocks that matter least, and refit what read them.

    Before: ``Conv(W1: [64, 16, 3, 3]) -> Relu -> Conv(W2: [16, 64, 3, 3])``
    After:  ``Conv(W1: [48, 16, 3, 3]) -> Relu -> Conv(W2: [16, 48, 3, 3])``, W2 refitted to the original outputs

    Which channels go together follows from the operators' index maps: residual sums, Concat, Split, Flatten, Pad,
    Slice, depthwise and grouped convolutions, attention heads. BatchNormalization is folded and constants are computed
    first. A budget says what share of the model is kept; it is carried out and the agreement is reported. ``latency``
    is measured: the layers are timed one by one in ONNX Runtime at the widths that they may get, which is kept on disk
    (``$ONNXEDGE_CACHE``), and cut models are timed in turns with the whole one until the budget is met, with what the
    passes named in ``behind`` make of them. That gives several plans, with more or fewer blocks dropped; all are
    refitted, and the one that is nearest to the original on held-out samples is taken. Whole residual blocks may go:
    their bias stays, or, for a latency, is made up for by what is refitted behind them. Without a budget shares of the
    multiply-accumulates between 0.35 and 1 are tried by bisection, and the least is taken with which held-out samples
    agree by ``min_agreement`` (classifiers) or ``min_sqnr_db``; the model is left alone where there is none, where it
    does not get faster on a target that runs here, or where there are no samples but synthesised ones. The widths are
    multiples of the target's channel multiple, of a half or a quarter of it (4 at least) where a width is less than
    four multiples.
    Left alone: channels that reach a graph output, the body of a Loop or Scan, a branch of an If that may fail where it
    is not taken, an operator of another domain, a statistic or softmax over channels, a shape computed from the number
    of channels; weights that a caller may override or that are computed at run time; each with its reason.
    accuracy: lossy. Source: optimal brain surgeon by blocks (Frantar and Alistarh 2022, arXiv:2208.11580) with
    least-squares repair (He et al. 2017, arXiv:1707.06168) and, with ``repair=block``, reconstruction by gradient
    (Li et al. 2021, arXiv:2102.05426); groups and allocation are our own.
    """

    name: ClassVar[str] = "prune"
    accuracy: ClassVar[Accuracy] = "lossy"
    needs_calibration: ClassVar[bool] = True

    macs: float | None = None  #: 0..1, share of the multiply-accumulates that is kept
    params: float | None = None  #: 0..1, share of the weights that is kept
    bytes: float | None = None  #: 0..1, share of the bytes of all weights that is kept
    ratio: float | None = None  #: 0..1, share of the prunable channels that is kept
    latency: float | None = None  #: 0..1, share of the time that one sample takes, measured on the target
    steps: int = 1  #: cut in as many steps; with `distill` or `finetune` right behind, each is followed by training
    keep: tuple[str, ...] = ()  #: widths that are given, as ``pattern:share``, such as ``[layer1*:1,head/*:0.75]``
    exclude: tuple[str, ...] = ()  #: patterns of names of contractions whose output channels stay
    importance: str = "obs"  #: what decides which channels go: obs, or an entry point of ``onnxedge.importance``
    multiple: int | None = None  #: widths are multiples of this; default: the target's channel multiple
    repair: Literal["least-squares", "block", "none"] = "least-squares"  #: how a cut is mended; block: trained, too
    behind: tuple[str, ...] = ()  #: latency: passes that come behind prune and count, such as ``[fuse,int8]``
    samples: int = 256  #: calibration samples that are read, at most
    ridge: float = 1e-3  #: pull of the repair to the old weights, relative to the mean square of its inputs
    timing_s: float = 60.0  #: latency: seconds that the timing of cut models may take, and half as many for layers
    min_agreement: float = 0.97  #: without a budget: share of held-out samples whose class must stay
    min_sqnr_db: float = 15.0  #: without a budget, where no output is class scores: least signal to error, decibels

    def requires(self, model: ir.Model, context: Context) -> None:
        """Check the options."""
        given = {key: getattr(self, key) for key in BUDGETS if getattr(self, key) is not None}
        if len(given) > 1:
            raise UserError(f"prune: {' and '.join(given)} are both given; one budget at a time")
        for key, value in given.items():
            if not 0 < value <= 1:
                raise UserError(f"prune: {key}={value:g} is not a share above 0 and up to 1 (what is kept)")
        if self.latency is not None and not context.target.runs_here:
            raise UserError(f"prune: latency: target {context.target.name} cannot be timed here; give macs= instead")
        if self.importance != "obs":
            find_importance(self.importance)
        self._check_behind(model, context)
        shares(self.keep)
        if not 1 <= self.steps <= 100:
            raise UserError(f"prune: steps={self.steps} is not 1 to 100")
        if self.multiple is not None and self.multiple < 1:
            raise UserError(f"prune: multiple={self.multiple} must be 1 or more")
        if self.samples < 8:
            raise UserError(f"prune: samples={self.samples} is too few to fit anything; 8 or more")
        if not self.ridge > 0:
            raise UserError(
                f"prune: ridge={self.ridge:g} must be above 0; dead channels make the fit singular without it"
            )

    def _check_behind(self, model: ir.Model, context: Context) -> None:
        if self.behind and self.latency is None:
            raise UserError("prune: behind= says what a latency is measured with; give latency=, too")
        if self.name in self.behind:
            raise UserError("prune: behind= names passes that come behind prune, not prune itself")
        for name in self.behind:
            find_pass(name)().requires(model, context)

    def run(self, model: ir.Model, context: Context) -> Result:
        """Find the groups, choose what goes, refit on calibration samples, cut."""
        try:
            return self._run(model, context)
        finally:
            close_branches(model)

    def _run(self, model: ir.Model, context: Context) -> Result:
        held, dequantized = _held_bytes(model), _has_packed_weights(model)
        gammas = prepare(model, context, self.samples)
        try:
            groups = analyse(model, context)
        except CannotRun as err:
            context.note(None, f"left alone: {err}")
            return Result()
        tell_locked(groups, context)
        tell_unused(groups, [*shares(self.keep), *self.exclude], context)
        if not groups.free:
            context.note(None, "left alone: no channels can be removed")
            return Result(figures={"groups": 0, "locked": len(groups.locked)})
        if context.calibration.synthetic and all(getattr(self, key) is None for key in BUDGETS):
            context.note(
                None,
                "left alone: without --calib nothing shows what may go; a budget such as prune(macs=0.7) is obeyed",
            )
            return Result(figures={"groups": len(groups.free), "locked": len(groups.locked)})
        result = Pruning(self, groups, gammas, context).run()
        restore(model)
        if result.rewrites and not dequantized and _held_bytes(model) > held:
            context.note(None, f"left alone: {_held_bytes(model)} bytes of weights would be held instead of {held}")
            return Result(figures={"groups": len(groups.free), "locked": len(groups.locked)})
        return result

    def in_turns_with(self, follower: Pass) -> Sequence[Pass]:
        """Return ``steps`` cuts with training behind each: all but the last share half of the epochs and minutes."""
        given = {key: value for key in BUDGETS if (value := getattr(self, key)) is not None}
        if self.steps == 1 or not given:
            return ()
        shares = {key: value ** (1 / self.steps) for key, value in given.items()}
        cut = replace(self, steps=1, **shares)
        short = follower.shortened(0.5 / (self.steps - 1))
        return (*([cut, short] * (self.steps - 1)), cut, follower.shortened(0.5))

    def channel_groups(self, model: ir.Model, context: Context) -> ChannelGroups:
        """Return the channel groups of a model, for ``onnxedge inspect --groups``."""
        from onnxedge_passes.prune.listing import list_groups

        return list_groups(model, context)

    def variations(self, model: ir.Model, context: Context, *, thorough: bool = False) -> Variations:
        """Return the model with one group narrowed, or all, for ``onnxedge sensitivity``."""
        from onnxedge_passes.prune.variations import Widths

        return Widths(self, model, context, thorough=thorough)


def _held_bytes(model: ir.Model) -> int:
    """Count the bytes of all weights, those of Constant nodes too."""
    nodes = (node for node in model.graph.all_nodes() if node.op_type == "Constant")
    tensors = [constant_tensor(node.outputs[0]) for node in nodes]
    return weight_bytes(model) + sum(t.nbytes for t in tensors if t is not None and t.dtype != ir.DataType.STRING)


def _has_packed_weights(model: ir.Model) -> bool:
    """Tell whether weights are stored as integers: they come out as floats, for ``int8`` to store anew."""
    return any(node.op_type == "DequantizeLinear" and is_constant(node.inputs[0]) for node in model.graph.all_nodes())


def prepare(model: ir.Model, context: Context, samples: int = 2) -> dict[ir.Node, Array]:
    """Compute constants and fold BatchNormalization; return its gamma by the contraction that it was folded into.

    The branches of Ifs are opened: see :func:`open_branches`, also for ``samples``.
    """
    from onnxedge_passes.cleanup.fold import Fold
    from onnxedge_passes.fuse.linear.einsum_to_matmul import EinsumToMatmul
    from onnxedge_passes.fuse.linear.fold_batchnorm import FoldBatchnorm
    from onnxedge_passes.fuse.linear.fold_pad import FoldPad

    quiet = Context(context.target, None, original=context.original, seed=context.seed, threads=context.threads)
    quantized = any(node.op_type == "QuantizeLinear" for node in model.graph.all_nodes())
    Fold(dequantize=not quantized).run(model, quiet)
    open_branches(model, context, samples)
    unpack(model)
    gammas: dict[ir.Node, Array] = {}
    for node in model.graph:
        producer = node.inputs[0].producer() if node.op_type == "BatchNormalization" and node.inputs[0] else None
        gamma = constant(node.inputs[1]) if producer is not None else None
        if producer is not None and gamma is not None:
            gammas[producer] = np.abs(gamma)
    FoldBatchnorm().run(model, quiet)
    FoldPad().run(model, quiet)
    EinsumToMatmul().run(model, quiet)
    return gammas


def analyse(model: ir.Model, context: Context) -> Groups:
    """Find the groups and lock what no cut could follow: parts of each free group are taken out on trial.

    Raises:
        CannotRun: the runtime does not run the model.
    """
    feed = next(iter(context.calibration.feeds(size=2, limit=2)))
    groups = find_groups(Facts(model, feed, threads=context.threads))
    for part in _ON_TRIAL:
        while groups.free:
            removed = np.zeros(len(groups.component), bool)
            for group in groups.free:
                removed[group.units[part]] = True
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
