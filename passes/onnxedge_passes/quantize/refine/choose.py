"""Rounding and biases chosen with data, and kept where held-out samples are answered better."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import onnx_ir as ir

from onnxedge.api import Array, constant, forked, macs

from ..emission import rounded
from ..fidelity import Fidelity
from ..rounding import Weight, round_weight
from ..storage import storable
from .bias import correct_biases
from .covariance import by_covariance
from .layers import Layer, find_layers
from .learned import learn

if TYPE_CHECKING:
    from ..quantizer import Quantizer
    from ..search import Search

Rounding = Literal["auto", "nearest", "covariance", "learned"]
_LEAST_WORK = 2e10  #: multiply-accumulates, about a second, that rounding may always take
_LEAST_GAIN_DB = 0.3  #: that corrected biases must bring on a typical sample: held-out samples show less by chance
_LEAST_SHIFT = 0.06  #: share of the noise that must be the same for all samples for them to bring that
_CHANCE_DB = 1.0  #: loss on a typical sample that says nothing against errors that are less by construction
_LARGEST_LOSS_DB = 1.0  #: of all samples together, where a few of them lose what the others gain
_SHARE_OF_WORK = 0.25  #: of what one run over the calibration samples takes, that it may take besides


@dataclass
class Refined:
    """Hold what was chosen.

    Attributes:
        weights: roundings that are better than to nearest, by name of the weight.
        shifts: float32 [Co], what is taken off a bias, by name of what the unit's operator computes.
    """

    weights: Mapping[str, Weight] = field(default_factory=dict)
    shifts: Mapping[str, Array] = field(default_factory=dict)


def refine(search: Search, fidelity: Fidelity) -> Fidelity:
    """Choose rounding and biases on calibration samples; return how well the model answers with them.

    Where ranges come from files and rounding is to nearest, samples change nothing.

    Args:
        search: its quantizer has ranges and a method.
        fidelity: how well the model answers with weights rounded to nearest.
    """
    quantizer, settings = search.quantizer, search.settings
    is_given = bool(settings.ranges) and settings.rounding == "nearest"  # the same files, the same model
    if quantizer.context.calibration.synthetic or is_given:
        return fidelity
    if settings.rounding != "nearest":
        fidelity = _choose_rounding(search, fidelity)
    if settings.bias_correction and fidelity.shift > _LEAST_SHIFT:
        fidelity = _choose_shifts(search, fidelity)
    return fidelity


def _choose_rounding(search: Search, fidelity: Fidelity) -> Fidelity:
    quantizer, settings = search.quantizer, search.settings
    layers = layers_of(quantizer)
    count = min(settings.samples, len(quantizer.fit))
    work = _LEAST_WORK + _SHARE_OF_WORK * count * sum(macs(node) or 0 for node in quantizer.model.graph)
    if settings.rounding != "auto":
        work = float("inf")
    data, context = quantizer.fit, quantizer.context
    weights = by_covariance(quantizer.model, layers, data, context, limit=settings.samples, work=work)
    if weights:
        fidelity = _keep_better(search, fidelity, weights, "covariance", always=settings.rounding == "covariance")
    if settings.rounding == "learned":
        start, units = quantizer.refined.weights, quantizer.place(quantizer.model).integer
        grids = quantizer.grids(quantizer.model, units).main if units else {}
        learned = learn(quantizer.model, layers, start, grids, (quantizer.fit, quantizer.held), context)
        if learned:
            fidelity = _keep_better(search, fidelity, {**start, **learned}, "learned", always=False)
    return fidelity


def _keep_better(
    search: Search, fidelity: Fidelity, weights: Mapping[str, Weight], how: str, *, always: bool
) -> Fidelity:
    """Take roundings that held-out samples are answered better with, and return how well."""
    refined = search.quantizer.refined
    before, refined.weights = refined.weights, weights
    after = search.reference.compare(search.trial())
    if not (always or _is_better(after, fidelity, -_CHANCE_DB if how == "covariance" else 0.0)):
        refined.weights = before
        return fidelity
    search.figures["rounding"] = how
    search.figures[f"{how}_gain_db"] = round(after.typical_gain_db(fidelity), 2)
    return after


def _is_better(after: Fidelity, before: Fidelity, least_db: float) -> bool:
    """Tell whether a typical sample is answered better, and all together not much worse."""
    return after.typical_gain_db(before) > least_db and after.sqnr_db > before.sqnr_db - _LARGEST_LOSS_DB


def _choose_shifts(search: Search, fidelity: Fidelity) -> Fidelity:
    quantizer = search.quantizer
    trial, _ = forked(quantizer.model)
    placement, *_ = quantizer.emit(trial)
    units = quantizer.place(quantizer.model).integer
    both = zip(units, placement.integer, strict=True)
    pairs = [(a, b) for a, b in both if a.weight is not None and a.bias is not None]
    shifts = correct_biases(quantizer.model, trial, pairs, quantizer.fit, quantizer.context)
    if not shifts:
        return fidelity
    quantizer.refined.shifts = shifts
    after = search.reference.compare(search.trial())
    if not _is_better(after, fidelity, _LEAST_GAIN_DB):
        quantizer.refined.shifts = {}
        return fidelity
    search.figures["biases_corrected"] = len(shifts)
    search.figures["bias_gain_db"] = round(after.typical_gain_db(fidelity), 2)
    return after


def layers_of(quantizer: Quantizer) -> list[Layer]:
    """Return the layers whose weight becomes int8: those of integer units, and those that are stored."""
    placed = quantizer.place(quantizer.model).integer
    units = {unit.node: unit for unit in placed if unit.weight is not None}
    rules, dialect = quantizer.rules, quantizer.dialect or "standard"
    grids = quantizer.grids(quantizer.model, placed)
    stored = dict(storable(quantizer.model)) if quantizer.settings.stored else {}
    kept = quantizer.returned.constants

    def nearest(node: ir.Node, array: Array) -> tuple[Weight, bool] | None:
        unit = units.get(node)
        if unit is not None:
            bias = constant(unit.bias)
            data = unit.input_values()[0].name or ""
            flat = None if bias is None else bias.reshape(-1)
            weight = rounded(unit, array, grids.read(unit, data), flat, rules, dialect)
            entry = quantizer.seen.get(data)
            is_free = (
                bias is not None and quantizer.settings.bias_correction and entry is not None and entry.mean is not None
            )
            return weight, is_free
        value = node.inputs[1]
        if value is None or value not in stored or (value.name or "") in kept:
            return None
        return round_weight(array, stored[value]), False

    return find_layers(quantizer.model, nearest)
