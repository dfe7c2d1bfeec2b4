"""Transformers and recurrent topologies for the pruning tests, decomposed as exporters write them and fused."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from topologies import build

from onnxedge.api import Array

VIT = """g (float[N,3,8,8] x) => (float[N,5] y) {
  a = Conv<strides=[4,4]>(x, wp, bp)
  b = Reshape(a, flat)
  c = Transpose<perm=[0,2,1]>(b)
  sh = Shape<start=0, end=1>(c)  cs = Concat<axis=0>(sh, tail)
  cls = Expand(token, cs)
  d = Concat<axis=1>(cls, c)
  e = Add(d, position)
  f = LayerNormalization<axis=-1>(e, gamma, beta)
  h0 = MatMul(f, wqkv)  h = Add(h0, bqkv)
  i = Reshape(h, five)
  j = Transpose<perm=[2,0,3,1,4]>(i)
  q0, k0, v0 = Split<axis=0>(j, thirds)
  q = Squeeze(q0, zero)  k1 = Squeeze(k0, zero)  v = Squeeze(v0, zero)
  k = Transpose<perm=[0,1,3,2]>(k1)
  qs = Mul(q, scale)
  s = MatMul(qs, k)
  p = Softmax<axis=-1>(s)
  o = MatMul(p, v)
  o1 = Transpose<perm=[0,2,1,3]>(o)
  o2 = Reshape(o1, joined)
  o3 = MatMul(o2, wo)  o4 = Add(o3, bo)
  r = Add(o4, e)
  t = LayerNormalization<axis=-1>(r, gamma, beta)
  u0 = MatMul(t, wu)  u = Add(u0, bu)
  u1 = Mul(u, half)  u2 = Erf(u)  u3 = Mul(u1, u2)
  w = MatMul(u3, wd)
  z = Add(w, r)
  first = Gather<axis=1>(z, index)
  y = Gemm(first, wh, bh)
}"""

SWIN = """g (float[N,4,4,16] x) => (float[N,2,2,12] y) {
  a0 = Slice(x, one, last, axis1)  a1 = Slice(x, begin, one, axis1)  a = Concat<axis=1>(a0, a1)
  b = Reshape(a, windows)
  c = Transpose<perm=[0,1,3,2,4,5]>(b)
  d = Reshape(c, rows)
  h0 = MatMul(d, wqkv)  h = Add(h0, bqkv)
  i = Reshape(h, five)
  j = Transpose<perm=[2,0,3,1,4]>(i)
  q = Gather<axis=0>(j, i0)  k1 = Gather<axis=0>(j, i1)  v = Gather<axis=0>(j, i2)
  k = Transpose<perm=[0,1,3,2]>(k1)
  s0 = MatMul(q, k)
  s = Add(s0, relative)
  p = Softmax<axis=-1>(s)
  o = MatMul(p, v)
  o1 = Transpose<perm=[0,2,1,3]>(o)
  o2 = Reshape(o1, joined)
  o3 = MatMul(o2, wo)
  r = Reshape(o3, unwindows)
  r1 = Transpose<perm=[0,1,3,2,4,5]>(r)
  r2 = Reshape(r1, grid)
  r3 = Add(r2, x)
  u0 = MatMul(r3, wu)  u = Add(u0, bu)  u1 = Relu(u)
  e0 = Slice(u1, begin2, last2, axes, steps)  e1 = Slice(u1, odd, last2, axes, steps)
  e = Concat<axis=-1>(e0, e1)
  y = MatMul(e, wd)
}"""

BERT = """g (float[N,6,16] x) => (float[N,6,16] y) {
  total = ReduceSum<keepdims=0>(x, axis2)
  zero = Constant<value_float=0.0>()
  keep = Greater(total, zero)
  mask = Unsqueeze(keep, ones)
  q0 = MatMul(x, wq)  q1 = Add(bq, q0)
  k0 = MatMul(x, wk)  k1 = Add(bk, k0)
  v0 = MatMul(x, wv)  v1 = Add(bv, v0)
  sh = Shape(x)
  n = Slice(sh, i0, i2)
  heads = Concat<axis=0>(n, four, any)
  q2 = Reshape(q1, heads)  k2 = Reshape(k1, heads)  v2 = Reshape(v1, heads)
  q = Transpose<perm=[0,2,1,3]>(q2)  k = Transpose<perm=[0,2,3,1]>(k2)  v = Transpose<perm=[0,2,1,3]>(v2)
  s0 = MatMul(q, k)
  s1 = Div(s0, two)
  s = Where(mask, s1, low)
  p = Softmax<axis=-1>(s)
  o = MatMul(p, v)
  o1 = Transpose<perm=[0,2,1,3]>(o)
  flat = Concat<axis=0>(n, any)
  o2 = Reshape(o1, joined)
  a0 = MatMul(o2, wo)  a1 = Add(a0, bo)  a = Add(a1, x)
  b = LayerNormalization<axis=-1>(a, gamma, beta)
  u0 = MatMul(b, wu)  u1 = Add(u0, bu)  u = Gelu(u1)
  d = MatMul(u, wd)
  y = Add(d, b)
}"""

GPT2 = """g (float[N,6] x) => (float[N,6,20] y) {
  x0 = Abs(x)  ids = Cast<to=7>(x0)
  e = Gather(table, ids)
  f = LayerNormalization<axis=-1>(e, gamma, beta)
  rows = Reshape(f, two)
  g0 = Gemm(rows, wqkv, bqkv)
  sh = Shape(x)  full = Concat<axis=0>(sh, width)
  h = Reshape(g0, full)
  q0, k0, v0 = Split<axis=2>(h, thirds)
  heads = Concat<axis=0>(sh, four, four)
  q1 = Reshape(q0, heads)  k1 = Reshape(k0, heads)  v1 = Reshape(v0, heads)
  q = Transpose<perm=[0,2,1,3]>(q1)  k = Transpose<perm=[0,2,3,1]>(k1)  v = Transpose<perm=[0,2,1,3]>(v1)
  s0 = MatMul(q, k)  s = Where(causal, s0, low)
  p = Softmax<axis=-1>(s)
  o = MatMul(p, v)
  o1 = Transpose<perm=[0,2,1,3]>(o)
  o2 = Reshape(o1, joined)
  o3 = Gemm(o2, wo, bo)
  back = Concat<axis=0>(sh, width1)  o4 = Reshape(o3, back)
  r = Add(o4, e)
  r2 = Reshape(r, two)
  u0 = Gemm(r2, wu, bu)
  u1 = Tanh(u0)  u2 = Mul(u0, u1)
  d0 = Gemm(u2, wd, bd)
  d = Reshape(d0, back)
  z = Add(d, r)
  head = Transpose<perm=[1,0]>(table)
  y = MatMul(z, head)
}"""

LLAMA = """g (float[N,6,16] x) => (float[N,6,16] y) {
  two = Constant<value_float=2.0>()
  m0 = Pow(x, two)  m1 = ReduceMean(m0, last)  m2 = Sqrt(m1)  m3 = Div(x, m2)  m = Mul(m3, gamma)
  q0 = MatMul(m, wq)  k0 = MatMul(m, wk)  v0 = MatMul(m, wv)
  q1 = Reshape(q0, qheads)  k1 = Reshape(k0, kheads)  v1 = Reshape(v0, kheads)
  q2 = Transpose<perm=[0,2,1,3]>(q1)  k2 = Transpose<perm=[0,2,1,3]>(k1)  v = Transpose<perm=[0,2,1,3]>(v1)
  total = ReduceMean(x, last)
  angle = Add(total, freq)  c0 = Cos(angle)  c = Unsqueeze(c0, i1)  s0 = Sin(angle)  s = Unsqueeze(s0, i1)
  qa = Slice(q2, i0, i2, last)  qb = Slice(q2, i2, i9, last)  qn = Neg(qb)  qr = Concat<axis=-1>(qn, qa)
  qx = Mul(q2, c)  qy = Mul(qr, s)  q = Add(qx, qy)
  ka, kb = Split<axis=-1, num_outputs=2>(k2)  kn = Neg(kb)  kr = Concat<axis=-1>(kn, ka)
  kx = Mul(k2, c)  ky = Mul(kr, s)  k3 = Add(kx, ky)
  k4 = Unsqueeze(k3, i2)  k5 = Expand(k4, repeat)  k6 = Reshape(k5, every)
  v4 = Unsqueeze(v, i2)  v5 = Expand(v4, repeat)  v6 = Reshape(v5, every)
  k = Transpose<perm=[0,1,3,2]>(k6)
  t = MatMul(q, k)
  p = Softmax<axis=-1>(t)
  o = MatMul(p, v6)
  o1 = Transpose<perm=[0,2,1,3]>(o)
  o2 = Reshape(o1, joined)
  o3 = MatMul(o2, wo)
  r = Add(x, o3)
  g0 = MatMul(r, wg)  g1 = Sigmoid(g0)  g2 = Mul(g0, g1)
  u0 = MatMul(r, wu)  h = Mul(g2, u0)
  d = MatMul(h, wd)
  y = Add(d, r)
}"""

FUSED = """g (float[N,6,16] x) => (float[N,6,16] y) {
  q0 = MatMul(x, wq)
  k = MatMul(x, wk)
  v = MatMul(x, wv)
  a = com.microsoft.MultiHeadAttention<num_heads=4>(q0, k, v, bias)
  b0 = MatMul(a, wo)
  b = Add(b0, x)
  y = Relu(b)
}"""

GROUPED = """g (float[N,6,32] x) => (float[N,6,32] y) {
  q = MatMul(x, wq)
  k = MatMul(x, wk)
  v = MatMul(x, wv)
  s = Shape<start=0, end=1>(x)
  lengths = Expand(five, s)
  a = com.microsoft.GroupQueryAttention<num_heads=4, kv_num_heads=2>(q, k, v, , , lengths, six)
  b = MatMul(a, wo)
  y = Add(b, x)
}"""

STANDARD = """g (float[N,6,16] x) => (float[N,6,16] y) {
  q0 = MatMul(x, wq)
  sh = Shape<start=0, end=1>(x)  sh2 = Concat<axis=0>(sh, six)  at = Expand(places, sh2)
  q = RotaryEmbedding<num_heads=4>(q0, cosine, sine, at)
  k = MatMul(x, wk)
  v = MatMul(x, wv)
  a = Attention<q_num_heads=4, kv_num_heads=2>(q, k, v, mask)
  b = MatMul(a, wo)
  y = Add(b, x)
}"""

RECURRENT = """g (float[N,3,4,6] x) => (float[N,6,5] y, float[1,N,6] z) {
  a = Conv(x, w0, b0)
  b = Relu(a)
  c = Transpose<perm=[3,0,1,2]>(b)
  d = Reshape(c, features)
  e, h, i = LSTM<hidden_size=6, direction="bidirectional">(d, wl, rl, bl)
  j = Transpose<perm=[0,2,1,3]>(e)
  k = Reshape(j, both)
  l, m = GRU<hidden_size=8, linear_before_reset=1>(k, wg, rg, bg)
  n = Squeeze(l, one)
  o = Transpose<perm=[1,0,2]>(n)
  y = MatMul(o, w1)
  q, z = RNN<hidden_size=6>(k, wr, rr)
}"""

EINSUM = """g (float[N,6,16] x) => (float[N,6,16] y) {
  q = Einsum<equation="btd,dhk->bthk">(x, wq)
  k = Einsum<equation="btd,dhk->bthk">(x, wk)
  v = Einsum<equation="btd,dhk->bthk">(x, wv)
  s = Einsum<equation="bthk,bshk->bhts">(q, k)
  p = Softmax<axis=-1>(s)
  o = Einsum<equation="bhts,bshk->bthk">(p, v)
  y = Einsum<equation="bthk,hkd->btd">(o, wo)
}"""

QKV = {"wq": (16, 16), "wk": (16, 16), "wv": (16, 16), "wo": (16, 16)}
NORM = {"gamma": (16,), "beta": (16,)}
MLP = {"wu": (16, 32), "bu": (32,), "wd": (32, 16)}
PACKED = {"wqkv": (16, 48), "bqkv": (48,), "wo": (16, 16)}
THIRDS = {"thirds": [1, 1, 1], "zero": [0]}


def number(value: float) -> Array:
    return np.array(value, np.float32)


def vit() -> ir.Model:
    weights = {"wp": (16, 3, 4, 4), "bp": (16,), "token": (1, 1, 16), "position": (1, 5, 16), "bo": (16,)}
    constants = {"flat": [0, 16, -1], "five": [0, 5, 3, 4, 4], "joined": [0, 5, 16], "tail": [1, 16]} | THIRDS
    constants |= {"index": np.array(0), "half": number(0.5), "scale": number(0.5)}
    return build(VIT, weights | NORM | PACKED | MLP | {"wh": (16, 5), "bh": (5,)}, constants)


def swin() -> ir.Model:
    constants = {
        "one": [1], "last": [99], "axis1": [1], "begin": [0], "windows": [0, 2, 2, 2, 2, 16], "rows": [-1, 4, 16],
        "five": [0, 4, 3, 4, 4], "i0": np.array(0), "i1": np.array(1), "i2": np.array(2), "joined": [0, 4, 16],
        "unwindows": [-1, 2, 2, 2, 2, 16], "grid": [-1, 4, 4, 16], "begin2": [0, 0], "odd": [1, 1],
        "last2": [99, 99], "axes": [1, 2], "steps": [2, 2],
    }  # fmt: skip
    weights = PACKED | {"relative": (1, 4, 4, 4), "wu": (16, 10), "bu": (10,), "wd": (20, 12)}
    return build(SWIN, weights, constants)


def bert() -> ir.Model:
    constants = {"axis2": [2], "ones": [1, 2], "i0": [0], "i2": [2], "four": [4], "any": [-1], "joined": [0, 0, 16]}
    constants |= {"two": number(2), "low": number(-1e4)}
    return build(BERT, QKV | {"bq": (16,), "bk": (16,), "bv": (16,), "bo": (16,)} | NORM | MLP, constants, opset=20)


def gpt2() -> ir.Model:
    constants = {
        "two": [-1, 16], "width": [48], "thirds": [16, 16, 16], "four": [4], "joined": [-1, 16], "width1": [16],
        "low": number(-1e4), "causal": np.tril(np.ones((6, 6), bool)),
    }  # fmt: skip
    weights = {"table": (20, 16), "bo": (16,), "bd": (16,)} | NORM | PACKED | MLP
    return build(GPT2, weights, constants)


def llama() -> ir.Model:
    constants = {
        "last": [-1], "qheads": [0, 0, 4, 4], "kheads": [0, 0, 2, 4], "i0": [0], "i1": [1], "i2": [2], "i9": [99],
        "repeat": [1, 1, 2, 1, 1], "every": [0, 4, 6, 4], "joined": [0, 0, 16],
    }  # fmt: skip
    weights = QKV | {"wk": (16, 8), "wv": (16, 8), "gamma": (16,), "freq": (4,), "wg": (16, 24), "wu": (16, 24)}
    return build(LLAMA, weights | {"wd": (24, 16)}, constants, opset=18)


def fused() -> ir.Model:
    return build(FUSED, QKV | {"bias": (48,)}, domains=', "com.microsoft" : 1')


def packed() -> ir.Model:
    text = "g (float[N,6,16] x) => (float[N,6,16] y) { a = com.microsoft.Attention<num_heads=4>(x, wqkv, bqkv) "
    return build(text + "b = MatMul(a, wo) y = Add(b, x) }", PACKED, domains=', "com.microsoft" : 1')


def grouped() -> ir.Model:
    constants = {"five": np.array([5], np.int32), "six": np.array(6, np.int32)}
    weights = {"wq": (32, 32), "wk": (32, 16), "wv": (32, 16), "wo": (32, 32)}
    return build(GROUPED, weights, constants, domains=', "com.microsoft" : 1')


def standard() -> ir.Model:
    """Attention of opset 23 behind a rotary embedding, with a bias for each head."""
    angles = np.arange(12, dtype=np.float32).reshape(6, 2)
    constants = {"cosine": np.cos(angles), "sine": np.sin(angles), "six": [6], "places": [0, 1, 2, 3, 4, 5]}
    return build(STANDARD, QKV | {"wk": (16, 8), "wv": (16, 8), "mask": (1, 4, 6, 6)}, constants, opset=23)


def recurrent() -> ir.Model:
    weights = {
        "w0": (4, 3, 1, 1), "b0": (4,), "wl": (2, 24, 16), "rl": (2, 24, 6), "bl": (2, 48), "wg": (1, 24, 12),
        "rg": (1, 24, 8), "bg": (1, 48), "w1": (8, 5), "wr": (1, 6, 12), "rr": (1, 6, 6),
    }  # fmt: skip
    return build(RECURRENT, weights, {"features": [0, 0, 16], "both": [0, 0, 12], "one": [1]})


def einsum() -> ir.Model:
    weights = {"wq": (16, 4, 4), "wk": (16, 4, 4), "wv": (16, 4, 4), "wo": (4, 4, 16)}
    return build(EINSUM, weights)


SEQUENCES = {
    "vit": (vit, (3, 8, 8), {(4, 12), (32, 1)}),
    "swin": (swin, (4, 4, 16), {(4, 12), (10, 1)}),
    "bert": (bert, (6, 16), {(4, 4), (32, 1)}),
    "gpt2": (gpt2, (6,), {(4, 12), (32, 1)}),
    "llama": (llama, (6, 16), {(2, 8), (24, 1)}),
    "fused": (fused, (6, 16), {(4, 4)}),
    "packed": (packed, (6, 16), {(4, 12)}),
    "grouped": (grouped, (6, 32), {(2, 16)}),
    "standard": (standard, (6, 16), {(2, 8)}),
    "recurrent": (recurrent, (3, 4, 6), {(4, 1), (6, 4), (8, 3)}),
    "einsum": (einsum, (6, 16), {(4, 4)}),
}
