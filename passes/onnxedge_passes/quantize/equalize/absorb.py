"""High biases absorbed: channels that never come near 0 are moved there, where a trial answers better.

A grid for 8 bits has to hold 0, so that a value whose channels are large and vary little spends its steps on what does
not occur. What such a channel never falls under is taken off the bias of the layer that makes it, and what the layers
that read it would have made of it is added to theirs (Nagel et al. 2019, arXiv:1906.04721, section 4.1.3).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxedge.api import Array, CannotRun, forked

from ..fidelity import Reference
from ..grids import quantized_values
from ..storage import storable
from .offsets import Offset, find_offsets, move, put_back
from .rescale import Place
from .trials import EQUAL_DB, GOOD_DB, SAMPLES, Trials

if TYPE_CHECKING:
    from ..quantizer import Quantizer


class Absorber:
    """Move offsets of channels in a quantizer's model where that makes its answers better.

    Args:
        quantizer: whose model is edited; channels need not be scaled any more.
    """

    def __init__(self, quantizer: Quantizer) -> None:
        self.quantizer = quantizer
        self._figures: dict[str, object] = {}
        self._done: list[Offset] = []
        self._before: list[tuple[Place, Array | None]] = []

    def run(self, reference: Reference) -> dict[str, object]:
        """Move what pays, in the quantizer's model and in what it has seen.

        Args:
            reference: of the model as it is.

        Returns:
            Figures for the report, which :meth:`redo` brings up to date.
        """
        quantizer, settings = self.quantizer, self.quantizer.settings
        if not settings.absorb or not settings.integer or settings.ranges or settings.save_ranges:
            return {}
        offsets: list[Offset] = []
        for found in find_offsets(quantizer.place(quantizer.model).integer, quantizer.seen):
            if isinstance(found, Offset):
                offsets.append(found)
            else:
                quantizer.context.note(*found)
        if not offsets:
            return {}
        try:
            return self._try(offsets, reference)
        except CannotRun:
            return {}

    def _try(self, offsets: list[Offset], reference: Reference) -> dict[str, object]:
        quantizer = self.quantizer
        trials = Trials(quantizer, frozenset().union(*(offset.values for offset in offsets)))
        before = trials.sqnr(reference, quantizer.model, quantizer.seen)
        if before >= GOOD_DB:
            return {}
        other, _ = forked(quantizer.model)
        twins = dict(zip(quantizer.model.graph, other.graph, strict=True))
        move([offset.on_fork(twins) for offset in offsets])
        what = f"offsets of the channels of {len(offsets)} values not absorbed"
        if reference.compare(other).sqnr_db < EQUAL_DB:
            quantizer.context.note(None, f"{what}: held-out samples fall under them")
            return {}
        after = trials.sqnr(reference, other, trials.observed(other, trials.methods, SAMPLES))
        if not trials.is_better(before, after):
            quantizer.context.note(None, f"{what}: held-out samples are answered no better")
            return {}
        settings = quantizer.settings
        quantizer.seen |= trials.observed(other, settings.methods, settings.samples)
        self._done, self._before = offsets, move(offsets)
        self._figures |= {"absorbed_offsets": len(offsets), "absorbed_offsets_gain_db": round(after - before, 2)}
        return self._figures

    def undo(self) -> None:
        """Put the biases back, so that constants can be changed under them."""
        put_back(self._before)
        self._before = []

    def redo(self) -> bool:
        """Move offsets again but for those that are float with the weights behind them; tell if there are some.

        A rounded weight makes an error of an offset even where the sum is one of floats.
        """
        quantizer = self.quantizer
        if not self._done:
            return False
        rounded = {*quantized_values(quantizer.place(quantizer.model).integer, quantizer.rules), *self._stored()}
        kept = [offset for offset in self._done if rounded & {*offset.values, *offset.weights()}]
        self._before = move(kept)
        self._figures["absorbed_offsets"] = len(kept)
        return len(kept) < len(self._done)

    def _stored(self) -> set[str]:
        """Return the names of weights that are stored as integers if they are not computed with so."""
        quantizer = self.quantizer
        if not quantizer.settings.stored or quantizer.returned.all_constants:
            return set()
        return {value.name or "" for value, _ in storable(quantizer.model)} - quantizer.returned.constants
