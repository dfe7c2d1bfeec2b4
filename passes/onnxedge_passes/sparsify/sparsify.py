"""The pass: what is asked, how much of each layer goes, what came of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import onnx_ir as ir

from onnxedge.api import (
    Accuracy,
    CannotRun,
    Comparison,
    Context,
    Data,
    Pass,
    Result,
    Session,
    UserError,
    drop_if_unused,
    forked,
    set_constant,
)
from onnxedge_passes.prune.compensation import Constants
from onnxedge_passes.sparsify.allocation import alike, by_rank
from onnxedge_passes.sparsify.fit import How, Method, Zeros, by_magnitude, fit, is_done
from onnxedge_passes.sparsify.layers import Layer, find_layers
from onnxedge_passes.sparsify.pattern import Pattern
from onnxedge_passes.sparsify.size import sizes, speak_of_speed

_RATIOS = (0.5, 0.3)  #: tried in turn without ratio and pattern, where the target has no pattern of its own
_BATCH = 32


@dataclass(frozen=True, kw_only=True)
class Sparsify(Pass):
    """Set the weights that matter least to zero, and refit the others; the shapes stay.

    Before: ``Conv(x, W)``
    After:  ``Conv(x, W')``, half of W' zeros: anywhere with ``ratio=0.5``; with ``pattern=2:4`` two of every four
    neighbours along the input channels (for a Conv at each position of the kernel), as sparse tensor cores need them

    BatchNormalization is folded and constants are computed first. Layer by layer the zeros are chosen with the inverse
    Gram matrix of the inputs (``obs``) or by magnitude; what is left is refitted by ridge regression to the original
    outputs, on the inputs as the sparse layers before give them. Without samples but synthesised ones the zeros are
    chosen by magnitude and nothing is refitted. Without ``ratio`` and ``pattern`` the target's own pattern is tried,
    where it has none half of the weights, then 0.3, and the model is left alone where held-out samples agree less than
    ``min_agreement`` (classifiers) or ``min_sqnr_db``, or where there are no samples but synthesised ones. With one of
    them it is carried out and the agreement is reported. Zeros stay zeros through ``int8``, whose weights are
    symmetric. A dense kernel is no faster for zeros: the report gives the bytes once compressed, and speed is spoken
    of only where the target has sparse kernels.

    Left alone: weights that a caller may override, that are computed at run time, stored as integers, read in a
    subgraph or in some other way as well, hold infinities, or are nearly all zero as a filter bank is; depthwise
    convolutions; weights of few elements; for a pattern, input channels that are no multiple of it and transposed
    convolutions; each with its reason. Grouped and transposed convolutions and weights of several readers are chosen
    by magnitude and not refitted.
    accuracy: lossy. Source: Frantar and Alistarh 2023, arXiv:2301.00774 (SparseGPT); Mishra et al. 2021,
    arXiv:2104.08378 (2:4); Lee et al. 2021, arXiv:2010.07611 (``allocation=global``); the joint choice in a pattern and
    the refit on the zeros are our own.
    """

    name: ClassVar[str] = "sparsify"
    accuracy: ClassVar[Accuracy] = "lossy"
    needs_calibration: ClassVar[bool] = True

    ratio: float | None = None  #: 0..1, share of the weights that becomes zero (not that stays)
    pattern: Pattern | None = None  #: how many of how many neighbours along the input channels stay, such as 2:4
    method: Method = "obs"  #: how zeros are chosen
    repair: Literal["least-squares", "none"] = "least-squares"  #: how the other weights are mended
    allocation: Literal["uniform", "global"] = "uniform"  #: the same ratio in every layer, or as layers bear it
    samples: int = 256  #: calibration samples that are read, at most
    min_agreement: float = 0.97  #: without ratio and pattern: share of held-out samples whose class must stay
    min_sqnr_db: float = 15.0  #: the same where no output is class scores: least signal to error, decibels
    ridge: float = 1e-3  #: pull of the repair to the old weights, relative to the mean square of its inputs
    min_elements: int = 1024  #: weights of fewer elements stay dense
    skip: str = ""  #: names of nodes to leave dense: patterns with * and ?, parted by spaces

    def requires(self, model: ir.Model, context: Context) -> None:
        """Check the options."""
        if self.ratio is not None and self.pattern is not None:
            raise UserError(f"sparsify: ratio={self.ratio:g} and pattern={self.pattern} are both given; one of them")
        if self.ratio is not None and not 0 < self.ratio < 1:
            raise UserError(f"sparsify: ratio={self.ratio:g} is no share above 0 and below 1 (what becomes zero)")
        if self.allocation == "global" and isinstance(self._amounts(context)[0], Pattern):
            raise UserError(
                f"sparsify: allocation=global needs a ratio; {self._amounts(context)[0]} is alike everywhere"
            )
        if self.samples < 8:
            raise UserError(f"sparsify: samples={self.samples} is too few to fit anything; 8 or more")
        if not 0 < self.ridge < math.inf:
            raise UserError(
                f"sparsify: ridge={self.ridge:g} must be a number above 0: dead channels make the fit singular without"
            )
        if self.min_elements < 0:
            raise UserError(f"sparsify: min_elements={self.min_elements} must be 0 or more")

    def _amounts(self, context: Context) -> tuple[float | Pattern, ...]:
        """Return what is asked for, or what is tried in turn."""
        if self.pattern is not None:
            return (self.pattern,)
        if self.ratio is not None:
            return (self.ratio,)
        return tuple(Pattern.parse(text) for text in context.target.sparse[:1]) or _RATIOS

    def run(self, model: ir.Model, context: Context) -> Result:
        """Find the weights, choose their zeros, refit, compare on held-out samples, write."""
        asked = self.pattern is not None or self.ratio is not None
        if context.calibration.synthetic and not asked:
            told = "without --calib nothing shows what may go; an amount such as sparsify(ratio=0.5) is obeyed"
            context.note(None, f"left alone: {told}")
            return Result()
        fold(model, context)
        data = context.calibration.slice(0, self.samples)
        fitted, held = data.split(0.125 if asked else 0.25) if len(data) >= 8 else (data, data)
        try:
            for amount in self._amounts(context):
                plan = self._plan(model, amount, context)
                if not plan:
                    context.note(None, "left alone: there are no weights to make sparse, or they have their zeros")
                    return Result()
                constants, count = self._constants(model, plan, fitted, context)
                comparison = compare(model, sparse(model, constants), held, context)
                if asked or self._is_good(comparison):
                    return _written(plan, amount, constants, comparison, context, count)
                context.note(None, f"{_text(amount)}: {self._told(comparison)} on held-out samples")
            context.note(None, "left alone: nothing can be set to zero within the bounds")
        except CannotRun as err:
            context.note(None, f"left alone: {err}")
        return Result()

    def _plan(self, model: ir.Model, amount: float | Pattern, context: Context) -> dict[Layer, Zeros]:
        """Return how many weights of each layer go, or the pattern, for those that have not as many zeros already."""
        pattern = amount if isinstance(amount, Pattern) else None
        layers = find_layers(model, context, pattern=pattern, least=self.min_elements, skip=tuple(self.skip.split()))
        zeros: Mapping[Layer, Zeros]
        if isinstance(amount, Pattern):
            zeros = dict.fromkeys(layers, amount)
        else:
            zeros = alike(layers, amount) if self.allocation == "uniform" else by_rank(layers, amount)
        return {layer: count for layer, count in zeros.items() if not is_done(layer, count)}

    def _is_good(self, comparison: Comparison) -> bool:
        if _has_classes(comparison):
            return comparison.agreement >= self.min_agreement
        return comparison.worst_sqnr_db >= self.min_sqnr_db

    def _told(self, comparison: Comparison) -> str:
        if _has_classes(comparison):
            return f"agreement {comparison.agreement:.3f} < {self.min_agreement:g}"
        return f"SQNR {comparison.worst_sqnr_db:.1f} dB < {self.min_sqnr_db:g}"

    def _constants(
        self, model: ir.Model, plan: Mapping[Layer, Zeros], data: Data, context: Context
    ) -> tuple[Constants, int]:
        """Return the new weights and biases, and how many weights were fitted to samples."""
        how = How(self.method, self.repair == "least-squares", self.ridge)
        if data.synthetic and how.reads_data:
            context.note(None, "zeros chosen by magnitude, nothing refitted: without --calib there are no real samples")
        if not data.synthetic and how.reads_data:
            return fit(model, plan, data, context, how)
        arrays = {layer: by_magnitude(layer, zeros) for layer, zeros in plan.items()}
        return {(node, layer.axes.index): arrays[layer] for layer in plan for node in layer.nodes}, 0


def _has_classes(comparison: Comparison) -> bool:
    return len(comparison.sums) == 1 and not math.isnan(comparison.agreement)


def _text(amount: float | Pattern) -> str:
    return f"pattern={amount}" if isinstance(amount, Pattern) else f"ratio={amount:g}"


def _written(
    plan: Mapping[Layer, Zeros],
    amount: float | Pattern,
    constants: Constants,
    comparison: Comparison,
    context: Context,
    refitted: int,
) -> Result:
    """Put the new weights into the model and say what came of it."""
    pattern = amount if isinstance(amount, Pattern) else None
    figures = sizes(plan, constants, pattern) | {"pattern": str(pattern or ""), "refitted": refitted}
    speak_of_speed(pattern, figures, context)
    write(constants)
    share = figures["zeros"] / figures["elements"]
    summary = f"{share:.0%} zeros in {len(plan)} weights, {comparison.worst_sqnr_db:.1f} dB"
    return Result(rewrites=len(plan), summary=summary, figures=figures | comparison.figures())


def fold(model: ir.Model, context: Context) -> None:
    """Compute constants and fold BatchNormalization; weights that are stored as integers stay so."""
    from onnxedge_passes.cleanup.fold import Fold
    from onnxedge_passes.fuse.linear.fold_batchnorm import FoldBatchnorm

    quiet = Context(context.target, None, original=context.original, seed=context.seed, threads=context.threads)
    Fold(dequantize=False).run(model, quiet)
    FoldBatchnorm().run(model, quiet)


def sparse(model: ir.Model, constants: Constants) -> ir.Model:
    """Return a copy of a model with some constant inputs of its main graph replaced."""
    copy, _ = forked(model)
    twin = dict(zip(model.graph, copy.graph, strict=True))
    write({(twin[node], index): array for (node, index), array in constants.items()})
    return copy


def compare(model: ir.Model, other: ir.Model, data: Data, context: Context) -> Comparison:
    """Compare a model with its sparse form on samples.

    Raises:
        CannotRun: the runtime does not run one of them.
    """
    first, second = (Session(each, threads=context.threads) for each in (model, other))
    comparison = Comparison()
    for batch in data.batches(_BATCH):
        comparison.add(first.run(batch.feed), second.run(batch.feed), count=batch.count)
    return comparison


def write(constants: Constants) -> None:
    """Replace constant inputs; nodes that shared one go on sharing it."""
    made: dict[tuple[ir.Value, int], ir.Value] = {}
    for (node, index), array in constants.items():
        old = node.inputs[index] if index < len(node.inputs) else None
        twin = made.get((old, id(array))) if old is not None else None
        if old is None or twin is None:
            new = set_constant(node, index, array)
            if old is not None:
                made[old, id(array)] = new
        else:
            node.replace_input_with(index, twin)
            drop_if_unused(old)
