"""Every case of ``onnx.backend.test`` that ONNX Runtime runs means the same behind ``fold,fuse``."""

from __future__ import annotations

from pathlib import Path

import conformance
import pytest

import onnxedge

SHARDS = 16
FEWEST_RUN = 1815  #: of 2,024; for the others the runtime has no kernel, or they need a newer opset or a locale
UNREPEATABLE: tuple[str, ...] = ()  #: cases whose outputs differ from run to run: not compared by numbers
SAMPLED = 20  #: one case in so many goes through the whole of ``optimize``, with inputs that it makes up
ODD = ("sequence", "optional", "string", "training", "strnorm", "label_encoder", "loop", "scan", "if_")


@pytest.mark.parametrize("shard", range(SHARDS))
def test_cases_mean_the_same(shard: int) -> None:
    """No crash, refusal, rollback, invalid model, changed interface, wrong output or rewrite in a second run.

    For the target ``ort-cpu``, and for ``generic``, which gets standard operators of the model's own opset alone.
    """
    faults, run = [], 0
    for case in conformance.cases()[shard::SHARDS]:
        outcome = conformance.conform(case)
        run += not outcome.skipped
        faults += [f"{case.name}: {fault}" for fault in outcome.faults]
        if outcome.unrepeatable and case.name not in UNREPEATABLE:
            faults.append(f"{case.name}: its outputs differ from run to run, it must be listed")
    assert not faults, "\n".join(faults)
    assert run >= FEWEST_RUN // SHARDS - 15


@pytest.mark.usefixtures("untimed")
def test_cases_go_through_the_main_job(tmp_path: Path) -> None:
    """What users call, with made-up inputs, on a sample and on all cases of sequences, strings and training."""
    faults = []
    for index, case in enumerate(conformance.cases()):
        if index % SAMPLED != 0 and not any(word in case.name for word in ODD):
            continue
        done = onnxedge.optimize(case.model, output=tmp_path / "out.onnx")
        faults += [f"{case.name}: {r.text}: {r.reason}" for r in done.report.passes if r.status == "rolled back"]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("opset", [11, 13, 17, 21])
def test_cases_mean_the_same_at_another_opset(opset: int) -> None:
    """``convert`` gives the same outputs or refuses in one line, on a sample."""
    sampled = conformance.cases()[opset % SAMPLED :: SAMPLED]
    faults = [f"{case.name}: {fault}" for case in sampled for fault in conformance.conversion(case, opset)]
    assert not faults, "\n".join(faults)


def test_nearly_all_cases_are_compared() -> None:
    """Most are run at all, and of those but a few have the outputs that the standard says."""
    run = sum(conformance.runs(case) for case in conformance.cases())
    assert run >= FEWEST_RUN
