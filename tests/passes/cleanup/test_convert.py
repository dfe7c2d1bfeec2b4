"""convert: other opsets and IR versions, node by node."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest
from onnxedge_passes.cleanup.convert import Convert

from onnxedge.api import Context, Result, Session, UserError, load, opset, save, to_proto
from onnxedge.target import load_packaged_target

SQUEEZE = "g (float[2, 1, 3] x) => (float[2, 3] y) { y = Squeeze<axes=[1]>(x) }"


def test_an_attribute_becomes_an_input(check) -> None:
    check(
        Convert(opset=13),
        SQUEEZE,
        "g (float[2, 1, 3] x) => (float[2, 3] y) <int64[1] a = {1}> { y = Squeeze(x, a) }",
        opset=11,
    )


def test_an_input_becomes_an_attribute(check) -> None:
    check(
        Convert(opset=11),
        "g (float[2, 1, 3] x) => (float[2, 3] y) <int64[1] a = {1}> { r = Neg(x) y = Squeeze(r, a) }",
        "g (float[2, 1, 3] x) => (float[2, 3] y) { r = Neg(x) y = Squeeze<axes=[1]>(r) }",
    )


def test_a_default_that_changed() -> None:
    model = parsed("g (float[2, 3, 4] x) => (float[2, 3, 4] y) { y = Softmax(x) }", 11)
    same_outputs(model, converted(model, 17)[0])


@pytest.mark.parametrize("operator", ["Softmax", "LogSoftmax", "Hardmax"])
@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_one_axis_where_all_from_one_on_were_meant(operator: str, axis: int) -> None:
    model = parsed(f"g (float[2, 3, 4] x) => (float[2, 3, 4] y) {{ y = {operator}<axis={axis}>(x) }}", 13)
    model.ir_version = 7
    after, _ = converted(model, 11)
    same_outputs(model, after)
    assert len(after.graph) == (1 if axis == -1 else 3)


def parsed(text: str, version: int) -> ir.Model:
    head = f'<ir_version: 6, opset_import: ["": {version}]>'
    return ir.serde.deserialize_model(onnx.parser.parse_model(f"{head} {text}"))


def converted(model: ir.Model, version: int, target: str = "ort-cpu", **options: int) -> tuple[ir.Model, Result]:
    copy = model.clone()
    chip = load_packaged_target("onnxedge.targets", target)
    context = Context(chip, None, original=model)  # type: ignore[arg-type]
    step = Convert(opset=version, **options)
    step.requires(copy, context)
    return copy, step.run(copy, context)


def same_outputs(before: ir.Model, after: ir.Model) -> None:
    onnx.checker.check_model(to_proto(after), full_check=True)
    first, second = Session(before, level="disable"), Session(after, level="disable")
    rng = np.random.default_rng(0)
    feed = {
        spec.name: np.array(True)
        if spec.dtype == "bool"
        else rng.standard_normal([d if isinstance(d, int) else 2 for d in spec.shape]).astype(np.float32)
        for spec in first.inputs
    }
    mine, other = first.run(feed), second.run(feed)
    for name, array in mine.items():
        np.testing.assert_array_equal(array, other[name])


BODIES = """
g (float[2, 1, 3] x, bool c, float[2, 3] w = {1, 2, 3, 4, 5, 6}) => (float[2, 3] y)
<float[2, 3] k = {1, 2, 3, 4, 5, 6}> {
  m = Mul(w, k)
  y = If(c) <then_branch = t () => (float[2, 3] r) { s = Squeeze<axes=[1]>(x) r = Add(s, m) },
             else_branch = e () => (float[2, 3] r) { s = Squeeze<axes=[1]>(x) q = Dropout<ratio=0.5>(s) r = Mul(q, m) }>
}
"""


def test_subgraphs_names_and_inputs_with_a_default() -> None:
    model = parsed(BODIES, 11)
    model.metadata_props["author"] = "me"
    after, result = converted(model, 17)
    same_outputs(model, after)
    assert opset(after) == 17
    assert after.ir_version == 8
    assert result.rewrites == 3
    assert after.metadata_props["author"] == "me"
    assert [value.name for value in after.graph.inputs] == ["x", "c", "w"]
    assert set(after.graph.initializers) == {"w", "k"}
    branch = list(after.graph)[1].attributes["else_branch"].as_graph()
    assert [node.op_type for node in branch if node.op_type != "Constant"] == ["Squeeze", "Dropout", "Mul"]
    assert list(branch)[-1].outputs[0].name == "r"


def test_local_functions() -> None:
    text = """<ir_version: 8, opset_import: ["": 11, "acme": 1]>
    g (float[2, 1, 3] x) => (float[2, 3] y) { y = acme.F(x) }
    <domain: "acme", opset_import: ["": 11]> F(v) => (w) { s = Squeeze<axes=[1]>(v) w = Relu(s) }"""
    model = ir.serde.deserialize_model(onnx.parser.parse_model(text))
    after, _ = converted(model, 17)
    same_outputs(model, after)
    assert next(iter(after.functions.values())).opset_imports[""] == 17


def test_dynamic_shapes_and_weights_stay() -> None:
    text = (
        "g (float[N, 3, H, W] x) => (float[N, 1, H, W] y) <float[1, 3, 1, 1] k = {1, 2, 3}>"
        " { c = Conv(x, k) y = Clip<min=0.0>(c) }"
    )
    model = parsed(text, 9)
    weight = model.graph.initializers["k"].const_value
    after, _ = converted(model, 20)
    same_outputs(model, after)
    assert after.graph.initializers["k"].const_value is weight
    assert [str(d) for d in after.graph.inputs[0].shape or ()] == ["N", "3", "H", "W"]


def test_external_weights_stay_outside(tmp_path: Path, fixtures: Path) -> None:
    after, _ = converted(load(fixtures / "external_data.onnx"), 21)
    assert any(isinstance(v.const_value, ir.ExternalTensor) for v in after.graph.initializers.values())
    save(after, tmp_path / "out.onnx", external=True)
    same_outputs(load(fixtures / "external_data.onnx"), load(tmp_path / "out.onnx"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"opset": 999}, "opset 999 is not known; onnx .* writes 1.."),
        ({"opset": -1}, "opset -1 is not known"),
        ({"ir": 99}, "IR version 99 is not known"),
        ({"opset": 21, "ir": 4}, "IR version 4 is too old for the model, which needs 10"),
        ({"opset": 17, "ir": 3}, "IR version 3 is too old"),
    ],
)
def test_versions_that_do_not_go(options: dict[str, int], message: str) -> None:
    model = parsed(BODIES, 11)
    with pytest.raises(UserError, match=message):
        converted(model, options.get("opset", 0), **{k: v for k, v in options.items() if k != "opset"})


@pytest.mark.parametrize(
    ("text", "old", "new", "message"),
    [
        ("g (float[2] x) => (float[2] y) { y = Gelu(x) }", 20, 17, "Gelu .* cannot be written in opset 17"),
        (
            "g (float[1, 1, 2, 2] x) => (float[1, 1, 1, 1] y)"
            " { y = MaxPool<kernel_shape=[1, 1], strides=[2, 2], ceil_mode=1, pads=[0, 0, 1, 1]>(x) }",
            22,
            17,
            "its shapes come out otherwise there: Inferred shape",
        ),
        ("g (float x) => (float y) { y = Softmax(x) }", 13, 11, "its rank is not known"),
        (
            "g (bool c, float[2] x) => (float[2] y) <int64 i = {0}>"
            " { s = If(c) <then_branch = t () => (seq(float[2]) r) { r = SequenceConstruct(x) },"
            " else_branch = e () => (seq(float[2]) r) { r = SequenceConstruct(x, x) }> y = SequenceAt(s, i) }",
            13,
            11,
            "there it takes no values of these types",
        ),
        (
            "g (float[1, 1, 8, 8] x) => (float[1, 1, A, B] y)"
            " { y = AveragePool<kernel_shape=[2, 2], dilations=[2, 2]>(x) }",
            19,
            17,
            "makes use of what that opset does not have",
        ),
    ],
)
def test_what_cannot_be_said_is_refused_and_the_model_kept(text: str, old: int, new: int, message: str) -> None:
    model = parsed(text, old)
    model.ir_version = 9
    before = to_proto(model).SerializeToString(deterministic=True)
    chip = load_packaged_target("onnxedge.targets", "generic")
    with pytest.raises(UserError, match=message):
        Convert(opset=new).run(model, Context(chip, None, original=model))  # type: ignore[arg-type]
    assert to_proto(model).SerializeToString(deterministic=True) == before


def test_an_attribute_that_says_the_default_is_dropped() -> None:
    text = (
        "g (float[2, 2, 3] x) => (float[2, 6] y) <float[2] s = {1, 2}, float[2] b = {0, 1}, int64[2] t = {2, 6}>"
        " { n = BatchNormalization<training_mode=0>(x, s, b, b, s) y = Reshape<allowzero=0>(n, t) }"
    )
    model = parsed(text, 17)
    model.ir_version = 8
    after, _ = converted(model, 13)
    same_outputs(model, after)
    assert [list(node.attributes) for node in after.graph] == [[], []]


def test_a_constant_has_no_inputs() -> None:
    model = parsed("g (float[2] x) => (float[2] y) { k = Constant<value = float[2] {1, 2}>() y = Mul(x, k) }", 21)
    model.ir_version = 10
    for version in (11, 13, 17):
        same_outputs(model, converted(model, version)[0])


def test_only_the_ir_version() -> None:
    model = parsed("g (float[2] x) => (float[2] y) { y = Relu(x) }", 11)
    after, result = converted(model, 0, ir=8)
    assert (after.ir_version, opset(after), result.rewrites) == (8, 11, 1)
    assert converted(after, 0, ir=8)[1].rewrites == 0


def test_no_options_and_nothing_to_do() -> None:
    model = parsed("g (float[2] x) => (float[2] y) { y = Relu(x) }", 11)
    after, result = converted(model, 0)
    assert (after.ir_version, opset(after), result.rewrites) == (6, 11, 0)
