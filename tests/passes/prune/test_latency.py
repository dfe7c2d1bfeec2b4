"""Layers timed alone, the table on disk, and the clock; nothing here asserts how long anything takes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnxedge_passes.prune import Prune
from onnxedge_passes.prune.allocation import Measure, Plan, widths
from onnxedge_passes.prune.compensation import repair
from onnxedge_passes.prune.importance import Curve
from onnxedge_passes.prune.latency import Grid, Table, Timed, levels
from onnxedge_passes.prune.layers import Branches, branch_of, layers
from onnxedge_passes.prune.plans import Planner, priced
from onnxedge_passes.prune.prune import prepare
from onnxedge_passes.prune.run import Pruning
from onnxedge_passes.prune.search import Clocked
from onnxedge_passes.prune.surgery import remnants
from onnxedge_passes.prune.trial import Clock, carry_out, in_turns
from test_budgets import CHAIN, CHAIN_WEIGHTS
from test_groups import MODELS, analysed
from test_prune import context_of, prune
from topologies import RESIDUAL, RESIDUAL_WEIGHTS, build, images

from onnxedge.api import Array, Feed, Session, constant, kernel_times, set_constant, to_proto


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ONNXEDGE_CACHE", str(tmp_path))
    return tmp_path


def test_grid_interpolates() -> None:
    grid = Grid(np.array([8, 16]), np.array([4, 8]), np.array([[1.0, 2.0], [3.0, 6.0]]))
    assert grid.at(8, 4) == 1
    assert grid.at(12, 6) == pytest.approx(3.0)
    assert grid.scaled(2).at(16, 8) == 12


@pytest.mark.parametrize("name", MODELS)
def test_branches_run_at_every_width(name: str) -> None:
    """Each layer stands alone in ONNX Runtime at its whole width and at others."""
    make, shape, _ = MODELS[name]
    model = make()
    groups = analysed(model, images(shape))
    choices = [widths(group, 1, may_vanish=False) for group in groups.free]
    branches, added = Branches(dict(model.graph.opset_imports), model.ir_version), 0
    for cost, layer in zip(groups.costs, layers(groups), strict=True):
        if layer is None:
            continue
        for inner in levels(cost.input, choices):
            for outer in levels(cost.output, choices):
                branches.add(added, layer, (inner, outer))
                added += 1
    small, feed = branches.model()
    outputs = Session(small).run(feed)
    assert len(outputs) == added + 1
    numbers = {branch_of(kernel.name) for kernel in kernel_times(small, feed, rounds=5)}
    assert -1 in numbers


def test_followers_are_timed_with_their_layer() -> None:
    groups = analysed(build(RESIDUAL, RESIDUAL_WEIGHTS), images((3, 8, 8)))
    found = [[node.op_type for node in layer.followers] for layer in layers(groups) if layer is not None]
    assert ["Relu"] in found
    assert ["Add", "Relu"] in found or ["Add"] in found
    claimed = [node for layer in layers(groups) if layer is not None for node in layer.followers]
    assert len(claimed) == len(set(claimed))


def test_table_is_kept(cache: Path) -> None:
    model = build(CHAIN, CHAIN_WEIGHTS)
    context = context_of(model, images((3, 12, 12)))
    groups = analysed(model, images((3, 12, 12)))
    choices = [widths(group, 8, may_vanish=False) for group in groups.free]
    feed = {"x": images((3, 12, 12), 1)}
    first = Timed(groups, choices, feed, context, 60)
    again = Timed(groups, choices, feed, context, 60)
    assert first.timed > 0
    assert (again.timed, again.guessed) == (0, 0)
    (file,) = (cache / "latency").iterdir()
    assert json.loads(file.read_text())
    file.write_text("no table")
    assert Table(1).known("any") == {}
    file.write_text('{"any": {"1y2": 3}, "other": 4}')
    assert Table(1).known("any") == Table(1).known("other") == {}


def test_without_time_the_work_is_what_counts() -> None:
    model = build(CHAIN, CHAIN_WEIGHTS)
    context = context_of(model, images((3, 12, 12)))
    groups = analysed(model, images((3, 12, 12)))
    choices = [widths(group, 8, may_vanish=False) for group in groups.free]
    timed = Timed(groups, choices, {"x": images((3, 12, 12), 1)}, context, 0.0)
    assert timed.guessed == len(groups.costs)
    measure = Measure(groups, "latency", timed)
    half = [count // 2 for count in measure.full]
    assert 0 < measure.at(half) < measure.total


def test_clock_leaves_the_model_as_it_is() -> None:
    model = build(RESIDUAL, RESIDUAL_WEIGHTS)
    groups = analysed(model, images((3, 8, 8)))
    before = to_proto(model).SerializeToString(deterministic=True)
    clock = Clock(groups, remnants(groups), {"x": images((3, 8, 8), 1)}, context_of(model, images((3, 8, 8))))
    removed = np.zeros(len(groups.component), bool)
    for group in groups.free:
        removed[group.units[1:]] = True
    assert clock.ratio(removed) > 0
    assert to_proto(model).SerializeToString(deterministic=True) == before


def test_latency_budget_is_carried_out() -> None:
    model = build(CHAIN, CHAIN_WEIGHTS)
    result, _ = prune(model, images((3, 12, 12)), latency=0.8, timing_s=5)
    assert {"latency_predicted", "latency_measured", "layers_timed"} <= set(result.figures)
    assert Session(model).run({"x": images((3, 12, 12), 5)})["y"].shape == (5, 5)
    assert isinstance(model, ir.Model)


@pytest.mark.parametrize("threads", [1, 2])
def test_turns_give_a_ratio(threads: int) -> None:
    session = Session(build(CHAIN, CHAIN_WEIGHTS), threads=threads)
    assert in_turns(session, session, {"x": images((3, 12, 12), 1)}, threads=threads) > 0


def test_what_comes_behind_is_timed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock sees quantized models, the model that is cut stays float."""
    timed: list[set[str]] = []

    def turns(first: Session, second: Session, feed: Feed, *, threads: int) -> float:
        return 0.5 * len(timed) / (1 + len(timed))

    def loaded(model: ir.Model, *, threads: int) -> Session:
        timed.append({node.op_type for node in model.graph})
        return Session(model, threads=threads)

    monkeypatch.setattr("onnxedge_passes.prune.trial.in_turns", turns)
    monkeypatch.setattr("onnxedge_passes.prune.trial.Session", loaded)
    model = build(CHAIN, CHAIN_WEIGHTS)
    groups = analysed(model, images((3, 12, 12)))
    context = context_of(model, images((3, 12, 12)))
    clock = Clock(groups, remnants(groups), {"x": images((3, 12, 12), 1)}, context, behind=("fuse", "int8"))
    clock.ratio(np.zeros(len(groups.component), bool))
    assert "QuantizeLinear" not in timed[0]
    assert "QuantizeLinear" in timed[1]
    assert not any(node.op_type == "QuantizeLinear" for node in model.graph)


def test_the_best_of_several_plans_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    plans = [Plan((2, 2, 2, 4), 0.7), Plan((6, 10, 14, 14), 0.7), Plan((2, 2, 14, 14), 0.7)]
    clocked = [Clocked(plan, 0.7 + 0.01 * number) for number, plan in enumerate(plans)]
    monkeypatch.setattr(Planner, "clocked", lambda self, found, share, gone: clocked)
    model = build(RESIDUAL, RESIDUAL_WEIGHTS)
    result, _ = prune(model, images((3, 8, 8), 64), latency=0.7, timing_s=5)
    assert [width["after"] for width in result.figures["widths"]] == list(plans[1].kept)
    assert (result.figures["plans_refitted"], result.figures["latency_measured"]) == (3, 0.71)


def test_plans_take_the_time_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that says nine tenths of what the table does."""
    model = build(RESIDUAL, RESIDUAL_WEIGHTS)
    context = context_of(model, images((3, 8, 8), 64))
    gammas = prepare(model, context)
    groups = analysed(model, images((3, 8, 8)))
    pruning = Pruning(Prune(latency=0.7, multiple=1, timing_s=10), groups, gammas, context)
    meter = pruning.planner.meter

    def ratio(self: Clock, removed: Array) -> float:
        return 0.9 * meter.at([int((~removed[group.units]).sum()) for group in groups.free]) / meter.total

    monkeypatch.setattr(Clock, "ratio", ratio)
    found = pruning.planner.clocked(pruning.curves(), 0.7)
    assert all(timed.meets(0.7) and timed.ratio == pytest.approx(0.9 * timed.plan.share) for timed in found)
    assert len({timed.plan.kept for timed in found}) == len(found)


def test_only_a_whole_group_gets_another_price() -> None:
    curve = Curve(np.arange(3), np.array([0.0, 0.1, 0.2, 0.6]))
    assert priced(curve, 0.5).error.tolist() == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert curve.error[-1] == 0.6


def test_a_bare_block_leaves_nothing() -> None:
    """What is refitted behind a block that goes without its bias makes up for it."""
    model = build(RESIDUAL, RESIDUAL_WEIGHTS)
    branch = next(node for node in model.graph if len(node.inputs) == 3 and node.inputs[1].name == "w2")
    set_constant(branch, 1, 1e-4 * np.array(constant(branch.inputs[1])))
    samples = images((3, 8, 8), 128)
    context = context_of(model, samples)
    prepare(model, context)
    groups = analysed(model, samples)
    left = remnants(groups)
    removed = np.zeros(len(groups.component), bool)
    for group, own in zip(groups.free, left, strict=True):
        removed[group.units] = own is not None and own[0].bias is not None and own[0].bias[0] is branch
    assert removed.any()
    feed = {"x": images((3, 8, 8), 8, 3)}
    wanted = Session(model).run(feed)["y"]
    adds = sum(node.op_type == "Add" for node in model.graph)
    repaired = repair(groups, removed, [{"x": samples}], context, ridge=1e-6, reselect=False, bare=True)
    carry_out(groups, left, repaired.removed, repaired.constants)
    assert sum(node.op_type == "Add" for node in model.graph) == adds - 1
    np.testing.assert_allclose(Session(model).run(feed)["y"], wanted, rtol=0.1, atol=0.1 * float(np.abs(wanted).max()))
