"""Zeros chosen and the other weights mended, from the Gram matrix of a contraction's inputs."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.linalg import cho_factor, cho_solve, cholesky

from onnxedge.api import Array
from onnxedge_passes.prune.importance import inverse
from onnxedge_passes.prune.linear import Gram
from onnxedge_passes.sparsify.pattern import Pattern

_BLOCK = 16  #: rows whose zeros are chosen at once; the rows behind them are updated once a block
_CHOICES = 70  #: sets of zeros in one pattern that are compared exactly; 4:8 has that many
_ROUNDS = 60  #: of conjugate gradients


@dataclass(frozen=True, eq=False)
class Quadratic:
    """The error of a weight matrix W [R, Co], up to a constant: ``tr(W' A W) - 2 tr(W' B)``.

    Attributes:
        a: float64 [R, R], mean Gram matrix of the inputs, about their means where a bias takes those up, ridge added.
        b: float64 [R, Co], mean product with the targets, the pull to the old weights added.
        inputs: float64 [R], means of the inputs that the bias takes up, zeros where there is no place for a bias.
        outputs: float64 [Co], means of the targets, in the same way.
    """

    a: Array
    b: Array
    inputs: Array
    outputs: Array

    @classmethod
    def of(cls, gram: Gram, old: Array, ridge: float) -> Quadratic:
        """Return the error on sampled positions, with a pull to the old weights [R, Co]."""
        rows, count = len(old), max(gram.count, 1)
        a, b = gram.a[:rows, :rows] / count, gram.b[:rows] / count
        inputs, outputs = np.zeros(rows), np.zeros(old.shape[1])
        if gram.with_bias:
            inputs, outputs = gram.a[-1, :rows] / count, gram.b[-1] / count
            a, b = a - np.outer(inputs, inputs), b - np.outer(inputs, outputs)
        diagonal = gram.ridge(ridge)[:rows]
        return cls(a + np.diag(diagonal), b + diagonal[:, None] * old, inputs, outputs)

    def best(self) -> Array:
        """Return the weights [R, Co] of least error."""
        return np.asarray(cho_solve(cho_factor(self.a, lower=True), self.b))

    def bias(self, w: Array) -> Array:
        """Return the bias [Co] that goes with weights [R, Co]."""
        return np.asarray(self.outputs - self.inputs @ w)


def brain_surgeon(a: Array, w: Array, zeros: int | Pattern, kernel: int) -> tuple[Array, Array]:
    """Set weights to zero row by row, each time mending the rows behind for what their columns lost.

    A weight costs ``w^2 / (H^-1)_ii``, H without the rows that are done. Source: Frantar and Alistarh 2023,
    arXiv:2301.00774, section 3. Two things are our own: the zeros of a block are those among the cheapest of all that
    is left, so that blocks differ, and those of a pattern's set are chosen together, by ``w_S' (H^-1_SS)^-1 w_S``.

    Args:
        a: float64 [R, R], positive definite.
        w: float64 [R, Co].
        zeros: how many weights go, or the pattern that they make.
        kernel: rows of one input channel.

    Returns:
        The weights, and bool [R, Co] where they stay.
    """
    rows, outputs = w.shape
    order = zeros.order(rows, kernel) if isinstance(zeros, Pattern) else np.arange(rows)
    upper = cholesky(inverse(a[np.ix_(order, order)], np.zeros(rows)), lower=False)  # H^-1 = U' U
    w, keep = w[order], np.ones((rows, outputs), bool)
    step = zeros.of * max(_BLOCK // zeros.of, 1) if isinstance(zeros, Pattern) else _BLOCK
    gone = 0
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        if not isinstance(zeros, Pattern):
            left = np.square(w[start:]) / np.square(upper[start:, start:]).sum(axis=0)[:, None]
            keep[start:stop] = _cheapest(left, stop - start, zeros - gone)
            gone += int(np.count_nonzero(~keep[start:stop]))
        errors = np.zeros((stop - start, outputs))
        for row in range(start, stop):
            if isinstance(zeros, Pattern) and (row - start) % zeros.of == 0:
                end = row + zeros.of
                keep[row:end] = _chosen(w[row:end], upper[row:end, row:end], zeros)
            error = np.where(keep[row], 0.0, w[row]) / upper[row, row]
            w[row + 1 : stop] -= np.outer(upper[row, row + 1 : stop], error)
            errors[row - start] = error
        w[stop:] -= upper[start:stop, stop:].T @ errors
    w = np.where(keep, w, 0.0)
    back = np.argsort(order)
    return w[back], keep[back]


def _cheapest(costs: Array, rows: int, zeros: int) -> Array:
    """Return bool [rows, Co], what stays of the first rows where the ``zeros`` cheapest of all go."""
    keep = np.ones(costs.size, bool)
    if zeros:
        keep[np.argpartition(costs, zeros - 1, axis=None)[:zeros]] = False
    return keep.reshape(costs.shape)[:rows]


def _chosen(w: Array, upper: Array, pattern: Pattern) -> Array:
    """Return bool [of, Co]: what stays of one set of rows, whose own inverse Hessian is ``upper' upper``."""
    hessian = upper.T @ upper
    choices = list(combinations(range(pattern.of), pattern.of - pattern.kept))
    if len(choices) > _CHOICES:
        return pattern.largest(np.square(w) / np.diag(hessian)[:, None], 1)
    costs = np.stack([
        np.einsum("so,so->o", w[list(gone)], np.linalg.solve(hessian[np.ix_(gone, gone)], w[list(gone)]))
        for gone in choices
    ])  # fmt: skip
    keep = np.ones(w.shape, bool)
    gone = np.array(choices)[np.argmin(costs, axis=0)]
    np.put_along_axis(keep, gone.T, False, axis=0)
    return keep


def refit(problem: Quadratic, w: Array, keep: Array) -> Array:
    """Return the weights of least error that are zero where ``keep`` is False, from weights nearby.

    Conjugate gradients on all columns at once, scaled by the diagonal: each column has zeros of its own, so that there
    is no one matrix to invert.
    """
    scale = 1.0 / np.diag(problem.a)[:, None]
    w = np.where(keep, w, 0.0)
    residual = np.where(keep, problem.b - problem.a @ w, 0.0)
    direction = scale * residual
    norm = first = np.einsum("ro,ro->o", residual, direction)
    for _ in range(_ROUNDS):
        if not (norm > 1e-9 * first.max(initial=0.0)).any():
            break
        image = np.where(keep, problem.a @ direction, 0.0)
        length = norm / np.maximum(np.einsum("ro,ro->o", direction, image), 1e-300)
        w += length * direction
        residual -= length * image
        scaled = scale * residual
        previous, norm = norm, np.einsum("ro,ro->o", residual, scaled)
        direction = scaled + norm / np.maximum(previous, 1e-300) * direction
    return np.where(keep, w, 0.0)
