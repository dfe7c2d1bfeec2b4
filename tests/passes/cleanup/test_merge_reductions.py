"""merge-reductions: reductions that keep or drop their axes themselves."""

from __future__ import annotations

import pytest
from onnxedge_passes.cleanup.merge_reductions import MergeReductions

HEAD = "g (float[2, 3, 4] x) => (float[A, B] y)"

MERGED = {
    "a Squeeze": (
        f"{HEAD} <int64[1] k = {{1}}> {{ r = ReduceMean<axes=[-2]>(x) y = Squeeze(r, k) }}",
        f"{HEAD} {{ y = ReduceMean<axes=[-2], keepdims=0>(x) }}",
    ),
    "a Reshape": (
        f"{HEAD} <int64[1] k = {{1}}, int64[2] s = {{2, 4}}> {{ r = ReduceSum(x, k) y = Reshape(r, s) }}",
        f"{HEAD} <int64[1] k = {{1}}> {{ y = ReduceSum<keepdims=0>(x, k) }}",
    ),
    "a Reshape that restores the axis": (
        "g (float[2, 3, 4] x) => (float[A, B, C] y) <int64[3] s = {2, 1, 4}>"
        " { r = ReduceMax<axes=[1], keepdims=0>(x) y = Reshape(r, s) }",
        "g (float[2, 3, 4] x) => (float[A, B, C] y) { y = ReduceMax<axes=[1], keepdims=1>(x) }",
    ),
    "an Unsqueeze": (
        "g (float[2, 3, 4] x) => (int64[A, B, C] y) <int64[1] k = {2}>"
        " { r = ArgMax<axis=2, keepdims=0>(x) y = Unsqueeze(r, k) }",
        "g (float[2, 3, 4] x) => (int64[A, B, C] y) { y = ArgMax<axis=2, keepdims=1>(x) }",
    ),
    "one element": (
        "g (float[2, 1, 4] x) => (float[A, B] y) { y = ReduceMax<axes=[1], keepdims=0>(x) }",
        "g (float[2, 1, 4] x) => (float[A, B] y) <int64[1] k = {1}> { y = Squeeze(x, k) }",
    ),
    "no axis": (
        "g (float[N, 3, 4] x) => (float[A, B, C] y) <int64[0] k = {}> { y = ReduceSum<noop_with_empty_axes=1>(x, k) }",
        "g (float[N, 3, 4] x) => (float[A, B, C] y) { y = Identity(x) }",
    ),
}  # fmt: skip

KEPT = {
    "another axis": "g (float[2, 1, 4] x) => (float[A, B] y) <int64[1] k = {1}>"
    " { r = ReduceMean<axes=[2]>(x) y = Squeeze(r, k) }",
    "a Reshape to another place": "g (float[2, 3, 4] x) => (float[A, B, C] y) <int64[3] s = {2, 4, 1}>"
    " { r = ReduceMax<axes=[1], keepdims=0>(x) y = Reshape(r, s) }",
    "other readers": "g (float[2, 3, 4] x) => (float[A, B] y, float[C, D, E] z) <int64[1] k = {1}>"
    " { r = ReduceMean<axes=[1]>(x) z = Relu(r) y = Squeeze(r, k) }",
    "no axis is all of them": "g (float[N, 3, 4] x) => (float[A, B, C] y) <int64[0] k = {}> { y = ReduceSum(x, k) }",
    "a sum of one element makes 0.0 of -0.0": "g (float[2, 1, 4] x) => (float[A, B] y)"
    " { y = ReduceMean<axes=[1], keepdims=0>(x) }",
}  # fmt: skip


@pytest.mark.parametrize(("before", "after"), MERGED.values(), ids=MERGED)
def test_merges(check, before: str, after: str) -> None:
    check(MergeReductions(), before, after)


def test_one_element_before_opset_13(check) -> None:
    head = "g (float[2, 1, 4] x) => (float[A, B] y)"
    before = f"{head} {{ y = ReduceMax<axes=[1], keepdims=0>(x) }}"
    check(MergeReductions(), before, f"{head} {{ y = Squeeze<axes=[1]>(x) }}", opset=11)


def test_no_axis_of_squares(check) -> None:
    text = "g (float[N, 3, 4] x) => (float[A, B, C] y) { y = ReduceSumSquare<noop_with_empty_axes=1>(x) }"
    check(MergeReductions(), text, opset=18)


@pytest.mark.parametrize("text", KEPT.values(), ids=KEPT)
def test_stays(check, text: str) -> None:
    check(MergeReductions(), text)
