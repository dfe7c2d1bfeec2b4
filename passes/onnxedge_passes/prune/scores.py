"""Importances that score each unit by itself; registered as vendors register theirs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxedge.api import Array, Units, UserError


def l1(units: Units) -> Array:
    """Square of the summed absolute weights that make a unit (Li et al. 2017, arXiv:1608.08710, section 3.1)."""
    return _summed([np.abs(weights).sum(axis=1) ** 2 for weights in units.makes])


def l2(units: Units) -> Array:
    """Squared norm of the weights that make a unit."""
    return _summed([_squares(weights) for weights in units.makes])


def bn_gamma(units: Units) -> Array:
    """Squared BatchNormalization scales (Liu et al. 2017, arXiv:1708.06519); ``l2`` where there is none."""
    return _summed([_squares(gammas) for gammas in units.gammas]) if units.gammas else l2(units)


def activation(units: Units) -> Array:
    """Mean square of what a unit carries."""
    return _summed([squares.sum(axis=1) for squares in units.squares])


def wanda(units: Units) -> Array:
    """Squared weights that read a unit times mean square of what it carries (Sun et al. 2023, arXiv:2306.11695)."""
    pairs = zip(units.reads, units.squares, strict=True)
    return _summed([(np.square(weights).sum(axis=2) * squares).sum(axis=1) for weights, squares in pairs])


def taylor(units: Units) -> Array:
    """Mean over samples of the squared change of the loss, to first order, when a unit goes.

    Source: Molchanov et al. 2019, arXiv:1906.10771, section 3.1, with a gate behind each unit.
    """
    if units.slopes is None:
        raise UserError("importance=taylor needs gradients, which are taken for `prune` alone")
    return np.asarray(np.square(units.slopes).mean(axis=1))


def random(units: Units) -> Array:
    """Chance, to compare with."""
    return np.asarray(units.rng.random(len(units.reads[0])))


def _squares(weights: Array) -> Array:
    return np.asarray(np.square(weights).sum(axis=1))


def _summed(parts: Sequence[Array]) -> Array:
    """Add up the scores that several contractions give, each as shares of its sum."""
    return np.asarray(sum(part / max(float(part.sum()), 1e-30) for part in parts))
