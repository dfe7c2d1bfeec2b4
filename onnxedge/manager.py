"""The pass manager: runs passes one by one, verifies each against what it promised, rolls back what broke."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx_ir as ir

from onnxedge.errors import PassError, UserError, first_line
from onnxedge.model.edit import graphs_of, refresh_scopes
from onnxedge.model.io import save
from onnxedge.passes import Context, Pass, Result
from onnxedge.pipeline import format_pass, format_pipeline
from onnxedge.report.records import Fidelity, Measure, PassRecord
from onnxedge.runtime import CannotRun, Feed, Session
from onnxedge.verify import Broken, Difference, Outputs, check_numbers, check_structure, infer_shapes

Verify = Literal["off", "structure", "numeric"]
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stage:
    """Hold the model behind a pass, or the one that came in (record None)."""

    model: ir.Model
    record: PassRecord | None


class Manager:
    """Run a pipeline.

    Args:
        context: shared by the passes.
        feeds: inputs to run the model with for verification; none where the runtime cannot run the model.
        verify: ``numeric`` checks, infers and runs the model behind each pass; ``structure`` does not run it.
        strict: a broken promise ends the run instead of being rolled back.
        dump_dir: folder for the model behind each pass, and for reproducers.
        measure: gives the size of a model.
        assess: compares a model with the original; asked behind each lossy pass.
        watch: called with a line at each step.
    """

    def __init__(
        self,
        context: Context,
        feeds: Sequence[Feed],
        *,
        verify: Verify,
        strict: bool,
        dump_dir: Path | None,
        reproducer_dir: Path,
        measure: Callable[[ir.Model], Measure],
        assess: Callable[[ir.Model], Fidelity | None],
        watch: Callable[[str], None],
    ) -> None:
        self.context, self.feeds, self.verify, self.strict = context, feeds, verify, strict
        self.dump_dir, self.reproducer_dir = dump_dir, reproducer_dir
        self.measure, self.assess, self.watch = measure, assess, watch
        self._reference: Outputs | None = None

    def run(self, model: ir.Model, passes: Sequence[Pass]) -> list[Stage]:
        """Return the model that came in and the model behind each pass, in order.

        Raises:
            PassError: a pass broke its promise and ``strict`` is set.
            UserError: a pass cannot work on what the user gave.
        """
        stages = [Stage(model, None)]
        for number, step in enumerate(passes, 1):
            self.watch(f"{number}/{len(passes)} {format_pass(step)}")
            stages.append(self._step(stages[-1].model, step, passes))
            if self.dump_dir is not None:
                save(stages[-1].model, self.dump_dir / f"{number:02d}-{step.name}.onnx")
        return stages

    def forget_reference(self) -> None:
        """Forget the outputs of the last verified model, when another one is run next."""
        self._reference = None

    def _step(self, before: ir.Model, step: Pass, passes: Sequence[Pass]) -> Stage:
        model = before.clone()
        infer_shapes(model)
        refresh_scopes(model)
        self.context.begin(step.name)
        if step.needs_calibration and self.context.unrunnable:
            self.context.note(None, f"left alone, it cannot be calibrated or measured: {self.context.unrunnable}")
            return Stage(before, self._record(step, "no change", Result(), 0.0, self.measure(before)))
        start = time.perf_counter()
        try:
            result = step.run(model, self.context)
        except UserError:
            raise
        except Exception as err:  # a pass, a vendor's too, may raise anything; the model before it is whole
            logger.info("%s raised", step.name, exc_info=True)
            return self._roll_back(before, step, passes, f"raised {type(err).__name__}: {first_line(err)}", err)
        seconds = time.perf_counter() - start
        _raise_ir_version(model)
        if result.rewrites == 0:
            return Stage(before, self._record(step, "no change", result, seconds, self.measure(before)))
        try:
            difference = self._verify(before, model, step)
        except (Broken, CannotRun) as err:
            return self._roll_back(before, step, passes, str(err), err)
        record = self._record(
            step,
            "applied",
            result,
            seconds,
            self.measure(model),
            difference,
            self.assess(model) if step.accuracy == "lossy" else None,
        )
        return Stage(model, record)

    def _verify(self, before: ir.Model, model: ir.Model, step: Pass) -> Difference | None:
        if self.verify == "off":
            return None
        check_structure(model, before)
        infer_shapes(model)
        if self.verify == "structure" or not self.feeds:
            return None
        if self._reference is None:
            self._reference = self._outputs(before)
        outputs = self._outputs(model)
        promise = "rounding" if step.accuracy == "exact" and _has_half(before) else step.accuracy
        difference = check_numbers(self._reference, outputs, promise, quantized=_is_quantized(before))
        self._reference = outputs
        return difference

    def _outputs(self, model: ir.Model) -> Outputs:
        session = Session(model, threads=self.context.threads, level="disable")
        return [session.run(feed) for feed in self.feeds]

    def _roll_back(self, before: ir.Model, step: Pass, passes: Sequence[Pass], reason: str, cause: Exception) -> Stage:
        folder = self._leave_reproducer(before, step, passes)
        if self.strict:
            raise PassError(step.name, reason, folder) from cause
        self.context.note(None, f"rolled back: {reason}; reproducer in {folder}")
        return Stage(before, self._record(step, "rolled back", Result(), 0.0, self.measure(before), reason=reason))

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


def _is_quantized(model: ir.Model) -> bool:
    return any(
        node.op_type in ("QuantizeLinear", "DynamicQuantizeLinear") for graph in graphs_of(model) for node in graph
    )


def _has_half(model: ir.Model) -> bool:
    """Tell whether a model computes in 16 bits: the CPU runtime does so in 32, and rounds where nodes meet."""
    half = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
    return any(
        value.dtype in half
        for graph in graphs_of(model)
        for node in graph
        for value in (*node.inputs, *node.outputs)
        if value
    )


def _raise_ir_version(model: ir.Model) -> None:
    """Go to IR 4 where a pass made an initializer that is no graph input: IR 3 has none such."""
    if model.ir_version < 4 and any(not value.is_graph_input() for value in model.graph.initializers.values()):
        model.ir_version = 4
