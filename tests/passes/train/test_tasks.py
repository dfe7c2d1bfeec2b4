"""Several heads: labels by the name of an output, weights that change, the score of all; and zeros that stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnxedge_passes.train.objective import find_heads
from students import CONVOLUTIONS, labelled, parsed, run, weights, written

import onnxedge
from onnxedge.api import Choice, InputSpec, OnnxEdgeError, Regression, ScoredTask, Session, compose, open_data
from onnxedge.training.engine import train
from onnxedge.training.settings import Settings

pytestmark = pytest.mark.usefixtures("untimed", "training_cache")
HEADS = """g (float[N, 6] x) => (float[N, 3] kind, float[N, 1] size)
    <float[6, 16] body, float[16, 3] head_kind, float[16, 1] head_size> {
        h = MatMul(x, body)
        r = Relu(h)
        kind = MatMul(r, head_kind)
        size = MatMul(r, head_size)
    }"""


def samples(path: Path, count: int, seed: int, **names: str) -> Path:
    """Write samples with what another model of two heads says of them, under its outputs' names or others."""
    session = Session(parsed(HEADS, seed=7))
    x = np.random.default_rng(seed).standard_normal((count, 6)).astype(np.float32)
    said = session.run({"x": x})
    arrays = {"x": x, names.get("kind", "kind"): said["kind"].argmax(1), names.get("size", "size"): said["size"][:, 0]}
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


@pytest.fixture
def task(tmp_path: Path) -> dict[str, Any]:
    return {
        "model": written(parsed(HEADS), tmp_path / "model.onnx"),
        "train": samples(tmp_path / "train.npz", 200, 1),
        "output": tmp_path / "out.onnx",
    }


def optimize(task: dict[str, Any], passes: str, **options: Any) -> Any:
    given = {"train": task["train"], "output": task["output"], "measure": False, "max_drop": 1.0, **options}
    return onnxedge.optimize(task["model"], passes, **given).report


def errors(path: Path, data: Path) -> tuple[float, float]:
    """Return the share of wrong classes, and the mean squared error of the sizes."""
    with np.load(data) as held:
        made = Session(path).run({"x": held["x"]})
        wrong = made["kind"].argmax(1) != held["kind"]
        return float(wrong.mean()), float(((made["size"][:, 0] - held["size"]) ** 2).mean())


def test_each_head_learns_from_the_array_of_its_name(task: dict[str, Any], tmp_path: Path) -> None:
    test = samples(tmp_path / "test.npz", 300, 2)
    before = errors(task["model"], test)
    report = optimize(task, "finetune(epochs=40,batch=20,lr=0.02)")
    (record,) = report.passes
    assert record.status == "applied", report.notes
    assert record.figures["curve"]["metric"] == "mean of 2 tasks"
    after = errors(task["output"], test)
    assert after[0] < 0.6 * before[0]
    assert after[1] < 0.6 * before[1]


@pytest.mark.parametrize(
    ("named", "moved", "still"), [("kind", "head_kind", "head_size"), ("size", "head_size", "head_kind")]
)
def test_only_the_tasks_that_are_named_count(task: dict[str, Any], named: str, moved: str, still: str) -> None:
    optimize(task, f"finetune(epochs=3,batch=20,lr=0.02,select=last,weight_decay=0,tasks=[{named}=0.5])")
    before, after = weights(task["model"]), weights(task["output"])
    assert not np.array_equal(before[moved], after[moved])
    np.testing.assert_array_equal(before[still], after[still])


def test_labels_without_a_name_go_to_the_head_that_has_none(task: dict[str, Any], tmp_path: Path) -> None:
    task["train"] = samples(tmp_path / "y.npz", 200, 1, kind="y")
    report = optimize(task, "finetune(epochs=2,lr=0.02)")
    assert report.passes[0].figures["curve"]["metric"] == "mean of 2 tasks"


def test_labels_without_a_name_win_where_every_head_has_its_own(task: dict[str, Any]) -> None:
    model = onnxedge.api.load(task["model"])
    onnxedge.api.infer_shapes(model)
    rows = np.arange(6) % 3
    labels = {"": rows, "kind": rows[::-1], "size": rows.astype("f4")}
    heads = find_heads(model, labels, "finetune", tasks={})
    assert [(head.output, head.column) for head in heads] == [("kind", "labels"), ("size", "labels.size")]
    np.testing.assert_array_equal(heads[0].labels, rows)


def test_a_teacher_counts_for_the_tasks_that_are_named(task: dict[str, Any], tmp_path: Path) -> None:
    teacher = written(parsed(HEADS, seed=7), tmp_path / "teacher.onnx")
    options = "epochs=30,batch=20,lr=0.02,alpha=0.2,alpha_end=1,select=last,weight_decay=0"
    optimize(task, f'distill(teacher="{teacher}",{options},tasks=[size=1:0.1])')
    before, after = weights(task["model"]), weights(task["output"])
    np.testing.assert_array_equal(before["head_kind"], after["head_kind"])
    assert errors(task["output"], task["train"])[1] < 0.6 * errors(task["model"], task["train"])[1]


def test_without_labels_the_model_before_is_no_measure_of_what_another_teacher_taught(
    task: dict[str, Any], tmp_path: Path
) -> None:
    teacher = written(parsed(HEADS, seed=7), tmp_path / "teacher.onnx")
    passes = f'distill(teacher="{teacher}",epochs=20,batch=20,lr=0.02)'
    report = optimize(task, passes, measure=True, max_drop=0.0)
    assert report.passes[0].status == "applied", report.notes
    assert report.fidelity.agreement is None or report.fidelity.agreement < 0.9
    assert any("no labelled --eval" in note.reason for note in report.notes)
    labelled_test = samples(tmp_path / "test.npz", 60, 2, kind="y")
    report = optimize(task, passes, measure=True, max_drop=1.0, eval=labelled_test)
    assert not any("no labelled --eval" in note.reason for note in report.notes)


@pytest.mark.parametrize(
    ("passes", "message"),
    [
        ("finetune(tasks=[colour])", "tasks: no float32 output 'colour'"),
        ("finetune(tasks=[kind=-1])", "the weight of 'kind' is not above 0"),
        ("finetune(tasks=[kind=0])", "the weight of 'kind' is not above 0"),
        ("finetune(tasks=[kind=much])", "'kind=much' is none of NAME"),
        ("finetune(tasks=[kind=1:])", "'kind=1:' is none of NAME"),
        ("distill(alpha_end=2)", "alpha_end=2 is not within 0..1"),
    ],
)
def test_wrong_tasks_are_said(task: dict[str, Any], passes: str, message: str) -> None:
    with pytest.raises(OnnxEdgeError, match=message):
        optimize(task, passes)
    assert not task["output"].exists()


def test_a_task_without_labels_is_said(task: dict[str, Any], tmp_path: Path) -> None:
    task["train"] = samples(tmp_path / "t.npz", 40, 1, size="weight")
    with pytest.raises(OnnxEdgeError, match="'size' has no labels; give an array of its name"):
        optimize(task, "finetune(tasks=[kind,size])")


def test_the_weights_of_terms_go_in_a_line(tmp_path: Path) -> None:
    student = parsed("g (float[N, 1] x) => (float[N, 1] y) <float[1, 1] w = {2}> { y = MatMul(x, w) }")
    losses = [Regression(output="y", targets="a", weight=(1, 0)), Regression(output="y", targets="b", weight=(0, 4))]
    data = {"x": np.ones((1, 1), "f4"), "a": np.full((1, 1), 5, "f4"), "b": np.full((1, 1), 4, "f4")}
    settings = Settings(epochs=5, batch=1, lr=0, weight_decay=0)
    done = train(compose(student, losses), data, tmp_path / "run", settings, weights=["w"], engine="ort")
    shares = np.linspace(0, 1, 5)
    np.testing.assert_allclose(done.losses, 9 * (1 - shares) + 4 * 4 * shares, rtol=1e-6)


def test_the_score_of_several_tasks_is_their_mean() -> None:
    model = parsed(HEADS)
    x = np.random.default_rng(0).standard_normal((50, 6)).astype(np.float32)
    said = Session(model).run({"x": x})
    kinds = said["kind"].argmax(1)
    kinds[:10] = (kinds[:10] + 1) % 3
    kinds[10:20] = -1  # no label
    sizes = said["size"] + np.float32(0.5)
    tasks = [ScoredTask("kind", kinds, 1), ScoredTask("size", sizes, None)]
    data = open_data({"x": x}, Session(model).inputs)
    score = Choice(data, metric="top1", reference=None, threads=1, tasks=tasks).score(model)
    assert score.name == "mean of 2 tasks"
    assert score.value == pytest.approx((30 / 40 + 1 - 0.25 / sizes.var()) / 2, rel=1e-5)


def test_columns_of_data(tmp_path: Path) -> None:
    inputs = [InputSpec("x", "float32", ("N", 2))]
    x, age = np.zeros((9, 2), np.float32), np.arange(9)
    given = {"x": x, "age": age, "name": np.array(list("abcdefghi")), "y": age + 1}
    data = open_data(given, inputs)
    np.testing.assert_array_equal(data.column("age"), age)
    np.testing.assert_array_equal(data.labels(), age + 1)
    assert [data.column(name) for name in ("x", "y", "name", "nothing")] == [None] * 4
    fit, held = data.split(0.3)
    np.testing.assert_array_equal(np.sort(np.concatenate([fit.column("age"), held.column("age")])), age)  # type: ignore[list-item]
    (tmp_path / "d").mkdir()
    for index in range(3):
        rows = slice(3 * index, 3 * index + 3)
        np.savez(tmp_path / "d" / f"{index}.npz", x=x[rows], age=age[rows])
    np.testing.assert_array_equal(open_data(tmp_path / "d", inputs).slice(2, 7).column("age"), age[2:7])
    with pytest.raises(OnnxEdgeError, match="4 labels in 'age' for 9 samples"):
        open_data({"x": x, "age": age[:4]}, inputs).column("age")


def test_zeros_stay_while_a_sparse_model_is_trained(engine: str, tmp_path: Path) -> None:
    teacher = parsed(CONVOLUTIONS)
    task = {
        "model": written(teacher, tmp_path / "model.onnx"),
        "train": labelled(teacher, tmp_path / "train.npz", 256, labels=False),
        "output": tmp_path / "out.onnx",
    }
    sparse = "sparsify(ratio=0.7,method=magnitude,repair=none,min_elements=1,min_agreement=0,min_sqnr_db=-99)"
    given = {"calib": task["train"], "seed": 3}
    optimize(task, sparse, **given)
    zeros = {name: array == 0 for name, array in weights(task["output"]).items() if array.ndim > 1}
    before = run(task["output"], np.load(task["train"])["x"])
    assert len(zeros) == 3
    assert all(mask.mean() > 0.4 for mask in zeros.values())
    report = optimize(task, f"{sparse},distill(epochs=8,batch=32,lr=0.01,engine={engine})", **given)
    assert report.passes[1].status == "applied", report.notes
    assert any(f"the zeros of {len(zeros)} sparse weights stay" in note.reason for note in report.notes)
    after = weights(task["output"])
    assert all((after[name][mask] == 0).all() for name, mask in zeros.items())
    x = np.load(task["train"])["x"]
    wanted = run(task["model"], x)
    assert ((run(task["output"], x) - wanted) ** 2).mean() < 0.5 * ((before - wanted) ** 2).mean()


def test_zeros_may_be_trained(tmp_path: Path) -> None:
    teacher = parsed(CONVOLUTIONS)
    task = {
        "model": written(teacher, tmp_path / "model.onnx"),
        "train": labelled(teacher, tmp_path / "train.npz", 128),
        "output": tmp_path / "out.onnx",
    }
    sparse = "sparsify(ratio=0.7,method=magnitude,repair=none,min_elements=1,min_agreement=0,min_sqnr_db=-99)"
    optimize(task, f"{sparse},distill(epochs=2,lr=0.01,zeros=train,select=last)", calib=task["train"])
    assert all((array == 0).mean() < 0.1 for array in weights(task["output"]).values())
