"""transpose-to-reshape: Transposes that only move axes of size 1."""

from __future__ import annotations

import pytest
from onnxedge_passes.layout.transpose_to_reshape import TransposeToReshape

KEPT = {
    "data is moved": "g (float[N, 2, 8, 8] x) => (float[A, B, C, D] y) { y = Transpose<perm=[0, 2, 3, 1]>(x) }",
    "two sizes unknown": "g (float[N, 1, M, 8] x) => (float[A, B, C, D] y) { y = Transpose<perm=[0, 2, 3, 1]>(x) }",
    "an empty tensor": "g (float[0, 1, 8] x) => (float[A, B, C] y) { y = Transpose<perm=[0, 2, 1]>(x) }",
}


def test_ones_are_moved_by_a_reshape(check) -> None:
    check(
        TransposeToReshape(),
        "g (float[N, 1, 8, 4] x) => (float[A, B, C, D] y) { y = Transpose<perm=[0, 2, 3, 1]>(x) }",
        "g (float[N, 1, 8, 4] x) => (float[A, B, C, D] y) <int64[4] s = {-1, 8, 4, 1}> { y = Reshape(x, s) }",
    )


@pytest.mark.parametrize("text", KEPT.values(), ids=KEPT)
def test_stays(check, text: str) -> None:
    check(TransposeToReshape(), text)
