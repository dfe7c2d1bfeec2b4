"""What a unit is worth: how much worse the outputs become without it, for each number of units that goes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from scipy.linalg import cho_factor, cho_solve

from onnxedge.api import Array, Score, Units, UserError
from onnxedge_passes.prune.groups import End, Group, Groups
from onnxedge_passes.prune.labels import Reader
from onnxedge_passes.prune.linear import Gram, Linear, bias_vector, weight_matrix
from onnxedge_passes.prune.statistics import Statistics, Weights


@dataclass(frozen=True, eq=False)
class Curve:
    """The order in which a group's units go, and what that costs.

    Attributes:
        order: indices into the group's units, first to go first.
        error: float64 [U + 1], error once that many are gone, as a share of the variance of what they feed.
    """

    order: Array
    error: Array


def curves(
    groups: Groups,
    score: Score | None,
    statistics: Statistics | None,
    gammas: Mapping[ir.Node, Array],
    ridge: float,
    *,
    gone: Array | None = None,
    weights: Weights | None = None,
    seed: int = 0,
) -> list[Curve]:
    """Return the error curve of each free group.

    Args:
        groups: of the model.
        score: ranks units one by one; None for the optimal brain surgeon, which sees what the others can take over.
        statistics: of the calibration samples, where the ranking needs them.
        gammas: BatchNormalization scales that were folded, by contraction.
        ridge: see :meth:`Gram.ridge`.
        gone: bool [units], what is gone already: it comes first, at no cost.
        weights: of the contractions, where they are not the model's own any more.
        seed: of what is drawn.
    """
    gone = np.zeros(len(groups.component), bool) if gone is None else gone
    if score is not None:
        rng = np.random.default_rng(seed)
        return [_ranked(groups, group, score, statistics, gammas, gone, rng) for group in groups.free]
    assert statistics is not None

    known: Statistics = statistics

    def surgeon(reader: Reader) -> Surgeon | None:
        """Invert when it is needed: the inverses of all contractions together take as much memory as the sums."""
        gram = known.grams.get(reader)
        if gram is None or not gram.is_finite:
            return None
        lost = gone[groups.units_of(reader.ends)]
        return Surgeon.of(gram, known.linear[reader], ridge, lost, weights=weights or {})

    return [brain_surgeon(group, surgeon, statistics, gone[group.units]) for group in groups.free]


def _ranked(
    groups: Groups,
    group: Group,
    score: Score,
    statistics: Statistics | None,
    gammas: Mapping[ir.Node, Array],
    gone: Array,
    rng: np.random.Generator,
) -> Curve:
    """Rank units by a score of their own; the error is the share of the scores that is gone."""
    scores = np.nan_to_num(np.maximum(np.asarray(score(_units(groups, group, statistics, gammas, rng)), float), 0.0))
    if scores.shape != group.units.shape:
        raise UserError(f"the importance gives {scores.shape} scores for {len(group.units)} units of {group.name!r}")
    scores[gone[group.units]] = 0.0
    order = np.lexsort((scores, ~gone[group.units]))
    error = np.concatenate([[0.0], np.cumsum(scores[order])]) / max(scores.sum(), 1e-30)
    return Curve(order, error * len(group.ends))


def _units(
    groups: Groups,
    group: Group,
    statistics: Statistics | None,
    gammas: Mapping[ir.Node, Array],
    rng: np.random.Generator,
) -> Units:
    """Return what a score sees of a group."""
    makes, scales = [], []
    for reader in group.begins:
        owner = groups.units_of(reader.begins)
        places = np.array([np.flatnonzero(owner == unit) for unit in group.units.tolist()])
        makes.append(_rows(reader, makes=True)[places].reshape(len(places), -1))
        gamma = gammas.get(reader.node)
        if gamma is not None and gamma.shape == reader.begins.shape:
            scales.append(gamma[places].astype(np.float64))
    reads = [_rows(end.reader, makes=False)[end.rows] for end in group.ends]
    squares = [statistics.squares[end.reader][end.rows] for end in group.ends] if statistics is not None else []
    return Units(tuple(makes), tuple(reads), tuple(squares), tuple(scales), rng)


def _rows(reader: Reader, *, makes: bool) -> Array:
    """Return a weight as float64 [channels, rest], by its output channels or by its input channels."""
    axes, tensor = reader.axes, reader.weight.const_value
    assert tensor is not None
    axis, count = (axes.output, len(reader.begins)) if makes else (axes.input, len(reader.ends))
    return np.moveaxis(tensor.numpy().astype(np.float64), axis, 0).reshape(count, -1)


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
    def of(cls, gram: Gram, linear: Linear, ridge: float, gone: Array, *, weights: Weights) -> Surgeon:
        """Invert; the weights are the model's own, which are optimal on its own data.

        Args:
            gram: of the inputs.
            linear: the contraction.
            ridge: see :meth:`Gram.ridge`.
            gone: bool [Ci], inputs that are not there any more.
            weights: stand for the model's own.
        """
        tensor, axes = linear.reader.weight.const_value, linear.reader.axes
        assert tensor is not None
        w = weight_matrix(linear, weights.get((linear.reader.node, axes.index), tensor.numpy()))
        if gram.with_bias:
            bias = weights.get(linear.bias) if linear.bias is not None else None
            w = np.concatenate([w, (bias_vector(linear) if bias is None else bias.astype(np.float64))[None]])
        alive = np.flatnonzero(np.concatenate([~np.repeat(gone, linear.kernel), np.ones(int(gram.with_bias), bool)]))
        shifted = gram.a[np.ix_(alive, alive)] / max(gram.count, 1)
        surgeon = cls(inverse(shifted, gram.ridge(ridge)[alive]), w[alive])
        surgeon.index = alive
        return surgeon

    def copy(self) -> Surgeon:
        """Return a copy to cut."""
        twin = Surgeon(self.h.copy(), self.w.copy())
        twin.index = self.index
        return twin

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


def brain_surgeon(
    group: Group, surgeon_of: Callable[[Reader], Surgeon | None], statistics: Statistics, without: Array
) -> Curve:
    """Remove the units one by one, each time the one whose loss costs least with the others refitted.

    The costs of all contractions that read the group are summed, each as a share of its target's variance. One that
    has no least-squares view counts the energy that the unit brings in. Units in ``without`` (bool [U]) are gone
    already. Source: block form of optimal brain surgeon (Hassibi and Stork 1993; Frantar and Alistarh 2022,
    arXiv:2208.11580, section 4).
    """
    parts, fixed = [], np.zeros(len(group.units))
    for end in group.ends:
        surgeon = surgeon_of(end.reader)
        if surgeon is not None:
            linear = statistics.linear[end.reader]
            gram = statistics.grams[end.reader]
            scale = gram.optimism() / max(gram.target_variance(), 1e-30)
            parts.append((surgeon, unit_rows(end, linear), scale))
        else:
            fixed += _energy(end, statistics)
    alive, gone = np.flatnonzero(~without), np.flatnonzero(without).tolist()
    error = [0.0] * (1 + len(gone))
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
    axes, tensor = end.reader.axes, end.reader.weight.const_value
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
