"""fuse-quick-gelu, fuse-hard-sigmoid, fuse-leaky-relu, fuse-softplus, fuse-mish, spell-activations."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import parse
from onnxedge_passes.fuse.activation.fuse_hard_sigmoid import FuseHardSigmoid
from onnxedge_passes.fuse.activation.fuse_leaky_relu import FuseLeakyRelu
from onnxedge_passes.fuse.activation.fuse_mish import FuseMish
from onnxedge_passes.fuse.activation.fuse_quick_gelu import FuseQuickGelu
from onnxedge_passes.fuse.activation.fuse_softplus import FuseSoftplus
from onnxedge_passes.fuse.activation.spell_activations import SpellActivations

from onnxedge.api import Session

HEAD = "g (float[N, 8] x) => (float[N, 8] y)"
CONSTANTS = (
    "<float zero = {0}, float one = {1}, float two = {2}, float three = {3}, float six = {6}, float half = {0.5},"
    " float sixth = {0.16666667}, float fifth = {0.2}, float a = {1.702}, float ma = {-1.702}, float tenth = {0.1},"
    " float t = {20}>"
)
QUICK_GELU = {
    "Sigmoid": "m = Mul(x, a) s = Sigmoid(m) y = Mul(x, s)",
    "Exp": "m = Mul(x, ma) e = Exp(m) p = Add(one, e) y = Div(x, p)",
}
HARD_SIGMOID = {
    "relu6": ("p = Add(x, three) c = Clip(p, zero, six) y = Div(c, six)", 1 / 6),
    "Keras": ("p = Mul(x, fifth) q = Add(p, half) y = Clip(q, zero, one)", 0.2),
    "Min and Relu": ("p = Mul(x, sixth) q = Add(p, half) r = Relu(q) y = Min(r, one)", 1 / 6),
}
LEAKY_RELU = {
    "Where": "m = Mul(x, tenth) c = Greater(x, zero) y = Where(c, x, m)",
    "Max": "m = Mul(tenth, x) y = Max(m, x)",
    "two Relus": "p = Relu(x) n = Neg(x) q = Relu(n) m = Mul(q, tenth) y = Sub(p, m)",
}
SOFTPLUS = {
    "guard": "e = Exp(x) p = Add(e, one) l = Log(p) c = Greater(x, t) y = Where(c, x, l)",
    "of the absolute": "b = Abs(x) n = Neg(b) e = Exp(n) p = Add(e, one) l = Log(p) r = Relu(x) y = Add(r, l)",
}
MISH = {
    "Softplus": "s = Softplus(x) h = Tanh(s) y = Mul(x, h)",
    "logarithm": "e = Exp(x) p = Add(e, one) s = Log(p) h = Tanh(s) y = Mul(h, x)",
    "guard": "e = Exp(x) p = Add(e, one) l = Log(p) c = Greater(x, t) s = Where(c, x, l) h = Tanh(s) y = Mul(x, h)",
}
QUOTIENT = "m = Min(x, t) e = Exp(m) f = Add(e, two) n = Mul(e, f) d = Add(n, two) q = Div(n, d) y = Mul(x, q)"


def graph(body: str) -> str:
    return f"{HEAD} {CONSTANTS} {{ {body} }}"


@pytest.mark.parametrize("body", QUICK_GELU.values(), ids=QUICK_GELU)
def test_quick_gelu(check, body: str) -> None:
    check(FuseQuickGelu(), graph(body), f"{HEAD} {{ y = com.microsoft.QuickGelu<alpha=1.702>(x) }}")


def test_quick_gelu_without_a_kernel_is_said(check) -> None:
    reasons = check(FuseQuickGelu(), graph(QUICK_GELU["Sigmoid"]), target="generic")
    assert reasons == ["QuickGELU not fused: target generic has no kernel for it at this opset"]


@pytest.mark.parametrize("body", ["s = Sigmoid(x) y = Mul(x, s)", "m = Mul(x, a) y = Sigmoid(m)"])
def test_no_quick_gelu(check, body: str) -> None:
    assert check(FuseQuickGelu(), graph(body)) == []


@pytest.mark.parametrize(("body", "alpha"), HARD_SIGMOID.values(), ids=HARD_SIGMOID)
def test_hard_sigmoid(check, body: str, alpha: float) -> None:
    check(FuseHardSigmoid(), graph(body), f"{HEAD} {{ y = HardSigmoid<alpha={alpha}, beta=0.5>(x) }}")


@pytest.mark.parametrize("body", ["y = Clip(x, zero, one)", "p = Add(x, three) y = Clip(p, zero, six)", "y = Relu(x)"])
def test_no_hard_sigmoid(check, body: str) -> None:
    assert check(FuseHardSigmoid(), graph(body)) == []


@pytest.mark.parametrize("body", LEAKY_RELU.values(), ids=LEAKY_RELU)
def test_leaky_relu(check, body: str) -> None:
    check(FuseLeakyRelu(), graph(body), f"{HEAD} {{ y = LeakyRelu<alpha=0.1>(x) }}")


@pytest.mark.parametrize(
    "body",
    ["m = Mul(x, tenth) y = Min(m, x)", "m = Mul(x, six) y = Max(m, x)", "c = Greater(x, one) y = Where(c, x, zero)"],
)
def test_no_leaky_relu(check, body: str) -> None:
    assert check(FuseLeakyRelu(), graph(body)) == []


@pytest.mark.parametrize("body", SOFTPLUS.values(), ids=SOFTPLUS)
def test_softplus(check, body: str) -> None:
    check(FuseSoftplus(), graph(body), f"{HEAD} {{ y = Softplus(x) }}", target="generic")
    assert check(FuseSoftplus(), graph(body)) == ["Softplus not fused: the runtime's kernel is slower than the nodes"]


def test_softplus_with_a_guard_that_it_does_not_need(check) -> None:
    body = "s = Softplus(x) c = Greater(x, t) y = Where(c, x, s)"
    check(FuseSoftplus(), graph(body), f"{HEAD} {{ y = Softplus(x) }}")
    assert check(FuseSoftplus(), f"{HEAD} {{ y = Softplus(x) }}") == []


def test_softplus_without_a_guard_is_said(check) -> None:
    reasons = check(FuseSoftplus(), graph("e = Exp(x) p = Add(e, one) y = Log(p)"), target="generic")
    assert reasons == ["Softplus not fused: the nodes overflow where the operator does not"]


@pytest.mark.parametrize("body", [*MISH.values(), QUOTIENT], ids=[*MISH, "quotient"])
def test_mish(check, body: str) -> None:
    check(FuseMish(), graph(body), f"{HEAD} {{ y = Mish(x) }}", target="generic", opset=18)


@pytest.mark.parametrize("body", MISH.values(), ids=MISH)
def test_mish_for_onnx_runtime(check, body: str) -> None:
    check(FuseMish(), graph(body), graph(QUOTIENT))


def test_spelled_mish_is_left(check) -> None:
    assert check(FuseMish(), graph(QUOTIENT)) == []


def test_mish_is_spelled_for_onnx_runtime_alone(check) -> None:
    check(SpellActivations(), f"{HEAD} {{ y = Mish(x) }}", graph(QUOTIENT), opset=18)
    assert check(SpellActivations(), f"{HEAD} {{ y = Mish(x) }}", opset=18, target="generic") == []


def test_spelled_mish_of_extreme_values(rewritten) -> None:
    text = "g (float[9] x) => (float[9] y) { y = Mish(x) }"
    x = np.array([0.0, -0.0, np.nan, np.inf, -np.inf, 3e38, -3e38, 88.0, -88.0], np.float32)
    model, _ = rewritten(SpellActivations(), text, opset=18)
    before, after = (Session(m, level="disable").run({"x": x})["y"] for m in (parse(text, opset=18), model))
    np.testing.assert_allclose(after, before, rtol=1e-6, atol=1e-30)


PRELU = "g (float[2, 3, 4, 4] x) => (float[2, 3, 4, 4] y)"


def test_prelu(check) -> None:
    slope = "<float[3, 1, 1] s = {0.1, -0.5, 1}>"
    check(
        SpellActivations(),
        f"{PRELU} {slope} {{ y = PRelu(x, s) }}",
        f"{PRELU} {slope} {{ m = Mul(x, s) y = Max(x, m) }}",
    )


def test_steep_prelu(check) -> None:
    check(
        SpellActivations(),
        f"{PRELU} <float[3, 1, 1] s = {{0.1, 0, 2}}> {{ y = PRelu(x, s) }}",
        f"{PRELU} <float[3, 1, 1] s = {{0.1, 0, 2}}, float z = {{0}}>"
        " { n = Min(x, z) m = Mul(n, s) r = Relu(x) y = Add(r, m) }",
    )


@pytest.mark.parametrize(
    "slope", ["float[1] s = {0.1}", "float[4] s = {0.1, 0.2, 0.3, 0.4}", "float[1, 1, 1] s = {0.1}"]
)
def test_fast_prelu_stays(check, slope: str) -> None:
    assert check(SpellActivations(), f"{PRELU} <{slope}> {{ y = PRelu(x, s) }}") == []
