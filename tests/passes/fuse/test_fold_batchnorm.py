"""fold-batchnorm: each linear operator, and what must not match."""

from __future__ import annotations

import pytest
from onnxedge_passes.fuse.linear.fold_batchnorm import FoldBatchnorm

# gamma / sqrt(var + 0) is [2, -1] and the shift [1, 3]
BN = "float[2] g = {4, -1}, float[2] c = {3, 2}, float[2] m = {1, 1}, float[2] v = {4, 1}"
NORM = "BatchNormalization<epsilon=0.0>"
IMAGE = "g (float[1, 1, 4, 4] x) => (float[N, 2, A, B] y)"
MATRIX = "g (float[3, 2] x) => (float[3, 2] y)"

FOLDED = {
    "Conv": (
        f"{IMAGE} <float[2, 1, 1, 1] w = {{1, 2}}, {BN}> {{ a = Conv(x, w) y = {NORM}(a, g, c, m, v) }}",
        f"{IMAGE} <float[2, 1, 1, 1] w = {{2, -2}}, float[2] b = {{1, 3}}> {{ y = Conv(x, w, b) }}",
    ),
    "Conv with a bias": (
        f"{IMAGE} <float[2, 1, 1, 1] w = {{1, 2}}, float[2] b = {{1, 1}}, {BN}>"
        f" {{ a = Conv(x, w, b) y = {NORM}(a, g, c, m, v) }}",
        f"{IMAGE} <float[2, 1, 1, 1] w = {{2, -2}}, float[2] b = {{3, 2}}> {{ y = Conv(x, w, b) }}",
    ),
    "ConvTranspose": (
        f"{IMAGE} <float[1, 2, 1, 1] w = {{1, 2}}, {BN}> {{ a = ConvTranspose(x, w) y = {NORM}(a, g, c, m, v) }}",
        f"{IMAGE} <float[1, 2, 1, 1] w = {{2, -2}}, float[2] b = {{1, 3}}> {{ y = ConvTranspose(x, w, b) }}",
    ),
    "ConvTranspose in groups": (
        "g (float[1, 2, 4, 4] x) => (float[N, 2, A, B] y) <float[2, 1, 1, 1] w = {1, 2}, " + BN + ">"
        f" {{ a = ConvTranspose<group=2>(x, w) y = {NORM}(a, g, c, m, v) }}",
        "g (float[1, 2, 4, 4] x) => (float[N, 2, A, B] y) <float[2, 1, 1, 1] w = {2, -2}, float[2] b = {1, 3}>"
        " { y = ConvTranspose<group=2>(x, w, b) }",
    ),
    "Gemm": (
        f"{MATRIX} <float[2, 2] w = {{1, 2, 3, 4}}, float[1, 2] b = {{1, 1}}, {BN}>"
        f" {{ a = Gemm<alpha=0.5, beta=2.0>(x, w, b) y = {NORM}(a, g, c, m, v) }}",
        f"{MATRIX} <float[2, 2] w = {{2, -2, 6, -4}}, float[2] b = {{5, 1}}> {{ y = Gemm<alpha=0.5>(x, w, b) }}",
    ),
    "Gemm with a transposed weight": (
        f"{MATRIX} <float[2, 2] w = {{1, 2, 3, 4}}, {BN}>"
        f" {{ a = Gemm<transB=1>(x, w) y = {NORM}(a, g, c, m, v) }}",
        f"{MATRIX} <float[2, 2] w = {{2, 4, -3, -4}}, float[2] b = {{1, 3}}> {{ y = Gemm<transB=1>(x, w, b) }}",
    ),
    "MatMul": (
        f"{MATRIX} <float[2, 2] w = {{1, 2, 3, 4}}, {BN}> {{ a = MatMul(x, w) y = {NORM}(a, g, c, m, v) }}",
        f"{MATRIX} <float[2, 2] w = {{2, -2, 6, -4}}, float[2] b = {{1, 3}}> {{ y = Gemm(x, w, b) }}",
    ),
    "MatMul without a shift": (
        f"{MATRIX} <float[2, 2] w = {{1, 2, 3, 4}}, {BN.replace('c = {3, 2}', 'c = {2, -1}')}>"
        f" {{ a = MatMul(x, w) y = {NORM}(a, g, c, m, v) }}",
        f"{MATRIX} <float[2, 2] w = {{2, -2, 6, -4}}> {{ y = MatMul(x, w) }}",
    ),
    "MatMul by way of Reshape and Transpose": (
        f"g (float[6, 2] x) => (float[A, B, C] y) <float[2, 2] w = {{1, 2, 3, 4}}, int64[3] s = {{2, 3, 2}}, {BN}>"
        f" {{ a = MatMul(x, w) r = Reshape(a, s) t = Transpose<perm=[0, 2, 1]>(r) y = {NORM}(t, g, c, m, v) }}",
        "g (float[6, 2] x) => (float[A, B, C] y) <float[2, 2] w = {2, -2, 6, -4}, int64[3] s = {2, 3, 2},"
        " float[2] b = {1, 3}> { a = Gemm(x, w, b) r = Reshape(a, s) y = Transpose<perm=[0, 2, 1]>(r) }",
    ),
}  # fmt: skip

CONV = f"<float[2, 1, 1, 1] w = {{1, 2}}, {BN}> {{ a = Conv(x, w)"
KEPT = {
    "other readers": (
        f"g (float[1, 1, 4, 4] x) => (float[N, 2, A, B] y) {CONV} n = {NORM}(a, g, c, m, v) y = Add(n, a) }}",
        "not folded: its input has other readers or is exported",
    ),
    "exported": (
        f"g (float[1, 1, 4, 4] x) => (float[N, 2, A, B] y, float[N, 2, A, B] a) {CONV} y = {NORM}(a, g, c, m, v) }}",
        "not folded: its input has other readers or is exported",
    ),
    "gamma at run time": (
        "g (float[1, 1, 4, 4] x, float[2] gg) => (float[N, 2, A, B] y)"
        f" {CONV} y = {NORM}(a, gg, c, m, v) }}",
        "not folded: a parameter is computed at run time or may be overridden",
    ),
    "a weight that may be overridden": (
        "g (float[1, 1, 4, 4] x, float[2, 1, 1, 1] w = {1, 2}) => (float[N, 2, A, B] y)"
        f" <{BN}> {{ a = Conv(x, w) y = {NORM}(a, g, c, m, v) }}",
        "not folded: the weight is computed at run time or may be overridden",
    ),
    "nothing linear before it": (
        f"g (float[1, 2, 4, 4] x) => (float[N, 2, A, B] y) <{BN}> {{ a = Relu(x) y = {NORM}(a, g, c, m, v) }}",
        "not folded: no Conv, ConvTranspose, Gemm or MatMul before it",
    ),
    "rows of a MatMul (ONNX Runtime's MatmulBNFusion takes them for columns)": (
        f"g (float[2, 2] x) => (float[A, B] y) <float[2, 2] w = {{1, 2, 3, 4}}, {BN}>"
        f" {{ a = MatMul(x, w) t = Transpose<perm=[1, 0]>(a) y = {NORM}(t, g, c, m, v) }}",
        "not folded: the channels are not the MatMul's last axis",
    ),
    "columns that a Reshape mixes": (
        "g (float[2, 4] x) => (float[A, B, C] y) <float[4, 2] w = {1, 2, 3, 4, 5, 6, 7, 8}, int64[3] s = {1, 2, 2},"
        f" {BN}> {{ a = MatMul(x, w) r = Reshape(a, s) y = {NORM}(r, g, c, m, v) }}",
        "not folded: no Conv, ConvTranspose, Gemm or MatMul before it",
    ),
    "a dead channel": (
        f"{IMAGE} <float[2, 1, 1, 1] w = {{1, 2}}, float[2] g = {{4, -1}}, float[2] c = {{3, 2}},"
        f" float[2] m = {{1, 1}}, float[2] v = {{0, 1}}> {{ a = Conv(x, w) y = {NORM}(a, g, c, m, v) }}",
        "not folded: |scale| exceeds 10000 or is not finite",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("before", "after"), FOLDED.values(), ids=FOLDED)
def test_folds(check, before: str, after: str) -> None:
    check(FoldBatchnorm(), before, after)


@pytest.mark.parametrize(("text", "reason"), KEPT.values(), ids=KEPT)
def test_stays(check, text: str, reason: str) -> None:
    assert check(FoldBatchnorm(), text) == [reason]


def test_training_mode_stays(check) -> None:
    text = f"{IMAGE} {CONV} y, r, s = BatchNormalization<training_mode=1>(a, g, c, m, v) }}"
    assert check(FoldBatchnorm(), text, runs=False) == []


def test_a_small_shared_weight_is_copied(rewritten) -> None:
    text = (
        f"g (float[1, 1, 4, 4] x) => (float[N, 2, A, B] y, float[N, 2, A, B] z) {CONV}"
        f" z = Conv(x, w) y = {NORM}(a, g, c, m, v) }}"
    )
    model, _ = rewritten(FoldBatchnorm(), text)
    weights = [value.const_value.numpy().ravel().tolist() for value in model.graph.initializers.values()]
    assert sorted(weights) == [[1, 2], [1, 3], [2, -2]]


def test_float16_that_would_overflow_stays(check) -> None:
    # the text holds float16 by its bits: w = 60000, g = 8, v = 1
    text = (
        "g (float16[1, 1, 2, 2] x) => (float16[N, 1, A, B] y) <float16[1, 1, 1, 1] w = {31571}, float16[1] g = {18432},"
        " float16[1] c = {0}, float16[1] m = {0}, float16[1] v = {15360}>"
        f" {{ a = Conv(x, w) y = {NORM}(a, g, c, m, v) }}"
    )
    assert check(FoldBatchnorm(), text, runs=False) == ["not folded: it would leave the range of float16"]
