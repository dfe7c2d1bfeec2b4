"""fuse-attention on scores that a Tanh keeps below a number."""

from __future__ import annotations

import pytest
from blocks import MERGE, NEGATIVE, SPLIT, fused, graph
from onnxedge_passes.fuse.attention import FuseAttention

CAP = "float cap = {2.5}, float uncap = {0.4}, float minus = {-2.5}"


def capped(steps: str) -> str:
    return f"{SPLIT} s = MatMul(qh, kh) {steps} p = Softmax<axis=-1>(w) oh = MatMul(p, vh) {MERGE}"


ORDERS = {
    "scaled, capped": "t = Mul(s, c) d = Div(t, cap) h0 = Tanh(d) w = Mul(h0, cap)",
    "capped by a product": "t = Mul(s, c) d = Mul(t, uncap) h0 = Tanh(d) w = Mul(h0, cap)",
    "masked behind": "t = Mul(s, c) d = Div(t, cap) h0 = Tanh(d) u = Mul(h0, cap) w = Add(u, a)",
    "filled in behind": "t = Mul(s, c) d = Div(t, cap) h0 = Tanh(d) u = Mul(h0, cap) w = Where(x, u, low)",
    "with no number": "w = Tanh(s)",
}
MORE = ", float[B, 1, T, S] a, bool[B, 1, T, S] x"


@pytest.mark.parametrize("steps", ORDERS.values(), ids=ORDERS)
def test_the_operator_caps(applied, steps: str) -> None:
    model = graph(capped(steps), more=MORE, opset=23, constants=f"{NEGATIVE}, {CAP}")
    node, reasons = fused(model, applied, target="generic", expected="Attention")
    assert node is not None
    assert reasons == []
    cap = 1.0 if steps == ORDERS["with no number"] else 2.5
    assert node.attributes.get_float("softcap") == pytest.approx(cap)


OTHERS = {
    "masked before": (
        "t = Mul(s, c) b = Add(t, a) d = Div(b, cap) h0 = Tanh(d) w = Mul(h0, cap)",
        "after the mask is added",
    ),
    "capped twice": ("d = Tanh(s) w = Tanh(d)", "the scores are capped twice"),
    "by a number below 0": ("d = Tanh(s) w = Mul(d, minus)", "the scores are capped by a number below 0"),
}


@pytest.mark.parametrize(("steps", "reason"), OTHERS.values(), ids=OTHERS)
def test_stays(applied, steps: str, reason: str) -> None:
    model = graph(capped(steps), more=MORE, opset=23, constants=f"{NEGATIVE}, {CAP}")
    result, reasons = applied(FuseAttention(), model, "generic")
    assert result.rewrites == 0
    assert [reason in said for said in reasons] == [True]


def test_multi_head_attention_cannot(applied) -> None:
    model = graph(capped(ORDERS["scaled, capped"]), constants=f"{NEGATIVE}, {CAP}")
    reasons = fused(model, applied, target="ort-cuda", expected=None)[1]
    assert reasons == ["attention not fused: MultiHeadAttention cannot cap the scores"]
