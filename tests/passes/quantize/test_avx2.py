"""ort-cpu-avx2: no two products of what ONNX Runtime multiplies in 8 bits leave the 16 bits that they are summed in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from architectures import Builder, mobilenet, resnet
from onnxedge_passes.quantize import Int8
from precision import apply, normal, outputs, sqnr
from test_dynamic import recurrent

import onnxedge.target
from onnxedge.api import Array, Context, Session, optimized_graph, refresh_scopes
from onnxedge.data import from_arrays
from onnxedge.target import Target, load_packaged_target
from onnxedge.verify import infer_shapes

LOW, HIGH = -(1 << 15), (1 << 15) - 1
#: operator -> input that is the integer weight
PRODUCTS = {
    "QLinearConv": 3,
    "QLinearMatMul": 3,
    "QGemm": 3,
    "MatMulIntegerToFloat": 1,
    "MatMulInteger": 1,
    "DynamicQuantizeMatMul": 1,
    "DynamicQuantizeLSTM": 1,
}


def summed_in_pairs(data: Array, weight: Array) -> Array:
    """Return products u8 [M, K] x s8 [K, N] as vpmaddubsw sums them: two and two in 16 bits, which saturate."""
    pairs = data.astype(np.int64)[:, :, None] * weight.astype(np.int64)[None]  # [M, K, N]
    if pairs.shape[1] % 2:
        pairs = np.concatenate([pairs, np.zeros_like(pairs[:, :1])], axis=1)
    two = pairs[:, ::2] + pairs[:, 1::2]
    return np.asarray(np.clip(two, LOW, HIGH).sum(axis=1))


def worst(weight: Array) -> tuple[int, int]:
    """Return the least and largest sum of two products with any data of 0..255, whichever two weights meet."""
    flat = np.sort(weight.astype(np.int64).reshape(-1))
    return 255 * int(np.minimum(flat[:2], 0).sum()), 255 * int(np.maximum(flat[-2:], 0).sum())


def weights(model: ir.Model) -> Iterator[tuple[onnx.NodeProto, Array]]:
    """Yield what ONNX Runtime multiplies u8 data with, off the graph that it runs."""
    graph = optimized_graph(model).graph
    known = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type in PRODUCTS:
            inputs = [1, 2] if node.op_type == "DynamicQuantizeLSTM" else [PRODUCTS[node.op_type]]
            yield from (
                (node, known[node.input[i]]) for i in inputs if known.get(node.input[i], np.zeros(0)).dtype == np.int8
            )


def is_depthwise(node: onnx.NodeProto, weight: Array) -> bool:
    group = next((a.i for a in node.attribute if a.name == "group"), 1)
    return weight.ndim > 2 and weight.shape[1] == 1 and group == len(weight)


def tokens() -> ir.Model:
    """Return a product with a bias, one without, and a Gemm, large enough to pay."""
    net = Builder(["N", 128, 256])
    x = net.op("Relu", net.linear(net.op("Tanh", "x"), 256, 256))
    x = net.op("MatMul", x, net.weight(256, 256, fan=256))
    return net.model(net.gemm(net.op("Reshape", x, net.constant([-1, 256])), 256, 128))


CASES: dict[str, tuple[Any, tuple[int, ...], dict[str, Any]]] = {
    "resnet": (resnet, (3, 32, 32), {"min_sqnr": 5.0}),
    "mobilenet": (mobilenet, (3, 32, 32), {"min_sqnr": 5.0, "rounding": "nearest", "method": "minmax"}),
    "tokens": (tokens, (128, 256), {"rounding": "covariance"}),
    "tokens learned": (tokens, (128, 256), {"rounding": "learned", "samples": 4}),
    "tokens dynamic": (tokens, (128, 256), {"mode": "dynamic"}),
}


def emitted(name: str, target: str) -> tuple[ir.Model, ir.Model]:
    make, shape, options = CASES[name]
    model = make()
    before = model.clone()
    quantize(model, target, shape, **options)
    return before, model


def quantize(model: ir.Model, name: str, shape: tuple[int, ...], **options: Any) -> None:
    """Quantize all that a target can: what pays is left aside, so that small models will do."""
    chip = target(name)
    assert chip.quantization is not None
    chip = replace(chip, quantization=replace(chip.quantization, costs={}))
    data = from_arrays(Session(model).inputs, {"x": normal(8, *shape)})
    context = Context(chip, data, original=model.clone())
    infer_shapes(model)
    refresh_scopes(model)
    context.begin("int8")
    Int8(**options, timing=False).run(model, context)


@pytest.mark.parametrize("name", CASES)
def test_no_pair_of_products_saturates(name: str) -> None:
    before, model = emitted(name, "ort-cpu-avx2")
    found = [(node, weight) for node, weight in weights(model) if not is_depthwise(node, weight)]
    assert len(found) >= 3
    for node, weight in found:
        low, high = worst(weight)
        assert low >= LOW, node.name
        assert high <= HIGH, node.name
    assert max(int(np.abs(weight.astype(int)).max()) for _, weight in found) > 60  # all of the range is used
    x = normal(4, *CASES[name][1], seed=5)
    assert sqnr(outputs(before, {"x": x})[0], outputs(model, {"x": x})[0]) > 15


@pytest.mark.parametrize("name", ["resnet", "tokens dynamic"])
def test_the_file_for_vnni_would_saturate(name: str) -> None:
    _, model = emitted(name, "ort-cpu")
    assert any(worst(weight)[1] > HIGH for _, weight in weights(model))


def test_depthwise_convolutions_keep_the_whole_range() -> None:
    """Their kernel multiplies in 32 bits, for one output channel a group: others are summed in pairs."""
    net = Builder(["N", 64, 32, 32])
    x = net.conv("x", 64, 64, 3, group=64, norm=False)
    x = net.conv(net.op("Relu", x), 64, 128, 3, group=64, norm=False)
    model = net.model(net.op("Relu", net.conv(net.op("Relu", x), 128, 64, 1, norm=False)))
    quantize(model, "ort-cpu-avx2", (64, 32, 32), method="minmax", rounding="nearest")
    largest = {weight.shape[:2]: int(np.abs(weight.astype(int)).max()) for _, weight in weights(model)}
    assert largest[64, 1] > 120
    assert largest[128, 1] <= 64
    assert largest[64, 128] <= 64


def test_an_lstm_with_data_rounded_at_run_time() -> None:
    model = recurrent("LSTM", 4)
    apply(Int8(mode="dynamic"), model, None, "ort-cpu-avx2")
    found = list(weights(model))
    assert len(found) == 2
    assert all(worst(weight)[0] >= LOW and worst(weight)[1] <= HIGH for _, weight in found)


def test_the_emulation_saturates_what_a_processor_without_vnni_does() -> None:
    """Against what ONNX Runtime 1.31.1 gave for these in an emulated Haswell: 1048544, not 2072640, and 1044480."""
    data = np.full((1, 64), 255, np.uint8)
    assert summed_in_pairs(data, np.full((64, 1), 127, np.int8)) == 1048544
    assert summed_in_pairs(data, np.full((64, 1), 64, np.int8)) == 1044480 == 64 * 255 * 64
    rng = np.random.default_rng(0)
    some, seven = rng.integers(0, 256, (8, 33)).astype(np.uint8), rng.integers(-64, 65, (33, 5)).astype(np.int8)
    np.testing.assert_array_equal(summed_in_pairs(some, seven), some.astype(int) @ seven.astype(int))
    assert worst(np.array([127, 127, -3], np.int8)) == (255 * -3, 255 * 254)


@pytest.mark.parametrize(
    ("flags", "timed", "missing"),
    [
        (frozenset({"avx2"}), {"ort-cpu": True, "ort-cpu-avx2": True}, True),
        (frozenset({"avx2", "avx_vnni"}), {"ort-cpu": True, "ort-cpu-avx2": False}, False),
        (None, {"ort-cpu": True, "ort-cpu-avx2": False}, False),
    ],
)
def test_where_latency_can_be_measured(
    flags: frozenset[str] | None, timed: dict[str, bool], missing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxedge.target, "instruction_sets", lambda: flags)
    for name, expected in timed.items():
        assert target(name).timed_here == expected
        assert target(name).runs_here
    assert bool(target("ort-cpu").missing_here) == missing


def target(name: str) -> Target:
    return load_packaged_target("onnxedge.targets", name)


def test_a_processor_without_vnni_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxedge.target, "instruction_sets", lambda: frozenset({"avx2"}))
    model = tokens()
    _, notes = apply(Int8(timing=False, method="minmax", rounding="nearest"), model, {"x": normal(8, 128, 256)})
    assert "this processor has none of avx512_vnni, avx_vnni" in notes
    assert "--target ort-cpu-avx2" in notes


def test_costs_are_of_its_own() -> None:
    rules, base = target("ort-cpu-avx2").quantization, target("ort-cpu").quantization
    assert rules is not None
    assert base is not None
    for name in ("Conv", "MatMul", "Gemm", "MatMulNBits"):
        mine, other = rules.costs[name], base.costs[name]
        assert mine.at == other.at
        assert mine.integer_call_ns == other.integer_call_ns
        assert mine.float_ns[-1] / mine.integer_ns[-1] < other.float_ns[-1] / other.integer_ns[-1]
    assert rules.integer == base.integer
    assert rules.costs["Add"] == base.costs["Add"]
