"""fold-gemm-transpose: Transposes around a Gemm."""

from __future__ import annotations

import pytest
from onnxedge_passes.fuse.linear.fold_gemm_transpose import FoldGemmTranspose

HEAD = "g (float[3, N] x, float[4, 3] w, float[4] b) => (float[A, B] y)"
TURN = "Transpose<perm=[1, 0]>"

FOLDED = {
    "left": (
        f"t = {TURN}(x) v = Neg(w) y = Gemm<transB=1>(t, v, b)",
        "v = Neg(w) y = Gemm<transA=1, transB=1>(x, v, b)",
    ),
    "right, without perm": (
        "v = Transpose(w) y = Gemm<transA=1, alpha=0.5>(x, v, b)",
        "y = Gemm<alpha=0.5, transA=1, transB=1>(x, w, b)",
    ),
    "both": (f"s = {TURN}(x) t = {TURN}(w) y = Gemm(s, t)", "y = Gemm<transA=1, transB=1>(x, w)"),
    "back again": (f"t = {TURN}(w) y = Gemm<transA=1, transB=0>(x, t)", "y = Gemm<transA=1, transB=1>(x, w)"),
    "behind": (
        f"p = Gemm<alpha=2.0>(w, x) y = {TURN}(p)",
        "y = Gemm<alpha=2.0, transA=1, transB=1>(x, w)",
    ),
    "behind transposed ones": (
        f"p = Gemm<transA=1, transB=1>(x, w) y = {TURN}(p)",
        "y = Gemm<alpha=1.0, transA=0, transB=0>(w, x)",
    ),
}


@pytest.mark.parametrize(("before", "after"), FOLDED.values(), ids=FOLDED)
def test_folds(check, before: str, after: str) -> None:
    check(FoldGemmTranspose(), f"{HEAD} {{ {before} }}", f"{HEAD} {{ {after} }}")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (f"p = Gemm<transA=1, transB=1>(x, w, b) y = {TURN}(p)", "it has a bias"),
        (f"p = Gemm<transA=1, transB=1>(x, w) t = {TURN}(p) n = Neg(p) m = {TURN}(n) y = Add(t, m)", "other readers"),
    ],
    ids=["a bias", "other readers"],
)
def test_stays_behind(check, body: str, reason: str) -> None:
    (found,) = check(FoldGemmTranspose(), f"{HEAD} {{ {body} }}")
    assert reason in found


def test_a_transpose_stays_for_others(check) -> None:
    head = HEAD.replace("float[A, B] y", "float[A, B] y, float[N, 3] t")
    check(
        FoldGemmTranspose(),
        f"{head} {{ t = {TURN}(x) y = Gemm<transB=1>(t, w) }}",
        f"{head} {{ t = {TURN}(x) y = Gemm<transA=1, transB=1>(x, w) }}",
    )
