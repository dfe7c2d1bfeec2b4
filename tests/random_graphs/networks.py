"""The operators of networks, with what exporters put around them."""

from __future__ import annotations

import numpy as np

from random_graphs.arithmetic import broadcast
from random_graphs.graph import Dim, Graph, Value, fixed, is_small


def _image(g: Graph) -> Value | None:
    """Return a float image [N, C, H, W] of known channels and size."""
    images = [v for v in g.visible() if v.kind == "float32" and v.rank == 4 and all(v.static(i) for i in (1, 2, 3))]
    return images[-1 - g.late(len(images))] if images else None


def conv(g: Graph) -> Value | None:
    """Add a Conv, with a bias or not, grouped, strided or padded, often with something on either side."""
    x = _image(g)
    if x is None:
        return None
    channels, height, width = (x.static(i) or 0 for i in (1, 2, 3))
    if g.r.random() < 0.15:
        x, height, width = _padded(g, x), height + 2, width + 2
    group = g.r.choice((1, 1, channels))
    out = channels * g.r.choice((1, 2)) if group > 1 else g.r.choice((2, 3, 4))
    kernel, stride, pads = g.r.choice((1, 3)), g.r.choice((1, 1, 2)), g.r.choice((0, 1))
    size = [(s + 2 * pads - kernel) // stride + 1 for s in (height, width)]
    if min(size) < 1:
        return None
    weight = g.constant(g.array("float32", [out, channels // group, kernel, kernel], 0.4))
    bias = [g.constant(g.array("float32", [out]))] if g.r.random() < 0.5 else []
    dims = [x.shape[0], fixed(out), fixed(size[0]), fixed(size[1])]
    attributes = {"kernel_shape": g.r.choice((None, [kernel] * 2)), "strides": [stride] * 2, "pads": [pads] * 4}
    y = g.add("Conv", [x, weight, *bias], "float32", dims, group=group, **attributes)
    return _followed(g, y, out)


def _padded(g: Graph, x: Value) -> Value:
    dims = [x.shape[0], x.shape[1], *(fixed((x.static(i) or 0) + 2) for i in (2, 3))]
    pads = [0, 0, 1, 1, 0, 0, 1, 1]
    if g.version < 11:
        return g.add("Pad", [x], x.kind, dims, pads=pads)
    return g.add("Pad", [x, g.ints(*pads)], x.kind, dims)


def _followed(g: Graph, y: Value, channels: int) -> Value:
    """Add what often stands behind a Conv: normalization, a scale, an offset, an activation."""
    for _ in range(g.r.choice((0, 1, 1, 2))):
        choice = g.r.random()
        if choice < 0.4:
            y = batch_norm(g, y, channels)
        elif choice < 0.7:
            shape = g.r.choice(([], [1], [channels, 1, 1], [1, channels, 1, 1]))
            operand = g.constant(g.array("float32", shape))
            y = g.add(g.r.choice(("Mul", "Add", "Sub", "Div")), [y, operand], y.kind, y.shape)
        else:
            y = g.add(g.r.choice(("Relu", "Sigmoid", "LeakyRelu")), [y], y.kind, y.shape)
    return y


def batch_norm(g: Graph, x: Value, channels: int) -> Value:
    """Add an inference-mode BatchNormalization."""
    parameters = [g.constant(g.array("float32", [channels])) for _ in range(3)]
    variance = g.constant(np.abs(g.array("float32", [channels])) + np.float32(0.1))
    epsilon = g.r.choice((None, 1e-3))
    return g.add("BatchNormalization", [x, *parameters, variance], x.kind, x.shape, epsilon=epsilon)


def normalized(g: Graph) -> Value | None:
    """Add a BatchNormalization, InstanceNormalization or LayerNormalization."""
    x = g.pick("float32", least=2)
    channels = x.static(1) if x is not None else None
    if x is None or channels is None:
        return None
    last = x.static(x.rank - 1)
    if g.version >= 17 and last and g.r.random() < 0.5:
        inputs = [x, g.constant(g.array("float32", [last]))]
        inputs += [g.constant(g.array("float32", [last]))] if g.r.random() < 0.6 else []
        return g.add("LayerNormalization", inputs, x.kind, x.shape, axis=-1)
    if x.rank >= 3 and g.r.random() < 0.3:
        parameters = [g.constant(g.array("float32", [channels])) for _ in range(2)]
        return g.add("InstanceNormalization", [x, *parameters], x.kind, x.shape)
    return batch_norm(g, x, channels)


def conv_transpose(g: Graph) -> Value | None:
    """Add a ConvTranspose."""
    x = _image(g)
    if x is None:
        return None
    channels, height, width = (x.static(i) or 0 for i in (1, 2, 3))
    out = g.r.choice((2, 3))
    weight = g.constant(g.array("float32", [channels, out, 2, 2], 0.4))
    dims = [x.shape[0], fixed(out), fixed(2 * height), fixed(2 * width)]
    if not is_small(dims):
        return None
    return _followed(g, g.add("ConvTranspose", [x, weight], "float32", dims, strides=[2, 2]), out)


def pool(g: Graph) -> Value | None:
    """Add a pooling."""
    x = _image(g)
    if x is None:
        return None
    if g.r.random() < 0.3:
        return g.add("GlobalAveragePool", [x], x.kind, [*x.shape[:2], fixed(1), fixed(1)])
    if g.r.random() < 0.3:
        x = _padded(g, x)
    height, width = (x.static(i) or 0 for i in (2, 3))
    kernel, stride, pads = g.r.choice(((2, 2, 0), (3, 1, 1), (2, 1, 0)))
    size = [(s + 2 * pads - kernel) // stride + 1 for s in (height, width)]
    if min(size) < 1:
        return None
    op = g.r.choice(("MaxPool", "AveragePool"))
    include = {"count_include_pad": g.r.choice((None, 1))} if op == "AveragePool" else {}
    dims = [*x.shape[:2], fixed(size[0]), fixed(size[1])]
    shapes = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [pads] * 4}
    return g.add(op, [x], x.kind, dims, **shapes, **include)


def resize(g: Graph) -> Value | None:
    """Add a Resize or Upsample to twice the size, or to the same."""
    x = _image(g)
    if x is None:
        return None
    times = g.r.choice((1, 2))
    dims = [*x.shape[:2], *(fixed((x.static(i) or 0) * times) for i in (2, 3))]
    if not is_small(dims):
        return None
    scales = g.constant(np.array([1, 1, times, times], np.float32))
    if g.version < 10:
        return g.add("Upsample", [x, scales], x.kind, dims, mode="nearest")
    if g.version < 11:
        return g.add("Resize", [x, scales], x.kind, dims, mode="nearest")
    region = None if g.version >= 13 else g.constant(np.zeros(0, np.float32))
    return g.add("Resize", [x, region, scales], x.kind, dims, mode=g.r.choice(("nearest", "linear")))


def matmul(g: Graph) -> Value | None:
    """Add a MatMul by a weight or another value, often with a bias and a scale."""
    x = g.pick("float32", "float32", "float64", least=2)
    if x is None:
        return None
    inner = x.static(x.rank - 1)
    if inner is None:
        return None
    out = g.r.choice((4, 8))
    y = g.constant(g.array(x.kind, [inner, out], 0.4))
    dims: list[Dim] = [*x.shape[:-1], fixed(out)]
    z = g.add("MatMul", [x, y], x.kind, dims)
    if g.r.random() < 0.6:
        bias = g.constant(g.array(x.kind, g.r.choice(([out], [1, out], []))))
        z = g.add("Add", [z, bias] if g.r.random() < 0.6 else [bias, z], x.kind, dims)
    if g.r.random() < 0.3:
        z = g.add(g.r.choice(("Mul", "Div")), [z, g.constant(g.array(x.kind, g.r.choice(([out], []))))], x.kind, dims)
    return z


def product(g: Graph) -> Value | None:
    """Add a MatMul of a value with itself turned round."""
    x = g.pick("float32", least=2)
    if x is None:
        return None
    perm = [*range(x.rank - 2), x.rank - 1, x.rank - 2]
    turned = g.add("Transpose", [x], x.kind, [x.shape[i] for i in perm], perm=perm)
    dims = [*x.shape[:-1], x.shape[-2]]
    return g.add("MatMul", [x, turned], x.kind, dims) if is_small(dims) else turned


def gemm(g: Graph) -> Value | None:
    """Add a Gemm of all its forms."""
    x = g.pick("float32", rank=2)
    if x is None:
        return None
    turned = g.r.random() < 0.2
    inner, rows = (x.static(0), x.shape[1]) if turned else (x.static(1), x.shape[0])
    if inner is None:
        return None
    out, other = g.r.choice((4, 8)), g.r.random() < 0.5
    weight = g.constant(g.array("float32", [out, inner] if other else [inner, out], 0.4))
    bias = [g.constant(g.array("float32", g.r.choice(([out], [1, out], [1], []))))]
    if g.version >= 11 and g.r.random() < 0.3:
        bias = []
    return g.add(
        "Gemm", [x, weight, *bias], "float32", [rows, fixed(out)], transA=int(turned), transB=int(other),
        alpha=g.r.choice((None, 0.5)), beta=g.r.choice((None, 2.0)),
    )  # fmt: skip


def einsum(g: Graph) -> Value | None:
    """Add an Einsum that is a MatMul, or nearly."""
    x = g.pick("float32", rank=3)
    inner = x.static(2) if x is not None else None
    if x is None or inner is None or g.version < 12:
        return None
    weight = g.constant(g.array("float32", [4, inner], 0.4))
    return g.add("Einsum", [x, weight], "float32", [*x.shape[:2], fixed(4)], equation="btd,ed->bte")


def residual(g: Graph) -> Value | None:
    """Add two values of one shape."""
    x, y = g.pick("float32"), g.pick("float32")
    shape = broadcast(x, y) if x is not None and y is not None else None
    return g.add("Add", [x, y], "float32", shape) if shape is not None else None


MAKERS = (
    conv, conv, conv, normalized, conv_transpose, pool, pool, resize, matmul, matmul, product, gemm, gemm, einsum,
    residual, residual,
)  # fmt: skip
