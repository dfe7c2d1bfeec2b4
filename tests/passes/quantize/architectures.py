"""Small networks in the shapes of known ones, as exporters write them, with random weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper

from onnxedge.api import Array
from onnxedge.model.io import from_proto


class Builder:
    """Write nodes one behind the other; each method returns the name of what it makes."""

    def __init__(self, shape: list[Any], opset: int = 17) -> None:
        self.shape, self.opset = shape, opset
        self.nodes: list[onnx.NodeProto] = []
        self.arrays: dict[str, Array] = {}
        self.rng = np.random.default_rng(0)

    def constant(self, array: Any) -> str:
        name = f"k{len(self.arrays)}"
        self.arrays[name] = np.asarray(array)
        return name

    def weight(self, *shape: int, fan: int) -> str:
        return self.constant((self.rng.normal(size=shape) * np.sqrt(2 / fan)).astype(np.float32))

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        names = [f"{kind.lower()}{len(self.nodes)}"] + [
            f"{kind.lower()}{len(self.nodes)}_{i}" for i in range(1, outputs)
        ]
        self.nodes.append(helper.make_node(kind, inputs, names, name=names[0], **attributes))
        return names[0]

    def conv(self, x: str, ci: int, co: int, k: int = 3, *, stride: int = 1, group: int = 1, norm: bool = True) -> str:
        pads = [k // 2] * 4
        weight = self.weight(co, ci // group, k, k, fan=ci // group * k * k)
        bias = [] if norm else [self.constant(self.rng.normal(size=co).astype(np.float32) / 10)]
        made = self.op("Conv", x, weight, *bias, pads=pads, strides=[stride] * 2, group=group)
        return self.norm(made, co) if norm else made

    def norm(self, x: str, channels: int) -> str:
        scale, shift = self.rng.uniform(0.7, 1.3, channels), self.rng.normal(size=channels) / 5
        values = (scale, shift, self.rng.normal(size=channels) / 5, self.rng.uniform(0.5, 1.5, channels))
        return self.op("BatchNormalization", x, *(self.constant(v.astype(np.float32)) for v in values))

    def linear(self, x: str, inputs: int, outputs: int) -> str:
        """MatMul and the Add of a bias, as for tokens."""
        product = self.op("MatMul", x, self.weight(inputs, outputs, fan=2 * inputs))
        return self.op("Add", product, self.constant(self.rng.normal(size=outputs).astype(np.float32) / 10))

    def gemm(self, x: str, inputs: int, outputs: int) -> str:
        bias = self.constant(self.rng.normal(size=outputs).astype(np.float32))
        return self.op("Gemm", x, self.weight(outputs, inputs, fan=2 * inputs), bias, transB=1)

    def relu6(self, x: str) -> str:
        return self.op("Clip", x, self.constant(np.float32(0)), self.constant(np.float32(6)))

    def model(self, output: str) -> ir.Model:
        x = helper.make_tensor_value_info("x", 1, self.shape)
        y = helper.make_tensor_value_info(output, 1, None)
        y.type.tensor_type.ClearField("shape")
        weights = [numpy_helper.from_array(array, name) for name, array in self.arrays.items()]
        graph = helper.make_graph(self.nodes, "g", [x], [y], weights)
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)
        return from_proto(onnx.shape_inference.infer_shapes(proto))


def resnet() -> ir.Model:
    """Bottlenecks with and without a convolution on the shortcut (He et al. 2015, arXiv:1512.03385, figure 5)."""
    net = Builder(["N", 3, 32, 32])
    x = net.op("Relu", net.conv("x", 3, 16, 7, stride=2))
    x = net.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    channels = 16
    for width, stride in ((8, 1), (8, 1), (16, 2), (16, 1)):
        y = net.op("Relu", net.conv(x, channels, width, 1))
        y = net.op("Relu", net.conv(y, width, width, 3, stride=stride))
        y = net.conv(y, width, 4 * width, 1)
        shortcut = x if channels == 4 * width and stride == 1 else net.conv(x, channels, 4 * width, 1, stride=stride)
        x, channels = net.op("Relu", net.op("Add", y, shortcut)), 4 * width
    x = net.op("Flatten", net.op("GlobalAveragePool", x))
    return net.model(net.gemm(x, channels, 10))


def mobilenet() -> ir.Model:
    """Inverted residuals (Sandler et al. 2018, arXiv:1801.04381, figure 4), the mean as an exporter writes it."""
    net = Builder(["N", 3, 32, 32])
    x, channels = net.relu6(net.conv("x", 3, 16, 3, stride=2)), 16
    for outputs, stride in ((16, 1), (24, 2), (24, 1), (32, 2), (32, 1)):
        hidden = 4 * channels
        y = net.relu6(net.conv(x, channels, hidden, 1))
        y = net.relu6(net.conv(y, hidden, hidden, 3, stride=stride, group=hidden))
        y = net.conv(y, hidden, outputs, 1)
        x = net.op("Add", x, y) if stride == 1 and channels == outputs else y
        channels = outputs
    x = net.relu6(net.conv(x, channels, 64, 1))
    x = net.op("ReduceMean", x, axes=[2, 3], keepdims=0)
    return net.model(net.gemm(x, 64, 10))


def vit() -> ir.Model:
    """Patches, two layers of attention with the norm first (Dosovitskiy et al. 2020, arXiv:2010.11929, figure 1)."""
    net, width, heads, tokens = Builder(["N", 3, 32, 32]), 32, 4, 16
    patches = net.op("Conv", "x", net.weight(width, 3, 8, 8, fan=192), strides=[8, 8])
    x = net.op("Transpose", net.op("Reshape", patches, net.constant([0, width, tokens])), perm=[0, 2, 1])
    x = net.op("Add", x, net.constant(net.rng.normal(size=(1, tokens, width)).astype(np.float32) / 10))
    split = net.constant([0, tokens, heads, width // heads])

    def norm(value: str) -> str:
        ones, zeros = net.constant(np.ones(width, np.float32)), net.constant(np.zeros(width, np.float32))
        return net.op("LayerNormalization", value, ones, zeros, axis=-1)

    def head(value: str, perm: list[int]) -> str:
        return net.op("Transpose", net.op("Reshape", net.linear(value, width, width), split), perm=perm)

    for _ in range(2):
        y = norm(x)
        query, key, value = head(y, [0, 2, 1, 3]), head(y, [0, 2, 3, 1]), head(y, [0, 2, 1, 3])
        scores = net.op("Mul", net.op("MatMul", query, key), net.constant(np.float32((width // heads) ** -0.5)))
        mixed = net.op("MatMul", net.op("Softmax", scores, axis=-1), value)
        merged = net.op("Reshape", net.op("Transpose", mixed, perm=[0, 2, 1, 3]), net.constant([0, tokens, width]))
        x = net.op("Add", x, net.linear(merged, width, width))
        y = net.linear(norm(x), width, 4 * width)
        gelu = net.op("Mul", y, net.op("Add", net.op("Erf", net.op("Mul", y, net.constant(np.float32(0.5**0.5)))),
                                       net.constant(np.float32(1))))  # fmt: skip
        y = net.linear(net.op("Mul", gelu, net.constant(np.float32(0.5))), 4 * width, width)
        x = net.op("Add", x, y)
    x = net.op("ReduceMean", norm(x), axes=[1], keepdims=0)
    return net.model(net.gemm(x, width, 10))


def unet() -> ir.Model:
    """Down by pooling, up by ConvTranspose, the levels concatenated (Ronneberger et al. 2015, arXiv:1505.04597)."""
    net = Builder(["N", 3, 32, 32])

    def double(x: str, inputs: int, outputs: int) -> str:
        for count in (inputs, outputs):
            x = net.op("Relu", net.conv(x, count, outputs))
        return x

    x, skips = double("x", 3, 16), []
    for width in (32, 64):
        skips.append((x, width // 2))
        x = double(net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]), width // 2, width)
    for skip, width in reversed(skips):
        bias = net.constant(net.rng.normal(size=width).astype(np.float32))
        lift = net.weight(2 * width, width, 2, 2, fan=4 * width)
        up = net.op("ConvTranspose", x, lift, bias, strides=[2, 2])
        x = double(net.op("Concat", skip, up, axis=1), 2 * width, width)
    return net.model(net.conv(x, 16, 2, 1, norm=False))


NETWORKS = {"resnet": resnet, "mobilenet": mobilenet, "vit": vit, "unet": unet}
