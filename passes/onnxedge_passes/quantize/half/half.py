"""The passes: 16 bits where a target computes in them and nothing is lost, else in the file alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import onnx_ir as ir

from onnxedge.api import (
    Accuracy,
    CannotRun,
    Context,
    Pass,
    Result,
    Session,
    UserError,
    first_line,
    forked,
    opset,
    refresh_scopes,
    weight_bytes,
)
from onnxedge_passes.quantize.fidelity import Reference

from .choose import Choice, choose
from .put_back import put_back
from .rewrite import put_into
from .store import store

Mode = Literal["auto", "compute", "storage"]

_BATCH, _HELD_OUT, _MEASURED = 8, 32, 16


@dataclass(frozen=True, kw_only=True)
class Half(Pass):
    """Hold what :class:`Fp16` and :class:`Bf16` share."""

    half: ClassVar[ir.DataType]
    accuracy: ClassVar[Accuracy] = "lossy"
    needs_calibration: ClassVar[bool] = True

    mode: Mode
    samples: int
    min_sqnr: float
    min_node_sqnr: float
    skip: str

    def requires(self, model: ir.Model, context: Context) -> None:
        """Ask for samples."""
        if self.samples < 1:
            raise UserError(f"{self.name}: samples={self.samples}: at least 1 is needed")

    def run(self, model: ir.Model, context: Context) -> Result:
        """Choose how, then which nodes; compare on held-out samples; write."""
        dtype = self.half.name.lower()
        if self.half == ir.DataType.BFLOAT16 and opset(model) < 13:
            context.note(None, f"left alone: opset {opset(model)} has no bfloat16; put `convert(opset=13)` before")
            return Result()
        computes = dtype in context.target.half
        if self.mode == "storage" or (self.mode == "auto" and not computes):
            if self.mode == "auto":
                text = f"the target {context.target.name} computes no faster in {dtype}, or not at all"
                context.note(None, f"only stored in {dtype}, made float32 when the model is loaded: {text}")
            return store(model, self.half, context, least_db=self.min_node_sqnr)
        if not computes:
            text = f"the target {context.target.name} computes in float32 all the same and casts"
            context.note(None, f"mode=compute: {text}; mode=storage is faster")
        return self._compute(model, context)

    def _compute(self, model: ir.Model, context: Context) -> Result:
        data = context.calibration.slice(0, self.samples)
        seen, held = data.split(0.25) if len(data) >= 8 else (data, data)
        reference = Reference(model, list(held.feeds(_BATCH, limit=_HELD_OUT)), context)
        skip = tuple(self.skip.split())
        try:
            feeds = seen.feeds(_BATCH, limit=_MEASURED)
            choice = choose(model, feeds, self.half, context, least_db=self.min_node_sqnr, skip=skip)
        except CannotRun as err:
            context.note(None, f"left alone, nothing can be measured: {first_line(err)}")
            return Result()
        fidelity = put_back(choice, reference, self.half, self.min_sqnr)
        refusal = self._runs(model, choice) if self.mode == "auto" else ""
        if refusal:
            text = "only stored: ONNX Runtime's CPU provider cannot check the model here; mode=compute with --verify"
            context.note(None, f"{text} structure writes it all the same: {refusal}")
            return store(model, self.half, context, least_db=self.min_node_sqnr)
        for node, reason in choice.reasons.items():
            if reason:
                context.note(node, f"stays float32: {reason}")
        if not choice.ports:
            return Result(summary="nothing to compute in 16 bits")
        before = weight_bytes(model)
        count = len(choice.ports)
        casts = put_into(model, choice.ports, self.half)
        figures: dict[str, object] = {
            "half_nodes": count,
            "float_nodes": len(choice.reasons),
            "casts": casts,
            "bytes_saved": before - weight_bytes(model),
        }
        parts = [f"{count} nodes in {self.half.name.lower()}", f"{casts} casts"]
        if fidelity is not None:
            figures["held_out_sqnr_db"] = round(fidelity.sqnr_db, 2)
            parts.append(f"{fidelity.sqnr_db:.1f} dB")
        return Result(rewrites=count, summary=", ".join(parts), figures=figures)

    def _runs(self, model: ir.Model, choice: Choice) -> str:
        """Return why the runtime does not run the model here, empty where it does."""
        copy, _ = forked(model)
        refresh_scopes(copy)
        twins = dict(zip(model.graph, copy.graph, strict=True))
        put_into(copy, {twins[node]: ports for node, ports in choice.ports.items()}, self.half)
        try:
            Session(copy)
        except CannotRun as err:
            return first_line(err)
        return ""


@dataclass(frozen=True, kw_only=True)
class Fp16(Half):
    """Compute in float16 where nothing is lost by it; where the target gains nothing, store weights in it.

    Before: ``Conv(x, W float32) -> Relu -> Exp``
    After:  ``Cast(x) -> Conv(., W float16) -> Relu -> Cast -> Exp``: Exp overflows on the samples and stays float32;
    with ``mode=storage`` ``Conv(x, Cast(W float16))``, which the runtime makes float32 once, when it loads the model

    Inputs and outputs of the model stay float32. Each node is measured on samples: what leaves the range of float16,
    or answers with less than ``min_node_sqnr`` when its inputs and outputs are rounded, stays float32, as do regions
    without a product, which would not pay for their Casts. A node that may not have its inputs rounded keeps those that
    make them float32, too. While held-out samples are answered with less than ``min_sqnr``, the parts that cost most go
    back. ``mode=auto`` computes where the target file lists float16 under ``half`` and stores elsewhere; stored weights
    that overflow or lose too much stay float32.

    Left alone: operators that know no float16 at the model's opset, or that the target lists under ``half_missing``;
    those that count or decide by small differences (ArgMax, TopK, CumSum, Range); nodes with subgraphs and what is in
    them; other domains' operators; integers and float64; each with its reason.
    accuracy: lossy. Source: Micikevicius et al. 2017, arXiv:1710.03740, for the range of float16; the measurement of
    each node is our own.
    """

    name: ClassVar[str] = "fp16"
    half: ClassVar[ir.DataType] = ir.DataType.FLOAT16

    mode: Mode = "auto"  #: compute in 16 bits, or store weights in them; auto: what the target gains by
    samples: int = 64  #: calibration samples that are read, at most
    min_sqnr: float = 40.0  #: dB on held-out samples; short of it the noisiest parts go back to float32
    min_node_sqnr: float = 45.0  #: dB of a node's outputs, or of a stored weight; short of it it stays float32
    skip: str = ""  #: names of nodes to leave float32: patterns with * and ?, parted by spaces


@dataclass(frozen=True, kw_only=True)
class Bf16(Half):
    """Compute in bfloat16 where little is lost by it; where the target gains nothing, store weights in it.

    Before: ``Conv(x, W float32) -> Relu``
    After:  ``Cast(x) -> Conv(., W bfloat16) -> Relu -> Cast``; with ``mode=storage`` ``Conv(x, Cast(W bfloat16))``,
    which the runtime makes float32 once, when it loads the model

    As ``fp16``, with the range of float32 and 8 bits of precision instead of 11, from opset 13 on: nothing overflows,
    and more is lost by rounding. ONNX Runtime's CPU provider computes hardly anything in bfloat16, so that a model that
    does cannot be checked here: ``mode=auto`` then stores; ``mode=compute`` is rolled back unless ``--verify
    structure`` is given.

    Left alone: what ``fp16`` leaves alone; operators that know no bfloat16 at the model's opset; models of older
    opsets.
    accuracy: lossy. Source: Kalamkar et al. 2019, arXiv:1905.12322; the measurement of each node is our own.
    """

    name: ClassVar[str] = "bf16"
    half: ClassVar[ir.DataType] = ir.DataType.BFLOAT16

    mode: Mode = "auto"  #: compute in 16 bits, or store weights in them; auto: what the target gains by
    samples: int = 64  #: calibration samples that are read, at most
    min_sqnr: float = 25.0  #: dB on held-out samples; short of it the noisiest parts go back to float32
    min_node_sqnr: float = 30.0  #: dB of a node's outputs, or of a stored weight; short of it it stays float32
    skip: str = ""  #: names of nodes to leave float32: patterns with * and ?, parted by spaces
