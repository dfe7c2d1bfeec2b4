"""Training through the rounding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir

from onnxedge.api import (
    Accuracy,
    Array,
    Context,
    Result,
    UserError,
    constant,
    digest_of,
    forked,
    infer_shapes,
    opset,
    refresh_scopes,
)
from onnxedge_passes.fuse.linear.fold_batchnorm import FoldBatchnorm
from onnxedge_passes.quantize.existing import is_quantized
from onnxedge_passes.quantize.names import name_values
from onnxedge_passes.train.distill import Distill, Distillation
from onnxedge_passes.train.fake_quantization import WeightGrid
from onnxedge_passes.train.prepare_training import Trainable
from onnxedge_passes.train.qat_grids import Grids, eight_bit_grids, four_bit_grids, named_constants, settled
from onnxedge_passes.train.session import Plan, train_model
from onnxedge_passes.train.weights import put_weights

_LEAST_OPSET = 13  #: of the graph that grids are put into
_BLOCKS = (16, 32, 64, 128, 256)


@dataclass(frozen=True, kw_only=True)
class Qat(Distill):
    """Train the weights on the grid that they will be rounded to, so that `int8` or `int4` loses less.

    Before: ``Conv(x, W)``
    After:  ``Conv(x, W')`` with W' in float32 on the grid of 8 or 4 bits; trained as
    ``Conv(Q(x), Q(W))`` with ``Q(v) = clip(round(v / s), low, high) * s``, whose gradient is that of ``v`` inside the
    range and 0 outside

    ``bits=8`` takes the weights and activations that `int8` would make integer on the target: weights symmetric with a
    scale an output channel, activations with one scale and zero point, from the calibration samples. ``bits=4`` takes
    the weights that `int4` would store, with its blocks and zero points, and all other weights of layers, symmetric
    with a scale an output channel, in 4 bits; activations stay float unless ``activations=int8``. It begins with
    weights rounded by the samples, so that errors cancel in each layer's outputs, or to nearest where that answers
    held-out samples better. The scales of weights begin at the least squared error and are learned, too
    (``learned``). BatchNormalization is folded first. The loss is that of `distill`, with the model that the pipeline
    began with as the teacher, and the labels where there are some. Each epoch's weights are scored rounded, against
    those that are rounded without training. Put `int8` or `int4` behind: they find the grids in the weights.
    Left alone: the model, where training makes it no better than rounding alone (with 4 bits it gets the weights
    rounded by the samples); weights that are read in more than one way; what `int8` and `int4` leave alone; weights
    before a node without a gradient.
    accuracy: lossy. Source: Jacob et al. 2018, arXiv:1712.05877, section 3; Esser et al. 2020, arXiv:1902.08153
    (learned step sizes); straight-through gradients: Bengio et al. 2013, arXiv:1308.3432.
    """

    name: ClassVar[str] = "qat"
    accuracy: ClassVar[Accuracy] = "lossy"
    needs_calibration: ClassVar[bool] = True
    usual_epochs: ClassVar[int] = 10

    bits: int = 8  #: of weights: 8 or 4
    activations: Literal["auto", "int8", "float"] = "auto"  #: on a grid of 8 bits or not; auto: with bits=8
    learned: bool = True  #: learn the scales of weights, too
    block_size: int = 64  #: with bits=4: neighbours that share a scale, as in `int4`
    min_elements: int = 1024  #: with bits=4: weights of fewer elements that `int4` does not store stay float
    samples: int = 256  #: calibration samples that ranges of activations are taken from, at most
    epochs: int | None = None  #: times that all training samples are seen, at most; none for 10, with minutes for 200
    lr: float = 1e-4  #: highest learning rate; it rises at first and falls as a cosine
    alpha: float = 0.9  #: 0..1, weight of the teacher; the rest is that of the labels
    batchnorm: Literal["live", "frozen"] = "frozen"  #: always frozen: it is folded before

    def requires(self, model: ir.Model, context: Context) -> None:
        """Check options, data, target and engine."""
        if self.bits not in (8, 4):
            raise UserError(f"qat: bits={self.bits} is neither 8 nor 4")
        if self.batchnorm != "frozen":
            raise UserError("qat: batchnorm=live: the grids are those of folded weights; `finetune` before takes it")
        if self.block_size not in _BLOCKS:
            raise UserError(f"qat: block_size={self.block_size} is none of {', '.join(map(str, _BLOCKS))}")
        for option in ("min_elements", "samples"):
            if getattr(self, option) < 1:
                raise UserError(f"qat: {option}={getattr(self, option)} must be 1 or more")
        if self._rounds_activations and context.target.quantization is None:
            raise UserError(f"qat: target {context.target.name!r} has no integer rules; choose another --target")
        if opset(model) < _LEAST_OPSET:
            raise UserError(f"qat: the model is of opset {opset(model)}; put `convert(opset=17)` before")
        super().requires(model, context)

    @property
    def _rounds_activations(self) -> bool:
        return self.activations == "int8" or (self.activations == "auto" and self.bits == 8)

    def run(self, model: ir.Model, context: Context) -> Result:
        """Fold, find the grids, train, put the rounded weights back."""
        if is_quantized(model):
            context.note(None, "left alone: the model has quantized activations already")
            return Result()
        folded = FoldBatchnorm().run(model, _quiet(context)).rewrites
        name_values(model)
        infer_shapes(model)
        grids = self._grids(model, context)
        if not grids.weights:
            context.note(None, f"left alone: no weight would be rounded to {self.bits} bits")
            return Result()
        teacher = self._load() if self.teacher else forked(context.original)[0]
        refresh_scopes(teacher)
        infer_shapes(teacher)
        rounding = Rounding(model, grids, context, learned=self.learned)
        plan = Plan(
            objective=Distillation(self, teacher, context).objective,
            teacher=teacher,
            change=rounding.change,
            put=rounding.put,
            like=digest_of(teacher),
            verb="trained",
        )
        result = train_model(model, context, self, plan)
        figures = {
            **result.figures,
            "bits": self.bits,
            "weights_rounded": len(grids.weights),
            "activations_rounded": len(grids.activations),
        }
        rewrites = result.rewrites
        if not rewrites and self.bits == 4 and "curve" in result.figures:
            rewrites = rounding.put(model, {})
            context.note(None, "the weights are those rounded by the samples, without training")
        rewrites += folded if rewrites else 0
        return replace(result, rewrites=rewrites, figures=figures)

    def _grids(self, model: ir.Model, context: Context) -> Grids:
        grids = Grids()
        if self._rounds_activations or self.bits == 8:
            seen = self._with_samples(context)
            grids = eight_bit_grids(model, seen, self.samples)
            context.add_notes(seen.notes)
        if not self._rounds_activations:
            grids = replace(grids, activations=())
        if self.bits == 4:
            seen = self._with_samples(context)
            block, least = self.block_size, self.min_elements
            weights = four_bit_grids(model, seen, block=block, least=least, samples=self.samples).weights
            context.add_notes(seen.notes)
            grids = replace(grids, weights=weights)
        return grids

    def _with_samples(self, context: Context) -> Context:
        """Return a context whose calibration samples are the training samples where there are none."""
        if not context.calibration.synthetic:
            return context
        data = self.data(context)
        other = Context(context.target, data, original=context.original, seed=context.seed, threads=context.threads)
        other.begin(self.name)
        return other


class Rounding:
    """Put grids into the graph that is trained, and weights on their grids into the model.

    Args:
        model: as it is given back; names and shapes there.
        grids: of its tensors.
        context: for notes.
        learned: whether scales of weights are.
    """

    def __init__(self, model: ir.Model, grids: Grids, context: Context, *, learned: bool) -> None:
        self._model, self._grids, self._context, self._learned = model, grids, context, learned

    def change(self, fork: ir.Model, trainable: Trainable) -> Trainable:
        """Put the grids into a graph that is prepared for training; its scales are trained, too."""
        graph, scales = fork.graph, list[str]()
        for grid in self._grids.weights:
            if grid.start is not None and grid.name in trainable.weights:
                graph.initializers[grid.name].const_value = ir.tensor(grid.start, name=grid.name)
            learned = self._learned and grid.name in trainable.weights
            if not grid.insert(graph, learned=learned):
                self._context.note(
                    f"{grid.name!r}", "not rounded while it is trained: the prepared graph reads it otherwise"
                )
            elif learned:
                scales.append(grid.log_scale_name)
        missing = sum(not activation.insert(graph) for activation in self._grids.activations)
        if missing:
            self._context.note(
                None, f"{missing} activations are not rounded in training: it has other nodes in their place"
            )
        infer_shapes(fork)
        weights = {**trainable.weights, **{name: name for name in scales}}
        return replace(trainable, weights=weights, spared=(*trainable.spared, *scales))

    def put(self, model: ir.Model, values: Mapping[str, Array]) -> int:
        """Put weights on their grids into the model, or into a copy, whose activations are rounded then, too."""
        scales = {grid.log_scale_name for grid in self._grids.weights}
        own = {name: array for name, array in values.items() if name not in scales}
        held = {grid.name: own.get(grid.name, self._held(grid)) for grid in self._grids.weights}
        for grid in self._grids.weights:
            weight = grid.rounded(held[grid.name], values.get(grid.log_scale_name))
            own[grid.name] = settled(grid, weight)
        changed = put_weights(model, own)
        if model is not self._model:
            for activation in self._grids.activations:
                activation.insert(model.graph)
        return changed

    def _held(self, grid: WeightGrid) -> Array:
        if grid.start is not None:
            return grid.start
        array = constant(named_constants(self._model)[grid.name])
        assert array is not None
        return np.asarray(array)


def _quiet(context: Context) -> Context:
    return Context(context.target, None, original=context.original, seed=context.seed, threads=context.threads)
