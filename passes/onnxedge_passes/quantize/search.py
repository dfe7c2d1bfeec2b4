"""What goes back to float so that the answers stay good enough: by the noise of outputs, by a metric, by the clock."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from onnxedge.api import forked

from .calibration import Choice
from .coverage import differences
from .drop import keep_metric
from .fidelity import Fidelity, Reference
from .refine import refine
from .score import Score
from .sensitivity import noisiest, regions
from .storage import storable, store
from .timing import timed_regions

if TYPE_CHECKING:
    from .quantizer import Quantizer

SENSITIVITY_BATCHES = 8  #: samples (batches of a model with a fixed one) to measure a part's noise
ROUNDS = 4  #: times that parts are put back before everything is
RESERVE_DB = 0.5
TOLERANCE_DB = 2.0  #: what the held-out samples may fall short of ``min_sqnr`` where reaching it costs much speed
WORTH_KEEPING = 0.8  #: share of the predicted time saved that must be left for parts to be put back then
LEAST_WORTH_NS = 2000.0  #: a crossing or two: what returning any part to float costs at least
MANY_REGIONS = 16  #: above this many regions the noise of each alone is not measured
FEW_REGIONS = 6  #: below this many regions their units are measured one by one


class Search:
    """Decide what a quantizer puts back, on trials; nothing is written into its model.

    Args:
        quantizer: calibrated.
        reference: the float model's answers on samples held out from calibration.

    Attributes:
        figures: what was found, JSON-ready.
    """

    def __init__(self, quantizer: Quantizer, reference: Reference) -> None:
        self.quantizer, self.reference = quantizer, reference
        self.settings, self.context, self.model = quantizer.settings, quantizer.context, quantizer.model
        self.returned = quantizer.returned
        self.figures: dict[str, object] = {}

    def run(self) -> Fidelity:
        """Choose the method, then put parts back to float until the held-out samples are answered well enough."""
        least = self.settings.min_sqnr
        fidelity = self._reach_sqnr(self._choose_method(), least - TOLERANCE_DB)  # what is broken misleads the refining
        fidelity = self._reach_sqnr(refine(self, fidelity), least)
        if self.settings.max_drop is not None:
            score = Score(self.model, self.context, self.quantizer.held)
            keep_metric(self, score, self.settings.max_drop)
            fidelity = self._try()
        changed = self._time()
        return self._try() if self._read_back() or changed else fidelity

    def _read_back(self) -> bool:
        """Put back what ONNX Runtime would run in float all the same, and tell whether there is some."""
        found = False
        for _ in range(ROUNDS):
            trial, _ = forked(self.model)
            positions = {node: i for i, node in enumerate(trial.graph)}
            placement = self.quantizer.emit(trial)[0]
            missed = [d for d in differences(trial, placement, self.context) if d.predicted == "integer"]
            if not missed:
                break
            found = True
            reasons = {d.node: f"left float: ONNX Runtime would run it in float, as {d.found}" for d in missed}
            for unit in placement.integer:
                reason = next((reasons[node] for node in unit.nodes if node in reasons), None)
                if reason is not None:
                    self.returned.nodes[positions[unit.node]] = reason
        return found

    def _time(self) -> bool:
        """Measure each region, put those back that are slower in integers, and tell whether there are some."""
        units = self.quantizer.place(self.model).integer
        wanted = self.settings.timing and self.context.target.timed_here
        feed = next(iter(self.quantizer.held.feeds(1)), None) if wanted else None
        positions = {node: i for i, node in enumerate(self.model.graph)}
        found = timed_regions(self.quantizer, units, feed)
        told = [region.figures() for region in found]
        if 1 < len(found) <= MANY_REGIONS and wanted:
            for region, figures in zip(found, told, strict=True):
                alone = Fidelity(self.noise_of(region.units, limit=1), None)
                figures["alone_sqnr_db"] = round(alone.sqnr_db, 1)
        for region in found:
            latency = region.latency
            if latency is None or not region.is_slower:
                continue
            times = f"{latency.second_ms * 1e3:.1f} us in integers, {latency.first_ms * 1e3:.1f} us in float"
            reason = f"put back to float by the clock: {times}, for the {region.nodes} nodes from {region.label} on"
            self.returned.nodes.update((positions[units[index].node], reason) for index in region.units)
        self.figures["regions"] = told
        return any(region.is_slower for region in found)

    def _reach_sqnr(self, fidelity: Fidelity, least: float) -> Fidelity:
        for _ in range(ROUNDS):
            if fidelity.sqnr_db >= least:
                return fidelity
            before, gain = copy.deepcopy(self.returned), self.quantizer.place(self.model).gain_ns
            keep = 10.0 ** ((fidelity.sqnr_db - least - RESERVE_DB) / 10.0)
            if not (self._put_back(keep) or self._put_back_stored(keep)):
                break
            left = self.quantizer.place(self.model).gain_ns
            if fidelity.sqnr_db >= least - TOLERANCE_DB and left < WORTH_KEEPING * gain:
                self.returned.become(before)
                text = f"{fidelity.sqnr_db:.1f} dB on held-out samples instead of min_sqnr={least:g}"
                self.context.note(None, f"{text}: more would cost over {1 - WORTH_KEEPING:.0%} of the time saved")
                return fidelity
            fidelity = self._try()
        return self._give_up() if fidelity.sqnr_db < least - TOLERANCE_DB else fidelity

    def _give_up(self) -> Fidelity:
        """Put all units back to float, and where that is not enough the stored weights too."""
        least = self.settings.min_sqnr
        self.returned.all_nodes = f"put back to float: under min_sqnr={least:g} whatever else was put back"
        fidelity = self._try()
        if fidelity.sqnr_db < least:
            self.returned.all_constants = True
            self.context.note(None, f"weights kept as float: stored as int8 they leave under min_sqnr={least:g}")
            fidelity = self._try()
        return fidelity

    def trial(self) -> ir.Model:
        """Return a copy of the model, quantized but for what was put back."""
        trial, _ = forked(self.model)
        self.quantizer.emit(trial)
        return trial

    def _try(self) -> Fidelity:
        return self.reference.compare(self.trial())

    def _choose_method(self) -> Fidelity:
        """Return the fidelity of the method that keeps the outputs best, and stay with it."""
        if not self.quantizer.seen:
            return self._try()
        tried: list[tuple[Fidelity, Choice]] = []
        for method in self.settings.methods:
            self.quantizer.method = method
            tried.append((self._try(), method))
        fidelity, self.quantizer.method = max(tried, key=lambda entry: entry[0].sqnr_db)
        return fidelity

    def _put_back(self, keep: float) -> bool:
        """Return regions or units to float that cause the most noise for what they gain; False where none is left."""
        placement = self.quantizer.place(self.model)
        units, savings = placement.integer, placement.savings_ns
        positions = {node: i for i, node in enumerate(self.model.graph)}
        parts = [tuple(part) for part in regions(units)]
        if len(parts) < FEW_REGIONS:
            parts = [(index,) for index in range(len(units))]

        def worth(part: tuple[int, ...]) -> float:
            return max(sum(savings[i] for i in part), 0.0) + LEAST_WORTH_NS

        noise = {part: self.noise_of(part) for part in self.tracked(parts)}
        chosen = noisiest(parts, noise, keep, worth)
        for part, share in chosen:
            if self.quantizer.widen(units[index] for index in part):
                continue
            left = -10.0 * np.log10(max(share, 1e-12))
            reason = f"put back to float: quantized, this part alone leaves {left:.0f} dB"
            self.returned.nodes.update((positions[units[index].node], reason) for index in part)
        return bool(chosen)

    def tracked(self, parts: Sequence[tuple[int, ...]]) -> Iterator[tuple[int, ...]]:
        """Yield parts that are measured one by one, and show how far it has come."""
        return self.context.progress.track(parts, "int8: sensitivity", len(parts))

    def noise_of(self, part: tuple[int, ...], limit: int = SENSITIVITY_BATCHES) -> float:
        """Return the noise that some of the units placed cause alone, on so many batches at most."""
        trial, _ = forked(self.model)
        placed = self.quantizer.place(trial).integer
        self.quantizer.emit_units(trial, [placed[i] for i in part])
        return self.reference.compare(trial, limit=limit).noise

    def _put_back_stored(self, keep: float) -> bool:
        """Keep the stored weights that cause the most noise as float; False where none is left."""
        if not self.settings.stored:
            return False
        noise = self.noise_of_stored()
        chosen = noisiest(list(noise), noise, keep, lambda name: 1.0)
        for name, _ in chosen:
            self.returned.constants.add(name)
            self.context.note(repr(name), "weight kept as float: stored as int8 it costs too much accuracy")
        return bool(chosen)

    def noise_of_stored(self) -> dict[str, float]:
        """Return the noise that each weight causes that may be stored as integers, by name."""

        def noise_of(name: str) -> float:
            trial, _ = forked(self.model)
            store(trial, self.context, self.quantizer.emitter(trial), lambda v: v.name == name)
            return self.reference.compare(trial, limit=SENSITIVITY_BATCHES).noise

        names = [v.name or "" for v, _ in storable(self.model) if v.name not in self.returned.constants]
        return {name: noise_of(name) for name in names}
