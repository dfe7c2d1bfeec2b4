"""fuse-softmax: quotients of exponentials, logarithms of them, and sums over other axes."""

from __future__ import annotations

import pytest
from onnxedge_passes.fuse.activation.fuse_softmax import FuseSoftmax

HEAD = "g (float[N, 3, 4] x) => (float[N, 3, 4] y)"
CONSTANTS = "<int64[1] ax = {-1}, int64[1] mid = {1}, int64[2] both = {1, 2}>"
SPELLINGS = {
    "naive": ("e = Exp(x) s = ReduceSum(e, ax) y = Div(e, s)", "y = Softmax<axis=2>(x)"),
    "maximum": (
        "m = ReduceMax<axes=[1]>(x) d = Sub(x, m) e = Exp(d) s = ReduceSum(e, mid) y = Div(e, s)",
        "y = Softmax<axis=1>(x)",
    ),
    "maximum along another axis": (
        "m = ReduceMax<axes=[1]>(x) d = Sub(x, m) e = Exp(d) s = ReduceSum(e, ax) y = Div(e, s)",
        "m = ReduceMax<axes=[1]>(x) d = Sub(x, m) y = Softmax<axis=2>(d)",
    ),
    "reciprocal": ("e = Exp(x) s = ReduceSum(e, ax) r = Reciprocal(s) y = Mul(r, e)", "y = Softmax<axis=2>(x)"),
    "Log": ("s = Softmax<axis=1>(x) y = Log(s)", "y = LogSoftmax<axis=1>(x)"),
    "log sum of powers": ("l = ReduceLogSumExp<axes=[2]>(x) y = Sub(x, l)", "y = LogSoftmax<axis=2>(x)"),
}
KEPT = {
    "over two axes": "e = Exp(x) s = ReduceSum(e, both) y = Div(e, s)",
    "a quotient of two values": "e = Exp(x) s = ReduceSum(x, ax) y = Div(e, s)",
    "a sum": "s = ReduceSum(x, ax) y = Div(x, s)",
}


@pytest.mark.parametrize(("before", "after"), SPELLINGS.values(), ids=SPELLINGS)
def test_fuses(check, before: str, after: str) -> None:
    check(FuseSoftmax(), f"{HEAD} {CONSTANTS} {{ {before} }}", f"{HEAD} {{ {after} }}")


@pytest.mark.parametrize("body", KEPT.values(), ids=KEPT)
def test_stays(check, body: str) -> None:
    assert check(FuseSoftmax(), f"{HEAD} {CONSTANTS} {{ {body} }}") == []


def test_old_opsets_have_the_last_axis(check) -> None:
    body = "e = Exp(x) s = ReduceSum<axes=[1]>(e) y = Div(e, s)"
    reasons = check(FuseSoftmax(), f"{HEAD} {{ {body} }}", opset=11)
    assert reasons == ["Softmax not fused: before opset 13 it is over the last axes"]
    check(FuseSoftmax(), f"{HEAD} {{ {body.replace('[1]', '[2]')} }}", f"{HEAD} {{ y = Softmax<axis=2>(x) }}", opset=11)


def test_the_logarithm_of_an_old_softmax(check) -> None:
    before = f"{HEAD} {{ s = Softmax(x) y = Log(s) }}"
    check(FuseSoftmax(), before, f"{HEAD} {{ y = LogSoftmax<axis=1>(x) }}", opset=11)


def test_another_reader_is_said(check) -> None:
    head = HEAD.replace("=> (", "=> (float[N, 3, 4] e, ")
    reasons = check(FuseSoftmax(), f"{head} {CONSTANTS} {{ {SPELLINGS['naive'][0]} }}")
    assert reasons == ["Softmax not fused: a value inside it has other readers"]
