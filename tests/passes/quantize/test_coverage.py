"""What is predicted to run in integers is what ONNX Runtime's own optimized graph runs in integers, node by node."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from architectures import NETWORKS, Builder
from onnxedge_passes.fuse.fuse import Fuse
from onnxedge_passes.quantize import Int8
from onnxedge_passes.quantize.names import name_values
from onnxedge_passes.quantize.quantizer import Quantizer, Settings
from precision import apply, kinds, normal, sqnr
from samples import ZOO_MODELS

import onnxedge
from onnxedge.api import (
    Context,
    Coverage,
    Placement,
    Session,
    integer_nodes,
    load,
    optimized_graph,
    place,
    read_back,
    refresh_scopes,
    synthesise,
)
from onnxedge.target import Target, load_packaged_target
from onnxedge.verify import infer_shapes

QUICK = {"method": "minmax", "rounding": "nearest", "equalize": "off", "smooth": "off", "timing": False}
FIXTURES = ("branch_if", "detector", "digits_resnet", "external_data", "local_function", "sequence_transformer")


def cpu(*, costs: bool = True) -> Target:
    target = load_packaged_target("onnxedge.targets", "ort-cpu")
    assert target.quantization is not None
    return target if costs else replace(target, quantization=replace(target.quantization, costs={}))


def covered(model: ir.Model, *, costs: bool, keep: float = 0.0, seed: int = 0) -> tuple[Coverage, Placement]:
    """Quantize all that pays, or all that can be; a share of the kernels stays float; none is put back."""
    data = synthesise(model, Session(model).inputs, 4)
    context = Context(cpu(costs=costs), data, original=model.clone())
    infer_shapes(model)
    refresh_scopes(model)
    name_values(model)
    quantizer = Quantizer(Settings(methods=(("minmax", 0.0),), samples=4), model, context)
    kernels = {unit.node for unit in place(model, context.target).integer if unit.role == "kernel"}
    draw = np.random.default_rng(seed)
    for position, node in enumerate(model.graph):
        if node in kernels and draw.random() < keep:
            quantizer.returned.nodes[position] = "left float on trial"
    quantizer.calibrated()
    placement, *_ = quantizer.emit(model)
    return read_back(model, placement), placement


def assert_equal(coverage: Coverage) -> None:
    assert [f"{found.node.name}: {found}" for found in coverage.differences] == []


@pytest.mark.parametrize("costs", [True, False], ids=["what pays", "what can"])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name: str, costs: bool) -> None:
    model = NETWORKS[name]()
    apply(Fuse(), model, {"x": normal(2, 3, 32, 32)})
    coverage, placement = covered(model, costs=costs)
    assert_equal(coverage)
    integer = sum(len(unit.nodes) for unit in placement.integer)
    assert integer - coverage.gone <= coverage.integer <= integer
    if not costs:
        assert coverage.integer > 10


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", ["resnet", "vit"])
def test_networks_with_some_kernels_kept_float(name: str, seed: int) -> None:
    """Between integers ONNX Runtime quantizes some by itself: then those beside stay float, too."""
    model = NETWORKS[name]()
    apply(Fuse(), model, {"x": normal(2, 3, 32, 32)})
    coverage, _ = covered(model, costs=False, keep=0.3, seed=seed)
    assert_equal(coverage)


@pytest.mark.parametrize("name", FIXTURES)
def test_fixtures(name: str, fixtures: Path) -> None:
    assert_equal(covered(load(fixtures / f"{name}.onnx"), costs=False)[0])


@pytest.mark.zoo
@pytest.mark.parametrize("name", ZOO_MODELS)
def test_zoo(name: str, zoo: Path, tmp_path: Path) -> None:
    source, file = zoo / "models" / f"{name}.onnx", tmp_path / "m.onnx"
    onnxedge.optimize(source, "freeze-initializers,convert(opset=17),fuse", output=file, measure=False, verify="off")
    assert_equal(covered(load(file), costs=True)[0])


def test_the_pass_counts_and_says_nothing_where_it_is_right() -> None:
    net = Builder(["N", 64, 16, 16])
    x = net.op("Relu", net.conv("x", 64, 64, norm=False))
    model = net.model(net.op("Tanh", net.op("Relu", net.conv(x, 64, 64, norm=False))))
    result, notes = apply(Int8(**QUICK), model, {"x": normal(16, 64, 16, 16)})
    assert result.figures["integer_nodes"] == 4
    assert result.figures["float_nodes"] == 1
    assert result.figures["confirmed_nodes"] == 5
    assert result.figures["merged_nodes"] == 0
    assert result.figures["different_nodes"] == 0
    assert "predicted to run" not in notes


def test_what_does_not_run_here_is_not_read_back() -> None:
    net = Builder(["N", 64, 16, 16])
    model = net.model(net.conv("x", 64, 64, norm=False))
    result, _ = apply(Int8(**QUICK), model, {"x": normal(16, 64, 16, 16)}, "tensorrt")
    assert "confirmed_nodes" not in result.figures


def test_a_wrong_prediction_is_found() -> None:
    net = Builder(["N", 64, 16, 16])
    x = net.op("Relu", net.conv("x", 64, 64, norm=False))
    model = net.model(net.op("Tanh", net.conv(x, 64, 64, norm=False)))
    floats = model.clone()
    _, right = covered(model, costs=True)
    units = place(floats, cpu()).integer
    assert len(units) == 2
    differences = read_back(floats, Placement(units, {})).differences  # nothing was emitted
    assert {str(found).partition(" runs")[0] for found in differences} == {
        "predicted to run in integers, but ONNX Runtime"
    }
    lie = Placement(right.integer[1:], dict.fromkeys(right.integer[0].nodes, "stays float"))
    (found,) = read_back(model, lie).differences
    assert found.node is right.integer[0].node
    assert (found.predicted, found.found) == ("float", "QLinearConv")


@pytest.mark.parametrize("op", ["MatMul", "Gemm"])
@pytest.mark.parametrize("bound", [1e-3, -1.0])
def test_a_clip_that_is_not_taken_in(op: str, bound: float) -> None:
    """ONNX Runtime looks for a Q behind an activation that it could take in, and runs the product in float without."""
    net = Builder([64, 256])
    weight, low = net.weight(256, 256, fan=256), net.constant(np.float32(bound))
    product = net.op(op, net.op("Tanh", "x"), weight)
    model = net.model(net.op("Exp", net.op("Clip", product, low)))
    coverage, placement = covered(model, costs=True)
    assert [unit.node.op_type for unit in placement.integer] == [op]
    assert_equal(coverage)


def test_a_weight_that_a_caller_may_override_is_not_quantized_by_the_runtime() -> None:
    """Between a DQ and a Q ONNX Runtime would round it with a scale of the value that it replaces."""
    net = Builder(["N", 64, 16, 16])
    x = "x"
    for _ in range(3):
        x = net.op("Relu", net.conv(x, 64, 64, norm=False))
    model = net.model(x)
    convs = [node for node in model.graph if node.op_type == "Conv"]
    weight = convs[1].inputs[1]
    assert weight is not None
    model.graph.inputs.append(weight)
    before = model.clone()
    _, notes = apply(Int8(**QUICK), model)
    assert "may override; put `freeze-initializers` first" in notes
    ran = [(node.op_type, node.name) for node in optimized_graph(model).graph.node]
    assert not any(kind == "QLinearConv" and name.startswith(convs[1].name or "?") for kind, name in ran)
    feed = {"x": normal(2, 64, 16, 16), weight.name or "": 50 * normal(64, 64, 3, 3)}
    first, other = (next(iter(Session(m).run(feed).values())) for m in (before, model))
    assert sqnr(first, other) > 25


def test_a_where_of_two_and_of_a_moderate_constant() -> None:
    for fill, integer in ((0.5, True), (-1e9, False), (np.inf, False), (np.nan, False)):
        net = Builder(["N", 64, 16, 16])
        x = net.op("Relu", net.conv("x", 64, 64, norm=False))
        mask = net.op("Greater", net.op("ReduceMean", "x", axes=[1], keepdims=1), net.constant(np.float32(0)))
        x = net.op("Where", mask, x, net.constant(np.float32(fill)))
        model = net.model(net.op("Relu", net.conv(x, 64, 64, norm=False)))
        before = model.clone()
        coverage, placement = covered(model, costs=True)
        assert_equal(coverage)
        assert ("Where" in [unit.node.op_type for unit in placement.integer]) == integer
        assert ("QLinearWhere" in [node.op_type for node in optimized_graph(model).graph.node]) == integer
        if not integer:
            reason = next(text for node, text in placement.reasons.items() if node.op_type == "Where")
            assert "swallow the data" in reason
        assert kinds(before).count("Where") == kinds(model).count("Where")


def test_the_kind_of_each_node_of_an_optimized_graph() -> None:
    net = Builder(["N", 64, 16, 16])
    model = net.model(net.op("Tanh", net.op("Relu", net.conv("x", 64, 64, norm=False))))
    covered(model, costs=True)
    found = {node.op_type: narrow for node, narrow in integer_nodes(optimized_graph(model))}
    assert found["QLinearConv"]
    assert not found["Tanh"]
    assert not found["DequantizeLinear"]


def test_data_of_8_bits_that_the_model_takes_itself() -> None:
    """A Cast of an image of uint8 is no integer kernel."""
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.UINT8, [1, 4])
    y = onnx.helper.make_tensor_value_info("y", 1, [1, 4])
    nodes = [onnx.helper.make_node("Cast", ["x"], ["c"], to=1), onnx.helper.make_node("Tanh", ["c"], ["y"])]
    graph = onnx.helper.make_graph(nodes, "g", [x], [y])
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    assert not any(narrow for _, narrow in integer_nodes(optimized_graph(proto)))
