"""fold-affine-before: constants before linear operators, and where padding or broadcast forbid it."""

from __future__ import annotations

import pytest
from onnxedge_passes.fuse.linear.fold_affine_before import FoldAffineBefore

IMAGE = "g (float[1, 2, 4, 4] x) => (float[N, 2, A, B] y)"
CONV = (
    "<float[2, 2, 1, 1] w = {1, 2, 3, 4}, float[1, 2, 1, 1] k = {2, -1}, float[2, 1, 1] c = {3, 4}, float s = {2},"
    " float[2] b = {1, 1}, float[2] one = {1, 1}, float[2] var = {0.25, 1}>"
)
GROUPED = "<float[2, 1, 1, 1] w = {1, 2}, float[1, 2, 1, 1] k = {2, -1}>"
MATRIX = "g (float[3, 2] x) => (float[3, 2] y)"
MATRICES = (
    "<float[2, 2] w = {1, 2, 3, 4}, float[2] k = {2, -1}, float[2] b = {1, 1}, float s = {2},"
    " float[3, 1] r = {1, 2, 3}>"
)
FOLDED = {
    "Mul and Add before Conv": (
        f"{IMAGE} {CONV} {{ a = Mul(x, k) d = Add(a, c) y = Conv(d, w, b) }}",
        f"{IMAGE} <float[2, 2, 1, 1] w = {{2, -2, 6, -4}}, float[2] b = {{12, 26}}> {{ y = Conv(x, w, b) }}",
    ),
    "Sub from a scalar": (
        f"{IMAGE} {CONV} {{ a = Sub(s, x) y = Conv(a, w) }}",
        f"{IMAGE} <float[2, 2, 1, 1] w = {{-1, -2, -3, -4}}, float[2] b = {{6, 14}}> {{ y = Conv(x, w, b) }}",
    ),
    "scale before a Conv that pads": (
        f"{IMAGE} {CONV} {{ a = Div(x, s) y = Conv<pads=[1, 1, 1, 1]>(a, w) }}",
        f"{IMAGE} <float[2, 2, 1, 1] w = {{0.5, 1, 1.5, 2}}> {{ y = Conv<pads=[1, 1, 1, 1]>(x, w) }}",
    ),
    "groups": (
        f"{IMAGE} {GROUPED} {{ a = Mul(x, k) y = Conv<group=2>(a, w) }}",
        f"{IMAGE} <float[2, 1, 1, 1] w = {{2, -2}}> {{ y = Conv<group=2>(x, w) }}",
    ),
    "ConvTranspose": (
        f"{IMAGE} {CONV} {{ a = Mul(x, k) y = ConvTranspose(a, w) }}",
        f"{IMAGE} <float[2, 2, 1, 1] w = {{2, 4, -3, -4}}> {{ y = ConvTranspose(x, w) }}",
    ),
    "BatchNormalization": (
        f"{IMAGE} {CONV} {{ a = BatchNormalization<epsilon=0.0>(x, b, b, one, var) y = Conv(a, w) }}",
        f"{IMAGE} <float[2, 2, 1, 1] w = {{2, 2, 6, 4}}, float[2] b = {{-1, -3}}> {{ y = Conv(x, w, b) }}",
    ),
    "MatMul": (
        f"{MATRIX} {MATRICES} {{ a = Mul(x, k) y = MatMul(a, w) }}",
        f"{MATRIX} <float[2, 2] w = {{2, 4, -3, -4}}> {{ y = MatMul(x, w) }}",
    ),
    "transposed Gemm": (
        f"{MATRIX} {MATRICES} {{ a = Mul(x, k) d = Add(a, s) y = Gemm<transB=1, alpha=0.5>(d, w, b) }}",
        f"{MATRIX} <float[2, 2] w = {{2, -2, 6, -4}}, float[2] b = {{4, 8}}>"
        " { y = Gemm<transB=1, alpha=0.5>(x, w, b) }",
    ),
}
KEPT = {
    "rows differ": f"{MATRIX} {MATRICES} {{ a = Mul(x, r) y = MatMul(a, w) }}",
    "broadcast to the channels": f"g (float[3, 1] x) => (float[3, 2] y) {MATRICES}"
    " { a = Mul(x, k) y = MatMul(a, w) }",
    "over the data": f"{MATRIX} {MATRICES} {{ a = Div(k, x) y = MatMul(a, w) }}",
    "gamma of a normalization": f"{MATRIX} {MATRICES} {{ d = Abs(x) q = Sqrt(d) n = Div(x, q) a = Mul(n, k)"
    " y = MatMul(a, w) }",
}
REASONS = {
    "Add not folded: the padding behind it must stay zero": f"{IMAGE} {CONV}"
    " { a = Add(x, c) y = Conv<pads=[1, 0, 0, 0]>(a, w) }",
    "Add not folded: a MatMul has no bias": f"{MATRIX} {MATRICES} {{ a = Add(x, k) y = MatMul(a, w) }}",
    "Mul not folded into what reads it: others read it, too, or it is exported": f"{MATRIX} {MATRICES}"
    " { a = Mul(x, k) z = MatMul(a, w) y = Add(a, z) }",
}


@pytest.mark.parametrize(("before", "after"), FOLDED.values(), ids=FOLDED)
def test_folds(check, before: str, after: str) -> None:
    check(FoldAffineBefore(), before, after)


@pytest.mark.parametrize("text", KEPT.values(), ids=KEPT)
def test_stays(check, text: str) -> None:
    assert check(FoldAffineBefore(), text) == []


@pytest.mark.parametrize(("reason", "text"), REASONS.items(), ids=REASONS)
def test_stays_and_is_said(check, reason: str, text: str) -> None:
    assert check(FoldAffineBefore(), text) == [reason]


def test_batchnorm_before_padding_is_said(check) -> None:
    text = f'{IMAGE} {CONV} {{ a = BatchNormalization(x, b, b, one, var) y = Conv<auto_pad="SAME_UPPER">(a, w) }}'
    assert check(FoldAffineBefore(), text) == ["BatchNormalization not folded: the padding behind it must stay zero"]
