"""merge-concats: Concats, Splits and Slices of the same parts."""

from __future__ import annotations

import pytest
from onnxedge_passes.cleanup.merge_concats import MergeConcats

HEAD = "g (float[2, 3] a, float[2, 4] b) => (float[A, B] y)"
BOUNDS = "int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}, int64[1] last = {9}"

MERGED = {
    "nested": (
        f"{HEAD} {{ c = Concat<axis=1>(a, b) d = Concat<axis=-1>(c, a) y = Relu(d) }}",
        f"{HEAD} {{ d = Concat<axis=1>(a, b, a) y = Relu(d) }}",
    ),
    "an empty part": (
        "g (float[2, 3] a, float[2, 0] b) => (float[A, B] y) { y = Concat<axis=1>(a, b, a) }",
        "g (float[2, 3] a, float[2, 0] b) => (float[A, B] y) { y = Concat<axis=1>(a, a) }",
    ),
    "an empty part beside unknown sizes": (
        "g (float[N, 3] a, float[N, 0] b) => (float[A, B] y) { y = Concat<axis=-1>(a, b, a) }",
        "g (float[N, 3] a, float[N, 0] b) => (float[A, B] y) { y = Concat<axis=1>(a, a) }",
    ),
    "a Concat of what was split": (
        f"{HEAD} <int64[2] s = {{1, 2}}> {{ p, q = Split<axis=1>(a, s) c = Concat<axis=1>(p, q) y = Relu(c) }}",
        f"{HEAD} {{ y = Relu(a) }}",
    ),
    "a Concat of slices": (
        f"{HEAD} <{BOUNDS}> {{ p = Slice(a, zero, two, one) q = Slice(a, two, last, one) c = Concat<axis=1>(p, q)"
        " y = Relu(c) }",
        f"{HEAD} {{ y = Relu(a) }}",
    ),
    "a Split of what was put together": (
        f"{HEAD} <int64[2] s = {{3, 4}}> {{ c = Concat<axis=1>(a, b) p, q = Split<axis=1>(c, s) "
        " y = Concat<axis=0>(p, p) z = Relu(q) }",
        f"{HEAD} {{ y = Concat<axis=0>(a, a) z = Relu(b) }}",
    ),
}  # fmt: skip

KEPT = {
    "another axis": "g (float[2, 3] a) => (float[A, B] y) { c = Concat<axis=0>(a, a) y = Concat<axis=1>(c, c) }",
    "another order": f"{HEAD} <int64[2] s = {{1, 2}}> {{ p, q = Split<axis=1>(a, s) y = Concat<axis=1>(q, p) }}",
    "a gap": f"{HEAD} <{BOUNDS}>"
    " { p = Slice(a, zero, one, one) q = Slice(a, two, last, one) y = Concat<axis=1>(p, q) }",
    "other parts": f"{HEAD} <int64[2] s = {{4, 3}}>"
    " { c = Concat<axis=1>(a, b) p, q = Split<axis=1>(c, s) y = Concat<axis=1>(q, p) }",
}  # fmt: skip


@pytest.mark.parametrize(("before", "after"), MERGED.values(), ids=MERGED)
def test_merges(check, before: str, after: str) -> None:
    check(MergeConcats(), before, after)


@pytest.mark.parametrize("text", KEPT.values(), ids=KEPT)
def test_stays(check, text: str) -> None:
    check(MergeConcats(), text)
