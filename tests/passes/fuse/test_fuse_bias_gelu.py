"""fuse-bias-gelu: each form of GELU, and additions that are no bias."""

from __future__ import annotations

import pytest
from onnxedge_passes.fuse.fuse_bias_gelu import FuseBiasGelu

HEAD = "g (float[B, T, 4] x) => (float[B, T, 4] y)"
BIAS = "<float[4] b = {1, 2, -1, 0.5}>"
FORMS = {
    "com.microsoft.Gelu(s)": ("com.microsoft.BiasGelu(x, b)", 17),
    "com.microsoft.FastGelu(s)": ("com.microsoft.FastGelu(x, b)", 17),
    "Gelu(s)": ("com.microsoft.BiasGelu(x, b)", 20),
    'Gelu<approximate="tanh">(s)': ("com.microsoft.FastGelu(x, b)", 20),
}


@pytest.mark.parametrize("form", FORMS)
def test_fuses(check, form: str) -> None:
    after, opset = FORMS[form]
    before = f"{HEAD} {BIAS} {{ s = Add(b, x) y = {form} }}"
    check(FuseBiasGelu(), before, f"{HEAD} {BIAS} {{ y = {after} }}", target="ort-cuda", opset=opset, ir_version=9)


@pytest.mark.parametrize(
    "body",
    [
        "<float[1, 4] b = {1, 2, -1, 0.5}> { s = Add(x, b) y = com.microsoft.Gelu(s) }",
        f"{BIAS} {{ s = Add(x, b) e = com.microsoft.Gelu(s) y = Add(e, s) }}",
        "{ s = Add(x, x) y = com.microsoft.Gelu(s) }",
        f"{BIAS} {{ y = com.microsoft.FastGelu(x, b) }}",
    ],
    ids=["two axes", "read twice", "no constant", "fused already"],
)
def test_stays(check, body: str) -> None:
    assert check(FuseBiasGelu(), f"{HEAD} {body}", target="ort-cuda") == []


def test_an_exported_sum_is_said(check) -> None:
    head = HEAD.replace("=> (", "=> (float[B, T, 4] s, ")
    reasons = check(FuseBiasGelu(), f"{head} {BIAS} {{ s = Add(x, b) y = com.microsoft.Gelu(s) }}", target="ort-cuda")
    assert reasons == ["BiasGelu not fused: the sum is exported"]


@pytest.mark.parametrize("target", ["ort-cpu", "generic"])
def test_other_targets(check, target: str) -> None:
    assert check(FuseBiasGelu(), f"{HEAD} {BIAS} {{ s = Add(x, b) y = com.microsoft.Gelu(s) }}", target=target) == []
