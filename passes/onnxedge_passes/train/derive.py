"""A student cut out of its teacher."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import onnx_ir as ir

from onnxedge.api import (
    Accuracy,
    Array,
    CannotRun,
    Context,
    Pass,
    Result,
    Session,
    UserError,
    constant,
    find_importance,
    infer_shapes,
    weight_axes,
)
from onnxedge_passes.prune.allocation import widths
from onnxedge_passes.prune.branches import close_branches, open_branches
from onnxedge_passes.prune.compensation import masked_constants
from onnxedge_passes.prune.cut import Cut
from onnxedge_passes.prune.facts import Facts
from onnxedge_passes.prune.feeds import Feeds
from onnxedge_passes.prune.groups import Group, Groups
from onnxedge_passes.prune.importance import curves
from onnxedge_passes.prune.prune import analyse, tell_locked
from onnxedge_passes.prune.statistics import BY_WEIGHTS, Statistics
from onnxedge_passes.prune.stored import unpack
from onnxedge_passes.prune.trial import carry_out, check, masked
from onnxedge_passes.train.derive_blocks import chosen, drop, find_residual_blocks, losses_of
from onnxedge_passes.train.derive_weights import draw_weights
from onnxedge_passes.train.signal import signal_nodes

_BATCH = 16
_RIDGE = 1e-3  #: as prune's
_FEW = 32  #: samples that tell what a block is worth


@dataclass(frozen=True, kw_only=True)
class Derive(Pass):
    """Cut a model into a student to be trained: narrower, shallower, with its best channels or with weights drawn anew.

    Before: ``Conv(W1: [64, 16, 3, 3]) -> BatchNormalization -> Relu -> Conv(W2: [16, 64, 3, 3]) -> Add``
    After:  ``Conv(W1: [32, 8, 3, 3]) -> BatchNormalization -> Relu -> Conv(W2: [8, 32, 3, 3]) -> Add``

    ``width`` is the share of the channels that each group keeps which can be cut at all (see `prune`), to the nearest
    multiple. ``depth`` is the share of the residual blocks that stays, of those whose sum adds them to the value that
    enters them, taken from all stages alike: the least important go first with ``init=teacher`` (by how far the
    outputs move without each), the last of each stage with ``init=random``. ``init=teacher`` keeps the channels that
    matter most, with their weights, not refitted; ``init=random`` draws all weights anew (He where a rectifier comes
    next, Glorot elsewhere; biases 0), and resets normalizations and running statistics. BatchNormalization stays as it
    is, for training. The student has the teacher's inputs and outputs. Its answers are not held against the teacher's:
    it is not taken back for them, nor is a pass behind it; put `distill` or `finetune` there.
    Left alone: what `prune` leaves alone; transforms of a signal before a logarithm (spectra, filter banks); blocks
    that change the shape, that others read from, or that hold other blocks; each with its reason. With ``init=random``
    weights that a caller may override, that are not float32, or in subgraphs keep the teacher's values. Weights stored
    as integers become floats.
    accuracy: lossy. Source: groups are our own, as in `prune`; depth as in Sanh et al. 2019, arXiv:1910.01108, section
    3; He et al. 2015, arXiv:1502.01852; Glorot and Bengio 2010.
    """

    name: ClassVar[str] = "derive"
    accuracy: ClassVar[Accuracy] = "lossy"
    needs_calibration: ClassVar[bool] = True
    sets_form: ClassVar[bool] = True
    makes_student: ClassVar[bool] = True

    width: float = 0.5  #: 0..1, share of the channels that each group keeps
    depth: float = 1.0  #: 0..1, share of the residual blocks that can be dropped which stays
    init: Literal["teacher", "random"] = "teacher"  #: keep the best channels and their weights, or draw all anew
    importance: str = "obs"  #: what decides which channels stay, as in `prune`; for init=teacher
    multiple: int | None = (
        None  #: widths are multiples of this; default: the target's channel multiple, or a part of it
    )
    samples: int = 128  #: calibration samples that are read, at most
    seed: int = 0  #: of the weights for init=random

    def requires(self, model: ir.Model, context: Context) -> None:
        """Check the options."""
        if not 0 < self.width <= 1:
            raise UserError(f"derive: width={self.width:g} is not a share above 0 and up to 1 (what is kept)")
        if not 0 <= self.depth <= 1:
            raise UserError(f"derive: depth={self.depth:g} is not a share from 0 to 1 (what is kept)")
        if self.importance != "obs":
            find_importance(self.importance)
        if self.multiple is not None and self.multiple < 1:
            raise UserError(f"derive: multiple={self.multiple} must be 1 or more")
        if self.samples < 2:
            raise UserError(f"derive: samples={self.samples} is too few; 2 or more")
        if self.seed < 0:
            raise UserError(f"derive: seed={self.seed} must be 0 or more")

    def run(self, model: ir.Model, context: Context) -> Result:
        """Drop blocks, narrow groups, draw weights, run the student."""
        try:
            wanted = Session(model, threads=context.threads).run(self._feed(context))
            return self._derived(model, context, wanted)
        except CannotRun as err:
            context.note(None, f"left alone: {err}")
            return Result()
        finally:
            close_branches(model)

    def _feed(self, context: Context) -> Mapping[str, Array]:
        return next(iter(context.calibration.feeds(size=2, limit=2)))

    def _derived(self, model: ir.Model, context: Context, wanted: Mapping[str, Array]) -> Result:
        figures: dict[str, Any] = {}
        floats = self._prepare(model, context)
        dropped = self._drop_blocks(model, context, figures)
        narrowed = self._narrow(model, context, figures)
        drawn = draw_weights(model, context, self.seed) if self.init == "random" else 0
        rewrites = dropped + narrowed + drawn
        if not rewrites:
            context.note(None, "left alone: nothing of it can be cut as asked")
            return Result(figures=figures)
        close_branches(model)
        found = Session(model, threads=context.threads).run(self._feed(context))
        figures["drawn"] = drawn
        for name, array in wanted.items():
            if isinstance(array, np.ndarray) and array.shape != found[name].shape:
                raise CannotRun(f"output {name!r} of the student is {found[name].shape}, not {array.shape}")
        if floats:
            context.note(None, f"{floats} weights that were stored as integers are floats in the student")
        kind = "a student with weights drawn anew" if drawn else "a student"
        context.note(None, f"{kind}: it needs training, put `distill` behind; its answers are not held against it")
        parts = [f"{narrowed} widths narrowed"] if narrowed else []
        parts += [f"{dropped} of {figures['blocks']} blocks dropped"] if dropped else []
        parts += [f"{drawn} weights drawn anew"] if drawn else []
        return Result(rewrites=rewrites, summary=", ".join(parts), figures=figures)

    def _prepare(self, model: ir.Model, context: Context) -> int:
        """Compute constants, open Ifs and unpack weights; return how many were packed."""
        from onnxedge_passes.cleanup.fold import Fold
        from onnxedge_passes.fuse.linear.einsum_to_matmul import EinsumToMatmul

        quiet = Context(context.target, None, original=model.clone(), seed=context.seed, threads=context.threads)
        quantized = any(node.op_type == "QuantizeLinear" for node in model.graph.all_nodes())
        Fold(dequantize=not quantized).run(model, quiet)
        open_branches(model, context, self.samples)
        before = sum(node.op_type == "DequantizeLinear" for node in model.graph)
        unpack(model)
        EinsumToMatmul().run(model, quiet)
        infer_shapes(model)
        return before - sum(node.op_type == "DequantizeLinear" for node in model.graph)

    def _drop_blocks(self, model: ir.Model, context: Context, figures: dict[str, Any]) -> int:
        if self.depth == 1:
            return 0
        blocks = find_residual_blocks(Facts(model, self._feed(context), threads=context.threads), context)
        losses = None
        if self.init == "teacher" and blocks:
            feeds = list(context.calibration.slice(0, min(self.samples, _FEW)).feeds(_BATCH))
            losses = losses_of(model, blocks, feeds, context)
        gone = chosen(blocks, self.depth, losses)
        figures["blocks"] = len(blocks)
        figures["dropped"] = [block.add.name or block.add.outputs[0].name or "?" for block in gone]
        if not blocks:
            context.note(None, "depth: no residual block can be dropped")
        return sum(drop(block.add, block.index) for block in gone)

    def _narrow(self, model: ir.Model, context: Context, figures: dict[str, Any]) -> int:
        if self.width == 1:
            return 0
        groups = analyse(model, context)
        while True:
            orders = self._orders(groups, context)
            signal = signal_nodes(model.graph)
            kept = [self._kept(group, signal, context) for group in groups.free]
            removed = np.zeros(len(groups.component), bool)
            for group, order, count in zip(groups.free, orders, kept, strict=True):
                removed[group.units[order[: len(group.units) - count]]] = True
            failures = Cut(groups, removed).failures
            if not failures:
                break
            for node, labels, reason in failures:
                groups.labels.lock(node, reason, labels)
            groups = Groups(groups.labels)
        tell_locked(groups, context)
        pairs = list(zip(groups.free, kept, strict=True))
        figures |= {"groups": len(groups.free), "locked": len(groups.locked)}
        figures["widths"] = [
            {"group": group.name, "before": len(group.units) * group.channels, "after": count * group.channels}
            for group, count in pairs
        ]
        if not removed.any():
            return 0
        whole = masked(model, masked_constants(groups, removed))
        carry_out(groups, [None] * len(groups.free), removed, {})
        check(whole, model, dict(self._feed(context)), context.threads)
        return sum(count < len(group.units) for group, count in pairs)

    def _kept(self, group: Group, signal: Collection[ir.Node], context: Context) -> int:
        """Return the number of units that is nearest to the share, of those that are allowed."""
        if any(reader.node in signal for reader in group.begins):
            context.note(group.begins[0].node, "channels stay: it transforms the signal that a logarithm is taken of")
            return len(group.units)
        multiple = self.multiple or context.target.channel_multiple
        allowed = widths(group, multiple, may_vanish=False, exact=self.multiple is not None)
        return min(allowed, key=lambda count: (abs(count - self.width * len(group.units)), -count))

    def _orders(self, groups: Groups, context: Context) -> list[Array]:
        """Return the order in which the units of each free group go."""
        if self.init == "random":
            return [np.arange(len(group.units))[::-1] for group in groups.free]
        score = None if self.importance == "obs" else find_importance(self.importance)
        statistics = None
        if groups.free and self.importance not in BY_WEIGHTS:
            feeds = Feeds(context.calibration.slice(0, self.samples), _BATCH)
            statistics = Statistics(groups, feeds, context, with_grams=score is None)
        gammas = _gammas(groups.labels.facts.model)
        if not groups.free:
            return []
        return [curve.order for curve in curves(groups, score, statistics, gammas, _RIDGE, seed=context.seed)]


def _gammas(model: ir.Model) -> dict[ir.Node, Array]:
    """Return the size of each BatchNormalization's gamma by the contraction that it follows."""
    found: dict[ir.Node, Array] = {}
    for node in model.graph:
        producer = node.inputs[0].producer() if node.op_type == "BatchNormalization" and node.inputs[0] else None
        gamma = constant(node.inputs[1]) if producer is not None and weight_axes(producer) is not None else None
        if producer is not None and gamma is not None:
            found[producer] = np.abs(gamma)
    return found
