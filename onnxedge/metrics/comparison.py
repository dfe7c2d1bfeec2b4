"""Streaming comparison of a model with a reference."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from onnxedge.errors import UserError, did_you_mean
from onnxedge.metrics.distance import Array, Sums
from onnxedge.metrics.scores import Outputs, agrees, classification_output, hits


@dataclass
class Comparison:
    """Compare a model with a reference, batch by batch; memory does not grow with the samples.

    Attributes:
        count: samples seen.
        labelled: samples with labels seen.
        scores: name of the output that is taken as class scores, None where there is none.
        both, first_only, second_only: labelled samples that both, the reference only, the other only gets right.
        top5_reference, top5_other: labelled samples whose label is among the five largest scores.
        agreed: samples on whose class the two agree.
    """

    count: int = 0
    labelled: int = 0
    scores: str | None = None
    both: int = 0
    first_only: int = 0
    second_only: int = 0
    top5_hits: tuple[int, int] = (0, 0)
    agreed: int = 0
    sums: dict[str, Sums] = field(default_factory=dict)

    def add(self, reference: Outputs, other: Outputs, labels: Array | None = None, count: int | None = None) -> None:
        """Take in a batch.

        Where an output is class scores and labels are given, they must be classes: leave labels of another kind out.

        Args:
            reference: outputs of the reference by name.
            other: outputs of the other model; the same names.
            labels: of the real samples, None where there are none; left out where no output is class scores.
            count: real samples of the batch, the first ones; None for all.

        Raises:
            UserError: the outputs differ in name or shape, or labels are no classes.
        """
        missing = [name for name in reference if name not in other]
        if missing:
            name = missing[0]
            raise UserError(f"metric: the other model has no output {name!r}{did_you_mean(name, other)}")
        if not self.count:
            self.scores = classification_output(reference)
        lengths = [len(array) for array in reference.values() if array.ndim]
        batch = len(reference[self.scores]) if self.scores is not None else max(lengths, default=1)
        rows = batch if count is None else count
        for name, array in reference.items():
            if array.dtype.kind in "biuf":
                cut = array.ndim > 0 and len(array) == batch
                pair = (array[:rows], other[name][:rows]) if cut else (array, other[name])
                self.sums.setdefault(name, Sums()).add(*pair)
        self.count += rows
        if self.scores is not None:
            self._add_scores(reference[self.scores][:rows], other[self.scores][:rows], labels)

    def _add_scores(self, reference: Array, other: Array, labels: Array | None) -> None:
        self.agreed += int(agrees(reference, other).sum())
        if labels is None:
            return
        labels = labels[: len(reference)]
        first, second = hits(reference, labels), hits(other, labels)
        self.labelled += len(first)
        self.both += int((first & second).sum())
        self.first_only += int((first & ~second).sum())
        self.second_only += int((~first & second).sum())
        fives = (hits(reference, labels, 5), hits(other, labels, 5))
        self.top5_hits = (self.top5_hits[0] + int(fives[0].sum()), self.top5_hits[1] + int(fives[1].sum()))

    @property
    def sqnr_db(self) -> float:
        """SQNR over all elements of all outputs, decibels; NaN where nothing was compared."""
        return self._overall().sqnr_db if self.sums else math.nan

    @property
    def worst_sqnr_db(self) -> float:
        """SQNR of the worst output, decibels; NaN where nothing was compared."""
        return min((sums.sqnr_db for sums in self.sums.values()), default=math.nan)

    @property
    def sqnr_db_by_output(self) -> dict[str, float]:
        """SQNR of each output, decibels."""
        return {name: sums.sqnr_db for name, sums in self.sums.items()}

    @property
    def cosine(self) -> float:
        """Cosine over all elements of all outputs; NaN where nothing was compared."""
        return self._overall().cosine if self.sums else math.nan

    @property
    def max_abs_diff(self) -> float:
        """Largest difference of an element of any output; infinite where one is not finite on one side only."""
        return math.inf if self._overall().mismatched else max((s.worst for s in self.sums.values()), default=0.0)

    @property
    def agreement(self) -> float:
        """Share of samples on whose class the two agree, 0..1; NaN where no output is class scores."""
        return self.agreed / self.count if self.scores is not None and self.count else math.nan

    @property
    def top1(self) -> tuple[float, float]:
        """Top-1 accuracy of the reference and of the other, 0..1; NaN without labels."""
        return self._shares(self.both + self.first_only, self.both + self.second_only)

    @property
    def top5(self) -> tuple[float, float]:
        """Top-5 accuracy of the reference and of the other, 0..1; NaN without labels."""
        return self._shares(*self.top5_hits)

    @property
    def top1_change(self) -> float:
        """Top-1 of the other minus that of the reference, -1..1; NaN without labels."""
        return (self.second_only - self.first_only) / self.labelled if self.labelled else math.nan

    @property
    def top1_change_error(self) -> float:
        """Standard error of :attr:`top1_change` of paired samples, sqrt(b + c - (b - c)^2 / n) / n; NaN without labels.

        b and c count the samples that only one of the two gets right. Source: Agresti 2002, Categorical Data
        Analysis, section 10.1.
        """
        if not self.labelled:
            return math.nan
        spread = self.first_only + self.second_only - (self.first_only - self.second_only) ** 2 / self.labelled
        return math.sqrt(max(0.0, spread)) / self.labelled

    @property
    def nonfinite(self) -> tuple[int, int]:
        """Elements that are not finite, of the reference and of the other."""
        return (
            sum(sums.nonfinite_reference for sums in self.sums.values()),
            sum(sums.nonfinite_other for sums in self.sums.values()),
        )

    def figures(self) -> dict[str, Any]:
        """Return what was measured, JSON-ready: NaN is left out, infinities are the strings "inf" and "-inf"."""
        figures: dict[str, Any] = {
            "samples": self.count,
            "sqnr_db": self.sqnr_db,
            "sqnr_db_by_output": {name: _json(value) for name, value in self.sqnr_db_by_output.items()},
            "cosine": self.cosine,
            "max_abs_diff": self.max_abs_diff,
            "agreement": self.agreement,
            "nonfinite": self.nonfinite[1],
            "nonfinite_reference": self.nonfinite[0],
        }
        if self.labelled:
            figures |= {
                "labelled": self.labelled,
                "top1_reference": self.top1[0],
                "top1": self.top1[1],
                "top5_reference": self.top5[0],
                "top5": self.top5[1],
                "top1_change": self.top1_change,
                "top1_change_error": self.top1_change_error,
            }
        return {key: _json(value) for key, value in figures.items() if value == value}

    def _shares(self, first: int, second: int) -> tuple[float, float]:
        return (first / self.labelled, second / self.labelled) if self.labelled else (math.nan, math.nan)

    def _overall(self) -> Sums:
        total = Sums()
        for sums in self.sums.values():
            total.reference += sums.reference
            total.other += sums.other
            total.product += sums.product
            total.noise += sums.noise
            total.mismatched += sums.mismatched
        return total


def compare(batches: Iterable[tuple[Outputs, Outputs, Array | None, int | None]]) -> Comparison:
    """Return the comparison of a stream of (reference outputs, other outputs, labels, count)."""
    comparison = Comparison()
    for reference, other, labels, count in batches:
        comparison.add(reference, other, labels, count)
    return comparison


def _json(value: Any) -> Any:
    return ("inf" if value > 0 else "-inf") if isinstance(value, float) and math.isinf(value) else value
