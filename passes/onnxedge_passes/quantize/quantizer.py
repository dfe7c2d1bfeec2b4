"""One run of int8: place, calibrate, try, compare, put back what costs too much accuracy, write."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxedge.api import (
    CannotRun,
    Context,
    Placement,
    Quantization,
    Unit,
    UserError,
    first_line,
    forked,
    opset,
    place,
)

from .calibration import AUTO, Choice, Observed, calibrate, save
from .emission import Dialect, Emitter, emit
from .fidelity import Fidelity, Reference
from .grids import biases_of, channel_axes, grids_of
from .sensitivity import noisiest, regions
from .storage import storable, store

BATCH = 16
HELD_OUT = 48  #: held-out samples at most
SENSITIVITY_BATCHES = 8  #: samples (batches of a model with a fixed one) to measure a part's noise
ROUNDS = 4  #: times that parts are put back before everything is
RESERVE_DB = 0.5
TOLERANCE_DB = 2.0  #: what the held-out samples may fall short of ``min_sqnr`` where reaching it costs much speed
WORTH_KEEPING = 0.8  #: share of the predicted time saved that must be left for parts to be put back then
LEAST_WORTH_NS = 2000.0  #: a crossing or two: what returning any part to float costs at least
FEW_REGIONS = 6  #: below this many regions their units are measured one by one


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Hold what is to be done; the fields are the options of the pass of the same name.

    Attributes:
        methods: ways to choose ranges that are tried, with the percentile; the best is taken.
        integer: let the target compute in integers.
        stored: store as integers what stays float.
        samples: calibration samples at most.
        min_sqnr: dB on held-out samples that are to be reached.
        bias_correction: take the mean shift of rounded weights out of the bias.
        skip: patterns of names of nodes that stay float.
        ranges: files of ranges.
        save_ranges: file to write what was observed and chosen to; empty for none.
    """

    methods: tuple[Choice, ...] = AUTO
    integer: bool = True
    stored: bool = True
    samples: int = 256
    min_sqnr: float = 0.0
    bias_correction: bool = True
    skip: tuple[str, ...] = ()
    ranges: tuple[str, ...] = ()
    save_ranges: str = ""


@dataclass(frozen=True)
class Outcome:
    """Say what was written into the model: units in integers, stored weights, bytes saved by storing, fidelity."""

    placement: Placement
    stored: int
    saved: int
    fidelity: Fidelity | None


@dataclass
class _Returned:
    """Hold what has been put back to float so far: node positions with the reason, names of constants."""

    nodes: dict[int, str] = field(default_factory=dict)
    constants: set[str] = field(default_factory=set)
    all_nodes: str = ""
    all_constants: bool = False


class Quantizer:
    """Quantize one model. Trials run on forks of it; the model itself is edited once, at the end."""

    def __init__(self, settings: Settings, model: ir.Model, context: Context) -> None:
        rules = context.target.quantization
        assert rules is not None
        self.settings, self.model, self.context, self.rules = settings, model, context, rules
        self.dialect = dialect_of(model, rules)
        data = context.calibration
        self.fit, self.held = data.split(0.25) if len(data) >= 8 else (data, data)
        self.returned = _Returned()
        self.seen: dict[str, Observed] = {}
        self.record: dict[str, dict[str, Any]] | None = {} if settings.save_ranges else None
        self.method = settings.methods[0]

    def run(self) -> Outcome:
        """Return what was done."""
        self.calibrated()
        reference = Reference(self.model, list(self.held.feeds(BATCH, limit=HELD_OUT)), self.context)
        fidelity = self._improve(reference) if reference.usable else None
        placement, stored, saved = self._emit(self.model)
        if self.record is not None:
            save(Path(self.settings.save_ranges), self.record, self.seen, self.method)
        return Outcome(placement, stored, saved, fidelity)

    def calibrated(self) -> Placement:
        """Observe the ranges of all that may become integer, and return what that is."""
        for position, node in enumerate(self.model.graph):
            if any(fnmatch(node.name or "", pattern) for pattern in self.settings.skip):
                self.returned.nodes[position] = "left float as asked by skip"
        placement = self.place(self.model)
        if placement.integer:
            self._calibrate(placement)
        return self.place(self.model)

    def write(self, model: ir.Model, keep_float: Iterable[int]) -> None:
        """Write integers into a fork of the model, but for the nodes at some positions."""
        before = copy.deepcopy(self.returned)
        self.returned.nodes.update((position, "left float on trial") for position in keep_float)
        try:
            self._emit(model)
        finally:
            self.returned = before

    def place(self, model: ir.Model) -> Placement:
        """Return what runs in integers; the same for the model and all its forks."""
        nodes = list(model.graph)
        if self.dialect is None or not self.settings.integer:
            return Placement((), {})
        keep = {nodes[i]: reason for i, reason in self.returned.nodes.items()}
        if self.returned.all_nodes:
            keep = dict.fromkeys(nodes, self.returned.all_nodes)
        return place(model, self.context.target, keep_float=keep)

    def _calibrate(self, placement: Placement) -> None:
        """Observe the activations of all units; what is not finite stays float."""
        try:
            self.seen = calibrate(
                self.model,
                placement.integer,
                (self.fit, self.held),
                self.context,
                self.rules,
                methods=self.settings.methods,
                samples=self.settings.samples,
                files=self.settings.ranges,
                channels=channel_axes(placement.integer),
                record=self.record,
            )
        except CannotRun as err:
            self.returned.all_nodes = "not calibrated: ONNX Runtime does not run the model here"
            self.context.note(None, f"no integer kernels: no ranges without running the model: {first_line(err)}")
            return
        for value in self.model.graph.inputs:
            entry = self.seen.get(value.name or "")
            if entry is not None and not entry.finite:
                raise UserError(f"int8: input {value.name!r} holds NaN or infinity; clean the calibration data")
        positions = {node: i for i, node in enumerate(self.model.graph)}
        for unit in placement.integer:
            if not all(self.seen[v.name or ""].finite for v in (*unit.input_values(), *unit.outputs)):
                reason = f"{unit.node.op_type}: its activations are not finite on the calibration samples"
                self.returned.nodes[positions[unit.node]] = reason

    def _improve(self, reference: Reference) -> Fidelity:
        """Choose the method, then put parts back to float until the held-out samples are answered well enough."""
        fidelity = self._choose_method(reference)
        least = self.settings.min_sqnr
        for _ in range(ROUNDS):
            if fidelity.sqnr_db >= least:
                return fidelity
            before, gain = copy.deepcopy(self.returned), self.place(self.model).gain_ns
            keep = 10.0 ** ((fidelity.sqnr_db - least - RESERVE_DB) / 10.0)
            if not (self._put_back(reference, keep) or self._put_back_stored(reference, keep)):
                break
            if fidelity.sqnr_db >= least - TOLERANCE_DB and self.place(self.model).gain_ns < WORTH_KEEPING * gain:
                self.returned = before
                text = f"{fidelity.sqnr_db:.1f} dB on held-out samples instead of min_sqnr={least:g}"
                self.context.note(None, f"{text}: more would cost over {1 - WORTH_KEEPING:.0%} of the time saved")
                return fidelity
            fidelity = self._try(reference)
        return self._give_up(reference) if fidelity.sqnr_db < least - TOLERANCE_DB else fidelity

    def _give_up(self, reference: Reference) -> Fidelity:
        """Put all units back to float, and where that is not enough the stored weights too."""
        least = self.settings.min_sqnr
        self.returned.all_nodes = f"put back to float: under min_sqnr={least:g} whatever else was put back"
        fidelity = self._try(reference)
        if fidelity.sqnr_db < least:
            self.returned.all_constants = True
            self.context.note(None, f"weights kept as float: stored as int8 they leave under min_sqnr={least:g}")
            fidelity = self._try(reference)
        return fidelity

    def _try(self, reference: Reference) -> Fidelity:
        trial, _ = forked(self.model)
        self._emit(trial)
        return reference.compare(trial)

    def _choose_method(self, reference: Reference) -> Fidelity:
        """Return the fidelity of the method that keeps the outputs best, and stay with it."""
        if not self.seen:
            return self._try(reference)
        tried: list[tuple[Fidelity, Choice]] = []
        for method in self.settings.methods:
            self.method = method
            tried.append((self._try(reference), method))
        fidelity, self.method = max(tried, key=lambda entry: entry[0].sqnr_db)
        return fidelity

    def _put_back(self, reference: Reference, keep: float) -> bool:
        """Return regions or units to float that cause the most noise for what they gain; False where none is left."""
        placement = self.place(self.model)
        units, savings = placement.integer, placement.savings_ns
        positions = {node: i for i, node in enumerate(self.model.graph)}
        parts = [tuple(part) for part in regions(units)]
        if len(parts) < FEW_REGIONS:
            parts = [(index,) for index in range(len(units))]

        def noise_of(part: tuple[int, ...]) -> float:
            trial, _ = forked(self.model)
            placed = self.place(trial).integer
            self._emit_units(trial, [placed[i] for i in part])
            return reference.compare(trial, limit=SENSITIVITY_BATCHES).noise

        def worth(part: tuple[int, ...]) -> float:
            return max(sum(savings[i] for i in part), 0.0) + LEAST_WORTH_NS

        tracked = self.context.progress.track(parts, "int8: sensitivity", len(parts))
        noise = {part: noise_of(part) for part in tracked}
        chosen = noisiest(parts, noise, keep, worth)
        for part, share in chosen:
            left = -10.0 * np.log10(max(share, 1e-12))
            reason = f"put back to float: quantized, this part alone leaves {left:.0f} dB"
            self.returned.nodes.update((positions[units[index].node], reason) for index in part)
        return bool(chosen)

    def _put_back_stored(self, reference: Reference, keep: float) -> bool:
        """Keep the stored weights that cause the most noise as float; False where none is left."""
        if not self.settings.stored:
            return False
        names = [v.name or "" for v, _ in storable(self.model) if v.name not in self.returned.constants]

        def noise_of(name: str) -> float:
            trial, _ = forked(self.model)
            store(trial, self.context, self._emitter(trial), lambda v: v.name == name)
            return reference.compare(trial, limit=SENSITIVITY_BATCHES).noise

        chosen = noisiest(names, {name: noise_of(name) for name in names}, keep, lambda name: 1.0)
        for name, _ in chosen:
            self.returned.constants.add(name)
            self.context.note(repr(name), "weight kept as float: stored as int8 it costs too much accuracy")
        return bool(chosen)

    def _emitter(self, model: ir.Model) -> Emitter:
        return Emitter(model, self.rules, self.dialect or "standard")

    def _emit(self, model: ir.Model) -> tuple[Placement, int, int]:
        """Write integers into a model: the units placed, and the weights that stay float but are stored small."""
        placement = self.place(model)
        emitter = self._emit_units(model, placement.integer)
        if not self.settings.stored or self.returned.all_constants:
            return placement, 0, 0
        kept = self.returned.constants
        return placement, *store(model, self.context, emitter, lambda v: (v.name or "") not in kept)

    def _emit_units(self, model: ir.Model, units: Sequence[Unit]) -> Emitter:
        emitter = self._emitter(model)
        if units:
            grids = grids_of(units, self.seen, self.method, self.rules)
            correct = self.settings.bias_correction
            biases = biases_of(units, grids, self.seen, self.rules, emitter.dialect, correct=correct)
            emit(emitter, units, grids, biases)
        return emitter


def dialect_of(model: ir.Model, rules: Quantization) -> Dialect | None:
    """Return which Q/DQ operators a model of this opset can hold for a target, None for none."""
    version = opset(model)
    if version >= 13:
        return "standard"
    if version < 10:
        return None
    return "contrib" if rules.contrib_opset and version >= rules.contrib_opset else "per-tensor"
