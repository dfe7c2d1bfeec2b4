"""fuse-gelu: many spellings, the target's kernel, and functions that are nearly GELU."""

from __future__ import annotations

import pytest
from onnxedge_passes.fuse.activation.fuse_gelu import FuseGelu

HEAD = "g (float[N, 8] x) => (float[N, 8] y)"
CONSTANTS = (
    "<float h = {0.5}, float one = {1}, float r2 = {1.4142135}, float q2 = {0.70710678}, float three = {3},"
    " float two = {2}, float c = {0.044715}, float k = {0.7978846}, float kk = {1.5957691}, float near = {0.045},"
    " float[1] h1 = {0.5}>"
)

ERF = {
    "half first": "d = Div(x, r2) e = Erf(d) s = Add(e, one) a = Mul(x, h) y = Mul(a, s)",
    "half last": "d = Mul(q2, x) e = Erf(d) s = Add(one, e) a = Mul(s, x) y = Mul(a, h)",
    "half of the sum": "d = Div(x, r2) e = Erf(d) s = Add(e, one) a = Mul(s, h1) y = Mul(x, a)",
    "over two": "d = Div(x, r2) e = Erf(d) s = Add(e, one) a = Mul(x, s) y = Div(a, two)",
    "square root spelled out": "w = Sqrt(two) d = Div(x, w) e = Erf(d) s = Add(e, one) a = Mul(x, s) y = Div(a, two)",
}
TANH = {
    "Pow": "p = Pow(x, three) m = Mul(p, c) s = Add(x, m) t = Mul(s, k) u = Tanh(t) v = Add(u, one)"
    " a = Mul(x, h) y = Mul(a, v)",
    "products": "p = Mul(x, x) q = Mul(p, x) m = Mul(c, q) s = Add(m, x) t = Mul(k, s) u = Tanh(t) v = Add(one, u)"
    " a = Mul(x, v) y = Mul(h, a)",
    "factored": "p = Mul(x, x) m = Mul(p, c) s = Add(m, one) q = Mul(x, s) t = Mul(q, k) u = Tanh(t) v = Add(u, one)"
    " a = Mul(v, h) y = Mul(a, x)",
    "by a sigmoid": "p = Pow(x, three) m = Mul(p, c) s = Add(x, m) t = Mul(s, kk) u = Sigmoid(t) y = Mul(x, u)",
}
KEPT = {
    "another constant": "p = Pow(x, three) m = Mul(p, near) s = Add(x, m) t = Mul(s, k) u = Tanh(t) v = Add(u, one)"
    " a = Mul(x, h) y = Mul(a, v)",
    "no half": "d = Div(x, r2) e = Erf(d) s = Add(e, one) y = Mul(x, s)",
    "Erf of another value": "z = Exp(x) d = Div(z, r2) e = Erf(d) s = Add(e, one) a = Mul(x, h) y = Mul(a, s)",
}


@pytest.mark.parametrize("body", ERF.values(), ids=ERF)
def test_erf_at_opset_20(check, body: str) -> None:
    check(
        FuseGelu(),
        f"{HEAD} {CONSTANTS} {{ {body} }}",
        f'{HEAD} {{ y = Gelu<approximate="none">(x) }}',
        opset=20,
        ir_version=9,
        target="generic",
    )


@pytest.mark.parametrize("body", TANH.values(), ids=TANH)
def test_tanh_by_the_targets_kernel(check, body: str) -> None:
    check(FuseGelu(), f"{HEAD} {CONSTANTS} {{ {body} }}", f"{HEAD} {{ y = com.microsoft.FastGelu(x) }}")


@pytest.mark.parametrize("body", KEPT.values(), ids=KEPT)
def test_stays(check, body: str) -> None:
    reasons = ["GELU not fused: what is computed around it is another function"] if "Erf" in body else []
    assert check(FuseGelu(), f"{HEAD} {CONSTANTS} {{ {body} }}") == reasons


def test_no_kernel_is_said(check) -> None:
    reasons = check(FuseGelu(), f"{HEAD} {CONSTANTS} {{ {ERF['half first']} }}", target="generic")
    assert reasons == ["GELU not fused: target generic has no kernel for it at this opset"]


def test_other_readers_are_said(check) -> None:
    body = "d = Div(x, r2) e = Erf(d) s = Add(e, one) a = Mul(x, h) y = Mul(a, s) z = Relu(e)"
    reasons = check(FuseGelu(), f"g (float[N, 8] x) => (float[N, 8] y, float[N, 8] z) {CONSTANTS} {{ {body} }}")
    assert reasons == ["GELU not fused: a value inside it has other readers"]


def test_constants_that_widen_the_shape_stay(check) -> None:
    body = "d = Div(x, r2) e = Erf(d) s = Add(e, one) a = Mul(x, h) y = Mul(a, s)"
    constants = CONSTANTS.replace("float h = {0.5}", "float[1, 1] h = {0.5}")
    check(FuseGelu(), f"g (float[N] x) => (float[M, N] y) {constants} {{ {body} }}")
