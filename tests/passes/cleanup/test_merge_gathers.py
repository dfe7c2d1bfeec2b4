"""merge-gathers: parts that are gathered from one value and put together again."""

from __future__ import annotations

import pytest
from onnxedge_passes.cleanup.merge_gathers import MergeGathers

HEAD = "g (float[5, 4] x, float[5, 4] z) => (float[A, B] y)"
INDICES = "<int64[2] i = {3, -1}, int64[3] j = {0, 1, 0}, int64[1, 2] k = {3, 4}, int32[2] n = {1, 2}"

MERGED = {
    "rows": (
        "a = Gather(x, i) b = Gather<axis=-2>(x, j) y = Concat<axis=0>(a, b)",
        "m = Concat<axis=0>(i, j) y = Gather<axis=0>(x, m)",
    ),
    "columns": (
        "a = Gather<axis=1>(x, j) b = Gather<axis=1>(x, i) y = Concat<axis=-1>(a, b)",
        "m = Concat<axis=0>(j, i) y = Gather<axis=1>(x, m)",
    ),
    "a Split of the indices": (
        "p, q = Split<axis=0>(j, i2) a = Gather(x, p) b = Gather(x, q) y = Concat<axis=0>(a, b)",
        "p, q = Split<axis=0>(j, i2) m = Concat<axis=0>(p, q) y = Gather<axis=0>(x, m)",
    ),
}  # fmt: skip

KEPT = {
    "other values": "a = Gather(x, i) b = Gather(z, j) y = Concat<axis=0>(a, b)",
    "another axis of the data": "a = Gather(x, i) b = Gather<axis=1>(x, i) c = Transpose(a) y = Concat<axis=0>(b, b)",
    "beside the indices": "a = Gather(x, i) b = Gather(x, i) y = Concat<axis=1>(a, b)",
    "indices of another rank": "a = Gather(x, i) b = Gather(x, k) c = Concat<axis=0>(b, b) d = Flatten(c) "
    "y = Concat<axis=1>(a, d)",
    "indices of another type": "a = Gather(x, i) b = Gather(x, n) y = Concat<axis=0>(a, b)",
    "a part that is not gathered": "a = Gather(x, i) y = Concat<axis=0>(a, z)",
}


@pytest.mark.parametrize(("before", "after"), MERGED.values(), ids=MERGED)
def test_merges(check, before: str, after: str) -> None:
    constants = f"{INDICES}, int64[2] i2 = {{1, 2}}>"
    check(MergeGathers(), f"{HEAD} {constants} {{ {before} }}", f"{HEAD} {constants} {{ {after} }}")


@pytest.mark.parametrize("body", KEPT.values(), ids=KEPT)
def test_stays(check, body: str) -> None:
    check(MergeGathers(), f"{HEAD} {INDICES}> {{ {body} }}")


def test_other_readers_are_named(check) -> None:
    body = "a = Gather(x, i) b = Gather(x, j) c = Concat<axis=0>(a, b) d = Gather(a, e) y = Add(c, d)"
    reasons = check(MergeGathers(), f"{HEAD} {INDICES}, int64[1] e = {{0}}> {{ {body} }}")
    assert reasons == ["Gathers not merged: one of them has other readers or is exported"]
