"""What the calibration samples say of the contractions: Gram matrices and mean squares."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from onnxedge.api import Array, Context, Feed, capture, forked, set_constant
from onnxedge_passes.prune.groups import Group, Groups
from onnxedge_passes.prune.labels import Reader
from onnxedge_passes.prune.linear import Gram, linear_problem, position_count, sample_outputs, sample_rows

Weights = Mapping[tuple[ir.Node, int], Array]  #: constant inputs that stand for a node's own
BY_WEIGHTS = ("l1", "l2", "bn-gamma", "random")  #: importances that need no samples
POSITIONS = 12_000  #: sampled positions per contraction over all samples
_GRAM_BYTES = 3 << 28  #: Gram matrices that one run over the samples fills
_INVERSE_BYTES = 1 << 30  #: inverses that the ranking of one group may hold


@dataclass(frozen=True, eq=False)
class Wave:
    """Groups that are measured together, and the contractions whose Gram matrices that takes."""

    groups: tuple[Group, ...]
    readers: tuple[Reader, ...]


class Statistics:
    """What the calibration samples say, measured when it is asked for.

    The Gram matrices of one wave of groups are held, as many as fit; those of another one cost another run over the
    samples. The positions that are drawn for a contraction do not depend on that.

    Attributes:
        context: for the seed, the threads, progress and notes.
        linear: the least-squares views, by contraction that sums a free group away.
        squares: mean square of each input channel, by such a contraction.
        waves: which groups are measured together, in the order of the free groups.
    """

    def __init__(
        self,
        groups: Groups,
        feeds: Sequence[Feed],
        context: Context,
        *,
        with_grams: bool = True,
        weights: Weights | None = None,
    ) -> None:
        """Measure the first wave, and the mean squares.

        Args:
            groups: of the model.
            feeds: calibration samples.
            context: for the seed, the threads, progress and notes.
            with_grams: False for the mean squares alone.
            weights: run the model with these.
        """
        self.context = context
        self._groups, self._feeds, self._weights = groups, feeds, weights or {}
        readers = list({end.reader: None for group in groups.free for end in group.ends})
        self._number = {reader: number for number, reader in enumerate(readers)}
        self.linear = {r: found for r in readers if with_grams and (found := linear_problem(groups, r)) is not None}
        self.waves = self._waves()
        self.squares: dict[Reader, Array] = {}
        self._now = self.waves[0]
        self._grams = self._measure(self._now)

    def gram(self, reader: Reader, group: Group) -> Gram | None:
        """Return the Gram matrix of a contraction that reads a group; None where it has no least-squares view."""
        wave = self._now if group in self._now.groups else next(wave for wave in self.waves if group in wave.groups)
        if wave is not self._now:
            self._grams = {}  # before there are new ones
            self._now, self._grams = wave, self._measure(wave)
        return self._grams.get(reader) if group not in self._wide else None

    def _waves(self) -> list[Wave]:
        """Take groups together as long as the Gram matrices fit; a group with too many of them gets none."""
        self._wide: set[Group] = set()
        waves: list[Wave] = []
        groups: list[Group] = []
        taken: dict[Reader, None] = {}
        for group in self._groups.free:
            own = dict.fromkeys(end.reader for end in group.ends if end.reader in self.linear)
            if sum(8 * self.linear[reader].rows ** 2 for reader in own) > _INVERSE_BYTES:
                self._wide.add(group)
                told = f"its {len(group.units)} units are ranked one by one: {len(own)} layers read them, which is"
                self.context.note(group.begins[0].node, f"{told} too much memory for least squares")
                own = {}
            if taken and sum(4 * self.linear[reader].rows ** 2 for reader in taken | own) > _GRAM_BYTES:
                waves.append(Wave(tuple(groups), tuple(taken)))
                groups, taken = [], {}
            groups.append(group)
            taken |= own
        return [*waves, Wave(tuple(groups), tuple(taken))]

    def _measure(self, wave: Wave) -> dict[Reader, Gram]:
        """Run the model over the samples; the first time the mean squares are taken, too."""
        grams = {reader: Gram(self.linear[reader]) for reader in wave.readers}
        squared = [] if self.squares else list(self._number)
        totals, counts = {reader: np.zeros(len(reader.ends)) for reader in squared}, dict.fromkeys(squared, 0)
        rng = {reader: np.random.default_rng([self.context.seed, self._number[reader]]) for reader in grams}
        values = [reader.data for reader in squared if reader.data is not None]
        values += [value for reader in grams for value in (self.linear[reader].data, self.linear[reader].target)]
        places = {value: place for place, value in enumerate(dict.fromkeys(values))}
        model, probes = with_constants(self._groups.labels.facts.model, self._weights, list(places))
        _shorten(model, probes)
        feeds = self.context.progress.track(self._feeds, "prune: statistics", len(self._feeds))
        for arrays in capture(model, probes, feeds, threads=self.context.threads):
            for reader in squared:
                energy, count = _energy(reader, arrays[places[reader.data]] if reader.data is not None else None)
                totals[reader] += energy
                counts[reader] += count
            for reader, gram in grams.items():
                linear = self.linear[reader]
                data, target = arrays[places[linear.data]], arrays[places[linear.target]]
                positions = draw(rng[reader], position_count(linear, data, target.shape), len(self._feeds))
                gram.add(sample_rows(linear, data, target.shape, positions), None)
                gram.observe(sample_outputs(linear, target, positions))
        self.squares |= {reader: total / max(counts[reader], 1) for reader, total in totals.items()}
        return grams


def _energy(reader: Reader, data: Array | None) -> tuple[Array, int]:
    """Return the summed squares of each input channel, and of how many positions."""
    axes, width = reader.axes, len(reader.ends)
    if data is None:  # inside of an operator: nothing is known of it
        return np.ones(width), 1
    axis = axes.data_axis % data.ndim
    flat = data.reshape(math.prod(data.shape[:axis]), data.shape[axis], -1)
    energy = np.einsum("acb,acb->c", flat, flat).astype(np.float64)
    return energy.reshape(-1, width).sum(axis=0), flat.shape[0] * flat.shape[2]


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


def _shorten(model: ir.Model, values: Sequence[ir.Value]) -> None:
    """Leave of a copy what some values are computed by."""
    model.graph.outputs.clear()
    model.graph.outputs.extend(values)
    RemoveUnusedNodesPass()(model)
