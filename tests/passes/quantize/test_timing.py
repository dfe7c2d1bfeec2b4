"""Regions on the clock, islands of float between integers, and models on which integers win nothing."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from chains import CHANNELS, chain, samples
from conftest import parse
from onnxedge_passes.quantize import Int8
from onnxedge_passes.quantize.sensitivity import regions
from onnxedge_passes.quantize.timing import Region, _latency, cut_out
from precision import apply, outputs

import onnxedge
from onnxedge.api import Latency, Session, capture, place, to_proto
from onnxedge.target import load_packaged_target
from onnxedge.verify import infer_shapes

TIMED = _latency  #: the tests' own fixture replaces it by nothing
TARGET = load_packaged_target("onnxedge.targets", "ort-cpu")
SHAPE = f"float[N,{CHANNELS},12,12]"


def broken(*depths: int) -> ir.Model:
    """Return so many convolutions in a row, and again, with an operator between that has no integer kernel."""
    depths = depths or (2, 3)
    rng = np.random.default_rng(0)
    lines, weights, last = [], [], "x"
    for part, depth in enumerate(depths):
        for step in range(depth):
            name = f"{part}{step}"
            weights.append((f"w{name}", (rng.normal(size=(CHANNELS, CHANNELS, 3, 3)) / 9).astype(np.float32)))
            lines.append(f"c{name} = Conv <pads = [1,1,1,1]> ({last}, w{name})  r{name} = Relu(c{name})")
            last = f"r{name}"
        if part < len(depths) - 1:
            lines.append(f"t{part} = Tanh({last})")
            last = f"t{part}"
    head = ", ".join(f"float[{CHANNELS},{CHANNELS},3,3] {name}" for name, _ in weights)
    model = parse(f"g ({SHAPE} x, {head}) => ({SHAPE} y) {{ {' '.join(lines)}  y = Identity({last}) }}")
    for name, array in weights:
        value = next(v for v in model.graph.inputs if v.name == name)
        model.graph.inputs.remove(value)
        value.const_value = ir.tensor(array)
        model.graph.register_initializer(value)
    for node in model.graph:
        node.name = node.outputs[0].name
    infer_shapes(model)
    return model


def latency(ratio: float, low: float | None = None, cpu: float | None = None) -> Latency:
    return Latency(ratio, low or ratio - 0.02, ratio + 0.02, cpu or ratio, 0.01, 0.01 * ratio, 24)


def clocked(monkeypatch: pytest.MonkeyPatch, times: dict[str, Latency]) -> list[str]:
    """Let the regions that begin at some nodes take some times, all others half; return which were timed."""
    asked: list[str] = []

    def find(quantizer: Any, cut: ir.Model, feeds: Any) -> Latency:
        first = cut.graph[0].name or ""
        asked.append(first)
        assert set(feeds) >= {value.name for value in cut.graph.inputs}
        return times.get(first, latency(0.5))

    monkeypatch.setattr("onnxedge_passes.quantize.timing._latency", find)
    return asked


def test_only_the_region_that_is_slower_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model = broken()
    clocked(monkeypatch, {"c10": latency(1.5)})
    result, notes = apply(Int8(), model, {"x": samples(32)})
    reason = "put back to float by the clock: 15.0 us in integers, 10.0 us in float, for the 6 nodes from Conv 'c10' on"
    assert f"Conv 'c10': {reason}" in notes
    assert f"Conv 'c11': {reason}" in notes
    assert "Conv 'c00'" not in notes
    assert result.figures["integer_nodes"] == 4
    first, second = result.figures["regions"]
    assert (first["first"], first["nodes"], first["ratio"], first["float_ns"]) == ("Conv 'c00'", 4, 0.5, 10_000)
    assert (second["first"], second["ratio"], second["integer_ns"]) == ("Conv 'c10'", 1.5, 15_000)
    assert first["predicted_gain_ns"] > 0
    assert first["alone_sqnr_db"] > 20


@pytest.mark.parametrize(
    "found", [latency(1.08), latency(1.5, low=0.98), latency(1.5, cpu=1.01), latency(0.9), latency(1.1)]
)
def test_what_is_within_the_noise_stays(monkeypatch: pytest.MonkeyPatch, found: Latency) -> None:
    clocked(monkeypatch, {"c10": found})
    result, notes = apply(Int8(), broken(), {"x": samples(32)})
    assert "clock" not in notes
    assert result.figures["integer_nodes"] == 10


def test_equal_regions_are_timed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = clocked(monkeypatch, {})
    result, _ = apply(Int8(), broken(2, 2, 2, 2), {"x": samples(32)})
    assert len(result.figures["regions"]) == 4
    assert asked == ["c00"]
    assert [region["ratio"] for region in result.figures["regions"]] == [0.5] * 4


@pytest.mark.parametrize(("options", "target"), [({"timing": False}, "ort-cpu"), ({}, "tensorrt"), ({}, "generic")])
def test_nothing_is_timed(monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], target: str) -> None:
    asked = clocked(monkeypatch, {"c00": latency(9.0), "c10": latency(9.0)})
    result, _ = apply(Int8(**options), broken(), {"x": samples(32)}, target)
    assert not asked
    assert result.figures["integer_nodes"] > 0
    assert all("ratio" not in region for region in result.figures["regions"])


def test_the_same_clock_gives_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    clocked(monkeypatch, {"c00": latency(2.0)})
    models = [broken(), broken()]
    for model in models:
        apply(Int8(), model, {"x": samples(32)})
    assert to_proto(models[0]).SerializeToString(True) == to_proto(models[1]).SerializeToString(True)


def test_the_real_clock_gives_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxedge_passes.quantize.timing._latency", TIMED)
    monkeypatch.setattr("onnxedge_passes.quantize.timing._ROUNDS", 5)
    monkeypatch.setattr("onnxedge_passes.quantize.timing._AGAIN_ROUNDS", 5)
    result, _ = apply(Int8(), broken(2, 3, 2), {"x": samples(32)})
    for region in result.figures["regions"]:
        assert region["float_ns"] > 0
        assert region["integer_ns"] > 0
        assert region["ratio"] > 0


@pytest.mark.parametrize("make", [broken, chain])
def test_a_region_cut_out_computes_what_it_computes_inside(make: Any) -> None:
    model = make()
    units = place(model, TARGET).integer
    order = {node: position for position, node in enumerate(model.graph)}
    feed = {"x": samples(1)}
    for part in regions(units):
        cut = cut_out(model, [units[i] for i in part], order)
        assert len(cut.graph) == sum(len(units[i].nodes) for i in part)
        names = [value.name for value in (*cut.graph.inputs, *cut.graph.outputs)]
        values = [v for v in (*model.graph.inputs, *(o for n in model.graph for o in n.outputs)) if v.name in names]
        inside = dict(zip([v.name for v in values], next(iter(capture(model, values, [feed]))), strict=True))
        found = Session(cut, level="disable").run({v.name or "": inside[v.name] for v in cut.graph.inputs})
        assert found
        for name, array in found.items():
            np.testing.assert_array_equal(array, inside[name])


def test_a_verdict_needs_all_three_figures() -> None:
    region = Region((0,), "Conv 'a'", 1, 0.0, None)
    assert not region.is_slower
    assert dataclasses.replace(region, latency=latency(1.2)).is_slower
    assert "ratio" not in region.figures()


def test_islands_between_integers_are_priced() -> None:
    result, notes = apply(Int8(), broken(), {"x": samples(32)})
    (island,) = result.figures["float_islands"]
    assert (island["first"], island["nodes"], island["crossings"]) == ("Tanh 't0'", 1, 2)
    size = CHANNELS * 12 * 12
    rules = TARGET.quantization
    assert rules is not None
    assert island["cost_ns"] == round(2 * (rules.node_ns + size * (rules.boundary_ns + rules.relayout_ns)))
    assert island["reason"] == "Tanh: no integer kernel on ort-cpu"
    assert island["at"] == [{"node": "Tanh 't0'", "cost_ns": island["cost_ns"], "reason": island["reason"]}]
    assert "Tanh 't0': island of a float node between integers costs 2 crossings, about " in notes


def test_what_is_float_at_the_ends_is_no_island() -> None:
    result, notes = apply(Int8(), chain(), {"x": samples(32)})
    assert result.figures["integer_nodes"]
    assert result.figures["float_islands"] == []
    assert "island" not in notes


def test_several_float_nodes_are_one_island() -> None:
    model = broken(3, 2)
    result, _ = apply(Int8(skip="c02"), model, {"x": samples(32)})
    (island,) = result.figures["float_islands"]
    assert (island["first"], island["nodes"]) == ("Conv 'c02'", 3)
    assert island["reason"] == "left float as asked by skip"
    assert {shore["node"] for shore in island["at"]} == {"Conv 'c02'", "Tanh 't0'"}


SMALL = {
    "no weights": "g (float[N,8] x) => (float[N,8] y) { y = Sigmoid(x) }",
    "a vector": "g (float[N,4] x) => (float[N,4] y) <float[4] b = {1,2,3,4}> { y = Add(x, b) }",
    "a small product": "g (float[1,2] x) => (float[1,2] y) <float[2,2] w = {1,2,3,4}> { y = MatMul(x, w) }",
    "pooling": "g (float[N,4,8,8] x) => (float[N,4,4,4] y) { y = MaxPool <kernel_shape=[2,2], strides=[2,2]> (x) }",
    "passing": "g (float[N,8] x) => (float[N,8] y) { y = Identity(x) }",
    "integers": "g (int64[N,8] x) => (int64[N,8] y) { y = Neg(x) }",
}


@pytest.mark.usefixtures("untimed")
@pytest.mark.parametrize("text", SMALL.values(), ids=SMALL)
def test_where_nothing_wins_the_model_is_what_it_was(text: str) -> None:
    model = parse(text)
    found = onnxedge.optimize(model, "int8")
    record = found.report.passes[0]
    assert (record.status, record.summary) == ("no change", "nothing to gain")
    nodes = [[n.SerializeToString(True) for n in to_proto(m).graph.node] for m in (model, found.model)]
    assert nodes[0] == nodes[1]


@pytest.mark.usefixtures("untimed")
@pytest.mark.parametrize("rows", [1, 16])
def test_weights_are_stored_where_integers_would_be_slower(rows: int) -> None:
    weight = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    model = parse(f"g (float[{rows},64] x, float[64,64] w) => (float[{rows},64] y) {{ y = MatMul(x, w) }}")
    value = model.graph.inputs.pop()
    value.const_value = ir.tensor(weight)
    model.graph.register_initializer(value)
    x = np.random.default_rng(1).normal(size=(16 * rows, 64)).astype(np.float32)
    found = onnxedge.optimize(model, "int8", calib={"x": x})
    figures = found.report.passes[0].figures
    assert (figures["integer_nodes"], figures["stored_weights"]) == (0, 1)
    assert found.report.after.file_bytes < 0.35 * found.report.before.file_bytes
    assert any("the integer kernel does not pay here" in note.reason for note in found.report.notes)
    first, other = (outputs(m, {"x": x[:rows]})[0] for m in (model, found.model))
    assert np.abs(first - other).max() < 0.05 * np.abs(first).max()
