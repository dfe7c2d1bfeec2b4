"""Layer by layer through the calibration samples: zeros chosen and weights refitted on what the sparse layers give."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from onnxedge.api import Array, Context, Data, Feed, subgraphs
from onnxedge_passes.prune.compensation import Constants, bias_of_output
from onnxedge_passes.prune.facts import Facts
from onnxedge_passes.prune.groups import Groups, find_groups
from onnxedge_passes.prune.linear import (
    Gram,
    Linear,
    linear_problem,
    position_count,
    sample_outputs,
    sample_rows,
    weight_matrix,
)
from onnxedge_passes.prune.statistics import draw
from onnxedge_passes.prune.stream import Stream, held_bytes
from onnxedge_passes.sparsify.layers import Layer
from onnxedge_passes.sparsify.obs import Quadratic, brain_surgeon, refit
from onnxedge_passes.sparsify.pattern import Pattern, largest

Method = Literal["obs", "magnitude"]
Zeros = int | Pattern  #: how many weights of a layer go, or the pattern that they make

_BATCH = 32
_STREAM_BYTES = 1 << 30  #: activations of both streams that the fit may hold


@dataclass(frozen=True)
class How:
    """Say how zeros are chosen and mended; the fields are the options of the pass of the same name."""

    method: Method
    repair: bool
    ridge: float

    @property
    def reads_data(self) -> bool:
        """Tell whether samples are needed."""
        return self.repair or self.method == "obs"


def by_magnitude(layer: Layer, zeros: Zeros) -> Array:
    """Return a weight with its smallest elements set to zero."""
    matrix = layer.matrix()
    return layer.restored(np.where(_largest(np.abs(matrix), zeros, layer.kernel), matrix, 0.0))


def _largest(scores: Array, zeros: Zeros, kernel: int) -> Array:
    return zeros.largest(scores, kernel) if isinstance(zeros, Pattern) else largest(scores, zeros)


def is_done(layer: Layer, zeros: Zeros) -> bool:
    """Tell whether a weight has its zeros already."""
    matrix = layer.matrix()
    if isinstance(zeros, Pattern):
        return zeros.holds(matrix, layer.kernel)
    return int(np.count_nonzero(matrix == 0)) >= zeros


def fit(model: ir.Model, plan: Mapping[Layer, Zeros], data: Data, context: Context, how: How) -> tuple[Constants, int]:
    """Return the weights and biases that replace the model's own, and how many were fitted to samples.

    Each layer sees what the sparse layers before it give and aims at the original outputs; where its output goes into a
    residual sum, at that sum less what the other branch now carries. What has no least-squares view (grouped and
    transposed convolutions, shared weights) is chosen by magnitude.

    Raises:
        CannotRun: the runtime does not run the model, or a part of it.
    """
    sample = next(iter(data.feeds(size=2, limit=2)))
    groups = find_groups(Facts(model, sample, threads=context.threads))
    views = _views(groups, plan, context)
    constants: Constants = {}
    for layer, zeros in plan.items():
        if layer not in views:
            array = by_magnitude(layer, zeros)
            constants |= {(node, layer.axes.index): array for node in layer.nodes}
    feeds = _feeds(groups, views.values(), data, context)
    original, sparse = (Stream(model, feeds, threads=context.threads) for _ in range(2))
    for (node, index), array in constants.items():
        sparse.replace(node, index, array)
    waiting = {layer.nodes[0] for layer in views}
    for number, layer in enumerate(context.progress.track(list(views), "sparsify: fit", len(views))):
        linear = views[layer]
        waiting.discard(layer.nodes[0])
        rng = np.random.default_rng([context.seed, number])
        gram = _gram(linear, original, sparse, waiting, rng)
        for key, array in _solved(layer, plan[layer], linear, gram, how, context).items():
            constants[key] = array
            sparse.replace(*key, array)
    return constants, len(views)


def _views(groups: Groups, plan: Mapping[Layer, Zeros], context: Context) -> dict[Layer, Linear]:
    """Return the layers that have a least-squares view; the others are noted."""
    readers = {(reader.node, reader.weight): reader for reader in groups.labels.readers}
    views = {}
    for layer in plan:
        reader = readers.get((layer.nodes[0], layer.value)) if len(layer.nodes) == 1 else None
        linear = linear_problem(groups, reader) if reader is not None else None
        if linear is not None and np.array_equal(weight_matrix(linear, layer.array), layer.matrix()):
            views[layer] = linear
            continue
        shared = "its weight is shared" if len(layer.nodes) > 1 else "it has no least-squares view here"
        context.note(layer.nodes[0], f"zeros chosen by magnitude and not refitted: {shared}")
    return views


def _feeds(groups: Groups, views: Collection[Linear], data: Data, context: Context) -> list[Feed]:
    """Return the samples, no more than both streams can hold."""
    facts = groups.labels.facts
    stops = {value for linear in views for value in (linear.data, linear.target)}
    held = 2 * held_bytes(facts.model, facts.shapes, stops) / facts.samples
    limit = max(_BATCH, int(_STREAM_BYTES / max(held, 1)))
    if limit < len(data):
        context.note(None, f"fitted on {limit} samples of {len(data)}: more would take too much memory")
    return list(data.feeds(_BATCH, min(limit, len(data))))


def _gram(
    linear: Linear, original: Stream, sparse: Stream, waiting: Collection[ir.Node], rng: np.random.Generator
) -> Gram:
    """Sum over the samples: inputs from the sparse model, targets from the original less the sparse shortcut."""
    shortcut = linear.shortcut if linear.shortcut is None or not _depends(linear.shortcut, waiting) else None
    target = linear.target if shortcut is not None or linear.shortcut is None else linear.output
    targets = original.fetch([target])[0]
    data, *others = sparse.fetch([linear.data, *([shortcut] if shortcut is not None else [])])
    gram = Gram(linear)
    for k, array in enumerate(targets):
        positions = draw(rng, position_count(linear, data[k], array.shape), len(targets))
        wanted = sample_outputs(linear, array, positions)
        if others:
            wanted = wanted - sample_outputs(linear, others[0][k], positions)
        if not gram.with_bias:
            wanted = wanted - bias_of_output(linear).astype(np.float32)
        gram.add(sample_rows(linear, data[k], array.shape, positions), wanted)
    return gram


def _depends(value: ir.Value, nodes: Collection[ir.Node]) -> bool:
    """Tell whether a value is computed from what one of some nodes gives, or may be."""
    stack, seen = [value], {value}
    while stack:
        node = stack.pop().producer()
        if node is None:
            continue
        if node in nodes or any(True for _ in subgraphs(node)):  # a subgraph may read anything that came before
            return True
        new = [source for source in node.inputs if source is not None and source not in seen]
        seen.update(new)
        stack.extend(new)
    return False


def _solved(layer: Layer, zeros: Zeros, linear: Linear, gram: Gram, how: How, context: Context) -> Constants:
    """Return the weight of a layer with its zeros, and the bias that goes with it."""
    node, index = layer.nodes[0], layer.axes.index
    reason = "its data is not finite on some samples"
    if gram.is_finite:
        try:
            w, bias = _fitted(layer, zeros, gram, how)
        except np.linalg.LinAlgError:
            reason = "the fit is singular; a larger ridge helps"
        else:
            made: Constants = {(node, index): layer.restored(w)}
            if how.repair and linear.bias is not None:
                made[linear.bias] = bias.astype(layer.array.dtype)
            if all(np.isfinite(array).all() for array in made.values()):
                return made
            reason = "the refitted weights overflow"
    context.note(node, f"zeros chosen by magnitude and not refitted: {reason}")
    return {(node, index): by_magnitude(layer, zeros)}


def _fitted(layer: Layer, zeros: Zeros, gram: Gram, how: How) -> tuple[Array, Array]:
    """Return weights [R, Co] with their zeros, and the bias [Co] that goes with them."""
    old = layer.matrix()
    problem = Quadratic.of(gram, old, how.ridge)
    if how.method == "obs":
        w, keep = brain_surgeon(problem.a, problem.best() if how.repair else old, zeros, layer.kernel)
    else:
        keep = _largest(np.abs(old), zeros, layer.kernel)
        w = np.where(keep, old, 0.0)
    if how.repair:
        w = refit(problem, w, keep)
    return w, problem.bias(layer.matrix(layer.restored(w)))
