"""What a run records: plain data that becomes JSON, a table in the terminal, and the model's metadata."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, Literal

from onnxedge.passes import Note

Status = Literal["applied", "no change", "rolled back"]


@dataclass(frozen=True)
class Measure:
    """Describe the size of a model.

    Attributes:
        nodes: nodes of all graphs and local functions.
        parameters: elements of all floating-point and integer weights of the main graph and its subgraphs.
        weight_bytes: bytes of all initializers and constants.
        file_bytes: bytes of the file as onnxedge writes it, external data counted.
        macs: multiply-accumulates of one sample; None where no shape is known.
    """

    nodes: int
    parameters: int
    weight_bytes: int
    file_bytes: int
    macs: int | None


@dataclass(frozen=True)
class Fidelity:
    """Compare a model's outputs with the original's, and with labels where there are some.

    Attributes:
        samples: number of samples.
        data: what they are: a path, or ``synthetic``.
        labelled: whether the metric is measured on labels; otherwise only agreement and numeric difference are known.
        metric: name of the metric, such as ``top1``; empty without labels.
        before, after: the metric of the original and of this model; None without labels.
        standard_error: of ``after - before``, paired over the samples; None without labels.
        agreement: share of samples whose largest output is the same class; None where outputs are no classes.
        sqnr_db: signal-to-quantization-noise ratio over all outputs, dB; infinite (None) where equal.
        max_abs_diff: largest absolute difference of any output.
    """

    samples: int
    data: str
    labelled: bool
    metric: str = ""
    before: float | None = None
    after: float | None = None
    standard_error: float | None = None
    agreement: float | None = None
    sqnr_db: float | None = None
    max_abs_diff: float | None = None

    @property
    def drop(self) -> float | None:
        """Return how much the metric fell, in its own unit (0..1 for top-1), or None without labels."""
        return None if self.before is None or self.after is None else self.before - self.after


@dataclass(frozen=True)
class Speed:
    """Hold an interleaved latency comparison in ONNX Runtime; ``ratio`` below 1 is faster than the original.

    Attributes:
        ratio: median over rounds of this model's time over the original's.
        low, high: quartiles of that.
        cpu_ratio: the same in CPU time.
        before_ms, after_ms: median milliseconds of one run.
        rounds, threads: as measured.
    """

    ratio: float
    low: float
    high: float
    cpu_ratio: float
    before_ms: float
    after_ms: float
    rounds: int
    threads: int


@dataclass(frozen=True)
class PassRecord:
    """Tell what one pass did.

    Attributes:
        text: the pass as pipeline text.
        accuracy: its promise.
        status: applied, no change, or rolled back.
        reason: why it was rolled back.
        rewrites, summary, figures: as the pass said.
        seconds: wall time of the pass, verification not counted.
        after: size of the model behind it.
        verified: how it was verified: ``numeric``, ``structure`` or ``off``, with the figures.
        max_abs_diff, sqnr_db: outputs behind against before the pass.
        fidelity: accuracy or agreement behind a lossy pass, against the original.
    """

    text: str
    accuracy: str
    status: Status
    reason: str = ""
    rewrites: int = 0
    summary: str = ""
    figures: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    after: Measure | None = None
    verified: str = ""
    max_abs_diff: float | None = None
    sqnr_db: float | None = None
    fidelity: Fidelity | None = None


@dataclass(frozen=True)
class Report:
    """Hold all that a run did and measured.

    Attributes:
        input, output: paths; empty for models in memory.
        pipeline: text that repeats the run.
        target, seed, threads: as run.
        calibration, evaluation: where data came from, with its digest; ``synthetic`` where the user gave none.
        preprocess: canonical preprocessing text.
        versions: onnxedge and the libraries that decide the result.
        before, after: sizes of the model that came in and the one that went out.
        passes: in order.
        kept: number of passes whose work is in the output; fewer than ``len(passes)`` where a later one made it worse.
        verdict: one sentence: what came out, and why the last stage was not kept where that is so.
        fidelity, speed: of the output against the input; None where they could not be measured, see ``unmeasured``.
        unmeasured: what was not measured and why.
        notes: what passes left alone and why.
        seconds: wall time of the whole run.
        training: what was trained on, with its digest; empty where nothing was.
    """

    input: str
    output: str
    pipeline: str
    target: str
    seed: int
    threads: int
    calibration: str
    evaluation: str
    preprocess: str
    versions: dict[str, str]
    before: Measure
    after: Measure
    passes: tuple[PassRecord, ...]
    kept: int
    verdict: str
    fidelity: Fidelity | None
    speed: Speed | None
    unmeasured: tuple[str, ...]
    notes: tuple[Note, ...]
    seconds: float
    training: str = ""

    def to_json(self) -> str:
        """Return the report as JSON text; infinite numbers become null."""
        return json.dumps(plain(dataclasses.asdict(self)), indent=1, sort_keys=False) + "\n"


def plain(value: Any) -> Any:
    """Turn a value into what JSON can hold: numpy scalars to numbers, non-finite floats to null."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        value = value.item()
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and value - value != 0:
        return None
    return value
