"""How much accuracy and time each part of a model is worth to a pass: one part is varied at a time, and measured."""

from __future__ import annotations

import fnmatch
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnxedge.data import Preprocess
from onnxedge.driver import Source, load_model
from onnxedge.errors import UserError
from onnxedge.measure import Judge, measure_size
from onnxedge.metrics import load_metric
from onnxedge.model.copy import copied
from onnxedge.model.files import refuse_overwrite
from onnxedge.model.io import external_files
from onnxedge.model.serialize import to_proto
from onnxedge.model.skeleton import Skeleton
from onnxedge.parts import Variations, Varies
from onnxedge.passes import Context, Pass, Progress, Silent
from onnxedge.pipeline import format_pass, format_pipeline, parse_pipeline
from onnxedge.registry import find_pass, find_target
from onnxedge.report.sensitivity import Baseline, Point, Sensitivity
from onnxedge.report.summary import describe, unmeasured, versions
from onnxedge.report.text import plural
from onnxedge.resume import State
from onnxedge.runtime import CannotRun, Session, latency_ratio
from onnxedge.samples import open_samples
from onnxedge.target import Target
from onnxedge.verify import infer_shapes

RATIOS = (0.75, 0.5, 0.25)  #: shares that are kept, where the user names none
_ROUNDS, _SECONDS = 40, 3.0  #: of timing one variation


def sensitivity(
    model: Source,
    passes: str | Sequence[Pass] = "prune",
    *,
    calib: Any = None,
    eval: Any = None,
    preprocess: str | None = None,
    target: str | Target = "ort-cpu",
    ratios: Sequence[float] = RATIOS,
    only: Sequence[str] = (),
    samples: int | None = None,
    metric: str = "top1",
    seed: int = 0,
    threads: int = 1,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    latency: bool = True,
    thorough: bool = False,
    resume: str | Path | None = None,
    progress: Progress | None = None,
    watch: Callable[[str], None] | None = None,
) -> Sensitivity:
    """Vary one part of a model at a time, and all at once, and measure what each costs and gains.

    Each point is written to a state file as soon as it is measured, and a run that was killed goes on from there.

    Args:
        model: a path, a protobuf or an ``onnx_ir`` model; never changed.
        passes: pipeline text, or built passes. Those that can be tried part by part (prune, int8) are, on what the
            others before them make of the model.
        calib, eval, preprocess, target, metric, seed, threads, input_shapes: as for ``optimize``.
        ratios: shares of a part that are kept, above 0 and below 1.
        only: patterns of the names of the parts that are varied, with ``*`` and ``?``; all parts where there is none.
        samples: samples that are compared on, at most.
        thorough: mend each variation as well as the pass can; a part alone is mended nearby otherwise, and loses more.
        latency: time each variation in turns with the original, where the target runs here.
        resume: the state file; by default one in the user's cache that is removed when the run is done.
        progress, watch: as for ``optimize``.

    Raises:
        UserError: bad input, a model that ONNX Runtime does not run, or a pass that cannot be tried part by part.
    """
    start = time.perf_counter()
    progress, watch = progress or Silent(), watch or (lambda line: None)
    steps = parse_pipeline(passes, find_pass) if isinstance(passes, str) else tuple(passes)
    _check(steps, ratios, only, samples, threads)
    if resume is not None:
        refuse_overwrite(Path(resume), ())
    chip = find_target(target) if isinstance(target, str) else target
    preprocessing = Preprocess.parse(preprocess) if preprocess else None
    load_metric(metric)
    loaded = load_model(model)
    original = Skeleton(loaded)
    shaped = copied(loaded)
    infer_shapes(shaped)
    watch("running the model")
    given = open_samples(original, shaped, calib, eval, preprocessing, input_shapes, seed, threads=threads)
    if given.unrunnable or given.session is None or given.comparison is None:
        raise UserError(f"sensitivity: nothing can be measured: {given.unrunnable}")
    compared = given.comparison if samples is None else given.comparison.slice(0, samples)
    context = Context(chip, given.calibration, original=original, seed=seed, threads=threads, progress=progress)
    judge = Judge(
        given.session,
        compared,
        metric=metric,
        threads=threads,
        max_drop=1.0,
        timed=latency and chip.timed_here,
        progress=progress,
    )
    described = [describe(given.calibration, given=calib is not None), describe(compared, given=eval is not None)]
    settings = [format_pipeline(steps), chip.name, chip.channel_multiple, metric, str(preprocessing), seed, threads]
    settings += [*described, latency, thorough, sorted((input_shapes or {}).items()), sorted(versions().items())]
    state = State.open(resume, _key(model, loaded, settings))
    first = judge.fidelity(loaded)
    size = measure_size(shaped, feed=judge.feed, shaped=shaped)
    if state.resumed:
        watch(f"{plural(state.resumed, 'point')} measured by an earlier run")
    bench = _Bench(judge, progress, watch, state)
    points: list[Point] = []
    working = copied(shaped)
    for step in steps:
        context.begin(step.name)
        step.requires(working, context)
        if not isinstance(step, Varies):
            watch(step.name)
            step.run(working, context)
            infer_shapes(working)
            continue
        watch(f"{step.name}: finding the parts")
        try:
            variations = step.variations(copied(working), context, thorough=thorough)
            points += bench.run(step, variations, ratios, only)
        except CannotRun as err:
            raise UserError(f"sensitivity: {step.name}: {err}") from err
    state.close()
    labels = judge.metric_name if first.labelled else ""
    missing = unmeasured("", chip, first, measure=True)
    return Sensitivity(
        model=str(model) if isinstance(model, str | Path) else "",
        pipeline=format_pipeline(steps),
        target=chip.name,
        seed=seed,
        threads=threads,
        preprocess=str(preprocessing) if preprocessing else "",
        calibration=described[0],
        evaluation=described[1],
        samples=first.samples,
        metric=labels,
        thorough=thorough,
        baseline=Baseline(first.before, size.macs, size.parameters, size.file_bytes),
        points=tuple(points),
        unmeasured=missing if latency or not chip.timed_here else (*missing, "latency: not timed (--no-latency)"),
        notes=tuple(context.notes),
        versions=versions(),
        seconds=time.perf_counter() - start,
    )


def _check(
    steps: Sequence[Pass], ratios: Sequence[float], only: Sequence[str], samples: int | None, threads: int
) -> None:
    tried = [step.name for step in steps if isinstance(step, Varies)]
    if not tried:
        names = ", ".join(step.name for step in steps)
        raise UserError(f"sensitivity: none of {names!r} can be tried part by part; prune and int8 can")
    if len(set(tried)) < len(tried):
        raise UserError(f"sensitivity: {max(tried, key=tried.count)} is named twice; try one of them at a time")
    if not all(only):
        raise UserError("sensitivity: a pattern of names of parts is empty")
    for ratio in ratios:
        if not 0 < ratio < 1:
            raise UserError(f"sensitivity: ratio {ratio:g} is not above 0 and below 1 (the share that is kept)")
    if not ratios or len(set(ratios)) != len(ratios):
        raise UserError("sensitivity: a ratio is given twice" if ratios else "sensitivity: no ratio is given")
    if samples is not None and samples < 1:
        raise UserError(f"sensitivity: samples={samples}; needs at least 1")
    if threads < 1:
        raise UserError(f"threads: {threads}; needs at least 1")


@dataclass
class _Bench:
    """Measure variations, those apart that an earlier run measured."""

    judge: Judge
    progress: Progress
    watch: Callable[[str], None]
    state: State

    def run(self, step: Pass, variations: Variations, ratios: Sequence[float], only: Sequence[str]) -> list[Point]:
        parts, names = variations.parts, [part.name for part in variations.parts]
        chosen = [n for n, name in enumerate(names) if not only or any(_matches(name, p) for p in only)]
        if not chosen:
            raise UserError(f"sensitivity: no part of {step.name} is called like {' or '.join(map(repr, only))}")
        every = sum(part.size for part in parts)
        jobs: list[tuple[int | None, float, int, int]] = []
        for number in ([] if only else [None]) + chosen:
            size = every if number is None else parts[number].size
            for ratio in sorted(variations.ratios or ratios, reverse=True):
                kept = variations.kept(number, ratio)
                if kept < size and not any(job[0] == number and job[2] == kept for job in jobs[-len(ratios) :]):
                    jobs.append((number, ratio, kept, size))
        points = []
        for number, ratio, kept, size in self.progress.track(jobs, f"{step.name}: parts and ratios", len(jobs)):
            key = f"{format_pass(step)} {number} {kept}"
            name = f"all {len(parts)} parts" if number is None else names[number]
            point = self.state.points.get(key)
            if point is None:
                self.watch(f"{name} at {ratio:g}")
                point = self._measure(variations, step.name, name, number, ratio, kept, size)
                self.state.add(key, point)
            points.append(replace(point, ratio=ratio))
        return points

    def _measure(
        self, variations: Variations, step: str, name: str, part: int | None, ratio: float, kept: int, whole: int
    ) -> Point:
        model = variations.model(part, ratio)
        size = measure_size(model, feed=self.judge.feed)
        told = self.judge.fidelity(model)
        point = Point(
            pass_name=step,
            part=part,
            name=name,
            ratio=ratio,
            kept=kept,
            size=whole,
            macs=size.macs,
            parameters=size.parameters,
            file_bytes=size.file_bytes,
            value=told.after,
            drop=told.drop,
            standard_error=told.standard_error,
            agreement=told.agreement,
            sqnr_db=told.sqnr_db,
        )
        if self.judge.timed:
            session = Session(model, threads=self.judge.threads)
            timing = latency_ratio(self.judge.original, session, self.judge.feed, rounds=_ROUNDS, seconds=_SECONDS)
            point = replace(
                point,
                latency=timing.ratio,
                latency_low=timing.low,
                latency_high=timing.high,
                latency_cpu=timing.cpu_ratio,
                latency_ms=timing.second_ms,
            )
        self.judge.forget()
        return point


def _matches(name: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, f"*{pattern}*")


def _key(source: Source, model: ir.Model, settings: Sequence[object]) -> str:
    """Return a digest of all that decides the points: the model's bytes, the samples, options and versions."""
    sha = hashlib.sha256(repr(list(settings)).encode())
    if isinstance(source, str | Path):
        for file in (Path(source), *external_files(model)):
            with file.open("rb") as stream:
                sha.update(hashlib.file_digest(stream, "sha256").digest())
    else:
        sha.update(to_proto(model).SerializeToString(deterministic=True))
    return sha.hexdigest()[:24]
