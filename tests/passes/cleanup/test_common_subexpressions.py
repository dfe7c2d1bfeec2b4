"""common-subexpressions: equal nodes once, and only equal ones."""

from __future__ import annotations

import pytest
from onnxedge_passes.cleanup.common_subexpressions import CommonSubexpressions

DIFFERENT = {
    "random draws": "g () => (float y) { a = RandomNormal<shape=[2]>() b = RandomNormal<shape=[2]>() y = Sub(a, b) }",
    "attributes": "g (float[2] x) => (float[2] y) { a = Elu<alpha=1.0>(x) b = Elu<alpha=2.0>(x) y = Sub(a, b) }",
    "custom operators": "g (float[2] x) => (float[2] y) { a = acme.Draw(x) b = acme.Draw(x) y = Sub(a, b) }",
    "position of an empty input": "g (float[2] x) => (float[2] y) <float c = {1}>"
    ' { a = Clip(x, "", c) b = Clip(x, c, "") y = Sub(a, b) }',
    "two exported values": "g (float[2] x) => (float[2] y, float[2] z) { y = Relu(x) z = Relu(x) }",
    "input order": "g (float[2] x) => (float[2] y) { e = Exp(x) a = Sub(x, e) b = Sub(e, x) y = Mul(a, b) }",
}


def test_chains_collapse(check) -> None:
    check(
        CommonSubexpressions(),
        "g (float[2] x) => (float[2] y) { a = Exp(x) b = Exp(x) c = Neg(a) d = Neg(b) y = Mul(c, d) }",
        "g (float[2] x) => (float[2] y) { a = Exp(x) c = Neg(a) y = Mul(c, c) }",
    )


def test_equal_initializers_make_equal_nodes(check) -> None:
    check(
        CommonSubexpressions(),
        "g (float[2] x) => (float[2] y) <float[2] v = {1, 2}, float[2] w = {1, 2}>"
        " { a = Mul(x, v) b = Mul(x, w) y = Sub(a, b) }",
        "g (float[2] x) => (float[2] y) <float[2] v = {1, 2}> { a = Mul(x, v) y = Sub(a, a) }",
    )


def test_one_exported_value(check) -> None:
    check(
        CommonSubexpressions(),
        "g (float[2] x) => (float[2] y, float[2] z) { a = Relu(x) y = Relu(x) z = Neg(a) }",
        "g (float[2] x) => (float[2] y, float[2] z) { y = Relu(x) z = Neg(y) }",
    )


@pytest.mark.parametrize("text", DIFFERENT.values(), ids=DIFFERENT)
def test_stays(check, text: str) -> None:
    check(CommonSubexpressions(), text, runs="acme" not in text and "Random" not in text)


def test_overridable_initializers_are_not_merged(check) -> None:
    check(
        CommonSubexpressions(),
        "g (float[2] x, float[2] v = {1, 2}, float[2] w = {1, 2}) => (float[2] y)"
        " { a = Mul(x, v) b = Mul(x, w) y = Sub(a, b) }",
    )


def test_tensors_that_training_updates_are_not_merged(check) -> None:
    """ONNX Runtime writes the new mean into the old one's memory: a bias that shares it would change."""
    check(
        CommonSubexpressions(),
        "g (float[4, 2] x) => (float[4, 2] y)"
        " <float[2] s = {1, 2}, float[2] b = {0, 0}, float[2] m = {0, 0}, float[2] v = {1, 1}>"
        " { a = Add(x, b) y, n, w = BatchNormalization<training_mode=1>(a, s, b, m, v) }",
    )


def branch(first: str, second: str = "u = Neg(x)", head: str = "a = Exp(x)", more: str = "") -> str:
    return (
        f"g (float[2] x, bool c) => (float[2] y, float[2] z) {{ {head} y = If(c) <then_branch = t () => (r)"
        f" {more} {{ {first} }}, else_branch = e () => (u) {{ {second} }}> z = Relu(a) }}"
    )


INNER = {
    "a node of a branch": (branch("b = Exp(x) r = Abs(b)"), branch("r = Abs(a)")),
    "and what follows from it": (
        branch("p = Exp(x) q = Sin(p) r = Abs(q)", head="a = Exp(x) b = Sin(a)"),
        branch("r = Abs(b)", head="a = Exp(x) b = Sin(a)"),
    ),
    "what a branch gives back": (branch("r = Exp(x)"), branch("r = Identity(a)")),
    "in both branches": (branch("p = Exp(x) r = Abs(p)", "q = Exp(x) u = Neg(q)"), branch("r = Abs(a)", "u = Neg(a)")),
    "with constants of its own": (
        branch("b = Mul(x, m) r = Abs(b)", head="k = Constant<value = float[2] {1, 2}>() a = Mul(x, k)",
               more="<float[2] m = {1, 2}>"),
        branch("r = Abs(a)", head="k = Constant<value = float[2] {1, 2}>() a = Mul(x, k)"),
    ),
}  # fmt: skip
OUTER_STAYS = {
    "computed after the If": branch("b = Relu(a) r = Abs(b)"),
    "other constants": branch(
        "b = Mul(x, m) r = Abs(b)",
        head="k = Constant<value = float[2] {1, 2}>() a = Mul(x, k)",
        more="<float[2] m = {1, 3}>",
    ),
    "views that a branch gives back": branch("r = Transpose(x)", head="a = Transpose(x)"),
    "two branches": branch("p = Sin(x) r = Abs(p)", "q = Sin(x) u = Neg(q)"),
    "random draws": branch("b = RandomNormalLike(x) r = Abs(b)", head="a = RandomNormalLike(x)"),
    "a graph of another domain's operator": "g (float[2] x) => (float[2] y, float[2] z)"
    " { a = Exp(x) y = acme.Run <body = b () => (r) { p = Exp(x) r = Abs(p) }> (x) z = Relu(a) }",
    "custom operators": branch("b = acme.Draw(x) r = Abs(b)", head="a = acme.Draw(x)"),
}


@pytest.mark.parametrize(("before", "after"), INNER.values(), ids=INNER)
def test_what_an_outer_graph_has_computed(check, before: str, after: str) -> None:
    check(CommonSubexpressions(), before, after)


@pytest.mark.parametrize("text", OUTER_STAYS.values(), ids=OUTER_STAYS)
def test_of_two_graphs_stays(check, text: str) -> None:
    check(CommonSubexpressions(), text, runs="acme" not in text and "Random" not in text, infer="acme" not in text)


def test_in_the_body_of_a_loop(check) -> None:
    """What depends on outer values alone; what depends on the iteration stays, however alike."""
    text = (
        "g (float[2] x, int64 n) => (float[2] y) { a = Exp(x) b = Neg(a) y = Loop(n, , b)"
        " <body = l (int64 i, bool c, float[2] v) => (bool d, float[2] w) { d = Identity(c) BODY }> }"
    )
    check(
        CommonSubexpressions(),
        text.replace("BODY", "p = Exp(x) q = Exp(v) r = Add(p, q) w = Sub(r, v)"),
        text.replace("BODY", "q = Exp(v) r = Add(a, q) w = Sub(r, v)"),
    )


def test_inside_of_a_branch_of_a_branch(check) -> None:
    text = (
        "g (float[2] x, bool c) => (float[2] y) { a = Exp(x) m = Sin(a) y = If(c) <then_branch = t () => (r)"
        " { k = Neg(a) r = If(c) <then_branch = tt () => (s) { FIRST s = Mul(m, k) },"
        " else_branch = te () => (s) { s = Sub(a, x) }> }, else_branch = e () => (u) { u = Neg(m) }> }"
    )
    check(
        CommonSubexpressions(),
        text.replace("FIRST", "p = Exp(x) q = Neg(p) o = Sin(p) v = Mul(q, o)").replace("Mul(m, k)", "Add(v, q)"),
        text.replace("FIRST", "v = Mul(k, m)").replace("Mul(m, k)", "Add(v, k)"),
    )
