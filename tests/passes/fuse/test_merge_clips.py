"""merge-clips: chains of Relu, Clip, Min and Max."""

from __future__ import annotations

import pytest
from onnxedge_passes.fuse.merge_clips import MergeClips

HEAD = "g (float[N, 3] x) => (float[N, 3] y)"
CONSTANTS = (
    "<float zero = {0}, float one = {1}, float six = {6}, float neg = {-2}, float[1, 1] wide = {6},"
    " float[1, 1, 1] wider = {6}, float[3] v = {1, 2, 3}>"
)
MERGED = {
    "Relu, Clip": ("a = Relu(x) y = Clip(a, , six)", "y = Clip(x, zero, six)"),
    "Clip, Relu": ("a = Clip(x, neg, six) y = Relu(a)", "y = Clip(x, zero, six)"),
    "Min of Max": ("a = Max(x, zero) y = Min(six, a)", "y = Clip(x, zero, six)"),
    "a Max alone": ("y = Max(zero, x)", "y = Relu(x)"),
    "bounds that miss": ("a = Clip(x, one, six) y = Clip(a, neg, zero)", "y = Clip(x, zero, zero)"),
    "one number in two dimensions": ("a = Relu(x) y = Min(a, wide)", "y = Clip(x, zero, six)"),
    "three": ("a = Relu(x) b = Min(a, six) y = Max(b, one)", "y = Clip(x, one, six)"),
    "two Relus": ("a = Relu(x) y = Relu(a)", "y = Relu(x)"),
}
KEPT = {
    "one Clip": "y = Clip(x, zero, six)",
    "crossed": "a = Relu(x) y = Clip(a, six, one)",
    "a vector": "a = Relu(x) y = Min(a, v)",
    "two values": "a = Relu(x) y = Min(a, x)",
}


@pytest.mark.parametrize(("before", "after"), MERGED.values(), ids=MERGED)
def test_merges(check, before: str, after: str) -> None:
    check(MergeClips(), f"{HEAD} {CONSTANTS} {{ {before} }}", f"{HEAD} {CONSTANTS} {{ {after} }}")


@pytest.mark.parametrize("body", KEPT.values(), ids=KEPT)
def test_stays(check, body: str) -> None:
    reasons = ["bounds not merged: not constant numbers, or crossed"] if "Clip(a" in body else []
    assert check(MergeClips(), f"{HEAD} {CONSTANTS} {{ {body} }}") == reasons


def test_a_constant_that_widens_the_shape_stays(check) -> None:
    head = "g (float[N, 3] x) => (float[A, N, 3] y)"
    check(MergeClips(), f"{head} {CONSTANTS} {{ a = Relu(x) y = Min(a, wider) }}")


def test_integers_stay(check) -> None:
    check(MergeClips(), "g (int64[3] x) => (int64[3] y) <int64 z = {0}> { y = Max(x, z) }")


def test_old_opset_and_other_readers_are_said(check) -> None:
    reasons = check(MergeClips(), f"{HEAD} {{ a = Relu(x) y = Clip<max=6.0>(a) }}", opset=10)
    assert reasons == ["bounds not merged: Clip takes them as inputs from opset 11"]
    head = HEAD.replace("=> (", "=> (float[N, 3] a, ")
    reasons = check(MergeClips(), f"{head} {CONSTANTS} {{ a = Relu(x) y = Clip(a, , six) }}")
    assert reasons == ["bounds not merged: the inner value has other readers or is exported"]
