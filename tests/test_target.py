"""Targets: what they may say, and that what ort-cpu says of ONNX Runtime is what ONNX Runtime does."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnxedge.errors import UserError
from onnxedge.runtime import optimized_graph
from onnxedge.target import Kernel, Target, load_packaged_target, load_target

IMAGE = [1, 16, 8, 8]
INDICES: dict[str, Any] = {"i": np.array([0]), "j": np.array([4]), "k": np.array([1])}

#: operator -> attributes, further inputs with their arrays
OPERATORS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "Conv": ({"pads": [1, 1, 1, 1]}, {}),
    "Gemm": ({}, {}),
    "MatMul": ({}, {}),
    "Add": ({}, {}),
    "Mul": ({}, {}),
    "Concat": ({"axis": 1}, {}),
    "Where": ({}, {}),
    "Sigmoid": ({}, {}),
    "Softmax": ({"axis": -1}, {}),
    "LeakyRelu": ({"alpha": 0.1}, {}),
    "AveragePool": ({"kernel_shape": [2, 2]}, {}),
    "GlobalAveragePool": ({}, {}),
    "MaxPool": ({"kernel_shape": [2, 2]}, {}),
    "Transpose": ({"perm": [0, 3, 1, 2]}, {}),
    "Reshape": ({}, {"i": np.array([1, -1])}),
    "Flatten": ({}, {}),
    "Squeeze": ({}, {"i": np.array([0])}),
    "Unsqueeze": ({}, {"i": np.array([0])}),
    "Slice": ({}, INDICES),
    "Gather": ({"axis": 1}, {"i": np.array([0, 2])}),
    "Expand": ({}, {"i": np.array([2, 16, 8, 8])}),
    "Tile": ({}, {"i": np.array([1, 2, 1, 1])}),
    "Resize": ({"mode": "nearest"}, {"": None, "i": np.array([1, 1, 2, 2], np.float32)}),
    "DepthToSpace": ({"blocksize": 2}, {}),
    "Split": ({"axis": 1}, {"i": np.array([8, 8])}),
    "ReduceMax": ({"axes": [1]}, {}),
    "ReduceMin": ({"axes": [1]}, {}),
}
#: how the optimized graph calls the integer kernel, where it is not the operator itself
KERNELS = {"Conv": "QLinearConv", "Gemm": "QGemm", "MatMul": "QLinearMatMul"}
TWO = ("Add", "Mul", "Concat")


@pytest.fixture(scope="module")
def cpu() -> Target:
    return load_packaged_target("onnxedge.targets", "ort-cpu")


def _node(op: str, inputs: list[str], outputs: list[str], **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs, outputs, **attributes)


def _pair(value: str, scale: str = "s", zero: str = "z") -> list[onnx.NodeProto]:
    return [
        _node("QuantizeLinear", [value, scale, zero], [f"{value}_q"]),
        _node("DequantizeLinear", [f"{value}_q", scale, zero], [f"{value}_d"]),
    ]


def _model(
    nodes: list[onnx.NodeProto], arrays: dict[str, Any], shape: list[int], outputs: list[str], opset: int = 17
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", 1, shape)],
        [helper.make_tensor_value_info(name, 1, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def _quantized(
    op: str, cpu: Target, *, quantize_output: bool = True, then: str = "", zero: int = 128, explicit: bool = True
) -> list[str]:
    """Return the operators that ONNX Runtime makes of ``Q -> DQ -> op -> Q -> DQ`` between two float operators."""
    rules = cpu.quantization
    assert rules is not None
    attributes, extra = OPERATORS[op]
    shape = [8, 16] if op in ("Gemm", "MatMul") else IMAGE
    out_scale, out_zero = rules.fixed.get(op, (0.02 if op in rules.pass_through else 0.03, zero))
    arrays = {
        "s": np.float32(0.02), "z": np.uint8(zero), "so": np.float32(out_scale), "zo": np.uint8(out_zero),
    }  # fmt: skip
    nodes = [_node("Sigmoid", ["x"], ["a"]), *_pair("a")]
    inputs = ["a_d", "a_d"] if op in TWO else ["a_d"]
    if op == "Where":
        arrays["m"] = np.arange(8) % 2 == 0
        inputs = ["m", "a_d", "a_d"]
    if op in rules.per_channel:
        axis = rules.per_channel[op]
        weight = np.ones((16, 16, 3, 3) if op == "Conv" else (16, 16), np.int8)
        arrays |= {"w": weight, "sw": np.full(16, 0.01, np.float32), "zw": np.zeros(16, np.int8)}
        arrays |= {"b": np.zeros(16, np.int32), "sb": np.full(16, 0.0002, np.float32), "zb": np.zeros(16, np.int32)}
        nodes.append(_node("DequantizeLinear", ["w", "sw", *(["zw"] if explicit else [])], ["w_d"], axis=axis))
        inputs.append("w_d")
        if op != "MatMul":
            nodes.append(_node("DequantizeLinear", ["b", "sb", *(["zb"] if explicit else [])], ["b_d"], axis=0))
            inputs.append("b_d")
    arrays |= {name: array for name, array in extra.items() if name}
    outputs = ["c0", "c1"] if op == "Split" else ["c0"]
    nodes.append(_node(op, [*inputs, *extra], outputs, **attributes))
    ends = []
    for name in outputs:
        last = name
        if then:
            nodes.append(_node(then, [name], [f"{name}_t"]))
            last = f"{name}_t"
        if quantize_output:
            nodes += _pair(last, "so", "zo")
            last = f"{last}_d"
        nodes.append(_node("Tanh", [last], [f"{name}_y"]))
        ends.append(f"{name}_y")
    ran = optimized_graph(_model(nodes, arrays, shape, ends))
    return [node.op_type for node in ran.graph.node if node.op_type not in ("Tanh",)]


def _is_integer(op: str, ran: list[str]) -> bool:
    """Tell whether one Q comes first and all DQs come last: nothing in between is float."""
    inner = [name for name in ran if name not in ("Transpose", "DequantizeLinear")]
    first_back = ran.index("DequantizeLinear") if "DequantizeLinear" in ran else len(ran)
    kernel = KERNELS.get(op, op)
    return (
        inner[:2] == ["Sigmoid", "QuantizeLinear"]
        and inner.count("QuantizeLinear") == 1
        and any(name in (kernel, f"QLinear{op}", f"Nhwc{op}") for name in ran[:first_back])
    )


def test_operators_are_tried(cpu: Target) -> None:
    rules = cpu.quantization
    assert rules is not None
    assert set(OPERATORS) == {*rules.integer, *rules.pass_through}


@pytest.mark.parametrize("op", sorted(OPERATORS))
def test_ort_runs_it_in_integers(op: str, cpu: Target) -> None:
    assert _is_integer(op, _quantized(op, cpu)), _quantized(op, cpu)


def test_ort_needs_the_output_quantized_only_where_the_target_says_so(cpu: Target) -> None:
    rules = cpu.quantization
    assert rules is not None
    for op in rules.integer:
        ran = _quantized(op, cpu, quantize_output=False)
        integer = any(name.startswith(("QLinear", "QGemm", "MatMulIntegerToFloat")) for name in ran)
        assert integer == (op not in rules.quantize_output), (op, ran)


def test_ort_absorbs_a_relu_where_the_zero_point_is_the_least(cpu: Target) -> None:
    rules = cpu.quantization
    assert rules is not None
    for op in rules.absorbing:
        assert _is_integer(op, _quantized(op, cpu, then="Relu", zero=0)), op
    assert not _is_integer("Conv", _quantized("Conv", cpu, then="Relu", zero=128))


def test_ort_needs_the_zero_point_of_a_gemm_weight(cpu: Target) -> None:
    rules = cpu.quantization
    assert rules is not None
    assert _is_integer("Conv", _quantized("Conv", cpu, explicit=False))
    assert not _is_integer("Gemm", _quantized("Gemm", cpu, explicit=False))
    assert "Gemm" in rules.explicit_zero_point


def test_ort_runs_pad_on_integers_only(cpu: Target) -> None:
    pads = {"p": np.array([0, 0, 1, 1, 0, 0, 1, 1])}
    scales = {"s": np.float32(0.02), "z": np.uint8(0), **pads}
    start = [_node("Sigmoid", ["x"], ["a"])]
    between = [*start, *_pair("a"), _node("Pad", ["a_d", "p"], ["b"]), *_pair("b"), _node("Tanh", ["b_d"], ["y"])]
    ran = [n.op_type for n in optimized_graph(_model(between, scales, IMAGE, ["y"])).graph.node]
    assert ran.count("QuantizeLinear") == 2
    inside = [
        *start,
        _node("QuantizeLinear", ["a", "s", "z"], ["q"]),
        _node("Pad", ["q", "p", "z"], ["b"]),
        _node("DequantizeLinear", ["b", "s", "z"], ["d"]),
        _node("Tanh", ["d"], ["y"]),
    ]
    ran = [n.op_type for n in optimized_graph(_model(inside, scales, IMAGE, ["y"])).graph.node]
    assert ran == ["Sigmoid", "QuantizeLinear", "Pad", "DequantizeLinear", "Tanh"]


@pytest.mark.parametrize("op", ["Conv", "Gemm"])
def test_ort_quantizes_a_float_operator_between_dq_and_q_by_itself(op: str, cpu: Target) -> None:
    rules = cpu.quantization
    assert rules is not None
    shape = IMAGE if op == "Conv" else [8, 16]
    weight = np.ones((16, 16, 1, 1) if op == "Conv" else (16, 16), np.float32)
    nodes = [*_pair("x"), _node(op, ["x_d", "w"], ["c"]), *_pair("c"), _node("Tanh", ["c_d"], ["y"])]
    arrays = {"s": np.float32(0.02), "z": np.uint8(0), "w": weight}
    ran = {node.op_type for node in optimized_graph(_model(nodes, arrays, shape, ["y"])).graph.node}
    assert KERNELS[op] in ran
    assert op in rules.quantized_by_runtime


@pytest.mark.parametrize("opset", [9, 13, 17])
def test_ort_folds_cast_and_mul_and_not_dequantize(opset: int, cpu: Target) -> None:
    assert cpu.quantization is not None
    assert cpu.quantization.folded == "cast-mul"
    arrays = {"w": np.ones((16, 16, 1, 1), np.int8), "s": np.full((16, 1, 1, 1), 0.1, np.float32)}
    nodes = [_node("Cast", ["w"], ["f"], to=1), _node("Mul", ["f", "s"], ["m"]), _node("Conv", ["x", "m"], ["y"])]
    ran = {n.op_type for n in optimized_graph(_model(nodes, arrays, IMAGE, ["y"], opset)).graph.node}
    assert not ran & {"Cast", "Mul"}
    if opset >= 13:
        flat = {"w": arrays["w"], "s": np.full(16, 0.1, np.float32)}
        nodes = [_node("DequantizeLinear", ["w", "s"], ["m"], axis=0), _node("Conv", ["x", "m"], ["y"])]
        ran = {n.op_type for n in optimized_graph(_model(nodes, flat, IMAGE, ["y"], opset)).graph.node}
        assert "DequantizeLinear" in ran


@pytest.mark.parametrize("opset", [10, 11, 12])
def test_ort_takes_contrib_q_dq_per_channel_at_old_opsets(opset: int, cpu: Target) -> None:
    assert cpu.quantization is not None
    assert cpu.quantization.contrib_opset == 10
    arrays = {
        "s": np.float32(0.02), "z": np.uint8(0), "w": np.ones((16, 16, 1, 1), np.int8),
        "sw": np.full(16, 0.01, np.float32), "zw": np.zeros(16, np.int8),
    }  # fmt: skip
    nodes = [
        *_pair("x"),
        _node("DequantizeLinear", ["w", "sw", "zw"], ["m"], axis=0),
        _node("Conv", ["x_d", "m"], ["c"]),
        *_pair("c"),
        _node("Tanh", ["c_d"], ["y"]),
    ]
    for node in nodes:
        if node.op_type.endswith("Linear"):
            node.domain = "com.microsoft"
    ran = [n.op_type for n in optimized_graph(_model(nodes, arrays, IMAGE, ["y"], opset)).graph.node]
    assert "QLinearConv" in ran


def test_kernels_worth_fusing_into() -> None:
    target = load_target("acme", 'name = "acme"\nslow = ["Swish"]\noperators = ["com.acme::Gelu"]')
    assert target.has_kernel("Gelu", "com.acme")
    assert not target.has_kernel("Gelu", "com.microsoft")
    assert target.has_kernel("Gelu", opset=20)
    assert not target.has_kernel("Gelu", opset=19)
    assert not target.has_kernel("Swish", opset=24)


def test_what_a_kernel_takes() -> None:
    text = 'name = "acme"\n[kernels]\n"com.acme::Gelu" = { dtypes = ["float16"], outputs = 2 }'
    assert load_target("acme", text).kernels == {"com.acme::Gelu": Kernel(dtypes=("float16",), outputs=2)}
    with pytest.raises(UserError, match="unknown key 'types'"):
        load_target("acme", text.replace("dtypes", "types"))


@pytest.mark.parametrize("name", ["ort-cpu", "ort-cuda"])
def test_ort_has_the_kernels_that_its_targets_list(name: str) -> None:
    from onnxruntime.capi import _pybind_state

    kernels = {f"{kernel.domain}::{kernel.op_name}" for kernel in _pybind_state.get_all_opkernel_def()}
    assert set(load_packaged_target("onnxedge.targets", name).operators) <= kernels


def test_vendor_rules_are_read() -> None:
    target = load_target(
        "acme",
        'name = "acme"\n[quantization]\nfixed = { Softmax = [0.00390625, 0] }\nmin_macs = { Conv = 100 }\n'
        "[quantization.costs]\nConv = { at = [1, 8], float_ns = [2, 1], integer_ns = [1, 0.5] }",
    )
    assert target.quantization is not None
    assert target.quantization.costs["Conv"].float_ns == (2.0, 1.0)
    assert target.quantization.fixed["Softmax"] == (0.00390625, 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('name = "a"\n[quantization]\nactivation = "int4"', "'int4' is none of 'uint8', 'int8'"),
        ('name = "a"\n[quantization.costs]\nConv = 3', "quantization: costs.Conv: needs a table"),
        ('name = "a"\n[quantization.costs.Conv]\nfloat = [1.0]', "unknown key 'float'; did you mean 'float_ns'?"),
        ('name = "a"\n[quantization.costs.Conv]\nfloat_ns = [1.0]', "'integer_ns' is missing"),
        ('name = "a"\n[quantization]\nintegers = []', "unknown key 'integers'; did you mean 'integer'?"),
    ],
)
def test_wrong_rules_are_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match="target a") as caught:
        load_target("a.toml", text)
    assert message in str(caught.value)
