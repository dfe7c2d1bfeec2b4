"""Training in a pipeline: on labels, never to a worse model, by the original graph; what it takes as labels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnxedge_passes.train.batch import free_batch
from onnxedge_passes.train.finetune import Finetune
from onnxedge_passes.train.normalize import folded, normalized_outputs, restore_normalizations
from onnxedge_passes.train.objective import find_end, label_head, teacher_losses
from students import CONVOLUTIONS, labelled, parsed, run, weights, written

import onnxedge
from onnxedge.api import (
    Array,
    Context,
    HardLabels,
    Loss,
    OnnxEdgeError,
    Regression,
    Session,
    SoftLabels,
    UserError,
    forked,
    infer_shapes,
    refresh_scopes,
)
from onnxedge.target import load_packaged_target
from onnxedge.training import loop

pytestmark = pytest.mark.usefixtures("untimed", "training_cache")


@pytest.fixture
def task(tmp_path: Path) -> dict[str, Any]:
    """Return a teacher, a student with other weights in its head, and data that the teacher labelled."""
    teacher = parsed(CONVOLUTIONS)
    student = parsed(CONVOLUTIONS)
    head = student.graph.initializers["head"]
    assert head.const_value is not None
    noise = np.random.default_rng(9).standard_normal(head.const_value.shape.numpy()).astype(np.float32)
    head.const_value = ir.Tensor(head.const_value.numpy() + noise, name="head")
    return {
        "teacher": written(teacher, tmp_path / "teacher.onnx"),
        "model": written(student, tmp_path / "student.onnx"),
        "train": labelled(teacher, tmp_path / "train.npz", 256),
        "eval": labelled(teacher, tmp_path / "eval.npz", 120, 2),
        "output": tmp_path / "out.onnx",
    }


def optimize(task: Mapping[str, Any], passes: str, **options: Any) -> Any:
    given = {key: task[key] for key in ("train", "eval", "output")}
    return onnxedge.optimize(task["model"], passes, **{**given, "max_drop": 1.0, **options})


def test_labels_are_learned_and_the_graph_stays(engine: str, task: dict[str, Any]) -> None:
    report = optimize(task, f"finetune(epochs=6,batch=32,lr=0.02,engine={engine})").report
    (record,) = report.passes
    assert record.status == "applied", record
    assert report.fidelity.after > report.fidelity.before + 0.1
    assert report.fidelity.samples == 60
    assert record.figures["chosen_by"] == "60 samples of eval.npz that do not measure the result"
    curve = record.figures["curve"]
    assert len(curve["losses"]) == 6
    assert len(curve["values"]) == 7
    assert curve["losses"][-1] < curve["losses"][0]
    before, after = (onnx.load(task[key]) for key in ("model", "output"))
    assert [node.SerializeToString() for node in before.graph.node] == [n.SerializeToString() for n in after.graph.node]
    first, second = weights(task["model"]), weights(task["output"])
    assert {n: a.shape for n, a in first.items()} == {n: a.shape for n, a in second.items()}
    assert not np.array_equal(first["head"], second["head"])
    assert not np.array_equal(first["m1"], second["m1"]), "running statistics follow"


def test_a_run_that_is_stopped_goes_on_to_the_same_bytes(
    task: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = "finetune(epochs=4,batch=32,lr=0.02,augment=[flip],views=3,engine=auto)"
    optimize(task, passes, output=tmp_path / "whole.onnx")
    listen = loop._Run.listen

    def stop(self: Any, line: Mapping[str, Any]) -> None:
        listen(self, line)
        if line["kind"] == "epoch" and line["epoch"] == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop._Run, "listen", stop)
        with pytest.raises(KeyboardInterrupt):
            optimize(task, passes)
    assert not task["output"].exists()
    report = optimize(task, passes).report
    assert report.passes[0].figures["epochs_resumed"] in (1, 2)
    assert task["output"].read_bytes() == (tmp_path / "whole.onnx").read_bytes()
    assert list((tmp_path / "cache" / "training" / "runs").iterdir()) == []


def test_training_that_makes_it_worse_is_given_up(task: dict[str, Any]) -> None:
    task["model"] = task["teacher"]
    for key in ("train", "eval"):  # all right as it is
        x = np.load(task[key])["x"]
        task[key] = {"x": x, "y": run(task["model"], x).argmax(1)}
    report = optimize(task, "finetune(epochs=2,batch=32,lr=0.3,optimizer=sgd)").report
    assert report.passes[0].status == "no change"
    assert any("training made it no better: top1 100.00 % before" in note.reason for note in report.notes)
    assert weights(task["output"])["head"].tobytes() == weights(task["model"])["head"].tobytes()


def test_numbers_are_learned_with_a_model_of_a_fixed_batch(tmp_path: Path) -> None:
    text = "g (float[1, 5] x) => (float[1, 2] y) <float[5, 2] w, float[2] b> { m = MatMul(x, w) y = Add(m, b) }"
    wanted, model = parsed(text, seed=1), parsed(text, seed=2)
    x = np.random.default_rng(0).standard_normal((200, 5)).astype(np.float32)
    y = np.concatenate([run(wanted, row[None]) for row in x])
    report = onnxedge.optimize(
        written(model, tmp_path / "m.onnx"),
        "finetune(epochs=15,lr=0.1,batch=32,weight_decay=0)",
        train={"x": x[:150], "y": y[:150]},
        eval={"x": x[150:], "y": y[150:]},
        output=tmp_path / "o.onnx",
        max_drop=1,
    ).report
    assert report.passes[0].status == "applied", report.notes
    values = report.passes[0].figures["curve"]["values"]
    assert report.passes[0].figures["curve"]["metric"] == "-MSE"
    assert 0 > values[-1] > 0.05 * values[0]
    assert [i.shape for i in Session(tmp_path / "o.onnx").inputs] == [(1, 5)]


def test_nothing_with_a_gradient_is_said(tmp_path: Path) -> None:
    text = """g (float[N, 6, 3] x) => (float[N, 4] y)
        <float[1, 32, 3] w, float[1, 32, 8] r, int64[1] last = {-1}, int64[2] shape = {-1, 48}> {
            t = Transpose<perm=[1, 0, 2]>(x)
            s, h, c = LSTM<hidden_size=8>(t, w, r)
            y0 = Transpose<perm=[2, 1, 0, 3]>(s)
            f = Reshape(y0, shape)
            y = Slice(f, zero, four, one)
        }""".replace(
        "int64[2] shape = {-1, 48}",
        "int64[2] shape = {-1, 48}, int64[1] zero = {0}, int64[1] four = {4}, int64[1] one = {1}",
    )
    model = written(parsed(text), tmp_path / "lstm.onnx")
    x = np.random.default_rng(0).standard_normal((24, 6, 3)).astype(np.float32)
    report = onnxedge.optimize(
        model, "finetune(epochs=1)", train={"x": x, "y": np.arange(24) % 4}, output=tmp_path / "o.onnx", max_drop=1
    ).report
    assert report.passes[0].status == "no change"
    reasons = {note.reason for note in report.notes}
    assert any("LSTM has no gradient: weights before it are not trained" in reason for reason in reasons), reasons
    assert any("left alone: nothing can be trained" in reason for reason in reasons), reasons


def test_frozen_weights_and_what_takes_a_spectrum_stay(tmp_path: Path) -> None:
    text = """g (float[N, 6, 8] x) => (float[N, 6, 4] y) <float[8, 5] basis, float[5, 5] w, float[5, 4] head> {
        a = MatMul(x, basis) b = Mul(a, a) c = Sqrt(b) d = MatMul(c, w) e = Relu(d) y = MatMul(e, head) }"""
    model = written(parsed(text), tmp_path / "m.onnx")
    x = np.random.default_rng(0).standard_normal((64, 6, 8)).astype(np.float32)
    report = onnxedge.optimize(
        model,
        'finetune(epochs=1,lr=0.01,loss=values,select=last,freeze=[hea*,"nothing*"])',
        train={"x": x, "y": run(model, x) + 1},
        output=tmp_path / "o.onnx",
        measure=False,
    ).report
    reasons = {note.reason for note in report.notes}
    assert "freeze: no weight is called 'nothing*'" in reasons
    assert "1 constants that take a spectrum of the input are not trained" in reasons
    first, second = weights(model), weights(tmp_path / "o.onnx")
    assert [name for name in first if not np.array_equal(first[name], second[name])] == ["w"]


# what labels are for


def shaped(text: str) -> ir.Model:
    model = parsed(text)
    refresh_scopes(model)
    infer_shapes(model)
    return model


LOGITS = "g (float[N, 5] x) => (float[N, 5] y) { y = Identity(x) }"
SOFTMAX = "g (float[N, 5] x) => (float[N, 5] y) { s = Neg(x) p = Softmax(s) y = Identity(p) }"
MAP = "g (float[N, 5, 4, 3] x) => (float[N, 5, 4, 3] y) { y = Neg(x) }"
TOKENS = "g (float[N, 7, 5] x) => (float[N, 7, 5] y) { y = Neg(x) }"
ONE = "g (float[N, 1] x) => (float[N, 1] y) { y = Neg(x) }"


@pytest.mark.parametrize(
    ("text", "labels", "kind", "output", "read"),
    [
        (LOGITS, np.array([0, 4, 2]), HardLabels, "y", (3,)),
        (LOGITS, np.array([[0], [4]]), HardLabels, "y", (2,)),
        (LOGITS, np.eye(5, dtype=np.int64), HardLabels, "y", (5,)),
        (LOGITS, np.zeros((2, 5)), Regression, "y", (2, 5)),
        (SOFTMAX, np.array([0, 4], np.uint8), HardLabels, "s", (2,)),
        (MAP, np.zeros((2, 4, 3), np.int64), HardLabels, "y", (2, 4, 3)),
        (MAP, np.zeros((2, 1, 4, 3), np.int64), HardLabels, "y", (2, 4, 3)),
        (TOKENS, np.full((2, 7), -100), HardLabels, "y", None),
        (TOKENS, np.array([[0, 1, 2, 3, 4, -100, -100]]), HardLabels, "y", (1, 7)),
        (ONE, np.array([0.5, 2]), Regression, "y", (2, 1)),
    ],
)
def test_labels(text: str, labels: Array, kind: type[Loss], output: str, read: tuple[int, ...] | None) -> None:
    if read is None:
        with pytest.raises(UserError, match="no label is 0 or more"):
            label_head(shaped(text), labels, "finetune")
        return
    head = label_head(shaped(text), labels, "finetune")
    assert (type(head.loss), head.loss.output) == (kind, output)
    assert head.labels.shape == read
    assert head.labels.dtype == (np.int64 if kind is HardLabels else np.float32)


@pytest.mark.parametrize(
    ("text", "labels", "options", "message"),
    [
        (LOGITS, np.array([0, 5]), {}, "label 5 is no class of output 'y', which has 5"),
        (LOGITS, np.zeros((2, 3), np.int64), {}, r"labels int64\[S,3\] fit no output"),
        (ONE, np.array([0, 1]), {}, "fit no output"),
        (LOGITS, np.array([0.5, 1]), {"kind": "classes"}, "no whole numbers"),
        (LOGITS, np.array([0, 1]), {"output": "z"}, "no float32 output 'z'"),
        (LOGITS.replace("float", "double"), np.array([0, 1]), {}, "no output of float32"),
    ],
)
def test_labels_that_do_not_fit(text: str, labels: Array, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        label_head(shaped(text), labels, "finetune", **options)


def test_losses_against_a_teacher() -> None:
    student, teacher = shaped(SOFTMAX), shaped(SOFTMAX.replace("s =", "t =").replace("(s)", "(t)"))
    said = {"y": np.full((4, 5), 0.2, np.float32)}
    how: dict[str, Any] = {"temperature": 4, "weight": (0.9, 0.5), "who": "distill", "tasks": {}}
    (loss,) = teacher_losses(student, teacher, said, **how)
    assert isinstance(loss, SoftLabels)
    assert (loss.output, loss.teacher, loss.temperature, loss.weight) == ("s", "t", 4, (0.9, 0.5))
    (loss,) = teacher_losses(shaped(LOGITS), shaped(LOGITS), said, **how)
    assert (loss.output, type(loss)) == ("y", SoftLabels)
    boxes = {"y": np.random.default_rng(0).standard_normal((6, 5, 4, 3)).astype(np.float32) * 3}
    (loss,) = teacher_losses(shaped(MAP), shaped(MAP), boxes, **how)
    assert isinstance(loss, Regression)
    assert loss.weight == pytest.approx((0.9 / boxes["y"].var(), 0.5 / boxes["y"].var()))
    two = shaped("g (float[N, 5] x) => (float[N, 5] y, float[N, 5] z) { y = Neg(x) z = Abs(x) }")
    with pytest.raises(UserError, match="the student has 1 outputs of float32, the teacher 2"):
        teacher_losses(student, two, said, **how)


def test_a_softmax_that_is_not_the_end_is_no_end() -> None:
    text = "g (float[N, 5] x) => (float[N, 5] y) { p = Softmax(x) y = Neg(p) }"
    assert find_end(shaped(text).graph.outputs[0]).value == "y"


# the batch


@pytest.mark.parametrize(
    ("text", "is_free"),
    [
        ("g (float[1, 4] x) => (float[1, 4] y) { y = Neg(x) }", True),
        ("g (float[1, 4] x) => (float[1, 4] y) <int64[2] s = {1, 4}> { z = Neg(x) y = Reshape(z, s) }", True),
        (
            "g (float[1, 4] x) => (float[1, 4] y) <int64[2] s = {4, 1}> {"
            " t = Reshape(x, s) r = Transpose<perm = [1, 0]>(t) y = Neg(r) }",
            False,
        ),
        ("g (float[2, 4] x) => (float[2, 4] y) <int64[1] a = {0}> { m = ReduceSum(x, a) y = Add(x, m) }", False),
        ("g (float[N, 4] x) => (float[N, 4] y) { y = Neg(x) }", True),
    ],
)
def test_a_batch_is_freed_where_that_changes_nothing(text: str, is_free: bool) -> None:
    model = shaped(text)
    before = str(model.graph.inputs[0].shape)
    rows = {"x": np.random.default_rng(0).standard_normal((9, 4)).astype(np.float32)}
    assert free_batch(model, rows, 1) == is_free
    if is_free:
        np.testing.assert_array_equal(run(model, rows["x"]), -rows["x"])
    else:
        assert str(model.graph.inputs[0].shape) == before


def test_a_token_is_repeated_for_each_sample_of_a_batch() -> None:
    model = shaped(
        "g (float[1, 8] x) => (float[1, 4] y) <float[1, 1, 4] token = {1, 2, 3, 4}, int64[3] places = {1, 2, 4},"
        " int64[3] wide = {1, 3, 4}, int64[1] axis = {1}> {"
        " a = Reshape(x, places) b = Concat<axis=1>(token, a) c = Expand(b, wide) y = ReduceSum<keepdims=0>(c, axis) }"
    )
    x = np.random.default_rng(0).standard_normal((9, 8)).astype(np.float32)
    assert free_batch(model, {"x": x}, 1)
    sums = x.reshape(9, 2, 4).sum(1)
    np.testing.assert_allclose(run(model, x), sums + np.arange(1, 5), rtol=1e-5)


# normalizations


def test_normalizations_come_back_and_change_nothing() -> None:
    original = parsed(CONVOLUTIONS)
    student = onnxedge.optimize(original, "fold-batchnorm", verify="off", measure=False).model
    assert not any(node.op_type == "BatchNormalization" for node in student.graph)
    fork, _ = forked(student)
    refresh_scopes(fork)
    infer_shapes(fork)
    x = np.random.default_rng(3).standard_normal((40, 3, 8, 8)).astype(np.float32)
    context = Context(load_packaged_target("onnxedge.targets", "ort-cpu"), None, original=original)  # type: ignore[arg-type]
    restored = restore_normalizations(fork.graph, fork, normalized_outputs(original), [{"x": x}], context)
    assert [entry.weight for entry in restored] == [
        conv.inputs[1].name for conv in student.graph if conv.op_type == "Conv" and conv.inputs[1] is not None
    ]
    np.testing.assert_allclose(run(fork, x), run(student, x), rtol=1e-4, atol=1e-5)
    held = {name: t.const_value.numpy() for name, t in fork.graph.initializers.items() if t.const_value is not None}
    moved = {name: array * 1.25 + 0.125 for name, array in held.items()}
    for name, value in fork.graph.initializers.items():
        value.const_value = ir.Tensor(moved[name].astype(value.dtype.numpy()), name=name)  # type: ignore[union-attr]
    put = folded({name: moved[name].astype(np.float32) for name in held}, restored, held)
    for name, value in student.graph.initializers.items():
        value.const_value = ir.Tensor(put[name].astype(value.dtype.numpy()), name=name)  # type: ignore[union-attr]
    np.testing.assert_allclose(run(student, x), run(fork, x), rtol=1e-4, atol=1e-4)


def test_normalizations_stay_away_where_they_were_not() -> None:
    plain = parsed(CONVOLUTIONS)
    student = onnxedge.optimize(plain, "fold-batchnorm", verify="off", measure=False).model
    context = Context(load_packaged_target("onnxedge.targets", "ort-cpu"), None, original=student)  # type: ignore[arg-type]
    assert normalized_outputs(student) == set()
    x = np.zeros((2, 3, 8, 8), np.float32)
    live = parsed(CONVOLUTIONS)  # those that are there are not doubled
    assert restore_normalizations(live.graph, live, normalized_outputs(plain), [{"x": x}], context) == []
    shared = parsed(
        "g (float[N, 2, 4, 4] x) => (float[N, 2, 4, 4] y) <float[2, 2, 1, 1] w, float[2] b> {"
        " a = Conv(x, w, b) r = Relu(a) y = Conv(r, w, b) }"
    )
    assert restore_normalizations(shared.graph, shared, {"a"}, [{"x": x[:, :2, :4, :4]}], context) == []


def test_without_a_learning_rate_only_statistics_move(task: dict[str, Any], tmp_path: Path) -> None:
    passes = "fold-batchnorm,finetune(epochs=3,batch=32,lr=0,select=last)"
    report = optimize(task, passes).report
    assert report.passes[1].figures["normalizations_restored"] == 2
    x = np.random.default_rng(5).standard_normal((50, 3, 8, 8)).astype(np.float32)
    before, after = run(task["model"], x), run(task["output"], x)
    assert 0 < np.abs(after - before).max() < 0.1 * np.abs(before - before.mean(0)).max()


# what is asked for


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("epochs=0", "epochs=0 is not within"),
        ("lr=-1", "lr=-1 is not within"),
        ("held_out=1", "held_out=1 is not a share"),
        ("views=-1", "views=-1 must be 0 or more"),
        ("smoothing=2", "smoothing=2 is not within"),
        ("augment=[flop]", "no step 'flop'"),
        ("augment=[mix:0.5]", "mix needs a teacher"),
        ("output=nothing", "no float32 output 'nothing'"),
    ],
)
def test_wrong_options_are_said(
    task: dict[str, Any], option: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxedge_passes.train.training.choose_engine", lambda _: None)
    with pytest.raises(OnnxEdgeError, match=message):
        optimize(task, f"finetune({option})")


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (None, "finetune: needs samples to train on; give --train DATA"),
        ({"x": np.zeros((4, 3, 8, 8), np.float32)}, "finetune: needs labels, data has none; give an array `y`"),
        ({"x": np.zeros((4, 3, 9, 8), np.float32), "y": np.zeros(4)}, "input 'x': needs float32"),
        ({"x": np.zeros((4, 3, 8, 8), np.float32), "y": np.full(4, 7)}, "label 7 is no class of output 'y'"),
        ({"x": np.zeros((4, 3, 8, 8), np.float32), "y": np.zeros(3)}, "3 labels in 'y' for 4 samples"),
    ],
)
def test_data_that_does_not_fit(
    task: dict[str, Any], train: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxedge_passes.train.training.choose_engine", lambda _: None)
    with pytest.raises(UserError, match=message):
        optimize(task, "finetune", train=train)
    assert not task["output"].exists()


def test_without_an_engine_one_line_says_what_to_do(
    task: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONNXEDGE_TRAINING", str(tmp_path))
    with pytest.raises(UserError, match="run `onnxedge training install`"):
        optimize(task, "finetune(engine=ort-training)")


def test_samples_must_lie_along_axis_0(tmp_path: Path) -> None:
    text = "g (float[N, 4] x, float[2, N, 3] h) => (float[N, 4] y) { y = Neg(x) }"
    data = {"x": np.zeros((6, 4), np.float32), "h": np.zeros((2, 6, 3), np.float32), "y": np.zeros(6, np.int64)}
    model = written(parsed(text), tmp_path / "m.onnx")
    with pytest.raises(UserError, match="training needs samples along axis 0 of each input"):
        onnxedge.optimize(model, "finetune", train=data, calib=data)


def test_defaults_are_the_settings(task: dict[str, Any]) -> None:
    context = Context(load_packaged_target("onnxedge.targets", "ort-cpu"), None, original=parsed(LOGITS), threads=2)  # type: ignore[arg-type]
    settings = Finetune(minutes=3).settings(context)
    assert (settings.threads, settings.minutes, settings.epochs, settings.optimizer) == (2, 3, 200, "adamw")
    assert Finetune().settings(context).epochs == 30
    assert Finetune(minutes=3, epochs=7).settings(context).epochs == 7
    shorter = Finetune(epochs=9, minutes=4).shortened(0.25)
    assert isinstance(shorter, Finetune)
    assert (shorter.epochs, shorter.minutes) == (2, 1)


def test_an_original_that_cannot_be_asked_gives_no_usual_steps(tmp_path: Path) -> None:
    text = CONVOLUTIONS.replace("8, 8] x", "16, 16] x").replace("y)", "y, float most)", 1)
    model = parsed(text.replace("y = Gemm(f, head, bias)", "y = Gemm(f, head, bias) most = ReduceMax<keepdims=0>(y)"))
    train = labelled(model, tmp_path / "train.npz", 64)
    report = onnxedge.optimize(model, "finetune(epochs=1,select=last)", train=train, measure=False).report
    assert any("augment=auto: nothing, for the original cannot be asked" in note.reason for note in report.notes)
