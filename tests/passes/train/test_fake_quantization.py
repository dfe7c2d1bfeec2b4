"""Fake quantization: nodes compute what arrays do, what int8 writes, and gradients go straight through."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnxedge_passes.quantize.int4.blocks import nearest
from onnxedge_passes.quantize.names import name_values
from onnxedge_passes.quantize.quantizer import Quantizer
from onnxedge_passes.quantize.quantizer import Settings as Int8Settings
from onnxedge_passes.train.fake_quantization import ActivationGrid, Steps, WeightGrid
from onnxedge_passes.train.qat_grids import channel_grid, eight_bit_grids, four_bit_grids, settled
from teachers import build, resnet, samples, transformer

from onnxedge.api import (
    Array,
    Context,
    Regression,
    Session,
    TrainingSettings,
    compose,
    constant,
    forked,
    insert_before,
    new_initializer,
    refresh_scopes,
    remove_node,
    replace_uses,
    set_constant,
    train,
)
from onnxedge.data import from_arrays
from onnxedge.target import load_packaged_target
from onnxedge.training.overlay import find_environment
from onnxedge.verify import infer_shapes

ENGINES = [
    "ort",
    pytest.param(
        "ort-training",
        marks=pytest.mark.skipif(find_environment() is None, reason="needs `onnxedge training install`"),
    ),
]


def context_of(model: ir.Model, data: Array, target: str = "ort-cpu") -> Context:
    calibration = from_arrays(Session(model).inputs, {model.graph.inputs[0].name or "": data})
    chip = load_packaged_target("onnxedge.targets", target)  # type: ignore[arg-type]
    context = Context(chip, calibration, original=model.clone())
    context.begin("qat")
    return context


def ready(model: ir.Model) -> ir.Model:
    refresh_scopes(model)
    name_values(model)
    infer_shapes(model)
    return model


def weight_of(model: ir.Model, name: str) -> Array:
    return np.asarray(model.graph.initializers[name].const_value.numpy())  # type: ignore[union-attr]


LINEAR = "g (float[N,70] x) => (float[N,9] y) { y = MatMul(x, w) }"


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
def test_blocks_of_a_matrix(transposed: bool, learned: bool) -> None:
    """The nodes give what the arrays do, and those what int4's own rounding does; K is no whole number of blocks."""
    text = LINEAR if not transposed else LINEAR.replace("MatMul(x, w)", "Gemm<transB=1>(x, w)")
    model = ready(build(text, {"w": (9, 70) if transposed else (70, 9)}))
    weight = weight_of(model, "w")
    matrix = weight if transposed else weight.T
    blocks = nearest(matrix, 32, symmetric=False)
    steps = Steps(blocks.scale[..., None], blocks.zero[..., None].astype(np.float32), 0.0, 15.0)
    grid = WeightGrid("w", steps, block=32, transposed=transposed)
    expected = blocks.restored() if transposed else blocks.restored().T
    np.testing.assert_allclose(grid.rounded(weight), expected, rtol=0, atol=1e-7)
    changed, _ = forked(model)
    assert grid.insert(changed.graph, learned=learned)
    rounded, _ = forked(model)
    set_constant(next(iter(rounded.graph)), 1, grid.rounded(weight))
    feed = {"x": samples((70,), 4)}
    outputs = [Session(m, level="disable").run(feed)["y"] for m in (changed, rounded, model)]
    np.testing.assert_allclose(outputs[0], outputs[1], rtol=1e-5, atol=1e-5)
    assert np.abs(outputs[1] - outputs[2]).max() > 1e-3
    assert (grid.log_scale_name in changed.graph.initializers) == learned


def test_all_readers_of_a_weight_read_it_rounded() -> None:
    text = "g (float[N,4,5,5] x) => (float[N,4,5,5] y) { a = Conv(x, w) b = Relu(a) y = Conv(b, w) }"
    model = ready(build(text, {"w": (4, 4, 1, 1)}))
    grid = channel_grid("w", weight_of(model, "w"), 0)
    changed, _ = forked(model)
    assert grid.insert(changed.graph, learned=True)
    rounded = grid.rounded(weight_of(model, "w"))
    for node in (node for node in model.graph if node.op_type == "Conv"):
        set_constant(node, 1, rounded)
    feed = {"x": samples((4, 5, 5), 3)}
    mine, other = (Session(m, level="disable").run(feed)["y"] for m in (changed, model))
    np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-6)


def test_four_bits_a_channel() -> None:
    weight = np.random.default_rng(3).standard_normal((5, 7, 3, 3)).astype(np.float32)
    grid = channel_grid("w", weight, 0)
    codes = grid.steps.codes(weight)
    assert codes.min() >= -8
    assert codes.max() <= 7
    np.testing.assert_array_equal(codes, np.rint(codes))
    assert grid.steps.scale.shape == (5, 1, 1, 1)
    error = np.square(grid.rounded(weight) - weight).mean()
    plain = Steps(np.abs(weight).max((1, 2, 3), keepdims=True) / 7, None, -8.0, 7.0)
    assert error <= np.square(plain(weight) - weight).mean()
    longer = np.full((5, 1, 1, 1), np.log(2), np.float32)
    np.testing.assert_allclose(grid.steps.scale_of(longer), 2 * grid.steps.scale, rtol=1e-6)


def test_activations_of_some_readers() -> None:
    text = "g (float[N,4] x) => (float[N,4] y, float[N,4] z) { a = Sigmoid(x) y = MatMul(a, w) z = Tanh(a) }"
    model = ready(build(text, {"w": (4, 4)}))
    grid = ActivationGrid("a", Steps(np.array(0.25, np.float32), None, -2.0, 2.0), ("y",))
    changed, _ = forked(model)
    assert grid.insert(changed.graph)
    feed = {"x": samples((4,), 6)}
    before, after = Session(model).run(feed), Session(changed).run(feed)
    np.testing.assert_array_equal(before["z"], after["z"])
    a = 1 / (1 + np.exp(-feed["x"]))
    np.testing.assert_allclose(after["y"], grid.steps(a) @ weight_of(model, "w"), rtol=1e-5, atol=1e-6)
    assert not dataclasses.replace(grid, name="nothing").insert(changed.graph)
    assert not dataclasses.replace(grid, readers=("nobody",)).insert(changed.graph)
    everywhere, _ = forked(model)
    assert dataclasses.replace(grid, readers=None).insert(everywhere.graph)
    np.testing.assert_allclose(Session(everywhere).run(feed)["z"], np.tanh(grid.steps(a)), rtol=1e-5, atol=1e-6)


#: wide enough that integers pay on the target; a pool and a Pad keep their input's grid
WIDE = """g (float[N,16,12,12] x) => (float[N,10] y) {
  a = Conv<pads=[1,1,1,1]>(x, w0, b0)
  b = Relu(a)
  c = MaxPool<kernel_shape=[2,2], strides=[2,2]>(b)
  d = Conv<pads=[1,1,1,1]>(c, w1, b1)
  e = Relu(d)
  f = Conv<pads=[1,1,1,1]>(e, w2, b2)
  h = Add(f, c)
  i = Relu(h)
  j = GlobalAveragePool(i)
  k = Flatten(j)
  y = Gemm<transB=1>(k, w3, b3)
}"""


def wide() -> ir.Model:
    shapes = {"w0": (64, 16, 3, 3), "w1": (64, 64, 3, 3), "w2": (64, 64, 3, 3), "w3": (10, 64)}
    biases = {"b0": (64,), "b1": (64,), "b2": (64,), "b3": (10,)}
    return ready(build(WIDE, {**shapes, **biases}))


@pytest.mark.parametrize("target", ["ort-cpu", "tensorrt"])
def test_forward_equals_what_int8_writes(target: str) -> None:
    model = wide()
    context = context_of(model, samples((16, 12, 12), 32), target)
    grids = eight_bit_grids(model, context, 32)
    assert len(grids.weights) >= 3
    assert len(grids.activations) >= 4
    changed, written = (forked(model)[0] for _ in range(2))
    assert all(grid.insert(changed.graph, learned=True) for grid in grids.weights)
    assert all(grid.insert(changed.graph) for grid in grids.activations)
    quantizer = Quantizer(Int8Settings(stored=False, samples=32, bias_correction=False), model, context)
    quantizer.calibrated()
    refresh_scopes(written)
    quantizer.write(written, ())
    names = [grid.name for grid in grids.activations if grid.name not in ("x", "y")]
    feed = {"x": samples((16, 12, 12), 4, 9)}
    for m in (changed, written):
        made = {value.name: value for node in m.graph for value in node.outputs}
        m.graph.outputs.extend(made[name] for name in names if made[name] not in m.graph.outputs)
    mine, other, whole = (Session(m, level="disable").run(feed) for m in (changed, written, model))
    steps = {grid.name: float(grid.steps.scale) for grid in grids.activations}
    for name in names:  # biases are rounded to int32 there, which moves a value over a step now and then
        far = np.abs(mine[name] - other[name])
        assert far.max() < 3 * steps[name], name
        assert far.mean() < 0.1 * steps[name], name
    error, noise = np.abs(mine["y"] - other["y"]).max(), np.abs(whole["y"] - other["y"]).max()
    assert error < 0.5 * noise


SMALL = """g (float[N,3,6,6] x) => (float[N,2] y) {
  a = Conv<pads=[1,1,1,1]>(x, w0, b0)
  b = Relu(a)
  c = Conv(b, w1)
  d = ReduceMean<axes=[2,3], keepdims=0>(c)
  y = MatMul(d, w2)
}"""


def small() -> tuple[ir.Model, dict[str, Array]]:
    """Return a net with weights by channel and by block, and an activation, on coarse grids; and one batch."""
    model = ready(build(SMALL, {"w0": (4, 3, 3, 3), "b0": (4,), "w1": (20, 4, 1, 1), "w2": (20, 2)}))
    data = {"x": samples((3, 6, 6), 8, 1), "labels": samples((2,), 8, 2)}
    blocks = nearest(weight_of(model, "w2").T, 16, symmetric=False)
    zero = blocks.zero[..., None].astype(np.float32)
    grids = (
        channel_grid("w0", weight_of(model, "w0"), 0),
        channel_grid("w1", weight_of(model, "w1"), 0),
        WeightGrid("w2", Steps(blocks.scale[..., None], zero, 0.0, 15.0), block=16),
    )
    assert all(grid.insert(model.graph, learned=True) for grid in grids)
    assert ActivationGrid("b", Steps(np.array(0.04, np.float32), None, 0.0, 40.0)).insert(model.graph)
    infer_shapes(model)
    return model, data


def straightened(model: ir.Model, feed: dict[str, Array]) -> ir.Model:
    """Return the model with each Round and Clip as a line through its value here, of slope 1, or 0 out of range."""
    places = [number for number, node in enumerate(model.graph) if node.op_type in ("Round", "Clip")]
    nodes, copy = list(model.graph), forked(model)[0]
    twins = list(copy.graph)
    probe, values = forked(
        model, [value for place in places for value in (nodes[place].inputs[0], *nodes[place].outputs)]
    )
    probe.graph.outputs.extend(dict.fromkeys(values))
    found = Session(probe, level="disable").run({"x": feed["x"]})
    for place, source, result in zip(places, values[::2], values[1::2], strict=True):
        before, after = found[source.name or ""], found[result.name or ""]
        twin = twins[place]
        slope = np.ones_like(before) if twin.op_type == "Round" else (before == after).astype(np.float32)
        shift = new_initializer(copy.graph, after - slope * before, "shift")
        scaled = insert_before(twin, "Mul", [twin.inputs[0], new_initializer(copy.graph, slope, "slope")])
        node = insert_before(twin, "Add", [scaled.outputs[0], shift])
        assert replace_uses(twin.outputs[0], node.outputs[0])
        remove_node(twin)
    return copy


@pytest.mark.parametrize("engine", ENGINES)
def test_gradients_go_straight_through(engine: str, tmp_path: Path) -> None:
    """One step of descent goes along the slopes of the same model with its roundings held fast."""
    model, data = small()
    names = ["w0", "b0", "w1", "w2", *(f"onnxedge.log_scale.{name}" for name in ("w0", "w1", "w2"))]
    before = {name: weight_of(model, name).copy() for name in names}
    composed = compose(model, [Regression(output="y", targets="labels")])
    settings = TrainingSettings(
        optimizer="sgd", lr=1e-3, momentum=0.0, weight_decay=0.0, warmup=0.0, clip=0.0, epochs=1, batch=8
    )
    fed = {name: data[key] for key, name in (("x", "x"), *composed.columns.items())}
    done = train(composed, fed, tmp_path, settings, weights=names, engine=engine)  # type: ignore[arg-type]
    steps = {name: (before[name] - done.values[name]).astype(np.float64) for name in names}
    straight = straightened(model, data)

    def loss(name: str, place: int, by: float) -> float:
        array = before[name].copy()
        array.reshape(-1)[place] += by
        copy, _ = forked(straight)
        copy.graph.initializers[name].const_value = ir.tensor(array, name=name)
        y = Session(copy, level="disable").run({"x": data["x"]})["y"].astype(np.float64)
        return float(np.square(y - data["labels"]).mean())

    rng, taken, slopes = np.random.default_rng(0), [], []
    for name in names:
        for place in rng.choice(before[name].size, min(6, before[name].size), replace=False).tolist():
            taken.append(steps[name].reshape(-1)[place])
            slopes.append((loss(name, place, 4e-3) - loss(name, place, -4e-3)) / 8e-3)
    made, wanted = np.array(taken), np.array(slopes)
    rate = float(made @ wanted / (wanted @ wanted))
    assert 2e-4 < rate < 2e-3
    off = np.abs(made / rate - wanted)
    assert np.median(off) < 0.01 * np.abs(wanted).max()
    assert (off < 0.05 * np.abs(wanted).max()).mean() > 0.9  # the differences may cross the corner of a Relu
    scales = [name for name in names if "log_scale" in name]
    assert all(np.abs(steps[name]).max() > 0 for name in scales)


def test_int4_finds_the_grid_in_the_weights() -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((128, 24)).astype(np.float32)
    weight[:64, 3] = 0.02 * rng.standard_normal(64)
    weight[5, 3] = 1.0  # one block with an outlier that the grid cuts off
    blocks = nearest(weight.T, 64, symmetric=False)
    scale = (blocks.scale * rng.uniform(0.8, 1.3, blocks.scale.shape))[..., None].astype(np.float32)  # learned
    grid = WeightGrid("w", Steps(scale, blocks.zero[..., None].astype(np.float32), 0.0, 15.0), block=64)
    final = settled(grid, grid.rounded(weight))
    again = nearest(final.T, 64, symmetric=False).restored().T
    np.testing.assert_allclose(again, final, rtol=1e-4, atol=1e-5)
    assert np.square(final - weight).mean() < 4 * np.square(blocks.restored().T - weight).mean()


def test_which_weights_get_four_bits() -> None:
    """By blocks what int4 stores on the target, the others by channel; small and shared ones stay as they are."""
    text = """g (float[N,4,64] x) => (float[N,4,64] y, float[N,4,64] z, float[64,64] t) {
      a = MatMul(x, w0) b = Relu(a) c = MatMul(b, w1) d = MatMul(c, tiny) y = MatMul(d, back) z = MatMul(c, tied)
      t = Relu(tied) }"""
    shapes = {"w0": (64, 96), "w1": (96, 64), "tiny": (64, 8), "back": (8, 64), "tied": (64, 64)}
    model = ready(build(text, shapes))
    context = context_of(model, samples((4, 64), 4), "generic")
    grids = {grid.name: grid for grid in four_bit_grids(model, context, block=32, least=1024, samples=4).weights}
    assert set(grids) == {"w0", "w1"}
    assert any("read in another way" in note.reason for note in context.notes)


def test_a_transformer_and_a_resnet_have_grids() -> None:
    for make, shape in ((transformer, (6, 12)), (resnet, (3, 8, 8))):
        model = ready(make())
        context = context_of(model, samples(shape, 8))
        grids = four_bit_grids(model, context, block=16, least=16, samples=8)
        arrays = {grid.name: constant(model.graph.initializers[grid.name]) for grid in grids.weights}
        assert len(arrays) >= 8
        for grid in grids.weights:
            array = arrays[grid.name]
            assert array is not None
            assert 0 < np.abs(grid.rounded(array) - array).max() < 0.3 * np.abs(array).max()


def test_a_weight_that_a_subgraph_reads_stays() -> None:
    text = """g (float[N,4,5,5] x, bool c) => (float[N,4,5,5] y) {
        a = Conv(x, w) b = Conv(a, v)
        y = If(c)<then_branch = t () => (float[N,4,5,5] p) { p = Conv(b, w) },
                  else_branch = e () => (float[N,4,5,5] q) { q = Relu(b) }> }"""
    model = ready(build(text, {"w": (4, 4, 1, 1), "v": (4, 4, 1, 1)}))
    data = from_arrays(Session(model).inputs, {"x": samples((4, 5, 5), 8), "c": np.ones(8, bool)})
    target = load_packaged_target("onnxedge.targets", "ort-cpu")  # type: ignore[arg-type]
    context = Context(target, data, original=model.clone())
    grids = four_bit_grids(model, context, block=16, least=4, samples=8).weights
    assert [grid.name for grid in grids] == ["v"]
    assert any("read in another way" in note.reason for note in context.notes)
    other = channel_grid("w", weight_of(model, "w"), 0)
    assert not other.insert(model.graph, learned=True)
