"""What ``onnxedge sensitivity`` found: plain data that becomes a table, CSV, JSON and a page."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from dataclasses import dataclass

from onnxedge.passes import Note
from onnxedge.report.records import plain
from onnxedge.report.text import change_text, count_text, label_text, percent_text, plural

_CHANCE = 1.645  #: standard errors; one-sided 95 % quantile of the normal distribution


@dataclass(frozen=True)
class Point:
    """Hold one measured variation of a model.

    Attributes:
        pass_name: the pass whose work is tried.
        part: number of the part, None for all parts at once.
        name: of the part.
        ratio: 0..1, share of the part that was asked to be kept.
        kept, size: channels that stay, and that there were, as the target's widths allow.
        macs, parameters, file_bytes: of the varied model; macs is None where no shape is known.
        value, drop, standard_error: the metric, how much of it was lost, and the standard error of that, in the
            metric's own unit (0..1 for top1); None without labels.
        agreement: share of samples with the same class; None where outputs are no classes.
        sqnr_db: of all outputs against the original's, dB; None where they are equal.
        latency, latency_low, latency_high: median and quartiles of the ratio to the original's latency, timed in
            turns; None where it was not timed.
        latency_cpu: the same ratio in CPU time, which other work on the machine disturbs less.
        latency_ms: median milliseconds of one run.
    """

    pass_name: str
    part: int | None
    name: str
    ratio: float
    kept: int
    size: int
    macs: int | None
    parameters: int
    file_bytes: int
    value: float | None
    drop: float | None
    standard_error: float | None
    agreement: float | None
    sqnr_db: float | None
    latency: float | None = None
    latency_low: float | None = None
    latency_high: float | None = None
    latency_cpu: float | None = None
    latency_ms: float | None = None

    @property
    def is_disturbed(self) -> bool:
        """Whether the turns differ so much that something else must have run."""
        return (
            self.latency_low is not None
            and self.latency_high is not None
            and self.latency_high > 1.5 * self.latency_low
        )

    @property
    def time(self) -> float | None:
        """The latency over the original's to show: that in CPU time where the clock was disturbed."""
        return self.latency_cpu if self.is_disturbed else self.latency

    @property
    def loss(self) -> float:
        """How bad it is, for ordering: the lost metric, or the noise power over the signal's without labels."""
        if self.drop is not None:
            return self.drop
        return 0.0 if self.sqnr_db is None else 10 ** (-self.sqnr_db / 10)


@dataclass(frozen=True)
class Baseline:
    """Hold the figures of the model as it came; ``value`` is the metric, None without labels."""

    value: float | None
    macs: int | None
    parameters: int
    file_bytes: int


@dataclass(frozen=True)
class Sensitivity:
    """Hold what was measured.

    Attributes:
        model: path; empty for a model in memory.
        pipeline, target, seed, threads, preprocess: what repeats the run.
        calibration, evaluation: the samples, with their digest.
        samples: number of samples compared on.
        metric: name of the metric; empty without labels.
        thorough: whether single parts were mended as well as the pass can.
        baseline: the model as it came.
        points: part by part in the graph's order, all parts at once first; ratios as they were asked for.
        unmeasured: what was not measured and why.
        notes: what the passes said.
        versions: onnxedge and the libraries that decide the result.
        seconds: wall time of this run; points that an earlier one had measured took none of it.
    """

    model: str
    pipeline: str
    target: str
    seed: int
    threads: int
    preprocess: str
    calibration: str
    evaluation: str
    samples: int
    metric: str
    thorough: bool
    baseline: Baseline
    points: tuple[Point, ...]
    unmeasured: tuple[str, ...]
    notes: tuple[Note, ...]
    versions: dict[str, str]
    seconds: float

    @property
    def ratios(self) -> tuple[float, ...]:
        """The ratios that were asked for, falling."""
        return tuple(sorted({point.ratio for point in self.points}, reverse=True))

    def rows(self) -> list[list[Point]]:
        """Return the points of each part in one list, all parts at once first, then the parts in order."""
        found: dict[tuple[str, int | None], list[Point]] = {}
        for point in self.points:
            found.setdefault((point.pass_name, point.part), []).append(point)
        return [sorted(points, key=lambda point: -point.ratio) for points in found.values()]

    def to_json(self) -> str:
        """Return all of it as JSON text."""
        return json.dumps(plain(dataclasses.asdict(self)), indent=1) + "\n"

    def to_csv(self) -> str:
        """Return the points as CSV text, a line each; a figure that was not measured is empty."""
        text = io.StringIO()
        names = [field.name for field in dataclasses.fields(Point)]
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(names)
        for point in self.points:
            writer.writerow(["" if value is None else value for value in dataclasses.asdict(point).values()])
        return text.getvalue()


def most_sensitive(found: Sensitivity) -> list[list[Point]]:
    """Return the points of each single part, the parts that lose most at their lowest ratio first."""
    single = [row for row in found.rows() if row[0].part is not None]
    return sorted(single, key=lambda row: (-row[-1].loss, math.inf if row[-1].sqnr_db is None else row[-1].sqnr_db))


def hints(found: Sensitivity, count: int = 3) -> tuple[list[Point], list[Point]]:
    """Return (what to cut first, what to leave whole), at most ``count`` points each: the seeds of a decision.

    To cut first: of each part the narrowest width that is harmless, by the multiply-accumulates, then the time, that it
    saves. To leave whole: parts that have none, by what they lose at their widest.
    """
    single = [row for row in found.rows() if row[0].part is not None]
    best = [row[-1] if is_harmless(row[-1]) else _last_harmless(row) for row in single]
    first = sorted((p for p in best if p is not None), key=lambda p: (p.macs or 0, p.time or 1.0, p.parameters))
    whole = [row[0] for row, point in zip(single, best, strict=True) if point is None]
    return first[:count], sorted(whole, key=lambda p: -p.loss)[:count]


def _last_harmless(row: list[Point]) -> Point | None:
    harmless = [point for point in row if is_harmless(point)]
    return harmless[-1] if harmless else None


def is_harmless(point: Point) -> bool:
    """Tell whether no more is lost than chance may bring, or 1 % of the signal's power without labels."""
    if point.drop is None:
        return point.loss <= 0.01
    return point.drop <= _CHANCE * (point.standard_error or 0.0)


def loss_text(point: Point) -> str:
    """Return what a point lost: points of the metric, or the ratio of signal to error in decibels."""
    if point.drop is not None:
        text = f"{-100 * point.drop:+.2f}"
        return text if float(text) else "0.00"
    return "equal" if point.sqnr_db is None else f"{point.sqnr_db:.1f} dB"


def point_text(found: Sensitivity, point: Point) -> str:
    """Return a point in words, such as ``to 16 of 32 channels: -0.10 points, MACs -4.1 %, latency x0.97``."""
    loss = f"{loss_text(point)} points of {found.metric}" if point.drop is not None else f"SQNR {loss_text(point)}"
    parts = [loss]
    if point.drop is None and point.agreement is not None:
        parts.append(f"{percent_text(point.agreement)} agree")
    if point.macs != found.baseline.macs and point.macs is not None and found.baseline.macs:
        parts.append(f"MACs {change_text(found.baseline.macs, point.macs)}")
    if point.time is not None:
        parts.append(f"latency x{point.time:.2f}")
    what = f"to {point.kept:,} of {point.size:,}: " if point.ratio else ""
    return f"{what}{', '.join(parts)}"


def base_text(found: Sensitivity) -> str:
    """Return the original's figures and what was compared on, on one line."""
    kind = "synthetic sample" if found.evaluation.startswith("synthetic") else "sample"
    value = found.baseline.value
    metric = f"{found.metric} {percent_text(value, 2)} " if value is not None else ""
    macs = f"; {count_text(found.baseline.macs)} MACs" if found.baseline.macs else ""
    return (
        f"original: {metric}on {plural(found.samples, kind)}; {count_text(found.baseline.parameters)} parameters{macs}"
    )


def legend(found: Sensitivity) -> str:
    """Return what the figures of a cell mean."""
    if any(point.drop is not None for point in found.points):
        errors = [point.standard_error for point in found.points if point.standard_error]
        error = f" (standard error up to {100 * max(errors):.2f})" if errors else ""
        what = f"change of {found.metric} in points{error}"
    else:
        what = "signal to error of the outputs"
    return f"{what}, latency over the original's" if any(p.time is not None for p in found.points) else what


def part_text(found: Sensitivity, point: Point, limit: int | None = None) -> str:
    """Return the head of a row: the part, behind the pass that varies it where there are several; cut to a limit."""
    several = len({other.pass_name for other in found.points}) > 1
    head = f"{point.pass_name}: " if several else ""
    return head + (point.name if limit is None else label_text(point.name, limit - len(head)))


def ratio_text(ratio: float) -> str:
    """Return the head of a column: the share that is kept, or that the parts are changed whole."""
    return f"keeps {100 * ratio:g} %" if ratio else "changed whole"


def remarks(found: Sensitivity) -> list[str]:
    """Return what has to be known to read the figures, a line each."""
    lines = []
    if not found.thorough and any(point.part is not None and point.ratio > 0 for point in found.points):
        lines.append("a part alone is mended nearby only, so that it loses more than a whole run would; --thorough")
    disturbed = sum(point.is_disturbed for point in found.points)
    if disturbed:
        lines.append(
            f"{disturbed} of {len(found.points)} timings were disturbed by other work: CPU time is shown there"
        )
    return lines
