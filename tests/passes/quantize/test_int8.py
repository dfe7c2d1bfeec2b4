"""int8: what becomes integer, what is stored, what stays float, and why."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper
from onnxedge_passes.quantize import Int8

from onnxedge.api import Array, Context, Result, Session, UserError, load, optimized_graph, refresh_scopes, to_proto
from onnxedge.data import from_arrays
from onnxedge.model.io import from_proto
from onnxedge.runtime import InputSpec
from onnxedge.target import load_packaged_target
from onnxedge.verify import infer_shapes

RNG = np.random.default_rng(0)


def _build(
    nodes: list[onnx.NodeProto], weights: dict[str, Array], shape: list[Any], outputs: list[str], opset: int = 17
) -> ir.Model:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", 1, shape)],
        [helper.make_tensor_value_info(name, 1, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return from_proto(onnx.shape_inference.infer_shapes(proto))  # gives the outputs their shapes


def _weight(*shape: int) -> Array:
    return (RNG.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def residual(opset: int = 17, channels: int = 32, activation: str = "Relu") -> ir.Model:
    """Return three convolutions with a shortcut, pooled and classified; 32 channels of 16x16."""
    node = helper.make_node
    act: dict[str, Any] = {"Relu": {}, "Clip": {}}[activation]
    limits = ["lo", "hi"] if activation == "Clip" else []
    nodes = [
        node("Conv", ["x", "w0", "b0"], ["c0"], name="stem", pads=[1] * 4),
        node(activation, ["c0", *limits], ["r0"], **act),
        node("Conv", ["r0", "w1", "b1"], ["c1"], name="one", pads=[1] * 4),
        node(activation, ["c1", *limits], ["r1"], **act),
        node("Conv", ["r1", "w2", "b2"], ["c2"], name="two", pads=[1] * 4),
        node("Add", ["c2", "r0"], ["a"], name="sum"),
        node("Relu", ["a"], ["r2"]),
        node("GlobalAveragePool", ["r2"], ["g"]),
        node("Flatten", ["g"], ["f"]),
        node("Gemm", ["f", "w3", "b3"], ["y"], name="head", transB=1),
    ]
    size = channels
    weights = {f"w{i}": _weight(size, 16 if i == 0 else size, 3, 3) for i in range(3)}
    weights |= {f"b{i}": RNG.normal(size=size).astype(np.float32) for i in range(3)}
    weights |= {"w3": _weight(10, size), "b3": RNG.normal(size=10).astype(np.float32)}
    if limits:
        weights |= {"lo": np.array(0, np.float32), "hi": np.array(2, np.float32)}
    return _build(nodes, weights, ["N", 16, 16, 16], ["y"], opset)


def apply(model: ir.Model, target: str = "ort-cpu", x: Array | None = None, **options: Any) -> tuple[Result, Context]:
    """Quantize in place on normal samples; the graph must be valid afterwards."""
    specs = Session(model).inputs
    if x is None:
        shape = [d if isinstance(d, int) else 1 for d in specs[0].shape]
        x = np.random.default_rng(1).normal(size=(32, *shape[1:])).astype(np.float32)
    data = from_arrays(specs, {specs[0].name: x})
    context = Context(load_packaged_target("onnxedge.targets", target), data, original=model.clone())
    infer_shapes(model)
    refresh_scopes(model)
    context.begin("int8")
    step = Int8(**options)
    step.requires(model, context)
    result = step.run(model, context)
    onnx.checker.check_model(to_proto(model), full_check=True)
    return result, context


def ran(model: ir.Model) -> list[str]:
    return [node.op_type for node in optimized_graph(model).graph.node]


def sqnr(before: ir.Model, after: ir.Model, shape: tuple[int, ...]) -> float:
    """Return dB of the first output on samples that nothing was calibrated on."""
    x = np.random.default_rng(9).normal(size=shape).astype(np.float32)
    (first, *_), (other, *_) = (list(Session(m).run({"x": x}).values()) for m in (before, after))
    return float(10 * np.log10(first.var() / ((first - other) ** 2).mean()))


def reasons(context: Context) -> str:
    return "\n".join(f"{note.where}: {note.reason}" for note in context.notes)


@pytest.mark.parametrize("activation", ["Relu", "Clip"])
def test_a_residual_net_runs_whole_in_integers(activation: str) -> None:
    model = residual(activation=activation)
    before = model.clone()
    result, _ = apply(model)
    kernels = ran(model)
    assert kernels.count("QuantizeLinear") == 1
    assert kernels.count("DequantizeLinear") == 1
    assert kernels.count("QLinearConv") == 3
    assert kernels.count("QLinearAdd") == 1
    assert not {"Conv", "FusedConv", "Relu", "Clip"} & set(kernels)
    assert sqnr(before, model, (8, 16, 16, 16)) > 25
    assert result.figures["held_out_sqnr_db"] > 25


def test_no_float_weight_is_left() -> None:
    model = residual()
    apply(model)
    kinds = {tensor.name: tensor for tensor in to_proto(model).graph.initializer}
    assert all(np.prod(t.dims) <= 32 * 10 for t in kinds.values() if t.data_type == onnx.TensorProto.FLOAT)
    assert sum(t.data_type == onnx.TensorProto.INT32 for t in kinds.values()) >= 3


@pytest.mark.parametrize("method", ["minmax", "average", "percentile", "entropy", "mse", "auto"])
def test_every_method_keeps_the_outputs(method: str) -> None:
    model = residual()
    before = model.clone()
    apply(model, method=method)
    assert sqnr(before, model, (8, 16, 16, 16)) > 18


def test_the_same_input_gives_the_same_bytes() -> None:
    texts = []
    source = to_proto(residual()).SerializeToString()
    for _ in range(2):
        model = from_proto(onnx.load_from_string(source))
        apply(model)
        texts.append(to_proto(model).SerializeToString(deterministic=True))
    assert texts[0] == texts[1]


def test_a_second_run_rewrites_nothing() -> None:
    model = residual()
    apply(model)
    result, context = apply(model)
    assert result.rewrites == 0
    assert "already" in reasons(context)


@pytest.mark.parametrize("mode", ["storage", "auto"])
def test_a_second_run_on_stored_weights_rewrites_nothing(mode: str) -> None:
    model = residual(opset=9)
    first, _ = apply(model, mode=mode)
    assert first.rewrites > 0
    result, _ = apply(model, mode=mode)
    assert result.rewrites == 0


def test_stored_weights_are_folded_when_the_runtime_loads_them() -> None:
    model = residual()
    before = model.clone()
    result, _ = apply(model, mode="storage")
    assert result.figures["stored_weights"] == 3
    assert not {"Cast", "Mul", "DequantizeLinear", "QuantizeLinear"} & set(ran(model))
    assert len(to_proto(model).SerializeToString()) < 0.32 * len(to_proto(before).SerializeToString())
    assert sqnr(before, model, (8, 16, 16, 16)) > 30


@pytest.mark.parametrize("opset", [10, 11, 12])
def test_old_opsets_use_the_contrib_operators_on_ort(opset: int) -> None:
    model = residual(opset=opset)
    before = model.clone()
    apply(model)
    assert ran(model).count("QLinearConv") == 3
    assert model.opset_imports[""] == opset
    assert sqnr(before, model, (8, 16, 16, 16)) > 25


def test_old_opsets_are_per_tensor_elsewhere() -> None:
    model = residual(opset=11)
    apply(model, "generic", min_sqnr=10)
    domains = {node.domain for node in model.graph}
    assert domains == {""}
    scales = [n.inputs[1] for n in model.graph if n.op_type == "DequantizeLinear"]
    assert all(s is not None and s.const_value is not None and s.const_value.size == 1 for s in scales)


def test_an_opset_without_q_dq_is_left_for_a_newer_one() -> None:
    model = residual(opset=9)
    before = model.clone()
    result, context = apply(model)
    assert model.opset_imports[""] == 13
    assert ran(model).count("QLinearConv") == 3
    assert result.figures["integer_nodes"] == 9
    assert "written for opset 13" in reasons(context)
    assert sqnr(before, model, (8, 16, 16, 16)) > 25


def test_an_opset_is_kept_where_nothing_becomes_integer() -> None:
    model = residual(opset=9)
    result, context = apply(model, skip="*")
    assert model.opset_imports[""] == 9
    assert result.figures["integer_nodes"] == 0
    assert "written for opset" not in reasons(context)


def test_a_runtime_without_q_dq_gets_stored_weights_only(monkeypatch: pytest.MonkeyPatch) -> None:
    old = replace(load_packaged_target("onnxedge.targets", "ort-cpu"), opset_max=12)
    monkeypatch.setattr(f"{__name__}.load_packaged_target", lambda *_: old)
    model = residual(opset=9)
    result, context = apply(model)
    assert result.figures["integer_nodes"] == 0
    assert result.figures["stored_weights"] == 3
    assert "opset 9 has no QuantizeLinear" in reasons(context)
    assert "QuantizeLinear" not in {node.op_type for node in model.graph}


def test_skip_leaves_nodes_float() -> None:
    model = residual()
    _, context = apply(model, skip="one hea*")
    assert "Conv 'one': left float as asked by skip" in reasons(context)
    assert ran(model).count("QLinearConv") == 1  # not `one`, and not `two`: the runtime would quantize `one` by itself
    assert "QLinearAdd" not in ran(model) or ran(model).count("QuantizeLinear") >= 1


def test_a_shared_weight_is_stored_once() -> None:
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w"], ["c0"], pads=[1] * 4),
        node("Relu", ["c0"], ["r0"]),
        node("Conv", ["r0", "w"], ["c1"], pads=[1] * 4),
        node("Relu", ["c1"], ["y"]),
    ]
    model = _build(nodes, {"w": _weight(64, 64, 3, 3)}, ["N", 64, 16, 16], ["y"])
    before = model.clone()
    apply(model)
    assert sum(t.data_type == onnx.TensorProto.INT8 for t in to_proto(model).graph.initializer) == 1
    assert sqnr(before, model, (8, 64, 16, 16)) > 25


def test_an_overridable_weight_is_left_alone() -> None:
    model = residual()
    model.graph.inputs.append(model.graph.initializers["w1"])
    _, context = apply(model)
    assert "Conv 'one': Conv: its weight is a graph input that a caller may override" in reasons(context)
    assert model.graph.initializers["w1"].const_value is not None
    assert model.graph.initializers["w1"].const_value.dtype == ir.DataType.FLOAT


def test_inner_values_that_are_outputs_keep_their_names() -> None:
    model = residual()
    for name in ("r1", "c2"):
        value = next(v for n in model.graph for v in n.outputs if v.name == name)
        model.graph.outputs.append(value)
    before = model.clone()
    apply(model)
    assert [v.name for v in model.graph.outputs] == ["y", "r1", "c2"]
    x = np.random.default_rng(3).normal(size=(2, 16, 16, 16)).astype(np.float32)
    first, other = Session(before).run({"x": x}), Session(model).run({"x": x})
    assert all(np.abs(first[k] - other[k]).max() < 0.1 * np.abs(first[k]).max() for k in first)


def test_padding_runs_on_integers() -> None:
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w"], ["c0"], pads=[1] * 4),
        node("Relu", ["c0"], ["r0"]),
        node("Pad", ["r0", "p"], ["q0"]),
        node("Conv", ["q0", "w"], ["c1"]),
        node("Relu", ["c1"], ["y"]),
    ]
    weights = {"w": _weight(64, 64, 3, 3), "p": np.array([0, 0, 1, 1, 0, 0, 1, 1])}
    model = _build(nodes, weights, ["N", 64, 16, 16], ["y"])
    before = model.clone()
    apply(model)
    assert ran(model).count("QuantizeLinear") == 1
    assert ran(model).count("DequantizeLinear") == 1
    assert sqnr(before, model, (8, 64, 16, 16)) > 25


def test_what_a_logarithm_reads_goes_back_to_float() -> None:
    """The difference of large inputs is small: quantized, it is noise, and the logarithm shows it."""
    node = helper.make_node
    nodes = [
        node("MatMul", ["x", "w0"], ["m"], name="spectrum"),
        node("Mul", ["m", "m"], ["p"]),
        node("Add", ["p", "tiny"], ["t"]),
        node("Log", ["t"], ["l"]),
        node("MatMul", ["l", "w1"], ["y"], name="head"),
    ]
    first = _weight(256, 256)
    weights = {"w0": first - first.mean(axis=0), "w1": _weight(256, 256), "tiny": np.array(1e-6, np.float32)}
    model = _build(nodes, weights, [1, 128, 256], ["y"])
    before = model.clone()
    samples = np.random.default_rng(1).normal(size=(16, 128, 256)).astype(np.float32) + np.float32(300)
    _, context = apply(model, x=samples)
    assert "MatMul 'spectrum': put back to float" in reasons(context)
    first_y, other_y = Session(before).run({"x": samples[:1]})["y"], Session(model).run({"x": samples[:1]})["y"]
    assert ((first_y - other_y) ** 2).mean() < 0.02 * first_y.var()


def test_a_network_too_small_to_gain_stays_float() -> None:
    model = _build([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": _weight(24, 24)}, [1, 24], ["y"])
    result, context = apply(model)
    assert result.rewrites == 0
    assert "the integer kernel does not pay here on ort-cpu" in reasons(context)


def test_activations_that_are_not_finite_stay_float() -> None:
    node = helper.make_node
    nodes = [
        node("Sqrt", ["x"], ["s"]),
        node("Conv", ["s", "w"], ["c"], name="after", pads=[1] * 4),
        node("Conv", ["x", "w"], ["d"], pads=[1] * 4),
        node("Max", ["c", "d"], ["y"]),
    ]
    model = _build(nodes, {"w": _weight(64, 64, 3, 3)}, ["N", 64, 16, 16], ["y"])
    _, context = apply(model)
    assert "Conv 'after': Conv: its activations are not finite" in reasons(context)


def test_constant_samples_are_refused() -> None:
    with pytest.raises(UserError, match=r"int8: the calibration samples are constant \('x' is 0 all over\)"):
        apply(residual(), x=np.zeros((1, 16, 16, 16), np.float32))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"samples": 0}, "at least 1"), ({"percentile": 20.0}, "above 50")],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        apply(residual(), **options)


def test_tensorrt_gets_symmetric_scales_and_float_biases() -> None:
    model = residual()
    before = model.clone()
    apply(model, "tensorrt")
    nodes = {node.name: node for node in model.graph}
    for name in ("one", "two", "head"):
        makers = [v.producer() for v in nodes[name].inputs if v is not None]
        assert [m.op_type if m else "" for m in makers] == ["DequantizeLinear", "DequantizeLinear", ""]
    after_conv = {use.node.op_type for name in ("stem", "one") for use in nodes[name].outputs[0].uses()}
    assert after_conv == {"Relu"}  # no Q between Conv and Relu
    shortcut = [v.producer().op_type for v in nodes["sum"].inputs if v is not None and v.producer() is not None]  # type: ignore[union-attr]
    assert shortcut == ["Conv", "DequantizeLinear"]
    zeros = [n.inputs[2].const_value for n in model.graph if n.op_type == "QuantizeLinear" and n.inputs[2] is not None]
    assert all(z is not None and z.dtype == ir.DataType.INT8 and not z.numpy().any() for z in zeros)
    assert sqnr(before, model, (8, 16, 16, 16)) > 22


def test_weights_behind_dequantize_are_quantized_anew() -> None:
    node = helper.make_node
    nodes = [
        node("DequantizeLinear", ["w", "s"], ["m"], axis=0),
        node("Conv", ["x", "m"], ["c"], pads=[1] * 4),
        node("Relu", ["c"], ["y"]),
    ]
    codes = np.random.default_rng(0).integers(-127, 128, (64, 64, 3, 3)).astype(np.int8)
    model = _build(nodes, {"w": codes, "s": np.full(64, 0.001, np.float32)}, ["N", 64, 16, 16], ["y"])
    before = model.clone()
    apply(model)
    assert "QLinearConv" in ran(model)
    assert sqnr(before, model, (8, 64, 16, 16)) > 25


FIXTURES = ("digits_resnet", "sequence_transformer", "detector", "branch_if", "local_function", "external_data")


@pytest.mark.parametrize("target", ["ort-cpu", "tensorrt", "generic"])
@pytest.mark.parametrize("fixture", FIXTURES)
def test_fixtures_on_every_target(fixture: str, target: str, fixtures: Path) -> None:
    from onnxedge.data import synthesise

    model = load(fixtures / f"{fixture}.onnx")
    data = synthesise(model, Session(model).inputs, count=16)
    context = Context(load_packaged_target("onnxedge.targets", target), data, original=model.clone())
    infer_shapes(model)
    refresh_scopes(model)
    context.begin("int8")
    Int8().run(model, context)
    feed = next(iter(data.feeds(4, limit=4)))
    first, other = Session(context.original).run(feed), Session(model).run(feed)
    assert list(first) == list(other)
    for name, array in first.items():
        if array.dtype.kind == "f":
            noise = ((array - other[name]) ** 2).mean()
            assert noise <= 0.05 * (array**2).mean() + 1e-9, name


def test_a_model_that_cannot_run_here_is_stored_only(fixtures: Path) -> None:
    model = load(fixtures / "custom_domain.onnx")
    value = model.graph.inputs[0]
    sizes = [d if isinstance(d, int) else 1 for d in value.shape or ()]
    spec = InputSpec(value.name or "", "float32", tuple(sizes))
    data = from_arrays([spec], {spec.name: np.zeros((8, *sizes[1:]), np.float32)})
    context = Context(load_packaged_target("onnxedge.targets", "ort-cpu"), data, original=model.clone())
    infer_shapes(model)
    refresh_scopes(model)
    context.begin("int8")
    Int8().run(model, context)
    assert "QuantizeLinear" not in {node.op_type for node in model.graph}
