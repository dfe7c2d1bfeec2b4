"""inline-loop: a Loop that runs once, or never."""

from __future__ import annotations

import pytest
from onnxedge_passes.cleanup.control.inline_loop import InlineLoop

HEAD = "g (float[2] x) => (float[2] y, float[K, 2] s)"
BODY = (
    "body = b (int64 i, bool c, float[2] v) => (bool d, float[2] w, float[2] o)"
    " { d = Identity(c) r = Relu(v) w = Add(r, x) o = Exp(r) }"
)


@pytest.mark.parametrize("inputs", ["m, t, x", "m, , x"])
@pytest.mark.parametrize("opset", [11, 17])
def test_once(check, inputs: str, opset: int) -> None:
    axes = "s = Unsqueeze(o, a)" if opset >= 13 else "s = Unsqueeze<axes=[0]>(o)"
    kept = ", int64[1] a = {0}" if opset >= 13 else ""
    check(
        InlineLoop(),
        f"{HEAD} <int64 m = {{1}}, bool t = {{1}}> {{ y, s = Loop({inputs}) <{BODY}> }}",
        f"{HEAD} <bool t = {{1}}{kept}> {{ d = Identity(t) r = Relu(x) y = Add(r, x) o = Exp(r) {axes} }}",
        opset=opset,
    )


def test_once_because_the_body_ends_it(check) -> None:
    check(
        InlineLoop(),
        "g (float[2] x) => (float[2] y) <int64 m = {7}, bool t = {1}> { y = Loop(m, t, x) <body = b"
        " (int64 i, bool c, float[2] v) => (bool d, float[2] w) <bool d = {0}>"
        " { k = Cast<to=1>(i) w = Add(v, k) }> }",
        "g (float[2] x) => (float[2] y) <int64 i = {0}> { k = Cast<to=1>(i) y = Add(x, k) }",
    )


def test_values_that_go_through(check) -> None:
    check(
        InlineLoop(),
        "g (float[2] x) => (float[2] y, float[2] z) <int64 m = {1}> { e = Exp(x) p, q = Loop(m, , x, e) <body = b"
        " (int64 i, bool c, float[2] v, float[2] u) => (bool c, float[2] u, float[2] v) { }> y = Neg(p) z = Abs(q) }",
        "g (float[2] x) => (float[2] y, float[2] z) { e = Exp(x) y = Neg(e) z = Abs(x) }",
        runs=False,
    )


def test_never(check) -> None:
    check(
        InlineLoop(),
        f"{HEAD} <int64 m = {{0}}> {{ y, s = Loop(m, , x) <{BODY}> }}",
        f"{HEAD} <float[0, 2] e = {{}}> {{ y = Identity(x) s = Identity(e) }}",
    )


def test_never_by_its_condition(check) -> None:
    check(
        InlineLoop(),
        f"g (float[2] x) => (float[2] y) <bool t = {{0}}> {{ e = Exp(x) r, s = Loop( , t, e) <{BODY}> y = Neg(r) }}",
        "g (float[2] x) => (float[2] y) { e = Exp(x) y = Neg(e) }",
    )


def test_an_empty_scan_output_of_unknown_shape_stays(check) -> None:
    reasons = check(
        InlineLoop(),
        "g (float[N] x) => (float[K, N] s) <int64 m = {0}> { y, s = Loop(m, , x) <body = b"
        " (int64 i, bool c, v) => (bool d, w, o) { d = Identity(c) w = Relu(v) o = Exp(v) }> }",
        infer=False,
        runs=False,
    )
    assert reasons == ["not inlined: the shape of an empty scan output is not known"]


def test_more_than_once_and_unknown_stay(check) -> None:
    reasons = check(InlineLoop(), f"{HEAD} <int64 m = {{2}}> {{ y, s = Loop(m, , x) <{BODY}> }}")
    assert reasons == ["not inlined: how often it runs is computed when the model runs"]
    outer = BODY.replace("Identity(c)", "Identity(t)")
    text = f"{HEAD} <int64 m = {{2}}, bool t = {{1}}> {{ y, s = Loop(m, t, x) <{outer}> }}"
    assert check(InlineLoop(), text) == ["not inlined: it runs more than once"]
    always = BODY.replace("(bool d, float[2] w", "(bool t, float[2] w").replace("{ d =", "<bool t = {1}> { d =")
    reasons = check(InlineLoop(), f"{HEAD} <int64 m = {{2}}> {{ y, s = Loop(m, , x) <{always}> }}")
    assert reasons == ["not inlined: it runs more than once"]


def test_a_trip_count_that_is_fed_stays(check) -> None:
    text = f"g (float[2] x, int64 m) => (float[2] y, float[K, 2] s) {{ y, s = Loop(m, , x) <{BODY}> }}"
    assert check(InlineLoop(), text) == ["not inlined: how often it runs is computed when the model runs"]


def test_once_inside_another_loop(check) -> None:
    inner = "body = n (int64 j, bool h, float[2] a) => (bool k, float[2] q) { k = Identity(h) q = Mul(a, u) }"
    outer = "g (float[2] x, int64 n) => (float[2] y) <int64 m = {1}, bool t = {1}>"
    head = "y = Loop(n, , x) <body = b (int64 i, bool c, float[2] v) => (bool d, float[2] w)"
    check(
        InlineLoop(),
        f"{outer} {{ {head} {{ d = Identity(c) u = Exp(v) w = Loop(m, t, v) <{inner}> }}> }}",
        f"{outer} {{ {head} {{ d = Identity(c) u = Exp(v) k = Identity(t) w = Mul(v, u) }}> }}",
    )
