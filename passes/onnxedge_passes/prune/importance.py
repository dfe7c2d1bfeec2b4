"""What a unit is worth: how much worse the outputs become without it, for each number of units that goes."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from scipy.linalg.blas import dgemm
from scipy.linalg.lapack import dpotrf, dpotri

from onnxedge.api import Array, Score, Units, UserError
from onnxedge_passes.prune.groups import End, Group, Groups
from onnxedge_passes.prune.labels import Reader
from onnxedge_passes.prune.linear import Gram, Linear, bias_vector, weight_matrix
from onnxedge_passes.prune.statistics import Statistics, Weights
from onnxedge_passes.prune.taylor import Slopes

_WAITING = 128  #: rows that may have gone before all of the matrices is brought up to date
_TILE = 256  #: side of what is mirrored at once


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
    slopes: Slopes | None = None,
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
        slopes: of the loss, where the ranking needs them.
        seed: of what is drawn.
    """
    gone = np.zeros(len(groups.component), bool) if gone is None else gone
    if score is not None:
        rng = np.random.default_rng(seed)
        return [_ranked(groups, group, score, statistics, gammas, gone, slopes, rng) for group in groups.free]
    assert statistics is not None
    order = statistics.context.progress.track(groups.free, "prune: importance", len(groups.free))
    return [brain_surgeon(groups, group, statistics, ridge, gone, weights or {}) for group in order]


def _ranked(
    groups: Groups,
    group: Group,
    score: Score,
    statistics: Statistics | None,
    gammas: Mapping[ir.Node, Array],
    gone: Array,
    slopes: Slopes | None,
    rng: np.random.Generator,
) -> Curve:
    """Rank units by a score of their own; the error is the share of the scores that is gone."""
    given = score(_units(groups, group, statistics, gammas, slopes, rng))
    scores = np.nan_to_num(np.maximum(np.asarray(given, float), 0.0))
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
    slopes: Slopes | None,
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
    rising = slopes.of(group) if slopes is not None else None
    return Units(tuple(makes), tuple(reads), tuple(squares), tuple(scales), rng, rising)


def _rows(reader: Reader, *, makes: bool) -> Array:
    """Return a weight as float64 [channels, rest], by its output channels or by its input channels."""
    axes, tensor = reader.axes, reader.weight.const_value
    assert tensor is not None
    axis, count = (axes.output, len(reader.begins)) if makes else (axes.input, len(reader.ends))
    return np.moveaxis(tensor.numpy().astype(np.float64), axis, 0).reshape(count, -1)


class Surgeon:
    """The inverse Gram matrix of a contraction and its weights, as units go one by one.

    All of both matrices changes with each unit. So what changes waits in ``V`` and ``Y``, and is made for many units at
    once: the matrices are ``H - V V'`` and ``W - V Y``. The blocks of ``H`` and of ``W W'`` that belong to the units
    left are always up to date.
    """

    def __init__(self, h: Array, w: Array, rows: Array) -> None:
        """Begin with all units.

        Args:
            h: float64 [R, R], inverse of the regularised mean Gram matrix; stays as it is.
            w: float64 [R, Co], the optimal weights; they stay, too.
            rows: int [U, r], the rows of each unit; other rows never go.
        """
        self._begin(h, w, rows)

    def _begin(self, h: Array, w: Array, rows: Array) -> None:
        self._h, self._w, self._rows = h, w, rows
        room = max(_WAITING, rows.shape[1])
        self._v, self._y = np.empty((len(h), room)), np.empty((room, w.shape[1]))
        self._waiting = 0
        self._stays = np.ones(len(h), bool)
        own = w[rows]
        self._blocks = h[rows[:, :, None], rows[:, None, :]]
        self._products = own @ own.transpose(0, 2, 1)

    @classmethod
    def of(cls, gram: Gram, linear: Linear, ridge: float, gone: Array, rows: Array, *, weights: Weights) -> Surgeon:
        """Invert; the weights are the model's own, which are optimal on its own data.

        Args:
            gram: of the inputs.
            linear: the contraction.
            ridge: see :meth:`Gram.ridge`.
            gone: bool [Ci], inputs that are not there any more.
            rows: int [U, r], the regressors of each unit that is there.
            weights: stand for the model's own.

        Raises:
            np.linalg.LinAlgError: the ridge is too weak.
        """
        tensor, axes = linear.reader.weight.const_value, linear.reader.axes
        assert tensor is not None
        w = weight_matrix(linear, weights.get((linear.reader.node, axes.index), tensor.numpy()))
        if gram.with_bias:
            bias = weights.get(linear.bias) if linear.bias is not None else None
            w = np.concatenate([w, (bias_vector(linear) if bias is None else bias.astype(np.float64))[None]])
        alive = np.flatnonzero(np.concatenate([~np.repeat(gone, linear.kernel), np.ones(int(gram.with_bias), bool)]))
        return cls(inverse(gram.mean(alive), gram.ridge(ridge)[alive]), w[alive], np.searchsorted(alive, rows))

    def costs(self) -> Array:
        """Return for each unit that is left the squared error of losing it: ``tr(W_g' (H_gg)^-1 W_g)``."""
        if self._rows.shape[1] == 1:
            return np.asarray(self._products[:, 0, 0] / self._blocks[:, 0, 0])
        return np.asarray(np.einsum("uii->u", np.linalg.solve(self._blocks, self._products)))

    def remove(self, place: int) -> None:
        """Take a unit out, by its place among those left, and refit the others."""
        at, waiting = self._rows[place], self._waiting
        v, y = self._v[:, :waiting], self._y[:waiting]
        columns = self._h[at].T - v @ v[at].T
        root = _inverse_root(columns[at])
        step = columns @ root
        gain = root.T @ (self._w[at] - v[at] @ y)
        lost = self._w @ gain.T - v @ (y @ gain.T)
        self._rows, self._blocks, self._products = (
            np.delete(array, place, axis=0) for array in (self._rows, self._blocks, self._products)
        )
        own = step[self._rows]
        back = own.transpose(0, 2, 1)
        cross = lost[self._rows] @ back
        self._blocks -= own @ back
        self._products += own @ (gain @ gain.T) @ back - cross - cross.transpose(0, 2, 1)
        self._stays[at] = False
        self._waiting = waiting + len(at)
        self._v[:, waiting : self._waiting], self._y[waiting : self._waiting] = step, gain
        if len(self._rows) and self._waiting + len(at) > len(self._y):
            self._settle()

    def _settle(self) -> None:
        """Make the changes that wait."""
        keep = np.flatnonzero(self._stays)
        v, h = np.asfortranarray(self._v[keep, : self._waiting]), self._h[np.ix_(keep, keep)]
        h = dgemm(-1.0, v, v, trans_b=True, beta=1.0, c=h.T, overwrite_c=True)  # symmetric: its transpose is as good
        self._begin(h.T, self._w[keep] - v @ self._y[: self._waiting], np.searchsorted(keep, self._rows))


def _inverse_root(block: Array) -> Array:
    """Return ``R`` with ``R R' = block^-1``."""
    values, vectors = np.linalg.eigh(block)
    return np.asarray(vectors / np.sqrt(np.maximum(values, 1e-14 * max(values[-1], 1e-300))))


def inverse(matrix: Array, diagonal: Array) -> Array:
    """Return the inverse of a symmetric positive semi-definite matrix with something added to its diagonal.

    Args:
        matrix: [R, R]; where it is float64 in rows it becomes the inverse, since there may be no room for two.
        diagonal: float64 [R].

    Raises:
        np.linalg.LinAlgError: the sum is not positive definite.
    """
    matrix = np.require(matrix, np.float64, ["C", "W"])
    matrix.reshape(-1)[:: len(matrix) + 1] += diagonal
    factor, failed = dpotrf(matrix.T, lower=True, clean=False, overwrite_a=True)
    inverted, broken = dpotri(factor, lower=True, overwrite_c=True)
    if failed or broken:
        raise np.linalg.LinAlgError("not positive definite")
    for start in range(0, len(inverted), _TILE):
        stop = start + _TILE
        inverted[start:stop, stop:] = inverted[stop:, start:stop].T
        tile = np.tril(inverted[start:stop, start:stop])
        inverted[start:stop, start:stop] = tile + np.tril(tile, -1).T
    return np.asarray(inverted.T)


def unit_rows(end: End, linear: Linear) -> Array:
    """Return int [U, r * K]: the regressors of each unit."""
    rows = end.rows[:, :, None] * linear.kernel + np.arange(linear.kernel)
    return np.asarray(rows.reshape(len(end.rows), -1))


def brain_surgeon(
    groups: Groups, group: Group, statistics: Statistics, ridge: float, gone: Array, weights: Weights
) -> Curve:
    """Remove the units one by one, each time the one whose loss costs least with the others refitted.

    The costs of all contractions that read the group are summed, each as a share of its target's variance. One that
    has no least-squares view counts the energy that the unit brings in. Source: block form of optimal brain surgeon
    (Hassibi and Stork 1993; Frantar and Alistarh 2022, arXiv:2208.11580, section 4).

    Args:
        groups, group, statistics: of the model.
        ridge: see :meth:`Gram.ridge`.
        gone: bool [units], what is gone already.
        weights: stand for the model's own.
    """
    left, removed = np.flatnonzero(~gone[group.units]), np.flatnonzero(gone[group.units]).tolist()
    parts, fixed = [], np.zeros(len(left))
    for end in group.ends:
        gram, surgeon = statistics.gram(end.reader, group), None
        if gram is not None and gram.is_finite:
            linear, lost = statistics.linear[end.reader], gone[groups.units_of(end.reader.ends)]
            with contextlib.suppress(np.linalg.LinAlgError):
                surgeon = Surgeon.of(gram, linear, ridge, lost, unit_rows(end, linear)[left], weights=weights)
                parts.append((surgeon, gram.optimism() / max(gram.target_variance(), 1e-30)))
        if surgeon is None:
            fixed += _energy(end, statistics)[left]
    error = [0.0] * (1 + len(removed))
    while len(left):
        costs = fixed + sum(scale * np.maximum(surgeon.costs(), 0.0) for surgeon, scale in parts)
        best = int(np.argmin(costs))
        for surgeon, _ in parts:
            surgeon.remove(best)
        error.append(error[-1] + float(costs[best]))
        removed.append(int(left[best]))
        left, fixed = np.delete(left, best), np.delete(fixed, best)
    return Curve(np.array(removed), np.array(error))


def _energy(end: End, statistics: Statistics) -> Array:
    """Return ``E[x^2] |w|^2`` of each unit as a share of its sum."""
    axes, tensor = end.reader.axes, end.reader.weight.const_value
    assert tensor is not None
    rows = np.moveaxis(tensor.numpy().astype(np.float64), axes.input, 0).reshape(len(end.reader.ends), -1)
    energy = statistics.squares[end.reader] * np.einsum("ij,ij->i", rows, rows)
    return np.asarray(energy[end.rows].sum(axis=1) / max(energy.sum(), 1e-30))


def first_to_go(surgeon: Surgeon, units: int, count: int) -> Array:
    """Return the ``count`` of a surgeon's ``units`` that go first when its contraction alone decides."""
    left, removed = np.arange(units), []
    for _ in range(count):
        best = int(np.argmin(surgeon.costs()))
        surgeon.remove(best)
        removed.append(int(left[best]))
        left = np.delete(left, best)
    return np.array(removed)
