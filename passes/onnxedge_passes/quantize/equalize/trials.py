"""A quantizer's model with constants changed, tried: what is seen of its values then, and how much signal is left."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import onnx_ir as ir

from onnxedge.api import Unit, forked

from ..calibration import Choice, Observed, calibrate
from ..fidelity import Reference
from ..storage import store

if TYPE_CHECKING:
    from ..quantizer import Quantizer

METHODS: tuple[Choice, ...] = (("mse", 0.0), ("minmax", 0.0))  #: of choosing ranges on trial
SAMPLES = 32  #: to observe on trial
FEEDS = 16  #: to compare on
LEAST_GAIN_DB = 0.5  #: that the parts concerned must gain on held-out samples
RESCUE_DB = 3.0  #: that they must gain where they do not reach ``min_sqnr`` even so
GOOD_DB = 35.0  #: parts that leave so much signal are not what spoils a model in 8 bits
EQUAL_DB = 80.0  #: that the float model must keep; rounding to float32 alone leaves 100 and more


class Trials:
    """Try a model in which only the units that carry some values compute in integers.

    Args:
        quantizer: whose ranges and rules hold; it is not changed.
        names: of the values.
    """

    def __init__(self, quantizer: Quantizer, names: Collection[str]) -> None:
        self.quantizer, self.names = quantizer, names

    @property
    def methods(self) -> tuple[Choice, ...]:
        """Return the ways to choose ranges that are tried."""
        methods = self.quantizer.settings.methods
        return tuple(method for method in METHODS if method in methods) or methods[:1]

    def is_better(self, before: float, after: float) -> bool:
        """Tell whether a gain of SQNR in dB is worth a change."""
        return after - before >= (LEAST_GAIN_DB if after >= self.quantizer.settings.min_sqnr else RESCUE_DB)

    def concerned(self, model: ir.Model) -> list[Unit]:
        """Return the units of a model that make, move or read the values."""
        units = self.quantizer.place(model).integer
        names = self.names
        return [unit for unit in units if any((v.name or "") in names for v in (*unit.input_values(), *unit.outputs))]

    def observed(self, model: ir.Model, methods: Sequence[Choice], samples: int) -> dict[str, Observed]:
        """Return what is seen of the values in a model in which they are others."""
        quantizer, units = self.quantizer, self.concerned(model)
        data, axes = (quantizer.fit, quantizer.held), quantizer.equalizer.channel_axes(units)
        context, rules = quantizer.context, quantizer.rules
        seen = calibrate(model, units, data, context, rules, methods=methods, samples=samples, channels=axes)
        return {name: entry for name, entry in seen.items() if name in self.names}

    def sqnr(
        self, reference: Reference, model: ir.Model, seen: Mapping[str, Observed], weights: Collection[str | None] = ()
    ) -> float:
        """Return the SQNR in dB of a model in which the units concerned alone are rounded, the best way tried.

        Args:
            reference: of the float model.
            model: changed or not.
            seen: what is known of the values there; all else was seen before.
            weights: names of constants that are stored as integers, too.
        """
        quantizer = self.quantizer
        kept, method = quantizer.seen, quantizer.method
        found = []
        try:
            quantizer.seen = {**kept, **seen}
            for quantizer.method in self.methods:
                trial, _ = forked(model)
                emitter = quantizer.emit_units(trial, self.concerned(trial))
                if quantizer.settings.stored and weights:
                    store(trial, quantizer.context, emitter, lambda v: v.name in weights)
                found.append(reference.compare(trial, limit=FEEDS).sqnr_db)
        finally:
            quantizer.seen, quantizer.method = kept, method
        return max(found)
