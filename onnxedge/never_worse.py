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
        base = _base(stages, steps, labelled=fidelity.labelled)
        held = judge.against(stages[base].model) if base else judge
        strays = held.fault_in_fidelity(held.fidelity(final.model) if base else fidelity)
        costs = judge.fault_in_cost(size, before, speed)
        if final.record is None or not (strays or costs):
            if base and not fidelity.labelled:
                manager.context.begin(steps[base - 1].name)
                manager.context.note(None, "no labelled --eval: the original is no measure of it; see its own score")
            return stages, fidelity, speed
        culprit = _culprit(stages, steps, held if strays else judge, before, base=base if strays else None)
        if culprit is None:
            return stages, fidelity, speed
        stages = manager.take_back(stages, steps, culprit, strays or costs)


def _base(stages: Sequence[Stage], steps: Sequence[Pass], *, labelled: bool) -> int:
    """Return the stage whose answers those behind it are held against: 0, the original, but where others were learned.

    A student is what its training made of it. Without labels so is a model that learned other answers than the
    original's, unless a pass before had cost accuracy: then training is to bring that back.
    """
    base, student, lossy = 0, False, False
    for index, stage in enumerate(stages):
        if stage.record is None or stage.record.status != "applied":
            continue
        step = steps[index - 1]
        student = student or step.makes_student
        taught = student and (step.makes_student or step.trains)
        if taught or (not (labelled or lossy) and step.aims_elsewhere()):
            base = index
        lossy = lossy or (step.accuracy == "lossy" and not step.aims_elsewhere())
    return base


def _culprit(
    stages: Sequence[Stage], steps: Sequence[Pass], judge: Judge, before: Measure, *, base: int | None
) -> int | None:
    """Return the first stage that has the fault, the pass to take back; the last one that did anything otherwise.

    With ``base`` the fault is in accuracy and lies behind that stage: it is the first that the fault stays from, for
    training behind a pass may have mended what that one broke. Without, it is the cost; None where that is of a form
    that the user asked for.
    """
    applied = [i for i, s in enumerate(stages) if s.record is not None and s.record.status == "applied"]
    if base is not None:
        behind = [i for i in applied if i > base]
        right = (i for i in reversed(behind[:-1]) if not judge.fault_in_fidelity(judge.fidelity(stages[i].model)))
        mended = next(right, base)
        return next((i for i in behind if i > mended), None)

    def costs(index: int) -> bool:
        stage = stages[index]
        return bool(judge.fault_in_cost(size_of(stage, before), before, judge.speed(stage.model)))

    asked = [i for i in applied if steps[i - 1].sets_form]
    if asked and (asked[-1] == applied[-1] or costs(asked[-1])):
        return None
    applied = [i for i in applied if i not in asked]
    return next((i for i in applied[:-1] if costs(i)), applied[-1] if applied else None)


def size_of(stage: Stage, before: Measure) -> Measure:
    """Return the size of the model of a stage, that of the one that came in where nothing was applied."""
    return stage.record.after if stage.record is not None and stage.record.after is not None else before
