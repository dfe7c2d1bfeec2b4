"""The loop around an engine, with one that is made up: best checkpoint, patience, time, views, teachers, folders."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from test_compose import CLASSIFIER, WIDER, model

from onnxedge.api import (
    Array,
    Augmentation,
    Choice,
    Composed,
    History,
    InputSpec,
    Loop,
    ScoredTask,
    SoftLabels,
    Teacher,
    TrainingSamples,
    TrainingScore,
    TrainingSettings,
    UserError,
    compose,
    from_arrays,
    model_inputs,
    train_loop,
)
from onnxedge.model.files import cache_folder
from onnxedge.passes import Silent
from onnxedge.training import loop as loop_module
from onnxedge.training import store
from onnxedge.training.engine import Trained
from onnxedge.training.store import run_folder

INPUTS = (InputSpec("x", "float32", ("N", 3, 4, 4)),)
X = np.random.default_rng(0).standard_normal((20, 3, 4, 4)).astype(np.float32)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ONNXEDGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Engine:
    """An engine whose only weight is the number of epochs that it was trained for."""

    def __init__(self, clock: list[float] | None = None, late: bool = False, start: int = 0) -> None:
        self.clock, self.late, self.start = clock, late, start
        self.seen: list[Mapping[str, Array]] = []

    def __call__(
        self, composed: Composed, data: Any, folder: Path, settings: TrainingSettings, **options: Any
    ) -> Trained:
        listener, between = options["listener"], options["between"]
        if self.start:
            listener({"kind": "resumed", "epoch": self.start})
        epoch, values = self.start, _weight(self.start)
        while epoch < settings.epochs and epoch < between(epoch, values if epoch else {}):
            self.seen.append(data(epoch))
            listener({"kind": "step", "epoch": epoch, "step": 1, "steps": 2, "loss": 1.0})
            if self.clock is not None:
                self.clock[0] += 60
            if self.late and epoch == 1:
                listener({"kind": "late", "epoch": epoch, "step": 1})
                return Trained(_weight(epoch + 0.5), (1.0,) * epoch, False)
            epoch += 1
            values = _weight(epoch)
            listener({"kind": "epoch", "epoch": epoch, "loss": 1 / epoch, "seconds": 1.0})
        return Trained(values, tuple(1 / (i + 1) for i in range(epoch)), epoch == settings.epochs)


def _weight(epoch: float) -> dict[str, Array]:
    return {"w": np.full(2, epoch, np.float32), "a": np.zeros(1, np.float32)}


def run(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    engine: Engine,
    score: Callable[[float], float] | None,
    *,
    samples: TrainingSamples | None = None,
    teacher: Teacher | None = None,
    composed: Composed | None = None,
    patience: int = 0,
    **settings: Any,
) -> tuple[Mapping[str, Array], Any]:
    folder.mkdir(exist_ok=True)
    monkeypatch.setattr(loop_module, "train", engine)

    def evaluate(values: Mapping[str, Array]) -> TrainingScore:
        return TrainingScore("top1", score(float(values["w"][0]) if values else 0.0))  # type: ignore[misc]

    composed = composed or compose(model(CLASSIFIER), [SoftLabels(output="y")])
    return train_loop(
        composed,
        samples or TrainingSamples(INPUTS, {"x": X}, {}, "id", Augmentation.parse([]), 0, 0),
        teacher,
        folder,
        TrainingSettings(**{"epochs": 6, **settings}),
        Loop(patience=patience, evaluate=evaluate if score is not None else None),
        weights=["w"],
        statistics=[],
        spared=[],
        initial={},
        progress=Silent(),
    )


def test_the_best_epoch_is_given_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    values, history = run(monkeypatch, tmp_path / "f", Engine(), lambda w: -abs(w - 4))
    assert values["w"].tolist() == [4, 4]
    assert (history.best, history.best_score.value, history.before.value) == (4, 0, -4)
    assert [score.value for score in history.scores] == [-3, -2, -1, 0, -1, -2]
    assert len(history.losses) == 6


def test_of_equal_epochs_the_last_is_taken_but_none_that_is_no_better_than_before(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert run(monkeypatch, tmp_path / "f", Engine(), lambda w: min(w, 2.0))[1].best == 6
    values, history = run(monkeypatch, tmp_path / "g", Engine(), lambda w: 1.0)
    assert (values, history.best) == ({}, 0)
    assert run(monkeypatch, tmp_path / "h", Engine(), lambda w: -w)[0] == {}


def test_without_a_score_the_last_epoch_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    values, history = run(monkeypatch, tmp_path / "f", Engine(), None)
    assert values["w"].tolist() == [6, 6]
    assert (history.best, history.best_score) == (6, None)


def test_patience(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    engine = Engine()
    values, history = run(monkeypatch, tmp_path / "f", engine, lambda w: -abs(w - 1), patience=2)
    assert values["w"].tolist() == [1, 1]
    assert len(engine.seen) == len(history.scores) == 3


def test_epochs_are_made_to_fit_the_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clock = [0.0]
    monkeypatch.setattr(loop_module.time, "monotonic", lambda: clock[0])
    engine = Engine(clock)
    _, history = run(monkeypatch, tmp_path / "f", engine, lambda w: w, epochs=50, minutes=7.5)
    assert len(engine.seen) == history.planned == 7
    assert not history.finished


def test_part_of_an_epoch_counts_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    values, history = run(monkeypatch, tmp_path / "f", Engine(late=True), lambda w: w)
    assert values["w"].tolist() == [1.5, 1.5]
    assert (history.best, history.finished) == (2, False)


def test_a_run_goes_on_with_its_history(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def score(w: float) -> float:
        return -abs(w - 2)

    def stop(w: float) -> float:
        if w == 3:
            raise KeyboardInterrupt
        return score(w)

    with pytest.raises(KeyboardInterrupt):
        run(monkeypatch, tmp_path / "f", Engine(), stop)
    asked: list[float] = []
    values, history = run(monkeypatch, tmp_path / "f", Engine(start=3), lambda w: asked.append(w) or score(w))  # type: ignore[func-returns-value]
    assert asked == [3, 4, 5, 6]
    assert values["w"].tolist() == [2, 2]
    assert [s.value for s in history.scores] == [-1, 0, -1, -2, -3, -4]
    assert history.resumed == 3


def test_a_fresh_run_forgets_what_lay_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run(monkeypatch, tmp_path / "f", Engine(), lambda w: 10 * w)
    values, history = run(monkeypatch, tmp_path / "f", Engine(), lambda w: -abs(w - 1), epochs=2)
    assert values["w"].tolist() == [1, 1]
    assert len(history.scores) == 2


def test_views_come_in_turns_and_the_teacher_sees_each_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cache: Path
) -> None:
    composed = compose(model(CLASSIFIER), [SoftLabels(output="y", teacher="logits")], teacher=model(WIDER))
    samples = TrainingSamples(INPUTS, {"x": X}, {}, "id", Augmentation.parse(["flip"]), 2, 0)
    engine, teacher = Engine(), _teacher()
    run(monkeypatch, tmp_path / "f", engine, None, samples=samples, teacher=teacher, composed=composed, epochs=5)
    xs = [feed["x"] for feed in engine.seen]
    assert [np.array_equal(x, xs[0]) for x in xs] == [True, False, True, False, True]
    said = [feed["teacher.logits"] for feed in engine.seen]
    for x, logits in zip(xs, said, strict=True):
        np.testing.assert_allclose(_logits(x), logits, rtol=1e-5)
    assert len(list((cache / "training" / "teachers").iterdir())) == 2
    monkeypatch.setattr("onnxedge.runtime.Session.run", lambda *_, **__: pytest.fail("the teacher is asked again"))
    run(monkeypatch, tmp_path / "g", Engine(), None, samples=samples, teacher=teacher, composed=composed, epochs=5)


def test_without_end_each_epoch_has_a_view_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    samples = TrainingSamples(INPUTS, {"x": X}, {}, "id", Augmentation.parse(["noise:0.1"]), 0, 0)
    engine = Engine()
    run(monkeypatch, tmp_path / "f", engine, None, samples=samples, epochs=4)
    assert len({feed["x"].tobytes() for feed in engine.seen}) == 4


def _teacher() -> Teacher:
    return Teacher(model(WIDER), ["logits"], ["x"], threads=1)


def _logits(x: Array) -> Array:
    from onnxedge.api import Session

    return Session(model(WIDER)).run({"x": np.asarray(x)})["logits"]


def test_a_teacher_of_a_fixed_batch_and_of_other_names(tmp_path: Path) -> None:
    fixed = model(WIDER.replace("[N, 3, H, W] x", "[3, 3, 4, 4] other").replace("(x, w)", "(other, w)"))
    teacher = Teacher(fixed, ["logits", "pooled"], ["x"], threads=1)
    said = teacher.says({"x": X}, "", tmp_path)
    np.testing.assert_allclose(said["logits"], _logits(X), rtol=1e-5)
    assert said["pooled"].shape == (20, 7, 1, 1)


def test_teachers_that_do_not_fit() -> None:
    with pytest.raises(UserError, match="has no value 'logit'; did you mean 'logits'"):
        Teacher(model(WIDER), ["logit"], ["x"], threads=1)
    with pytest.raises(UserError, match="takes 1 inputs, the student 2"):
        Teacher(model(WIDER), ["logits"], ["x", "z"], threads=1)


def test_a_folder_is_there_again_after_a_stop_and_gone_after_the_end() -> None:
    def stopped(file: str) -> None:
        with run_folder("key") as folder:
            (folder / file).write_text("1")
            raise KeyboardInterrupt

    for file in ("state.npz", "rows.npy"):
        with pytest.raises(KeyboardInterrupt):
            stopped(file)
    with run_folder("key") as folder:
        assert (folder / "state.npz").read_text() == "1"
        with run_folder("key") as other:  # the same run in another process
            assert other != folder
            assert not (other / "state.npz").exists()
    assert not folder.exists()
    assert not other.exists()


def test_a_folder_without_a_checkpoint_is_gone() -> None:
    def refused() -> None:
        with run_folder("key") as folder:
            (folder / "rows.npy").write_text("1")
            raise UserError("no")

    with pytest.raises(UserError):
        refused()
    assert list((cache_folder() / "training" / "runs").iterdir()) == []


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "TEACHERS_BYTES", 2500)
    for number in range(4):
        folder = store.teacher_folder(f"t{number}")
        assert folder is not None
        os.utime(folder, (number, number))
        (folder / "x").write_bytes(bytes(1000))
    store.teacher_folder("t3")
    assert sorted(f.name for f in (cache_folder() / "training" / "teachers").iterdir()) == ["t2", "t3"]


def test_without_a_cache_nothing_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ONNXEDGE_CACHE", str(tmp_path / "file"))
    assert store.teacher_folder("t") is None
    with run_folder("key") as folder:
        assert folder.is_dir()


def test_choice_by_labels_and_by_the_teacher() -> None:
    student, teacher = model(CLASSIFIER), model(CLASSIFIER, seed=5)
    logits = _run(teacher, X)
    labels = logits.argmax(1)

    def reference(feed: Mapping[str, Array]) -> Mapping[str, Array]:
        return {"y": _run(teacher, feed["x"])}

    with_labels = from_arrays(model_inputs(student), {"x": X}, labels)
    right = float((_run(student, X).argmax(1) == labels).mean())
    score = Choice(with_labels, metric="top1", reference=reference, threads=1).score(student)
    assert (score.name, score.value) == ("top1", pytest.approx(right))
    assert Choice(with_labels, metric="top1", reference=None, threads=1).score(teacher).value == 1
    without = from_arrays(model_inputs(student), {"x": X})
    score = Choice(without, metric="top1", reference=reference, threads=1).score(student)
    assert (score.name, score.value) == ("agreement", pytest.approx(right))
    assert not Choice(without, metric="top1", reference=None, threads=1).is_possible


def test_choice_by_targets_and_by_an_own_metric(tmp_path: Path) -> None:
    student = model("s (float[N, 7] x) => (float[N, 1] y) <float[7, 1] w> { y = MatMul(x, w) }")
    x = np.random.default_rng(0).standard_normal((40, 7)).astype(np.float32)
    data = from_arrays(model_inputs(student), {"x": x}, _run(student, x)[:, 0] + 2)
    tasks = [ScoredTask("y", _run(student, x) + 2, None)]
    score = Choice(data, metric="top1", reference=None, threads=1, tasks=tasks).score(student)
    assert (score.name, score.value) == ("-MSE", pytest.approx(-4, rel=1e-4))
    (tmp_path / "own.py").write_text("def largest(outputs, labels):\n    return outputs['y'].max() - labels.max()\n")
    own = Choice(data, metric=f"{tmp_path / 'own.py'}:largest", reference=None, threads=1)
    assert own.score(student).value == pytest.approx(-2, rel=1e-4)


def _run(net: ir.Model, x: Array) -> Array:
    from onnxedge.api import Session

    return Session(net).run({"x": np.asarray(x)})["y"]


@pytest.mark.parametrize(
    ("value", "second", "counts"),
    [(0.95, 3.0, False), (0.95, 6.0, True), (0.99, 3.0, True), (0.9, 5.0, False), (0.9, 6.0, True), (0.85, 9.0, False)],
)
def test_a_gain_that_may_be_chance_counts_where_the_teacher_comes_nearer(
    value: float, second: float, counts: bool
) -> None:
    before = TrainingScore("top1", 0.9, 5.0, 0.067)
    assert TrainingScore("top1", value, second, 0.05).improves_on(before) == counts


@pytest.mark.parametrize(
    ("value", "second", "is_best"),
    [
        (0.94, 9.0, True),
        (0.94, 6.0, False),
        (0.96, 6.0, False),
        (0.99, 6.0, True),
        (0.91, 9.0, False),
        (0.95, 7.0, True),
    ],
)
def test_of_epochs_that_are_alike_the_one_nearest_to_the_teacher_is_taken(
    value: float, second: float, is_best: bool
) -> None:
    history = History(before=TrainingScore("top1", 0.9, 5.0, 0.02))
    history.scores, history.best = [TrainingScore("top1", 0.95, 7.0, 0.02)], 1
    assert history.is_best(TrainingScore("top1", value, second, 0.02)) == is_best
