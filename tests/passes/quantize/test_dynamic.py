"""int8(mode=dynamic): products and LSTMs with integer weights, data rounded at run time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from onnxedge_passes.quantize import Int8
from onnxedge_passes.quantize.dequantize import Dequantize
from precision import apply, kinds, normal, outputs, sqnr

import onnxedge
from onnxedge.api import Array, Result, constant, optimized_graph, to_proto

K, N = 256, 192
PRODUCTS = f"""g (float[N,4,{K}] x) => (float[N,4,{N}] y, float[N,4,{K}] z)
  {{ a = MatMul(x, w)  y = Add(a, b)  c = MatMul(x, v)  d = Relu(c)  z = MatMul(d, u) }}"""
WEIGHTS = {"w": normal(K, N), "v": normal(K, N, seed=1), "u": normal(N, K, seed=2), "b": normal(N)}


def model_of(text: str, opset: int = 17, **weights: Array) -> ir.Model:
    """Return a model from the text of its graph and arrays for its initializers."""
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}]> {text}')
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    return ir.serde.deserialize_model(proto)


def run(model: ir.Model, target: str = "ort-cpu", **options: Any) -> tuple[Result, str]:
    return apply(Int8(mode="dynamic", **options), model, None, target)


@pytest.mark.parametrize("target", ["ort-cpu", "generic"])
def test_products_share_what_their_data_is_rounded_to(target: str) -> None:
    model = model_of(PRODUCTS, **WEIGHTS)
    before = model.clone()
    result, _ = run(model, target)
    assert result.figures["integer_nodes"] == 3
    assert kinds(model).count("MatMulInteger") == 3
    assert kinds(model).count("DynamicQuantizeLinear") == 2
    assert "MatMul" not in kinds(model)
    assert {n.op_type for n in optimized_graph(model).graph.node} >= {"MatMulIntegerToFloat", "DynamicQuantizeMatMul"}
    for count in (1, 5):
        feed = {"x": normal(count, 4, K, seed=9)}
        for first, other in zip(outputs(before, feed), outputs(model, feed), strict=True):
            assert sqnr(first, other) > 30
    assert run(model, target)[0].rewrites == 0
    apply(Dequantize(), model)
    assert kinds(model) == kinds(before)


def test_what_comes_out_is_the_product_of_the_integers() -> None:
    model = model_of(f"g (float[4,{K}] x) => (float[4,{N}] y) {{ y = MatMul(x, w) }}", w=WEIGHTS["w"])
    run(model, "generic")
    x = normal(4, K, seed=3)
    scale, codes = (constant(model.graph.initializers[f"w_{part}"]) for part in ("scale", "int8"))
    assert scale is not None
    assert codes is not None
    step = np.float32((x.max() - x.min()) / 255)
    zero = np.rint(-x.min() / step)
    rounded = (np.clip(np.rint(x / step) + zero, 0, 255) - zero) * step
    np.testing.assert_allclose(outputs(model, {"x": x})[0], rounded @ (codes * scale), rtol=1e-3, atol=1e-3)


def test_a_gemm_with_a_bias_and_a_transposed_weight() -> None:
    text = f"g (float[N,{K}] x) => (float[N,{N}] y) {{ y = Gemm<transB=1>(x, w, b) }}"
    model = model_of(text, w=normal(N, K), b=normal(N))
    before = model.clone()
    assert run(model, "generic")[0].rewrites == 1
    x = normal(6, K, seed=3)
    assert sqnr(outputs(before, {"x": x})[0], outputs(model, {"x": x})[0]) > 35


def recurrent(op: str, gates: int, hidden: int = 64, **attributes: Any) -> ir.Model:
    """Return a recurrent operator of two directions."""
    node = onnx.helper.make_node(
        op, ["x", "w", "r", "b"], ["y", "h"], hidden_size=hidden, direction="bidirectional", **attributes
    )
    shape = ["N", 7, 32] if attributes.get("layout") else [7, "N", 32]
    last = ["N", 2, hidden] if attributes.get("layout") else [2, "N", hidden]
    sizes = {"w": (2, gates * hidden, 32), "r": (2, gates * hidden, hidden), "b": (2, 2 * gates * hidden)}
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [node],
        "g",
        [value("x", 1, shape)],
        [value("y", 1, [None] * 4), value("h", 1, last)],
        [onnx.numpy_helper.from_array(normal(*size, seed=i) / 8, name) for i, (name, size) in enumerate(sizes.items())],
    )
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    return ir.serde.deserialize_model(proto)


def test_an_lstm() -> None:
    model = recurrent("LSTM", 4)
    before = model.clone()
    result, _ = run(model)
    assert kinds(model)[-1] == "DynamicQuantizeLSTM"
    assert result.figures["integer_nodes"] == 1
    for count in (1, 3):
        feed = {"x": normal(7, count, 32, seed=4)}
        for first, other in zip(outputs(before, feed), outputs(model, feed), strict=True):
            assert first.shape == other.shape
            assert sqnr(first, other) > 28
    floats = model.clone()
    apply(Dequantize(), floats)
    assert kinds(floats)[-1] == "LSTM"
    np.testing.assert_allclose(outputs(floats, feed)[0], outputs(before, feed)[0], atol=0.02)


@pytest.mark.parametrize(
    ("model", "target", "reason"),
    [
        (recurrent("GRU", 3), "ort-cpu", "no GRU with integer weights"),
        (recurrent("LSTM", 4), "generic", "no LSTM with integer weights"),
        (recurrent("LSTM", 4, 16), "ort-cpu", "hidden units gain nothing"),
        (model_of(PRODUCTS, 10, **WEIGHTS), "ort-cpu", "opset 10 has no DynamicQuantizeLinear"),
        (model_of(PRODUCTS, **WEIGHTS), "tensorrt", "computes nothing on data that is rounded at run time"),
        (
            model_of("g (float[4,16] x) => (float[4,8] y) { y = MatMul(x, w) }", w=normal(16, 8)),
            "ort-cpu",
            "longer than",
        ),
        (model_of(f"g (float[{K}] x) => (float[{N}] y) {{ y = MatMul(x, w) }}", w=WEIGHTS["w"]), "ort-cpu", "one axis"),
    ],
)
def test_what_stays_float_is_said(model: ir.Model, target: str, reason: str) -> None:
    before = kinds(model)
    _, notes = run(model, target)
    assert reason in notes
    assert "no form of integers here" not in notes
    assert not {"DynamicQuantizeLinear", "DynamicQuantizeLSTM"} & set(kinds(model))
    assert [kind for kind in kinds(model) if kind in before] == before


def test_a_weight_that_two_read_and_one_that_a_subgraph_reads() -> None:
    text = f"""g (float[N,{K}] x, bool c) => (float[N,{K}] y)
      {{ a = MatMul(x, w)  b = Tanh(a)  d = MatMul(b, w)  e = MatMul(d, v)
         y = If(c) <then_branch = t () => (float[N,{K}] p) {{ p = MatMul(e, v) }},
                    else_branch = f () => (float[N,{K}] q) {{ q = Neg(e) }}> }}"""
    model = model_of(text, w=normal(K, K) / 16, v=normal(K, K, seed=1) / 16)
    before = model.clone()
    result, notes = run(model, "generic")
    assert result.figures["integer_nodes"] == 2
    assert sum(name.startswith("w_int8") for name in model.graph.initializers) == 1
    assert "in a subgraph" in notes
    for c in (True, False):
        feed: dict[str, Array] = {"x": normal(3, K, seed=2), "c": np.array(c)}
        assert sqnr(outputs(before, feed)[0], outputs(model, feed)[0]) > 25


def test_a_weight_that_may_be_overridden_stays() -> None:
    proto = to_proto(model_of(PRODUCTS, **WEIGHTS))
    proto.graph.input.append(onnx.helper.make_tensor_value_info("w", 1, [K, N]))
    model = ir.serde.deserialize_model(proto)
    assert "may be overridden" in run(model)[1]
    assert kinds(model).count("MatMul") == 1


def test_data_with_outliers_goes_back_to_float() -> None:
    model = model_of(f"g (float[N,{K}] x) => (float[N,{N}] y) {{ a = Mul(x, s)  y = MatMul(a, w) }}", w=WEIGHTS["w"],
                     s=np.where(np.arange(K) == 0, 1e4, 1).astype(np.float32))  # fmt: skip
    model.graph.initializers["w"].const_value = ir.tensor(WEIGHTS["w"] * (np.arange(K) > 0).astype(np.float32)[:, None])
    result, notes = run(model)
    assert "put back to float" in notes
    assert "MatMul" in kinds(model)
    assert result.figures["integer_nodes"] == 0


def test_weights_in_a_file_of_their_own(tmp_path: Path) -> None:
    file = tmp_path / "m.onnx"
    onnx.save(to_proto(model_of(PRODUCTS, **WEIGHTS)), file, save_as_external_data=True, location="m.data")
    done = onnxedge.optimize(file, "int8(mode=dynamic)", output=tmp_path / "out.onnx", measure=False)
    assert done.report.passes[0].status == "applied"
    feed = {"x": normal(2, 4, K)}
    assert sqnr(outputs(file, feed)[0], outputs(tmp_path / "out.onnx", feed)[0]) > 30
