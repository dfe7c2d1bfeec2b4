"""fuse-bias-gelu: each form of GELU, and additions that are no bias."""

from __future__ import annotations

import pytest
from onnxedge_passes.fuse.activation.fuse_bias_gelu import FuseBiasGelu

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
    ("body", "reason"),
    [
        ("<float[1, 4] b = {1, 2, -1, 0.5}> { s = Add(x, b) y = com.microsoft.Gelu(s) }", "no constant vector"),
        (f"{BIAS} {{ s = Add(x, b) e = com.microsoft.Gelu(s) y = Add(e, s) }}", "the sum has other readers"),
        ("{ s = Add(x, x) y = com.microsoft.Gelu(s) }", "no constant vector"),
        ("{ s = Add(x, x) e = com.microsoft.Gelu(s) y = Add(e, s) }", ""),
        (f"{BIAS} {{ y = com.microsoft.FastGelu(x, b) }}", ""),
    ],
    ids=["two axes", "read twice", "no constant", "no bias", "fused already"],
)
def test_stays(check, body: str, reason: str) -> None:
    reasons = check(FuseBiasGelu(), f"{HEAD} {body}", target="ort-cuda")
    assert len(reasons) == bool(reason)
    assert all(said.startswith(f"BiasGelu not fused: {reason}") for said in reasons)


def test_an_exported_sum_is_said(check) -> None:
    head = HEAD.replace("=> (", "=> (float[B, T, 4] s, ")
    reasons = check(FuseBiasGelu(), f"{head} {BIAS} {{ s = Add(x, b) y = com.microsoft.Gelu(s) }}", target="ort-cuda")
    assert reasons == ["BiasGelu not fused: the sum has other readers or is exported"]


@pytest.mark.parametrize("target", ["ort-cpu", "generic"])
def test_other_targets(check, target: str) -> None:
    reasons = check(FuseBiasGelu(), f"{HEAD} {BIAS} {{ s = Add(x, b) y = com.microsoft.Gelu(s) }}", target=target)
    assert reasons == [f"BiasGelu not fused: target {target} lists no kernel for it"]
    assert check(FuseBiasGelu(), f"{HEAD} {{ s = Add(x, x) y = com.microsoft.Gelu(s) }}", target=target) == []
