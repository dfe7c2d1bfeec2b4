"""merge-sums: reductions along neighbouring axes."""

from __future__ import annotations

import pytest
from onnxedge_passes.fuse.merge_sums import MergeSums

THREE, ONE = "g (float[N, 3, 4, 5] x) => (float[A, B, C, D] y)", "g (float[N, 3, 4, 5] x) => (float[A, B] y)"

MERGED = {
    "means that keep their axes": (
        f"{THREE} {{ a = ReduceMean<axes=[-1]>(x) y = ReduceMean<axes=[2]>(a) }}",
        f"{THREE} {{ y = ReduceMean<axes=[2, 3], keepdims=1>(x) }}",
    ),
    "sums that drop them": (
        f"{ONE} <int64[1] k = {{2}}> {{ a = ReduceSum<keepdims=0>(x, k) y = ReduceSum<keepdims=0>(a, k) }}",
        f"{ONE} <int64[2] k = {{2, 3}}> {{ y = ReduceSum<keepdims=0>(x, k) }}",
    ),
    "dropped in the end": (
        f"{ONE} {{ a = ReduceL2<axes=[3]>(x) y = ReduceL2<axes=[2, 3], keepdims=0>(a) }}",
        f"{ONE} {{ y = ReduceL2<axes=[2, 3], keepdims=0>(x) }}",
    ),
    "logarithms of sums": (
        f"{THREE} {{ a = ReduceLogSumExp<axes=[1]>(x) y = ReduceLogSumExp<axes=[2]>(a) }}",
        f"{THREE} {{ y = ReduceLogSumExp<axes=[1, 2], keepdims=1>(x) }}",
    ),
    "the first axis": (
        f"{THREE} {{ a = ReduceL1<axes=[0]>(x) y = ReduceL1<axes=[1]>(a) }}",
        f"{THREE} {{ y = ReduceL1<axes=[0, 1], keepdims=1>(x) }}",
    ),
}

KEPT = {
    "maxima": f"{THREE} {{ a = ReduceMax<axes=[3]>(x) y = ReduceMax<axes=[2]>(a) }}",
    "two kinds": f"{THREE} {{ a = ReduceL1<axes=[3]>(x) y = ReduceL2<axes=[2]>(a) }}",
    "sums of squares": f"{THREE} {{ a = ReduceSumSquare<axes=[3]>(x) y = ReduceSumSquare<axes=[2]>(a) }}",
    "means of integers": "g (int32[N, 3, 4] x) => (int32[A] y)"
    " { a = ReduceMean<axes=[2], keepdims=0>(x) y = ReduceMean<axes=[1], keepdims=0>(a) }",
    "all axes": f"{THREE} {{ a = ReduceMean(x) y = ReduceMean<axes=[2]>(a) }}",
}

REFUSED = {
    "an axis between": f"{THREE} {{ a = ReduceMean<axes=[3]>(x) y = ReduceMean<axes=[1]>(a) }}",
    "another reader": f"{THREE} {{ a = ReduceMean<axes=[3]>(x) b = ReduceMean<axes=[2]>(a) y = Div(a, b) }}",
    "one that keeps its axes": "g (float[N, 3, 4, 5] x) => (float[A, B, C] y)"
    " { a = ReduceMean<axes=[3]>(x) y = ReduceMean<axes=[2], keepdims=0>(a) }",
}  # fmt: skip


@pytest.mark.parametrize(("before", "after"), MERGED.values(), ids=MERGED)
def test_merges(check, before: str, after: str) -> None:
    check(MergeSums(), before, after)


def test_newer_opsets_have_the_axes_as_input(check) -> None:
    head = THREE + " <int64[1] k = {2}, int64[1] l = {3}, int64[2] m = {2, 3}>"
    before = f"{head} {{ a = ReduceMean(x, k) y = ReduceMean(a, l) }}"
    check(MergeSums(), before, f"{head} {{ y = ReduceMean<keepdims=1>(x, m) }}", opset=18)


@pytest.mark.parametrize("text", KEPT.values(), ids=KEPT)
def test_stays(check, text: str) -> None:
    assert check(MergeSums(), text) == []


@pytest.mark.parametrize("text", REFUSED.values(), ids=REFUSED)
def test_says_why(check, text: str) -> None:
    reasons = check(MergeSums(), text)
    assert len(reasons) == 1
    assert reasons[0].startswith("ReduceMean not merged: ")
