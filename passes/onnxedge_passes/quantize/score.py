"""How much of a metric a quantized model loses: what ``max_drop`` bounds."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxedge.api import Array, CannotRun, Comparison, Context, Data, Session, UserError, flattened, load_metric

BATCH = 32
MOST = 2048  #: samples whose answers are counted where nobody labelled them


class Score:
    """Know what the float model scores on samples to choose by, and what trials lose of it.

    With labels it is the metric of the run, on those evaluation samples that the report is not measured on; without
    labels the share of samples that are answered with another class than by the float model.

    Attributes:
        metric: its name; ``agreement`` without labels.
        samples: how many are counted.
    """

    def __init__(self, model: ir.Model, context: Context, held_out: Data) -> None:
        """Score the float model.

        Raises:
            UserError: there are no labels, and no output is class scores to count answers of.
        """
        self._data = context.evaluation if context.evaluation is not None else held_out
        self._threads = context.threads
        labelled = self._data.has_labels and context.metric != "none"
        self.metric = context.metric if labelled else "agreement"
        self._function = load_metric(context.metric) if labelled else None
        self._answers: list[dict[str, Array]] = []
        self.samples = 0
        session = Session(model, threads=self._threads)
        if self._function is not None:
            self.before = self._scored(session)
            return
        for batch in self._data.batches(BATCH, MOST):
            self._answers.append(flattened(session.run(batch.feed)))
            self.samples += batch.count
        self.before = 1.0
        if self._agreement(session) != 1.0:
            raise UserError(
                "int8: max_drop: no labels came (--eval), and no output is class scores whose answers can be counted; "
                "give labelled samples and their --metric, or bound the noise by min_sqnr"
            )

    def drop(self, model: ir.Model) -> float:
        """Return how much of the metric a model loses; all of it where it does not run."""
        try:
            session = Session(model, threads=self._threads)
            score = self._scored(session) if self._function is not None else self._agreement(session)
            return round(self.before - score, 9)  # 1 of 100 is no more than 1 %
        except CannotRun:
            return float("inf")

    def _scored(self, session: Session) -> float:
        """Return the metric: of built-in ones a mean over batches, of one's own on all samples at once."""
        assert self._function is not None
        whole, total, count = self.metric not in ("top1", "top5"), 0.0, 0
        kept: list[tuple[dict[str, Array], Array]] = []
        for batch in self._data.batches(BATCH):
            assert batch.labels is not None
            outputs = {n: a[: batch.count] if a.ndim else a for n, a in flattened(session.run(batch.feed)).items()}
            labels = batch.labels[: batch.count]
            count += batch.count
            if whole:
                kept.append((outputs, labels))
            else:
                total += batch.count * self._function(outputs, labels)
        self.samples = count
        return self._function(*_joined(kept)) if whole else total / max(count, 1)

    def _agreement(self, session: Session) -> float:
        compared = Comparison()
        for batch, wanted in zip(self._data.batches(BATCH, MOST), self._answers, strict=True):
            compared.add(wanted, flattened(session.run(batch.feed)), None, batch.count)
        return compared.agreement


def _joined(kept: list[tuple[dict[str, Array], Array]]) -> tuple[dict[str, Array], Array]:
    names = kept[0][0]
    outputs = {name: np.concatenate([np.atleast_1d(part[name]) for part, _ in kept]) for name in names}
    return outputs, np.concatenate([labels for _, labels in kept])
