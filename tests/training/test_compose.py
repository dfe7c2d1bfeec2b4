"""Student and loss in one graph: values against NumPy, several terms, adapters, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import reference

from onnxedge.api import (
    Array,
    Feature,
    HardLabels,
    Loss,
    Regression,
    Session,
    SoftLabels,
    UserError,
    compose,
)
from onnxedge.api import distillation as mix
from onnxedge.model.serialize import to_proto

CLASSIFIER = """student (float[N, 3, H, W] x) => (float[N, 5] y)
    <float[4, 3, 1, 1] w, float[4, 5] head> {
        inner = Conv(x, w)
        act = Relu(inner)
        pooled = GlobalAveragePool(act)
        flat = Flatten(pooled)
        y = MatMul(flat, head)
    }"""
WIDER = """teacher (float[N, 3, H, W] x) => (float[N, 5] logits)
    <float[7, 3, 1, 1] w, float[7, 5] head> {
        wide = Conv(x, w)
        pooled = GlobalAveragePool(wide)
        flat = Flatten(pooled)
        logits = MatMul(flat, head)
    }"""
RNG = np.random.default_rng


def model(text: str, opset: int = 17, seed: int = 0) -> ir.Model:
    """Return a model from text, with normal weights where the text declares them without values."""
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}]> {text}')
    rng = RNG(seed)
    for info in proto.graph.value_info:
        array = rng.standard_normal([dim.dim_value for dim in info.type.tensor_type.shape.dim]).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, info.name))
    del proto.graph.value_info[:]
    return ir.serde.deserialize_model(proto)


def values(student: ir.Model, *losses: Loss, feed: dict[str, Array], **options: object) -> tuple[float, Array]:
    """Return the loss and its terms with the initial weights."""
    composed = compose(student, losses, **options)  # type: ignore[arg-type]
    onnx.checker.check_model(to_proto(composed.model), full_check=True)
    session = Session(composed.model, level="disable")
    outputs = session.run({**feed, composed.weights: composed.schedule[0]})
    total, terms = list(outputs.values())[:2]
    assert total.shape == ()
    return float(total), terms


@pytest.fixture
def logits() -> ir.Model:
    return model("s (float[N, 7] x) => (float[N, 7] y) { y = Identity(x) }")


@pytest.mark.parametrize("opset", [13, 17, 18, 21])
@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_soft_labels(opset: int, temperature: float, scale: float) -> None:
    student = model("s (float[N, 7] x) => (float[N, 7] y) { y = Identity(x) }", opset)
    x, t = (RNG(i).standard_normal((9, 7)).astype(np.float32) * scale for i in (1, 2))
    total, _ = values(student, SoftLabels(output="y", temperature=temperature), feed={"x": x, "teacher.y": t})
    assert total == pytest.approx(reference.soft(x, t, temperature), rel=1e-6, abs=2e-8 * temperature**2)


@pytest.mark.parametrize("opset", [13, 17, 18, 21])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_hard_labels(opset: int, smoothing: float) -> None:
    student = model("s (float[N, 7] x) => (float[N, 7] y) { y = Identity(x) }", opset)
    x, labels = RNG(1).standard_normal((9, 7)).astype(np.float32) * 5, np.array([0, 6, 3, -1, 2, 2, -100, 1, 5])
    total, _ = values(student, HardLabels(output="y", smoothing=smoothing), feed={"x": x, "labels": labels})
    assert total == pytest.approx(reference.hard(x, labels, smoothing=smoothing), rel=1e-6, abs=1e-6)


def test_no_label_at_all_costs_nothing(logits: ir.Model) -> None:
    feed = {"x": np.ones((3, 7), np.float32), "labels": np.full(3, -1)}
    assert values(logits, HardLabels(output="y"), feed=feed)[0] == 0


def test_a_label_that_is_no_class_fails(logits: ir.Model) -> None:
    with pytest.raises(UserError, match="does not run"):
        values(logits, HardLabels(output="y"), feed={"x": np.ones((2, 7), np.float32), "labels": np.array([0, 7])})


def test_classes_of_every_pixel() -> None:
    student = model("s (float[N, 4, H, W] x) => (float[N, 4, H, W] y) { y = Identity(x) }")
    x, t = (RNG(i).standard_normal((2, 4, 3, 5)).astype(np.float32) for i in (1, 2))
    labels = RNG(3).integers(-1, 4, (2, 3, 5))
    losses = (SoftLabels(output="y", temperature=2), HardLabels(output="y"))
    _, terms = values(student, *losses, feed={"x": x, "teacher.y": t, "labels": labels})
    np.testing.assert_allclose(terms, [reference.soft(x, t, 2, 1), reference.hard(x, labels, 1)], rtol=1e-6)


def test_the_mix_of_both(logits: ir.Model) -> None:
    x, t = (RNG(i).standard_normal((6, 7)).astype(np.float32) for i in (1, 2))
    labels = np.array([0, 1, 2, 3, 4, 5])
    feed = {"x": x, "teacher.y": t, "labels": labels}
    total, terms = values(logits, *mix("y", temperature=3, alpha=0.7), feed=feed)
    expected = [reference.soft(x, t, 3), reference.hard(x, labels)]
    np.testing.assert_allclose(terms, expected, rtol=1e-6)
    assert total == pytest.approx(0.7 * expected[0] + 0.3 * expected[1], rel=1e-6)
    assert [type(loss) for loss in mix("y", alpha=1)] == [SoftLabels]
    assert [type(loss) for loss in mix("y", alpha=0)] == [HardLabels]


def test_regression(logits: ir.Model) -> None:
    x, t = (RNG(i).standard_normal((6, 7)).astype(np.float32) for i in (1, 2))
    losses = (Regression(output="y"), Regression(output="y", teacher="y", weight=0.5))
    total, _ = values(logits, *losses, feed={"x": x, "targets": t, "teacher.y": x + 1})
    assert total == pytest.approx(reference.mean_square(x, t) + 0.5, rel=1e-6)


def test_weights_change_from_step_to_step(logits: ir.Model) -> None:
    x = RNG(1).standard_normal((6, 7)).astype(np.float32)
    feed = {"x": x, "labels": np.zeros(6, np.int64), "targets": x + 1}
    composed = compose(logits, [HardLabels(output="y"), Regression(output="y")])
    session = Session(composed.model)
    for weights in ([1, 0], [0, 1], [0.25, 4]):
        outputs = list(session.run({**feed, composed.weights: np.array(weights, np.float32)}).values())
        assert float(outputs[0]) == pytest.approx(weights[0] * reference.hard(x, feed["labels"]) + weights[1], rel=1e-6)


def test_features_of_another_width_go_through_an_adapter() -> None:
    student, teacher = model(CLASSIFIER), model(WIDER)
    x, t = RNG(1).standard_normal((2, 3, 4, 5)).astype("f4"), RNG(2).standard_normal((2, 7, 4, 5)).astype("f4")
    loss = Feature(output="act", teacher="wide")
    composed = compose(student, [loss], teacher=teacher)
    assert composed.adapters == ("adapter.act.weight", "adapter.act.bias")
    weight = composed.model.graph.initializers["adapter.act.weight"].const_value
    assert weight is not None
    inner = np.maximum(np.einsum("nchw,oc->nohw", x, _weight(student, "w")[:, :, 0, 0]), 0)
    adapted = np.einsum("nchw,oc->nohw", inner, weight.numpy()[:, :, 0, 0])
    total, _ = values(student, loss, feed={"x": x, "teacher.wide": t}, teacher=teacher)
    assert total == pytest.approx(reference.mean_square(adapted, t), rel=1e-5)
    assert "adapter.act.weight" not in student.graph.initializers


def test_tokens_go_through_a_linear_adapter() -> None:
    student = model("s (float[N, T, 4] x) => (float[N, T, 4] y) { y = Identity(x) }")
    teacher = model("t (float[N, T, 6] x) => (float[N, T, 6] z) { z = Identity(x) }")
    composed = compose(student, [Feature(output="y", teacher="z")], teacher=teacher, seed=3)
    shapes = [tuple(composed.model.graph.initializers[name].const_value.shape) for name in composed.adapters]  # type: ignore[union-attr]
    assert shapes == [(4, 6), (6,)]
    again = compose(student, [Feature(output="y", teacher="z")], teacher=teacher, seed=3)
    assert to_proto(again.model) == to_proto(composed.model)


def test_attention_of_any_width() -> None:
    student, teacher = model(CLASSIFIER), model(WIDER)
    x, t = RNG(1).standard_normal((2, 3, 4, 5)).astype("f4"), RNG(2).standard_normal((2, 7, 4, 5)).astype("f4")
    inner = np.einsum("nchw,oc->nohw", x, _weight(student, "w")[:, :, 0, 0])
    loss = Feature(output="inner", teacher="wide", kind="attention")
    total, _ = values(student, loss, feed={"x": x, "teacher.wide": t}, teacher=teacher)
    assert total == pytest.approx(reference.attention(inner, t), rel=1e-6, abs=1e-7)
    assert compose(student, [loss], teacher=teacher).adapters == ()


def test_the_student_stays_and_its_outputs_too() -> None:
    student = model(CLASSIFIER)
    before = to_proto(student)
    composed = compose(student, mix("y"))
    assert to_proto(student) == before
    assert [v.name for v in composed.model.graph.outputs][2:] == ["y"]
    assert composed.teachers == {"y": "teacher.y"}
    assert composed.columns == {"labels": "labels"}


def test_names_that_the_student_has_already() -> None:
    student = model("s (float[N, 3] labels) => (float[N, 3] loss_weights) { loss_weights = Identity(labels) }")
    composed = compose(student, [HardLabels(output="loss_weights")])
    assert composed.columns == {"labels": "labels_1"}
    assert composed.weights == "loss_weights_1"


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        ([], "there is none"),
        ([HardLabels(output="yy")], "has no value 'yy'; did you mean 'y'"),
        ([HardLabels(output="y", smoothing=2)], "smoothing 2 is not within"),
        ([SoftLabels(output="y", temperature=0)], "temperature 0 is not above 0"),
        ([Regression(output="y", weight=float("nan"))], "no finite number"),
        ([SoftLabels(output="y", teacher="wide")], "is Nx5, 'wide' of the teacher"),
        ([SoftLabels(output="y", teacher="nothing")], "the teacher has no value 'nothing'"),
        ([HardLabels(output="y", axis=0)], "none behind the batch is axis 0"),
        ([Feature(output="y", teacher="logits", kind="attention")], "no attention; use"),
        ([Feature(output="y", teacher="logits", kind="x")], "neither 'l2' nor"),  # type: ignore[arg-type]
        ([Feature(output="flat", teacher="logits"), SoftLabels(output="y", teacher="logits", axis=1)], None),
        ([HardLabels(output="y"), HardLabels(output="act")], "two losses read 'labels'"),
    ],
)
def test_refused(losses: list[Loss], message: str | None) -> None:
    student, teacher = model(CLASSIFIER), model(WIDER)
    if message is None:
        compose(student, losses, teacher=teacher)
        return
    with pytest.raises(UserError, match=message):
        compose(student, losses, teacher=teacher)


def test_other_types_and_old_opsets_are_refused() -> None:
    half = model("s (float16[N, 3] x) => (float16[N, 3] y) { y = Identity(x) }")
    with pytest.raises(UserError, match="needs float32"):
        compose(half, [HardLabels(output="y")])
    with pytest.raises(UserError, match="prepare-training"):
        compose(model("s (float[N, 3] x) => (float[N, 3] y) { y = Identity(x) }", 11), [HardLabels(output="y")])


def test_a_real_student(fixtures: Path) -> None:
    student = ir.load(fixtures / "digits_resnet.onnx")
    data = np.load(fixtures / "digits_train.npz")
    output, feed = (
        student.graph.outputs[0].name or "",
        {student.graph.inputs[0].name or "": data["x"][:16].astype("f4") / 255},
    )
    logits = Session(student).run(feed)[output]
    labels = data["y"][:16].astype(np.int64)
    total, _ = values(student, *mix(output), feed={**feed, f"teacher.{output}": logits, "labels": labels})
    assert total == pytest.approx(0.1 * reference.hard(logits, labels), rel=1e-5, abs=1e-6)


def _weight(student: ir.Model, name: str) -> Array:
    tensor = student.graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy()
