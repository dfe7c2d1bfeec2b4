"""One run of int8: place, calibrate, try, compare, put back what costs too much accuracy, write."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnxedge.api import (
    CannotRun,
    Context,
    Placement,
    Quantization,
    Unit,
    UserError,
    first_line,
    opset,
    place,
)

from .calibration import AUTO, Choice, Observed, calibrate, save
from .emission import Dialect, Emitter, emit
from .equalize import Absorber, Equalizer
from .existing import Existing, merge_pairs
from .fidelity import Fidelity, Reference
from .grids import biases_of, grids_of
from .islands import islands, tell
from .refine import Refined, Rounding
from .search import Search
from .storage import store
from .wide import Grids, can_widen

BATCH = 16
STANDARD_OPSET = 13  #: from which Q/DQ of the default domain know channels
ALREADY = "computes on integers already"
TORN = "left float: the model has different scales before and behind it, and it moves integers unchanged"
HELD_OUT = 48  #: held-out samples at most


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Hold what is to be done; the fields are the options of the pass of the same name.

    Attributes:
        methods: ways to choose ranges that are tried, with the percentile; the best is taken.
        integer: let the target compute in integers.
        stored: store as integers what stays float.
        samples: calibration samples at most.
        min_sqnr: dB on held-out samples that are to be reached.
        max_drop: how much of the metric may be lost, 0..1; None for no such bound.
        timing: time each region and put back those that are slower.
        extend: the model has quantized activations, which stay as they are.
        bias_correction: take the mean shift of rounded weights out of the bias.
        rounding: how weights are rounded.
        equalize: scale channels between linear layers where that leaves less noise.
        smooth: scale channels behind normalizations.
        absorb: move offsets of channels that never come near 0 into the next biases.
        skip: patterns of names of nodes that stay float.
        ranges: files of ranges.
        save_ranges: file to write what was observed and chosen to; empty for none.
    """

    methods: tuple[Choice, ...] = AUTO
    integer: bool = True
    stored: bool = True
    samples: int = 256
    min_sqnr: float = 0.0
    max_drop: float | None = None
    timing: bool = True
    extend: bool = False
    bias_correction: bool = True
    rounding: Rounding = "auto"
    equalize: bool = True
    smooth: bool = True
    absorb: bool = True
    skip: tuple[str, ...] = ()
    ranges: tuple[str, ...] = ()
    save_ranges: str = ""


@dataclass(frozen=True)
class Outcome:
    """Say what was written into the model: units in integers, stored weights, bytes saved by storing, fidelity.

    Further ``figures`` are what the search found, JSON-ready.
    """

    placement: Placement
    stored: int
    saved: int
    fidelity: Fidelity | None
    figures: Mapping[str, object] = field(default_factory=dict)


@dataclass
class Returned:
    """Hold what has been put back to float so far: node positions with the reason, names of constants.

    ``wide`` are positions of operators that compute on 16 bits instead.
    """

    nodes: dict[int, str] = field(default_factory=dict)
    constants: set[str] = field(default_factory=set)
    all_nodes: str = ""
    all_constants: bool = False
    wide: set[int] = field(default_factory=set)

    def become(self, other: Returned) -> None:
        """Take over what another one holds."""
        for item in fields(self):
            setattr(self, item.name, getattr(other, item.name))


class Quantizer:
    """Quantize one model. Trials run on forks of it; the model itself is edited once, at the end."""

    def __init__(self, settings: Settings, model: ir.Model, context: Context) -> None:
        rules = context.target.quantization
        assert rules is not None
        if settings.stored and rules.folded == "none":
            context.note(None, f"{context.target.name} takes no integer weights beside float data: they stay float32")
            settings = replace(settings, stored=False)
        self.settings, self.model, self.context, self.rules = settings, model, context, rules
        self.dialect = dialect_of(model, rules)
        self.existing = Existing.of(model, rules) if settings.extend else Existing({}, frozenset())
        data = context.calibration
        self.fit, self.held = data.split(0.25) if len(data) >= 8 else (data, data)
        self.returned = Returned()
        self.seen: dict[str, Observed] = {}
        self.record: dict[str, dict[str, Any]] | None = {} if settings.save_ranges else None
        self.method = settings.methods[0]
        self.equalizer, self.absorber = Equalizer(self), Absorber(self)
        self.refined = Refined()

    def run(self) -> Outcome:
        """Return what was done."""
        self.calibrated()
        feeds = list(self.held.feeds(BATCH, limit=HELD_OUT))
        reference = Reference(self.model, feeds, self.context, before_softmax=True)
        figures = self.equalizer.run(reference) if reference.usable else {}
        absorbed = self.absorber.run(reference) if reference.usable else {}
        search = Search(self, reference)
        fidelity = search.run() if reference.usable else None
        self.absorber.undo()
        restored = self.equalizer.finish()
        if self.absorber.redo() or restored:
            fidelity = reference.compare(search.trial())
        found = islands(self.model, self.place(self.model), self.context)
        tell(found, self.context)
        search.figures["float_islands"] = [island.figures() for island in found]
        placement, stored, saved = self.emit(self.model)
        if self.record is not None:
            save(Path(self.settings.save_ranges), self.record, self.seen, self.method)
        return Outcome(placement, stored, saved, fidelity, figures | absorbed | search.figures)

    def calibrated(self) -> Placement:
        """Observe the ranges of all that may become integer, and return what that is."""
        self.returned.nodes.update(dict.fromkeys(self.existing.nodes, ALREADY))
        for position, node in enumerate(self.model.graph):
            if any(fnmatch(node.name or "", pattern) for pattern in self.settings.skip):
                self.returned.nodes[position] = "left float as asked by skip"
        while torn := self.existing.torn((placement := self.place(self.model)).integer):
            positions = {node: i for i, node in enumerate(self.model.graph)}
            self.returned.nodes.update((positions[unit.node], TORN) for unit in torn)
        if placement.integer:
            self._calibrate(placement)
        return self.place(self.model)

    def write(self, model: ir.Model, keep_float: Iterable[int]) -> None:
        """Write integers into a fork of the model, but for the nodes at some positions."""
        before = copy.deepcopy(self.returned)
        self.returned.nodes.update((position, "left float on trial") for position in keep_float)
        try:
            self.emit(model)
        finally:
            self.returned.become(before)

    def place(self, model: ir.Model) -> Placement:
        """Return what runs in integers; the same for the model and all its forks."""
        nodes = list(model.graph)
        if self.dialect is None or not self.settings.integer:
            return Placement((), {})
        keep = {nodes[i]: reason for i, reason in self.returned.nodes.items()}
        if self.returned.all_nodes:
            keep = dict.fromkeys(nodes, self.returned.all_nodes)
        found = place(model, self.context.target, keep_float=keep)
        done = {nodes[i] for i in self.existing.nodes}
        return replace(found, reasons={node: r for node, r in found.reasons.items() if node not in done})

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
                channels=self.equalizer.channel_axes(placement.integer),
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

    def emitter(self, model: ir.Model) -> Emitter:
        """Return what writes into a model."""
        return Emitter(model, self.rules, self.dialect or "standard", self.refined.weights)

    def emit(self, model: ir.Model) -> tuple[Placement, int, int]:
        """Write integers into a model: the units placed, and the weights that stay float but are stored small."""
        placement = self.place(model)
        emitter = self.emit_units(model, placement.integer)
        count = saved = 0
        if self.settings.stored and not self.returned.all_constants:
            kept = self.returned.constants
            count, saved = store(model, self.context, emitter, lambda v: (v.name or "") not in kept)
        if self.settings.extend:
            merge_pairs(model)
        return placement, count, saved

    def grids(self, model: ir.Model, units: Sequence[Unit]) -> Grids:
        """Return the grids of the values of some units of the model or a fork of it."""
        nodes = list(model.graph) if self.returned.wide else []
        wide = {nodes[position] for position in self.returned.wide}
        return grids_of(units, self.seen, self.method, self.rules, self.existing.grids, wide)

    def widen(self, units: Iterable[Unit]) -> bool:
        """Let units of the model compute on 16 bits where the target can; False where none can that did not before."""
        positions = {node: i for i, node in enumerate(self.model.graph)} if can_widen(self.model, self.rules) else {}
        found = {positions[u.node] for u in units if u.node.op_type in self.rules.wide and u.node in positions}
        is_new = not found <= self.returned.wide
        self.returned.wide |= found
        return is_new

    def emit_units(self, model: ir.Model, units: Sequence[Unit]) -> Emitter:
        """Write some of the units placed into a model."""
        emitter = self.emitter(model)
        if units:
            grids = self.grids(model, units)
            correct = self.settings.bias_correction
            chosen, shifts = self.refined.weights, self.refined.shifts
            rules, dialect = self.rules, emitter.dialect
            biases = biases_of(units, grids, self.seen, rules, dialect, correct=correct, chosen=chosen, shifts=shifts)
            emit(emitter, units, grids, biases)
        return emitter


def dialect_of(model: ir.Model, rules: Quantization) -> Dialect | None:
    """Return which Q/DQ operators a model of this opset can hold for a target, None for none."""
    version = opset(model)
    if version >= STANDARD_OPSET:
        return "standard"
    if version < 10:
        return None
    return "contrib" if rules.contrib_opset and version >= rules.contrib_opset else "per-tensor"
