"""Small teachers in ONNX text, with random weights."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper

from onnxedge.api import Array

Shapes = dict[str, tuple[int, ...]]


def build(
    text: str, weights: Shapes, constants: dict[str, list[int]] | None = None, *, overridable: str = ""
) -> ir.Model:
    """Return a model of opset 17; ``overridable`` names one weight that is a graph input, too."""
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]>\n{text}')
    rng = np.random.default_rng(7)
    for name, shape in weights.items():
        array = (rng.standard_normal(shape) / np.sqrt(max(np.prod(shape[1:]), 1))).astype(np.float32)
        if name.startswith(("var", "gamma")):
            array = np.abs(array) + np.float32(0.5)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
        if name == overridable:
            proto.graph.input.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
    for name, values in (constants or {}).items():
        proto.graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), name))
    return ir.from_proto(proto)


def samples(shape: tuple[int, ...], count: int = 24, seed: int = 0) -> Array:
    """Return normal samples float32 [count, *shape]."""
    return np.random.default_rng(seed).standard_normal((count, *shape)).astype(np.float32)


def _block(number: int, source: str) -> str:
    return f"""
  c{number}a = Conv<pads=[1,1,1,1]>({source}, w{number}a)
  n{number}a = BatchNormalization(c{number}a, gamma{number}, beta{number}, mean{number}, var{number})
  r{number}a = Relu(n{number}a)
  c{number}b = Conv<pads=[1,1,1,1]>(r{number}a, w{number}b, b{number}b)
  s{number} = Add(c{number}b, {source})
  r{number} = Relu(s{number})"""


RESNET = f"""g (float[N,3,8,8] x) => (float[N,5] y) {{
  c0 = Conv<pads=[1,1,1,1]>(x, w0, b0)
  r0 = Relu(c0){_block(1, "r0")}{_block(2, "r1")}{_block(3, "r2")}
  d = Conv<pads=[1,1,1,1], strides=[2,2]>(r3, wd)
  e = Conv<strides=[2,2]>(r3, we)
  f = Add(d, e)
  rd = Relu(f){_block(4, "rd")}
  p = GlobalAveragePool(r4)
  q = Flatten(p)
  y = Gemm<transB=1>(q, wy, by)
}}"""


def resnet() -> ir.Model:
    """Return four residual blocks, three of 8 channels and one of 16, with BatchNormalization."""
    weights: Shapes = {
        "w0": (8, 3, 3, 3),
        "b0": (8,),
        "wd": (16, 8, 3, 3),
        "we": (16, 8, 1, 1),
        "wy": (5, 16),
        "by": (5,),
    }
    for number, width in ((1, 8), (2, 8), (3, 8), (4, 16)):
        weights |= {f"w{number}a": (width, width, 3, 3), f"w{number}b": (width, width, 3, 3), f"b{number}b": (width,)}
        weights |= {f"{part}{number}": (width,) for part in ("gamma", "beta", "mean", "var")}
    return build(RESNET, weights)


TRANSFORMER = """g (float[N,6,12] x) => (float[N,6,3] y) {
  x0 = MatMul(x, wi)
  x1 = Add(x0, position)
  h0 = LayerNormalization<axis=-1>(x1, gamma0, beta0)
  q0 = MatMul(h0, wq)
  k0 = MatMul(h0, wk)
  v0 = MatMul(h0, wv)
  q1 = Reshape(q0, heads)
  k1 = Reshape(k0, heads)
  v1 = Reshape(v0, heads)
  q = Transpose<perm=[0,2,1,3]>(q1)
  k = Transpose<perm=[0,2,3,1]>(k1)
  v = Transpose<perm=[0,2,1,3]>(v1)
  s = MatMul(q, k)
  a = Softmax<axis=-1>(s)
  o = MatMul(a, v)
  o1 = Transpose<perm=[0,2,1,3]>(o)
  o2 = Reshape(o1, flat)
  o3 = MatMul(o2, wo)
  x2 = Add(x1, o3)
  h1 = LayerNormalization<axis=-1>(x2, gamma1, beta1)
  u0 = MatMul(h1, wu)
  u1 = Add(u0, bu)
  u = Relu(u1)
  m = MatMul(u, wm)
  x3 = Add(x2, m)
  y = MatMul(x3, wy)
}"""


def transformer() -> ir.Model:
    """Return a layer of a transformer of four heads, before its norms, with a projection on either side."""
    weights: Shapes = {
        "wi": (12, 16), "position": (6, 16), "gamma0": (16,), "beta0": (16,), "wq": (16, 16), "wk": (16, 16),
        "wv": (16, 16), "wo": (16, 16), "gamma1": (16,), "beta1": (16,), "wu": (16, 32), "bu": (32,), "wm": (32, 16),
        "wy": (16, 3),
    }  # fmt: skip
    return build(TRANSFORMER, weights, {"heads": [0, 0, -1, 4], "flat": [0, 0, -1]})


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
  k = GlobalAveragePool(j)
  l = Flatten(k)
  y = Gemm<transB=1>(l, w6, b6)
}"""


def mobile() -> ir.Model:
    """Return an inverted residual with a depthwise convolution and squeeze-and-excite."""
    weights: Shapes = {
        "w0": (8, 3, 3, 3), "b0": (8,), "w1": (24, 8, 1, 1), "b1": (24,), "w2": (24, 1, 3, 3), "b2": (24,),
        "w3": (8, 24, 1, 1), "b3": (8,), "w4": (24, 8, 1, 1), "b4": (24,), "w5": (8, 24, 1, 1), "b5": (8,),
        "w6": (5, 8), "b6": (5,),
    }  # fmt: skip
    return build(MOBILE, weights)


GROUPED = """g (float[N,3,8,8] x) => (float[N,5,8,8] y) {
  a = Conv(x, w0, b0)
  b = Relu(a)
  c = Conv<pads=[1,1,1,1], group=4>(b, w1, b1)
  d = Relu(c)
  y = Conv(d, w2, b2)
}"""


def grouped() -> ir.Model:
    """Return a convolution of four groups between two of kernel 1."""
    shapes = {"w0": (16, 3, 1, 1), "b0": (16,), "w1": (16, 4, 3, 3), "b1": (16,), "w2": (5, 16, 1, 1), "b2": (5,)}
    return build(GROUPED, shapes)


SHARED = """g (float[N,4,8,8] x) => (float[N,2,8,8] y, float[N,2,4,4] z) {
  a = Conv<pads=[1,1,1,1]>(x, w0, b0)
  p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(x)
  b = Conv<pads=[1,1,1,1]>(p, w0, b0)
  c = Relu(a)
  d = Relu(b)
  y = Conv(c, w1, b1)
  z = Conv(d, w1, b1)
}"""


def shared() -> ir.Model:
    """Return two towers with the same weights."""
    return build(SHARED, {"w0": (8, 4, 3, 3), "b0": (8,), "w1": (2, 8, 1, 1), "b1": (2,)})
