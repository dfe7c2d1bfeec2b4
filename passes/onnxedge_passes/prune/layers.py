"""Contractions to be timed alone: each with the elementwise nodes behind it, as one branch of a small model."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper

from onnxedge.api import Array, Feed, WeightAxes, constant, operator, weight_axes
from onnxedge_passes.prune.groups import Groups
from onnxedge_passes.prune.labels import Reader

Point = tuple[int, int]  #: lengths of the input and the output axis of a weight
_FOLLOWERS = 6  #: elementwise nodes that are timed along with a contraction, at most
_REFERENCE = "reference"
_BESIDE = "beside_"  #: what nodes are called that are not timed


@dataclass(frozen=True, eq=False)
class Layer:
    """A contraction with a constant weight and the elementwise nodes that are the only readers of what it gives.

    Attributes:
        reader: the contraction.
        axes: of its weight.
        data, weight, output: shapes, for one sample.
        followers: nodes behind it, each the only reader of the one before.
        samples: samples in the shapes of the facts.
        key: says all that its time depends on but the widths.
    """

    reader: Reader
    axes: WeightAxes
    data: tuple[int, ...]
    weight: tuple[int, ...]
    output: tuple[int, ...]
    followers: tuple[ir.Node, ...]
    samples: int
    key: str

    @property
    def width(self) -> int:
        """Channels that the whole contraction gives."""
        return self.weight[self.axes.output]

    def groups_at(self, point: Point) -> int:
        """Return the number of groups of the convolution at other widths."""
        return self.axes.groups if self.reader.columns else max(1, self.axes.groups * point[1] // self.width)


def layers(groups: Groups) -> list[Layer | None]:
    """Return the layer of each of ``groups.costs``, None for an operator that is not timed."""
    claimed: set[ir.Node] = set()
    return [_layer(groups, reader, claimed) for reader in groups.labels.readers]


def _layer(groups: Groups, reader: Reader, claimed: set[ir.Node]) -> Layer | None:
    facts, node, axes = groups.labels.facts, reader.node, reader.axes
    data, weight = reader.data, reader.weight.const_value
    if data is None or weight is None or weight.dtype != ir.DataType.FLOAT or weight_axes(node) is None:
        return None
    if (axes.groups > 1 and node.op_type != "Conv") or data is not node.inputs[0] or axes.index != 1:
        return None
    shapes = [facts.shapes.get(value, ()) for value in (data, reader.weight, node.outputs[0])]
    if not all(shapes) or len(shapes[1]) < 2:
        return None
    inner, outer = (_one_sample(shape, facts.samples) for shape in (shapes[0], shapes[2]))
    followers = tuple(_followers(groups, node, claimed))
    claimed.update(followers)
    facets = [
        node.op_type,
        *_attributes(node),
        _without(inner, axes.data_axis),
        shapes[1][2:] if "Conv" in node.op_type else 0,
        len(node.inputs),
        facts.opset,
        shapes[1][axes.output] // axes.groups if axes.groups > 1 else 0,
        axes.groups if reader.columns else 0,
        [[f.op_type, *_attributes(f), *(_kind(v) for v in f.inputs)] for f in followers],
    ]
    return Layer(reader, axes, inner, shapes[1], outer, followers, facts.samples, json.dumps(facets))


def _one_sample(shape: tuple[int, ...], samples: int) -> tuple[int, ...]:
    return (shape[0] // samples, *shape[1:]) if samples > 1 and shape[0] % samples == 0 else shape


def _without(shape: tuple[int, ...], axis: int) -> list[int]:
    return [0 if place == axis % len(shape) else size for place, size in enumerate(shape)]


def _attributes(node: ir.Node) -> list[str]:
    return sorted(f"{a.name}={a.value}" for a in node.attributes.values() if a.name != "group")


def _kind(value: ir.Value | None) -> str:
    return "" if value is None else "data" if constant(value) is None else "constant"


def _followers(groups: Groups, node: ir.Node, claimed: set[ir.Node]) -> Iterable[ir.Node]:
    """Yield the elementwise nodes that follow, whose operands can be made up at any width."""
    shapes, value = groups.labels.facts.shapes, node.outputs[0]
    whole = shapes[value]
    for _ in range(_FOLLOWERS):
        uses = list(value.uses())
        if len(uses) != 1 or value.is_graph_output():
            return
        user = uses[0].node
        known = operator(user).kind == "elementwise" and len(user.outputs) == 1 and user not in claimed
        if not known or user.graph is not node.graph or shapes.get(user.outputs[0]) != whole:
            return
        for other in user.inputs:
            shape = shapes.get(other) if other is not None else ()
            small = shape is not None and math.prod(shape) in (1, max(shape, default=1))
            if (
                shape != whole
                and not (small and other is not None and constant(other) is not None)
                and other is not None
            ):
                return
        yield user
        value = user.outputs[0]


class Branches:
    """A small model of many contractions side by side, to be timed in turns, and the one all are compared with."""

    def __init__(self, versions: dict[str, int], ir_version: int) -> None:
        self._rng = np.random.default_rng(0)
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._ports: dict[str, tuple[int, ...]] = {}
        self._outputs: list[str] = []
        self._versions, self._ir_version = versions, ir_version
        self.bytes = 0
        self._add_reference()

    def add(self, number: int, layer: Layer, point: Point) -> None:
        """Add a layer at some widths; its nodes are called after ``number``."""
        name, node, axes = f"p{number}_", layer.reader.node, layer.axes
        weight = list(layer.weight)
        weight[axes.input], weight[axes.output] = point
        count = layer.groups_at(point)
        channels = point[0] * (count if node.op_type == "Conv" else 1)
        data = _resized(layer.data, axes.data_axis, channels)
        output = _resized(layer.output, axes.output_axis, point[1])
        inputs = [self._port("x_" + "x".join(map(str, data)), data), self._constant(f"{name}w", tuple(weight))]
        if axes.bias is not None and len(node.inputs) > axes.bias and node.inputs[axes.bias] is not None:
            inputs.append(self._constant(f"{name}b", (point[1],)))
        proto = self._node(node, inputs, f"{name}0")
        for attribute in proto.attribute:
            if attribute.name == "group":
                attribute.i = count
        value = node.outputs[0]
        for place, follower in enumerate(layer.followers, 1):
            read = [f"{name}{place - 1}" if v is value else self._operand(layer, v, f"{name}{place}", output)
                    for v in follower.inputs]  # fmt: skip
            self._node(follower, read, f"{name}{place}")
            value = follower.outputs[0]
        self._outputs.append(f"{name}{len(layer.followers)}")

    def model(self) -> tuple[onnx.ModelProto, Feed]:
        """Return the model and something to run it on."""
        ports = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, shape) for n, shape in self._ports.items()]
        outputs = [onnx.ValueInfoProto(name=name) for name in self._outputs]
        graph = helper.make_graph(self._nodes, "branches", ports, outputs, self._constants)
        imports = [helper.make_opsetid(domain, version) for domain, version in self._versions.items()]
        model = helper.make_model(graph, opset_imports=imports)
        model.ir_version = max(self._ir_version, 4)
        return model, {name: self._random(shape) for name, shape in self._ports.items()}

    def _add_reference(self) -> None:
        inputs = [self._port("x_reference", (1, 32, 28, 28)), self._constant("w_reference", (32, 32, 3, 3))]
        self._nodes.append(helper.make_node("Conv", inputs, [_REFERENCE], name=_REFERENCE, pads=[1, 1, 1, 1]))
        self._outputs.append(_REFERENCE)

    def _node(self, node: ir.Node, inputs: Sequence[str], output: str) -> onnx.NodeProto:
        proto = onnx.NodeProto(op_type=node.op_type, domain=node.domain, name=output, input=inputs, output=[output])
        proto.attribute.extend(ir.to_proto(attribute) for attribute in node.attributes.values())
        self._nodes.append(proto)
        return proto

    def _operand(self, layer: Layer, value: ir.Value | None, name: str, output: tuple[int, ...]) -> str:
        """Return what stands for an operand of a follower: its own scalar, a vector, or one more input."""
        array = constant(value) if value is not None else None
        if value is None:
            return ""
        if array is None:
            return (
                self._beside(f"{name}_y", output)
                if layer.reader.node.op_type == "Conv"
                else self._port(f"{name}_y", output)
            )
        if array.size == 1:
            self._constants.append(numpy_helper.from_array(array, f"{name}_s"))
            return f"{name}_s"
        width = output[layer.axes.output_axis % len(output)]
        return self._constant(f"{name}_v", tuple(width if size == layer.width else size for size in array.shape))

    def _beside(self, name: str, shape: tuple[int, ...]) -> str:
        """Return what another convolution gives: the runtime adds that up inside of the one that is timed."""
        rank = len(shape) - 2
        few = self._port(f"{name}_few", (shape[0], 4, *shape[2:]))
        weight = self._constant(f"{name}_w", (shape[1], 4, *[1] * rank))
        self._nodes.append(helper.make_node("Conv", [few, weight], [f"{_BESIDE}{name}"], name=f"{_BESIDE}{name}"))
        return f"{_BESIDE}{name}"

    def _port(self, name: str, shape: tuple[int, ...]) -> str:
        self._ports[name] = shape
        return name

    def _constant(self, name: str, shape: tuple[int, ...]) -> str:
        self._constants.append(numpy_helper.from_array(self._random(shape), name))
        self.bytes += 4 * math.prod(shape)
        return name

    def _random(self, shape: tuple[int, ...]) -> Array:
        return np.asarray(self._rng.random(shape, np.float32) - 0.5)


def _resized(shape: tuple[int, ...], axis: int, size: int) -> tuple[int, ...]:
    return tuple(size if place == axis % len(shape) else old for place, old in enumerate(shape))


def branch_of(name: str) -> int | None:
    """Return the number of the branch that a node of the optimized model belongs to, -1 for the reference."""
    if _REFERENCE in name or _BESIDE in name:
        return -1 if _REFERENCE in name else None
    head = name[name.find("p") + 1 :].split("_")[0] if "p" in name else ""
    return int(head) if head.isdigit() else None
