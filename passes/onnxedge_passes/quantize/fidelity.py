"""How well a quantized model answers on samples that its ranges were not made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxedge.api import Array, CannotRun, Context, Feed, Session, forked, is_standard, opset

SOFTMAX_SHARE = 0.1  #: what noise behind a Softmax counts: a few samples that it is not sure of make almost all of it
OFFSET_SHARE = 0.01  #: share of an output's mean square that counts as signal even if the output hardly varies


@dataclass(frozen=True)
class Fidelity:
    """Hold a comparison with the float model.

    Attributes:
        noise: noise power over signal power of the worst float output; the signal's mean is not counted as signal. An
            output that a Softmax makes is judged by what that reads.
        agreement: share of samples with the same largest entry in each output's last axis, None without such an output.
        rows: float64 [S], noise over the same signal for each sample (entry of the outputs' first axes), None where
            outputs differ in their number.
        shift: share of the noise that is the same for all samples, of the output with the largest; 1 if unknown.
    """

    noise: float
    agreement: float | None
    rows: Array | None = field(default=None, compare=False, repr=False)
    shift: float = 1.0

    @property
    def sqnr_db(self) -> float:
        """Return the signal-to-quantization-noise ratio of the worst output in dB."""
        return float(-10.0 * np.log10(max(self.noise, 1e-20)))

    def typical_gain_db(self, before: Fidelity) -> float:
        """Return by how much less noise there is than before on a typical sample, in dB.

        The mean of the samples' own ratios, which a few samples with much noise do not decide alone.
        """
        if self.rows is None or before.rows is None or self.rows.shape != before.rows.shape or not self.rows.size:
            return self.sqnr_db - before.sqnr_db
        return float(10.0 * np.mean(np.log10(np.maximum(before.rows, 1e-20) / np.maximum(self.rows, 1e-20))))


class Reference:
    """Hold the float model's answers on a few samples.

    Args:
        model: the float model.
        feeds: samples.
        context: for the number of threads.
        before_softmax: judge an output that a Softmax makes by what that reads; models compared have the same names.
    """

    def __init__(
        self, model: ir.Model, feeds: Sequence[Feed], context: Context, *, before_softmax: bool = False
    ) -> None:
        self.model, self._feeds, self._threads = model, feeds, context.threads
        self._logits = _before_softmax(model) if before_softmax else {}
        self._answers: list[dict[str, Array]] = []
        try:
            self._answers = self._run(model, feeds)
        except CannotRun as err:
            context.note(None, f"not compared with the float model: {err}")
        first = self._answers[0] if self._answers else {}
        self._names = [name for name, array in first.items() if array.dtype.kind == "f" and array.size]
        outputs = {value.name for value in model.graph.outputs}
        self._counts = {name: 1.0 if name not in self._logits else SOFTMAX_SHARE for name in outputs}

    def _run(self, model: ir.Model, feeds: Sequence[Feed]) -> list[dict[str, Array]]:
        """Return the outputs, and what the Softmax behind them reads less its mean, which changes nothing."""
        if self._logits:
            model, values = forked(model, [_value(model, name) for name in self._logits.values()])
            known = set(model.graph.outputs)
            model.graph.outputs.extend(value for value in dict.fromkeys(values) if value not in known)
        session = Session(model, threads=self._threads)
        answers = [session.run(feed) for feed in feeds]
        for answer in answers:
            answer |= {name: answer[name] - answer[name].mean(-1, keepdims=True) for name in self._logits.values()}
        return answers

    @property
    def usable(self) -> bool:
        """Tell whether there is anything to compare."""
        return bool(self._names)

    def compare(self, model: ir.Model, limit: int | None = None) -> Fidelity:
        """Return how well another model gives the same answers; a model that does not run has no signal left.

        Args:
            model: quantized.
            limit: feeds to compare on, all by default.
        """
        try:
            answers = self._run(model, self._feeds[:limit])
        except CannotRun:
            return Fidelity(np.inf, None)
        noise, agreements = 0.0, []
        rows: list[Array] = []
        shifts: list[float] = []
        for name in self._names:
            pairs = [(a[name], b[name]) for a, b in zip(self._answers[:limit], answers, strict=True)]
            if any(a.shape != b.shape for a, b in pairs):
                return Fidelity(np.inf, None)
            first = np.concatenate([a.reshape(-1) for a, _ in pairs]).astype(np.float64)
            other = np.concatenate([b.reshape(-1) for _, b in pairs]).astype(np.float64)
            usable = np.isfinite(first)
            first, other = first[usable], other[usable]
            power = max(float(first.var()), OFFSET_SHARE * float((first**2).mean())) if first.size else 1.0
            error = float(((first - other) ** 2).mean()) if first.size else 0.0
            shifts.append(_common_share(pairs))
            share = self._counts.get(name, 1.0)
            rows.append(share / (power or 1.0) * _row_noise(pairs))
            noise = max(noise, share * error / (power or 1.0) if np.isfinite(error) else np.inf)
            if name in self._counts and pairs[0][0].ndim == 2 and pairs[0][0].shape[-1] > 1:
                agreements.append(float(np.mean(np.concatenate([a.argmax(-1) == b.argmax(-1) for a, b in pairs]))))
        even = len({len(row) for row in rows}) == 1 and all(np.isfinite(row).all() for row in rows)
        agreement = min(agreements) if agreements else None
        return Fidelity(noise, agreement, np.sum(rows, axis=0) if even else None, max(shifts, default=1.0))


def _row_noise(pairs: Sequence[tuple[Array, Array]]) -> Array:
    """Return the mean squared difference of each entry of the first axes, float64 [S]."""
    squares = [np.square(np.atleast_1d(a).astype(np.float64) - b) for a, b in pairs]
    return np.concatenate([square.reshape(len(square), -1).mean(axis=1) for square in squares])


def _common_share(pairs: Sequence[tuple[Array, Array]]) -> float:
    """Return the share of the squared differences that their mean over samples is, less what chance makes of it."""
    if len({a.shape[1:] for a, _ in pairs}) > 1 or not pairs[0][0].ndim:
        return 1.0
    differences = np.concatenate([a.astype(np.float64) - b for a, b in pairs])
    count, total = len(differences), float(np.square(differences).mean())
    if count < 8 or not np.isfinite(total):
        return 1.0
    share = float(np.square(differences.mean(axis=0)).mean()) / (total or 1.0)
    return max((share - 1 / count) / (1 - 1 / count), 0.0)


def _before_softmax(model: ir.Model) -> dict[str, str]:
    """Return the names of outputs that a Softmax over the last axis makes, with the name of what it reads."""
    found: dict[str, str] = {}
    outputs = {value.name for value in model.graph.outputs}
    for value in model.graph.outputs:
        node = value.producer()
        source = node.inputs[0] if node is not None and node.op_type == "Softmax" and is_standard(node) else None
        if node is None or source is None or source.producer() is None or source.dtype != ir.DataType.FLOAT:
            continue
        rank = len(source.shape) if source.shape is not None else 0
        last = rank - 1 if opset(model) < 13 else -1  # before opset 13 all axes from this one on are one
        axis = node.attributes.get_int("axis", 1 if opset(model) < 13 else -1)
        if rank >= 2 and axis in (last, rank - 1) and source.name and source.name not in outputs:
            found[value.name or ""] = source.name
    return found


def _value(model: ir.Model, name: str) -> ir.Value:
    """Return what a node of the main graph makes under a name.

    Raises:
        CannotRun: nothing does.
    """
    for node in model.graph:
        for value in node.outputs:
            if value.name == name:
                return value
    raise CannotRun(f"{name!r} is not computed")
