"""What one run over the calibration samples leaves behind: Gram matrices and mean squares."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxedge.api import Array, Feed, capture, forked, set_constant
from onnxedge_passes.prune.groups import Groups
from onnxedge_passes.prune.labels import Reader
from onnxedge_passes.prune.linear import Gram, Linear, linear_problem, position_count, sample_outputs, sample_rows

Weights = Mapping[tuple[ir.Node, int], Array]  #: constant inputs that stand for a node's own
BY_WEIGHTS = ("l1", "l2", "bn-gamma", "random")  #: importances that need no samples
POSITIONS = 12_000  #: sampled positions per contraction over all samples


@dataclass(frozen=True, eq=False)
class Statistics:
    """What one run over the calibration samples leaves behind.

    Attributes:
        grams: by reader that has a least-squares view.
        squares: mean square of each input channel, by reader.
        linear: the least-squares view, by reader.
    """

    grams: Mapping[Reader, Gram]
    squares: Mapping[Reader, Array]
    linear: Mapping[Reader, Linear]


def measure(
    groups: Groups,
    feeds: Iterable[Feed],
    feed_count: int,
    seed: int,
    threads: int,
    *,
    with_grams: bool = True,
    weights: Weights | None = None,
) -> Statistics:
    """Run the model over the samples and keep the Gram matrix of every contraction that sums a free group away.

    Args:
        groups: of the model.
        feeds, feed_count: calibration samples.
        seed: for the sampled positions.
        threads: for the runtime.
        with_grams: False to keep the mean squares alone.
        weights: run the model with these.
    """
    readers = list({end.reader: None for group in groups.free for end in group.ends})
    linear = {r: found for r in readers if with_grams and (found := linear_problem(groups, r)) is not None}
    grams = {reader: Gram(found) for reader, found in linear.items()}
    squares = {reader: np.zeros(len(reader.ends)) for reader in readers}
    counts = dict.fromkeys(readers, 0)
    values: dict[ir.Value, int] = {}
    for reader in readers:
        wanted = [reader.data, *([linear[reader].target, linear[reader].output] if reader in linear else [])]
        for value in wanted:
            if value is not None:
                values.setdefault(value, len(values))
    rng = {reader: np.random.default_rng([seed, number]) for number, reader in enumerate(readers)}
    model, probes = with_constants(groups.labels.facts.model, weights or {}, list(values))
    for arrays in capture(model, probes, feeds, threads=threads):
        for reader in readers:
            source, axes = reader.data, reader.axes
            if source is None:  # inside of an operator: nothing is known of it
                squares[reader] += 1
                counts[reader] += 1
                continue
            data = arrays[values[source]]
            width = len(reader.ends) * axes.groups
            moved = np.moveaxis(data, axes.data_axis, -1).reshape(-1, width)
            energy = np.einsum("pc,pc->c", moved, moved).astype(np.float64)
            squares[reader] += energy.reshape(-1, len(reader.ends)).sum(axis=0)
            counts[reader] += len(moved)
            if reader not in linear:
                continue
            shape = arrays[values[linear[reader].output]].shape
            positions = draw(rng[reader], position_count(linear[reader], data, shape), feed_count)
            grams[reader].add(sample_rows(linear[reader], data, shape, positions), None)
            grams[reader].observe(sample_outputs(linear[reader], arrays[values[linear[reader].target]], positions))
    means = {reader: squares[reader] / max(counts[reader], 1) for reader in readers}
    return Statistics(grams, means, linear)


def draw(rng: np.random.Generator, available: int, feed_count: int) -> Array:
    """Return sorted random positions of one feed's output, its share of :data:`POSITIONS`."""
    wanted = -(-POSITIONS // max(feed_count, 1))
    if available <= wanted:
        return np.arange(available)
    return np.sort(rng.choice(available, wanted, replace=False))


def with_constants(
    model: ir.Model, weights: Weights, values: Sequence[ir.Value] = ()
) -> tuple[ir.Model, list[ir.Value]]:
    """Return a copy of a model with some constant inputs replaced, and the copies of some values."""
    twin, found = forked(model, values)
    nodes = dict(zip(model.graph, twin.graph, strict=True))
    for (node, index), array in weights.items():
        set_constant(nodes[node], index, array)
    return twin, found
