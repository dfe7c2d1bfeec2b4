"""Take back the passes that made a model worse."""

from __future__ import annotations

from collections.abc import Sequence

from onnxedge.manager import Manager
from onnxedge.measure import Judge
from onnxedge.passes import Pass
from onnxedge.report.records import Fidelity, Measure, Speed
from onnxedge.stage import Stage


def never_worse(
    stages: list[Stage], steps: Sequence[Pass], manager: Manager, judge: Judge | None, before: Measure
) -> tuple[list[Stage], Fidelity | None, Speed | None]:
    """Take back the passes that made the model worse, and run those behind them again on what was before.

    Each round takes the first pass back that has the fault. It ends: what was applied before that pass stays as it is.
    """
    if judge is None:
        return stages, None, None
    while True:
        final = stages[-1]
        fidelity, speed = judge.fidelity(final.model), judge.speed(final.model)
        size = size_of(final, before)
        strays = judge.fault_in_fidelity(fidelity) if _is_held_to_original(stages, steps, fidelity) else ""
        costs = judge.fault_in_cost(size, before, speed)
        if final.record is None or not (strays or costs):
            return stages, fidelity, speed
        culprit = _culprit(stages, steps, judge, before, accuracy=bool(strays))
        if culprit is None:
            return stages, fidelity, speed
        stages = manager.take_back(stages, steps, culprit, strays or costs)


def _is_held_to_original(stages: Sequence[Stage], steps: Sequence[Pass], fidelity: Fidelity) -> bool:
    """Tell whether the original is a measure of a model: not of a student, nor without labels of other answers."""
    applied = [steps[i - 1] for i, s in enumerate(stages) if s.record is not None and s.record.status == "applied"]
    if any(step.makes_student for step in applied):
        return False
    return fidelity.labelled or not any(step.aims_elsewhere() for step in applied)


def _culprit(
    stages: Sequence[Stage], steps: Sequence[Pass], judge: Judge, before: Measure, *, accuracy: bool
) -> int | None:
    """Return the first stage that has the fault, the pass to take back; the last one that did anything otherwise.

    In accuracy it is the first that the fault stays from: training behind a pass may have mended what that one broke.
    None where the fault is the cost of a form that the user asked for.
    """
    applied = [i for i, s in enumerate(stages) if s.record is not None and s.record.status == "applied"]

    def has_fault(stage: Stage) -> bool:
        if accuracy:
            return bool(judge.fault_in_fidelity(judge.fidelity(stage.model)))
        return bool(judge.fault_in_cost(size_of(stage, before), before, judge.speed(stage.model)))

    if not accuracy:
        asked = [i for i in applied if steps[i - 1].sets_form]
        if asked and (asked[-1] == applied[-1] or has_fault(stages[asked[-1]])):
            return None
        applied = [i for i in applied if i not in asked]
    if accuracy:
        mended = next((i for i in reversed(applied[:-1]) if not has_fault(stages[i])), 0)
        return next((i for i in applied if i > mended), None)
    return next((i for i in applied[:-1] if has_fault(stages[i])), applied[-1] if applied else None)


def size_of(stage: Stage, before: Measure) -> Measure:
    """Return the size of the model of a stage, that of the one that came in where nothing was applied."""
    return stage.record.after if stage.record is not None and stage.record.after is not None else before
