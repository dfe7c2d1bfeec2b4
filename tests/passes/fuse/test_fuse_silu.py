"""fuse-silu: x * sigmoid(x), where the target gains by it."""

from __future__ import annotations

import pytest
from onnxedge_passes.fuse.activation.fuse_silu import FuseSilu

HEAD = "g (float[N, 8] x) => (float[N, 8] y)"
SILU = {
    "Sigmoid": "{ s = Sigmoid(x) y = Mul(s, x) }",
    "exponential": "<float one = {1}> { n = Neg(x) e = Exp(n) d = Add(e, one) y = Div(x, d) }",
}


@pytest.mark.parametrize("body", SILU.values(), ids=SILU)
def test_the_targets_kernel(check, body: str) -> None:
    check(FuseSilu(), f"{HEAD} {body}", f"{HEAD} {{ y = com.microsoft.QuickGelu<alpha=1.0>(x) }}")


def test_the_standard_operator(check) -> None:
    options = {"opset": 24, "ir_version": 11, "target": "generic"}
    check(FuseSilu(), f"{HEAD} {SILU['Sigmoid']}", f"{HEAD} {{ y = Swish(x) }}", **options)


def test_no_kernel_is_said(check) -> None:
    reasons = check(FuseSilu(), f"{HEAD} {SILU['Sigmoid']}", target="tensorrt")
    assert reasons == ["SiLU not fused: target tensorrt has no kernel for it at this opset"]


@pytest.mark.parametrize(
    "body",
    [
        "{ z = Exp(x) s = Sigmoid(z) y = Mul(s, x) }",
        "<float k = {1.702}> { t = Mul(x, k) s = Sigmoid(t) y = Mul(s, x) }",
    ],
    ids=["a gate of another value", "another slope"],
)
def test_stays(check, body: str) -> None:
    assert check(FuseSilu(), f"{HEAD} {body}") == []
