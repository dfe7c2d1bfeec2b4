"""Integers for the target: what runs in integer kernels, what is stored as integers, what stays float and why."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import onnx_ir as ir

from onnxedge.api import Accuracy, Context, Pass, Result, UserError, opset, refuse_overwrite

from .calibration import AUTO, read_ranges
from .coverage import confirm
from .dynamic import quantize_dynamic
from .existing import fold_constants, is_quantized, make_float
from .names import name_values, shorten_names
from .prepare import convert_if_more, learn_sizes
from .quantizer import Outcome, Quantizer, Settings

if TYPE_CHECKING:
    from onnxedge.api import Variations


@dataclass(frozen=True, kw_only=True)
class Int8(Pass):
    """Quantize weights and activations to 8 bits where the target computes in integers and gains by it.

    Before: ``Conv(x, W, b) -> Relu`` in float32
    After:  ``Q -> DQ -> Conv(DQ(W int8), DQ(b int32)) -> Relu -> Q -> DQ``, which the runtime runs as one kernel;
    a weight that is computed with in float is stored as int8 and made float again when the runtime loads it

    What becomes integer is decided by the target's rules and costs. On a machine that the target means each region is
    then cut out and timed, float and integers in turns, and goes back to float where it is slower beyond what the clock
    says differently from run to run: by over a tenth, twice (``timing=false``: by the costs alone). The report lists
    the regions with the time predicted and measured, and each island of float between integers with what it costs.
    Ranges come from calibration samples in two streamed runs, whatever their number in the same memory, or from files;
    weights are symmetric per channel with the scale of least squared error; the mean shift that rounding a weight
    causes is taken out of the bias. With samples, weights are rounded so that the errors of a layer's inputs cancel in
    its outputs, or by gradient (``rounding``), and biases are corrected layer by layer where all held-out answers are
    off by the same. Where channels of one tensor differ much in range they are scaled first, from a linear layer
    (``equalize``) or a normalization (``smooth``) into the weights that read them, which changes nothing in floats, if
    held-out samples are answered better so; likewise what the channels behind a Relu never fall under is taken off
    their layer's bias and given to the biases of the layers that read them (``absorb``), where none of those pads them
    with zeros. On samples held out from calibration the result is compared with the float model, an output that a
    Softmax makes by what that reads: while its signal-to-quantization-noise ratio is under ``min_sqnr``, the parts that
    cause the most noise for what they gain get activations of 16 bits, if the target has kernels for those, or are put
    back to float. ``max_drop=0.5%`` bounds what may be lost of the metric of the run, too: each layer is quantized
    alone, and those that cause most noise go back in the same way, as few as the metric on every second sample of
    ``--eval`` asks for; the report is measured on the others. On few samples a metric misses much that ``min_sqnr``
    sees, so both hold; ``min_sqnr=0`` leaves it to the metric.

    A model below opset 13 is written for that if more of it can be integer so.

    ``mode=dynamic`` needs no ranges: weights of MatMul, Gemm and LSTM are int8, a scale a column, and their data is
    rounded at run time (DynamicQuantizeLinear and MatMulInteger, which ONNX Runtime fuses; its DynamicQuantizeLSTM),
    where the target lists the operator under ``dynamic`` and its figures say that it gains; other weights are stored.

    Left alone: what the target has no integer kernel for or gains nothing from; subgraphs and local functions, but for
    weights that are stored; weights that are computed at run time or can be overridden by the caller; quantized
    activations that the model has already (``existing=keep``; ``extend`` quantizes what is still float beside them
    where it gains, and their scales stay; ``replace`` makes all float first and quantizes anew).
    accuracy: lossy. Source: Jacob et al. 2018, arXiv:1712.05877; Nagel et al. 2019, arXiv:1906.04721, sections 4.1
    (equalization, absorption) and 4.2 (bias correction); Xiao et al. 2022, arXiv:2211.10438 (smoothing); Wu et al.
    2020, arXiv:2004.09602 (calibration); Frantar et al. 2022, arXiv:2210.17323 (covariance); Nagel et al. 2020,
    arXiv:2004.10568 (learned).
    """

    name: ClassVar[str] = "int8"
    accuracy: ClassVar[Accuracy] = "lossy"
    needs_calibration: ClassVar[bool] = True

    #: static: no stored weights; storage: no integer kernels; dynamic: data is rounded at run time, without ranges
    mode: Literal["auto", "static", "storage", "dynamic"] = "auto"
    #: how ranges are chosen; auto: the best for each tensor, or one for all if that answers better
    method: Literal["auto", "minmax", "average", "percentile", "entropy", "mse"] = "auto"
    percentile: float = 99.99  #: share of values that a range holds, for method=percentile
    samples: int = 256  #: calibration samples used, at most
    ranges: tuple[str, ...] = ()  #: files of ranges: JSON, or caches of TensorRT; merged, what they lack is observed
    save_ranges: str = ""  #: file to write what was observed and the chosen ranges to
    min_sqnr: float = 19.0  #: dB on held-out samples; short of it the noisiest parts go back to float
    #: how much of the metric may be lost, too, on every second sample of --eval, without labels of the agreement, such
    #: as 0.5%; the layers that cost most go back to float until it is kept, as few as will do
    max_drop: float | None = None
    timing: bool = True  #: time each region in integers and in float, on this machine, and put the slower ones back
    #: what becomes of quantized activations that the model has already: all stays; what is still float is quantized too
    #: where it gains, the scales stay; or all is made float first and quantized anew
    existing: Literal["keep", "extend", "replace"] = "keep"
    bias_correction: bool = True  #: take the mean shift of quantized layers out of their biases
    #: how weights are rounded: nearest; covariance: so that errors cancel in each layer's outputs; learned: with
    #: gradients, block by block, which takes minutes; auto: covariance where held-out samples are answered better
    rounding: Literal["auto", "nearest", "covariance", "learned"] = "auto"
    #: scale channels between linear layers so that they share a grid well, where held-out samples answer better
    equalize: Literal["auto", "off"] = "auto"
    #: the same for channels that begin at a normalization, into the weights behind it (SmoothQuant)
    smooth: Literal["auto", "off"] = "auto"
    #: take off biases what channels never fall under behind a Relu, and give it to the biases of the layers that read
    #: them, so that their grid is finer, where held-out samples answer better
    absorb: Literal["auto", "off"] = "auto"
    short_names: bool = True  #: give values inside of the graph short names, which save bytes; nodes keep theirs
    skip: str = ""  #: names of nodes to leave float: patterns with * and ?, parted by spaces

    def requires(self, model: ir.Model, context: Context) -> None:
        """Ask for integer rules and sane options."""
        if context.target.quantization is None:
            target = context.target.name
            raise UserError(f"int8: target {target!r} has no integer rules; choose another --target or leave int8 out")
        if self.samples < 1:
            raise UserError(f"int8: samples={self.samples}: at least 1 is needed")
        self._check_bound(context)
        if not 50.0 < self.percentile <= 100.0:
            raise UserError(f"int8: percentile={self.percentile:g}: must lie above 50 and not above 100")
        read_ranges(self.ranges)
        if self.save_ranges:
            refuse_overwrite(Path(self.save_ranges), [Path(file) for file in self.ranges])

    def _check_bound(self, context: Context) -> None:
        if self.max_drop is None:
            return
        if not 0.0 <= self.max_drop <= 1.0:
            raise UserError(f"int8: max_drop={self.max_drop:g}: is a share, needs 0..1 (or 0%..100%)")
        if self.mode == "dynamic":
            raise UserError("int8: max_drop: mode=dynamic is bounded by min_sqnr alone; give that instead")
        if not context.unrunnable and context.evaluation is None and context.calibration.synthetic:
            raise UserError("int8: max_drop: there are no samples to count answers on; give labelled ones with --eval")

    def chooses_by_metric(self) -> bool:
        """Tell whether the drop of a metric is bounded."""
        return self.max_drop is not None

    def run(self, model: ir.Model, context: Context) -> Result:
        """Place, calibrate, try, compare, put back what costs too much accuracy, and write the result."""
        rules = context.target.quantization
        quantized = is_quantized(model)
        made_float = make_float(model, context) if quantized and self.existing == "replace" else 0
        extend = quantized and self.existing == "extend" and self.mode != "dynamic"
        if rules is None or (quantized and not made_float and not extend):
            how = "" if self.existing == "replace" else "; existing=extend or existing=replace change that"
            context.note(None, f"left as it is: the model has quantized activations already{how}")
            return Result(summary="already quantized")
        if self.mode == "dynamic":
            skip, least = self.skip.split(), self.min_sqnr
            return quantize_dynamic(model, context, samples=self.samples, min_sqnr=least, skip=skip)
        restored = fold_constants(model, context) if rules.folded == "cast-mul" and not extend else 0
        settings = self._settings()
        if settings.integer and not extend:
            restored += learn_sizes(model, context) + convert_if_more(model, context, settings.skip)
        name_values(model)
        if extend:
            settings = replace(settings, extend=True, timing=False, equalize=False, smooth=False, absorb=False)
        quantizer = Quantizer(settings, model, context)
        outcome = quantizer.run()
        if quantizer.dialect is None and settings.integer:
            old = opset(model)
            reason = f"opset {old} has no QuantizeLinear; convert the model to opset 13 or later first"
            context.note(None, f"no integer kernels: {reason}")
        changes = made_float + restored + len(outcome.placement.integer) + outcome.stored
        if self.short_names and changes:
            shorten_names(model)
        return _result(model, context, outcome, quantizer.method[0], changes)

    def variations(self, model: ir.Model, context: Context, *, thorough: bool = False) -> Variations:
        """Return the model with one kernel in integers, or all, for ``onnxedge sensitivity``."""
        from .variations import Kernels

        del thorough
        restored = context.target.quantization is not None and context.target.quantization.folded == "cast-mul"
        if restored:
            fold_constants(model, context)
        return Kernels(replace(self._settings(), integer=True, stored=False), model, context)

    def _settings(self) -> Settings:
        percentile = self.percentile if self.method == "percentile" else 0.0
        return Settings(
            methods=AUTO if self.method == "auto" else ((self.method, percentile),),
            ranges=self.ranges,
            save_ranges=self.save_ranges,
            integer=self.mode != "storage",
            stored=self.mode != "static",
            samples=self.samples,
            min_sqnr=self.min_sqnr,
            max_drop=self.max_drop,
            timing=self.timing,
            bias_correction=self.bias_correction,
            rounding=self.rounding,
            equalize=self.equalize == "auto",
            smooth=self.smooth == "auto",
            absorb=self.absorb == "auto",
            skip=tuple(self.skip.split()),
        )


def _result(model: ir.Model, context: Context, outcome: Outcome, method: str, changes: int) -> Result:
    units, stored, fidelity = outcome.placement.integer, outcome.stored, outcome.fidelity
    for node, reason in outcome.placement.reasons.items():
        context.note(node, reason)
    if model.functions or any(True for _ in model.graph.subgraphs()):
        context.note(None, "bodies of If, Loop and Scan and local functions compute in float")
    if stored:
        text = "weights computed with in float are stored as int8; the runtime makes them float when it loads the model"
        context.note(None, f"{stored} {text}")
    figures: dict[str, object] = {
        "integer_nodes": sum(len(unit.nodes) for unit in units),
        "float_nodes": len(outcome.placement.reasons),
        "stored_weights": stored,
        "stored_bytes_saved": outcome.saved,
    }
    parts = [f"{len(units)} integer kernels"] if units else []
    parts += [f"{stored} weights stored as int8"] if stored else []
    if units:
        figures["method"] = method
    if fidelity is not None:
        figures["held_out_sqnr_db"] = round(fidelity.sqnr_db, 2)
        figures["held_out_agreement"] = fidelity.agreement
        parts += [f"{fidelity.sqnr_db:.1f} dB"] if parts else []
    figures.update(outcome.figures)
    figures.update(confirm(model, outcome.placement, context))
    return Result(rewrites=changes, summary=", ".join(parts) or "nothing to gain", figures=figures)
