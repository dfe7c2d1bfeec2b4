"""Topologies with If for the pruning tests: the sign of the input's sum decides which branch is taken."""

from __future__ import annotations

import onnx_ir as ir
from topologies import Shapes, build

_START = """g (float[N,3,8,8] x) => (float[N,5,8,8] y) {
  total = ReduceSum<keepdims=0>(x)  zero = Constant<value_float=0.0>()  c = Greater(total, zero)
  a0 = Conv<pads=[1,1,1,1]>(x, w0, b0)  a = Relu(a0)
"""

#: a is read by both branches, j by one, and what either gives by the reader outside
CAPTURED = (
    _START
    + """b = If(c)<
    then_branch = t () => (float[N,10,8,8] p) { i = Conv<pads=[1,1,1,1]>(a, w1, b1)  j = Relu(i)  p = Conv(j, w2, b2) },
    else_branch = e () => (float[N,10,8,8] q) { i = Conv(a, w3, b3)  q = Sigmoid(i) }>
  y = Conv(b, w4, b4)
}"""
)

#: one branch lets a pass, so that the other gives the same channels; both read one weight
PASSED = (
    _START
    + """b, d = If(c)<
    then_branch = t () => (float[N,8,8,8] p, float[N,6,8,8] r) { i = Conv(a, w1)  p = Relu(i)  r = Conv(a, w2) },
    else_branch = e () => (float[N,8,8,8] q, float[N,6,8,8] s) { q = Identity(a)  k = Conv(a, w1)  s = Conv(k, w2) }>
  f = Concat<axis=1>(b, d)
  h = Add(b, a)
  u = Conv(h, w3, b3)
  v = Conv(f, w4)
  y = Add(u, v)
}"""
)

#: an If inside of a branch, a depthwise convolution inside of that, squeeze-and-excite without a weight in the other
NESTED = (
    _START
    + """half = Constant<value_float=40.0>()  many = Greater(total, half)
  b = If(c)<
    then_branch = t () => (float[N,6,8,8] p) {
      i = Conv(a, w1, b1)
      j = If(many)<
        then_branch = tt () => (float[N,6,8,8] k) { k = Conv<group=6, pads=[1,1,1,1]>(i, w2, b2) },
        else_branch = te () => (float[N,6,8,8] l) { m = Conv(a, w3)  l = Mul(m, i) }>
      p = Relu(j) },
    else_branch = e () => (float[N,6,8,8] q) { n = Conv(x, w4)  o = GlobalAveragePool(n)  q = Add(o, n) }>
  y = Conv(b, w5, b5)
}"""
)


def captured() -> ir.Model:
    weights: Shapes = {
        "w0": (8, 3, 3, 3), "b0": (8,), "w1": (6, 8, 3, 3), "b1": (6,), "w2": (10, 6, 1, 1), "b2": (10,),
        "w3": (10, 8, 1, 1), "b3": (10,), "w4": (5, 10, 1, 1), "b4": (5,),
    }  # fmt: skip
    return build(CAPTURED, weights)


def passed() -> ir.Model:
    weights: Shapes = {
        "w0": (8, 3, 3, 3), "b0": (8,), "w1": (8, 8, 1, 1), "w2": (6, 8, 1, 1), "w3": (5, 8, 1, 1), "b3": (5,),
        "w4": (5, 14, 1, 1),
    }  # fmt: skip
    return build(PASSED, weights)


def nested() -> ir.Model:
    weights: Shapes = {
        "w0": (8, 3, 3, 3), "b0": (8,), "w1": (6, 8, 1, 1), "b1": (6,), "w2": (6, 1, 3, 3), "b2": (6,),
        "w3": (6, 8, 1, 1), "w4": (6, 3, 1, 1), "w5": (5, 6, 1, 1), "b5": (5,),
    }  # fmt: skip
    return build(NESTED, weights)


BRANCHING = {
    "captured": (captured, (3, 8, 8), {(8, 1), (6, 1), (10, 1)}),
    "passed": (passed, (3, 8, 8), {(8, 1), (6, 1)}),
    "nested": (nested, (3, 8, 8), {(8, 1), (6, 1)}),
}
