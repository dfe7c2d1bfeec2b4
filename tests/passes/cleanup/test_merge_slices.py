"""merge-slices: Slices, Gathers, Pads, Tiles and Expands in a row."""

from __future__ import annotations

import pytest
from onnxedge_passes.cleanup.merge_slices import MergeSlices

HEAD = "g (float[8, 9] x) => (float[A, B] y)"
ONE = "int64[1] one = {1}, int64[1] zero = {0}, int64[1] two = {2}, int64[1] five = {5}, int64[1] least = {-2}"
LAST = 2**63 - 1

MERGED = {
    "slices of two axes": (
        f"{HEAD} <{ONE}> {{ a = Slice(x, one, five, zero, two) y = Slice(a, two, five, one) }}",
        f"{HEAD} <int64[2] s = {{1, 2}}, int64[2] e = {{5, 5}}, int64[2] a = {{0, 1}}, int64[2] k = {{2, 1}}>"
        " { y = Slice(x, s, e, a, k) }",
    ),
    "slices of one axis": (
        f"{HEAD} <{ONE}> {{ a = Slice(x, two, five, one) y = Slice(a, one, five, one) }}",
        f"{HEAD} <int64[1] s = {{3}}, int64[1] e = {{5}}, int64[1] a = {{1}}, int64[1] k = {{1}}>"
        " { y = Slice(x, s, e, a, k) }",
    ),
    "a slice of one part": (
        "g (float[8, 3] x, float[8, 4] z) => (float[A, B] y)"
        f" <{ONE}, int64[1] four = {{4}}> {{ c = Concat<axis=1>(x, z) y = Slice(c, four, five, one) }}",
        "g (float[8, 3] x, float[8, 4] z) => (float[A, B] y)"
        " <int64[1] s = {1}, int64[1] e = {2}, int64[1] a = {1}, int64[1] k = {1}> { y = Slice(z, s, e, a, k) }",
    ),
    "gathers": (
        f"{HEAD} <int64[4] i = {{7, 1, -1, 3}}, int64[2] j = {{-1, 1}}>"
        " { a = Gather<axis=1>(x, i) y = Gather<axis=1>(a, j) }",
        f"{HEAD} <int64[2] i = {{3, 1}}> {{ y = Gather<axis=1>(x, i) }}",
    ),
    "pads": (
        f"{HEAD} <int64[4] p = {{1, 0, 0, 2}}, int64[4] q = {{0, 3, 1, 1}}> {{ a = Pad(x, p) y = Pad(a, q) }}",
        f"{HEAD} <int64[4] p = {{1, 3, 1, 3}}> {{ y = Pad(x, p) }}",
    ),
    "tiles": (
        f"{HEAD} <int64[2] p = {{1, 2}}, int64[2] q = {{3, 2}}> {{ a = Tile(x, p) y = Tile(a, q) }}",
        f"{HEAD} <int64[2] p = {{3, 4}}> {{ y = Tile(x, p) }}",
    ),
    "expands": (
        f"{HEAD.replace('8', '1')} <int64[2] p = {{4, 1}}, int64[3] q = {{2, 1, 9}}>"
        " { a = Expand(x, p) y = Expand(a, q) }".replace("float[A, B]", "float[A, B, C]"),
        f"{HEAD.replace('8', '1')} <int64[3] p = {{2, 4, 9}}> {{ y = Expand(x, p) }}",
    ),
}  # fmt: skip

KEPT = {
    "bounds from the end": f"{HEAD} <{ONE}> {{ a = Slice(x, least, five, one) y = Slice(a, one, five, one) }}",
    "across two parts": "g (float[8, 3] x, float[8, 4] z) => (float[A, B] y)"
    f" <{ONE}> {{ c = Concat<axis=1>(x, z) y = Slice(c, two, five, one) }}",
    "other readers": f"{HEAD.replace('y)', 'y, float[C, D] z)')} <{ONE}>"
    " { a = Slice(x, one, five, one) z = Relu(a) y = Slice(a, one, two, zero) }",
    "other values": f"{HEAD} <int64[4] p = {{1, 0, 0, 2}}, float v = {{2}}> {{ a = Pad(x, p, v) y = Pad(a, p) }}",
    "a cut, then a pad": f"{HEAD} <int64[4] p = {{-1, 0, 0, 0}}, int64[4] q = {{1, 0, 0, 0}}>"
    " { a = Pad(x, p) y = Pad(a, q) }",
    "bounds at run time": f"g (float[8, 9] x, int64[1] s) => (float[A, B] y) <{ONE}>"
    " { a = Slice(x, s, five, zero) y = Slice(a, one, five, one) }",
}  # fmt: skip


@pytest.mark.parametrize(("before", "after"), MERGED.values(), ids=MERGED)
def test_merges(check, before: str, after: str) -> None:
    if "Expand" in before:
        before, after = (text.replace("(float[A, B] y)", "(float[A, B, C] y)") for text in (before, after))
    check(MergeSlices(), before, after)


@pytest.mark.parametrize("text", KEPT.values(), ids=KEPT)
def test_stays(check, text: str) -> None:
    check(MergeSlices(), text, runs="int64[1] s)" not in text)


def test_slices_of_a_slice_that_nothing_else_reads(check) -> None:
    head = "g (float[8, 8] x) => (float[A, B] y, float[C, D] z)"
    rest = "int64[2] e = {{5, 5}}, int64[2] a = {{0, 1}}, int64[2] k = {{1, 1}}".replace("{{", "{").replace("}}", "}")
    check(
        MergeSlices(),
        f"{head} <{ONE}> {{ a = Slice(x, one, five, zero) "
        " y = Slice(a, zero, five, one) z = Slice(a, two, five, one) }",
        f"{head} <{rest}, int64[2] s = {{1, 0}}, int64[2] t = {{1, 2}}>"
        " { y = Slice(x, s, e, a, k) z = Slice(x, t, e, a, k) }",
    )
