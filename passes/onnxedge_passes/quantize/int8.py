"""Integers for the target: what runs in integer kernels, what is stored as integers, what stays float and why."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import onnx_ir as ir

from onnxedge.api import Accuracy, Context, Pass, Result, UserError, opset, refuse_overwrite

from .calibration import AUTO, read_ranges
from .dynamic import quantize_dynamic
from .existing import fold_constants, is_quantized
from .names import name_values, shorten_names
from .quantizer import Outcome, Quantizer, Settings

if TYPE_CHECKING:
    from onnxedge.api import Variations


@dataclass(frozen=True, kw_only=True)
class Int8(Pass):
    """Quantize weights and activations to 8 bits where the target computes in integers and gains by it.

    Before: ``Conv(x, W, b) -> Relu`` in float32
    After:  ``Q -> DQ -> Conv(DQ(W int8), DQ(b int32)) -> Relu -> Q -> DQ``, which the runtime runs as one kernel;
    a weight that is computed with in float is stored as int8 and made float again when the runtime loads it

    What becomes integer is decided by the target's rules and costs (never by timing, so that the same input gives the
    same bytes). Ranges come from calibration samples in two streamed runs, whatever their number in the same memory,
    or from files; weights are symmetric per channel with the scale of least squared error; the mean shift that
    rounding a weight causes is taken out of the bias. On samples held out from calibration the result is compared
    with the float model: while its signal-to-quantization-noise ratio is under ``min_sqnr``, the parts that cause the
    most noise for what they gain are put back to float.

    ``mode=dynamic`` needs no ranges: weights of MatMul, Gemm and LSTM are int8, a scale a column, and their data is
    rounded at run time (DynamicQuantizeLinear and MatMulInteger, which ONNX Runtime fuses; its DynamicQuantizeLSTM),
    where the target lists the operator under ``dynamic`` and its figures say that it gains; other weights are stored.

    Left alone: what the target has no integer kernel for or gains nothing from; subgraphs and local functions;
    weights that are computed at run time or can be overridden by the caller; models with quantized activations.
    accuracy: lossy. Source: Jacob et al. 2018, arXiv:1712.05877; Nagel et al. 2019, arXiv:1906.04721, section 4.2
    (bias correction); Wu et al. 2020, arXiv:2004.09602 (calibration).
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
    bias_correction: bool = True  #: take the mean shift of rounded weights out of the bias
    short_names: bool = True  #: give values inside of the graph short names, which save bytes; nodes keep theirs
    skip: str = ""  #: names of nodes to leave float: patterns with * and ?, parted by spaces

    def requires(self, model: ir.Model, context: Context) -> None:
        """Ask for integer rules and sane options."""
        if context.target.quantization is None:
            target = context.target.name
            raise UserError(f"int8: target {target!r} has no integer rules; choose another --target or leave int8 out")
        if self.samples < 1:
            raise UserError(f"int8: samples={self.samples}: at least 1 is needed")
        if not 50.0 < self.percentile <= 100.0:
            raise UserError(f"int8: percentile={self.percentile:g}: must lie above 50 and not above 100")
        read_ranges(self.ranges)
        if self.save_ranges:
            refuse_overwrite(Path(self.save_ranges), [Path(file) for file in self.ranges])

    def run(self, model: ir.Model, context: Context) -> Result:
        """Place, calibrate, try, compare, put back what costs too much accuracy, and write the result."""
        rules = context.target.quantization
        if rules is None or is_quantized(model):
            context.note(None, "left as it is: the model has quantized activations already")
            return Result(summary="already quantized")
        if self.mode == "dynamic":
            skip, least = self.skip.split(), self.min_sqnr
            return quantize_dynamic(model, context, samples=self.samples, min_sqnr=least, skip=skip)
        restored = fold_constants(model, context) if rules.folded == "cast-mul" else 0
        name_values(model)
        settings = self._settings()
        quantizer = Quantizer(settings, model, context)
        outcome = quantizer.run()
        if quantizer.dialect is None and settings.integer:
            old = opset(model)
            reason = f"opset {old} has no QuantizeLinear; convert the model to opset 13 or later first"
            context.note(None, f"no integer kernels: {reason}")
        changes = restored + len(outcome.placement.integer) + outcome.stored
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
            bias_correction=self.bias_correction,
            skip=tuple(self.skip.split()),
        )


def _result(model: ir.Model, context: Context, outcome: Outcome, method: str, changes: int) -> Result:
    units, stored, fidelity = outcome.placement.integer, outcome.stored, outcome.fidelity
    for node, reason in outcome.placement.reasons.items():
        context.note(node, reason)
    if any(True for _ in model.graph.subgraphs()):
        context.note(None, "subgraphs of If, Loop and Scan are left float")
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
    return Result(rewrites=changes, summary=", ".join(parts) or "nothing to gain", figures=figures)
