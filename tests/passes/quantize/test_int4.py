"""int4: what is stored in 4 bits, in which form, how it is rounded, what stays float."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from onnxedge_passes.quantize.dequantize import Dequantize
from onnxedge_passes.quantize.int4 import Int4
from onnxedge_passes.quantize.int4.blocks import half_quadratic, nearest
from onnxedge_passes.quantize.int4.calibrated import activation_aware, output_error, scaled_second_order, second_order
from onnxedge_passes.quantize.int4.pack import for_matmul, halves, unpacked, whole
from precision import apply, kinds, normal, outputs, sqnr

import onnxedge
from onnxedge.api import Array, Result, UserError, constant, to_proto

K, N = 96, 48
ALL: dict[str, Any] = {
    "method": "gptq",
    "slower": True,
    "min_elements": 1,
    "min_sqnr": -99.0,
    "accuracy_level": 0,
    "block_size": 32,
}


def model_of(text: str, weights: dict[str, Array], opset: int = 17, ir_version: int = 8) -> ir.Model:
    """Return a model from the text of its graph and arrays for its initializers."""
    head = f'<ir_version: {ir_version}, opset_import: ["": {opset}, "acme": 1]>'
    proto = onnx.parser.parse_model(f"{head} {text}")
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    return ir.serde.deserialize_model(proto)


def product(opset: int = 17, ir_version: int = 8) -> ir.Model:
    """Return a product, an addition and a second product."""
    text = f"g (float[N,T,{K}] x) => (float[N,T,{K}] y) {{ a = MatMul(x, w)  b = Relu(a)  y = MatMul(b, v) }}"
    weights = {"w": normal(K, N, seed=1), "v": normal(N, K, seed=2)}
    return model_of(text, weights, opset, ir_version)


def correlated(count: int = 64) -> Array:
    """Return data float32 [count, 4, K] whose inputs depend on each other, a few of them large."""
    mix = normal(K, K, seed=5) + 2 * normal(K, 4, seed=6) @ normal(4, K, seed=7)
    return (normal(count, 4, K, seed=8) @ mix * np.where(np.arange(K) % 16 == 3, 6.0, 1.0) / 20).astype(np.float32)


def run(model: ir.Model, x: Array | None = None, target: str = "ort-cpu", **options: Any) -> tuple[Result, str]:
    """Run the pass on all weights, however small."""
    feed = {"x": x} if x is not None else None
    return apply(Int4(**(ALL | options)), model, feed, target)


def test_halves_go_there_and_back() -> None:
    codes = np.random.default_rng(0).integers(0, 16, (3, 5, 7)).astype(np.uint8)
    np.testing.assert_array_equal(whole(halves(codes), 7), codes)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("columns", [64, 70])
def test_what_is_packed_is_what_the_kernel_reads(columns: int, symmetric: bool) -> None:
    matrix = normal(10, columns)
    blocks = nearest(matrix, 16, symmetric=symmetric)
    assert blocks.symmetric == symmetric
    assert np.abs(matrix - blocks.restored()).max() < np.abs(matrix).max() / 7
    weight, scale, zero = for_matmul(blocks)
    back = unpacked(weight, scale, zero, block=16, rows=columns, columns=10)
    np.testing.assert_array_equal(back, blocks.restored().T)


def test_zeros_stay_zeros_and_constants_stay_themselves() -> None:
    matrix = np.zeros((4, 64), np.float32)
    matrix[1] = 3.0
    matrix[2] = -0.5
    for rounded in (nearest, half_quadratic):
        np.testing.assert_allclose(rounded(matrix, 32, symmetric=False).restored(), matrix, rtol=1e-6)


@pytest.mark.parametrize("method", ["auto", "rtn", "hqq", "gptq", "awq"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_outputs_are_those_of_the_rounded_weights(method: str, symmetric: bool) -> None:
    model, x = product(), correlated()
    before = model.clone()
    result, _ = run(model, x, method=method, symmetric=symmetric)
    assert result.figures["weights"] == 2
    assert kinds(model).count("MatMulNBits") == 2
    restored = model.clone()
    apply(Dequantize(), restored)
    assert "MatMulNBits" not in kinds(restored)
    for shape in ((1, 1, K), (3, 5, K)):
        feed = {"x": correlated(shape[0] * shape[1]).reshape(-1, K)[: shape[0] * shape[1]].reshape(shape)}
        first, four, floats = (outputs(m, feed)[0] for m in (before, model, restored))
        np.testing.assert_allclose(four, floats, atol=1e-4 * np.abs(floats).max())
        assert sqnr(first, four) > 14


def test_each_method_is_better_where_it_should_be() -> None:
    rng = np.random.default_rng(3)
    matrix = rng.standard_t(3, size=(64, K)).astype(np.float32)
    rows = correlated(256).reshape(-1, K)
    gram = (rows.T @ rows / len(rows)).astype(np.float64)
    plain = nearest(matrix, 32, symmetric=False, search=False)
    searched = nearest(matrix, 32, symmetric=False)
    half = half_quadratic(matrix, 32, symmetric=False)
    assert np.square(matrix - searched.restored()).sum() < np.square(matrix - plain.restored()).sum()
    assert (np.abs(matrix - half.restored()) ** 0.7).sum() < (np.abs(matrix - searched.restored()) ** 0.7).sum()
    error = output_error(matrix, searched, gram)
    assert output_error(matrix, second_order(matrix, gram, 32, symmetric=False), gram) < 0.6 * error
    (aware,) = activation_aware([matrix], gram, 32, symmetric=False)
    assert aware.data_scale is not None
    assert output_error(matrix, aware, gram) < 0.9 * error
    (both,) = scaled_second_order([matrix], gram, 32, symmetric=False, least_gain=0.0)
    assert output_error(matrix, both, gram) < 0.6 * error


@pytest.mark.parametrize("block", [16, 128])
def test_level_4_computes_in_8_bits_and_keeps_the_outputs(block: int) -> None:
    model = product()
    before = model.clone()
    run(model, correlated(), accuracy_level=4, block_size=block)
    assert all(node.attributes.get_int("accuracy_level", 0) == 4 for node in model.graph if "NBits" in node.op_type)
    feed = {"x": correlated()[:3]}
    assert sqnr(outputs(before, feed)[0], outputs(model, feed)[0]) > 12


@pytest.mark.parametrize(("target", "symmetric"), [("generic", False), ("tensorrt", True)])
def test_blocks_of_the_standard_elsewhere(target: str, symmetric: bool) -> None:
    model = product(21, 10)
    before = model.clone()
    run(model, correlated(), target)
    assert kinds(model) == ["DequantizeLinear", "DequantizeLinear", "MatMul", "Relu", "MatMul"]
    assert {len(node.inputs) for node in model.graph if node.op_type == "DequantizeLinear"} == {2 if symmetric else 3}
    assert {tensor.data_type for tensor in to_proto(model).graph.initializer if "4bit" in tensor.name} == {
        onnx.TensorProto.INT4 if symmetric else onnx.TensorProto.UINT4
    }
    feed = {"x": correlated()[:3]}
    assert sqnr(outputs(before, feed)[0], outputs(model, feed)[0]) > 14


def test_old_opsets_have_no_blocks() -> None:
    model = product(20)
    result, notes = run(model, correlated(), "generic")
    assert result.rewrites == 0
    assert "convert(opset=21)" in notes


@pytest.mark.parametrize("opset", [9, 13, 21])
def test_the_runtimes_own_kernel_needs_no_opset(opset: int) -> None:
    model = product(opset)
    run(model, correlated())
    assert kinds(model) == ["MatMulNBits", "Relu", "MatMulNBits"]
    assert outputs(model, {"x": correlated()[:2]})


def test_a_gemm_with_a_bias_and_a_transposed_weight() -> None:
    text = f"g (float[N,{K}] x) => (float[N,{N}] y, float[N,{N}] z) {{ y = Gemm<transB=1>(x, w, b)  z = Gemm(x, v) }}"
    model = model_of(text, {"w": normal(N, K), "b": normal(N), "v": normal(K, N, seed=4)})
    before = model.clone()
    x = correlated().reshape(-1, K)
    run(model, x)
    assert sorted(kinds(model)) == ["Add", "MatMulNBits", "MatMulNBits"]
    for first, four in zip(outputs(before, {"x": x[:5]}), outputs(model, {"x": x[:5]}), strict=True):
        assert sqnr(first, four) > 14


def test_a_model_in_float16_keeps_its_type() -> None:
    text = f"g (float16[N,{K}] x) => (float16[N,{N}] y) {{ y = MatMul(x, w) }}"
    model = model_of(text, {"w": (normal(K, N) / 8).astype(np.float16)})
    before = model.clone()
    x = (normal(20, K, seed=3) / 4).astype(np.float16)
    assert run(model, x)[0].rewrites == 1
    assert {v.dtype.name for v in model.graph.initializers.values() if v.dtype} == {"UINT8", "FLOAT16"}
    assert sqnr(outputs(before, {"x": x})[0], outputs(model, {"x": x})[0]) > 14


TABLE = f"g (int64[N,T] x) => (float[N,T,{K}] y) {{ y = Gather(w, x) }}"


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_table(symmetric: bool) -> None:
    model = model_of(TABLE, {"w": normal(50, K)})
    before = model.clone()
    x = np.arange(50).reshape(5, 10)
    result, _ = run(model, x, symmetric=symmetric, block_size=16)
    assert result.figures["tables"] == 1
    assert kinds(model) == ["GatherBlockQuantized"]
    first, four = (outputs(m, {"x": x})[0] for m in (before, model))
    assert 17 < sqnr(first, four) < 30
    apply(Dequantize(), model)
    assert kinds(model) == ["Gather"]
    np.testing.assert_allclose(outputs(model, {"x": x})[0], four, rtol=1e-6)


def test_tables_that_stay() -> None:
    x = np.arange(10).reshape(2, 5)
    for options, reason in (
        ({"block_size": 64}, "no multiple of the block"),
        ({"tables": False}, ""),
        ({"target": "generic"}, "made float at each run"),
    ):
        model = model_of(TABLE, {"w": normal(50, K)}, 21, 10)
        result, notes = run(model, x, **options)
        assert result.rewrites == 0
        assert reason in notes


@pytest.mark.parametrize("method", ["awq", "auto"])
def test_awq_divides_the_data_in_the_normalization_before(method: str) -> None:
    text = f"""g (float[N,T,{K}] x) => (float[N,T,{N}] y, float[N,T,{N}] z)
      {{ n = LayerNormalization(x, g, b)  y = MatMul(n, w)  z = MatMul(n, v) }}"""
    gamma = np.where(np.arange(K) % 16 == 3, 30.0, 1.0).astype(np.float32)
    weights = {"g": gamma, "b": normal(K, seed=3), "w": normal(K, N), "v": normal(K, N, seed=1)}
    model = model_of(text, weights)
    before = model.clone()
    run(model, correlated(), method=method)
    assert kinds(model) == ["LayerNormalization", "MatMulNBits", "MatMulNBits"]
    scale = constant(next(node for node in model.graph).inputs[1])
    assert scale is not None
    assert not np.allclose(scale, gamma)
    plain = before.clone()
    run(plain, correlated(), method="rtn")
    feed = {"x": correlated()[:8]}
    first, aware, other = (outputs(m, feed)[0] for m in (before, model, plain))
    assert sqnr(first, aware) > sqnr(first, other) + 1


@pytest.mark.parametrize(("end", "folded"), [("", True), ("k = Neg(n)", False)])
def test_awq_divides_the_data_in_what_scales_and_shifts_it(end: str, folded: bool) -> None:
    text = f"""g (float[N,T,{K}] x) => (float[N,T,{N}] y, float[N,T,{K}] k)
      {{ c = Tanh(x)  m = Mul(c, g)  n = Add(b, m)  y = MatMul(n, w)  {end or "k = Neg(c)"} }}"""
    gamma = np.where(np.arange(K) % 16 == 3, 30.0, 1.0).astype(np.float32)
    model = model_of(text, {"g": gamma, "b": normal(K, seed=3), "w": normal(K, N)})
    before = model.clone()
    run(model, correlated(), method="awq")
    assert kinds(model).count("Mul") == (1 if folded else 2)
    feed = {"x": correlated()[:8]}
    for first, other in zip(outputs(before, feed), outputs(model, feed), strict=True):
        assert sqnr(first, other) > 14


def test_awq_adds_a_mul_where_there_is_no_constant() -> None:
    model = product()
    before = model.clone()
    _, notes = run(model, correlated(), method="awq")
    assert "Mul" in kinds(model)
    assert "Mul nodes were added" in notes
    feed = {"x": correlated()[:8]}
    assert sqnr(outputs(before, feed)[0], outputs(model, feed)[0]) > 14


def test_a_weight_that_two_read_is_stored_once() -> None:
    text = f"g (float[N,{K}] x) => (float[N,{K}] y) {{ a = MatMul(x, w)  b = Tanh(a)  y = MatMul(b, w) }}"
    model = model_of(text, {"w": normal(K, K)})
    result, _ = run(model, correlated().reshape(-1, K))
    assert result.rewrites == 1
    assert sum("4bit" in name for name in model.graph.initializers) == 1
    assert "w" not in model.graph.initializers


IF = f"""g (float[N,{K}] x, bool c) => (float[N,{N}] y)
  {{ a = MatMul(x, w)
     b = If(c) <then_branch = t () => (float[N,{N}] p) {{ p = MatMul(x, w) }},
                else_branch = e () => (float[N,{N}] q) {{ q = Neg(a) }}>
     y = Add(a, b) }}"""
ONE = f"g (float[N,{K}] x) => (float[N,{N}] y) {{ y = MatMul(x, w) }}"
SHAPE = ONE.replace("w)", "w)  z = Shape(w)").replace("y)", "y, int64[2] z)", 1)


@pytest.mark.parametrize(
    ("text", "weights", "options", "reason"),
    [
        (ONE, {"w": normal(K, N)}, {"min_elements": 9999}, "fewer than 9999 weights"),
        (ONE, {"w": normal(K, N).astype(np.float32) * np.inf}, {}, "infinities or NaN"),
        (
            ONE.replace("w)", "w)  z = Shape(w)").replace("y)", "y, int64[2] z)", 1),
            {"w": normal(K, N)},
            {},
            "another way",
        ),
        (ONE.replace("MatMul(x, w)", "Gemm<alpha=2.0>(x, w)"), {"w": normal(K, N)}, {}, "alpha"),
        (ONE.replace("MatMul(x, w)", "Gemm<beta=2.0>(x, w, b)"), {"w": normal(K, N), "b": normal(N)}, {}, "beta"),
        (f"g (float[{K}] x) => (float[{N}] y) {{ y = MatMul(x, w) }}", {"w": normal(K, N)}, {}, "one axis alone"),
        (IF, {"w": normal(K, N)}, {}, "in a subgraph"),
        (f"g (float[{N},M] x) => (float[{K},M] y) {{ y = MatMul(w, x) }}", {"w": normal(K, N)}, {}, "first operand"),
        (ONE.replace("w)", "w)  w2 = Identity(w)"), {"w": normal(K, N)}, {"skip": "nothing*"}, "another way"),
    ],
)
def test_what_stays_float_is_said(text: str, weights: dict[str, Array], options: dict[str, Any], reason: str) -> None:
    model = model_of(text, weights)
    result, notes = run(model, None, **options)
    assert result.rewrites == 0
    assert reason in notes


def test_a_weight_that_may_be_overridden_stays() -> None:
    proto = to_proto(model_of(ONE, {"w": normal(K, N)}))
    proto.graph.input.append(onnx.helper.make_tensor_value_info("w", 1, [K, N]))
    result, notes = run(ir.serde.deserialize_model(proto), None)
    assert result.rewrites == 0
    assert "may be overridden" in notes


def test_skip_and_options() -> None:
    model = product()
    next(iter(model.graph)).name = "first/mul"
    result, notes = run(model, correlated(), skip="first/*")
    assert result.rewrites == 1
    assert "as asked by skip" in notes
    for options in ({"block_size": 48}, {"accuracy_level": 5}, {"samples": 0}, {"min_elements": 0}):
        with pytest.raises(UserError):
            run(product(), correlated(), **options)


def test_products_that_would_be_slower_stay() -> None:
    small = model_of(f"g (float[64,{K}] x) => (float[64,{K}] y) {{ y = MatMul(x, w) }}", {"w": normal(K, K)})
    result, notes = run(small, slower=False)
    assert result.rewrites == 0
    assert "slower than the float one" in notes
    large = model_of("g (float[1,1024] x) => (float[1,1024] y) { y = MatMul(x, w) }", {"w": normal(1024, 1024)})
    assert run(large, slower=False)[0].rewrites == 1


def test_the_worst_weights_go_back_until_the_outputs_are_good_enough() -> None:
    model = product()
    before = model.clone()
    result, notes = run(model, correlated(), min_sqnr=300.0)
    assert result.rewrites == 0
    assert "put back to float" in notes
    assert kinds(model) == kinds(before)


def test_weights_in_a_file_of_their_own(tmp_path: Path) -> None:
    model, file = product(), tmp_path / "m.onnx"
    onnx.save(to_proto(model), file, save_as_external_data=True, location="m.data", size_threshold=0)
    done = onnxedge.optimize(
        file, "int4(slower=true,min_elements=1,block_size=32,method=hqq)", output=tmp_path / "out.onnx", measure=False
    )
    assert done.report.passes[0].status == "applied"
    feed = {"x": correlated()[:3]}
    assert sqnr(outputs(file, feed)[0], outputs(tmp_path / "out.onnx", feed)[0]) > 12
    assert (tmp_path / "out.onnx").stat().st_size < 0.3 * (tmp_path / "m.data").stat().st_size
