"""The main job: a model in, a pipeline over it, the best model and the measured proof out."""

from __future__ import annotations

import contextlib
import gc
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from onnxedge.data import Preprocess, data_doubts
from onnxedge.errors import UserError
from onnxedge.manager import Manager, Verify, dump_name
from onnxedge.measure import Judge, measure_size
from onnxedge.metrics import load_metric
from onnxedge.model import io
from onnxedge.model.copy import copied
from onnxedge.model.files import data_file, refuse_overwrite, write_whole
from onnxedge.model.interface import Declared
from onnxedge.model.serialize import drop_inferred, has_external_data, written_bytes
from onnxedge.model.skeleton import Skeleton
from onnxedge.never_worse import never_worse, size_of
from onnxedge.passes import Context, Pass, Progress, Silent, in_turns
from onnxedge.pipeline import format_pipeline, parse_pipeline
from onnxedge.registry import find_pass, find_target
from onnxedge.report.records import Report
from onnxedge.report.summary import describe, note_in, unmeasured, verdict, versions
from onnxedge.samples import RUN_MEMORY_BYTES, Samples, open_samples, open_training
from onnxedge.stage import Stage
from onnxedge.target import Target
from onnxedge.verify import infer_shapes

Source = str | Path | onnx.ModelProto | ir.Model


@dataclass(frozen=True)
class Optimized:
    """Hold what came out: the model, the report, and the file where one was written."""

    model: ir.Model
    report: Report
    output: Path | None


@contextlib.contextmanager
def _rare_collection() -> Iterator[None]:
    """Look for no garbage until :func:`_settled`, and rarely then: graphs are millions of objects that live on."""
    was, was_on, thaws = gc.get_threshold(), gc.isenabled(), not gc.get_freeze_count()
    gc.disable()
    if was[0]:
        gc.set_threshold(max(was[0], 200_000), 1_000, 1_000)
    try:
        yield
    finally:
        gc.set_threshold(*was)
        (gc.enable if was_on else gc.disable)()
        if thaws:
            gc.unfreeze()


def _settled() -> None:
    """Say that what is there by now stays until the end: collections begin, and look only at what comes."""
    gc.freeze()
    gc.enable()


@_rare_collection()
def optimize(
    model: Source,
    passes: str | Sequence[Pass] = "fold,fuse",
    *,
    output: str | Path | None = None,
    report: str | Path | None = None,
    target: str | Target = "ort-cpu",
    calib: Any = None,
    eval: Any = None,
    train: Any = None,
    preprocess: str | None = None,
    verify: Verify = "numeric",
    measure: bool = True,
    memory: int | None = None,
    strict: bool = False,
    dump_dir: str | Path | None = None,
    seed: int = 0,
    threads: int = 1,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    metric: str = "top1",
    max_drop: float = 0.02,
    keep: Sequence[Path] = (),
    progress: Progress | None = None,
    watch: Callable[[str], None] | None = None,
) -> Optimized:
    """Run a pipeline over a model, measure what came out against what went in, and keep the better one.

    Args:
        model: a path, a protobuf or an ``onnx_ir`` model; never changed.
        passes: pipeline text, or passes that are already built.
        output: where to write the result; None writes nothing.
        report: where to write the report, as JSON, or as a page where the name ends in ``.html``.
        target: name of a target, path of a target file, or a target.
        calib: samples to calibrate on: a path, ``module:function``, arrays, or a CalibrationDataReader.
        eval: labelled samples to measure on, in the same forms; a pass that chooses by them gets every second one.
        train: samples to train on, in the same forms, with labels where the loss needs some; they calibrate, too, where
            ``calib`` is not given.
        preprocess: how samples become inputs, such as ``"scale=1/255,layout=NCHW"``.
        verify: ``numeric`` runs the model behind each pass, ``structure`` checks it, ``off`` does neither.
        measure: compare latency and answers with the original's, and take back passes that made it worse; without,
            nothing is measured and nothing taken back, which is quick: with ``structure`` the model is not run at all.
        memory: bytes that running the model may take, with the models made from it; a larger one is only checked.
            None stands for 8 GiB or half of this machine's memory, and for no limit where a pass calibrates.
        strict: a pass that breaks its promise ends the run instead of being rolled back.
        dump_dir: folder for the model behind each pass.
        seed: seed of all randomness; the same input and seed give the same bytes.
        threads: threads of ONNX Runtime, for running and timing.
        input_shapes: sizes for free dimensions, used for synthesised inputs; the model's dimensions stay free.
        overrides: pass name -> options, as a recipe gives them.
        metric: ``top1``, ``top5``, or ``module:function``.
        max_drop: how much of the metric may be lost, 0..1, before a pass is taken back.
        keep: more files that nothing may be written over, such as the recipe.
        progress: where long steps show how far they have come.
        watch: called with one line at each step.

    Raises:
        UserError: bad input; nothing is written.
        PassError: a pass broke its promise and ``strict`` is set.
    """
    start = time.perf_counter()
    path = Path(model) if isinstance(model, str | Path) else None
    steps = parse_pipeline(passes, find_pass, overrides) if isinstance(passes, str) else tuple(passes)
    steps = in_turns(steps)
    chip = find_target(target) if isinstance(target, str) else target
    preprocessing = Preprocess.parse(preprocess) if preprocess else None
    load_metric(metric)  # an unknown one is said before any work
    _check_limits(threads, max_drop, verify)
    loaded = load_model(model)
    model_files = [path, *io.external_files(loaded)] if path is not None else []
    files = (*model_files, *_source_files(calib, eval, train, target), *keep)
    folder = Path(dump_dir) if dump_dir is not None else None
    _check_written(output, report, folder, steps, files)

    progress, watch = progress or Silent(), watch or (lambda line: None)
    original, declared, losses = Skeleton(loaded), Declared.of(loaded), io.losses(loaded)
    external = path is not None and has_external_data(loaded)
    first = Stage(original, infer_shapes(loaded, original), live=loaded)
    samples = Samples()
    given, calib = open_training(train, calib, first.model, preprocessing, input_shapes)
    calibrates = any(step.needs_calibration for step in steps)
    if measure or verify == "numeric" or calibrates or calib is not None or eval is not None:
        limit = memory if memory is not None or calibrates else RUN_MEMORY_BYTES
        samples = open_samples(
            original,
            first.model,
            calib,
            eval,
            preprocessing,
            input_shapes,
            seed,
            threads=threads,
            memory=limit,
            compares=measure,
        )
    if eval is not None and any(step.chooses_by_metric() for step in steps):
        samples = samples.parted()
    context = Context(
        chip,
        samples.calibration,
        original=original,
        train=given,
        evaluation=samples.choice,
        metric=metric,
        seed=seed,
        threads=threads,
        progress=progress,
    )
    context.unrunnable = samples.unrunnable
    context.begin("load")
    for loss in losses:
        context.note(None, loss)
    if samples.calibration is not None and not samples.unrunnable:
        context.begin("calib")
        for doubt in data_doubts(first.model, samples.calibration):
            context.note(None, doubt)
    judge = None
    if measure and samples.comparison is not None and samples.session is not None:
        judge = Judge(
            samples.session,
            samples.comparison,
            metric=metric,
            threads=threads,
            max_drop=max_drop,
            timed=chip.timed_here,
            progress=progress,
        )
    for step in steps:
        context.begin(step.name)
        step.requires(first.model, context)
    made = folder is not None and _make_folder(folder)

    feed = samples.feeds[0] if measure and samples.feeds else None
    file_size = _total_bytes(model_files) if model_files else None
    before = measure_size(first.model, feed=feed, shaped=first.model, inner=declared.inner, written=file_size)
    manager = Manager(
        context,
        samples.feeds,
        samples.reference,
        verify=verify,
        strict=strict,
        dump_dir=folder,
        reproducer_dir=folder or _reproducer_folder(output),
        before=before,
        measure=lambda stage: measure_size(
            stage.model, feed=feed, shaped=stage.model, skeleton=stage.skeleton, inner=declared.inner
        ),
        judge=judge,
        watch=watch,
    )
    _settled()
    try:
        stages = manager.run(first, steps)
        if judge is not None:
            watch("measuring against the original")
        stages, fidelity, speed = never_worse(stages, steps, manager, judge, before)
    except UserError:
        manager.remove_dumps()
        if made and folder is not None:
            with contextlib.suppress(OSError):  # it may hold the reproducer of a broken pass
                folder.rmdir()
        raise
    kept = sum(stage.record is not None and stage.record.status == "applied" for stage in stages)
    final = stages[-1].take() if kept else original.revive()
    drop_inferred(final, declared)

    told = Report(
        input=str(path or ""),
        output=str(output or ""),
        pipeline=format_pipeline(steps),
        target=chip.name,
        seed=seed,
        threads=threads,
        calibration=describe(samples.calibration, given=calib is not None),
        training=describe(given, given=True),
        evaluation=describe(samples.comparison, given=eval is not None) if judge else "",
        preprocess=str(preprocessing) if preprocessing else "",
        versions=versions(),
        before=before,
        after=before,
        passes=tuple(stage.record for stage in stages if stage.record is not None),
        kept=kept,
        verdict="",
        fidelity=fidelity,
        speed=speed,
        unmeasured=unmeasured(samples.unrunnable, chip, fidelity, measure=measure),
        notes=tuple(context.notes),
        seconds=0.0,
    )
    note_in(final, told)
    if output is not None:
        written = io.save(final, output, inputs=files, external=external)
        size = _total_bytes(written)
    else:
        size = written_bytes(Skeleton(final), Declared.of(final).inner)
    after = replace(size_of(stages[-1], before), file_bytes=size)
    told = replace(told, after=after, verdict=verdict(told, after), seconds=time.perf_counter() - start)
    if report is not None:
        _write_report(told, Path(report))
    return Optimized(final, told, Path(output) if output is not None else None)


def load_model(model: Source) -> ir.Model:
    """Return an ``onnx_ir`` model that shares nothing mutable with what was given."""
    if isinstance(model, ir.Model):
        copy = copied(model)
        copy.meta.update(model.meta)
        return copy
    if isinstance(model, onnx.ModelProto):
        return io.from_proto(model)
    return io.load(model)


def _check_limits(threads: int, max_drop: float, verify: str) -> None:
    if threads < 1:
        raise UserError(f"threads: {threads}; needs at least 1")
    if not 0 <= max_drop <= 1:
        raise UserError(f"max_drop: {max_drop:g}; is a share, needs 0..1 (or 0%..100%)")
    if verify not in ("off", "structure", "numeric"):
        raise UserError(f"verify: {verify!r} is none of off, structure, numeric")


def _source_files(*sources: Any) -> list[Path]:
    return [Path(s) for s in sources if isinstance(s, str | Path) and str(s) and Path(s).exists()]


def _total_bytes(files: Iterable[Path]) -> int:
    return sum(file.stat().st_size for file in files)


def _check_written(
    output: str | Path | None,
    report: str | Path | None,
    dump_folder: Path | None,
    steps: Sequence[Pass],
    inputs: Sequence[Path],
) -> None:
    """Refuse files to write that are inputs, each other, or cannot be written, before any minute is spent.

    Raises:
        UserError: with the reason.
    """
    written: list[Path] = []
    if output is not None:
        written += [Path(output), data_file(Path(output))]
    if dump_folder is not None:
        if dump_folder.exists() and not dump_folder.is_dir():
            raise UserError(f"{dump_folder}: cannot be made: it is a file; name a folder to dump into")
        written += [dump_folder / dump_name(number, step) for number, step in enumerate(steps, 1)]
    if report is not None:
        written.append(Path(report))
    taken: set[str] = set()
    for file in written:
        if os.path.realpath(file) in taken:
            raise UserError(f"{file}: is another file that this run writes; name a file of its own")
        taken.add(os.path.realpath(file))
        if file.parent != dump_folder or dump_folder.is_dir():
            refuse_overwrite(file, inputs)


def _make_folder(folder: Path) -> bool:
    """Make a folder and tell whether it was not there."""
    try:
        absent = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        return absent
    except OSError as err:
        raise UserError(f"{folder}: cannot be made: {err.strerror}") from err


def _write_report(report: Report, path: Path) -> None:
    if path.suffix.lower() in (".html", ".htm"):
        from onnxedge.report.html import to_html

        text = to_html(report)
    else:
        text = report.to_json()
    write_whole(path, text.encode("utf-8", "backslashreplace"))


def _reproducer_folder(output: str | Path | None) -> Path:
    """Return where a broken pass leaves its reproducer: beside the output, or in the system's temporary folder."""
    if output is None:
        return Path(tempfile.gettempdir()) / "onnxedge-reproducer"
    return Path(output).with_name(Path(output).name + ".reproducer")
