"""Budgets of every kind, widths that a user gives, steps, importances, and the search without a budget."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from onnxedge_passes.prune import Prune
from onnxedge_passes.prune.allocation import Measure, Plan, share_of
from onnxedge_passes.prune.overrides import shares
from onnxedge_passes.prune.search import Tried, by_clock, largest_cut
from test_groups import analysed
from test_prune import context_of, prune
from topologies import RESIDUAL, RESIDUAL_WEIGHTS, build, images

from onnxedge.api import Array, Context, Session, Units, UserError, find_importance, weight_bytes
from onnxedge.pipeline import format_pipeline, parse_pipeline
from onnxedge.registry import find_pass
from onnxedge.target import load_packaged_target

CHAIN = """g (float[N,3,12,12] x) => (float[N,5] y) {
  a = Conv<pads=[1,1,1,1]>(x, w0, b0)
  c = Relu(a)
  d = Conv<pads=[1,1,1,1]>(c, w1, b1)
  e = Relu(d)
  p = GlobalAveragePool(e)
  f = Flatten(p)
  y = Gemm<transB=1>(f, w2, b2)
}"""
CHAIN_WEIGHTS = {"w0": (32, 3, 3, 3), "b0": (32,), "w1": (32, 32, 3, 3), "b1": (32,), "w2": (5, 32), "b2": (5,)}
BOTTLENECK = """g (float[N,8,6,6] x) => (float[N,5] y) {
  s = Conv(x, w0, b0)
  a = Conv(s, w1, b1)
  r = Relu(a)
  b = Conv<pads=[1,1,1,1]>(r, w2, b2)
  q = Relu(b)
  c = Conv(q, w3, b3)
  t = Add(c, s)
  p = GlobalAveragePool(t)
  f = Flatten(p)
  y = Gemm<transB=1>(f, w4, b4)
}"""
BOTTLENECK_WEIGHTS = {
    "w0": (16, 8, 1, 1), "b0": (16,), "w1": (8, 16, 1, 1), "b1": (8,), "w2": (8, 8, 3, 3), "b2": (8,),
    "w3": (16, 8, 1, 1), "b3": (16,), "w4": (5, 16), "b4": (5,),
}  # fmt: skip


def test_bytes_count_weights_once() -> None:
    model = build(RESIDUAL, RESIDUAL_WEIGHTS)
    whole = weight_bytes(model)
    prune(model, images((3, 8, 8)), bytes=0.6, multiple=1)
    assert 0.4 * whole < weight_bytes(model) <= 0.6 * whole


def test_a_group_that_fed_only_a_vanished_one_costs_nothing() -> None:
    groups = analysed(build(BOTTLENECK, BOTTLENECK_WEIGHTS), images((8, 6, 6)))
    numbers = {group.begins[0].weight.name: number for number, group in enumerate(groups.free)}
    measure = Measure(groups, "params")
    kept = list(measure.full)
    kept[numbers["w2"]] = 0
    left = measure.at(kept)
    assert measure.total - left == sum(np.prod(BOTTLENECK_WEIGHTS[name]) for name in ("w1", "w2", "w3"))
    assert measure.saved(measure.full, numbers["w2"], 0) == measure.total - left
    assert measure.saved(kept, numbers["w1"], 4) == 0


def test_named_groups_have_the_widths_that_are_given() -> None:
    model = build(CHAIN, CHAIN_WEIGHTS)
    for number, node in enumerate(node for node in model.graph if node.op_type == "Conv"):
        node.name = f"stage{number}/conv"
    result, context = prune(model, images((3, 12, 12)), macs=0.5, multiple=4, keep=("stage0/*:3/4", "other*:1"))
    found = {width["group"]: width["after"] for width in result.figures["widths"]}
    assert next(after for name, after in found.items() if "stage0" in name) == 24
    assert any("'other*' names no contraction" in note.reason for note in context.notes)


def test_excluded_groups_stay_whole() -> None:
    model = build(CHAIN, CHAIN_WEIGHTS)
    for number, node in enumerate(node for node in model.graph if node.op_type == "Conv"):
        node.name = f"stage{number}/conv"
    result, _ = prune(model, images((3, 12, 12)), macs=0.5, multiple=4, exclude=("stage0/*",))
    found = {width["group"]: (width["before"], width["after"]) for width in result.figures["widths"]}
    assert next(both for name, both in found.items() if "stage0" in name) == (32, 32)
    assert next(after for name, (_, after) in found.items() if "stage1" in name) < 32


def test_overrides_have_a_text() -> None:
    text = "prune(macs=0.5,steps=3,keep=[layer1*:0.75,head/*:1],exclude=conv1)"
    (step,) = parse_pipeline(text, find_pass)
    assert isinstance(step, Prune)
    assert shares(step.keep) == {"layer1*": 0.75, "head/*": 1.0}
    assert step.exclude == ("conv1",)
    assert format_pipeline([step]) == text.replace("exclude=conv1", "exclude=[conv1]")
    assert shares(["a:b:50%"]) == {"a:b": 0.5}


def test_share_rounds_up_to_an_allowed_width() -> None:
    assert [share_of([32, 16, 8, 0], share) for share in (1.0, 0.6, 0.5, 0.26, 0.01)] == [32, 32, 16, 16, 8]


def test_steps_end_at_the_budget() -> None:
    model = build(RESIDUAL, RESIDUAL_WEIGHTS)
    feed = {"x": images((3, 8, 8), 32, 5)}
    wanted = Session(model).run(feed)["y"]
    result, _ = prune(model, images((3, 8, 8), 128), macs=0.6, multiple=1, steps=3)
    assert 0.45 < result.figures["macs_after"] / result.figures["macs_before"] <= 0.6
    error = float(np.square(Session(model).run(feed)["y"] - wanted).mean() / wanted.var())
    assert error < 0.5


@pytest.mark.parametrize("importance", ["wanda", "random", "acme-peak"])
def test_each_entry_point_ranks(importance: str) -> None:
    model = build(RESIDUAL, RESIDUAL_WEIGHTS)
    assert prune(model, images((3, 8, 8)), macs=0.7, multiple=2, importance=importance)[0].rewrites > 0


def test_scores_are_what_they_say() -> None:
    rng = np.random.default_rng(0)
    makes, reads, squares = rng.standard_normal((4, 6)), rng.standard_normal((4, 1, 5)), rng.random((4, 1))
    units = Units((makes,), (reads,), (squares,), (), rng)
    wanted = {
        "l1": np.abs(makes).sum(axis=1) ** 2,
        "l2": np.square(makes).sum(axis=1),
        "bn-gamma": np.square(makes).sum(axis=1),
        "activation": squares[:, 0],
        "wanda": np.square(reads).sum(axis=2)[:, 0] * squares[:, 0],
    }
    for name, score in wanted.items():
        np.testing.assert_allclose(find_importance(name)(units), score / score.sum(), err_msg=name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"importance": "l3"}, "did you mean"),
        ({"keep": ("conv1",)}, "a pattern of names, a colon and a share"),
        ({"keep": ("conv1:2",)}, "a pattern of names, a colon and a share"),
        ({"steps": 0}, "is not 1 to 100"),
        ({"bytes": 0.0}, "not a share"),
        ({"latency": 0.5, "macs": 0.5}, "one budget at a time"),
        ({"macs": 0.5, "behind": ("int8",)}, "give latency=, too"),
        ({"latency": 0.5, "behind": ("int9",)}, "did you mean 'int8'"),
        ({"latency": 0.5, "behind": ("prune",)}, "not prune itself"),
    ],
)
def test_bad_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        prune(build(CHAIN, CHAIN_WEIGHTS), images((3, 12, 12)), **options)
    assert "\n" not in str(caught.value)


def test_latency_is_refused_for_a_target_that_is_not_here() -> None:
    model = build(CHAIN, CHAIN_WEIGHTS)
    here = context_of(model, images((3, 12, 12)))
    there = load_packaged_target("onnxedge.targets", "tensorrt")
    with pytest.raises(UserError, match="tensorrt cannot be timed here"):
        Prune(latency=0.5).requires(model, Context(there, here.calibration, original=model))


@dataclass(frozen=True)
class FakeOutcome:
    share: float


@pytest.mark.parametrize(("bound", "found"), [(0.2, 0.35), (0.62, 0.65), (0.75, 0.775), (0.95, 0.963)])
def test_search_ends_near_the_bound(bound: float, found: float) -> None:
    def attempt(share: float) -> Tried:
        return Tried(share >= bound, FakeOutcome(share))  # type: ignore[arg-type]

    tried = largest_cut(attempt)
    assert tried is not None
    assert tried.outcome == FakeOutcome(found)
    assert largest_cut(lambda share: Tried(False)) is None


@pytest.mark.parametrize("bias", [0.8, 1.0, 1.3])
def test_clock_corrects_what_was_predicted(bias: float) -> None:
    asked: list[float] = []

    def plan_for(share: float) -> Plan:
        asked.append(share)
        return Plan((round(100 * share),), share)

    timed = by_clock(plan_for, lambda plan: 1 - bias * (1 - plan.kept[0] / 100), 0.6, 0.6, 60)
    assert timed.ratio == pytest.approx(0.6, rel=0.03)
    assert timed.plan.kept[0] == pytest.approx(100 - 40 / bias, abs=2)
    assert len(asked) <= 7


def test_clock_gives_the_fastest_where_the_budget_is_out_of_reach() -> None:
    timed = by_clock(lambda share: Plan((5,), 0.5), lambda plan: 0.5, 0.1, 0.1, 60)
    assert (timed.plan.kept, timed.ratio) == ((5,), 0.5)
    assert not timed.meets(0.1)


def test_default_says_what_the_clock_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cut within the bounds that is not faster is left alone."""

    def ratio(self: object, removed: Array) -> float:
        return 1.02

    monkeypatch.setattr("onnxedge_passes.prune.trial.Clock.ratio", ratio)
    model = build(RESIDUAL, RESIDUAL_WEIGHTS)
    result, context = prune(model, images((3, 8, 8)), min_agreement=0.0)
    assert result.rewrites == 0
    assert any("they take 1.02 of the time" in note.reason for note in context.notes)
    monkeypatch.setattr("onnxedge_passes.prune.trial.Clock.ratio", lambda self, removed: 0.7)
    assert prune(model, images((3, 8, 8)), min_agreement=0.0)[0].rewrites > 0
