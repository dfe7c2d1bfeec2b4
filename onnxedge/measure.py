"""Measure a model against the original: size, fidelity, speed; and say what makes it worse."""

from __future__ import annotations

import copy
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxedge.data import Data
from onnxedge.metrics import Comparison, load_metric
from onnxedge.model.copy import copied
from onnxedge.model.graph import constant_node_tensor, graphs_of
from onnxedge.model.io import file_bytes
from onnxedge.model.serialize import weight_bytes, written_bytes
from onnxedge.model.skeleton import Skeleton
from onnxedge.operators import batch_one_shape, macs, model_macs
from onnxedge.passes import Progress
from onnxedge.report.records import Fidelity, Measure, Speed
from onnxedge.runtime import CannotRun, Feed, Session, capture, flattened, latency_ratio
from onnxedge.verify import infer_shapes

Array = np.ndarray[Any, Any]
Outputs = dict[str, Array]

#: A model is slower when its wall and CPU ratios are above this and the lower quartile above 1: machines are noisy.
SLOWER = 1.03
#: A file is larger when it grew by more than this; node names and scales may add a little to a small model.
LARGER = 1.10
#: One-sided 95 % quantile of the normal distribution: a drop counts when it is more than chance.
CONFIDENCE = 1.645
#: Without labels a model is worse when fewer outputs than this agree and the SQNR is below the other bound, dB.
AGREEMENT, SQNR_DB = 0.90, 10.0


def measure_size(
    model: ir.Model,
    path: Path | None = None,
    shaped: ir.Model | None = None,
    feed: Feed | None = None,
    skeleton: Skeleton | None = None,
    inner: Container[str | None] = (),
    written: int | None = None,
) -> Measure:
    """Return the size of a model.

    Args:
        model: not changed.
        path: its file, whose own size is taken; otherwise that of the file that the model would make.
        shaped: the same with shapes inferred, where the caller has it.
        feed: one sample, whose sizes are taken for the inputs' free dimensions; without it they stay unknown.
        skeleton: of the model, where the caller has it.
        inner: names of values inside whose types are written.
        written: bytes of its files, where the caller knows them.
    """
    if written is None:
        written = file_bytes(path) if path is not None else written_bytes(skeleton or Skeleton(model), inner)
    graphs = list(graphs_of(model))
    tensors = [v.const_value for graph in graphs for v in graph.initializers.values() if v.const_value is not None]
    constants = [constant_node_tensor(n) for graph in graphs for n in graph if n.op_type == "Constant"]
    dense = [t for t in (*tensors, *constants) if t is not None and t.dtype != ir.DataType.STRING]
    return Measure(
        nodes=sum(len(graph) for graph in graphs),
        parameters=sum(t.size for t in dense),
        weight_bytes=weight_bytes(model)
        + sum(t.nbytes for t in constants if t is not None and t.dtype != ir.DataType.STRING),
        file_bytes=written,
        macs=model_macs(_shaped(model, shaped, feed or {})),
    )


def _shaped(model: ir.Model, shaped: ir.Model | None, feed: Feed) -> ir.Model:
    """Return a model with all shapes that a sample gives, the one given where nothing can be added."""
    if shaped is None or _free_inputs(model, feed):
        shaped = copied(model)
        _fix_inputs(shaped, feed)
        infer_shapes(shaped)
    elif not feed or all(macs(node) is not None for node in shaped.graph):
        return shaped
    else:
        shaped = copied(shaped)
    if feed:
        _observe_shapes(shaped, feed)
    return shaped


def _free_inputs(model: ir.Model, feed: Feed) -> list[ir.Value]:
    fed = [value for value in model.graph.inputs if value.name in feed and value.shape is not None]
    return [value for value in fed if value.shape is not None and not value.shape.is_static()]


def _fix_inputs(model: ir.Model, feed: Feed) -> None:
    """Write a sample's sizes into the inputs, so that more shapes can be inferred; drop what was inferred before."""
    free = _free_inputs(model, feed)
    if not free:
        return
    for value in free:
        value.shape = ir.Shape(feed[value.name or ""].shape)
    outputs = {value for graph in graphs_of(model) for value in graph.outputs}
    for node in (node for graph in graphs_of(model) for node in graph if node.domain in ("", "ai.onnx")):
        for value in node.outputs:
            if value.shape is not None and not value.shape.is_static():
                value.shape = None if value not in outputs else ir.Shape([None] * len(value.shape))


def _observe_shapes(model: ir.Model, feed: Feed) -> None:
    """Run a model to learn the shapes that multiply-accumulates need and that could not be inferred."""
    unknown = [node for node in model.graph if macs(node) is None]
    values = list(dict.fromkeys(value for node in unknown for value in (*node.inputs[:3], node.outputs[0]) if value))
    wanted = [value for value in values if batch_one_shape(value) is None and value.name]
    if not wanted:
        return
    try:
        arrays = next(iter(capture(model, wanted, [feed])))
    except CannotRun:
        return  # what cannot be run keeps its unknown shapes
    for value, array in zip(wanted, arrays, strict=True):
        value.shape = ir.Shape(array.shape)


class Judge:
    """Compare models with the original one.

    Args:
        original: the model that came in, or a session on it.
        data: samples to compare on; labels are used where there are some.
        metric: name of what labels are scored with, as :func:`onnxedge.metrics.load_metric` takes it.
        threads: for timing.
        max_drop: how much of the metric may be lost, 0..1.
        timed: whether latency in ONNX Runtime on this machine says anything about the target.
    """

    def __init__(
        self,
        original: ir.Model | Session,
        data: Data,
        *,
        metric: str,
        threads: int,
        max_drop: float,
        timed: bool,
        progress: Progress,
    ) -> None:
        self.original = original if isinstance(original, Session) else Session(original, threads=threads)
        self._last: tuple[ir.Model | Path, Session] | None = None
        self.data, self.progress = data, progress
        self.metric, self.metric_name = load_metric(metric), metric if metric != "none" else ""
        self.threads, self.max_drop, self.timed = threads, max_drop, timed
        self.feed: Feed = next(iter(data.feeds(1)))
        self.whose = "the original"

    def against(self, model: ir.Model) -> Judge:
        """Return one that compares with what was trained in place of the original."""
        other = copy.copy(self)
        other.original, other.whose, other._last = Session(model, threads=self.threads), "what was trained", None
        return other

    def _session(self, model: ir.Model | Path) -> Session:
        """Return a session on a model, the last one again where it is the same model, see :meth:`forget`."""
        if self._last is None or self._last[0] is not model:
            self._last = (model, Session(model, threads=self.threads))
        return self._last[1]

    def forget(self) -> None:
        """Forget the last model: it is going to be edited."""
        self._last = None

    def fidelity(self, model: ir.Model | Path) -> Fidelity:
        """Return how a model's outputs compare with the original's on all samples, one batch in memory at a time.

        A metric of the user's own sees all outputs at once, so for it they are kept.
        """
        session = self._session(model)
        name = self.metric_name if self.data.has_labels else ""
        own = bool(name) and name not in ("top1", "top5")
        scores = Comparison()
        kept: list[tuple[Outputs, Outputs, Array]] = []
        for batch in self.progress.track(self.data.batches(32), "comparing with the original", None):
            reference, outputs = (flattened(s.run(batch.feed)) for s in (self.original, session))
            scores.add(reference, outputs, None if own or not name else batch.labels, batch.count)
            if own and batch.labels is not None:
                kept.append((_first(reference, batch.count), _first(outputs, batch.count), batch.labels))
        before, after, error = self._metric(scores, kept, name)
        return Fidelity(
            samples=scores.count,
            data="synthetic" if self.data.synthetic else self.data.source,
            labelled=before is not None,
            metric=name if before is not None else "",
            before=before,
            after=after,
            standard_error=error,
            agreement=_finite(scores.agreement),
            sqnr_db=_finite(scores.sqnr_db),
            max_abs_diff=_finite(scores.max_abs_diff),
        )

    def _metric(
        self, scores: Comparison, kept: Sequence[tuple[Outputs, Outputs, Array]], name: str
    ) -> tuple[float | None, float | None, float | None]:
        """Return the metric of the original and of the model, and the standard error of the difference."""
        if kept and self.metric is not None:
            labels = np.concatenate([labels for _, _, labels in kept])
            original = self.metric(_joined([reference for reference, _, _ in kept]), labels)
            return original, self.metric(_joined([outputs for _, outputs, _ in kept]), labels), None
        if not name or not scores.labelled:
            return None, None, None
        first, second = scores.top5 if name == "top5" else scores.top1
        return first, second, scores.top1_change_error if name == "top1" else None

    def speed(self, model: ir.Model | Path) -> Speed | None:
        """Return the latency of a model over the original's, on one sample; None where the target runs elsewhere."""
        if not self.timed:
            return None
        session = self._session(model)
        timing = latency_ratio(self.original, session, self.feed)
        if timing.ratio > 1.0:  # a verdict against a model needs a second look
            again = latency_ratio(self.original, session, self.feed, rounds=120)
            timing = min(timing, again, key=lambda t: t.ratio)
        return Speed(
            ratio=timing.ratio,
            low=timing.low,
            high=timing.high,
            cpu_ratio=timing.cpu_ratio,
            before_ms=timing.first_ms,
            after_ms=timing.second_ms,
            rounds=timing.rounds,
            threads=self.threads,
        )

    def fault_in_fidelity(self, fidelity: Fidelity | None) -> str:
        """Return why a model's answers are worse than allowed, or an empty string."""
        if fidelity is None:
            return ""
        if fidelity.drop is not None:
            error = fidelity.standard_error or 0.0
            if fidelity.drop > max(self.max_drop, CONFIDENCE * error):
                points = f"{100 * fidelity.drop:.2f} ± {100 * error:.2f} points"
                return f"loses {points} of {fidelity.metric}, {100 * self.max_drop:g} are allowed (--max-drop)"
            return ""
        sqnr = float("inf") if fidelity.sqnr_db is None else fidelity.sqnr_db
        if sqnr < SQNR_DB and (fidelity.agreement is None or fidelity.agreement < AGREEMENT):
            agreement = "" if fidelity.agreement is None else f", {fidelity.agreement:.1%} of the answers agree"
            return f"strays from {self.whose}: SQNR {sqnr:.1f} dB{agreement} on {fidelity.samples} samples"
        return ""

    def fault_in_cost(self, size: Measure, before: Measure, speed: Speed | None) -> str:
        """Return why a model is no gain in time or bytes, or an empty string."""
        if speed is not None and min(speed.ratio, speed.cpu_ratio) > SLOWER and speed.low > 1.0:
            quartiles = f"{speed.low:.2f}..{speed.high:.2f}"
            return f"is slower: {speed.ratio:.2f} times the original's latency (quartiles {quartiles})"
        faster = speed is not None and speed.high < 1.0
        if size.file_bytes > LARGER * before.file_bytes + 4096 and not faster:
            return f"is larger: {size.file_bytes} bytes against {before.file_bytes}, and not faster"
        return ""


def _first(outputs: Outputs, count: int) -> Outputs:
    return {name: array[:count] if array.ndim else array for name, array in outputs.items()}


def _joined(batches: Sequence[Outputs]) -> Outputs:
    return {n: np.concatenate([np.atleast_1d(b[n]) for b in batches]) for n in batches[0]}


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def verification_feeds(data: Data, count: int = 4) -> Sequence[Feed]:
    """Return a few feeds at two batch sizes where the batch is free, so that a frozen batch is noticed."""
    feeds = list(data.feeds(1, limit=1))
    feeds.extend(data.feeds(3, limit=count - 1))
    return feeds
