"""Biases that take out the mean shift which quantization causes, layer after layer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxedge.api import Array, CannotRun, Context, Data, Feed, Unit
from onnxedge_passes.prune.facts import Facts
from onnxedge_passes.prune.stream import Stream, held_bytes

SAMPLES = 32
_BATCH = 8
_STREAM_BYTES = 1 << 28  #: activations that the float and the quantized model hold together


def correct_biases(
    model: ir.Model, quantized: ir.Model, pairs: Sequence[tuple[Unit, Unit]], data: Data, context: Context
) -> dict[str, Array]:
    """Return what is to be taken off the biases of units, float32 [C], by name of what a unit's operator computes.

    Both models go through the samples side by side. What a layer of the quantized one gives too much in the mean of a
    channel is taken off before the layers behind see it, so that every shift is measured behind corrected layers.
    Where the shift differs from sample to sample as much as it is large, only a part is taken off:
    ``m * m^2 / (m^2 + s^2 / n)`` for mean m and deviation s of n samples, our own.

    Source: Nagel et al. 2019, arXiv:1906.04721, section 4.2.

    Args:
        model: float.
        quantized: the same model with Q/DQ pairs.
        pairs: a unit of each, in the graph's order; those whose bias can be changed.
        data: calibration samples.
        context: for threads and progress.
    """
    stops = [(_product(first), _product(other)) for first, other in pairs]
    if not stops:
        return {}
    try:
        feeds = _feeds(model, [stop for stop, _ in stops], data, context)
        streams = [Stream(each, feeds, threads=context.threads) for each in (model, quantized)]
        shifts: dict[str, Array] = {}
        for (unit, _), (mine, other) in zip(pairs, stops, strict=True):
            wanted, found = streams[0].fetch([mine])[0], streams[1].fetch([other])[0]
            axis = 1 if "Conv" in unit.node.op_type else -1
            shift = _shift(wanted, found, axis)
            if shift is None:
                continue
            shifts[unit.node.outputs[0].name or ""] = shift
            name = other.name or ""
            if name in streams[1].held:
                aligned = shift.reshape([-1 if i == axis % found[0].ndim else 1 for i in range(found[0].ndim)])
                streams[1].held[name] = [array - aligned for array in found]
        return shifts
    except CannotRun as err:
        context.note(None, f"biases not corrected layer by layer: {err}")
        return {}


def _product(unit: Unit) -> ir.Value:
    """Return what a unit computes before its activation."""
    return unit.nodes[-2 if unit.activation is not None else -1].outputs[0]


def _feeds(model: ir.Model, stops: Sequence[ir.Value], data: Data, context: Context) -> list[Feed]:
    """Return samples of one shape, no more than both models can hold."""
    size = data.fixed_batch or 1
    facts = Facts(model, next(iter(data.feeds(size, size))), threads=context.threads)
    held = 3 * held_bytes(model, facts.shapes, stops)  # quantized values are there twice
    count = int(min(SAMPLES, max(_STREAM_BYTES // max(held, 1), 1) * facts.samples))
    feeds = list(data.feeds(min(_BATCH, count), count))
    first = {name: array.shape[1:] for name, array in feeds[0].items()}
    return [feed for feed in feeds if {name: array.shape[1:] for name, array in feed.items()} == first]


def _shift(wanted: Sequence[Array], found: Sequence[Array], axis: int) -> Array | None:
    """Return the mean difference of each channel, float32 [C], drawn to 0 where samples do not agree on it."""
    means: list[Array] = []
    for first, other in zip(wanted, found, strict=True):
        if first.shape != other.shape or first.ndim < 2 or not first.size:
            return None
        difference = np.moveaxis(other.astype(np.float64) - first, axis, -1)
        means.extend(difference.reshape(len(difference), -1, difference.shape[-1]).mean(axis=1))
    rows = np.stack(means)
    if not np.isfinite(rows).all() or len(rows) < 2:
        return None
    mean, spread = rows.mean(axis=0), rows.var(axis=0, ddof=1) / len(rows)
    return np.asarray(mean * mean**2 / np.maximum(mean**2 + spread, 1e-300), np.float32)
