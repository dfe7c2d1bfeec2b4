"""int8: weights rounded by the covariance of what layers read, and what that is judged by."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnxedge_passes.quantize import Int8
from onnxedge_passes.quantize.fidelity import Fidelity, Reference
from onnxedge_passes.quantize.refine.covariance import Gram, affordable, rounded_by
from onnxedge_passes.quantize.refine.layers import Layer, find_layers
from onnxedge_passes.quantize.rounding import round_weight
from precision import apply, normal, outputs, sqnr

from onnxedge.api import Array, Context, Session, forked, refresh_scopes
from onnxedge.data import from_arrays
from onnxedge.target import load_packaged_target
from onnxedge.verify import infer_shapes


def model_of(text: str, weights: dict[str, Array], opset: int = 17) -> ir.Model:
    """Return a model from the text of its graph and arrays for its initializers."""
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}]> {text}')
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    return ir.serde.deserialize_model(proto)


def mixed(count: int, channels: int, *size: int, seed: int = 0) -> Array:
    """Return data [count, channels, ...] whose channels depend on each other and have a mean."""
    mix = normal(channels, channels, seed=5) + 3 * normal(channels, 3, seed=6) @ normal(3, channels, seed=7)
    return (np.moveaxis(normal(count, *size, channels, seed=seed) @ mix, -1, 1) + 1).astype(np.float32)


CASES: dict[str, tuple[str, tuple[int, ...], tuple[int, ...]]] = {
    "plain": ("Conv <pads = [1,1,1,1]> (x, w)", (24, 16, 3, 3), (16, 9, 7)),
    "strided": ("Conv <pads = [0,1,2,1], strides = [2,1], dilations = [1,2]> (x, w)", (24, 16, 3, 3), (16, 9, 7)),
    "same": ('Conv <auto_pad = "SAME_UPPER", strides = [2,2]> (x, w)', (24, 16, 3, 3), (16, 9, 7)),
    "lower": ('Conv <auto_pad = "SAME_LOWER", strides = [2,2]> (x, w)', (24, 16, 2, 2), (16, 9, 7)),
    "valid": ('Conv <auto_pad = "VALID"> (x, w)', (24, 16, 3, 3), (16, 9, 7)),
    "grouped": ("Conv <group = 4, pads = [1,1,1,1]> (x, w)", (24, 4, 3, 3), (16, 9, 7)),
    "depthwise": ("Conv <group = 16, pads = [1,1,1,1]> (x, w)", (16, 1, 3, 3), (16, 9, 7)),
    "sequence": ("Conv <pads = [2,2]> (x, w)", (24, 16, 5), (16, 19)),
    "product": ("MatMul (x, w)", (16, 24), (9, 16)),
    "gemm": ("Gemm (x, w)", (16, 24), (16,)),
    "transposed": ("Gemm <transB = 1> (x, w)", (24, 16), (16,)),
}


def layer_of(name: str) -> tuple[ir.Model, Layer, Array]:
    """Return a model of one layer, the layer, and data."""
    text, shape, data = CASES[name]
    dims = ",".join(map(str, data))
    weight = normal(*shape, seed=3) / 3
    model = model_of(f"g (float[N,{dims}] x) => (float y) {{ y = {text} }}", {"w": weight})
    model.graph.outputs[0].shape = None
    axis = 0 if "Conv" in text or "transB" in text else 1
    (layer,) = find_layers(model, lambda node, array: (round_weight(array, axis), False))
    x = mixed(48, 16, *data[1:], seed=11) if name != "product" else np.moveaxis(mixed(48, 16, 9, seed=11), 1, 2)
    return model, layer, np.ascontiguousarray(x + (90 if name == "depthwise" else 0))


def error(model: ir.Model, layer: Layer, codes: Array, x: Array) -> float:
    """Return the mean squared error of the outputs."""
    copy, _ = forked(model)
    scale = layer.array(np.broadcast_to(layer.scale(), layer.matrix(codes).shape))
    copy.graph.initializers["w"].const_value = ir.tensor((codes * scale).astype(np.float32))
    return float(np.square(outputs(model, {"x": x})[0] - outputs(copy, {"x": x})[0]).mean())


@pytest.mark.parametrize("name", CASES)
def test_errors_cancel_in_the_outputs(name: str) -> None:
    model, layer, x = layer_of(name)
    gram = Gram(layer)
    gram.add(layer, layer.node, x, 10**9, np.random.default_rng(0))
    codes = rounded_by(layer, gram.about(centred=False))
    assert codes is not None
    assert codes.dtype == np.int8
    assert np.abs(codes).max() <= 127
    before, after = error(model, layer, layer.nearest.codes, x), error(model, layer, codes, x)
    assert after < 0.6 * before
    # the Gram matrix says what the runtime computes: the window positions are the convolution's
    rest = layer.matrix(layer.array(layer.matrix(codes)) * 1.0) * layer.scale() - layer.matrix(
        layer.value.const_value.numpy()  # type: ignore[union-attr]
    )
    said = np.einsum("gnk,gkl,gnl->gn", rest, gram.about(centred=False), rest).mean()
    assert said == pytest.approx(after, rel=1e-2)


def test_inputs_that_are_never_seen_keep_their_nearest_codes() -> None:
    _, layer, x = layer_of("gemm")
    x[:, 5] = 0
    gram = Gram(layer)
    gram.add(layer, layer.node, x, 10**9, np.random.default_rng(0))
    codes = rounded_by(layer, gram.about(centred=False))
    assert codes is not None
    assert np.array_equal(codes[5], layer.nearest.codes[5])
    assert not np.array_equal(codes, layer.nearest.codes)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_data_that_is_not_finite_rounds_nothing(bad: float) -> None:
    _, layer, x = layer_of("gemm")
    x[3, 3] = bad
    gram = Gram(layer)
    gram.add(layer, layer.node, x, 10**9, np.random.default_rng(0))
    assert rounded_by(layer, gram.about(centred=False)) is None


def test_codes_stay_within_the_limit_of_the_weight() -> None:
    _, layer, x = layer_of("product")
    value = layer.value
    assert value.const_value is not None
    small = Layer(value, layer.nodes, round_weight(value.const_value.numpy(), 1, limit=31), False)
    gram = Gram(small)
    gram.add(small, small.node, x, 10**9, np.random.default_rng(0))
    codes = rounded_by(small, gram.about(centred=False))
    assert codes is not None
    assert np.abs(codes).max() == 31


def test_a_weight_that_is_read_in_two_ways_is_none() -> None:
    text = "g (float[N,16] x) => (float[N,16] y) { a = MatMul(x, w)  y = Gemm <transB = 1> (a, w) }"
    model = model_of(text, {"w": normal(16, 16)})
    assert find_layers(model, lambda node, array: (round_weight(array, 0), False)) == []


def test_a_layer_that_may_stay_float_is_none() -> None:
    text = "g (float[N,16] x) => (float[N,16] y) { a = MatMul(x, w)  y = MatMul(a, w) }"
    model = model_of(text, {"w": normal(16, 16)})
    nodes = list(model.graph)
    found = find_layers(model, lambda node, array: (round_weight(array, 1), False) if node is nodes[0] else None)
    assert found == []
    (both,) = find_layers(model, lambda node, array: (round_weight(array, 1), False))
    assert list(both.nodes) == nodes


def test_the_cheapest_layers_come_first() -> None:
    layers = [layer_of(name)[1] for name in ("plain", "gemm")]
    assert affordable(layers, 1e15) == layers
    assert affordable(layers, 1e6) == layers[1:]
    assert affordable(layers, 1.0) == []


def stored(**options: Any) -> tuple[ir.Model, ir.Model, dict[str, Array]]:
    text = "g (float[N,T,64] x) => (float[N,T,64] y) { a = MatMul(x, w)  b = Relu(a)  c = MatMul(b, v)  y = Add(c, e) }"
    model = model_of(text, {"w": normal(64, 96, seed=1), "v": normal(96, 64, seed=2), "e": normal(64, seed=3)})
    before = model.clone()
    x = np.moveaxis(mixed(64, 64, 4, seed=21), 1, 2)
    apply(Int8(mode="storage", **options), model, {"x": np.ascontiguousarray(x)})
    return before, model, {"x": np.ascontiguousarray(np.moveaxis(mixed(32, 64, 4, seed=22), 1, 2))}


def test_stored_weights_are_rounded_by_covariance_too() -> None:
    found = {}
    for rounding in ("nearest", "covariance", "auto"):
        before, after, feed = stored(rounding=rounding)
        found[rounding] = sqnr(outputs(before, feed)[0], outputs(after, feed)[0])
    assert found["covariance"] > found["nearest"] + 2
    assert found["auto"] > found["nearest"] + 2


def test_the_same_input_is_rounded_the_same() -> None:
    first, second = (stored(rounding="covariance")[1] for _ in range(2))
    arrays = [{n: v.const_value.numpy() for n, v in m.graph.initializers.items()} for m in (first, second)]
    assert arrays[0].keys() == arrays[1].keys()
    assert all(np.array_equal(arrays[0][name], arrays[1][name]) for name in arrays[0])


def test_nothing_is_rounded_by_synthetic_samples() -> None:
    text = "g (float[N,T,64] x) => (float[N,T,64] y) { a = MatMul(x, w)  b = Relu(a)  y = MatMul(b, v) }"
    model = model_of(text, {"w": normal(64, 96, seed=1), "v": normal(96, 64, seed=2)})
    expected = [round_weight(normal(*shape, seed=k), 1).codes for shape, k in (((64, 96), 1), ((96, 64), 2))]
    apply(Int8(mode="storage", rounding="covariance"), model)
    found = [v.const_value.numpy() for v in model.graph.initializers.values()]
    codes = [array for array in found if array.dtype == np.int8]
    assert all(any(np.array_equal(e, c) for c in codes) for e in expected)


def classifier(axis: int = -1) -> ir.Model:
    text = f"g (float[N,8] x) => (float[N,8] y) {{ a = MatMul(x, w)  y = Softmax <axis = {axis}> (a) }}"
    return model_of(text, {"w": 20 * normal(8, 8)})


def noise(model: ir.Model, *, before_softmax: bool, scale: float = 1.01) -> float:
    infer_shapes(model)
    refresh_scopes(model)
    x = normal(32, 8, seed=3)
    data, target = from_arrays(Session(model).inputs, {"x": x}), load_packaged_target("onnxedge.targets", "ort-cpu")
    context = Context(target, data, original=model)
    other, _ = forked(model)
    weight = other.graph.initializers["w"]
    assert weight.const_value is not None
    weight.const_value = ir.tensor((weight.const_value.numpy() * scale).astype(np.float32))
    outputs_before = [value.name for value in other.graph.outputs]
    reference = Reference(model, [{"x": x}], context, before_softmax=before_softmax)
    found = reference.compare(other)
    assert [value.name for value in other.graph.outputs] == outputs_before
    assert found.agreement is not None
    return found.noise


def test_answers_are_judged_before_a_softmax() -> None:
    assert noise(classifier(), before_softmax=True) == pytest.approx(1e-4, rel=0.1)
    assert noise(classifier(), before_softmax=False) < 5e-5


def test_a_softmax_over_another_axis_is_judged_behind_it() -> None:
    sure, plain = (noise(classifier(axis=0), before_softmax=b) for b in (True, False))
    assert sure == plain


def fidelity_of(made: Array, answers: Array) -> tuple[float, float, float]:
    """Return noise, the typical gain over noise of 0.1, and the share that is the same for all samples."""
    model = model_of(
        "g (float[N,4] x) => (float[N,4] y) { y = Add(x, e) }", {"e": np.zeros((len(made), 4), np.float32)}
    )
    infer_shapes(model)
    refresh_scopes(model)
    data = from_arrays(Session(model).inputs, {"x": answers})
    target = load_packaged_target("onnxedge.targets", "ort-cpu")
    reference = Reference(model, [{"x": answers}], Context(target, data, original=model))

    def compare(error: Array) -> Fidelity:
        other, _ = forked(model)
        other.graph.initializers["e"].const_value = ir.tensor(error.astype(np.float32))
        return reference.compare(other)

    found = compare(made - answers)
    return found.noise, found.typical_gain_db(compare(np.full(answers.shape, 0.1))), found.shift


def test_a_typical_sample_is_not_decided_by_a_few() -> None:
    answers = normal(32, 4, seed=1)
    error = np.full((32, 4), 0.01)
    error[5] = 3.0
    noise, gain, _ = fidelity_of(answers + error, answers)
    assert noise > 0.1
    assert gain == pytest.approx(20 * 31 / 32 - 29.5 / 32, abs=0.1)


def test_the_share_of_the_noise_that_all_samples_have() -> None:
    answers = normal(64, 4, seed=1)
    assert fidelity_of(answers + 0.1, answers)[2] == pytest.approx(1, abs=1e-3)
    assert fidelity_of(answers + 0.1 * normal(64, 4, seed=2), answers)[2] < 0.05
    half = fidelity_of(answers + 0.1 + 0.1 * normal(64, 4, seed=3), answers)[2]
    assert 0.35 < half < 0.65
