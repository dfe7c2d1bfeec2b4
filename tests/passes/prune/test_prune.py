"""The pass as a whole: budgets, repair, the guard, notes, determinism."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnxedge_passes.prune import Prune
from onnxedge_passes.prune.branches import close_branches
from onnxedge_passes.prune.linear import weight_matrix
from onnxedge_passes.prune.stream import Stream
from test_groups import MODELS, analysed
from topologies import DENSE, DENSE_WEIGHTS, RESIDUAL, RESIDUAL_WEIGHTS, build, images

from onnxedge.api import (
    Array,
    Context,
    Result,
    Session,
    UserError,
    constant,
    load,
    refresh_scopes,
    set_constant,
    to_proto,
)
from onnxedge.data import from_arrays
from onnxedge.target import load_packaged_target


def context_of(model: ir.Model, samples: Array, seed: int = 0) -> Context:
    session = Session(model)
    calibration = from_arrays(session.inputs, {session.inputs[0].name: samples})
    context = Context(
        load_packaged_target("onnxedge.targets", "ort-cpu"), calibration, original=model.clone(), seed=seed
    )
    context.begin("prune")
    refresh_scopes(model)
    return context


def prune(model: ir.Model, data: Array, /, **options: object) -> tuple[Result, Context]:
    context = context_of(model, data)
    step = Prune(**options)  # type: ignore[arg-type]
    step.requires(model, context)
    return step.run(model, context), context


@pytest.mark.parametrize("name", [name for name in MODELS if name != "quantized"])  # its steps hide what changes
def test_dead_channels_go_first(name: str) -> None:
    """Units whose readers have zero weights are found, and nothing else changes."""
    make, shape, _ = MODELS[name]
    model = make()
    groups = analysed(model, images(shape))
    dead = total = 0
    weights = {reader.weight: np.array(constant(reader.weight)) for reader in groups.labels.readers}
    for group in groups.free:
        units = group.units[::2][: len(group.units) - 1]
        dead += len(units) * group.channels
        total += len(group.units) * group.channels
        for end in group.ends:
            gone = np.isin(groups.units_of(end.reader.ends), units)
            np.moveaxis(weights[end.reader.weight], end.reader.axes.input, 0)[gone] = 0
    made: dict[ir.Value, ir.Value] = {}
    for reader in groups.labels.readers:
        if reader.weight in made:
            reader.node.replace_input_with(reader.axes.index, made[reader.weight])
        else:
            made[reader.weight] = set_constant(reader.node, reader.axes.index, weights[reader.weight])
    close_branches(model)
    feed = {"x": images(shape, 4, 9)}
    wanted = Session(model).run(feed)
    result, _ = prune(model, images(shape), ratio=1 - dead / total, multiple=1)
    assert result.rewrites > 0
    found = Session(model).run(feed)
    for output, array in wanted.items():
        np.testing.assert_allclose(found[output], array, rtol=2e-3, atol=2e-4 * float(np.abs(array).max()))
    assert sum(width["after"] for width in result.figures["widths"]) <= total - dead + 1


@pytest.mark.parametrize("option", ["macs", "params", "ratio"])
def test_budget_is_met(option: str) -> None:
    model = build(RESIDUAL, RESIDUAL_WEIGHTS)
    result, _ = prune(model, images((3, 8, 8)), **{option: 0.6}, multiple=1)
    figures = result.figures
    if option == "ratio":
        widths = figures["widths"]
        assert 0.5 < sum(w["after"] for w in widths) / sum(w["before"] for w in widths) <= 0.6
    else:
        assert 0.5 < figures[f"{option}_after"] / figures[f"{option}_before"] <= 0.6
    assert Session(model).run({"x": images((3, 8, 8), 5)})["y"].shape == (5, 5)


@pytest.mark.parametrize("importance", ["obs", "activation", "l1", "l2", "bn-gamma"])
def test_each_importance_runs(importance: str) -> None:
    model = build(RESIDUAL, RESIDUAL_WEIGHTS)
    result, _ = prune(model, images((3, 8, 8)), macs=0.7, multiple=2, importance=importance)
    assert result.rewrites > 0


def test_repair_helps() -> None:
    errors = {}
    for repair in ("none", "least-squares"):
        model = build(RESIDUAL, RESIDUAL_WEIGHTS)
        feed = {"x": images((3, 8, 8), 64, 5)}
        wanted = Session(model).run(feed)["y"]
        prune(model, images((3, 8, 8), 128), macs=0.6, multiple=1, repair=repair)
        errors[repair] = float(np.square(Session(model).run(feed)["y"] - wanted).mean())
    assert errors["least-squares"] < 0.5 * errors["none"]


def test_batchnorm_is_folded_and_names_stay() -> None:
    model = build(RESIDUAL, RESIDUAL_WEIGHTS)
    prune(model, images((3, 8, 8)), macs=0.7, multiple=2)
    assert all(node.op_type != "BatchNormalization" for node in model.graph)
    assert [value.name for value in (*model.graph.inputs, *model.graph.outputs)] == ["x", "y"]
    assert model.graph.inputs[0].shape == ir.Shape(["N", 3, 8, 8])


def test_multiple_holds() -> None:
    wide = {"w0": (32, 3, 3, 3), "b0": (32,), "w1": (6, 32, 3, 3), "w2": (10, 38, 1, 1), "w3": (5, 51, 1, 1)}
    model = build(DENSE, {**DENSE_WEIGHTS, **wide})
    result, _ = prune(model, images((3, 8, 8)), macs=0.5, multiple=8)
    assert {w["after"] % 8 for w in result.figures["widths"] if w["after"] != w["before"]} == {0}


def test_block_goes_whole() -> None:
    """A residual branch that gives a constant is dropped, its bias kept."""
    model = build(RESIDUAL, RESIDUAL_WEIGHTS)
    branch = next(node for node in model.graph if len(node.inputs) == 3 and node.inputs[1].name == "w2")
    set_constant(branch, 1, 1e-4 * np.array(constant(branch.inputs[1])))
    feed = {"x": images((3, 8, 8), 8, 3)}
    wanted = Session(model).run(feed)["y"]
    result, _ = prune(model, images((3, 8, 8)), macs=0.85, multiple=16)
    assert (12, 0) in [(w["before"], w["after"]) for w in result.figures["widths"]]
    assert sum(node.op_type == "Conv" for node in model.graph) == 4
    np.testing.assert_allclose(
        Session(model).run(feed)["y"], wanted, rtol=0.02, atol=0.02 * float(np.abs(wanted).max())
    )


def test_out_of_reach_is_told() -> None:
    model = build(RESIDUAL, RESIDUAL_WEIGHTS)
    _, context = prune(model, images((3, 8, 8)), macs=0.01, multiple=8)
    assert any("out of reach" in note.reason and "graph output" in note.reason for note in context.notes)


def test_default_keeps_its_bound_or_leaves_alone() -> None:
    """Random live weights leave nothing to gain within a tight bound."""
    model = build(RESIDUAL, RESIDUAL_WEIGHTS)
    before = to_proto(model).SerializeToString()
    result, context = prune(model.clone(), images((3, 8, 8)), min_agreement=1.01)
    assert result.rewrites == 0
    assert any("left alone" in note.reason for note in context.notes)
    assert to_proto(model).SerializeToString() == before


def test_default_leaves_alone_without_real_samples() -> None:
    model = build(RESIDUAL, RESIDUAL_WEIGHTS)
    session = Session(model)
    data = from_arrays(session.inputs, {"x": images((3, 8, 8))}, synthetic=True)
    context = Context(load_packaged_target("onnxedge.targets", "ort-cpu"), data, original=model.clone())
    context.begin("prune")
    refresh_scopes(model)
    assert Prune().run(model.clone(), context).rewrites == 0
    assert any("--calib" in note.reason for note in context.notes)
    assert Prune(macs=0.7).run(model, context).rewrites > 0


def test_nothing_to_prune_is_told() -> None:
    model = build(DENSE, DENSE_WEIGHTS, overridable=True)
    result, context = prune(model, images((3, 8, 8)))
    assert result.rewrites == 0
    assert any("freeze-initializers" in note.reason for note in context.notes)


def test_same_bytes_twice() -> None:
    made = []
    for _ in range(2):
        model = build(RESIDUAL, RESIDUAL_WEIGHTS)
        prune(model, images((3, 8, 8)), macs=0.6, multiple=1)
        made.append(to_proto(model).SerializeToString(deterministic=True))
    assert made[0] == made[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"macs": 0.5, "ratio": 0.5}, "one budget at a time"),
        ({"macs": 0.0}, "not a share"),
        ({"params": 1.5}, "not a share"),
        ({"multiple": 0}, "must be 1 or more"),
        ({"ridge": 0.0}, "above 0"),
        ({"samples": 2}, "too few"),
    ],
)
def test_bad_options(options: dict[str, object], message: str) -> None:
    model = build(RESIDUAL, RESIDUAL_WEIGHTS)
    with pytest.raises(UserError, match=message) as caught:
        prune(model, images((3, 8, 8)), **options)
    assert "\n" not in str(caught.value)


def test_stream_gives_what_the_whole_model_gives() -> None:
    model = build(RESIDUAL, RESIDUAL_WEIGHTS)
    feeds = [{"x": images((3, 8, 8), 4, seed)} for seed in range(2)]
    stream = Stream(model, feeds)
    sums = [node.outputs[0] for node in model.graph if node.op_type == "Add"]
    for value in sums:
        stream.fetch([value])
    found = stream.fetch([model.graph.outputs[0]])[0]
    for feed, array in zip(feeds, found, strict=True):
        np.testing.assert_allclose(array, Session(model).run(feed)["y"], rtol=1e-4, atol=1e-5)
    assert set(stream.held) == {"y"}


@pytest.mark.zoo
def test_resnet56_keeps_its_accuracy(zoo: Path) -> None:
    model = load(zoo / "models" / "cifar10_resnet56_bn.onnx")
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    train, test = (np.load(zoo / "data" / f"cifar10_{part}.npz") for part in ("train", "test"))
    picked = np.random.default_rng(1).permutation(len(train["x"]))[:256]
    samples, pictures = (
        np.ascontiguousarray(((x / 255 - mean) / deviation).astype(np.float32).transpose(0, 3, 1, 2))
        for x in (train["x"][picked], test["x"])
    )

    def accuracy() -> float:
        scores = next(iter(Session(model).run({"input": pictures}).values()))
        return float((scores.argmax(axis=1) == test["y"]).mean())

    before = accuracy()
    result, _ = prune(model, samples, macs=0.7)
    assert result.figures["macs_after"] <= 0.7 * result.figures["macs_before"]
    assert accuracy() >= before - 0.008


def test_weight_matrix_and_back() -> None:
    from onnxedge_passes.prune.linear import linear_problem, weight_array

    groups = analysed(build(RESIDUAL, RESIDUAL_WEIGHTS), images((3, 8, 8)))
    for reader in groups.labels.readers:
        linear, weight = linear_problem(groups, reader), constant(reader.weight)
        assert linear is not None
        assert weight is not None
        np.testing.assert_array_equal(weight_array(linear, weight_matrix(linear, weight), weight), weight)
