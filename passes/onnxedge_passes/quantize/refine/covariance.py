"""Weights rounded so that the errors of a layer's inputs cancel in its outputs, on the covariance of the inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from onnxedge.api import Array, CannotRun, Context, Data, first_line
from onnxedge_passes.prune.linear import rows_at

from ..calibration.observe import MEMORY_BYTES, Stream
from ..rounding import Weight
from ..second_order import Rounder, inverse_factor, sweep
from .layers import Layer

SAMPLES = 64  #: calibration samples that are looked at, at most
LARGEST = 4608  #: columns of the widest layer: a 3x3 convolution of 512 channels
_ROWS = 8  #: positions for each column
_FEWEST = 2048  #: positions at least, where there are so many
_BLOCK = 64  #: columns that are rounded before those behind are mended
_GRAM_BYTES = 256 << 20  #: Gram matrices that one run over the samples fills


class Gram:
    """Mean products of the inputs of a layer, and their means, over sampled positions.

    Attributes:
        products: float64 [G, K, K], sums.
        sums: float64 [G, K].
        count: positions seen.
    """

    def __init__(self, layer: Layer) -> None:
        self.products = np.zeros((layer.groups, layer.columns, layer.columns))
        self.sums = np.zeros((layer.groups, layer.columns))
        self.count = 0

    def add(self, layer: Layer, node: ir.Node, data: Array, wanted: int, rng: np.random.Generator) -> None:
        """Take up some positions of one batch."""
        shape = layer.output_shape(node, data.shape)
        available = shape[0] * math.prod(shape[2:]) if node.op_type == "Conv" else data.size // data.shape[-1]
        if available <= 0:
            return
        drawn = np.arange(available) if available <= wanted else np.sort(rng.choice(available, wanted, replace=False))
        rows = rows_at(node, layer.kernel, data, shape, drawn).reshape(len(drawn), layer.groups, layer.columns)
        rows = np.ascontiguousarray(rows.transpose(1, 0, 2))  # [G, P, K]
        self.products += rows.transpose(0, 2, 1) @ rows
        self.sums += rows.sum(axis=1, dtype=np.float64)
        self.count += len(drawn)

    def about(self, *, centred: bool) -> Array:
        """Return the mean products [G, K, K], or the covariances."""
        mean = self.products / max(self.count, 1)
        if not centred:
            return np.asarray(mean)
        sums = self.sums / max(self.count, 1)
        return np.asarray(mean - sums[:, :, None] * sums[:, None, :])


def by_covariance(
    model: ir.Model, layers: Sequence[Layer], data: Data, context: Context, *, limit: int, work: float
) -> dict[str, Weight]:
    """Return the weights that are better rounded otherwise than to nearest, by name.

    Every layer is rounded by :func:`rounded_by`, on the float model's inputs; it keeps its nearest codes where its
    mean squared output error on the same positions would not become less.

    Args:
        model: not changed.
        layers: of its main graph.
        data: calibration samples.
        context: for the seed, threads, progress and notes.
        limit: calibration samples, at most.
        work: multiply-accumulates that all of it may take; the cheapest layers come first.
    """
    chosen = affordable(layers, work)
    groups = list(dict.fromkeys(node.inputs[0] for layer in chosen for node in layer.nodes))
    values = [value for value in groups if value is not None]
    if not values:
        return {}
    found: dict[str, Weight] = {}
    try:
        stream = Stream.of(model, values, data, min(limit, SAMPLES), MEMORY_BYTES)
        for part in _waves(chosen):
            found |= _round(model, part, stream, context)
    except CannotRun as err:
        context.note(None, f"weights rounded to nearest: {first_line(err)}")
    return found


def affordable(layers: Sequence[Layer], work: float) -> list[Layer]:
    """Return the layers that can be rounded within some multiply-accumulates, in their order."""
    costs = {layer: layer.groups * (_ROWS + 3) * float(layer.columns) ** 3 for layer in layers}
    chosen: set[Layer] = set()
    for layer in sorted(layers, key=lambda layer: costs[layer]):
        work -= costs[layer]
        if work < 0 or layer.columns > LARGEST:
            break
        chosen.add(layer)
    return [layer for layer in layers if layer in chosen]


def _waves(layers: Sequence[Layer]) -> list[list[Layer]]:
    waves: list[list[Layer]] = [[]]
    used = 0
    for layer in layers:
        need = 8 * layer.groups * layer.columns**2
        if waves[-1] and used + need > _GRAM_BYTES:
            waves.append([])
            used = 0
        waves[-1].append(layer)
        used += need
    return waves


def _round(model: ir.Model, layers: Sequence[Layer], stream: Stream, context: Context) -> dict[str, Weight]:
    """Run the samples past and round; layers that read the same matrix share their Gram matrix."""
    grams: dict[object, Gram] = {}
    reads: list[tuple[ir.Value, ir.Node, Layer, Gram]] = []
    keys: dict[Layer, Gram] = {}
    for layer in layers:
        data = {id(node.inputs[0]) for node in layer.nodes}
        key: object = (data.pop(), layer.columns) if len(data) == 1 and layer.node.op_type != "Conv" else layer
        is_new = key not in grams
        gram = keys[layer] = grams.setdefault(key, Gram(layer))
        for node in layer.nodes if is_new else ():
            value = node.inputs[0]
            if value is not None:
                reads.append((value, node, layer, gram))
    rng = np.random.default_rng([context.seed, len(layers)])
    for group in stream.groups:
        mine = [read for read in reads if any(read[0] is value for value in group)]
        values = list(dict.fromkeys(read[0] for read in mine))
        if not values:
            continue
        for _, arrays in stream.capture(model, values, context, "rounding"):
            held = dict(zip(values, arrays, strict=True))
            for value, node, layer, gram in mine:
                wanted = -(-max(_ROWS * layer.columns, _FEWEST) // (max(stream.feeds, 1) * len(layer.nodes)))
                gram.add(layer, node, held[value], wanted, rng)
    found: dict[str, Weight] = {}
    for layer in layers:
        codes = rounded_by(layer, keys[layer].about(centred=layer.centred))
        if codes is not None:
            found[layer.value.name or ""] = replace(layer.nearest, codes=codes)
    return found


def rounded_by(layer: Layer, gram: Array) -> Array | None:
    """Return int8 codes with less output error than the nearest ones, None where there are none.

    Weights that are zero stay zero: kernels for sparse weights need their pattern.

    Args:
        layer: has the float weight, the scales and the nearest codes.
        gram: float64 [G, K, K], mean products of its inputs, or their covariance.
    """
    tensor = layer.value.const_value
    if tensor is None or not np.isfinite(gram).all():
        return None
    weight = layer.matrix(tensor.numpy()).astype(np.float64)  # [G, N, K]
    scale = layer.scale().astype(np.float64)
    codes, zeros = np.zeros(weight.shape, np.int8), weight == 0
    try:
        factor = np.stack([inverse_factor(part) for part in gram])
    except np.linalg.LinAlgError:
        return None

    def begin(start: int, part: Array) -> Rounder:
        del part

        def rounded(at: int, column: Array) -> Array:
            whole = np.clip(np.rint(column / scale[..., 0]), -layer.nearest.limit, layer.nearest.limit)
            whole[zeros[..., start + at]] = 0
            codes[..., start + at] = whole
            return np.asarray(whole * scale[..., 0])

        return rounded

    sweep(weight.copy(), factor, _BLOCK, begin)
    silent = np.einsum("gkk->gk", gram)[:, None, :] <= 0  # inputs that were never seen: nothing is mended there
    nearest = layer.matrix(layer.nearest.codes)
    codes = np.where(silent, nearest, codes)
    before, after = ((c * scale - weight) for c in (nearest.astype(np.float64), codes.astype(np.float64)))
    errors = [np.einsum("gnk,gkl,gnl->gn", e, gram, e, optimize=True) for e in (before, after)]
    better = errors[1] < errors[0]
    return layer.array(np.where(better[..., None], codes, nearest)) if better.any() else None
