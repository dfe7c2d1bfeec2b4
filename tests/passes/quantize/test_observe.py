"""Calibration streams: what is held, which inputs and shapes it takes, and how mixed ranges are chosen."""

from __future__ import annotations

import gc
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from chains import CHANNELS, CHOICES, SIDE, calibrated, chain, context, samples, units
from onnxedge_passes.quantize import Int8
from onnxedge_passes.quantize.calibration.mixed import MIXED
from onnxedge_passes.quantize.calibration.observe import Stream, observe, tensor_bytes
from onnxedge_passes.quantize.calibration.observed import HISTOGRAM_BYTES
from precision import apply

from onnxedge.api import Array, UserError, capture, constant, forked, model_inputs, open_data
from onnxedge.verify import infer_shapes


def values_of(model: ir.Model) -> list[ir.Value]:
    return list({id(v): v for unit in units(model) for v in (*unit.input_values(), *unit.outputs)}.values())


def test_ranges_are_those_of_the_activations() -> None:
    model, x = chain(), samples(24)
    seen = calibrated(model, {"x": x})
    assert list(seen) == ["x", "r0", "r1", "y"]
    (arrays,) = capture(model, values_of(model), [{"x": x}])
    for (name, entry), array in zip(seen.items(), arrays, strict=True):
        assert (entry.low, entry.high, entry.samples) == (array.min(), array.max(), 24), name
        np.testing.assert_allclose(entry.average[1], array.reshape(24, -1).max(axis=1).mean(), rtol=1e-5)
        assert set(entry.ranges) == set(CHOICES)
        assert entry.ranges["minmax", 0.0] == (min(0.0, array.min()), array.max())
        if name != "y":
            assert entry.mean is not None
            np.testing.assert_allclose(entry.mean, array.mean(axis=(0, 2, 3)), atol=1e-4)


@pytest.mark.parametrize("depth", [2, 8])
def test_memory_does_not_grow_with_the_samples(tmp_path: Path, depth: int) -> None:
    """From so many on that nearly all bins are filled."""
    np.save(tmp_path / "few.npy", samples(192))
    np.save(tmp_path / "many.npy", samples(4 * 192))
    model = chain(depth)
    peaks = []
    for name in ("few", "few", "many"):
        data = open_data(tmp_path / f"{name}.npy", model_inputs(model))
        gc.collect()
        tracemalloc.start()
        calibrated(model, data)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < 1.15 * peaks[1]


def test_memory_does_not_grow_with_the_tensors() -> None:
    """What is captured at one time stays in the budget, and a tensor leaves nothing but a few numbers behind."""
    budget = 3 * (4 * 16 * CHANNELS * SIDE * SIDE + HISTOGRAM_BYTES)
    x, held = {"x": samples(20)}, {}
    for depth in (3, 15):
        model = chain(depth)
        stream = Stream.of(model, values_of(model), open_data(x, model_inputs(model)), 20, budget)
        size = 4 * stream.batch * CHANNELS * SIDE * SIDE + HISTOGRAM_BYTES
        assert max(len(group) for group in stream.groups) * size <= budget
        held[depth] = stream.batch
        seen = calibrated(model, x, budget=budget)
        assert all(entry.counts is None for entry in seen.values())
        whole = calibrated(model, x)
        assert {name: entry.low for name, entry in seen.items()} == {name: entry.low for name, entry in whole.items()}
        np.testing.assert_allclose(
            [entry.ranges["mse", 0.0] for entry in seen.values()], [e.ranges["mse", 0.0] for e in whole.values()]
        )
    assert held[3] > held[15]


def test_the_batch_becomes_smaller_before_there_are_groups() -> None:
    """A group more is a run of the whole model more."""
    model = chain()
    values = values_of(model)
    data = open_data({"x": samples(20)}, model_inputs(model))
    histograms, one = HISTOGRAM_BYTES * len(values), 4 * CHANNELS * SIDE * SIDE * len(values)
    budgets = (1 << 30, histograms + 10 * one, histograms + one, (histograms + one) // 2, 1)
    streams = [Stream.of(model, values, data, 20, budget) for budget in budgets]
    assert [stream.batch for stream in streams] == [16, 10, 1, 1, 1]
    assert [len(stream.groups) for stream in streams[:3]] == [1, 1, 1]
    assert len(streams[3].groups) in (2, 3)
    assert len(streams[4].groups) == len(values)


def test_sizes_come_from_the_runtime() -> None:
    """Inner shapes that nothing declares, of a model with any size of image."""
    model = chain(shape=("N", CHANNELS, "H", "W"))
    values = values_of(model)
    assert tensor_bytes(model, values, {"x": samples(2, 20)}) == [4 * 2 * CHANNELS * 400] * len(values)


def test_samples_of_many_shapes() -> None:
    model = chain(shape=("N", CHANNELS, "H", "W"))
    images = [samples(1, side, seed=side)[0] for side in (6, 20, 12, 12, 9)]
    seen = calibrated(model, [{"x": image} for image in images])
    assert seen["x"].samples == 5
    assert seen["x"].high == max(image.max() for image in images)
    np.testing.assert_allclose(seen["x"].average[0], np.mean([image.min() for image in images]), rtol=1e-6)


def test_samples_that_only_fill_a_fixed_batch_are_not_seen() -> None:
    model = chain(shape=(4, CHANNELS, SIDE, SIDE))
    x = samples(6) + np.arange(6, dtype=np.float32).reshape(-1, 1, 1, 1)
    entry = calibrated(model, {"x": x})["x"]
    assert (entry.samples, entry.elements) == (6, x.size)
    np.testing.assert_allclose(entry.average[1], x.reshape(6, -1).max(axis=1).mean(), rtol=1e-6)


def parsed(text: str) -> ir.Model:
    model = ir.serde.deserialize_model(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {text}'))
    infer_shapes(model)
    return model


def with_weights(model: ir.Model, *shapes: tuple[int, ...]) -> ir.Model:
    """Turn the last inputs into weights."""
    rng = np.random.default_rng(0)
    for value, shape in zip(list(model.graph.inputs)[-len(shapes) :], shapes, strict=True):
        value.const_value = ir.tensor(rng.normal(size=shape).astype(np.float32) / 16, name=value.name)
        model.graph.inputs.remove(value)
        model.graph.register_initializer(value)
    infer_shapes(model)
    return model


def test_many_inputs_and_one_without_samples() -> None:
    text = """g (float[N,64,256] a, float[N,64,256] b, int64[2] s, float[256,256] w, float[256,256] v)
    => (float[N,64,256] y) { p = MatMul(a, w)  q = MatMul(b, v)  t = Add(p, q)  y = Relu(t) }"""
    model = with_weights(parsed(text), (256, 256), (256, 256))
    rng = np.random.default_rng(0)
    feeds = {n: (k * rng.normal(size=(12, 64, 256))).astype(np.float32) for n, k in (("a", 1), ("b", 5))}
    seen = calibrated(model, {**feeds, "s": np.zeros((12, 2), np.int64)})
    for name, array in feeds.items():
        assert (seen[name].low, seen[name].high) == (array.min(), array.max())


def test_what_stands_in_branches_stays_float_and_is_said() -> None:
    text = """g (float[N,64,256] x, bool k, float[256,256] w, float[256,256] v) => (float[N,64,256] y) {
      p = MatMul(x, w)
      c = If (k) <then_branch = t () => (float[N,64,256] u) { u = MatMul(p, v) },
                  else_branch = e () => (float[N,64,256] o) { o = Relu(p) }>
      y = MatMul(c, v)
    }"""
    model = with_weights(parsed(text), (256, 256), (256, 256))
    x = np.random.default_rng(0).normal(size=(12, 64, 256)).astype(np.float32)
    result, notes = apply(Int8(mode="static"), model, {"x": x, "k": np.array(True)})
    assert result.figures["integer_nodes"] >= 2
    assert "bodies of If, Loop and Scan and local functions compute in float" in notes
    inner = [node.op_type for graph in model.graph.subgraphs() for node in graph]
    assert sorted(inner) == ["MatMul", "Relu"]


def test_mixed_ranges_are_the_best_for_the_readers() -> None:
    """One tensor has outliers that its reader drops, another the same outliers, which its reader is about."""
    text = """g (float[N,64,256] x, float[N,64,256] z, float[256,256] w, float[256,256] v)
    => (float[N,64,256] y) { p = MatMul(x, w)  q = MatMul(z, v)  y = Add(p, q) }"""
    model = with_weights(parsed(text), (256, 256), (256, 256))
    weights = {name: model.graph.initializers[name] for name in ("w", "v")}
    kept = constant(weights["w"]).copy()  # type: ignore[union-attr]
    kept[0] = 0.0
    weights["w"].const_value = ir.tensor(kept, name="w")
    rng = np.random.default_rng(0)
    x, z = (rng.normal(size=(16, 64, 256)).astype(np.float32) for _ in range(2))
    x[:, :, 0] *= 20
    z[:, :, 0] *= 20
    seen = calibrated(model, {"x": x, "z": z}, (*CHOICES, MIXED))
    dropped, needed = seen["x"].ranges[MIXED], seen["z"].ranges[MIXED]
    assert dropped[1] < 0.8 * needed[1]
    assert dropped == min(seen["x"].ranges.values(), key=lambda ends: ends[1] - ends[0])


def test_calibration_leaves_the_model_as_it_is() -> None:
    model = chain()
    before = [node.op_type for node in model.graph], [v.name for v in model.graph.outputs]
    calibrated(model, {"x": samples(8)}, (*CHOICES, MIXED))
    assert ([node.op_type for node in model.graph], [v.name for v in model.graph.outputs]) == before
    assert len(forked(model)[0].graph.initializers) == 6


def test_values_that_are_not_finite_have_no_range() -> None:
    model = chain()
    weight = model.graph.initializers["w1"]
    array = constant(weight).copy()  # type: ignore[union-attr]
    array[0, 0, 0, 0] = 3e38
    weight.const_value = ir.tensor(array, name="w1")
    seen = calibrated(model, {"x": samples(8) * 10}, (*CHOICES, MIXED))
    assert seen["r0"].finite
    assert not seen["r1"].finite
    assert not seen["r1"].ranges


@pytest.mark.parametrize("x", [np.zeros((12, CHANNELS, SIDE, SIDE)), np.full((12, CHANNELS, SIDE, SIDE), 0.5)])
def test_constant_samples_are_refused(x: Array) -> None:
    with pytest.raises(UserError, match=r"the calibration samples are constant \('x' is 0(.5)? all over\); give real"):
        calibrated(chain(), {"x": x.astype(np.float32)})


def test_one_constant_input_among_others_is_none_of_ours() -> None:
    text = """g (float[N,64,256] x, float[N,64,256] state, float[256,256] w) => (float[N,64,256] y)
    { a = Add(x, state) y = MatMul(a, w) }"""
    model = with_weights(parsed(text), (256, 256))
    x = np.random.default_rng(0).normal(size=(8, 64, 256)).astype(np.float32)
    assert calibrated(model, {"x": x, "state": np.zeros_like(x)})["a"].finite


def test_progress_and_samples_are_limited() -> None:
    model = chain()
    data = open_data({"x": samples(40)}, model_inputs(model))
    stream = Stream.of(model, values_of(model), data, 10, 1 << 30)
    seen = observe(model, stream, CHOICES, context(model, data), channels={}, symmetric=False)
    assert {entry.samples for entry in seen.values()} == {10}


def test_a_run_is_repeatable() -> None:
    found: list[Any] = []
    for _ in range(2):
        seen = calibrated(chain(), {"x": samples(20)}, (*CHOICES, MIXED))
        found.append([entry.ranges for entry in seen.values()])
    assert found[0] == found[1]
