"""Weights that are left alone, each with its reason."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from prune.topologies import build, images
from sparsified import ALL, HALF, sparsify

from onnxedge.api import Session

MATMUL = "g (float[N,8] x) => (float[N,8] y) { y = MatMul(x, w) }"
DENSE: dict[str, tuple[str, dict[str, tuple[int, ...]], dict[str, Any], str]] = {
    "few": (MATMUL, {"w": (8, 8)}, {}, "fewer than 1024 weights"),
    "skip": (MATMUL.replace("y = M", "[mine] y = M"), {"w": (8, 8)}, {**ALL, "skip": "other m*"}, "as asked by skip"),
    "depthwise": (
        "g (float[N,8,6,6] x) => (float[N,8,6,6] y) { y = Conv<group=8>(x, w) }", {"w": (8, 1, 1, 1)}, ALL, "depthwise",
    ),
    "depthwise transposed": (
        "g (float[N,8,6,6] x) => (float[N,8,6,6] y) { y = ConvTranspose<group=8>(x, w) }", {"w": (8, 1, 1, 1)}, ALL,
        "depthwise",
    ),
    "gathered": (
        "g (float[N,8] x) => (float[N,8] y, float[1,8] z) { y = MatMul(x, w) i = Constant<value_ints=[3]>() "
        "z = Gather<axis=0>(w, i) }", {"w": (8, 8)}, ALL, "also read by Gather",
    ),
    "exported": (MATMUL.replace("y)", "y, float[8,8] w)"), {"w": (8, 8)}, ALL, "its weight is a graph output"),
    "along other axes": (
        "g (float[N,8] x) => (float[N,8] y) { a = MatMul(x, w) y = Gemm<transB=1>(a, w) }", {"w": (8, 8)}, ALL,
        "read along other axes",
    ),
    "in a subgraph": (
        "g (float[N,8] x) => (float[N,8] y) { a = MatMul(x, w) s = ReduceSum<keepdims=0>(x) "
        "z = Constant<value_float=0.0>() c = Greater(s, z) "
        "y = If(c)<then_branch = t () => (float[N,8] p) { p = MatMul(a, w) }, "
        "else_branch = e () => (float[N,8] q) { q = Neg(a) }> }", {"w": (8, 8)}, ALL, "also read in a subgraph",
    ),
    "only in a subgraph": (
        "g (float[N,8] x) => (float[N,8] y) { s = ReduceSum<keepdims=0>(x) "
        "z = Constant<value_float=0.0>() c = Greater(s, z) "
        "y = If(c)<then_branch = t () => (float[N,8] p) { p = MatMul(x, w) }, "
        "else_branch = e () => (float[N,8] q) { q = Neg(x) }> }", {"w": (8, 8)}, ALL, "weights in subgraphs",
    ),
    "a stack": (
        "g (float[N,2,3,8] x) => (float[N,2,3,4] y) { y = MatMul(x, w) }", {"w": (2, 8, 4)}, ALL, "no matrix",
    ),
    "first operand": (
        "g (float[8,5] x) => (float[6,5] y) { y = MatMul(w, x) }", {"w": (6, 8)}, ALL, "the first operand",
    ),
    "recurrent": (
        "g (float[5,2,8] x) => (float[5,1,2,4] y) { y = RNN<hidden_size=4>(x, w, r) }",
        {"w": (1, 4, 8), "r": (1, 4, 4)}, ALL, "recurrent",
    ),
    "computed": (
        "g (float[N,8,6,6] x) => (float[N,2,6,6] y) { a = GlobalAveragePool(x) b = ReduceMean<axes=[0], keepdims=1>(a) "
        "c = Concat<axis=0>(b, b) y = Conv(x, c) }", {}, ALL, "computed at run time",
    ),
    "transposed with a pattern": (
        "g (float[N,8,6,6] x) => (float[N,6,6,6] y) { y = ConvTranspose(x, w) }", {"w": (8, 6, 1, 1)},
        {**ALL, "pattern": HALF}, "no sparse kernel",
    ),
    "odd channels": (
        "g (float[N,6] x) => (float[N,8] y) { y = MatMul(x, w) }", {"w": (6, 8)}, {**ALL, "pattern": HALF},
        "6 input channels are no multiple of 4",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DENSE)
def test_stays_dense_with_the_reason(name: str) -> None:
    text, shapes, options, reason = DENSE[name]
    model = build(text, shapes)
    fixed = [d if isinstance(d, int) else 3 for d in model.graph.inputs[0].shape]
    feed = {"x": images(tuple(fixed[1:]), fixed[0])}
    before = Session(model).run(feed)
    result, reasons = sparsify(model, None, **{"ratio": None if "pattern" in options else 0.5, **options})
    assert result.rewrites == 0
    assert any(reason in told for told in reasons), reasons
    after = Session(model).run(feed)
    assert all(np.array_equal(array, after[output]) for output, array in before.items())


def test_overridable_weights_stay() -> None:
    model = build(MATMUL, {"w": (8, 8)}, overridable=True)
    result, reasons = sparsify(model, images((8,)), **ALL)
    assert result.rewrites == 0
    assert any("may be overridden" in told for told in reasons)


def test_weights_that_are_integers_or_not_finite_stay() -> None:
    text = "g (float[N,8] x) => (float[N,8] y) { w = DequantizeLinear(q, s) y = MatMul(x, w) }"
    scale: Any = np.array(0.1, np.float32)
    codes: Any = np.arange(64, dtype=np.int8).reshape(8, 8)
    model = build(text, {}, {"q": codes, "s": scale})
    result, reasons = sparsify(model, images((8,)), **ALL)
    assert result.rewrites == 0
    assert any("put `sparsify` before `int8`" in told for told in reasons)
    broken = np.eye(8, dtype=np.float32)
    broken[0, 0] = np.inf
    result, reasons = sparsify(build(MATMUL, {}, {"w": broken}), images((8,)), **ALL)
    assert result.rewrites == 0
    assert any("infinities or NaN" in told for told in reasons)


def test_a_filter_bank_stays() -> None:
    bank: Any = np.zeros((32, 8), np.float32)
    bank[np.arange(24), np.arange(24) // 3] = (1.0, 2.0, 1.0) * 8
    model = build("g (float[N,32] x) => (float[N,8] y) { y = MatMul(x, w) }", {}, {"w": bank})
    result, reasons = sparsify(model, images((32,)), pattern=HALF, **ALL)
    assert result.rewrites == 0
    assert any("as in a filter bank" in told for told in reasons)
