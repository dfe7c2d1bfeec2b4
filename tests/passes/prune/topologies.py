"""Small graphs for the pruning tests, in ONNX text with random live weights."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper, parser

from onnxedge.api import Array

Shapes = dict[str, tuple[int, ...]]


def build(
    text: str,
    weights: Shapes,
    constants: dict[str, list[int] | Array] | None = None,
    *,
    opset: int = 17,
    overridable: bool = False,
    domains: str = "",
) -> ir.Model:
    """Return a model from the text of a graph and the shapes of its weights, which are random and far from zero.

    Args:
        text: graph in ONNX text syntax.
        weights: shapes by name.
        constants: int64 lists or arrays by name.
        opset: of the default domain.
        overridable: make the weights graph inputs too.
        domains: further opset imports, ``, "domain" : 1``.
    """
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}{domains}]>\n{text}')
    rng = np.random.default_rng(7)
    for name, shape in weights.items():
        scale = 1.0 / np.sqrt(max(np.prod(shape[1:]), 1))
        array = (rng.uniform(0.5, 1.5, shape) * rng.choice([-1, 1], shape) * scale).astype(np.float32)
        if name.startswith("var"):
            array = np.abs(array) + 0.1
        model.graph.initializer.append(numpy_helper.from_array(array, name))
        if overridable:
            model.graph.input.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
    for name, values in (constants or {}).items():
        array = np.array(values, np.int64) if isinstance(values, list) else values
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return ir.from_proto(model)


def images(shape: tuple[int, ...], count: int = 48, seed: int = 0) -> Array:
    """Return smooth random samples float32 [count, *shape]: neighbours are alike, as in pictures."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((count, *shape)).astype(np.float32)
    for axis in range(2, noise.ndim):
        noise = noise + np.roll(noise, 1, axis)
    return noise


RESIDUAL = """g (float[N,3,8,8] x) => (float[N,5] y) {
  a = Conv<pads=[1,1,1,1]>(x, w0, b0)
  s0 = Relu(a)
  c = Conv<pads=[1,1,1,1]>(s0, w1, b1)
  d = Relu(c)
  e = Conv<pads=[1,1,1,1]>(d, w2, b2)
  f = Add(e, s0)
  s1 = Relu(f)
  h = Conv<pads=[1,1,1,1], strides=[2,2]>(s1, w3, b3)
  i = BatchNormalization(h, gamma, beta, mean, var)
  j = Relu(i)
  k = Conv<pads=[1,1,1,1]>(j, w4, b4)
  l = Conv<strides=[2,2]>(s1, w5)
  m = Add(k, l)
  s2 = Relu(m)
  p = GlobalAveragePool(s2)
  q = Flatten(p)
  y = Gemm<transB=1>(q, w6, b6)
}"""
RESIDUAL_WEIGHTS: Shapes = {
    "w0": (8, 3, 3, 3), "b0": (8,), "w1": (12, 8, 3, 3), "b1": (12,), "w2": (8, 12, 3, 3), "b2": (8,),
    "w3": (16, 8, 3, 3), "b3": (16,), "gamma": (16,), "beta": (16,), "mean": (16,), "var": (16,),
    "w4": (16, 16, 3, 3), "b4": (16,), "w5": (16, 8, 1, 1), "w6": (5, 16), "b6": (5,),
}  # fmt: skip

ZERO_PAD = """g (float[N,3,8,8] x) => (float[N,5] y) {
  a = Conv<pads=[1,1,1,1]>(x, w0, b0)
  s0 = Relu(a)
  c = Conv<pads=[1,1,1,1], strides=[2,2]>(s0, w1, b1)
  d = Relu(c)
  e = Conv<pads=[1,1,1,1]>(d, w2, b2)
  t = Slice(s0, starts, ends, axes, steps)
  u = Pad(t, pads)
  f = Add(e, u)
  s1 = Relu(f)
  q = Flatten(s1)
  y = Gemm<transB=1>(q, w6, b6)
}"""
ZERO_PAD_WEIGHTS: Shapes = {
    "w0": (8, 3, 3, 3), "b0": (8,), "w1": (16, 8, 3, 3), "b1": (16,), "w2": (16, 16, 3, 3), "b2": (16,),
    "w6": (5, 256), "b6": (5,),
}  # fmt: skip

DENSE = """g (float[N,3,8,8] x) => (float[N,5,8,8] y) {
  a = Conv<pads=[1,1,1,1]>(x, w0, b0)
  b = Relu(a)
  c = Conv<pads=[1,1,1,1]>(b, w1, b1)
  d = Relu(c)
  e = Concat<axis=1>(b, d)
  f = Conv(e, w2, b2)
  h = Sigmoid(f)
  i = Concat<axis=1>(e, h, x)
  y = Conv(i, w3, b3)
}"""
DENSE_WEIGHTS: Shapes = {
    "w0": (8, 3, 3, 3), "b0": (8,), "w1": (6, 8, 3, 3), "b1": (6,), "w2": (10, 14, 1, 1), "b2": (10,),
    "w3": (5, 27, 1, 1), "b3": (5,),
}  # fmt: skip

MOBILE = """g (float[N,3,8,8] x) => (float[N,5] y) {
  a = Conv<pads=[1,1,1,1]>(x, w0, b0)
  b = HardSwish(a)
  c = Conv(b, w1, b1)
  d = HardSwish(c)
  e = Conv<pads=[1,1,1,1], group=24>(d, w2, b2)
  f = HardSwish(e)
  g1 = GlobalAveragePool(f)
  g2 = Conv(g1, w3, b3)
  g3 = Relu(g2)
  g4 = Conv(g3, w4, b4)
  g5 = HardSigmoid(g4)
  h = Mul(f, g5)
  i = Conv(h, w5, b5)
  j = Add(i, b)
  k = ReduceMean<axes=[2,3], keepdims=0>(j)
  y = Gemm<transB=1>(k, w6, b6)
}"""
MOBILE_WEIGHTS: Shapes = {
    "w0": (8, 3, 3, 3), "b0": (8,), "w1": (24, 8, 1, 1), "b1": (24,), "w2": (24, 1, 3, 3), "b2": (24,),
    "w3": (8, 24, 1, 1), "b3": (8,), "w4": (24, 8, 1, 1), "b4": (24,), "w5": (8, 24, 1, 1), "b5": (8,),
    "w6": (5, 8), "b6": (5,),
}  # fmt: skip

RESNEXT = """g (float[N,3,8,8] x) => (float[N,5,8,8] y) {
  a = Conv(x, w0, b0)
  b = Relu(a)
  c = Conv<pads=[1,1,1,1], group=4>(b, w1, b1)
  d = Relu(c)
  y = Conv(d, w2, b2)
}"""
RESNEXT_WEIGHTS: Shapes = {
    "w0": (16, 3, 1, 1), "b0": (16,), "w1": (16, 4, 3, 3), "b1": (16,), "w2": (5, 16, 1, 1), "b2": (5,),
}  # fmt: skip

SHUFFLE = """g (float[N,3,8,8] x) => (float[N,5,8,8] y) {
  a = Conv(x, w0, b0)
  b = Relu(a)
  c = Conv<group=3>(b, w1, b1)
  d = Reshape(c, split)
  e = Transpose<perm=[0,2,1,3,4]>(d)
  f = Reshape(e, join)
  h = Conv<group=3>(f, w2, b2)
  i = Relu(h)
  y = Conv(i, w3, b3)
}"""
SHUFFLE_WEIGHTS: Shapes = {
    "w0": (24, 3, 1, 1), "b0": (24,), "w1": (18, 8, 1, 1), "b1": (18,), "w2": (24, 6, 1, 1), "b2": (24,),
    "w3": (5, 24, 1, 1), "b3": (5,),
}  # fmt: skip

UNET = """g (float[N,3,8,8] x) => (float[N,2,8,8] y) {
  a = Conv<pads=[1,1,1,1]>(x, w0, b0)
  b = PRelu(a, slope)
  c = MaxPool<kernel_shape=[2,2], strides=[2,2]>(b)
  d = Conv<pads=[1,1,1,1]>(c, w1, b1)
  e = LeakyRelu(d)
  f = ConvTranspose<strides=[2,2]>(e, w2, b2)
  e2 = Conv(e, w5, b5)
  f2 = Resize<mode="nearest">(e2, , scales)
  h = Concat<axis=1>(f, b, f2)
  i = InstanceNormalization(h, gamma, beta)
  j = Conv<pads=[1,1,1,1]>(i, w3, b3)
  k, l = Split<axis=1>(j, sizes)
  m = Sigmoid(k)
  n = Mul(m, l)
  y = Conv(n, w4)
}"""
UNET_WEIGHTS: Shapes = {
    "w0": (8, 3, 3, 3), "b0": (8,), "slope": (8, 1, 1), "w1": (16, 8, 3, 3), "b1": (16,),
    "w2": (16, 8, 2, 2), "b2": (8,), "w5": (6, 16, 1, 1), "b5": (6,), "gamma": (22,), "beta": (22,),
    "w3": (12, 22, 3, 3), "b3": (12,), "w4": (2, 6, 1, 1),
}  # fmt: skip

ATTENTION = """g (float[N,6,16] x) => (float[N,6,16] y) {
  q0 = MatMul(x, wq)
  q1 = Add(q0, bq)
  k0 = MatMul(x, wk)
  v0 = MatMul(x, wv)
  q2 = Reshape(q1, heads)
  k2 = Reshape(k0, heads)
  v2 = Reshape(v0, heads)
  q = Transpose<perm=[0,2,1,3]>(q2)
  k = Transpose<perm=[0,2,3,1]>(k2)
  v = Transpose<perm=[0,2,1,3]>(v2)
  s = MatMul(q, k)
  p = Softmax<axis=-1>(s)
  o = MatMul(p, v)
  o2 = Transpose<perm=[0,2,1,3]>(o)
  o3 = Reshape(o2, flat)
  a = MatMul(o3, wo)
  b = Add(a, x)
  c = LayerNormalization<axis=-1>(b, gamma, beta)
  u = MatMul(c, wu)
  g1 = MatMul(c, wg)
  g2 = Sigmoid(g1)
  h = Mul(u, g2)
  m = MatMul(h, wd)
  y = Add(m, c)
}"""
ATTENTION_WEIGHTS: Shapes = {
    "wq": (16, 16), "bq": (16,), "wk": (16, 16), "wv": (16, 16), "wo": (16, 16), "gamma": (16,), "beta": (16,),
    "wu": (16, 32), "wg": (16, 32), "wd": (32, 16),
}  # fmt: skip

SHARED = """g (float[N,4,8,8] x) => (float[N,2,8,8] y, float[N,2,4,4] z) {
  a = Conv<pads=[1,1,1,1]>(x, w0, b0)
  p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(x)
  b = Conv<pads=[1,1,1,1]>(p, w0, b0)
  c = Relu(a)
  d = Relu(b)
  y = Conv(c, w1, b1)
  z = Conv(d, w1, b1)
}"""
SHARED_WEIGHTS: Shapes = {"w0": (8, 4, 3, 3), "b0": (8,), "w1": (2, 8, 1, 1), "b1": (2,)}
