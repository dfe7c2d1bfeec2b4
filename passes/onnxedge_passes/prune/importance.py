"""What a unit is worth: how much worse the outputs become without it, for each number of units that goes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir
from scipy.linalg import cho_factor, cho_solve

from onnxedge.api import Array, Feed, capture, weight_axes
from onnxedge_passes.prune.groups import End, Group, Groups
from onnxedge_passes.prune.labels import Reader
from onnxedge_passes.prune.linear import (
    Gram,
    Linear,
    bias_vector,
    linear_problem,
    position_count,
    sample_outputs,
    sample_rows,
    weight_matrix,
)

Importance = Literal["obs", "activation", "l1", "l2", "bn-gamma"]
POSITIONS = 12_000  #: sampled positions per contraction over all samples


@dataclass(frozen=True, eq=False)
class Curve:
    """The order in which a group's units go, and what that costs.

    Attributes:
        order: indices into the group's units, first to go first.
        error: float64 [U + 1], error once that many are gone, as a share of the variance of what they feed.
    """

    order: Array
    error: Array


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


def measure(groups: Groups, feeds: Iterable[Feed], feed_count: int, seed: int, threads: int) -> Statistics:
    """Run the model over the samples and keep the Gram matrix of every contraction that sums a free group away."""
    readers = list({end.reader: None for group in groups.free for end in group.ends})
    linear = {r: found for r in readers if (found := linear_problem(groups, r)) is not None}
    grams = {reader: Gram(found) for reader, found in linear.items()}
    squares = {reader: np.zeros(len(reader.ends)) for reader in readers}
    counts = dict.fromkeys(readers, 0)
    values: dict[ir.Value, int] = {}
    for reader in readers:
        wanted = [reader.node.inputs[0], *([linear[reader].target, linear[reader].output] if reader in linear else [])]
        for value in wanted:
            if value is not None:
                values.setdefault(value, len(values))
    rng = {reader: np.random.default_rng([seed, number]) for number, reader in enumerate(readers)}
    for arrays in capture(groups.labels.facts.model, list(values), feeds, threads=threads):
        for reader in readers:
            source = reader.node.inputs[0]
            data = arrays[values[source]] if source is not None else np.zeros(0)
            axes = weight_axes(reader.node)
            width = len(reader.ends) * (axes.groups if axes else 1)
            moved = np.moveaxis(data, axes.data_axis if axes else 1, -1).reshape(-1, width)
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


def curves(
    groups: Groups, kind: Importance, statistics: Statistics | None, gammas: Mapping[ir.Node, Array], ridge: float
) -> list[Curve]:
    """Return the error curve of each free group."""
    if kind == "obs":
        assert statistics is not None
        inverses = {
            reader: Surgeon.of(gram, statistics.linear[reader], ridge)
            for reader, gram in statistics.grams.items()
            if gram.is_finite
        }
        return [brain_surgeon(group, inverses, statistics) for group in groups.free]
    return [_ranked(groups, group, kind, statistics, gammas) for group in groups.free]


def _ranked(
    groups: Groups, group: Group, kind: Importance, statistics: Statistics | None, gammas: Mapping[ir.Node, Array]
) -> Curve:
    """Rank units by a score of their own; the error is the share of the squared scores that is gone."""
    scores = np.zeros(len(group.units))
    if kind == "activation" and statistics is not None:
        for end in group.ends:
            means = statistics.squares[end.reader][end.rows].sum(axis=1)
            scores += means / max(means.sum(), 1e-30)
    else:
        for reader in group.begins:
            owner = groups.units_of(reader.begins)
            values = _begin_scores(reader, kind, gammas)
            sums = np.array([values[owner == unit].sum() for unit in group.units.tolist()])
            scores += sums / max(sums.sum(), 1e-30)
    order = np.argsort(scores, kind="stable")
    error = np.concatenate([[0.0], np.cumsum(scores[order])]) / max(scores.sum(), 1e-30)
    return Curve(order, error * len(group.ends))


def _begin_scores(reader: Reader, kind: Importance, gammas: Mapping[ir.Node, Array]) -> Array:
    """Return a squared score for each output channel."""
    gamma = gammas.get(reader.node)
    if kind == "bn-gamma" and gamma is not None and gamma.shape == reader.begins.shape:
        return np.asarray(gamma.astype(np.float64) ** 2)
    axes, tensor = weight_axes(reader.node), reader.weight.const_value
    assert axes is not None
    assert tensor is not None
    rows = np.moveaxis(tensor.numpy().astype(np.float64), axes.output, 0).reshape(len(reader.begins), -1)
    return np.asarray(np.abs(rows).sum(axis=1) ** 2 if kind == "l1" else np.einsum("ij,ij->i", rows, rows))


class Surgeon:
    """The inverse Gram matrix of a contraction and its weights, as units go one by one.

    Attributes:
        h: float64 [R, R], inverse of the regularised mean Gram matrix of the rows that are left.
        w: float64 [R, Co], their optimal weights.
    """

    def __init__(self, h: Array, w: Array) -> None:
        self.h, self.w = h, w
        self.index = np.arange(len(h))
        self._gone = np.zeros(0, np.int64)

    @classmethod
    def of(cls, gram: Gram, linear: Linear, ridge: float) -> Surgeon:
        """Invert; the weights are the model's own, which are optimal on its own data."""
        tensor = linear.reader.weight.const_value
        assert tensor is not None
        weights = weight_matrix(linear, tensor.numpy())
        if gram.with_bias:
            weights = np.concatenate([weights, bias_vector(linear)[None]])
        return cls(inverse(gram.a / max(gram.count, 1), gram.ridge(ridge)), weights)

    def copy(self) -> Surgeon:
        """Return a copy to cut."""
        return Surgeon(self.h.copy(), self.w.copy())

    def costs(self, rows: Array) -> Array:
        """Return for each unit (rows int [U, r]) the squared error of losing it: ``tr(W_g' (H_gg)^-1 W_g)``."""
        at = np.searchsorted(self.index, rows)
        w = self.w[at]
        if rows.shape[1] == 1:
            return np.asarray(np.einsum("uro,uro->u", w, w) / self.h[at[:, 0], at[:, 0]])
        blocks = self.h[at[:, :, None], at[:, None, :]]
        return np.asarray(np.einsum("uro,uro->u", w, np.linalg.solve(blocks, w)))

    def remove(self, rows: Array) -> None:
        """Take one unit's rows (int [r]) out and refit the others."""
        at = np.searchsorted(self.index, rows)
        columns = self.h[:, at]
        step = np.linalg.solve(self.h[np.ix_(at, at)], np.concatenate([self.w[at], columns.T], axis=1))
        outputs = self.w.shape[1]
        self.w -= columns @ step[:, :outputs]
        self.h -= columns @ step[:, outputs:]
        self._gone = np.concatenate([self._gone, at])
        if 4 * len(self._gone) > len(self.index):
            keep = np.setdiff1d(np.arange(len(self.index)), self._gone)
            self.index, self.w = self.index[keep], self.w[keep]
            self.h = np.ascontiguousarray(self.h[np.ix_(keep, keep)])
            self._gone = np.zeros(0, np.int64)


def inverse(matrix: Array, diagonal: Array) -> Array:
    """Return the inverse of a symmetric positive semi-definite matrix with something added to its diagonal."""
    shifted = matrix + np.diag(diagonal)
    return np.asarray(cho_solve(cho_factor(shifted, lower=True), np.eye(len(shifted))))


def unit_rows(end: End, linear: Linear) -> Array:
    """Return int [U, r * K]: the regressors of each unit."""
    rows = end.rows[:, :, None] * linear.kernel + np.arange(linear.kernel)
    return np.asarray(rows.reshape(len(end.rows), -1))


def brain_surgeon(group: Group, surgeons: Mapping[Reader, Surgeon], statistics: Statistics) -> Curve:
    """Remove the units one by one, each time the one whose loss costs least with the others refitted.

    The costs of all contractions that read the group are summed, each as a share of its target's variance. One that
    has no least-squares view counts the energy that the unit brings in. Source: block form of optimal brain surgeon
    (Hassibi and Stork 1993; Frantar and Alistarh 2022, arXiv:2208.11580, section 4).
    """
    parts, fixed = [], np.zeros(len(group.units))
    for end in group.ends:
        if end.reader in surgeons:
            linear = statistics.linear[end.reader]
            gram = statistics.grams[end.reader]
            scale = gram.optimism() / max(gram.target_variance(), 1e-30)
            parts.append((surgeons[end.reader].copy(), unit_rows(end, linear), scale))
        else:
            fixed += _energy(end, statistics)
    alive, gone = np.arange(len(group.units)), []
    error = [0.0]
    while len(alive):
        costs = fixed[alive].copy()
        for surgeon, rows, scale in parts:
            costs += scale * np.maximum(surgeon.costs(rows[alive]), 0.0)
        best = int(np.argmin(costs))
        unit = int(alive[best])
        for surgeon, rows, _ in parts:
            surgeon.remove(rows[unit])
        error.append(error[-1] + float(costs[best]))
        gone.append(unit)
        alive = np.delete(alive, best)
    return Curve(np.array(gone), np.array(error))


def _energy(end: End, statistics: Statistics) -> Array:
    """Return ``E[x^2] |w|^2`` of each unit as a share of its sum."""
    axes, tensor = weight_axes(end.reader.node), end.reader.weight.const_value
    assert axes is not None
    assert tensor is not None
    rows = np.moveaxis(tensor.numpy().astype(np.float64), axes.input, 0).reshape(len(end.reader.ends), -1)
    energy = statistics.squares[end.reader] * np.einsum("ij,ij->i", rows, rows)
    return np.asarray(energy[end.rows].sum(axis=1) / max(energy.sum(), 1e-30))


def brain_surgeon_on(group: Group, end: End, linear: Linear, surgeon: Surgeon, count: int) -> Array:
    """Return the ``count`` units of a group that go first when one contraction alone decides."""
    rows, surgeon = unit_rows(end, linear), surgeon.copy()
    alive, gone = np.arange(len(group.units)), []
    for _ in range(count):
        best = int(np.argmin(surgeon.costs(rows[alive])))
        gone.append(int(alive[best]))
        surgeon.remove(rows[gone[-1]])
        alive = np.delete(alive, best)
    return np.array(gone)
