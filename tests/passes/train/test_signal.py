"""Constants that take a spectrum of the input are told from weights."""

from __future__ import annotations

import pytest
from onnxedge_passes.train.signal import signal_constants
from students import parsed

HEAD = "g (float[N, 6, 8] x) => (float[N, 6, 4] y) <float[8, 8] c, float[8, 8] s, float[8, 5] mel, float[5, 4] w> {"
LOG_MEL = (
    HEAD + "a = MatMul(x, c) a2 = Mul(a, a) b = MatMul(x, s) b2 = Mul(b, b) p = Add(a2, b2) m = MatMul(p, mel)"
    " r = Sqrt(m) l = Log(r) y = MatMul(l, w) }"
)
MAGNITUDE = (
    "g (float[N, 1, 32] x) => (float[N, 4, 7] y) <float[10, 1, 8] basis, float[4, 10, 1] w, float two = {2}> {"
    " a = Conv<strides=[4]>(x, basis) t = Identity(a) q = Pow(t, two) r = Sqrt(q) y = Conv(r, w) }"
)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (LOG_MEL, {"c", "s", "mel"}),
        (MAGNITUDE, {"basis"}),
        # a rectifier before it: learned
        (LOG_MEL.replace("m = MatMul(p, mel) r = Sqrt(m)", "m = MatMul(p, mel) r = Relu(m)"), {"c", "s"}),
        # the log of probabilities at the end
        ("g (float[N, 8] x) => (float[N, 4] y) <float[8, 4] w> { a = MatMul(x, w) s = Softmax(a) y = Log(s) }", set()),
        ("g (float[N, 8] x) => (float[N, 4] y) <float[8, 4] w> { a = MatMul(x, w) s = Abs(a) y = Log(s) }", set()),
        # a norm behind the first layer reads it a second time
        (
            "g (float[N, 8] x) => (float[N, 4] y) <float[8, 8] w, float[8, 4] v> { a = MatMul(x, w) q = Mul(a, a)"
            " m = ReduceMean<axes=[1]>(q) r = Sqrt(m) n = Div(a, r) y = MatMul(n, v) }",
            set(),
        ),
        (
            "g (float[N, 8] x) => (float[N, 4] y) <float[8, 8] w, float[8, 4] v> { a = MatMul(x, w)"
            " m = ReduceMean<axes=[1]>(a) d = Sub(a, m) q = Mul(d, d) y = MatMul(q, v) }",
            set(),
        ),
    ],
)
def test_signal_constants(text: str, names: set[str]) -> None:
    assert signal_constants(parsed(text).graph) - {"two"} == names
