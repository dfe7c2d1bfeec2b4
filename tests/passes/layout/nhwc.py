"""Networks in NHWC as converters from TensorFlow and TFLite write them, in any opset from 7, with random weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

FIRST, LAST = [0, 3, 1, 2], [0, 2, 3, 1]


class Writer:
    """Write nodes one by one in the form of an opset; a value is known by its name, ``channels`` by the value."""

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.channels: dict[str, int] = {}
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []
        self._rng = np.random.default_rng(0)

    def node(self, op_type: str, *inputs: str, channels: int | None = None, **attributes: Any) -> str:
        """Write a node with one output and return its name; the channels are those of the first input if not given."""
        name = f"{op_type.lower()}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(op_type, inputs, [name], name=name, **attributes))
        self.channels[name] = channels or self.channels.get(inputs[0], 0)
        return name

    def constant(self, array: Any, dtype: str = "float32") -> str:
        name = f"constant_{len(self._weights)}"
        self._weights.append(numpy_helper.from_array(np.asarray(array, dtype), name))
        return name

    def weight(self, *shape: int, spread: float = 0.1) -> str:
        return self.constant(self._rng.standard_normal(shape) * spread)

    def setting(self, op_type: str, data: str, since: int, key: str, values: Sequence[int], **attributes: Any) -> str:
        """Write a node whose integers became an input in an opset."""
        if self.opset < since:
            return self.node(op_type, data, **{key: list(values)}, **attributes)
        return self.node(op_type, data, self.constant(values, "int64"), **attributes)

    def first(self, x: str) -> str:
        return self.node("Transpose", x, perm=FIRST)

    def last(self, x: str) -> str:
        return self.node("Transpose", x, perm=LAST)

    def bias(self, x: str) -> str:
        return self.node("Add", x, self.weight(self.channels[x]))

    def conv(self, x: str, channels: int, kernel: int = 3, stride: int = 1, *, valid: bool = False) -> str:
        """Write a Conv in NCHW between two Transposes, and its bias in NHWC behind them."""
        pads = [0, 0, 0, 0] if valid else [(kernel - 1) // 2] * 4
        weight = self.weight(channels, self.channels[x], kernel, kernel)
        options = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": pads}
        return self.bias(self.last(self.node("Conv", self.first(x), weight, channels=channels, **options)))

    def depthwise(self, x: str, stride: int = 1) -> str:
        """Write a depthwise Conv whose weight [kH, kW, C, 1] is brought into shape by nodes."""
        count = self.channels[x]
        turned = self.node("Transpose", self.weight(3, 3, count, 1), perm=[2, 3, 0, 1])
        weight = self.node("Reshape", turned, self.constant([count, 1, 3, 3], "int64"))
        options = {"kernel_shape": [3, 3], "strides": [stride] * 2, "pads": [1] * 4, "group": count}
        return self.bias(self.last(self.node("Conv", self.first(x), weight, **options)))

    def batchnorm(self, x: str) -> str:
        """Write inference BatchNormalization as TensorFlow does where it is not fused: a product and a sum."""
        scaled = self.node("Mul", x, self.weight(self.channels[x], spread=1))
        return self.node("Add", scaled, self.weight(self.channels[x]))

    def fused_batchnorm(self, x: str) -> str:
        count = self.channels[x]
        parameters = [self.weight(count), self.weight(count), self.weight(count)]
        variance = self.constant(np.linspace(0.5, 1.5, count))
        return self.last(self.node("BatchNormalization", self.first(x), *parameters, variance, epsilon=1e-3))

    def relu6(self, x: str, *, clip: bool = True) -> str:
        if not clip and self.opset >= 8:  # before, Min does not broadcast
            return self.node("Min", self.node("Relu", x), self.constant(6))
        if self.opset < 11:
            return self.node("Clip", x, min=0.0, max=6.0)
        return self.node("Clip", x, self.constant(0), self.constant(6))

    def pad(self, x: str, before: int, after: int) -> str:
        pads = [0, before, before, 0, 0, after, after, 0]
        return self.setting("Pad", x, 11, "pads", pads, mode="constant")

    def mean(self, x: str, *, keepdims: int = 0) -> str:
        return self.setting("ReduceMean", x, 18, "axes", [1, 2], keepdims=keepdims)

    def squeeze(self, x: str, *axes: int) -> str:
        return self.setting("Squeeze", x, 13, "axes", axes)

    def unsqueeze(self, x: str, *axes: int) -> str:
        return self.setting("Unsqueeze", x, 13, "axes", axes)

    def pool(self, x: str, kind: str = "MaxPool") -> str:
        return self.last(self.node(kind, self.first(x), kernel_shape=[2, 2], strides=[2, 2]))

    def double(self, x: str) -> str:
        """Write a nearest-neighbour upsampling by 2 as the opset spells it: in NCHW, between two Transposes."""
        inside, scales = self.first(x), [1.0, 1.0, 2.0, 2.0]
        if self.opset < 9:
            return self.last(self.node("Upsample", inside, mode="nearest", scales=scales))
        if self.opset < 10:
            return self.last(self.node("Upsample", inside, self.constant(scales), mode="nearest"))
        if self.opset < 11:
            return self.last(self.node("Resize", inside, self.constant(scales), mode="nearest"))
        form = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        return self.last(self.node("Resize", inside, self.constant([]), self.constant(scales), mode="nearest", **form))

    def cut(self, x: str, start: int, end: int, channels: int) -> str:
        """Write ``x[..., start:end]``."""
        if self.opset < 10:
            return self.node("Slice", x, axes=[3], starts=[start], ends=[end], channels=channels)
        operands = [self.constant([number], "int64") for number in (start, end, 3)]
        return self.node("Slice", x, *operands, channels=channels)

    def concat(self, *parts: str, axis: int = 3) -> str:
        return self.node("Concat", *parts, axis=axis, channels=sum(self.channels[part] for part in parts))

    def dense(self, x: str, count: int) -> str:
        return self.node("Add", self.node("MatMul", x, self.weight(self.channels[x], count)), self.weight(count))

    def softmax(self, x: str, rank: int) -> str:
        return self.node("Softmax", x, axis=rank - 1)

    def rows(self, x: str, width: int, *, computed: bool = False) -> str:
        """Write ``tf.reshape(x, [N, -1, width])`` with the batch copied, or computed from the shape."""
        if not computed:
            return self.node("Reshape", x, self.constant([0, -1, width], "int64"))
        batch = self.node("Gather", self.node("Shape", x), self.constant([0], "int64"))
        shape = self.node("Concat", batch, self.constant([-1], "int64"), self.constant([width], "int64"), axis=0)
        return self.node("Reshape", x, shape)

    def model(self, size: int, channels: int, outputs: Sequence[str], *, batch: int | str = "N") -> onnx.ModelProto:
        """Return the model of what was written; ``x: float32 [batch, size, size, channels]`` is its input."""
        given = [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [batch, size, size, channels])]
        results = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in outputs]
        graph = helper.make_graph(self._nodes, "nhwc", given, results, self._weights)
        imports = [helper.make_opsetid("", self.opset)]
        model = onnx.shape_inference.infer_shapes(helper.make_model(graph, opset_imports=imports, ir_version=8))
        del model.graph.value_info[:]
        onnx.checker.check_model(model)
        return model


def begin(opset: int) -> Writer:
    writer = Writer(opset)
    writer.channels["x"] = 3
    return writer


def mobilenet_v1(opset: int, size: int = 32, width: int = 8) -> onnx.ModelProto:
    """Depthwise separable blocks, padded before the strided ones as Keras does, relu6, a global mean, a classifier."""
    net = begin(opset)
    x = net.relu6(net.batchnorm(net.conv(net.pad("x", 0, 1), width, stride=2, valid=True)))
    for count, stride in ((2 * width, 1), (4 * width, 2), (4 * width, 1)):
        x = net.relu6(net.batchnorm(net.depthwise(x, stride)))
        x = net.relu6(net.batchnorm(net.conv(x, count, 1)), clip=False)
    x = net.mean(x, keepdims=1)
    x = net.squeeze(net.conv(x, 10, 1), 1, 2)
    return net.model(size, 3, [net.softmax(x, 2)])


def mobilenet_v2(opset: int, size: int = 32, width: int = 8) -> onnx.ModelProto:
    """Inverted residuals with fused BatchNormalization, a global mean, a dense classifier."""
    net = begin(opset)
    x = net.relu6(net.fused_batchnorm(net.conv("x", width, stride=2)))
    for count, stride in ((width, 1), (2 * width, 2), (2 * width, 1)):
        wide = net.relu6(net.fused_batchnorm(net.conv(x, 6 * net.channels[x], 1)))
        wide = net.relu6(net.fused_batchnorm(net.depthwise(net.pad(wide, 0, 0) if stride == 2 else wide, stride)))
        narrow = net.fused_batchnorm(net.conv(wide, count, 1))
        x = net.node("Add", x, narrow) if net.channels[x] == count and stride == 1 else narrow
    return net.model(size, 3, [net.softmax(net.dense(net.mean(x), 10), 2)])


def resnet(opset: int, size: int = 32, width: int = 8) -> onnx.ModelProto:
    """Residual blocks with a projection, a pooled stem, a global mean, a dense classifier."""
    net = begin(opset)
    x = net.pool(net.node("Relu", net.batchnorm(net.conv("x", width))))
    for count, stride in ((width, 1), (2 * width, 2), (2 * width, 1)):
        y = net.node("Relu", net.batchnorm(net.conv(x, count, 3, stride)))
        y = net.batchnorm(net.conv(y, count, 3))
        x = net.node("Relu", net.node("Add", y, x if count == net.channels[x] else net.conv(x, count, 1, stride)))
    return net.model(size, 3, [net.dense(net.mean(x), 10)])


def unet(opset: int, size: int = 32, width: int = 8) -> onnx.ModelProto:
    """Two levels down and up with concatenated skips; the mask is given in NHWC, as softmax over the classes."""
    net = begin(opset)
    a = net.node("Relu", net.conv(net.node("Relu", net.conv("x", width)), width))
    b = net.node("Relu", net.conv(net.pool(a), 2 * width))
    c = net.node("Relu", net.conv(net.pool(b, "AveragePool"), 4 * width))
    d = net.node("Relu", net.conv(net.concat(net.double(c), b), 2 * width))
    e = net.node("LeakyRelu", net.conv(net.concat(net.double(d), a), width), alpha=0.1)
    return net.model(size, 3, [net.softmax(net.conv(e, 4, 1), 4)])


def ssd(opset: int, size: int = 32, width: int = 8, *, computed: bool = False) -> onnx.ModelProto:
    """Three feature maps with heads for boxes and classes, cut into rows of anchors and concatenated."""
    net = begin(opset)
    x = net.relu6(net.conv("x", width, stride=2))
    boxes, classes = [], []
    for _ in range(3):
        x = net.relu6(net.conv(net.relu6(net.depthwise(x, 2)), 2 * net.channels[x], 1))
        boxes.append(net.rows(net.conv(x, 3 * 4), 4, computed=computed))
        classes.append(net.rows(net.conv(x, 3 * 5), 5, computed=computed))
    box, score = net.concat(*boxes, axis=1), net.node("Sigmoid", net.concat(*classes, axis=1))
    return net.model(size, 3, [box, score])


def yolo(opset: int, size: int = 32, width: int = 8) -> onnx.ModelProto:
    """A head that splits its NHWC rows into position, size and scores and computes boxes in NHWC."""
    net = begin(opset)
    x = net.node("LeakyRelu", net.batchnorm(net.conv("x", width, stride=2)), alpha=0.1)
    y = net.node("LeakyRelu", net.batchnorm(net.conv(net.pool(x), 2 * width)), alpha=0.1)
    z = net.concat(net.double(y), x)
    outputs = []
    for feature in (y, z):
        head = net.conv(feature, 3 * 6, 1)
        outputs.append(net.rows(net.node("Sigmoid", head), 6))
    return net.model(size, 3, [net.concat(*outputs, axis=1)])


def shuffle(opset: int, size: int = 32, width: int = 8) -> onnx.ModelProto:
    """ShuffleNet: channels cut in two, one half convolved, both concatenated and shuffled by Reshapes in NHWC."""
    net = begin(opset)
    x = net.node("Relu", net.conv("x", 2 * width, stride=2))
    side = size // 2
    for _ in range(2):
        low, high = (net.cut(x, start, start + width, width) for start in (0, width))
        high = net.node("Relu", net.conv(net.depthwise(net.node("Relu", net.conv(high, width, 1))), width, 1))
        x = net.concat(low, high)
        x = net.node("Reshape", x, net.constant([-1, side, side, 2, width], "int64"))
        x = net.node("Transpose", x, perm=[0, 1, 2, 4, 3])
        x = net.node("Reshape", x, net.constant([-1, side, side, 2 * width], "int64"), channels=2 * width)
    return net.model(size, 3, [net.dense(net.mean(x), 10)])


def squeeze_excite(opset: int, size: int = 32, width: int = 8) -> onnx.ModelProto:
    """EfficientNet: swish, and a gate from a mean that is reshaped to [N, 1, 1, C]."""
    net = begin(opset)
    x = net.conv("x", width, stride=2)
    for _ in range(2):
        x = net.node("Mul", x, net.node("Sigmoid", x))
        y = net.batchnorm(net.depthwise(x))
        gate = net.node("Reshape", net.mean(y), net.constant([-1, 1, 1, width], "int64"))
        gate = net.conv(net.node("Relu", net.conv(gate, 4, 1)), width, 1)
        x = net.node("Add", net.conv(net.node("Mul", y, net.node("Sigmoid", gate)), width, 1), x)
    return net.model(size, 3, [net.dense(net.mean(x), 10)])


def temporal(opset: int, size: int = 32, width: int = 8) -> onnx.ModelProto:
    """Keras Conv1D: each one a Conv2D over [N, 1, T, C] between an Unsqueeze and a Squeeze; T is the given height."""
    net = begin(opset)
    x = net.node("Reshape", "x", net.constant([0, -1, 3], "int64"))
    for count in (width, width, 2 * width):
        y = net.unsqueeze(x, 1)
        weight = net.weight(count, net.channels[x], 1, 3)
        y = net.node("Conv", net.first(y), weight, channels=count, kernel_shape=[1, 3], pads=[0, 1, 0, 1])
        y = net.bias(net.squeeze(net.last(y), 1))
        x = net.node("Add", y, x) if net.channels[x] == count else net.node("Relu", net.batchnorm(y))
    return net.model(size, 3, [net.dense(net.setting("ReduceMax", x, 18, "axes", [1], keepdims=0), 10)])


def decoder(opset: int, size: int = 4, width: int = 8) -> onnx.ModelProto:
    """A generator: a dense layer, its rows brought to [N, H, W, C], transposed convolutions, a tanh in NHWC."""
    net = begin(opset)
    x = net.dense(net.mean("x"), size * size * 2 * width)
    x = net.node("Reshape", x, net.constant([-1, size, size, 2 * width], "int64"), channels=2 * width)
    x = net.node("LeakyRelu", x, alpha=0.2)
    for count in (width, 3):
        weight = net.weight(net.channels[x], count, 2, 2)
        x = net.node("ConvTranspose", net.first(x), weight, channels=count, kernel_shape=[2, 2], strides=[2, 2])
        x = net.node("LeakyRelu", net.batchnorm(net.bias(net.last(x))), alpha=0.2)
    return net.model(size, 3, [net.node("Tanh", x)])


def quantized(opset: int, size: int = 32, width: int = 8) -> onnx.ModelProto:
    """A quantized TFLite network: Q/DQ pairs in NHWC around each operator, weights [Co, kH, kW, Ci]; from opset 10."""
    net = begin(opset)

    def pair(x: str) -> str:
        scale, zero = net.constant(0.05), net.constant(128, "uint8")
        return net.node("DequantizeLinear", net.node("QuantizeLinear", x, scale, zero), scale, zero)

    def conv(x: str, count: int, stride: int) -> str:
        levels = (np.arange(count * 9 * net.channels[x]) * 37 % 255).reshape(count, 3, 3, -1)
        stored = net.constant(levels, "uint8"), net.constant(0.002), net.constant(128, "uint8")
        weight = net.first(net.node("DequantizeLinear", *stored))
        bias = net.node("DequantizeLinear", net.constant(np.arange(count), "int32"), net.constant(0.0001))
        options = {"kernel_shape": [3, 3], "strides": [stride] * 2, "pads": [1] * 4}
        return net.last(net.node("Conv", net.first(x), weight, bias, channels=count, **options))

    x = pair("x")
    for count, stride in ((width, 2), (width, 1), (2 * width, 2)):
        y = pair(net.relu6(conv(x, count, stride)))
        x = pair(net.node("Add", x, y)) if net.channels[x] == count else y
    return net.model(size, 3, [net.node("Relu", net.dense(pair(net.mean(x)), 10))])


def resized(opset: int, size: int = 32, width: int = 8) -> onnx.ModelProto:
    """A feature pyramid that scales maps by the ratio of sizes read from their NHWC shapes; from opset 11."""
    net = begin(opset)
    a = net.node("Relu", net.conv("x", width, stride=2))
    b = net.node("Relu", net.conv(a, width, stride=2))
    places = net.constant([1, 2], "int64")
    one, other = (net.node("Gather", net.node("Shape", v), places) for v in (a, b))
    ratio = net.node("Div", net.node("Cast", one, to=1), net.node("Cast", other, to=1))
    scales = net.node("Concat", net.constant([1, 1]), ratio, axis=0)
    form = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor", "mode": "nearest"}
    up = net.last(net.node("Resize", net.first(b), net.constant([]), scales, channels=width, **form))
    return net.model(size, 3, [net.conv(net.node("Add", net.node("Relu", up), a), 4, 1)])


NETWORKS: dict[str, Callable[..., onnx.ModelProto]] = {
    "mobilenet-v1": mobilenet_v1,
    "mobilenet-v2": mobilenet_v2,
    "resnet": resnet,
    "unet": unet,
    "ssd": ssd,
    "yolo": yolo,
    "shuffle": shuffle,
    "squeeze-excite": squeeze_excite,
    "temporal": temporal,
    "decoder": decoder,
    "quantized": quantized,
    "resized": resized,
}
