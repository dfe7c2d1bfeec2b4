"""What bounds memory changes nothing: waves of groups, samples that join late, changes that wait, float32 sums."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnxedge_passes.prune import compensation, importance, statistics
from onnxedge_passes.prune.compensation import repair
from onnxedge_passes.prune.feeds import Feeds
from onnxedge_passes.prune.importance import Surgeon, curves, inverse
from onnxedge_passes.prune.linear import Gram, linear_problem
from onnxedge_passes.prune.statistics import Statistics
from onnxedge_passes.prune.stream import Stream
from test_groups import MODELS, analysed, some_units
from test_prune import context_of, prune
from topologies import DENSE, DENSE_WEIGHTS, RESIDUAL, RESIDUAL_WEIGHTS, build, images

from onnxedge.api import Array, Session, from_arrays, model_inputs

Problem = tuple[Array, Array, Array]  # matrix to fit by, its weights, the rows of each unit


def a_problem(units: int, width: int, others: int) -> Problem:
    """Return a matrix float64 [R, R], weights [R, 5] and the rows [U, r] of units, which lie anywhere."""
    rng = np.random.default_rng(units)
    size = units * width + others
    x = rng.standard_normal((300, size)) @ rng.standard_normal((size, size))
    rows = np.sort(rng.permutation(size)[: units * width].reshape(units, width), axis=1)
    return x.T @ x / 300, rng.standard_normal((size, 5)), rows


@pytest.mark.parametrize("waiting", [1, 5, 128])
@pytest.mark.parametrize(("units", "width", "others"), [(9, 1, 0), (7, 3, 2), (5, 4, 1)])
def test_a_unit_costs_what_a_fit_without_it_loses(
    units: int, width: int, others: int, waiting: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importance, "_WAITING", waiting)
    a, w, rows = a_problem(units, width, others)

    def error(gone: Array) -> float:
        """Return the least squared error of weights without some rows against ``w``."""
        stays = np.setdiff1d(np.arange(len(a)), gone)
        lost = w.copy()
        lost[stays] -= np.linalg.solve(a[np.ix_(stays, stays)], a[stays] @ w)
        return float(np.trace(lost.T @ a @ lost))

    surgeon, left, total = Surgeon(np.linalg.inv(a), w, rows), list(range(units)), 0.0
    gone = np.zeros(0, int)
    while left:
        costs = surgeon.costs()
        wanted = [error(np.concatenate([gone, rows[unit]])) - total for unit in left]
        np.testing.assert_allclose(costs, wanted, rtol=1e-5, atol=1e-7 * error(rows.reshape(-1)))
        place = int(np.argmin(costs))
        surgeon.remove(place)
        total += costs[place]
        gone = np.concatenate([gone, rows[left.pop(place)]])


def test_the_inverse_takes_the_place_of_the_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importance, "_TILE", 7)
    a, _, _ = a_problem(17, 1, 0)
    wanted = np.linalg.inv(a + np.eye(17))
    made = inverse(a, np.ones(17))
    assert np.shares_memory(made, a)
    np.testing.assert_allclose(made, wanted, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(made, made.T)
    columns = np.asfortranarray(np.diag([1.0, 2.0, 4.0]).astype(np.float32))
    np.testing.assert_allclose(inverse(columns, np.array([0.0, 0.0, 1.0])), np.diag([1.0, 0.5, 0.2]))
    with pytest.raises(np.linalg.LinAlgError):
        inverse(-np.eye(3), np.zeros(3))


@pytest.mark.parametrize("room", [1, 2_000])
@pytest.mark.parametrize("name", ["residual", "dense", "attention"])
def test_waves_give_the_same_curves(name: str, room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    make, shape, _ = MODELS[name]
    model = make()
    groups, context = analysed(model, images(shape)), context_of(model, images(shape))
    feeds = list(context.calibration.feeds(8))
    whole = Statistics(groups, feeds, context)
    wanted = curves(groups, None, whole, {}, 1e-3)
    monkeypatch.setattr(statistics, "_GRAM_BYTES", room)
    parts = Statistics(groups, feeds, context)
    assert len(whole.waves) == 1 < len(parts.waves)
    assert [group for wave in parts.waves for group in wave.groups] == groups.free
    for one, other in zip(wanted, curves(groups, None, parts, {}, 1e-3), strict=True):
        np.testing.assert_array_equal(one.order, other.order)
        np.testing.assert_array_equal(one.error, other.error)
    last, first = groups.free[-1], groups.free[0]
    for group in (last, first):  # in any order
        assert all(parts.gram(end.reader, group) is not None for end in group.ends)


def test_a_group_of_too_many_readers_is_ranked_by_energy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "_INVERSE_BYTES", 4_000)
    model = build(RESIDUAL, RESIDUAL_WEIGHTS)
    result, context = prune(model, images((3, 8, 8)), macs=0.7, multiple=2)
    assert result.rewrites > 0
    assert any("too much memory for least squares" in note.reason for note in context.notes)


def test_samples_join_where_the_others_are() -> None:
    model = build(RESIDUAL, RESIDUAL_WEIGHTS)
    feeds = [{"x": images((3, 8, 8), 4, seed)} for seed in range(5)]
    sums = [node.outputs[0] for node in model.graph if node.op_type == "Add"]
    last = next(node for node in reversed(model.graph) if node.op_type == "Gemm")
    first = next(node for node in model.graph if node.op_type == "Conv")
    whole, stream = Stream(model, feeds), Stream(model, feeds[:1])
    for either in (whole, stream):
        either.replace(first, 2, np.full(8, 0.5, np.float32))
        either.replace(last, 2, np.ones(5, np.float32))
    stream.join(feeds[1:2])  # before anything has run
    for count, value in zip((3, 5), sums, strict=True):
        found, wanted = stream.fetch([value])[0], whole.fetch([value])[0]
        for one, other in zip(found, wanted, strict=False):
            np.testing.assert_array_equal(one, other)
        assert len(found) == count - (1 if count == 3 else 2)
        stream.join(feeds[len(found) : count])
    stream.keep(4)
    found, wanted = stream.fetch([model.graph.outputs[0]])[0], whole.fetch([model.graph.outputs[0]])[0]
    assert len(found) == 4
    for one, other in zip(found, wanted, strict=False):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_early_layers_see_fewer_samples_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first stops have the largest activations; what is refitted is as good."""
    model = build(RESIDUAL, RESIDUAL_WEIGHTS)
    samples = images((3, 8, 8), 128)
    groups, context = analysed(model, samples), context_of(model, samples)
    removed, feeds = some_units(groups, 1), list(context.calibration.feeds(4))
    seen: list[int] = []
    fetch = compensation.Pair.fetch

    def counted(self: compensation.Pair, target: ir.Value, others: list[ir.Value]) -> object:
        found = fetch(self, target, others)
        seen.append(len(found[0]))
        assert {len(arrays) for arrays in found[1]} == {len(found[0])}
        return found

    monkeypatch.setattr(compensation.Pair, "fetch", counted)
    errors = []
    for room in (1 << 30, 400_000):
        monkeypatch.setattr(compensation, "_STREAM_BYTES", room)
        seen.clear()
        made = repair(groups, removed, feeds, context, ridge=1e-3, reselect=True)
        assert (seen[0] < len(feeds)) == (room < 1 << 30)
        assert seen[-1] == len(feeds)
        errors.append(_error(model, made.constants))
    assert errors[1] < 2 * errors[0]


def _error(model: ir.Model, constants: compensation.Constants) -> float:
    from onnxedge_passes.prune.trial import masked

    feed = {"x": images((3, 8, 8), 64, 5)}
    wanted, found = (Session(m).run(feed)["y"] for m in (model, masked(model, constants)))
    return float(np.square(found - wanted).mean())


def test_a_ridge_too_weak_is_told() -> None:
    """Channels that are twice the same make the matrix singular, but for rounding."""
    model = build(RESIDUAL, RESIDUAL_WEIGHTS)
    flat = np.ones((48, 3, 8, 8), np.float32)
    result, context = prune(model, flat, macs=0.7, multiple=2, ridge=1e-30)
    assert result.rewrites > 0
    assert all(np.isfinite(v.const_value.numpy()).all() for v in model.graph.initializers.values() if v.const_value)
    told = [note.reason for note in context.notes if "refitted" in note.reason]
    assert told
    assert all("a larger ridge helps" in reason for reason in told)


def test_float32_sums_are_near_float64_ones() -> None:
    """Twelve thousand positions: the rounding is far below the ridge, a thousandth of the mean square."""
    model = build(DENSE, DENSE_WEIGHTS)
    groups = analysed(model, images((3, 8, 8)))
    linear = max((linear_problem(groups, reader) for reader in groups.labels.readers), key=lambda v: v.rows if v else 0)
    assert linear is not None
    rows = np.random.default_rng(0).standard_normal((12_000, linear.rows)).astype(np.float32) + 3
    gram = Gram(linear)
    for part in np.split(rows, 100):
        gram.add(part, None)
    wide = rows.astype(np.float64)
    every = np.arange(linear.rows)
    np.testing.assert_allclose(gram.mean(every), wide.T @ wide / 12_000, rtol=1e-5)
    np.testing.assert_allclose(gram.a[: linear.rows, : linear.rows], wide.T @ wide, rtol=1e-5)


def test_feeds_are_read_again() -> None:
    samples = np.arange(14, dtype=np.float32).reshape(7, 2)
    for name, size in (("N", 3), ("3", 32)):
        model = build(f"g (float[{name},2] x) => (float[{name},2] y) {{ y = Relu(x) }}", {})
        data = from_arrays(model_inputs(model), {"x": samples})
        feeds = Feeds(data, size)
        assert len(feeds) == 3
        for feed, wanted in zip(feeds, data.feeds(size), strict=True):
            np.testing.assert_array_equal(feed["x"], wanted["x"])
        np.testing.assert_array_equal(feeds[1:][-1]["x"], feeds[-1]["x"])
        assert feeds[0] is not feeds[0]


def test_a_batch_that_the_model_fixes() -> None:
    model = build(RESIDUAL.replace("[N,", "[4,"), RESIDUAL_WEIGHTS)
    result, _ = prune(model, images((3, 8, 8), 50), macs=0.6, multiple=1)
    assert result.figures["macs_after"] <= 0.6 * result.figures["macs_before"]
    assert Session(model).run({"x": images((3, 8, 8), 4)})["y"].shape == (4, 5)
