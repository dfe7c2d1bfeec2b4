"""The table of operator semantics: kinds, weight axes, multiply-accumulates."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest
from onnx import parser

from onnxedge.api import OPERATORS, data_inputs, macs, model_macs, operator, weight_axes
from onnxedge.verify import infer_shapes


def first(text: str, opset: int = 17) -> ir.Node:
    model = ir.from_proto(parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}, "acme" : 1]>\n{text}'))
    infer_shapes(model)
    return model.graph[0]


def test_default_domain_operators_exist() -> None:
    known = {schema.name for schema in onnx.defs.get_all_schemas_with_history() if schema.domain == ""}
    known |= {"LogSigmoid", "SimplifiedLayerNormalization"}  # local names that exporters leave in the default domain
    assert {name for name in OPERATORS if "::" not in name} <= known


def test_every_entry_has_a_kind_and_no_operator_of_another_domain_is_guessed() -> None:
    assert all(entry.kind != "unknown" for entry in OPERATORS.values())
    node = first("g (float[2] x) => (float[2] y) { y = acme.Relu(x) }")
    assert operator(node).kind == "unknown"


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("g (float[N,3,8,8] x, float[16,3,3,3] w) => (float[N,16,6,6] y) { y = Conv(x, w) }", 16 * 36 * 27),
        ("g (float[2,8,8,8] x, float[8,1,3,3] w) => (y) { y = Conv<group=8>(x, w) }", 2 * 8 * 36 * 9),
        ("g (float[1,8,5,5] x, float[8,4,2,2] w) => (y) { y = ConvTranspose<strides=[2,2]>(x, w) }", 8 * 25 * 16),
        ("g (float[N,8] x, float[5,8] w) => (y) { y = Gemm<transB=1>(x, w) }", 40),
        ("g (float[2,4,6,8] x, float[2,4,8,6] w) => (y) { y = MatMul(x, w) }", 2 * 4 * 6 * 6 * 8),
        ("g (float[1,4,6] x, float[6,3] w) => (y) { y = MatMul(x, w) }", 72),
        ('g (float[2,3] x, float[3,4] w) => (y) { y = Einsum<equation="ij,jk->ik">(x, w) }', 24),
        (
            "g (float[2,4,5,8] q, float[2,4,7,8] k, float[2,4,7,6] v) => (float[2,4,5,6] y) { y = Attention(q, k, v) }",
            2 * 4 * 5 * 7 * 14,
        ),
        (
            "g (float[2,5,32] q, float[2,7,16] k, float[2,7,16] v) => (float[2,5,32] y)"
            " { y = com.microsoft.GroupQueryAttention<num_heads=4,kv_num_heads=2>(q, k, v) }",
            2 * 5 * 7 * 64,
        ),
        (
            "g (float[2,5,8] x, float[8,24] w) => (float[2,5,8] y) { y = com.microsoft.Attention<num_heads=2>(x, w) }",
            2 * 5 * 8 * 24 + 2 * 5 * 5 * 16,
        ),
        (
            "g (float[2,5,2,3,4] x) => (float[2,5,8] y) { y = com.microsoft.MultiHeadAttention<num_heads=2>(x) }",
            2 * 5 * 5 * 16,
        ),
        ("g (float[N,8] x) => (y) { y = Relu(x) }", 0),
    ],
)
def test_macs(text: str, count: int) -> None:
    assert macs(first(text)) == count


def test_macs_of_a_recurrent_layer() -> None:
    text = "g (float[5,2,8] x, float[1,16,8] w, float[1,16,4] r) => (y) { y = LSTM<hidden_size=4>(x, w, r) }"
    assert macs(first(text)) == 5 * 2 * (16 * 8 + 16 * 4)


def test_macs_unknown_shape() -> None:
    assert macs(first("g (float[N,3,H,W] x, float[16,3,3,3] w) => (y) { y = Conv(x, w) }")) is None


def test_model_macs_takes_the_costlier_branch_and_counts_calls() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
    g (bool c, float[1,8] x, float[8,8] w, float[8,64] v) => (float[1,8] y) {
      a = MatMul(x, w)
      b = If(c)<
        then_branch = t () => (float[1,64] p) { p = MatMul(a, v) },
        else_branch = e () => (float[1,8] q) { q = MatMul(a, w) }>
      y = Identity(a)
    }"""
    model = ir.from_proto(parser.parse_model(text))
    infer_shapes(model)
    assert model_macs(model) == 64 + 512


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("g (float[1,4,8,8] x, float[6,2,3,3] w) => (y) { y = Conv<group=2>(x, w) }", (1, 2, 0, 1, 1, 1, 2)),
        ("g (float[1,4,8,8] x, float[4,6,3,3] w) => (y) { y = ConvTranspose(x, w) }", (1, 2, 1, 0, 1, 1, 1)),
        ("g (float[1,4] x, float[6,4] w) => (y) { y = Gemm<transB=1>(x, w) }", (1, 2, 0, 1, -1, -1, 1)),
        ("g (float[4,1] x, float[4,6] w) => (y) { y = Gemm<transA=1>(x, w) }", (1, 2, 1, 0, -2, -1, 1)),
        ("g (float[1,4] x, float[4,6] w) => (y) { y = MatMul(x, w) }", (1, None, 1, 0, -1, -1, 1)),
    ],
)
def test_weight_axes(text: str, expected: tuple[int | None, ...]) -> None:
    axes = weight_axes(first(text))
    assert axes is not None
    found = (axes.index, axes.bias, axes.output, axes.input, axes.data_axis, axes.output_axis, axes.groups)
    assert found == expected


def test_weight_axes_of_others() -> None:
    assert weight_axes(first("g (float[1,4] x) => (y) { y = Relu(x) }")) is None


def test_data_inputs_leave_parameters_out() -> None:
    node = first("g (float[4,4] x, int64[2] s) => (y) { y = Reshape(x, s) }")
    assert [value.name for value in data_inputs(node)] == ["x"]
    node = first("g (float[4,4] x, float[4,4] z) => (y) { y = Add(x, z) }")
    assert [value.name for value in data_inputs(node)] == ["x", "z"]
