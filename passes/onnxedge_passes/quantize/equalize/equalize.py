"""Channels scaled so that they share one grid well: planned by prediction, kept where a trial answers better.

Cross-layer equalization (Nagel et al. 2019, arXiv:1906.04721, section 4.1) between linear layers, SmoothQuant (Xiao et
al. 2022, arXiv:2211.10438) where a normalization or a product by a constant per channel comes before; both are one
rewrite here: a factor per channel that is multiplied in where the channel begins and divided out where it is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from onnxedge.api import Array, CannotRun, Unit, forked

from ..fidelity import Reference
from ..grids import channel_axes as weighted_axes
from .plan import Plan, channel_axes, make_plan
from .rescale import Place, on_fork, scaled_constants, write_constants
from .slots import Slots
from .trials import EQUAL_DB, GOOD_DB, SAMPLES, Trials
from .walk import find_slots

if TYPE_CHECKING:
    from ..quantizer import Quantizer


class Equalizer:
    """Scale channels of a quantizer's model where that makes its answers better.

    Args:
        quantizer: whose model is edited; nothing is observed yet.
    """

    def __init__(self, quantizer: Quantizer) -> None:
        settings = quantizer.settings
        wanted = {"equalize": settings.equalize, "smooth": settings.smooth}
        self.quantizer, self.kinds = quantizer, [kind for kind, on in wanted.items() if on and settings.integer]
        if self.kinds and (settings.ranges or settings.save_ranges):
            self.kinds = []
            quantizer.context.note(None, "channels not scaled: ranges in files are those of the model as it came")
        self.slots = find_slots(quantizer.model) if self.kinds else Slots()
        self._figures: dict[str, object] = {}
        self._done: Plan | None = None
        self._before: list[tuple[Place, Array]] = []

    def channel_axes(self, units: Sequence[Unit]) -> dict[str, int]:
        """Return the values of whose channels something must be observed, with the axis."""
        return channel_axes(self.slots, units, self.quantizer.rules) | weighted_axes(units)

    def run(self, reference: Reference) -> dict[str, object]:
        """Scale what pays, in the quantizer's model and in what it has seen.

        Args:
            reference: of the model as it is.

        Returns:
            Figures for the report, which :meth:`finish` brings up to date.
        """
        quantizer = self.quantizer
        plan = self._plan() if self.kinds and quantizer.seen else None
        if plan is None or not plan.gains:
            return {}
        try:
            return self._try(plan, reference)
        except CannotRun:
            return {}

    def _try(self, plan: Plan, reference: Reference) -> dict[str, object]:
        quantizer = self.quantizer
        trials = Trials(quantizer, plan.scaled())
        weights = {v.name for c, _ in plan.changed() if (v := c.node.inputs[c.index]) is not None}
        before = trials.sqnr(reference, quantizer.model, quantizer.seen, weights)
        if before >= GOOD_DB:
            return {}
        for chosen in _variants(plan):
            constants = scaled_constants(chosen)
            if constants is None:
                quantizer.context.note(None, "channels not scaled: a weight would overflow")
                continue
            other, _ = forked(quantizer.model)
            write_constants(on_fork(constants, quantizer.model, other))
            if reference.compare(other).sqnr_db < EQUAL_DB:
                quantizer.context.note(None, "channels not scaled: the float model would answer differently")
                continue
            part = Trials(quantizer, chosen.scaled())
            seen = part.observed(other, trials.methods, SAMPLES)
            after = trials.sqnr(reference, other, seen, weights)
            if trials.is_better(before, after):
                self._done, self._before = chosen, write_constants(constants)
                settings = quantizer.settings
                quantizer.seen |= part.observed(quantizer.model, settings.methods, settings.samples)
                self._figures |= {"scaled_parts": len(chosen.parts), "scaled_parts_gain_db": round(after - before, 2)}
                return self._figures
        text = "by prediction they would leave less noise, but do not on held-out samples"
        quantizer.context.note(None, f"channels of {len(plan.gains)} parts not scaled: {text}")
        return {}

    def finish(self) -> bool:
        """Put back the constants of parts that went back to float, which round worse when stored; tell if there are."""
        quantizer, plan = self.quantizer, self._done
        if plan is None:
            return False
        units = quantizer.place(quantizer.model).integer
        inside = {v.name or "" for unit in units for v in (*unit.input_values(), *unit.outputs)}
        kept = [key for key in plan.parts if plan.only([key]).scaled() & inside]
        if len(kept) == len(plan.parts):
            return False
        self._figures["scaled_parts"] = len(kept)
        constants = {place for place, _ in self._before}
        write_constants(self._before)
        new = scaled_constants(plan.only(kept))
        assert new is not None
        write_constants(new)
        back = constants - {place for place, _ in new}
        names = {value.name for node, index in back if (value := node.inputs[index]) is not None}
        weights = {name: weight for name, weight in quantizer.refined.weights.items() if name not in names}
        quantizer.refined.weights = weights
        return True

    def _plan(self) -> Plan:
        quantizer = self.quantizer
        units = quantizer.place(quantizer.model).integer
        dialect = quantizer.dialect or "standard"
        return make_plan(self.slots, units, quantizer.seen, quantizer.rules, dialect, self.kinds)


def _variants(plan: Plan) -> Iterator[Plan]:
    """Yield the plan, then what it has of either kind alone."""
    yield plan
    smooth = plan.only(plan.smooth)
    others = plan.only(plan.parts.keys() - plan.smooth)
    if smooth.parts and others.parts:
        yield from (smooth, others)
