"""fp16 and bf16: what computes in 16 bits, what is stored in them, what stays float32 and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from onnxedge_passes.quantize.half import Bf16, Fp16
from precision import apply, kinds, normal, outputs, sqnr

import onnxedge
from onnxedge.api import Array, Result, UserError, optimized_graph, to_proto

HALF = {"fp16": (Fp16, ir.DataType.FLOAT16, 55.0), "bf16": (Bf16, ir.DataType.BFLOAT16, 35.0)}
NETWORK = """g (float[N,8,6,6] x) => (float[N,8,6,6] y, float[N,5] p)
  { a = Conv<pads=[1, 1, 1, 1]>(x, w, b)  y = Relu(a)  c = Conv<pads=[1, 1, 1, 1]>(y, v)
    d = Add(c, y)  e = GlobalAveragePool(d)  f = Flatten(e)  g = Gemm<transB=1>(f, u)  p = Softmax(g) }"""
WEIGHTS = {"w": (8, 8, 3, 3), "b": (8,), "v": (8, 8, 3, 3), "u": (5, 8)}


def model_of(text: str, opset: int = 17, **weights: Array) -> ir.Model:
    """Return a model from the text of its graph and arrays for its initializers."""
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}]> {text}')
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    return ir.serde.deserialize_model(proto)


def network(opset: int = 17) -> ir.Model:
    """Return a small residual network whose inner value is an output, too."""
    arrays = {name: normal(*shape, seed=i) / 6 for i, (name, shape) in enumerate(WEIGHTS.items())}
    return model_of(NETWORK, opset, **{name: array.astype(np.float32) for name, array in arrays.items()})


def run(model: ir.Model, name: str = "fp16", target: str = "ort-cuda", **options: Any) -> tuple[Result, str]:
    return apply(HALF[name][0](**options), model, None, target)


def types(model: ir.Model) -> dict[str, str]:
    """Return the type of the first output of each node, as ONNX infers it."""
    inferred = onnx.shape_inference.infer_shapes(to_proto(model), strict_mode=True, check_type=True)
    known = {v.name: v.type.tensor_type.elem_type for v in (*inferred.graph.value_info, *inferred.graph.output)}
    return {f"{n.op_type} {n.output[0]}": ir.DataType(known[n.output[0]]).name for n in inferred.graph.node}


@pytest.mark.parametrize("target", ["ort-cuda", "tensorrt", "generic"])
@pytest.mark.parametrize("name", HALF)
def test_a_network_computes_in_16_bits(name: str, target: str) -> None:
    model = network(22 if name == "bf16" else 17)  # a Conv knows bfloat16 from opset 22 on
    before = model.clone()
    result, _ = run(model, name, target, mode="compute")
    assert result.figures["half_nodes"] == 8
    assert result.figures["held_out_sqnr_db"] > HALF[name][2]
    found = types(model)
    assert {kind for node, kind in found.items() if not node.startswith("Cast")} == {HALF[name][1].name}
    assert kinds(model).count("Cast") == result.figures["casts"] == 3
    assert [value.dtype for value in (*model.graph.inputs, *model.graph.outputs)] == [ir.DataType.FLOAT] * 3
    assert not any(v.dtype == ir.DataType.FLOAT for v in model.graph.initializers.values())
    if name == "bf16":
        return  # ONNX Runtime's CPU provider has no kernels for it
    for shape in ((1, 8, 6, 6), (4, 8, 6, 6)):
        feed = {"x": normal(*shape, seed=9)}
        for first, half in zip(outputs(before, feed), outputs(model, feed), strict=True):
            assert sqnr(first, half) > HALF[name][2]
    assert run(model, name, target)[0].rewrites == 0


def test_what_cannot_be_checked_here_is_only_stored() -> None:
    result, notes = run(network(), "bf16")
    assert result.figures["stored_weights"] == 2
    assert "cannot check the model here" in notes


@pytest.mark.parametrize("name", HALF)
def test_weights_are_stored_where_the_target_gains_nothing(name: str) -> None:
    model = network()
    before = model.clone()
    result, notes = run(model, name, "ort-cpu")
    assert result.figures == {"stored_weights": 2, "bytes_saved": 2 * 2 * 8 * 8 * 9}
    assert "computes no faster" in notes
    assert kinds(model).count("Cast") == 2
    assert "Cast" not in {node.op_type for node in optimized_graph(model).graph.node}
    feed = {"x": normal(2, 8, 6, 6, seed=9)}
    assert sqnr(outputs(before, feed)[0], outputs(model, feed)[0]) > HALF[name][2]
    assert run(model, name, "ort-cpu")[0].rewrites == 0


def test_computing_where_nothing_is_gained_is_said() -> None:
    assert "mode=storage is faster" in run(network(), target="ort-cpu", mode="compute")[1]


def test_weights_that_do_not_fit_are_not_stored() -> None:
    big, fine, tiny = (normal(16, 32, seed=i) for i in range(3))
    big[3, 5] = 1e5
    text = """g (float[N,16] x) => (float[N,32] y)
      { a = MatMul(x, w)  b = MatMul(x, v)  c = MatMul(x, u)  y = Sum(a, b, c) }"""
    model = model_of(text, w=big, v=fine, u=tiny * np.float32(1e-7))
    result, notes = run(model, target="ort-cpu")
    assert result.figures["stored_weights"] == 1
    assert "beyond the range" in notes
    assert "rounding leaves" in notes
    result, notes = run(model_of(text, w=big, v=fine, u=tiny * np.float32(1e-7)), "bf16", "ort-cpu")
    assert result.figures["stored_weights"] == 3


def one(body: str, inputs: str = "float[4,16] x", opset: int = 17, **weights: Array) -> ir.Model:
    """Return a product, then what is between ``h`` and ``k``, then another product."""
    arrays = {"w": normal(16, 16) / 4, "v": normal(16, 16, seed=1) / 4} | weights
    text = f"g ({inputs}) => (float[4,16] y) {{ h = MatMul(x, w)  {body}  y = MatMul(k, v) }}"
    return model_of(text, opset, **{name: array.astype(array.dtype) for name, array in arrays.items()})


F32 = np.float32
CASES = {
    "overflow": ("s = Mul(h, c)  k = Mul(s, r)", {"c": F32(1e5), "r": F32(1e-5)}, "Mul s", "beyond the range"),
    "values": ("a = Mul(h, h)  b = Exp(c)  s = Mul(a, b)  k = Tanh(s)", {"c": F32(10.5)}, "Mul s", "too near the end"),
    "cancels": ("s = Add(h, c)  k = Sub(s, c)", {"c": F32(3000)}, "Add s", "rounding leaves"),
    "mask": (
        "s = Add(h, c)  k = Softmax(s)",
        {"c": np.full(16, -3.4e38, F32) * (np.arange(16) > 7)},
        "Add s",
        "beyond",
    ),
    "log": ("a = Relu(h)  s = Add(a, c)  b = Log(s)  k = Tanh(b)", {"c": F32(1e-12)}, "Add s", "infinities or NaN"),
    "counts": ("s = CumSum(h, c)  k = Tanh(s)", {"c": np.array(1, np.int64)}, "CumSum s", "counts"),
    "schema": ("s = Hardmax(h)  k = Mod<fmod=1>(s, c)", {"c": F32(3)}, "", ""),
}


@pytest.mark.parametrize("case", CASES)
def test_nodes_that_lose_stay_float32(case: str) -> None:
    body, weights, node, reason = CASES[case]
    model = one(body, **{name: np.asarray(array) for name, array in weights.items()})
    before = model.clone()
    result, notes = run(model)
    assert result.rewrites
    assert reason in notes
    found = {name.split("_")[0]: kind for name, kind in types(model).items()}
    if node:
        assert found[node] == "FLOAT"
    assert sum(kind == "FLOAT16" and name.startswith("MatMul") for name, kind in types(model).items()) == 2
    feed = {"x": normal(4, 16, seed=5)}
    assert sqnr(outputs(before, feed)[0], outputs(model, feed)[0]) > 40


def test_bfloat16_has_the_range() -> None:
    body, weights, *_ = CASES["overflow"]
    model = one(body, **{name: np.asarray(array) for name, array in weights.items()})
    assert run(model, "bf16", mode="compute")[0].figures["half_nodes"] == 4


def test_old_opsets() -> None:
    assert "convert(opset=13)" in run(network(12), "bf16")[1]
    assert run(network(11))[0].figures["half_nodes"] == 8
    model = one('k = Resize<mode="nearest">(h, , s)', s=np.ones(2, F32))
    run(model)
    assert model.graph.initializers["s"].dtype == ir.DataType.FLOAT  # is float32 in every opset
    model = one('k = Resize<mode="nearest">(h, s)', opset=10, s=np.ones(2, F32))
    assert run(model)[0].figures["half_nodes"] == 3


def test_regions_without_a_product_stay() -> None:
    model = model_of("g (float[4,16] x) => (float[4,16] y) { a = Relu(x)  y = Tanh(a) }")
    result, notes = run(model)
    assert result.rewrites == 0
    assert "would pay for the casts" in notes


def test_what_the_target_has_no_kernel_for_stays(tmp_path: Path) -> None:
    target = tmp_path / "acme.toml"
    target.write_text('name = "acme"\nruntime = "acme"\nhalf = ["float16"]\nhalf_missing = ["Relu"]\n')
    done = onnxedge.optimize(network(), "fp16", target=str(target), measure=False)
    assert {"Relu y_1", "Relu y"} & set(types(done.model))
    assert any("no kernel for Relu" in note.reason for note in done.report.notes)


def test_subgraphs_are_walls() -> None:
    body = """s = ReduceMax<keepdims=0>(h)  z = Greater(s, t)
      k = If(z) <then_branch = a () => (float[4,16] p) { p = Neg(h) },
                 else_branch = b () => (float[4,16] q) { q = MatMul(h, w) }>"""
    model = one(body, t=np.asarray(F32(1)))
    before = model.clone()
    result, notes = run(model)
    assert result.figures["half_nodes"] >= 2
    assert "it holds a subgraph" in notes
    assert "w" in model.graph.initializers
    feed = {"x": normal(4, 16, seed=5)}
    assert sqnr(outputs(before, feed)[0], outputs(model, feed)[0]) > 55


def test_an_initializer_that_is_an_input_is_not_cast_at_each_run() -> None:
    proto = to_proto(one("k = Relu(h)"))
    proto.graph.input.append(onnx.helper.make_tensor_value_info("w", 1, [16, 16]))
    model = ir.serde.deserialize_model(proto)
    _, notes = run(model)
    assert "may be overridden" in notes
    assert {kind for node, kind in types(model).items() if node == "MatMul h"} == {"FLOAT"}
    feed = {"x": normal(4, 16, seed=5), "w": normal(16, 16, seed=6)}
    assert sqnr(outputs(proto, feed)[0], outputs(model, feed)[0]) > 55


def test_a_shared_weight_is_narrowed_once_and_kept_where_it_is_read_wide() -> None:
    model = one("k = MatMul(h, w)")
    run(model)
    assert len(model.graph.initializers) == 2
    model = one("t = CumSum(w, c)  k = MatMul(h, t)", c=np.asarray(np.array(1, np.int64)))
    run(model)
    assert {model.graph.initializers[name].dtype.name for name in model.graph.initializers if "w" in name} == {
        "FLOAT",
        "FLOAT16",
    }


def test_parts_that_cost_most_go_back_first() -> None:
    model = one("s = Add(h, c)  k = Sub(s, c)", c=np.asarray(F32(3000)))
    before = model.clone()
    result, notes = run(model, min_node_sqnr=0.0)
    assert "under min_sqnr=40" in notes
    assert result.figures["half_nodes"] >= 1
    assert result.figures["held_out_sqnr_db"] >= 40
    feed = {"x": normal(4, 16, seed=5)}
    assert sqnr(outputs(before, feed)[0], outputs(model, feed)[0]) > 40


def test_bounds_and_options() -> None:
    model = network()
    result, notes = run(model, min_sqnr=300.0)
    assert result.rewrites == 0
    assert "under min_sqnr=300" in notes
    next(iter(model.graph)).name = "stem"
    assert "as asked by skip" in run(model, skip="st*")[1]
    with pytest.raises(UserError):
        run(network(), samples=0)


def test_weights_in_a_file_of_their_own(tmp_path: Path) -> None:
    file = tmp_path / "m.onnx"
    onnx.save(to_proto(network()), file, save_as_external_data=True, location="m.data", size_threshold=0)
    done = onnxedge.optimize(file, "fp16", output=tmp_path / "out.onnx", measure=False)
    assert done.report.passes[0].status == "applied"
    feed = {"x": normal(2, 8, 6, 6)}
    assert sqnr(outputs(file, feed)[0], outputs(tmp_path / "out.onnx", feed)[0]) > 55
