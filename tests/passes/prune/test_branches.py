"""Ifs: their branches are opened while a model is pruned, and closed again; what may not be opened stays locked."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir
import pytest
from branching import BRANCHING, captured
from onnxedge_passes.prune import Prune
from onnxedge_passes.prune.branches import choices, close_branches, open_branches
from test_groups import analysed, both
from topologies import build, images

from onnxedge.api import Array, Context, Session, from_arrays, refresh_scopes, to_proto
from onnxedge.target import load_packaged_target
from onnxedge.verify import infer_shapes


def context_for(model: ir.Model, samples: Array) -> Context:
    refresh_scopes(model)
    infer_shapes(model)
    data = from_arrays(Session(model).inputs, {"x": samples})
    context = Context(load_packaged_target("onnxedge.targets", "ort-cpu"), data, original=model.clone(), seed=0)
    context.begin("prune")
    return context


def operators(nodes: Iterable[ir.Node]) -> list[str]:
    return [node.op_type for node in nodes]


@pytest.mark.parametrize("name", BRANCHING)
def test_opened_and_closed_it_computes_the_same(name: str) -> None:
    make, shape, _ = BRANCHING[name]
    model = make()
    context = context_for(model, images(shape))
    wanted, before = both(model, shape, 1), operators(model.graph.all_nodes())
    open_branches(model, context, 8)
    assert all(choices(node) for node in model.graph if node.op_type == "If")
    for array, expected in zip(both(model, shape, 1), wanted, strict=True):
        np.testing.assert_array_equal(array, expected)
    close_branches(model)
    assert operators(model.graph.all_nodes()) == before
    assert context.notes == []
    for array, expected in zip(both(model, shape, 1), wanted, strict=True):
        np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize("name", BRANCHING)
@pytest.mark.parametrize("importance", ["obs", "l2"])
def test_a_pruned_if_still_runs_one_branch_alone(name: str, importance: str) -> None:
    make, shape, _ = BRANCHING[name]
    model = make()
    context = context_for(model, images(shape))
    before = both(model, shape, 2)
    main = operators(node for node in model.graph if node.op_type in ("If", "Conv"))
    result = Prune(ratio=0.75, multiple=1, importance=importance).run(model, context)
    assert result.figures["macs_after"] < result.figures["macs_before"]
    assert operators(node for node in model.graph if node.op_type in ("If", "Conv")) == main
    to_proto(model)
    for array, expected in zip(both(model, shape, 2), before, strict=True):
        assert float(np.square(array - expected).mean()) < 0.5 * float(np.square(expected).mean())


def test_a_branch_that_samples_never_take_is_refitted_too() -> None:
    """The samples all have a positive sum; the other branch keeps what it computes on them."""
    shape = (3, 8, 8)
    model = captured()
    context = context_for(model, np.abs(images(shape)))
    before = Session(model).run({"x": -np.abs(images(shape, 3, 1))})["y"]
    Prune(ratio=0.75, multiple=1).run(model, context)
    found = Session(model).run({"x": -np.abs(images(shape, 3, 1))})["y"]
    assert np.isfinite(found).all()
    assert found.shape == before.shape


CLOSED = {
    "Div '-> r' may fail where it is not taken": "s = Cast<to=7>(a) r = Div(k, s) p = Cast<to=1>(r)",
    "Loop '-> p' may fail where it is not taken": "p = Loop(n, t, a)<body = l (int64 i, bool o, float[N,8] f) => "
    "(bool d, float[N,8] h) { d = Identity(o) h = Add(f, f) }>",
    "a branch fails on samples that do not take it": "z = ReduceMax(x) s = Cast<to=7>(z) i = Add(s, k) "
    "r = Gather(a, i) p = Squeeze(r, axes)",
}


@pytest.mark.parametrize("reason", CLOSED)
def test_what_may_not_run_stays_closed(reason: str) -> None:
    """The branch is not taken by these samples; a second If beside it is opened all the same."""
    text = f"""g (float[N,8] x) => (float[N,4] y) {{
      a = MatMul(x, w0)  b = MatMul(x, w2)
      n = Constant<value_int=2>()  t = Constant<value=bool {{1}}>()  k = Constant<value=int64[1] {{7}}>()
      total = ReduceSum<keepdims=0>(x)  zero = Constant<value_float=0.0>()  c = Greater(zero, total)
      e = If(c)<then_branch = g1 () => (float[M,8] p) {{ {CLOSED[reason]} }},
                else_branch = g2 () => (float[N,8] q) {{ q = Relu(a) }}>
      most = ReduceMax<keepdims=0>(x)  o = Greater(most, total)
      f = If(o)<then_branch = g3 () => (float[N,6] u) {{ u = Relu(b) }},
                else_branch = g4 () => (float[N,6] v) {{ v = Neg(b) }}>
      h = Add(e, a)  i = MatMul(h, w1)  j = MatMul(f, w3)  y = Add(i, j) }}"""
    model = build(text, {"w0": (8, 8), "w1": (8, 4), "w2": (8, 6), "w3": (6, 4)}, {"axes": [0]})
    context = context_for(model, np.abs(images((8,))) + 0.5)
    result = Prune(ratio=0.75, multiple=1).run(model, context)
    assert any(reason in note.reason for note in context.notes)
    assert [(width["before"], width["after"] < 6) for width in result.figures["widths"]] == [(6, True)]


def test_branches_of_other_widths_are_locked() -> None:
    text = """g (float[N,8] x) => (float[N,4] y) {
      a = MatMul(x, w0)  b = MatMul(x, w2)
      total = ReduceSum<keepdims=0>(x)  zero = Constant<value_float=0.0>()  c = Greater(total, zero)
      e = If(c)<then_branch = g1 () => (float[N,M] p) { p = Relu(a) },
                else_branch = g2 () => (float[N,M] q) { q = Relu(b) }>
      f = ReduceSum(e)  h = MatMul(a, w1)  i = MatMul(b, w3)  j = Add(h, i)  y = Add(j, f) }"""
    groups = analysed(build(text, {"w0": (8, 8), "w1": (8, 4), "w2": (8, 6), "w3": (6, 4)}), images((8,)))
    assert groups.free == []
    assert any("its branches give other shapes" in reason for _, _, reason in groups.labels.locks)


def test_the_refit_waits_for_what_an_if_captures() -> None:
    """The sum of the first two convolutions passes through an If that reads the second, which is refitted later."""
    text = """g (float[N,3,8,8] x) => (float[N,5,8,8] y) {
      s = Conv(x, w0)  r = Relu(s)  a = Conv(r, w1)  b = Conv(r, w2)
      total = ReduceSum<keepdims=0>(x)  zero = Constant<value_float=0.0>()  c = Greater(total, zero)
      d = If(c)<then_branch = g1 () => (float[N,6,8,8] p) { p = Relu(b) },
                else_branch = g2 () => (float[N,6,8,8] q) { q = Neg(b) }>
      e = Add(a, d)  y = Conv(e, w3) }"""
    weights = {"w0": (8, 3, 1, 1), "w1": (6, 8, 1, 1), "w2": (6, 8, 1, 1), "w3": (5, 6, 1, 1)}
    model = build(text, weights)
    context = context_for(model, images((3, 8, 8)))
    before = both(model, (3, 8, 8), 2)
    result = Prune(ratio=0.75, multiple=1).run(model, context)
    assert result.figures["refitted"] == 3
    for array, expected in zip(both(model, (3, 8, 8), 2), before, strict=True):
        assert float(np.square(array - expected).mean()) < 0.5 * float(np.square(expected).mean())
