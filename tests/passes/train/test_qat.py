"""Training through the rounding: weights end on their grids, and answer better there than without training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from students import CONVOLUTIONS, labelled, parsed, run, written
from students import weights as weights_of

import onnxedge
from onnxedge.api import Array, UserError

pytestmark = pytest.mark.usefixtures("untimed", "training_cache")

PRODUCTS = """g (float[N, 48] x) => (float[N, 4] y)
    <float[48, 96] first, float[96] first_bias, float[96, 64] second, float[64] second_bias, float[64, 4] head> {
        a = MatMul(x, first) a1 = Add(a, first_bias) a2 = Relu(a1)
        c = MatMul(a2, second) c1 = Add(c, second_bias) c2 = Relu(c1)
        y = MatMul(c2, head)
    }"""


def task_of(text: str, folder: Path) -> dict[str, Any]:
    teacher = parsed(text)
    return {
        "model": written(teacher, folder / "model.onnx"),
        "train": labelled(teacher, folder / "train.npz", 256),
        "calib": labelled(teacher, folder / "calib.npz", 64, 3, labels=False),
        "output": folder / "out.onnx",
    }


def optimize(task: dict[str, Any], passes: str, **options: Any) -> Any:
    given = {key: task[key] for key in ("train", "calib")}
    return onnxedge.optimize(
        task["model"], passes, output=task["output"], **{**given, "measure": False, **options}
    ).report


def levels(array: Array) -> int:
    """Return the number of different values of an array, up to rounding."""
    return len(np.unique(np.round(array.astype(np.float64) / np.abs(array).max(), 5)))


def error(task: dict[str, Any], x: Array) -> float:
    """Return how far the answers are from the teacher's; what is added to all classes alike does not count."""
    wanted, found = (run(task[key], x) for key in ("model", "output"))
    wanted, found = (scores - scores.mean(1, keepdims=True) for scores in (wanted, found))
    return float(np.square(found - wanted).mean() / wanted.var())


def on_channel_grids(array: Array) -> bool:
    return all(levels(channel) <= 16 for channel in array)


def test_four_bits_of_convolutions(tmp_path: Path) -> None:
    task = task_of(CONVOLUTIONS, tmp_path)
    options = "bits=4,min_elements=200,lr=1e-3,batch=32,alpha=1"
    report = optimize(task, f"qat({options},epochs=8,select=last)")
    record = report.passes[0]
    assert record.status == "applied", report.notes
    assert (record.figures["weights_rounded"], record.figures["activations_rounded"]) == (2, 0)
    losses = record.figures["curve"]["losses"]
    assert losses[-1] < losses[0]
    made = weights_of(task["output"])
    assert not any(name in made for name in ("s1", "m1"))  # folded
    kernels = [array for array in made.values() if array.ndim == 4]
    assert len(kernels) == 2
    assert all(map(on_channel_grids, kernels))


def test_where_training_does_not_help_weights_are_rounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = task_of(CONVOLUTIONS, tmp_path)
    passes = "qat(bits=4,min_elements=200,epochs=1,batch=64,lr=1e-7,select=held-out)"
    monkeypatch.setattr("onnxedge.training.choice.Score.beats", lambda *_: False)
    report = optimize(task, passes)
    assert report.passes[0].status == "applied", report.notes
    assert any("without training" in note.reason for note in report.notes)
    assert all(on_channel_grids(array) for array in weights_of(task["output"]).values() if array.ndim == 4)
    report = optimize(task, "qat(epochs=1,batch=64,lr=1e-7,select=held-out)", target="generic")
    assert report.passes[0].status == "no change"


def test_int4_reads_the_trained_grid(tmp_path: Path) -> None:
    """On a target whose kernels take 4 bits: rounding again changes nothing."""
    task = task_of(PRODUCTS, tmp_path)
    x = np.load(task["train"])["x"]
    qat = "convert(opset=21),qat(bits=4,epochs=8,lr=1e-3,batch=32,select=last,alpha=1,block_size=32)"
    report = optimize(task, qat, target="generic")
    assert report.passes[1].figures["weights_rounded"] == 2, report.notes
    trained, error_of_trained = run(task["output"], x), error(task, x)
    for method in ("rtn", "hqq"):
        report = optimize(task, f"{qat},int4(block_size=32,method={method})", target="generic")
        assert [record.status for record in report.passes] == ["applied"] * 3, report.notes
        assert report.passes[2].figures["weights"] == 2
        assert np.square(run(task["output"], x) - trained).mean() < 1e-4 * trained.var()
    plain = optimize(task, "convert(opset=21),int4(block_size=32,method=rtn)", target="generic")
    assert plain.passes[1].figures["weights"] == 2
    assert error_of_trained < 0.6 * error(task, x)


def test_eight_bits_behind_which_int8_finds_the_grid(tmp_path: Path) -> None:
    task = task_of(CONVOLUTIONS, tmp_path)
    x = np.load(task["train"])["x"]
    options = "epochs=2,lr=3e-4,batch=64,patience=0,select=last"
    report = optimize(task, f"qat({options})", target="generic")
    record = report.passes[0]
    assert record.status == "applied", report.notes
    assert record.figures["weights_rounded"] == 3
    assert record.figures["activations_rounded"] >= 3
    trained = [array for array in weights_of(task["output"]).values() if array.ndim == 4]
    assert len(trained) == 2
    int8 = "int8(mode=static,timing=false,rounding=nearest,equalize=off,min_sqnr=0)"
    floats = run(task["output"], x)
    report = optimize(task, f"qat({options}),{int8}", target="generic")
    assert report.passes[1].figures["integer_nodes"] > 0
    graph = onnx.load(task["output"]).graph
    held = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    pairs = [
        (held[node.input[0]], held[node.input[1]])
        for node in graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in held and held[node.input[0]].ndim == 4
    ]
    restored = [codes.astype(np.float32) * scale.reshape(-1, 1, 1, 1) for codes, scale in pairs]
    for array in trained:
        found = next(other for other in restored if other.shape == array.shape)
        np.testing.assert_allclose(found, array, rtol=1e-4, atol=1e-6)
    assert np.square(run(task["output"], x) - floats).mean() < 0.02 * floats.var()


def test_activations_beside_four_bits(tmp_path: Path) -> None:
    task = task_of(CONVOLUTIONS, tmp_path)
    options = "bits=4,activations=int8,min_elements=200,epochs=1,batch=64"
    figures = optimize(task, f"qat({options})", target="generic").passes[0].figures
    assert figures["activations_rounded"] >= 1
    assert figures["weights_rounded"] >= 2


def test_transforms_of_a_signal_are_not_trained(tmp_path: Path) -> None:
    text = """g (float[N, 32] x) => (float[N, 4] y)
        <float[32, 24] cosines, float[24, 16] bands, float[16, 24] first, float[24, 4] head,
         float floor = {0.001}> {
            a = MatMul(x, cosines) b = Mul(a, a) c = MatMul(b, bands) d = Max(c, floor) e = Log(d)
            f = MatMul(e, first) h = Relu(f) y = MatMul(h, head)
        }"""
    task = task_of(text, tmp_path)
    options = "bits=4,min_elements=90,epochs=1,batch=64,select=last,lr=1e-3"
    report = optimize(task, f"qat({options})")
    assert report.passes[0].status == "applied", report.notes
    assert report.passes[0].figures["weights_rounded"] == 2
    before, after = weights_of(task["model"]), weights_of(task["output"])
    for name in ("cosines", "bands"):
        np.testing.assert_array_equal(before[name], after[name])
    assert not np.isclose(before["first"], after["first"]).all()
    assert any("take a spectrum" in note.reason for note in report.notes)


def test_nothing_to_round(tmp_path: Path) -> None:
    task = task_of(CONVOLUTIONS, tmp_path)
    report = optimize(task, "qat(bits=4,min_elements=100000)")
    assert report.passes[0].status == "no change"
    assert any("no weight would be rounded to 4 bits" in note.reason for note in report.notes)


def test_a_quantized_model_stays(tmp_path: Path) -> None:
    task = task_of(CONVOLUTIONS, tmp_path)
    report = optimize(task, "int8(mode=static,timing=false,min_sqnr=0),qat(epochs=1)", target="generic")
    assert [record.status for record in report.passes] == ["applied", "no change"]
    assert any("quantized activations already" in note.reason for note in report.notes)


@pytest.mark.parametrize(
    ("passes", "options", "match"),
    [
        ("qat(bits=5)", {}, "bits=5 is neither 8 nor 4"),
        ("qat(batchnorm=live)", {}, "grids are those of folded weights"),
        ("qat(block_size=24)", {}, "block_size=24 is none of"),
        ("qat(min_elements=0)", {}, "min_elements=0 must be"),
        ("qat(samples=0)", {}, "samples=0 must be"),
        ("qat", {"target": "ort-cuda"}, "has no integer rules"),
        ("qat(alpha=3)", {}, "alpha=3 is not within"),
        ("qat", {"train": None, "calib": None}, "needs samples to train on"),
    ],
)
def test_options(tmp_path: Path, passes: str, options: dict[str, Any], match: str) -> None:
    task = task_of(CONVOLUTIONS, tmp_path)
    with pytest.raises(UserError, match=match):
        optimize(task, passes, **options)


def test_old_opsets_are_named(tmp_path: Path) -> None:
    model = parsed(CONVOLUTIONS, opset=11)
    task = task_of(CONVOLUTIONS, tmp_path)
    task["model"] = written(model, tmp_path / "old.onnx")
    with pytest.raises(UserError, match=r"opset 11; put `convert\(opset=17\)` before"):
        optimize(task, "qat")
