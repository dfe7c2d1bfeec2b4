"""Constants and values with several readers, in one role or in several, for the pruning tests."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from topologies import Shapes, build

from onnxedge.api import Array

Units = set[tuple[int, int]]

SHARING_TEXTS: dict[str, tuple[str, Shapes]] = {
    # two groups of one width: each gets its own part of the bias, the slope and the scale
    "one_bias": (
        """g (float[N,3,6,6] x) => (float[N,5,6,6] y) {
          a = Conv(x, w0, b)  c = PRelu(a, slope)  d = Mul(c, scale)
          e = Conv(x, w1, b)  f = PRelu(e, slope)  h = Mul(f, scale)
          i = Conv(d, w2)  j = Conv(h, w3)  y = Add(i, j) }""",
        {"w0": (8, 3, 1, 1), "w1": (8, 3, 1, 1), "b": (8,), "slope": (8, 1, 1), "scale": (1, 8, 1, 1),
         "w2": (5, 8, 1, 1), "w3": (5, 8, 1, 1)},
    ),
    # the decoder is the encoder turned round: one axis of the weight is the model's own width, the other can be cut
    "tied": (
        """g (float[N,8] x) => (float[N,4] y) {
          a = MatMul(x, w)  b = Relu(a)  c = Gemm<transB=1>(b, w)  d = Tanh(c)  y = MatMul(d, w1) }""",
        {"w": (8, 6), "w1": (8, 4)},
    ),
    # a layer that is run twice: what it makes is what it reads
    "twice": (
        """g (float[N,3,6,6] x) => (float[N,5,6,6] y) {
          s = Conv(x, w0)  a = Conv(s, w, b)  c = Relu(a)  d = Conv(c, w, b)  e = Add(d, s)  y = Conv(e, w1) }""",
        {"w0": (8, 3, 1, 1), "w": (8, 8, 1, 1), "b": (8,), "w1": (5, 8, 1, 1)},
    ),
    # a constant that is cut for one reader and whole for another, which is an output
    "half_fixed": (
        """g (float[N,8] x) => (float[N,4] y, float[N,8] z) {
          a = MatMul(x, w0)  b = Mul(a, s)  y = MatMul(b, w1)  z = Mul(x, s) }""",
        {"w0": (8, 8), "s": (8,), "w1": (8, 4)},
    ),
    # one value in all places of an operator
    "itself": (
        """g (float[N,3,6,6] x) => (float[N,5,6,6] y) {
          a = Conv(x, w0)  b = Mul(a, a)  c = Concat<axis=1>(a, b, a)  d = Max(c, c)  y = Conv(d, w1) }""",
        {"w0": (8, 3, 1, 1), "w1": (5, 24, 1, 1)},
    ),
}  # fmt: skip

#: a width that must stay whole, and why
HELD: dict[str, tuple[str, Shapes, str]] = {
    "weight_and_data": (
        "g (float[N,1] x) => (float[N,4] y) { a = MatMul(x, w0) b = Mul(a, w0) y = MatMul(b, w1) }",
        {"w0": (1, 8), "w1": (8, 4)},
        "its weight is read elsewhere, too",
    ),
    "weight_and_output": (
        "g (float[N,8] x) => (float[N,4] y, float[8,8] w0) { a = MatMul(x, w0) y = MatMul(a, w1) }",
        {"w0": (8, 8), "w1": (8, 4)},
        "its weight is read elsewhere, too",
    ),
    "embedding_and_head": (
        "g (float[N,5] x) => (float[N,20] y) { z = Abs(x) i = Cast<to=7>(z) e = Gather(table, i) "
        "m = ReduceMean<axes=[1], keepdims=0>(e) b = MatMul(m, w0) y = Gemm<transB=1>(b, table) }",
        {"table": (20, 8), "w0": (8, 8)},
        "its weight is read elsewhere, too",
    ),
    "value_and_weight": (
        "g (float[2,8] x) => (float[2,4] y) { a = MatMul(x, w0) b = MatMul(a, a) y = MatMul(b, w1) }",
        {"w0": (8, 2), "w1": (2, 4)},
        "is summed in a product of two activations",
    ),
    "bias_of_the_product": (
        "g (float[N,8] x) => (float[N,4] y) { a = MatMul(x, w0) b = Gemm(x, w2, a) y = MatMul(b, w1) }",
        {"w0": (8, 8), "w2": (8, 8), "w1": (8, 4)},
        "its bias is computed at run time",
    ),
}


def _entry(name: str, shape: tuple[int, ...], units: int) -> tuple[Callable[[], ir.Model], tuple[int, ...], Units]:
    return (lambda: build(*SHARING_TEXTS[name])), shape, {(units, 1)}


SHARING = {
    "one_bias": _entry("one_bias", (3, 6, 6), 8),
    "tied": _entry("tied", (8,), 6),
    "twice": _entry("twice", (3, 6, 6), 8),
    "half_fixed": _entry("half_fixed", (8,), 8),
    "itself": _entry("itself", (3, 6, 6), 8),
}


def held(name: str) -> tuple[ir.Model, Array, str]:
    """Return a model, samples for it and the reason for which nothing of it goes."""
    text, weights, reason = HELD[name]
    size = 5 if "[N,5]" in text else 1 if "[N,1]" in text else 8
    return build(text, weights), np.random.default_rng(0).standard_normal((2, size)).astype(np.float32), reason
