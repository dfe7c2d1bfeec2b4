"""What tensorrt asks of a quantized graph, rule by rule, on the shapes of known networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from architectures import NETWORKS, Builder
from onnxedge_passes.fuse.fuse import Fuse
from onnxedge_passes.quantize import Int8
from precision import apply, normal, outputs, sqnr

from onnxedge.api import constant, is_constant

AXES = {"Conv": 0, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1}
NORMS = ("BatchNormalization", "Relu", "Clip")


def maker(value: ir.Value | None) -> str:
    """Return the operator that makes a value."""
    node = value.producer() if value is not None else None
    return node.op_type if node is not None else ""


def is_restored(value: ir.Value | None) -> bool:
    return maker(value) == "DequantizeLinear"


def source(value: ir.Value) -> ir.Value:
    """Return what stands before the DQ of a constant, or before the Q and DQ of an activation."""
    (node,) = (value.producer(),)
    assert node is not None
    inner = node.inputs[0]
    assert inner is not None
    quantize = inner.producer()
    if quantize is None:
        return inner
    assert quantize.inputs[0] is not None
    return quantize.inputs[0]


def pairs(model: ir.Model) -> Iterator[ir.Node]:
    return (node for node in model.graph if node.op_type in ("QuantizeLinear", "DequantizeLinear"))


def weighted(model: ir.Model) -> Iterator[ir.Node]:
    return (node for node in model.graph if node.op_type in AXES)


def only_standard_operators(model: ir.Model) -> None:
    kinds = {node.op_type for node in model.graph}
    assert {node.domain for node in model.graph} == {""}
    assert not [kind for kind in kinds if kind.startswith("QLinear") or kind.endswith("Integer") or "Dynamic" in kind]


def symmetric_int8_everywhere(model: ir.Model) -> None:
    for node in pairs(model):
        zero = constant(node.inputs[2]) if len(node.inputs) > 2 else None
        assert zero is not None
        assert zero.dtype == np.int8
        assert not zero.any()
        codes = constant(node.inputs[0]) if node.op_type == "DequantizeLinear" else None
        assert codes is None or (codes.dtype == np.int8 and codes.min() >= -127)


def a_scale_for_each_output_channel_of_a_weight(model: ir.Model) -> None:
    for node in weighted(model):
        if not (node.inputs[1] is not None and is_restored(node.inputs[1]) and is_constant(source(node.inputs[1]))):
            assert node.op_type == "MatMul"  # of two activations
            continue
        restored = node.inputs[1].producer()
        assert restored is not None
        scale, codes = constant(restored.inputs[1]), constant(restored.inputs[0])
        assert scale is not None
        assert codes is not None
        axis = AXES[node.op_type]
        if node.op_type == "Gemm" and node.attributes.get_int("transB", 0):
            axis = 0
        assert restored.attributes.get_int("axis", 1) == axis
        assert scale.shape == (codes.shape[axis],)
        assert scale.dtype == np.float32


def one_scale_for_an_activation(model: ir.Model) -> None:
    for node in pairs(model):
        scale = constant(node.inputs[1])
        assert scale is not None
        if not is_constant(node.inputs[0]):
            assert scale.shape == ()


def biases_are_float(model: ir.Model) -> None:
    assert not any(array.dtype == ir.DataType.INT32 for v in model.graph.initializers.values() if (array := v))
    for node in weighted(model):
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            assert is_constant(node.inputs[2])
            assert node.inputs[2].dtype == ir.DataType.FLOAT


def all_inputs_of_weighted_operators(model: ir.Model) -> None:
    found = list(weighted(model))
    assert found
    for node in found:
        assert [is_restored(value) for value in node.inputs[:2]] == [True, True], node.name


def no_weight_alone(model: ir.Model) -> None:
    for node in pairs(model):
        if node.op_type == "DequantizeLinear" and is_constant(node.inputs[0]):
            assert {use.node.op_type for use in node.outputs[0].uses()} <= set(AXES)


def no_outputs_by_default(model: ir.Model) -> None:
    """A Q stands where something that computes in integers reads it."""
    takes = {*AXES, "Add", "AveragePool", "GlobalAveragePool"}
    for node in pairs(model):
        uses = list(node.outputs[0].uses())
        assert uses
        assert not node.outputs[0].is_graph_output()
        if node.op_type == "DequantizeLinear":
            assert {use.node.op_type for use in uses} <= takes


def nothing_between_conv_norm_and_relu(model: ir.Model) -> None:
    for node in model.graph:
        if node.op_type in NORMS:
            assert not is_restored(node.inputs[0]), node.name


def only_the_shortcut_of_a_residual_sum(model: ir.Model) -> None:
    for node in model.graph:
        if node.op_type != "Add" or not any(map(is_restored, node.inputs)):
            continue
        assert [is_restored(value) for value in node.inputs].count(True) == 1, node.name
        main = next(value for value in node.inputs if not is_restored(value))
        while maker(main) in ("BatchNormalization", "Add"):  # the Add of a bias
            producer = main.producer() if main is not None else None
            assert producer is not None
            main = producer.inputs[0]
        assert maker(main) in AXES, node.name


def one_scale_across_concat(model: ir.Model) -> None:
    for node in model.graph:
        if node.op_type != "Concat":
            continue
        quantized = [use.node for v in (*node.outputs, *node.inputs) if v is not None for use in v.uses()]
        scales = {
            float(s) for q in quantized if q.op_type == "QuantizeLinear" and (s := constant(q.inputs[1])) is not None
        }
        assert len(scales) == 1, node.name


RULES: tuple[Callable[[ir.Model], None], ...] = (
    only_standard_operators,
    symmetric_int8_everywhere,
    a_scale_for_each_output_channel_of_a_weight,
    one_scale_for_an_activation,
    biases_are_float,
    all_inputs_of_weighted_operators,
    no_weight_alone,
    no_outputs_by_default,
    nothing_between_conv_norm_and_relu,
    only_the_shortcut_of_a_residual_sum,
    one_scale_across_concat,
)
Emitted = tuple[str, ir.Model, ir.Model, str]  #: name, model before and after, notes
CASES = [*((name, True) for name in NETWORKS), ("resnet", False), ("mobilenet", False)]


@pytest.fixture(scope="module", params=CASES, ids=str)
def emitted(request: pytest.FixtureRequest) -> Emitted:
    """Return a network before and after int8, with BatchNormalization folded into its Conv or not, and the notes."""
    name, fused = request.param
    model = NETWORKS[name]()
    samples = {"x": normal(16, 3, 32, 32, seed=1)}
    if fused:
        apply(Fuse(), model, samples, "tensorrt")
    before = model.clone()
    quick = {} if fused else {"method": "minmax", "rounding": "nearest", "equalize": "off"}
    _, notes = apply(Int8(min_sqnr=10.0, **quick), model, samples, "tensorrt")
    return name, before, model, notes


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule(rule: Callable[[ir.Model], None], emitted: Emitted) -> None:
    rule(emitted[2])


def test_the_answers_stay(emitted: Emitted) -> None:
    _, before, model, _ = emitted
    feed = {"x": normal(8, 3, 32, 32, seed=9)}
    assert sqnr(outputs(before, feed)[0], outputs(model, feed)[0]) > 15


def test_a_residual_network_quantizes_its_shortcuts_behind_convolutions(
    emitted: Emitted,
) -> None:
    name, _, model, _ = emitted
    sums = [node for node in model.graph if node.op_type == "Add" and any(map(is_restored, node.inputs))]
    assert len(sums) == {"resnet": 4, "mobilenet": 3, "vit": 0, "unet": 0}[name]


def test_what_a_convolution_takes_with_it_is_not_called_float(emitted: Emitted) -> None:
    name, *_, notes = emitted
    assert name == "vit" or "Relu: no integer kernel" not in notes
    assert "Clip: no integer kernel" not in notes
    assert "BatchNormalization: no integer kernel" not in notes


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_each_rule_can_fail(rule: Callable[[ir.Model], None]) -> None:
    """The file for ort-cpu breaks most of them; those that it keeps are broken by hand."""
    net = Builder(["N", 16, 16, 16])
    first = net.op("Relu", net.conv("x", 16, 32))
    second = net.conv(first, 32, 32)
    total = net.op("Add", second, first)
    model = net.model(net.conv(net.op("Concat", total, first, axis=1), 64, 8, norm=False))
    broken = breakers().get(rule, lambda _: None)
    target = "tensorrt" if rule in breakers() else "ort-cpu"
    apply(
        Int8(min_sqnr=5.0, method="minmax", rounding="nearest", equalize="off"),
        model,
        {"x": normal(16, 16, 16, 16)},
        target,
    )
    broken(model)
    with pytest.raises(AssertionError):
        rule(model)


def breakers() -> dict[Callable[[ir.Model], None], Callable[[ir.Model], None]]:
    """Return for a rule what breaks it in a file that keeps it."""

    def rename(model: ir.Model) -> None:
        next(node for node in model.graph if node.op_type == "Concat").op_type = "QLinearConcat"

    def per_channel(model: ir.Model) -> None:
        node = next(n for n in pairs(model) if n.op_type == "QuantizeLinear")
        assert node.inputs[1] is not None
        node.inputs[1].const_value = ir.tensor(np.ones(16, np.float32))

    def read_by_concat(model: ir.Model) -> None:
        restored = next(n for n in pairs(model) if n.op_type == "DequantizeLinear" and not is_constant(n.inputs[0]))
        next(node for node in model.graph if node.op_type == "Concat").replace_input_with(0, restored.outputs[0])

    def float_data(model: ir.Model) -> None:
        node = next(weighted(model))
        assert node.inputs[0] is not None
        node.replace_input_with(0, source(node.inputs[0]))

    def weight_elsewhere(model: ir.Model) -> None:
        node = next(weighted(model))
        next(n for n in model.graph if n.op_type == "Relu").replace_input_with(0, node.inputs[1])

    def other_axis(model: ir.Model) -> None:
        restored = next(weighted(model)).inputs[1]
        assert restored is not None
        producer = restored.producer()
        assert producer is not None
        producer.attributes["axis"] = ir.AttrInt64("axis", 1)

    def both_branches(model: ir.Model) -> None:
        node = next(n for n in model.graph if n.op_type == "Add")
        restored = next(v for v in node.inputs if is_restored(v))
        for index in range(2):
            node.replace_input_with(index, restored)

    def other_scale(model: ir.Model) -> None:
        concat = next(node for node in model.graph if node.op_type == "Concat")
        quantize = next(use.node for use in concat.outputs[0].uses())
        quantize.replace_input_with(1, ir.val("other", const_value=ir.tensor(np.float32(0.5))))

    return {
        only_standard_operators: rename,
        one_scale_for_an_activation: per_channel,
        no_outputs_by_default: read_by_concat,
        all_inputs_of_weighted_operators: float_data,
        no_weight_alone: weight_elsewhere,
        a_scale_for_each_output_channel_of_a_weight: other_axis,
        one_scale_across_concat: other_scale,
        only_the_shortcut_of_a_residual_sum: both_branches,
    }


def test_weights_are_not_stored_alone() -> None:
    net = Builder(["N", 16, 64])
    model = net.model(net.op("Add", net.op("Tanh", "x"), net.weight(16, 64, fan=1)))
    result, notes = apply(Int8(mode="storage"), model, None, "tensorrt")
    assert result.rewrites == 0
    assert "takes no integer weights beside float data" in notes
    assert onnx.TensorProto.INT8 not in {v.dtype for v in model.graph.initializers.values()}
