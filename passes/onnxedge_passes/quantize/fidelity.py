"""How well a quantized model answers on samples that its ranges were not made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxedge.api import Array, CannotRun, Context, Feed, Session

OFFSET_SHARE = 0.01  #: share of an output's mean square that counts as signal even if the output hardly varies


@dataclass(frozen=True)
class Fidelity:
    """Hold a comparison with the float model.

    Attributes:
        noise: noise power over signal power of the worst float output; the signal's mean is not counted as signal.
        agreement: share of samples with the same largest entry in each output's last axis, None without such an output.
    """

    noise: float
    agreement: float | None

    @property
    def sqnr_db(self) -> float:
        """Return the signal-to-quantization-noise ratio of the worst output in dB."""
        return float(-10.0 * np.log10(max(self.noise, 1e-20)))


class Reference:
    """Hold the float model's answers on a few samples.

    Args:
        model: the float model.
        feeds: samples.
        context: for the number of threads.
    """

    def __init__(self, model: ir.Model, feeds: Sequence[Feed], context: Context) -> None:
        self.model, self._feeds, self._threads = model, feeds, context.threads
        self._answers: list[dict[str, Array]] = []
        try:
            session = Session(model, threads=context.threads)
            self._answers = [session.run(feed) for feed in feeds]
        except CannotRun as err:
            context.note(None, f"not compared with the float model: {err}")
        first = self._answers[0] if self._answers else {}
        self._names = [name for name, array in first.items() if array.dtype.kind == "f" and array.size]

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
            session = Session(model, threads=self._threads)
            answers = [session.run(feed) for feed in self._feeds[:limit]]
        except CannotRun:
            return Fidelity(np.inf, None)
        noise, agreements = 0.0, []
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
            noise = max(noise, error / (power or 1.0) if np.isfinite(error) else np.inf)
            if pairs[0][0].ndim == 2 and pairs[0][0].shape[-1] > 1:
                agreements.append(float(np.mean(np.concatenate([a.argmax(-1) == b.argmax(-1) for a, b in pairs]))))
        return Fidelity(noise, min(agreements) if agreements else None)
