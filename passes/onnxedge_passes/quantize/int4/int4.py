"""The pass: which weights, how they are rounded, what stays float for what it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import onnx_ir as ir

from onnxedge.api import Accuracy, Context, Pass, Result, UserError, opset, weight_bytes
from onnxedge_passes.quantize.costs import pays
from onnxedge_passes.quantize.fidelity import Fidelity, Reference
from onnxedge_passes.quantize.guard import Twins, say_what_went, within
from onnxedge_passes.quantize.layers import Layer, find_layers, four_bit_form

from .fit import Fitted, Method, fit
from .write import write

_BLOCK_SIZES = (16, 32, 64, 128, 256)
_LEVELS = (0, 1, 2, 3, 4)
_BATCH, _HELD_OUT = 8, 32


@dataclass(frozen=True, kw_only=True)
class Int4(Pass):
    """Store the weights of MatMul, Gemm and Gather in 4 bits; activations stay float.

    Before: ``MatMul(x, W float32 [K, N])``
    After:  ``com.microsoft::MatMulNBits(x, W uint8, scales, zero points)`` where the target has that kernel;
    ``MatMul(x, DequantizeLinear<block_size>(W int4, scales))`` from opset 21 on elsewhere;
    ``com.microsoft::GatherBlockQuantized`` for embeddings

    ``block_size`` neighbours along K share a scale and, unless ``symmetric``, a zero point. ``rtn`` rounds to nearest
    with the range of least squared error; ``hqq`` needs no samples, too, and minimises a norm that forgives few large
    errors; ``gptq`` rounds column by column and lets the columns behind make up for what was lost, by the products of
    the layer's inputs on the samples, as the rounded layers before give them; ``awq`` scales columns up whose inputs
    are large and divides these by as much, in the constants of the normalization before it or by a Mul. ``auto`` is
    gptq with samples, on the scales of awq where these save error, and hqq without. While held-out samples are answered
    worse than ``min_sqnr``, the weights with the largest error go back to float.

    Left alone: products that by the target's own figures are slower with 4-bit weights (ONNX Runtime's CPU provider:
    small weights with many rows of data), unless ``slower=true``; weights computed at run time, that a caller may
    override, exported or also read in another way; those in subgraphs and functions; small ones; tables whose rows are
    no whole blocks, and on targets without a kernel for them; recurrent and fused operators; each with its reason.
    accuracy: lossy. Source: Frantar et al. 2022, arXiv:2210.17323; Lin et al. 2023, arXiv:2306.00978; Badri and Shaji
    2023, Half-Quadratic Quantization; ONNX DequantizeLinear, opset 21; ONNX Runtime's MatMulNBits.
    """

    name: ClassVar[str] = "int4"
    accuracy: ClassVar[Accuracy] = "lossy"
    needs_calibration: ClassVar[bool] = True

    method: Method = "auto"  #: how weights are rounded
    block_size: int = 64  #: neighbours along K that share a scale: 16, 32, 64, 128 or 256
    symmetric: bool = False  #: no zero points; always so where the target takes none
    accuracy_level: int = 4  #: of MatMulNBits: 4 computes in 8 bits, which is what is fast; 0 in the data's own type
    tables: bool = True  #: embeddings, too
    samples: int = 128  #: calibration samples that are read, at most
    min_sqnr: float = 10.0  #: dB on held-out samples; short of it the worst weights go back to float
    min_elements: int = 4096  #: weights of fewer elements stay float
    slower: bool = False  #: take products, too, that are slower with 4-bit weights by the target's figures
    skip: str = ""  #: names of nodes to leave float: patterns with * and ?, parted by spaces

    def requires(self, model: ir.Model, context: Context) -> None:
        """Ask for sizes that kernels take."""
        if self.block_size not in _BLOCK_SIZES:
            raise UserError(f"int4: block_size={self.block_size} is none of {', '.join(map(str, _BLOCK_SIZES))}")
        if self.accuracy_level not in _LEVELS:
            raise UserError(f"int4: accuracy_level={self.accuracy_level} is none of {', '.join(map(str, _LEVELS))}")
        if self.samples < 1:
            raise UserError(f"int4: samples={self.samples}: at least 1 is needed")
        if self.min_elements < 1:
            raise UserError(f"int4: min_elements={self.min_elements} must be 1 or more")

    def run(self, model: ir.Model, context: Context) -> Result:
        """Find the weights, round them, compare on held-out samples, write."""
        layers = find_layers(
            model,
            context,
            least=self.min_elements,
            skip=self.skip.split(),
            form=partial(four_bit_form, context.target, opset(model)),
            block=self.block_size,
            operators=("MatMul", "Gemm", "Gather") if self.tables else ("MatMul", "Gemm"),
        )
        layers = [layer for layer in layers if self.slower or self._pays(layer, context)]
        if not layers:
            return Result(summary="nothing to store in 4 bits")
        data = context.calibration.slice(0, self.samples)
        fitted, held = data.split(0.25) if len(data) >= 8 else (data, data)
        rules = context.target.quantization
        symmetric = self.symmetric or (rules is not None and rules.activation_symmetric)
        found = fit(model, layers, fitted, context, method=self.method, block=self.block_size, symmetric=symmetric)
        reference = Reference(model, list(held.feeds(_BATCH, limit=_HELD_OUT)), context)
        ranked = sorted(found, key=lambda layer: found[layer].error, reverse=True)

        def on_copy(copy: ir.Model, twins: Twins, some: Sequence[Layer]) -> None:
            self._write(copy, {layer.on(twins): found[layer] for layer in some})

        some, fidelity = within(ranked, reference, self.min_sqnr, on_copy)
        say_what_went(ranked, some, self.min_sqnr, context, lambda layer: layer.nodes[0])
        kept = {layer: fitted for layer, fitted in found.items() if layer in some}
        if not kept:
            return Result(summary="nothing can be stored in 4 bits")
        before = weight_bytes(model)
        added = self._write(model, kept)
        return _result(kept, fidelity, before - weight_bytes(model), added, context)

    def _pays(self, layer: Layer, context: Context) -> bool:
        if layer.form != "matmul-nbits" or pays(layer, context.target.quantization, "MatMulNBits"):
            return True
        text = "its kernel with 4-bit weights is slower than the float one; slower=true takes it for the bytes"
        context.note(layer.nodes[0], f"stays float: {text}")
        return False

    def _write(self, model: ir.Model, kept: Mapping[Layer, Fitted]) -> int:
        plan = {layer: fitted.blocks for layer, fitted in kept.items()}
        return write(model, plan, block=self.block_size, accuracy_level=self.accuracy_level)


def _result(
    kept: Mapping[Layer, Fitted], fidelity: Fidelity | None, saved: int, added: int, context: Context
) -> Result:
    if added:
        text = "of these no constant before takes up what awq divides the data by"
        context.note(None, f"{added} Mul nodes were added: {text}")
    tables = sum(layer.is_table for layer in kept)
    figures: dict[str, object] = {"weights": len(kept) - tables, "tables": tables, "bytes_saved": saved}
    parts = [f"{len(kept)} weights in 4 bits", f"{saved} bytes saved"]
    if fidelity is not None:
        figures["held_out_sqnr_db"] = round(fidelity.sqnr_db, 2)
        parts.append(f"{fidelity.sqnr_db:.1f} dB")
    return Result(rewrites=len(kept), summary=", ".join(parts), figures=figures)
