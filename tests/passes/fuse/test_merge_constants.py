"""merge-constants: scales and shifts one after the other, and constants that must stay apart."""

from __future__ import annotations

import pytest
from onnxedge_passes.fuse.merge_constants import MergeConstants

HEAD = "g (float[2, 3] x) => (float[2, 3] y)"
CONSTANTS = (
    "<float two = {2}, float eight = {8}, float[3] k = {1, 2, 4}, float[2, 1] c = {1, 2}, float big = {8388608},"
    " float zero = {0}, float half = {0.5}>"
)
MERGED = {
    "two factors": ("a = Mul(x, two) y = Mul(k, a)", "y = Mul(x, d)", "float[3] d = {2, 4, 8}"),
    "a quotient": ("a = Div(x, eight) y = Mul(a, k)", "y = Mul(x, d)", "float[3] d = {0.125, 0.25, 0.5}"),
    "quotients": ("a = Div(x, eight) y = Div(a, two)", "y = Mul(x, d)", "float d = {0.0625}"),
    "sums": ("a = Add(two, x) y = Sub(a, eight)", "y = Add(x, d)", "float d = {-6}"),
    "three": ("a = Add(x, two) b = Add(a, k) y = Sub(b, half)", "y = Add(x, d)", "float[3] d = {2.5, 3.5, 5.5}"),
}
KEPT = {
    "more elements": "a = Mul(x, c) y = Mul(a, k)",
    "a product of a sum": "a = Add(x, two) y = Mul(a, two)",
    "rounding by a large number": "a = Add(x, big) y = Sub(a, big)",
    "a factor of 0": "a = Mul(x, zero) y = Mul(a, two)",
    "over the value": "a = Div(two, x) y = Div(a, two)",
}


@pytest.mark.parametrize(("before", "after", "constant"), MERGED.values(), ids=MERGED)
def test_merges(check, before: str, after: str, constant: str) -> None:
    check(MergeConstants(), f"{HEAD} {CONSTANTS} {{ {before} }}", f"{HEAD} <{constant}> {{ {after} }}")


@pytest.mark.parametrize("body", KEPT.values(), ids=KEPT)
def test_stays(check, body: str) -> None:
    assert check(MergeConstants(), f"{HEAD} {CONSTANTS} {{ {body} }}") == []


def test_other_readers_are_said(check) -> None:
    head = HEAD.replace("=> (", "=> (float[2, 3] a, ")
    reasons = check(MergeConstants(), f"{head} {CONSTANTS} {{ a = Mul(x, two) y = Mul(a, k) }}")
    assert reasons == ["constants not merged: the inner value has other readers or is exported"]


def test_a_chain_merges_as_far_as_the_bounds_allow(check) -> None:
    head = f"{HEAD} <float a = {{6000}}, float b = {{3000}}, float d = {{2000}}, float e = {{-1000}}>"
    check(
        MergeConstants(),
        f"{head} {{ p = Add(x, a) q = Add(p, b) r = Add(q, d) y = Sub(r, e) }}",
        f"{HEAD} <float a = {{6000}}, float s = {{6000}}> {{ p = Add(x, a) y = Add(p, s) }}",
    )


def test_a_chain_merges_as_far_as_others_read_it(check) -> None:
    head = HEAD.replace("=> (", "=> (float[2, 3] a, ")
    reasons = check(
        MergeConstants(),
        f"{head} {CONSTANTS} {{ a = Add(x, two) p = Add(a, k) q = Add(p, half) y = Add(q, two) }}",
        f"{head} <float two = {{2}}, float[3] d = {{3.5, 4.5, 6.5}}> {{ a = Add(x, two) y = Add(a, d) }}",
    )
    assert reasons == ["constants not merged: the inner value has other readers or is exported"]


def test_integers_stay(check) -> None:
    check(
        MergeConstants(),
        "g (int64[3] x) => (int64[3] y) <int64 k = {3}> { a = Div(x, k) y = Mul(a, k) }",
    )
