"""fold-transpose: rows of a matrix are permuted instead of features."""

from __future__ import annotations

import pytest
from onnxedge_passes.layout.fold_transpose import FoldTranspose

HEAD = "g (float[N, 2, 1, 2] x) => (float[A, B] y)"
WEIGHT = "float[4, 2] w = {1, 2, 3, 4, 5, 6, 7, 8}, float[4, 2] p = {1, 2, 5, 6, 3, 4, 7, 8}"
LAST = "Transpose<perm=[0, 2, 3, 1]>"

FOLDED = {
    "a Reshape": (
        f"{HEAD} <{WEIGHT}, int64[2] s = {{-1, 4}}> {{ t = {LAST}(x) f = Reshape(t, s) y = MatMul(f, w) }}",
        f"{HEAD} <{WEIGHT}, int64[2] s = {{-1, 4}}> {{ f = Reshape(x, s) y = MatMul(f, p) }}",
    ),
    "a Flatten before a transposed matrix": (
        f"{HEAD} <float[1, 4] w = {{1, 2, 3, 4}}> {{ t = {LAST}(x) f = Flatten(t) y = Gemm<transB=1>(f, w) }}",
        f"{HEAD} <float[1, 4] w = {{1, 3, 2, 4}}> {{ f = Flatten(x) y = Gemm<transB=1>(f, w) }}",
    ),
}

KEPT = {
    "the batch moves": f"{HEAD.replace('N', '1')} <{WEIGHT}, int64[2] s = {{-1, 4}}>"
    " { t = Transpose<perm=[1, 0, 2, 3]>(x) f = Reshape(t, s) y = MatMul(f, w) }",
    "rows are no samples": f"{HEAD} <float[2, 2] w = {{1, 2, 3, 4}}, int64[2] s = {{-1, 2}}>"
    f" {{ t = {LAST}(x) f = Reshape(t, s) y = MatMul(f, w) }}",
    "other readers": f"{HEAD.replace('y)', 'y, float[C, D] z)')} <{WEIGHT}, int64[2] s = {{-1, 4}}>"
    f" {{ t = {LAST}(x) f = Reshape(t, s) z = Relu(f) y = MatMul(f, w) }}",
}


@pytest.mark.parametrize(("before", "after"), FOLDED.values(), ids=FOLDED)
def test_folds(check, before: str, after: str) -> None:
    check(FoldTranspose(), before, after)


@pytest.mark.parametrize("text", KEPT.values(), ids=KEPT)
def test_stays(check, text: str) -> None:
    check(FoldTranspose(), text)
