"""Layer by layer through the calibration samples: weights rounded on what the rounded layers before give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from onnxedge.api import Array, CannotRun, Context, Data, Feed, first_line
from onnxedge_passes.prune.facts import Facts
from onnxedge_passes.prune.stream import Stream, held_bytes
from onnxedge_passes.quantize.layers import Layer

from .blocks import Blocks, half_quadratic, nearest
from .calibrated import (
    LEAST_GAIN,
    LEAST_GAIN_OF_A_MUL,
    activation_aware,
    output_error,
    scaled_second_order,
    second_order,
)
from .scale import places

Method = Literal["auto", "rtn", "hqq", "gptq", "awq"]

_BATCH = 16
_STREAM_BYTES = 1 << 30  #: activations that the fit may hold


@dataclass(frozen=True)
class Fitted:
    """Hold a rounded weight, and its error as a share of the layer's outputs, or of the weight where none were seen."""

    blocks: Blocks
    error: float


def fit(
    model: ir.Model,
    layers: Sequence[Layer],
    data: Data,
    context: Context,
    *,
    method: Method,
    block: int,
    symmetric: bool,
) -> dict[Layer, Fitted]:
    """Return the rounded weights.

    Args:
        model: not changed.
        layers: of its main graph.
        data: calibration samples; synthesised ones are not looked at by ``auto``.
        context: for the target, notes and progress.
        method: ``auto`` is gptq with samples, on awq's scales where these help, and hqq without.
        block: elements of a block.
        symmetric: zero points in the middle.
    """
    chosen = "hqq" if method == "auto" and data.synthetic else method
    tables = [layer for layer in layers if layer.is_table]
    products = [layer for layer in layers if not layer.is_table]
    found = {layer: _unseen(layer, "rtn", block, symmetric) for layer in tables}
    if chosen in ("auto", "gptq", "awq") and products:
        try:
            return found | _seen(model, products, data, context, chosen, block, symmetric)
        except CannotRun as err:
            context.note(None, f"rounded without samples: {first_line(err)}")
            chosen = "hqq"
    tracked = context.progress.track(products, f"int4: {chosen}", len(products))
    return found | {layer: _unseen(layer, chosen, block, symmetric) for layer in tracked}


def _unseen(layer: Layer, method: str, block: int, symmetric: bool) -> Fitted:
    matrix = layer.matrix
    blocks = (half_quadratic if method == "hqq" else nearest)(matrix, block, symmetric=symmetric)
    error = np.square(matrix - blocks.restored()).sum() / max(float(np.square(matrix).sum()), 1e-30)
    return Fitted(blocks, float(error))


def _seen(
    model: ir.Model, layers: Sequence[Layer], data: Data, context: Context, method: str, block: int, symmetric: bool
) -> dict[Layer, Fitted]:
    """Go through the graph; layers that read the same data are rounded together."""
    groups: dict[ir.Value, list[Layer]] = {}
    for layer in layers:
        assert layer.data is not None
        groups.setdefault(layer.data, []).append(layer)
    stream = Stream(model, _feeds(model, list(groups), data, context), threads=context.threads)
    found: dict[Layer, Fitted] = {}
    for value, group in context.progress.track(list(groups.items()), f"int4: {method}", len(groups)):
        gram = _gram(stream.fetch([value])[0])
        found |= _rounded(group, gram, context, method, block, symmetric)
        for layer in group:
            for node in layer.nodes:
                stream.replace(node, layer.index, layer.like(found[layer].blocks.restored()))
    return found


def _feeds(model: ir.Model, stops: Sequence[ir.Value], data: Data, context: Context) -> list[Feed]:
    """Return the samples, no more than the stream can hold."""
    facts = Facts(model, next(iter(data.feeds(size=2, limit=2))), threads=context.threads)
    held = held_bytes(model, facts.shapes, stops) / facts.samples
    limit = max(_BATCH, int(_STREAM_BYTES / max(held, 1)))
    if limit < len(data):
        context.note(None, f"rounded on {limit} samples of {len(data)}: more would take too much memory")
    return list(data.feeds(_BATCH, min(limit, len(data))))


def _gram(arrays: Sequence[Array]) -> Array:
    """Return mean products float64 [K, K] of the rows of arrays [..., K]."""
    total, count = np.zeros((arrays[0].shape[-1],) * 2), 0
    for array in arrays:
        rows = array.reshape(-1, array.shape[-1]).astype(np.float32)
        total += rows.T @ rows
        count += len(rows)
    return total / max(count, 1)


def _rounded(
    group: Sequence[Layer], gram: Array, context: Context, method: str, block: int, symmetric: bool
) -> Mapping[Layer, Fitted]:
    """Round layers that read the same data."""
    matrices = [layer.matrix for layer in group]
    reason = "" if np.isfinite(gram).all() else "its data is not finite on some samples"
    if not reason:
        try:
            if method == "gptq":
                made = [second_order(matrix, gram, block, symmetric=symmetric) for matrix in matrices]
            elif method == "awq":
                made = activation_aware(matrices, gram, block, symmetric=symmetric)
            else:
                nodes = [node for layer in group for node in layer.nodes]
                foldable = places(nodes[0].inputs[0], len(gram), nodes) if nodes[0].inputs[0] is not None else []
                least = LEAST_GAIN if foldable else LEAST_GAIN_OF_A_MUL
                made = scaled_second_order(matrices, gram, block, symmetric=symmetric, least_gain=least)
        except np.linalg.LinAlgError:
            reason = "its data is singular"
    if reason:
        context.note(group[0].nodes[0], f"rounded without samples: {reason}")
        return {layer: _unseen(layer, "hqq", block, symmetric) for layer in group}
    signal = [max(float(np.einsum("nk,nk->", m @ gram, m)), 1e-30) for m in matrices]
    errors = [output_error(m, b, gram) / s for m, b, s in zip(matrices, made, signal, strict=True)]
    return {layer: Fitted(b, e) for layer, b, e in zip(group, made, errors, strict=True)}
