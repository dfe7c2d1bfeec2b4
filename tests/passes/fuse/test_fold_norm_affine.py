"""fold-norm-affine: scale and shift behind normalizations, constant or computed at run time."""

from __future__ import annotations

import pytest
from onnxedge_passes.fuse.norm.fold_norm_affine import FoldNormAffine

HEAD = "g (float[2, 3, 4] x, float[4] k, float[4] c) => (float[2, 3, 4] y)"
CONSTANTS = (
    "<float[4] g = {1, 2, -1, 0.5}, float[4] one = {1, 1, 1, 1}, float[1, 1, 4] w = {2, 2, 3, 3}, float h = {2}>"
)
FOLDED = {
    "at run time": (
        "n = LayerNormalization(x, one) o = Mul(k, n) y = Add(o, c)",
        "y = LayerNormalization(x, k, c)",
    ),
    "constants": (
        "n = LayerNormalization(x, g, one) o = Mul(n, w) y = Add(o, h)",
        "y = LayerNormalization(x, gw, b)",
    ),
    "beta at run time": ("n = LayerNormalization(x, g) y = Add(n, c)", "y = LayerNormalization(x, g, c)"),
}
KEPT = {
    "rows differ": "n = LayerNormalization(x, g) y = Mul(n, x)",
    "a beta is there": "n = LayerNormalization(x, g, one) y = Add(n, c)",
    "residual": "n = LayerNormalization(x, g) y = Add(n, x)",
    "over a constant": "n = LayerNormalization(x, g) y = Div(h, n)",
}
AFTER = "<float[4] g = {1, 2, -1, 0.5}, float[4] gw = {2, 4, -3, 1.5}, float[4] b = {4, 4, 5, 5}>"


@pytest.mark.parametrize(("before", "after"), FOLDED.values(), ids=FOLDED)
def test_folds(check, before: str, after: str) -> None:
    check(FoldNormAffine(), f"{HEAD} {CONSTANTS} {{ {before} }}", f"{HEAD} {AFTER} {{ {after} }}")


@pytest.mark.parametrize("body", KEPT.values(), ids=KEPT)
def test_stays(check, body: str) -> None:
    assert check(FoldNormAffine(), f"{HEAD} {CONSTANTS} {{ {body} }}") == []


def test_a_gamma_beside_a_scale_at_run_time_is_said(check) -> None:
    reasons = check(FoldNormAffine(), f"{HEAD} {CONSTANTS} {{ n = LayerNormalization(x, g) y = Mul(n, k) }}")
    assert reasons == ["scale not folded into the normalization before it: one of them is computed at run time"]


def test_behind_instance_normalization(check) -> None:
    head = "g (float[2, 2, 3, 3] x) => (float[2, 2, 3, 3] y)"
    check(
        FoldNormAffine(),
        f"{head} <float[2] g = {{1, 2}}, float[2] b = {{0, 1}}, float[2, 1, 1] k = {{3, -1}}, float[1, 2, 1, 1] c ="
        " {5, 6}> { n = InstanceNormalization(x, g, b) o = Mul(n, k) y = Add(o, c) }",
        f"{head} <float[2] g = {{3, -2}}, float[2] b = {{5, 5}}> {{ y = InstanceNormalization(x, g, b) }}",
    )
