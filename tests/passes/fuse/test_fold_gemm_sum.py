"""fold-gemm-sum: matrices added to a Gemm."""

from __future__ import annotations

import pytest
from onnxedge_passes.fuse.linear.fold_gemm_sum import FoldGemmSum

WEIGHT = "float[2, 3] w = {1, 2, 3, 4, 5, 6}"
PRODUCT = "p = Gemm<alpha=0.5>(x, w)"


@pytest.mark.parametrize("shape", ["N, 3", "1, 3", "N, 1", "3", "1", "1, 1"])
@pytest.mark.parametrize("total", ["Add(p, r)", "Add(r, p)", "Sum(p, r)"])
def test_folds(check, shape: str, total: str) -> None:
    head = f"g (float[N, 2] x, float[{shape}] r) => (float[N, 3] y) <{WEIGHT}>"
    check(FoldGemmSum(), f"{head} {{ {PRODUCT} y = {total} }}", f"{head} {{ y = Gemm<alpha=0.5>(x, w, r) }}")


@pytest.mark.parametrize("shape", ["M, 3", "2, 1, 3", "N, 3"], ids=["other rows", "another axis", "other readers"])
def test_near_misses_are_named(check, shape: str) -> None:
    second = ", float[N, 3] p" if shape == "N, 3" else ""
    head = f"g (float[N, 2] x, float[{shape}] r) => (float[A, B] y{second}) <{WEIGHT}>"
    head = head.replace("[A, B]", "[A, B, C]") if shape.count(",") == 2 else head
    reasons = check(FoldGemmSum(), f"{head} {{ {PRODUCT} y = Add(p, r) }}")
    assert len(reasons) == 1
    assert reasons[0].startswith("sum not folded into the Gemm: ")


@pytest.mark.parametrize("body", ["p = Gemm(x, w, b) y = Add(p, b)", "p = Gemm(x, w) y = Add(p, p)"])
def test_stays(check, body: str) -> None:
    check(FoldGemmSum(), f"g (float[N, 2] x, float[3] b) => (float[N, 3] y) <{WEIGHT}> {{ {body} }}")
