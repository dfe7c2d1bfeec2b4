"""merge-views: chains of Reshape, Squeeze, Unsqueeze, Flatten and Transpose."""

from __future__ import annotations

import pytest
from onnxedge_passes.cleanup.merge_views import MergeViews

HEAD = "g (float[2, 3, 4] x) => (float[A, B] y)"

MERGED = {
    "two Reshapes": (
        f"{HEAD} <int64[1] s = {{-1}}, int64[2] t = {{4, 6}}> {{ a = Reshape(x, s) y = Reshape(a, t) }}",
        f"{HEAD} <int64[2] t = {{4, 6}}> {{ y = Reshape(x, t) }}",
    ),
    "a copied dimension that is known": (
        f"{HEAD} <int64[2] s = {{6, 4}}, int64[2] t = {{0, -1}}, float[6, 4] a>"
        " { a = Reshape(x, s) y = Reshape(a, t) }",
        f"{HEAD} <int64[2] t = {{6, 4}}> {{ y = Reshape(x, t) }}",
    ),
    "three": (
        f"{HEAD} <int64[1] s = {{0}}, int64[2] t = {{4, 6}}>"
        " { a = Unsqueeze(x, s) b = Flatten<axis=2>(a) y = Reshape(b, t) }",
        f"{HEAD} <int64[2] t = {{4, 6}}> {{ y = Reshape(x, t) }}",
    ),
    "a copied dimension that is the only one not known": (
        "g (float[N, 3, 4] x) => (float[A, B, C] y) <int64[3] t = {0, 4, 3}> { a = Flatten(x) y = Reshape(a, t) }",
        "g (float[N, 3, 4] x) => (float[A, B, C] y) <int64[3] t = {-1, 4, 3}> { y = Reshape(x, t) }",
    ),
    "Squeezes": (
        "g (float[1, N, 1, 1, M] x) => (float[A, B] y) <int64[2] s = {3, 0}, int64[1] t = {1}>"
        " { a = Squeeze(x, s) y = Squeeze(a, t) }",
        "g (float[1, N, 1, 1, M] x) => (float[A, B] y) <int64[3] t = {0, 2, 3}> { y = Squeeze(x, t) }",
    ),
    "a Squeeze of what is 1": (
        "g (float[N, 3, 1] x) => (float[A, B, C] y) <int64[1] s = {-1}, int64[1] t = {0}>"
        " { a = Squeeze(x, s) b = Unsqueeze(a, t) y = Relu(b) }",
        "g (float[N, 3, 1] x) => (float[A, B, C] y) <int64[3] t = {1, -1, 3}> { b = Reshape(x, t) y = Relu(b) }",
    ),
    "as many elements as the first Reshape takes": (
        "g (float[N, 3, 4] x) => (float[A] y) <int64[2] s = {6, 4}, int64[1] t = {-1}>"
        " { a = Reshape(x, s) y = Reshape(a, t) }",
        "g (float[N, 3, 4] x) => (float[A] y) <int64[1] t = {24}> { y = Reshape(x, t) }",
    ),
    "Transposes": (
        "g (float[2, 3, 4] x) => (float[A, B, C] y)"
        " { a = Transpose<perm=[1, 2, 0]>(x) y = Transpose<perm=[0, 2, 1]>(a) }",
        "g (float[2, 3, 4] x) => (float[A, B, C] y) { y = Transpose<perm=[1, 0, 2]>(x) }",
    ),
    "Transposes that reverse": (
        "g (float[N, 3, 4] x) => (float[A, B, C] y) { a = Transpose(x) b = Transpose(a) y = Relu(b) }",
        "g (float[N, 3, 4] x) => (float[A, B, C] y) { y = Relu(x) }",
    ),
    "a Transpose between Reshapes that add ones": (
        "g (float[3, 4] x) => (float[A, B] y) <int64[4] s = {1, 1, 3, 4}, int64[2] t = {4, 3}, float[1, 1, 3, 4] a,"
        " float[1, 1, 4, 3] b, float[4, 3] c> { a = Reshape(x, s) b = Transpose<perm=[0, 1, 3, 2]>(a)"
        " c = Reshape(b, t) y = Relu(c) }",
        "g (float[3, 4] x) => (float[A, B] y) <int64[2] t = {4, 3}>"
        " { b = Transpose<perm=[1, 0]>(x) c = Reshape(b, t) y = Relu(c) }",
    ),
}  # fmt: skip

KEPT = {
    "a copied dimension that is not known": "g (float[N, 3, 4] x) => (float[A, B, C] y) <int64[2] s = {-1, 4},"
    " int64[3] t = {0, 0, -1}> { a = Reshape(x, s) y = Reshape(a, t) }",
    "other readers": "g (float[2, 3, 4] x) => (float[A, B] y, float[C] z) <int64[1] s = {-1}, int64[2] t = {4, 6}>"
    " { a = Reshape(x, s) z = Relu(a) y = Reshape(a, t) }",
    "an exported view": "g (float[2, 3, 4] x) => (float[A, B] y, float[C] a) <int64[1] s = {-1}, int64[2] t = {4, 6}>"
    " { a = Reshape(x, s) y = Reshape(a, t) }",
    "Transposes that reverse, from input to output": "g (float[N, 3, 4] x) => (float[A, B, C] y)"
    " { a = Transpose(x) y = Transpose(a) }",
    "a shape at run time": "g (float[2, 3, 4] x, int64[2] t) => (float[A, B] y) <int64[1] s = {-1}>"
    " { a = Reshape(x, s) y = Reshape(a, t) }",
}  # fmt: skip


@pytest.mark.parametrize(("before", "after"), MERGED.values(), ids=MERGED)
def test_merges(check, before: str, after: str) -> None:
    check(MergeViews(), before, after)


@pytest.mark.parametrize("text", KEPT.values(), ids=KEPT)
def test_stays(check, text: str) -> None:
    check(MergeViews(), text, runs="t)" not in text.split("=>")[0])


CHECKED = {
    "Unsqueeze": "a = Squeeze(x, two) b = Unsqueeze(a, zero) y = Relu(b)",
    "Reshape": "a = Squeeze(x, two) b = Reshape(a, flat) y = Relu(b)",
    "Unsqueeze of the same axis": "a = Squeeze(x, two) b = Unsqueeze(a, two) y = Relu(b)",
    "Squeeze behind": "a = Unsqueeze(x, zero) b = Squeeze(a, three) y = Relu(b)",
}


@pytest.mark.parametrize("body", CHECKED.values(), ids=CHECKED)
def test_a_size_that_only_squeeze_checks(check, body: str) -> None:
    numbers = "<int64[1] zero = {0}, int64[1] two = {2}, int64[1] three = {3}, int64[1] flat = {-1}>"
    out = "A" if "flat" in body else "A, B, C"
    reasons = check(MergeViews(), f"g (float[N, 3, M] x) => (float[{out}] y) {numbers} {{ {body} }}", runs=False)
    assert reasons == ["views not merged: an axis that Squeeze removes is not known to be 1, which nobody would check"]
