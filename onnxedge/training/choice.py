"""Which checkpoint is the best: candidates scored on samples that nothing is fitted to."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxedge.data import Data
from onnxedge.errors import UserError
from onnxedge.metrics import Comparison, classification_output, hits, load_metric
from onnxedge.model.graph import Array
from onnxedge.runtime import Feed, Session, flattened

_BATCH = 32
_HELD_BYTES = 1 << 28  #: outputs of the reference that are kept in memory; else it runs again each time
Outputs = Mapping[str, Array]
Reference = Callable[[Feed], Outputs]


@dataclass(frozen=True)
class Score:
    """Hold how good a model is.

    Attributes:
        name: what is measured: a metric, ``agreement`` with the teacher, ``SQNR`` (dB), ``-MSE``.
        value: higher is better.
        second: decides where the values are equal: nearness to the teacher's outputs, dB; 0 without a teacher.
        error: standard error of the value, where it is a share of samples.
    """

    name: str
    value: float
    second: float = 0.0
    error: float = 0.0

    def beats(self, other: Score) -> bool:
        """Tell whether this one is better."""
        return (self.value, self.second) > (other.value, other.second)

    def improves_on(self, before: Score) -> bool:
        """Tell whether this one is better than what training began with.

        A gain that may be chance, of less than a standard error, counts where the outputs come no further from the
        teacher's.
        """
        if self.value - before.value > self.error:
            return True
        return self.beats(before) and self.second >= before.second

    def text(self) -> str:
        """Return the value as people read it."""
        shares = ("top1", "top5", "agreement")
        return f"{self.name} {100 * self.value:.2f} %" if self.name in shares else f"{self.name} {self.value:.4g}"


@dataclass(frozen=True)
class Task:
    """An output, and what is right for it.

    Attributes:
        output: its name.
        labels: [S, ...] class numbers (negative ones do not count), or numbers of the output's shape.
        axis: of the classes; None for numbers.
    """

    output: str
    labels: Array
    axis: int | None


class Choice:
    """Score models on samples.

    Args:
        data: samples that nothing is fitted to.
        metric: name of what labels are scored with, as :func:`onnxedge.metrics.load_metric` takes it.
        tasks: outputs that are scored one by one in place of a built-in metric; their scores' mean counts.
        reference: gives what the teacher says, by the names of the student's outputs; compared with where there are no
            labels. None where there is no teacher.
        threads: of ONNX Runtime.
    """

    def __init__(
        self, data: Data, *, metric: str, reference: Reference | None, threads: int, tasks: Sequence[Task] = ()
    ) -> None:
        self.data, self._metric_name, self._reference, self._threads = data, metric, reference, threads
        self._metric = load_metric(metric) if data.has_labels else None
        self._tasks = tasks if metric in ("top1", "top5") else ()
        self._said: list[Outputs] | None = None

    @property
    def is_possible(self) -> bool:
        """Whether there is anything to score by."""
        return self._metric is not None or bool(self._tasks) or self._reference is not None

    def score(self, model: ir.Model) -> Score:
        """Run a model on the samples and return its score."""
        session = Session(model, threads=self._threads)
        kept: list[tuple[Outputs, Array | None]] = []
        near, right, labelled, start = Comparison(), 0, 0, 0
        tallies = [_Tally(task) for task in self._tasks]
        for number, batch in enumerate(self.data.batches(_BATCH)):
            made = flattened(session.run(batch.feed))
            name = classification_output(made)
            for tally in tallies:
                tally.add(made, start, batch.count)
            start += batch.count
            if not tallies and self._metric_name in ("top1", "top5") and self._metric is not None and name is not None:
                count = hits(made[name][: batch.count], batch.labels, 5 if self._metric_name == "top5" else 1)  # type: ignore[arg-type]
                right, labelled = right + int(count.sum()), labelled + len(count)
            elif not tallies and self._metric is not None:
                kept.append(({n: _cut(a, batch.count) for n, a in made.items()}, batch.labels))
            if self._reference is not None:
                near.add(self._told(number, batch.feed), made, count=batch.count)
        second = near.sqnr_db if near.sums and math.isfinite(near.sqnr_db) else 0.0
        if tallies:
            return _of_tasks(tallies, second)
        if labelled:
            return Score(self._metric_name, right / labelled, second, _error(right / labelled, labelled))
        if kept and self._metric is not None:
            return self._of_all(kept, second)
        if math.isnan(near.agreement):
            return Score("SQNR", near.sqnr_db)
        return Score("agreement", near.agreement, second, _error(near.agreement, near.count))

    def _of_all(self, kept: list[tuple[Outputs, Array | None]], second: float) -> Score:
        """Return the score of all outputs at once, by a metric of the user's own."""
        assert self._metric is not None
        outputs = {name: np.concatenate([np.atleast_1d(made[name]) for made, _ in kept]) for name in kept[0][0]}
        labels = np.concatenate([np.asarray(labels) for _, labels in kept])
        return Score(self._metric_name, self._metric(outputs, labels), second)

    def _told(self, number: int, feed: Feed) -> Outputs:
        """Return what the reference gives for a batch, from memory where that holds it."""
        assert self._reference is not None
        if self._said is None:
            first = self._reference(feed)
            whole = sum(array.nbytes for array in first.values()) * -(-len(self.data) // _BATCH)
            if whole > _HELD_BYTES:
                return first
            self._said = [first]
        while len(self._said) <= number:
            self._said.append(self._reference(feed))
        return self._said[number]


class _Tally:
    """Count how right one output is, batch by batch."""

    def __init__(self, task: Task) -> None:
        self._task, self.is_classes = task, task.axis is not None
        self._count, self._right = 0, 0.0  # right: samples or places; of numbers the sum of squared errors
        self._sums = np.zeros(2)  # of the numbers that are right, and of their squares

    def add(self, outputs: Outputs, start: int, count: int) -> None:
        """Take in the outputs of some samples."""
        task, made = self._task, outputs[self._task.output][:count]
        labels = task.labels[start : start + count].reshape(-1)
        given = made.reshape(-1).astype(np.float64) if task.axis is None else made.argmax(task.axis).reshape(-1)
        if given.size != labels.size:
            raise UserError(f"labels of output {task.output!r}: {labels.size} for {given.size} places")
        if task.axis is not None:
            self._count += int((labels >= 0).sum())
            self._right += int((given == labels).sum())
            return
        wanted = labels.astype(np.float64)
        self._count += wanted.size
        self._right += float(((given - wanted) ** 2).sum())
        self._sums += wanted.sum(), (wanted**2).sum()

    @property
    def mean(self) -> float:
        """Share that is right; of numbers the mean squared error."""
        return self._right / max(self._count, 1)

    @property
    def explained(self) -> float:
        """Share that is right; of numbers the share of their variance that is explained, R2."""
        if self.is_classes:
            return self.mean
        total, squares = self._sums / max(self._count, 1)
        return 1 - self.mean / max(float(squares - total**2), 1e-12)

    @property
    def error(self) -> float:
        """Standard error of a share."""
        return _error(self.mean, max(self._count, 1)) if self.is_classes else 0.0


def _of_tasks(tallies: Sequence[_Tally], second: float) -> Score:
    """Return the score of one task, or the mean of several: shares that are right, and R2 of numbers."""
    if len(tallies) == 1:
        (only,) = tallies
        return Score("top1", only.mean, second, only.error) if only.is_classes else Score("-MSE", -only.mean, second)
    error = math.sqrt(sum(tally.error**2 for tally in tallies)) / len(tallies)
    return Score(f"mean of {len(tallies)} tasks", sum(t.explained for t in tallies) / len(tallies), second, error)


def _error(share: float, count: int) -> float:
    """Return the standard error of a share of samples; of at least one sample that fell otherwise."""
    return math.sqrt(max(share * (1 - share), 1 / count) / count)


def _cut(array: Any, count: int) -> Array:
    return np.asarray(array[:count] if array.ndim else array)
