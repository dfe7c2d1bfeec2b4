"""absorb: offsets of channels that never come near 0 move into the next biases, and stay where that were wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnxedge_passes.quantize import Int8
from onnxedge_passes.quantize.calibration.observed import Channels, Observed
from onnxedge_passes.quantize.equalize.offsets import Offset, find_offsets, move, put_back
from precision import apply, outputs, sqnr
from test_equalize_slots import parsed

from onnxedge.api import Array, constant, set_constant, to_proto
from onnxedge.placement.units import find_units
from onnxedge.target import load_packaged_target

ROWS = "float[N,8,12] x, float[12,16] w0, float[16] w1, float[16,5] w2, float[5] w3"
GEMM = "float[N,12] x, float[12,16] w0, float[16] w1, float[16,5] w2, float[5] w3"
IMAGE = "float[N,3,8,8] x, float[16,3,3,3] w0, float[16] w1, float[6,16,1,1] w2, float[6] w3"
CONV = "a = Conv <pads=[1,1,1,1]> (x, w0, w1) r = Relu(a)"

MOVED = {
    "gemm": (GEMM, "y", "a = Gemm(x, w0, w1) r = Relu(a) y = Gemm(r, w2, w3)"),
    "gemm-turned": (
        GEMM.replace("float[16,5] w2", "float[5,16] w2"),
        "y",
        "a = Gemm(x, w0, w1) r = Relu(a) y = Gemm <transB=1> (r, w2, w3)",
    ),
    "gemm-without-bias": (GEMM, "y", "a = Gemm(x, w0, w1) r = Relu(a) y = Gemm(r, w2)"),
    "matmul": (ROWS, "y", "a = MatMul(x, w0) b = Add(w1, a) r = Relu(b) c = MatMul(r, w2) y = Add(c, w3)"),
    "conv-1x1": (IMAGE, "y", f"{CONV} y = Conv (r, w2, w3)"),
    "conv-1x1-same": (IMAGE, "y", f'{CONV} y = Conv <auto_pad="SAME_UPPER", strides=[2,2]> (r, w2, w3)'),
    "conv-without-bias": (IMAGE, "y", f"{CONV} y = Conv (r, w2)"),
    "conv-3x3": (IMAGE.replace("[6,16,1,1]", "[6,16,3,3]"), "y", f"{CONV} y = Conv <strides=[2,2]> (r, w2, w3)"),
    "conv-groups": (IMAGE.replace("[6,16,1,1]", "[6,8,3,3]"), "y", f"{CONV} y = Conv <group=2> (r, w2, w3)"),
    "clip": (IMAGE, "y", "a = Conv(x, w0, w1) r = Clip(a, zero) y = Conv (r, w2, w3)"),
    "two-readers": (IMAGE, "y, z", f"{CONV} y = Conv(r, w2, w3) p = MaxPool <kernel_shape=[2,2]> (r) z = Conv(p, w2)"),
    "pools": (
        IMAGE + ", float[16,5] w4",
        "y",
        f"{CONV} p = AveragePool <kernel_shape=[3,3], pads=[1,1,1,1]> (r) g = GlobalAveragePool(p) f = Flatten(g) "
        "y = Gemm(f, w4)",
    ),
}
REFUSED = {
    "pads it with zeros": (
        IMAGE.replace("[6,16,1,1]", "[6,16,3,3]"),
        "y",
        f"{CONV} y = Conv <pads=[1,1,1,1]> (r, w2, w3)",
    ),
    "Conv '' pads it with zeros": (
        IMAGE.replace("[6,16,1,1]", "[6,16,3,3]"),
        "y, z",
        f'{CONV} y = Conv (r, w2, w3) z = Conv <auto_pad="SAME_LOWER"> (r, w2)',
    ),
    "it is an output of the model": (IMAGE, "y, r", f"{CONV} y = Conv (r, w2, w3)"),
    "Sigmoid '' reads it": (IMAGE, "y, z", f"{CONV} y = Conv (r, w2, w3) z = Sigmoid(r)"),
    "AveragePool '' reads it": (
        IMAGE,
        "y",
        f"{CONV} p = AveragePool <kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1> (r) y = Conv (p, w2, w3)",
    ),
    "Flatten '' reads it": (IMAGE + ", float[1024,5] w4", "y", f"{CONV} f = Flatten(r) y = Gemm(f, w4)"),
    "ConvTranspose '' reads it": (
        IMAGE.replace("[6,16,1,1]", "[16,6,2,2]"),
        "y",
        f"{CONV} y = ConvTranspose (r, w2, w3)",
    ),
    "it is read in a subgraph": (
        IMAGE + ", bool c",
        "y, z",
        f"{CONV} y = Conv (r, w2, w3) z = If (c) <then_branch = t () => (float[N,16,8,8] s) {{ s = Neg(r) }}, "
        "else_branch = e () => (float[N,16,8,8] q) { q = Abs(x0) }>",
    ),
    "its Clip has an upper bound": (
        IMAGE,
        "y",
        "a = Conv(x, w0, w1) r = Clip(a, zero, top) y = Conv (r, w2, w3)",
    ),
    "what it reads has other readers": (IMAGE, "y, z", f"{CONV} y = Conv (r, w2, w3) z = Neg(a)"),
    "its layer has no bias of its own": (
        IMAGE,
        "y, z",
        f"{CONV} y = Conv (r, w2, w3) z = Conv <strides=[2,2]> (x, w0, w1)",
    ),
    "shares its bias": (IMAGE, "y, z", f"{CONV} y = Conv (r, w2, w3) z = Conv <strides=[2,2]> (r, w2, w3)"),
    "Gemm '' scales it": (GEMM, "y", "a = Gemm(x, w0, w1) r = Relu(a) y = Gemm <alpha=0.5> (r, w2, w3)"),
    "its layer's bias is scaled": (GEMM, "y", "a = Gemm <beta=2.0> (x, w0, w1) r = Relu(a) y = Gemm (r, w2, w3)"),
    "MatMul '' has no bias": (ROWS, "y", "a = MatMul(x, w0) b = Add(a, w1) r = Relu(b) y = MatMul(r, w2)"),
    "Conv '' reads it along another axis": (
        ROWS.replace("float[16,5] w2", "float[5,8,1] w2"),
        "y",
        "a = MatMul(x, w0) b = Add(a, w1) r = Relu(b) y = Conv(r, w2, w3)",
    ),
    "no layer with a bias makes it": (IMAGE, "y", "r = Relu(x) y = Conv (r, w0, w1)"),
}


def lifted(case: tuple[str, str, str], by: float = 40.0) -> ir.Model:
    """Return a model whose channels before a Relu are all above 0, each by another amount."""
    inputs, names, body = case
    if "x0" in inputs + body:
        inputs += ", float[N,16,8,8] x0"
    ends = ", ".join(
        f"float[{', '.join('ABCD'[: 2 if inputs.startswith(GEMM[:11]) else 4])}] {n}" for n in names.split(", ")
    )
    if inputs.startswith(ROWS[:12]):
        ends = "float[A,B,C] y"
    if "Gemm(f" in body:
        ends = "float[A,B] y"
    model = parsed(f"g ({inputs}) => ({ends}) <float zero = {{0}}, float top = {{200}}> {{ {body} }}")
    for node in model.graph:
        if any((v.name if v is not None else "") == "w1" for v in node.inputs):
            index = [v.name if v is not None else "" for v in node.inputs].index("w1")
            value = node.inputs[index]
            bias = constant(value)
            assert value is not None
            assert bias is not None
            value.const_value = ir.tensor(bias + np.linspace(by, 2 * by, bias.size, dtype=np.float32), name="w1")
            break
    return model


def found_in(model: ir.Model) -> list[Any]:
    """Return what is found where every channel of 16, or 8, was seen between 20 and 24."""

    def entry(count: int) -> Observed:
        channels = Channels(np.full(count, 20.0, np.float32), np.full(count, 24.0, np.float32), np.full(count, 484.0))
        return Observed(20.0, 24.0, samples=9, mean=np.full(count, 22.0), channels=channels)

    units, _ = find_units(model, load_packaged_target("onnxedge.targets", "generic"))
    names = {v.name or "" for unit in units for v in (*unit.input_values(), *unit.outputs)}
    return list(find_offsets(units, {name: entry(3 if name == "x" else 16) for name in names}))


def feeds(model: ir.Model) -> dict[str, Array]:
    rng = np.random.default_rng(3)
    shapes = {v.name or "": [d if isinstance(d, int) else 4 for d in v.shape or ()] for v in model.graph.inputs}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize("name", MOVED)
def test_offsets_move_and_nothing_changes(name: str) -> None:
    model = lifted(MOVED[name])
    before, kept = outputs(model, feeds(model)), to_proto(model).SerializeToString(deterministic=True)
    (offset,) = found_in(model)
    assert isinstance(offset, Offset)
    np.testing.assert_allclose(offset.amount, 19.0)
    old = move([offset])
    for first, other in zip(before, outputs(model, feeds(model)), strict=True):
        np.testing.assert_allclose(other, first, atol=3e-5 * np.abs(first).max())
    put_back(old)
    assert to_proto(model).SerializeToString(deterministic=True) == kept


@pytest.mark.parametrize("reason", REFUSED)
def test_offsets_stay(reason: str) -> None:
    (found,) = [entry for entry in found_in(lifted(REFUSED[reason])) if not isinstance(entry, Offset)]
    assert reason in found[1]


@pytest.mark.parametrize(
    ("low", "high", "mean"),
    [
        ([0.0, 5.0], [24.0, 24.0], [9.0, 9.0]),  # the largest comes near 0
        ([5.0, 0.0], [24.0, 23.0], [9.0, 9.0]),  # another one is as large
        ([2.0, 2.0], [24.0, 24.0], [9.0, 9.0]),  # too little
    ],
)
def test_offsets_that_set_no_range_are_no_offsets(low: list[float], high: list[float], mean: list[float]) -> None:
    model = lifted(MOVED["gemm"])
    units, _ = find_units(model, load_packaged_target("onnxedge.targets", "generic"))
    channels = Channels(np.repeat(low, 8), np.repeat(high, 8), np.ones(16))
    entry = Observed(0.0, 24.0, samples=9, mean=np.repeat(mean, 8), channels=channels)
    assert list(find_offsets(units, {"r": entry})) == []


def deep(by: float, layers: int = 3, width: int = 48, last: str = "") -> ir.Model:
    """Return an MLP some of whose channels lie about ``by`` before each Relu, which the next layer takes off again."""
    sizes = "".join(f", float[{width},{width}] w{i}, float[{width}] wb{i}" for i in range(layers + 1))
    body = "".join(f"a{i} = MatMul(r{i}, w{i}) b{i} = Add(a{i}, wb{i}) r{i + 1} = Relu(b{i}) " for i in range(layers))
    ends = f"c = MatMul(r{layers}, w{layers}) y = Add(c, wb{layers})"
    body = body.replace("r0", "x") + ends + last
    outs = "float[N,6,A] y" + (", float[N,6,B] z" if last else "")
    model = parsed(f"g (float[N,6,{width}] x{sizes}) => ({outs}) {{ {body} }}")
    rng, before = np.random.default_rng(5), np.zeros(width, np.float32)
    for node in [n for n in model.graph if n.op_type == "MatMul"]:
        add = next(use.node for use in node.outputs[0].uses())
        weight, bias = constant(node.inputs[1]), constant(add.inputs[1])
        assert weight is not None
        assert bias is not None
        weight = weight * np.float32(1.4 / np.sqrt(width))
        offset = np.where(rng.random(width) < 0.25, by * rng.uniform(0.5, 1.0, width), 0.0).astype(np.float32)
        set_constant(node, 1, weight)
        set_constant(add, 1, 0.1 * bias - before @ weight + offset * (add.outputs[0].name != "y"))
        before = offset
    return model


def samples(count: int, seed: int) -> dict[str, Array]:
    return {"x": np.random.default_rng(seed).normal(size=(count, 6, 48)).astype(np.float32)}


def quantized(model: ir.Model, **options: Any) -> tuple[float, dict[str, Any], str]:
    before = model.clone()
    step = Int8(**{"method": "minmax", "rounding": "nearest", "min_sqnr": -99.0, "equalize": "off"} | options)  # type: ignore[arg-type]
    result, notes = apply(step, model, samples(64, 1), "generic")
    return sqnr(outputs(before, samples(32, 2))[0], outputs(model, samples(32, 2))[0]), result.figures, notes  # type: ignore[return-value]


def test_a_net_with_high_biases_is_saved() -> None:
    even = quantized(deep(0.0))
    plain = quantized(deep(60.0), absorb="off")
    saved = quantized(deep(60.0))
    assert plain[0] < even[0] - 6
    assert saved[0] > plain[0] + 5
    assert saved[1]["absorbed_offsets"] == 3
    assert "absorbed_offsets" not in even[1] | plain[1]


def test_one_that_is_read_elsewhere_stays_and_the_others_move() -> None:
    _, figures, notes = quantized(deep(60.0, last=" z = Neg(r1)"))
    assert figures["absorbed_offsets"] == 2
    assert "offset of its channels not absorbed: Neg '' reads it" in notes


def test_samples_that_fall_under_it_keep_it() -> None:
    """Every fourth sample is held out; these vary more than the others."""
    x = samples(64, 1)["x"]
    x[3::4] *= 15.0
    step = Int8(method="minmax", rounding="nearest", min_sqnr=-99.0, equalize="off")
    result, notes = apply(step, deep(60.0), {"x": x}, "generic")
    assert "not absorbed: held-out samples fall under them" in notes
    assert "absorbed_offsets" not in result.figures


def spread(model: ir.Model, by: float) -> ir.Model:
    """Scale the channels behind the first layer, exactly up to rounding, over a range."""
    first, second = [node for node in model.graph if node.op_type == "MatMul"][:2]
    add = next(use.node for use in first.outputs[0].uses())
    factor = np.geomspace(1, by, 48).astype(np.float32)
    for node, scale in ((first, 1 / factor), (add, 1 / factor), (second, factor[:, None])):
        array = constant(node.inputs[1])
        assert array is not None
        set_constant(node, 1, array * scale)
    return model


def test_channels_are_scaled_first_and_biases_come_back_where_all_goes_back_to_float() -> None:
    model = spread(deep(60.0), 30.0)
    before = {name: constant(value) for name, value in model.graph.initializers.items()}
    _, figures, _ = quantized(model, equalize="auto", mode="static", min_sqnr=200.0, short_names=False)
    assert figures["integer_nodes"] == figures["absorbed_offsets"] == figures["scaled_parts"] == 0
    assert figures["absorbed_offsets_gain_db"] > 2
    assert figures["scaled_parts_gain_db"] > 2
    after = {name: constant(value) for name, value in model.graph.initializers.items()}
    assert before.keys() == after.keys()
    for name, array in before.items():
        np.testing.assert_array_equal(array, after[name])


@pytest.mark.parametrize("least", [29.0, 30.0, 32.0])
def test_parts_that_go_back_to_float_keep_what_their_stored_weights_need(least: float) -> None:
    """An offset times the error of a weight is an error, too, where the weight is only stored in 8 bits."""
    found, figures, _ = quantized(deep(60.0), min_sqnr=least, timing=False)
    assert figures["integer_nodes"] == 0
    assert figures["held_out_sqnr_db"] > least - 2
    assert found > least - 4
