"""merge-ifs: Ifs on one condition are one If."""

from __future__ import annotations

import numpy as np
import pytest
from onnxedge_passes.cleanup.control.merge_ifs import MergeIfs
from onnxedge_passes.cleanup.fold import Fold

from onnxedge.api import Session

HEAD = "g (float[2] x, bool c) => (float[2] y, float[2] z)"
REASON = "not merged with an If on the same condition: it reads what is computed from that one"


def branches(first: str, second: str, condition: str = "c") -> str:
    """Return an If whose branches give back what their last nodes make."""
    then, other = (body.rsplit(" = ", 1)[0].split()[-1] for body in (first, second))
    return one(first, then, second, other, condition)


def one(first: str, then: str, second: str, other: str, condition: str = "c") -> str:
    taken = f"then_branch = t () => ({then}) {{ {first} }}"
    return f"If({condition}) <{taken}, else_branch = e () => ({other}) {{ {second} }}>"


def test_side_by_side(check) -> None:
    check(
        MergeIfs(),
        f"{HEAD} {{ y = {branches('r = Exp(x)', 'r = Neg(x)')} z = {branches('s = Abs(x)', 'u = Tanh(x)')} }}",
        f"{HEAD} {{ y, z = {one('r = Exp(x) s = Abs(x)', 'r, s', 'r = Neg(x) u = Tanh(x)', 'r, u')} }}",
    )


def test_the_second_reads_the_first(check) -> None:
    """What only the branches of the second read is no output any more."""
    check(
        MergeIfs(),
        "g (float[2] x, bool c) => (float[2] y)"
        f" {{ a = {branches('r = Exp(x)', 'r = Neg(x)')}"
        f" y = {branches('s = Abs(a)', 'q = Add(a, x) u = Mul(q, a)')} }}",
        "g (float[2] x, bool c) => (float[2] y)"
        f" {{ y = {one('p = Exp(x) s = Abs(p)', 's', 'p = Neg(x) q = Add(p, x) u = Mul(q, p)', 'u')} }}",
    )


def test_the_second_moves_ahead_of_what_reads_the_first(check) -> None:
    check(
        MergeIfs(),
        f"{HEAD} {{ a = {branches('r = Exp(x)', 'r = Neg(x)')} y = Sqrt(a)"
        f" z = {branches('s = Abs(a)', 'u = Tanh(x)')} }}",
        f"{HEAD} {{ a, z = {one('r = Exp(x) s = Abs(r)', 'r, s', 'r = Neg(x) u = Tanh(x)', 'r, u')} y = Sqrt(a) }}",
    )


def test_the_first_moves_behind_what_the_second_reads(check) -> None:
    check(
        MergeIfs(),
        f"{HEAD} {{ y = {branches('r = Exp(x)', 'r = Neg(x)')} w = Sin(x)"
        f" z = {branches('s = Abs(w)', 'u = Tanh(x)')} }}",
        f"{HEAD} {{ w = Sin(x) y, z = {one('r = Exp(x) s = Abs(w)', 'r, s', 'r = Neg(x) u = Tanh(x)', 'r, u')} }}",
    )


def test_what_lies_between_keeps_them_apart(check) -> None:
    reasons = check(
        MergeIfs(),
        f"{HEAD} {{ y = {branches('r = Exp(x)', 'r = Neg(x)')} w = Sin(y)"
        f" z = {branches('s = Abs(w)', 'u = Tanh(x)')} }}",
    )
    assert reasons == [REASON]


def test_a_subgraph_between_that_reads_the_first(check) -> None:
    reasons = check(
        MergeIfs(),
        "g (float[2] x, bool c, bool d) => (float[2] z)"
        f" {{ y = {branches('r = Exp(x)', 'r = Neg(x)')} w = {branches('r = Sin(y)', 'r = Neg(y)', 'd')}"
        f" z = {branches('s = Abs(w)', 'u = Tanh(x)')} }}",
    )
    assert reasons == [REASON]


def test_three_of_which_two_fit(check) -> None:
    check(
        MergeIfs(),
        f"{HEAD} {{ a = {branches('r = Exp(x)', 'r = Neg(x)')} w = Sin(a)"
        f" y = {branches('r = Abs(w)', 'r = Tanh(w)')} z = {branches('s = Neg(y)', 'u = Add(w, a)')} }}",
        f"{HEAD} {{ a = {branches('r = Exp(x)', 'r = Neg(x)')} w = Sin(a)"
        f" y, z = {one('r = Abs(w) s = Neg(r)', 'r, s', 'r = Tanh(w) u = Add(w, a)', 'r, u')} }}",
    )


@pytest.mark.parametrize(
    "text",
    [
        "g (float[2] x, bool c, bool d) => (float[2] y, float[2] z)"
        f" {{ y = {branches('r = Exp(x)', 'r = Neg(x)')}"
        f" z = {branches('s = Abs(x)', 'u = Tanh(x)', 'd')} }}",
        f"{HEAD} {{ y = {branches('r = Exp(x)', 'r = Neg(x)')} z = {branches('s = Abs(x)', 'u = Tanh(x)')} }}".replace(
            "z = If", "z = acme.If"
        ),
    ],
    ids=["two conditions", "another domain"],
)
def test_stays(check, text: str) -> None:
    check(MergeIfs(), text, runs="acme" not in text, infer="acme" not in text)


def test_initializers_and_names_that_branches_share(rewritten) -> None:
    text = (
        f"{HEAD} {{ y = If(c) <then_branch = t () => (r) <float[2] k = {{1, 2}}> {{ m = Mul(x, k) r = Exp(m) }},"
        " else_branch = e () => (r) { m = Neg(x) r = Exp(m) }>"
        " z = If(c) <then_branch = t () => (r) <float[2] k = {3, 4}> { m = Add(y, k) r = Abs(m) },"
        " else_branch = e () => (r) { m = Sin(y) r = Abs(m) }> }"
    )
    model, _ = rewritten(MergeIfs(), text)
    assert [node.op_type for node in model.graph] == ["If"]
    for graph in model.graph.subgraphs():
        made = (*graph.initializers.values(), *(value for node in graph for value in node.outputs))
        assert len({value.name for value in made}) == len(made)
    x, k = np.array([0.5, -2.0], np.float32), np.array([3, 4])
    for c in (True, False):
        mine = Session(model, level="disable").run({"x": x, "c": np.array(c)})
        y = np.exp(x * [1, 2]) if c else np.exp(-x)
        z = np.abs(y + k) if c else np.abs(np.sin(y))
        np.testing.assert_allclose(mine["y"], y, rtol=1e-6)
        np.testing.assert_allclose(mine["z"], z, rtol=1e-6)


def test_inside_another_branch_and_simplified_there(check) -> None:
    head = "g (float[2, 3] x, bool c, bool d) => (float[2, 3] y) <int64[1] a = {0}> { y = If(d)"
    inner = (
        f"p = {branches('n = Sin(x) r = Unsqueeze(n, a)', 'r = Neg(x)')}"
        f" q = {branches('s = Squeeze(p, a)', 'u = Exp(p)')}"
        " o = Relu(q)"
    )
    after = f"q = {one('s = Sin(x)', 's', 'p = Neg(x) u = Exp(p)', 'u')} o = Relu(q)"
    wrapped = "{head} <then_branch = tt () => (o) {{ {inner} }}, else_branch = ee () => (o) {{ o = Abs(x) }}> }}"
    check(Fold(), wrapped.format(head=head, inner=inner), wrapped.format(head=head, inner=after), infer=False)


def test_a_branch_that_never_runs_and_would_not_be_valid(check) -> None:
    """The runtime infers shapes in all branches: with those of the first If it would refuse the second's Squeeze."""
    reasons = check(
        MergeIfs(),
        "g (float[2, 3] x, bool c) => (float[K] y) <int64[1] a = {0}, int64[1] flat = {-1}>"
        f" {{ p = {branches('r = Relu(x)', 'r = Unsqueeze(x, a)')} q = {branches('s = Squeeze(p, a)', 'u = Exp(p)')}"
        " y = Reshape(q, flat) }",
        runs=False,
    )
    assert reasons == ["not merged with an If on the same condition: what never runs would not be valid in one branch"]
