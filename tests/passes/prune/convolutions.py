"""Convolutional topologies for the pruning tests: the text of each graph, its weights and constants."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from topologies import Shapes, build

from onnxedge.api import Array

EFFICIENT = """g (float[N,3,8,8] x) => (float[N,5] y) {
  a = Conv<pads=[1,1,1,1]>(x, w0, b0)
  a1 = Sigmoid(a)  b = Mul(a, a1)
  c = Conv(b, w1, b1)
  c1 = Sigmoid(c)  d = Mul(c, c1)
  e = Conv<pads=[1,1,1,1], group=16>(d, w2, b2)
  e1 = Sigmoid(e)  f = Mul(e, e1)
  p = ReduceMean<axes=[2,3], keepdims=1>(f)
  q = Conv(p, w3, b3)
  q1 = Sigmoid(q)  r = Mul(q, q1)
  s = Conv(r, w4, b4)
  t = Sigmoid(s)
  u = Mul(t, f)
  v = Conv(u, w5, b5)
  j = Add(v, b)
  k = GlobalAveragePool(j)
  l = Flatten(k)
  y = Gemm<transB=1>(l, w6, b6)
}"""

PLAIN = """g (float[N,3,16,16] x) => (float[N,5] y) {
  a = Conv<pads=[1,1,1,1]>(x, w0, b0)
  b = BatchNormalization(a, gamma, beta, mean, var)
  c = Relu(b)
  d = MaxPool<kernel_shape=[2,2], strides=[2,2]>(c)
  e = Conv<pads=[1,1,1,1], strides=[2,2], dilations=[1,1]>(d, w1, b1)
  f = Elu(e)
  h = Conv<kernel_shape=[3,3], auto_pad="SAME_UPPER", strides=[2,2]>(f, w2)
  i = Softplus(h)
  j = Reshape(i, flat)
  k0 = Gemm(j, w3, b3)
  k = Relu(k0)
  y = Gemm<transB=1>(k, w4, b4)
}"""

BOTTLENECK = """g (float[N,3,8,8] x) => (float[N,5] y) {
  s0 = Conv<pads=[1,1,1,1]>(x, w0, b0)  s = Relu(s0)
  a0 = Conv(s, w1, b1)  a = Relu(a0)
  b0_ = Conv<pads=[1,1,1,1], strides=[2,2]>(a, w2, b2)  b = Relu(b0_)
  c = Conv(b, w3, b3)
  p = Conv<strides=[2,2]>(s, w4, b4)
  r0 = Add(c, p)  r = Relu(r0)
  d0 = Conv(r, w5, b5)  d = Relu(d0)
  e0 = Conv<pads=[1,1,1,1]>(d, w6, b6)  e = Relu(e0)
  f = Conv(e, w7, b7)
  t0 = Add(f, r)  t = Relu(t0)
  m = ReduceMean<axes=[2,3], keepdims=0>(t)
  y = MatMul(m, w8)
}"""

MOBILE_V1 = """g (float[N,3,8,8] x) => (float[N,5,1,1] y) {
  low = Constant<value_float=0.0>()  high = Constant<value_float=6.0>()
  a0 = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w0)
  a1 = BatchNormalization(a0, gamma, beta, mean, var)  a = Clip(a1, low, high)
  h0 = Conv<pads=[1,1,1,1], group=8>(a, w1)
  h1 = BatchNormalization(h0, gamma, beta, mean, var)  b = Clip(h1, low, high)
  c0 = Conv(b, w2, b2)  c = Clip(c0, low, high)
  d0 = Conv<pads=[1,1,1,1], strides=[2,2], group=12>(c, w3, b3)  d = Clip(d0, low, high)
  e0 = Conv(d, w4, b4)  e = Clip(e0, low, high)
  f = AveragePool<kernel_shape=[2,2]>(e)
  y = Conv(f, w5, b5)
}"""

INCEPTION = """g (float[N,3,8,8] x) => (float[N,5,8,8] y) {
  s = Conv(x, w0, b0)
  a = Relu(s)
  b = Conv(a, w1, b1)
  c0 = Conv(a, w2, b2)  c1 = Relu(c0)  c = Conv<pads=[1,1,1,1]>(c1, w3, b3)
  d0 = Conv(a, w4, b4)  d1 = Relu(d0)  d = Conv<pads=[2,2,2,2]>(d1, w5, b5)
  e0 = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(a)  e = Conv(e0, w6, b6)
  f = Concat<axis=1>(b, c, d, e)
  h = Relu(f)
  y = Conv(h, w7, b7)
}"""

SHUFFLE_V2 = """g (float[N,3,8,8] x) => (float[N,5,8,8] y) {
  s = Conv(x, w0, b0)
  a = Relu(s)
  b, c = Split<axis=1>(a, halves)
  d0 = Conv(c, w1, b1)  d = Relu(d0)
  e = Conv<pads=[1,1,1,1], group=8>(d, w2, b2)
  f0 = Conv(e, w3, b3)  f = Relu(f0)
  h = Concat<axis=1>(b, f)
  i = Reshape(h, two)
  j = Transpose<perm=[0,2,1,3,4]>(i)
  k = Reshape(j, one)
  y = Conv(k, w4, b4)
}"""

GHOST = """g (float[N,3,8,8] x) => (float[N,5,8,8] y) {
  a0 = Conv(x, w0, b0)  a = Relu(a0)
  b0_ = Conv<pads=[1,1,1,1], group=8>(a, w1, b1)  b = Relu(b0_)
  c = Concat<axis=1>(a, b)
  d0 = Conv(c, w2, b2)  d = Relu(d0)
  e = Conv<pads=[1,1,1,1], group=6>(d, w3, b3)
  f = Concat<axis=1>(d, e)
  h = Slice(f, first, last, axis)
  y = Conv(h, w4, b4)
}"""

YOLO = """g (float[N,3,8,8] x) => (float[N,5,8,8] y) {
  a = Conv(x, w0, b0)
  a1 = Sigmoid(a)  b = Mul(a, a1)
  c, d = Split<axis=1>(b, halves)
  e = Conv<pads=[1,1,1,1]>(d, w1, b1)  e1 = Relu(e)
  f = Conv<pads=[1,1,1,1]>(e1, w2, b2)  f1 = Relu(f)
  h = Add(d, f1)
  i = Concat<axis=1>(c, d, h)
  j0 = Conv(i, w3, b3)  j = Relu(j0)
  k0 = Conv(j, w4, b4)  k1 = Conv(j, w5, b5)
  k2 = Conv<pads=[1,1,1,1]>(k0, w6, b6)
  k = Concat<axis=1>(k2, k1)
  l0 = Conv(k, w7, b7)  l = Relu(l0)
  m1 = MaxPool<kernel_shape=[5,5], pads=[2,2,2,2]>(l)
  m2 = MaxPool<kernel_shape=[5,5], pads=[2,2,2,2]>(m1)
  m = Concat<axis=1>(l, m1, m2)
  y = Conv(m, w8, b8)
}"""

PYRAMID = """g (float[N,3,8,8] x) => (float[N,2,8,8] y, float[N,2,4,4] z) {
  a0 = Conv<pads=[1,1,1,1]>(x, w0, b0)  a = Relu(a0)
  c0 = Conv<pads=[1,1,1,1], strides=[2,2]>(a, w1, b1)  c = Relu(c0)
  t = Conv(c, w2, b2)
  l = Conv(a, w3, b3)
  u = Resize<mode="nearest">(t, , scales)
  p = Add(u, l)
  q = Conv<pads=[1,1,1,1]>(p, w4, b4)
  d0 = Conv<pads=[1,1,1,1], strides=[2,2]>(q, w5, b5)  d = Relu(d0)
  e = Concat<axis=1>(d, t)
  f0 = Conv(e, w6, b6)  f = Relu(f0)
  y = Conv(q, w7, b7)
  z = Conv(f, w8, b8)
}"""

CONVNEXT = """g (float[N,3,8,8] x) => (float[N,5,8,8] y) {
  s = Conv(x, w0, b0)
  a = Conv<pads=[3,3,3,3], group=8>(s, w1, b1)
  b = Transpose<perm=[0,2,3,1]>(a)
  c = LayerNormalization<axis=-1>(b, gamma, beta)
  d0 = MatMul(c, w2)  d1 = Add(d0, b2)
  e = Mul(d1, half)  e1 = Erf(d1)  e2 = Mul(e, e1)
  f0 = MatMul(e2, w3)  f = Add(f0, b3)
  h = Mul(f, layer)
  i = Transpose<perm=[0,3,1,2]>(h)
  j = Add(i, s)
  y = Conv(j, w4, b4)
}"""

GROUP_NORM = """g (float[N,3,8,8] x) => (float[N,5,8,8] y) {
  a = Conv(x, w0, b0)
  b = Reshape(a, groups)
  c = InstanceNormalization(b, ones, zeros)
  d = Reshape(c, whole)
  e = Mul(d, gamma)
  f = Add(e, beta)
  h = Relu(f)
  i = Conv(h, w1, b1)
  j = GroupNormalization<num_groups=3>(i, scale, shift)
  k = Relu(j)
  y = Conv(k, w2, b2)
}"""

NORMS = """g (float[N,3,8,8] x) => (float[N,5,6,6] y) {
  a = Conv(x, w0)
  b = InstanceNormalization(a, gamma, beta)
  c = PRelu(b, slope)
  d = LpPool<kernel_shape=[3,3], p=2>(c)
  y = Conv(d, w1)
}"""

QUANTIZED = """g (float[N,3,8,8] x) => (float[N,5,8,8] y) {
  xq = QuantizeLinear(x, s, z)  xd = DequantizeLinear(xq, s, z)
  w0d = DequantizeLinear<axis=0>(w0q, s0)
  a = Conv<pads=[1,1,1,1]>(xd, w0d, b0)
  r = Relu(a)
  rq = QuantizeLinear(r, s, z)  rd = DequantizeLinear(rq, s, z)
  w1d = DequantizeLinear<axis=0>(w1q, s1)
  b = Conv<pads=[1,1,1,1]>(rd, w1d, b1)
  c = Relu(b)
  cq = QuantizeLinear<axis=1>(c, sc, zc)  cd = DequantizeLinear<axis=1>(cq, sc, zc)
  y = Conv(cd, w2, b2)
}"""


def _pairs(sizes: list[tuple[int, ...]]) -> Shapes:
    """Return weights ``w0, w1, ...`` of the given shapes, with a bias for each convolution and matrix."""
    weights: Shapes = {}
    for number, shape in enumerate(sizes):
        weights |= {f"w{number}": shape, f"b{number}": (shape[0] if len(shape) == 4 else shape[-1],)}
    return weights


def efficient() -> ir.Model:
    sizes = [(8, 3, 3, 3), (16, 8, 1, 1), (16, 1, 3, 3), (4, 16, 1, 1), (16, 4, 1, 1), (8, 16, 1, 1)]
    return build(EFFICIENT, {**_pairs(sizes), "w6": (5, 8), "b6": (5,)})


def plain() -> ir.Model:
    weights = _pairs([(8, 3, 3, 3), (6, 8, 3, 3), (4, 6, 3, 3), (16, 10), (5, 10)]) | {"b4": (5,)}
    return build(PLAIN, weights | dict.fromkeys(("gamma", "beta", "mean", "var"), (8,)), {"flat": [0, -1]})


def bottleneck() -> ir.Model:
    sizes = [(8, 3, 3, 3), (4, 8, 1, 1), (4, 4, 3, 3), (16, 4, 1, 1), (16, 8, 1, 1), (6, 16, 1, 1), (6, 6, 3, 3)]
    return build(BOTTLENECK, {**_pairs([*sizes, (16, 6, 1, 1)]), "w8": (16, 5)})


def mobile_v1() -> ir.Model:
    sizes = [(8, 3, 3, 3), (8, 1, 3, 3), (12, 8, 1, 1), (12, 1, 3, 3), (10, 12, 1, 1), (5, 10, 1, 1)]
    return build(MOBILE_V1, _pairs(sizes) | dict.fromkeys(("gamma", "beta", "mean", "var"), (8,)))


def inception() -> ir.Model:
    sizes = [(8, 3), (4, 8), (6, 8), (8, 6, 3), (4, 8), (6, 4, 5), (4, 8), (5, 22)]
    return build(INCEPTION, _pairs([(o, i, *(k or [1]), *(k or [1])) for o, i, *k in sizes]))


def shuffle_v2() -> ir.Model:
    sizes = [(16, 3, 1, 1), (8, 8, 1, 1), (8, 1, 3, 3), (8, 8, 1, 1), (5, 16, 1, 1)]
    return build(SHUFFLE_V2, _pairs(sizes), {"halves": [8, 8], "two": [0, 2, 8, 8, 8], "one": [0, 16, 8, 8]})


def ghost() -> ir.Model:
    sizes = [(8, 3, 1, 1), (8, 1, 3, 3), (6, 16, 1, 1), (6, 1, 3, 3), (5, 10, 1, 1)]
    return build(GHOST, _pairs(sizes), {"first": [0], "last": [10], "axis": [1]})


def yolo() -> ir.Model:
    sizes = [
        *((16, 3, 1, 1), (6, 8, 3, 3), (8, 6, 3, 3), (12, 24, 1, 1), (6, 12, 1, 1), (4, 12, 1, 1), (6, 6, 3, 3)),
        *((8, 10, 1, 1), (5, 24, 1, 1)),
    ]
    return build(YOLO, _pairs(sizes), {"halves": [8, 8]})


def pyramid() -> ir.Model:
    sizes = [(8, 3, 3, 3), (12, 8, 3, 3), (6, 12, 1, 1), (6, 8, 1, 1), (6, 6, 3, 3), (4, 6, 3, 3), (8, 10, 1, 1)]
    scales = np.array([1, 1, 2, 2], np.float32)
    return build(PYRAMID, _pairs([*sizes, (2, 6, 1, 1), (2, 8, 1, 1)]), {"scales": scales})


def convnext() -> ir.Model:
    weights = {**_pairs([(8, 3, 1, 1), (8, 1, 7, 7), (8, 32), (32, 8), (5, 8, 1, 1)]), "gamma": (8,), "beta": (8,)}
    return build(CONVNEXT, weights | {"layer": (8,)}, {"half": np.float32(0.5)})


def group_norm() -> ir.Model:
    """GroupNormalization as PyTorch exports it (four groups of two), then as an operator (three of four)."""
    ones = {"ones": np.ones(4, np.float32), "zeros": np.zeros(4, np.float32)}
    weights = _pairs([(8, 3, 1, 1), (12, 8, 1, 1), (5, 12, 1, 1)]) | {"gamma": (8, 1, 1), "beta": (8, 1, 1)}
    weights |= {"scale": (12,), "shift": (12,)}
    return build(GROUP_NORM, weights, {**ones, "groups": [0, 4, -1], "whole": [0, 8, 8, 8]}, opset=21)


def norms() -> ir.Model:
    weights = {"w0": (8, 3, 1, 1), "w1": (5, 8, 1, 1), "gamma": (8,), "beta": (8,), "slope": (8, 1, 1)}
    return build(NORMS, weights)


def quantized() -> ir.Model:
    """Q/DQ pairs on activations, one per channel, and weights that are stored as int8."""
    rng = np.random.default_rng(3)

    def weight(*shape: int) -> Array:
        return (rng.integers(20, 127, shape) * rng.choice([-1, 1], shape)).astype(np.int8)

    constants: dict[str, list[int] | Array] = {
        "s": np.float32(0.05), "z": np.int8(0), "w0q": weight(8, 3, 3, 3), "w1q": weight(12, 8, 3, 3),
        "s0": rng.uniform(0.002, 0.004, 8).astype(np.float32), "s1": rng.uniform(0.001, 0.002, 12).astype(np.float32),
        "sc": rng.uniform(0.04, 0.06, 12).astype(np.float32), "zc": np.zeros(12, np.int8),
    }  # fmt: skip
    return build(QUANTIZED, {"b0": (8,), "b1": (12,), "w2": (5, 12, 1, 1), "b2": (5,)}, constants)


CONVOLUTIONS = {
    "plain": (plain, (3, 16, 16), {(8, 1), (6, 1), (4, 1), (10, 1)}),
    "bottleneck": (bottleneck, (3, 8, 8), {(8, 1), (4, 1), (16, 1), (6, 1)}),
    "mobile_v1": (mobile_v1, (3, 8, 8), {(8, 1), (12, 1), (10, 1)}),
    "efficient": (efficient, (3, 8, 8), {(8, 1), (16, 1), (4, 1)}),
    "inception": (inception, (3, 8, 8), {(8, 1), (4, 1), (6, 1)}),
    "shuffle_v2": (shuffle_v2, (3, 8, 8), {(8, 1)}),
    "ghost": (ghost, (3, 8, 8), {(8, 1), (4, 1), (2, 1)}),
    "yolo": (yolo, (3, 8, 8), {(8, 1), (6, 1), (12, 1), (4, 1)}),
    "pyramid": (pyramid, (3, 8, 8), {(8, 1), (12, 1), (6, 1), (4, 1)}),
    "convnext": (convnext, (3, 8, 8), {(32, 1)}),
    "group_norm": (group_norm, (3, 8, 8), {(4, 2), (3, 4)}),
    "norms": (norms, (3, 8, 8), {(8, 1)}),
    "quantized": (quantized, (3, 8, 8), {(8, 1), (12, 1)}),
}
