"""Distillation in a pipeline: from the model that it began with or a file, with and without labels, in turns."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnxedge_passes.prune import Prune
from onnxedge_passes.train.distill import Distill
from students import CONVOLUTIONS, labelled, parsed, run, written

import onnxedge
from onnxedge.api import UserError
from onnxedge.passes import in_turns
from onnxedge.pipeline import format_pipeline

pytestmark = pytest.mark.usefixtures("untimed", "training_cache")
WIDER = CONVOLUTIONS.replace("12", "20")


@pytest.fixture
def task(tmp_path: Path) -> dict[str, Any]:
    teacher = parsed(CONVOLUTIONS)
    return {
        "model": written(teacher, tmp_path / "model.onnx"),
        "train": labelled(teacher, tmp_path / "train.npz", 256),
        "calib": labelled(teacher, tmp_path / "calib.npz", 256, 3, labels=False),
        "eval": labelled(teacher, tmp_path / "eval.npz", 120, 2),
        "output": tmp_path / "out.onnx",
    }


def optimize(task: Mapping[str, Any], passes: str, *keys: str, **options: Any) -> Any:
    given = {key: task[key] for key in keys or ("train", "eval")}
    return onnxedge.optimize(task["model"], passes, output=task["output"], **{"max_drop": 1.0, **given, **options})


def test_samples_are_changed_where_the_teacher_answers_as_before(tmp_path: Path) -> None:
    teacher = parsed(CONVOLUTIONS.replace("8, 8] x", "16, 16] x"))
    train = labelled(teacher, tmp_path / "train.npz", 96, labels=False)
    student = parsed(CONVOLUTIONS.replace("8, 8] x", "16, 16] x"), seed=4)
    given = {"train": train, "measure": False, "max_drop": 1.0}
    file = written(teacher, tmp_path / "teacher.onnx")
    report = onnxedge.optimize(student, f'distill(teacher="{file}",epochs=1)', **given).report
    reasons = [note.reason for note in report.notes if note.reason.startswith("augment=auto")]
    assert [reason.split()[1] for reason in reasons] == ["flip", "crop:2"]
    report = onnxedge.optimize(student, f'distill(teacher="{file}",epochs=1,augment=[])', **given).report
    assert not any("augment" in note.reason for note in report.notes)


def test_a_pruned_model_learns_from_the_model_that_it_was(task: dict[str, Any]) -> None:
    x = np.load(task["eval"])["x"]
    cut = "prune(ratio=0.5,repair=none,importance=random)"
    optimize(task, cut, "calib", measure=False)
    pruned = run(task["output"], x)
    report = optimize(task, f"{cut},distill(epochs=8,batch=32,lr=0.01,patience=0)", "calib", measure=False).report
    assert [record.status for record in report.passes] == ["applied"] * 2, report.notes
    wanted, distilled = run(task["model"], x), run(task["output"], x)
    assert ((distilled - wanted) ** 2).mean() < 0.5 * ((pruned - wanted) ** 2).mean()
    figures = report.passes[1].figures
    assert figures["normalizations_restored"] == 2
    assert figures["curve"]["metric"] == "agreement"
    assert "samples of calib.npz that are not trained on" in figures["chosen_by"]
    reasons = [note.reason for note in report.notes if note.pass_name == "distill"]
    assert "trained on the calibration samples: no --train" in reasons
    assert "no labels: the teacher alone counts (alpha=1)" in reasons


def test_a_teacher_from_a_file_with_labels_features_and_views(task: dict[str, Any], tmp_path: Path) -> None:
    teacher = written(parsed(WIDER, seed=4), tmp_path / "teacher.onnx")
    x = np.load(task["train"])["x"]
    wanted = run(teacher, x)
    options = "epochs=3,batch=32,lr=0.02,alpha=0.5,features=[a2,c2=c1],augment=[flip],views=2,select=last"
    report = optimize(task, f'distill(teacher="{teacher}",{options})', "train").report
    assert report.passes[0].status == "applied", report.notes
    before, after = (np.abs(run(task[key], x) - wanted).mean() for key in ("model", "output"))
    assert after < 0.8 * before
    assert report.passes[0].figures["chosen_by"] == "nothing: the last epoch is taken"
    assert len(list((tmp_path / "cache" / "training" / "teachers").iterdir())) == 2


def test_a_model_that_is_its_own_teacher_stays(task: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxedge_passes.train.training.choose_engine", lambda _: None)
    for passes in ("distill", f'distill(teacher="{task["model"]}")'):
        report = optimize(task, passes).report
        assert report.passes[0].status == "no change"
        assert [n.reason for n in report.notes if "its own teacher" in n.reason]


def test_cuts_and_training_take_turns() -> None:
    steps = in_turns((Prune(macs=0.25, steps=2), Distill(epochs=20, minutes=8.0), Prune(macs=0.5, steps=3)))
    assert format_pipeline(steps) == (
        "prune(macs=0.5),distill(epochs=10,minutes=4),prune(macs=0.5),distill(epochs=10,minutes=4),"
        "prune(macs=0.5,steps=3)"
    )
    three = in_turns((Prune(ratio=0.125, steps=3), Distill(epochs=40)))
    assert [getattr(step, "epochs", 0) for step in three] == [0, 10, 0, 10, 0, 20]
    alone = (Prune(macs=0.5), Distill())
    assert in_turns(alone) == alone
    assert in_turns((Prune(steps=3), Distill())) == (Prune(steps=3), Distill())


def test_an_iterative_schedule(task: dict[str, Any]) -> None:
    passes = "prune(ratio=0.4,steps=2),distill(epochs=2,batch=64,select=last)"
    report = optimize(task, passes).report
    assert [record.text.split("(")[0] for record in report.passes] == ["prune", "distill"] * 2
    assert [record.status for record in report.passes] == ["applied"] * 4, report.notes
    assert report.passes[2].after.macs < report.passes[0].after.macs


@pytest.mark.parametrize(
    ("passes", "keys", "message"),
    [
        ("distill", ("eval",), r"needs samples to train on; give --train DATA \(or --calib\)"),
        ("distill(alpha=0)", ("calib",), "alpha=0 needs labels"),
        ("distill(alpha=2)", ("train",), "alpha=2 is not within"),
        ("distill(temperature=0)", ("train",), "temperature=0 is not above 0"),
        ("distill(teacher=absent.onnx)", ("train",), "teacher=absent.onnx: no such file"),
        ("prune(ratio=0.5),distill(features=[nothing])", ("train",), "the model has no value 'nothing'"),
    ],
)
def test_what_does_not_fit(
    task: dict[str, Any], passes: str, keys: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxedge_passes.train.training.choose_engine", lambda _: None)
    with pytest.raises(UserError, match=message):
        optimize(task, passes, *keys)
    assert not task["output"].exists()


def test_teachers_that_do_not_fit(task: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxedge_passes.train.training.choose_engine", lambda _: None)
    narrow = written(parsed("g (float[N, 3, 9, 9] x) => (float[N, 4] y) { y = Flatten(x) }"), tmp_path / "n.onnx")
    with pytest.raises(UserError, match=r"takes x float32\[N,3,9,9\]; the student takes x float32\[N,3,8,8\]"):
        optimize(task, f'distill(teacher="{narrow}")')
    other = parsed("g (float[N, 3, 8, 8] x) => (float[N, 192] y) { y = Flatten(x) }")
    with pytest.raises(UserError, match="choose values of one size"):
        optimize(task, f'distill(teacher="{written(other, tmp_path / "o.onnx")}")')


def test_a_teacher_of_a_fixed_batch_and_of_other_names(task: dict[str, Any], tmp_path: Path) -> None:
    text = CONVOLUTIONS.replace("[N, 3, 8, 8] x", "[3, 3, 8, 8] image").replace("[N, 4] y", "[3, 4] scores")
    text = text.replace("(x, first", "(image, first").replace("y = Gemm", "scores = Gemm")
    teacher = written(parsed(text, seed=4), tmp_path / "teacher.onnx")
    free = parsed(CONVOLUTIONS, seed=4)
    x = np.load(task["train"])["x"]
    passes = f'distill(teacher="{teacher}",epochs=3,batch=32,lr=0.02,alpha=1)'
    report = optimize(task, passes, "calib", measure=False).report
    assert report.passes[0].status == "applied", report.notes
    before, after = (np.abs(run(task[key], x) - run(free, x)).mean() for key in ("model", "output"))
    assert after < 0.8 * before
