"""merge-reciprocals: products with a reciprocal."""

from __future__ import annotations

import pytest
from onnxedge_passes.fuse.merge_reciprocals import MergeReciprocals

HEAD = "g (float[N, 4] x, float[4] d) => (float[N, 4] y) <float one = {1}, float two = {2}>"


@pytest.mark.parametrize("inverse", ["Div(one, d)", "Reciprocal(d)"])
@pytest.mark.parametrize("product", ["Mul(x, r)", "Mul(r, x)"])
def test_divides(check, inverse: str, product: str) -> None:
    check(MergeReciprocals(), f"{HEAD} {{ r = {inverse} y = {product} }}", f"{HEAD} {{ y = Div(x, d) }}")


@pytest.mark.parametrize(
    "body",
    [
        "r = Div(two, d) y = Mul(x, r)",
        "r = Reciprocal(d) p = Mul(x, r) y = Sub(p, r)",
        "r = Reciprocal(x) y = Mul(two, r)",
    ],
    ids=["another number", "other readers", "a constant"],
)
def test_stays(check, body: str) -> None:
    check(MergeReciprocals(), f"{HEAD} {{ {body} }}")


def test_integers_stay(check) -> None:
    head = "g (int64[N] x) => (int64[N] y) <int64 one = {1}, int64 two = {2}>"
    check(MergeReciprocals(), f"{head} {{ d = Abs(x) e = Add(d, one) r = Div(one, e) y = Mul(x, r) }}")
