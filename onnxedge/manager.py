"""The pass manager: runs passes one by one, verifies each against what it promised, rolls back what broke."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import onnx_ir as ir

from onnxedge.errors import PassError, UserError, first_line
from onnxedge.measure import Judge
from onnxedge.model.content import content_of
from onnxedge.model.files import data_file
from onnxedge.model.graph import graphs_of, unordered
from onnxedge.model.interface import Interface
from onnxedge.model.io import runnable, save
from onnxedge.model.names import refresh_scopes
from onnxedge.model.skeleton import Skeleton
from onnxedge.model.spill import forget_pages
from onnxedge.passes import Context, Pass, Result
from onnxedge.pipeline import format_pass, format_pipeline
from onnxedge.report.records import Fidelity, Measure, PassRecord
from onnxedge.runtime import CannotRun, Feed, Level, Session, flattened
from onnxedge.stage import Stage
from onnxedge.verify import Broken, Difference, Outputs, check_numbers, check_structure, infer_shapes

Verify = Literal["off", "structure", "numeric"]
logger = logging.getLogger(__name__)


def dump_name(number: int, step: Pass) -> str:
    """Return the name of the file for the model behind a pass, the first being number 1."""
    return f"{number:02d}-{step.name}.onnx"


class Manager:
    """Run a pipeline.

    Args:
        context: shared by the passes.
        feeds: inputs to run the model with for verification; none where the runtime cannot run the model.
        reference: what the model that comes in gives for them as it is written.
        verify: ``numeric`` checks, infers and runs the model behind each pass; ``structure`` does not run it.
        strict: a broken promise ends the run instead of being rolled back.
        dump_dir: folder for the model behind each pass, and for reproducers.
        before: size of the model that comes in.
        measure: gives the size of a stage's model.
        judge: compares models with the original; asked behind each lossy pass.
        watch: called with a line at each step.
    """

    def __init__(
        self,
        context: Context,
        feeds: Sequence[Feed],
        reference: Outputs | None = None,
        *,
        verify: Verify,
        strict: bool,
        dump_dir: Path | None,
        reproducer_dir: Path,
        before: Measure,
        measure: Callable[[Stage], Measure],
        judge: Judge | None,
        watch: Callable[[str], None],
    ) -> None:
        self.context, self.feeds, self.verify, self.strict = context, feeds, verify, strict
        self.dump_dir, self.reproducer_dir = dump_dir, reproducer_dir
        self.before, self.measure, self.judge, self.watch = before, measure, judge, watch
        self._reference = reference
        self._dumped: list[Path] = []

    def run(self, first: Stage, passes: Sequence[Pass]) -> list[Stage]:
        """Return the model that came in and the model behind each pass, in order.

        Args:
            first: the model that came in.
            passes: the whole pipeline.

        Raises:
            PassError: a pass broke its promise and ``strict`` is set.
            UserError: a pass cannot work on what the user gave.
        """
        first.note_count = len(self.context.notes)
        return self._run([first], passes)

    def _run(self, stages: list[Stage], passes: Sequence[Pass]) -> list[Stage]:
        """Run the passes behind those whose stages are given."""
        stages = list(stages)
        for number, step in enumerate(passes[len(stages) - 1 :], len(stages)):
            self.watch(f"{number}/{len(passes)} {format_pass(step)}")
            stage = self._step(stages[-1], step, passes)
            stage.note_count = len(self.context.notes)
            stages.append(stage)
            self._dump(stage, number, step)
        return stages

    def take_back(self, stages: Sequence[Stage], passes: Sequence[Pass], number: int, reason: str) -> list[Stage]:
        """Take back a pass that was applied and run those behind it again, on what was before it.

        Args:
            stages: as :meth:`run` gave them for the whole pipeline.
            passes: the whole pipeline.
            number: the pass, counted from 1.
            reason: what it did to the model, as in "is slower".
        """
        before, step, record = stages[number - 1], passes[number - 1], stages[number].record
        assert record is not None
        self.watch(f"taking back {format_pass(step)}: the model {reason}")
        self.context.forget_notes(stages[number].note_count)  # of passes that run again
        self.context.begin(step.name)
        self.context.note(None, f"taken back: the model {reason}")
        record = replace(record, status="rolled back", reason=reason, after=self._size(before))
        taken = before.but(record, note_count=len(self.context.notes))
        self._dump(taken, number, step)
        self._reference = None
        return self._run([*stages[:number], taken], passes)

    def _size(self, stage: Stage) -> Measure:
        return stage.record.after if stage.record is not None and stage.record.after is not None else self.before

    def _dump(self, stage: Stage, number: int, step: Pass) -> None:
        if self.dump_dir is not None:
            file = self.dump_dir / dump_name(number, step)
            save(stage.model, file)
            self._dumped.extend((file, data_file(file)))

    def remove_dumps(self) -> None:
        """Remove the models that were dumped: bad input leaves nothing behind."""
        for file in self._dumped:
            file.unlink(missing_ok=True)

    def _step(self, before: Stage, step: Pass, passes: Sequence[Pass]) -> Stage:
        self.context.begin(step.name)
        if step.needs_calibration and self.context.unrunnable:
            self.context.note(None, f"left alone, it cannot be calibrated or measured: {self.context.unrunnable}")
            return self._unchanged(before, step, Result(), 0.0, before.take())
        if self.judge is not None:
            self.judge.forget()
        model = before.take()
        model.meta.clear()
        refresh_scopes(model)
        numbers = _Numbers.of(model) if self.verify == "numeric" else _Numbers(half=False, quantized=False)
        interface, content = Interface.of(model), content_of(model)
        start = time.perf_counter()
        try:
            result = step.run(model, self.context)
        except CannotRun as err:  # the model that came in runs, so it is the pass's own
            return self._roll_back(before, step, passes, str(err), err)
        except UserError:
            raise
        except Exception as err:  # a pass, a vendor's too, may raise anything; the model before it is whole
            logger.info("%s raised", step.name, exc_info=True)
            return self._roll_back(before, step, passes, f"raised {type(err).__name__}: {first_line(err)}", err)
        seconds = time.perf_counter() - start
        for tensor in before.skeleton.tensors():
            forget_pages(tensor)
        if result.rewrites == 0:
            same = content_of(model) == content
            return self._unchanged(before, step, result, seconds, model if same else None)
        _raise_ir_version(model)
        try:
            after = self._checked(model, interface, step)
            difference = self._compare(before, model, step, numbers)
            fidelity = self.judge.fidelity(model) if self.judge is not None and step.accuracy == "lossy" else None
        except (Broken, CannotRun) as err:
            return self._roll_back(before, step, passes, str(err), err)
        after.record = self._record(step, "applied", result, seconds, self.measure(after), difference, fidelity)
        return after

    def _unchanged(self, before: Stage, step: Pass, result: Result, seconds: float, live: ir.Model | None) -> Stage:
        stage = before.but(self._record(step, "no change", result, seconds, self._size(before)))
        stage.live = live
        return stage

    def _checked(self, model: ir.Model, before: Interface, step: Pass) -> Stage:
        """Return the stage of a model behind a pass.

        Raises:
            Broken: it is not valid, or others cannot use it as they used the one before.
        """
        if self.verify == "off":
            skeleton = Skeleton(model)
            return Stage(skeleton, infer_shapes(model, skeleton), live=model)
        skeleton, inferred = check_structure(model, before, fixes_defaults=step.fixes_defaults)
        return Stage(skeleton, inferred, live=model)

    def _compare(self, before: Stage, model: ir.Model, step: Pass, numbers: _Numbers) -> Difference | None:
        """Run a model and return how far it is from the one before; None where it is not to be run.

        Raises:
            Broken: further than the pass promised.
            CannotRun: the runtime fails on it.
        """
        if self.verify != "numeric" or not self.feeds:
            return None
        if self._reference is None:
            self._reference = self._outputs(before.model)
        with runnable(model) as source:
            outputs = self._outputs(source)
            self._check_optimized(source)
        promise = "rounding" if step.accuracy == "exact" and numbers.half else step.accuracy
        try:
            difference = check_numbers(self._reference, outputs, promise, quantized=numbers.quantized)
        except Broken as err:
            if promise != "exact":
                raise
            difference = self._check_folded(before.model, model, outputs, err, numbers)
        self._reference = outputs
        return difference

    def _check_folded(
        self, before: ir.Model, model: ir.Model, outputs: Outputs, fault: Broken, numbers: _Numbers
    ) -> Difference:
        """Hold an exact pass to its promise with all constants folded by the runtime, as users run both models.

        Without its optimizations ONNX Runtime packs the weight of a MatMul, Gemm, LSTM, GRU or ConvTranspose only where
        it is constant in the file, and a packed weight is summed in another order: folding alone changes the last bits.

        Raises:
            Broken: the outputs are not bit-equal then, either, or differ by more than the last bits as they are.
        """
        assert self._reference is not None
        try:
            check_numbers(self._outputs(before, "basic"), self._outputs(model, "basic"), "exact")
            return check_numbers(self._reference, outputs, "rounding", quantized=numbers.quantized)
        except Broken:
            raise fault from None

    def _check_optimized(self, model: bytes | Path) -> None:
        """Run a model as users do, with the runtime's own optimizations.

        Raises:
            CannotRun: they fail on this model, though it is valid.
        """
        session = Session(model, threads=self.context.threads)
        for feed in self.feeds:
            session.run(feed)

    def _outputs(self, model: ir.Model | bytes | Path, level: Level = "disable") -> Outputs:
        session = Session(model, threads=self.context.threads, level=level)
        return [flattened(session.run(feed)) for feed in self.feeds]

    def _roll_back(self, before: Stage, step: Pass, passes: Sequence[Pass], reason: str, cause: Exception) -> Stage:
        folder = self._leave_reproducer(before.model, step, passes)
        if self.strict:
            raise PassError(step.name, reason, folder) from cause
        self.context.note(None, f"rolled back: {reason}; reproducer in {folder}")
        return before.but(self._record(step, "rolled back", Result(), 0.0, self._size(before), reason=reason))

    def _leave_reproducer(self, before: ir.Model, step: Pass, passes: Sequence[Pass]) -> Path:
        """Write the model before a broken pass, and what repeats it."""
        folder = self.reproducer_dir / step.name
        folder.mkdir(parents=True, exist_ok=True)
        save(before, folder / "before.onnx")
        (folder / "reproduce.txt").write_text(
            f"onnxedge optimize before.onnx --passes '{format_pass(step)}' --seed {self.context.seed} "
            f"--target {self.context.target.name} --strict\n"
            f"pipeline of the run: {format_pipeline(passes)}\n",
            "utf-8",
        )
        return folder

    def _record(
        self,
        step: Pass,
        status: Literal["applied", "no change", "rolled back"],
        result: Result,
        seconds: float,
        after: Measure,
        difference: Difference | None = None,
        fidelity: Fidelity | None = None,
        reason: str = "",
    ) -> PassRecord:
        numeric = difference is not None
        return PassRecord(
            text=format_pass(step),
            accuracy=step.accuracy,
            status=status,
            reason=reason,
            rewrites=result.rewrites,
            summary=result.summary,
            figures=dict(result.figures),
            seconds=seconds,
            after=after,
            verified=""
            if status != "applied"
            else "numeric"
            if numeric
            else "off"
            if self.verify == "off"
            else "structure",
            max_abs_diff=difference.max_abs_diff if difference else None,
            sqnr_db=difference.sqnr_db if difference else None,
            fidelity=fidelity,
        )


@dataclass(frozen=True)
class _Numbers:
    """Say what a model computes in, which decides how closely the outputs of the next one are compared."""

    half: bool  #: 16 bits: the CPU runtime computes in 32, and rounds where nodes meet
    quantized: bool

    @classmethod
    def of(cls, model: ir.Model) -> _Numbers:
        """Look at all nodes and values of a model."""
        nodes = [node for graph in graphs_of(model) for node in unordered(graph)]
        half = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
        return cls(
            any(value.dtype in half for node in nodes for value in (*node.inputs, *node.outputs) if value),
            any(node.op_type in ("QuantizeLinear", "DynamicQuantizeLinear") for node in nodes),
        )


def _raise_ir_version(model: ir.Model) -> None:
    """Go to IR 4 where a pass made an initializer that is no graph input: IR 3 has none such."""
    if model.ir_version < 4 and any(not value.is_graph_input() for value in model.graph.initializers.values()):
        model.ir_version = 4
