"""fold-affine: multiplications and additions of constants after linear operators."""

from __future__ import annotations

import pytest
from onnxedge_passes.fuse.linear.fold_affine import FoldAffine

IMAGE = "g (float[1, 1, 4, 4] x) => (float[N, 2, A, B] y)"
CONV = "<float[2, 1, 1, 1] w = {1, 2}, float[1, 2, 1, 1] k = {2, -1}, float[2, 1, 1] c = {3, 4}, float s = {2}>"
MATRIX = "g (float[3, 2] x) => (float[3, 2] y)"
ROWS = "g (float[3, 2] x) => (float[A, B, C] y) <float[2, 2] w = {1, 2, 3, 4}, int64[3] t = {1, 3, 2}"

FOLDED = {
    "Mul and Add": (
        f"{IMAGE} {CONV} {{ a = Conv(x, w) d = Mul(a, k) y = Add(c, d) }}",
        f"{IMAGE} <float[2, 1, 1, 1] w = {{2, -2}}, float[2] b = {{3, 4}}> {{ y = Conv(x, w, b) }}",
    ),
    "Sub from a scalar and Div": (
        f"{IMAGE} {CONV} {{ a = Conv(x, w) d = Sub(s, a) y = Div(d, k) }}",
        f"{IMAGE} <float[2, 1, 1, 1] w = {{-0.5, 2}}, float[2] b = {{1, -2}}> {{ y = Conv(x, w, b) }}",
    ),
    "scaled MatMul": (
        f"{MATRIX} <float[2, 2] w = {{1, 2, 3, 4}}, float[2] k = {{2, -1}}> {{ a = MatMul(x, w) y = Mul(a, k) }}",
        f"{MATRIX} <float[2, 2] w = {{2, -2, 6, -4}}> {{ y = MatMul(x, w) }}",
    ),
    "shifted Gemm": (
        f"{MATRIX} <float[2, 2] w = {{1, 2, 3, 4}}, float[2] k = {{2, -1}}> {{ a = Gemm(x, w) y = Sub(a, k) }}",
        f"{MATRIX} <float[2, 2] w = {{1, 2, 3, 4}}, float[2] b = {{-2, 1}}> {{ y = Gemm(x, w, b) }}",
    ),
    "behind a Reshape of rows": (
        f"{ROWS}, float[1, 2] k = {{2, -1}}> {{ a = Gemm(x, w) r = Reshape(a, t) y = Add(r, k) }}",
        f"{ROWS}, float[2] b = {{2, -1}}> {{ a = Gemm(x, w, b) y = Reshape(a, t) }}",
    ),
    "a scalar behind any Reshape": (
        f"{ROWS.replace('1, 3, 2', '1, 2, 3')}, float k = {{2}}>"
        " { a = MatMul(x, w) r = Reshape(a, t) y = Mul(r, k) }",
        f"{ROWS.replace('1, 3, 2', '1, 2, 3').replace('1, 2, 3, 4', '2, 4, 6, 8')}>"
        " { a = MatMul(x, w) y = Reshape(a, t) }",
    ),
}

KEPT = {
    "constant along another axis": f"{IMAGE} <float[2, 1, 1, 1] w = {{1, 2}}, float[4] k = {{1, 2, 3, 4}}>"
    " { a = Conv(x, w) y = Mul(a, k) }",
    "constant over a Conv": f"{IMAGE} {CONV} {{ a = Conv(x, w) y = Div(s, a) }}",
    "constant of a higher rank": "g (float[1, 1, 4, 4] x) => (float[1, N, 2, A, B] y) <float[2, 1, 1, 1] w = {1, 2},"
    " float[1, 1, 1, 1, 1] k = {3}> { a = Conv(x, w) y = Mul(a, k) }",
    "bias of a MatMul": f"{MATRIX} <float[2, 2] w = {{1, 2, 3, 4}}, float[2] k = {{2, -1}}>"
    " { a = MatMul(x, w) y = Add(a, k) }",
    "rows of a Gemm": f"{MATRIX} <float[2, 2] w = {{1, 2, 3, 4}}, float[3, 1] k = {{2, -1, 3}}>"
    " { a = Gemm(x, w) y = Add(a, k) }",
    "a row behind a Reshape of other rows": f"{ROWS.replace('1, 3, 2', '2, 1, 3')}, float[3] k = {{2, -1, 3}}>"
    " { a = Gemm(x, w) r = Reshape(a, t) y = Add(r, k) }",
    "a sum behind a MatMul and a Reshape": f"{ROWS}, float[2] k = {{2, -1}}>"
    " { a = MatMul(x, w) r = Reshape(a, t) y = Add(r, k) }",
    "two Convs": f"{IMAGE} {CONV} {{ a = Conv(x, w) b = Conv(x, w) y = Add(a, b) }}",
}  # fmt: skip


@pytest.mark.parametrize(("before", "after"), FOLDED.values(), ids=FOLDED)
def test_folds(check, before: str, after: str) -> None:
    check(FoldAffine(), before, after)


@pytest.mark.parametrize("text", KEPT.values(), ids=KEPT)
def test_stays(check, text: str) -> None:
    assert check(FoldAffine(), text) == []


def test_other_readers_are_named(check) -> None:
    text = f"{IMAGE} {CONV} {{ a = Conv(x, w) d = Mul(a, k) y = Add(d, a) }}"
    assert check(FoldAffine(), text) == ["Mul not folded: its input has other readers or is exported"]
