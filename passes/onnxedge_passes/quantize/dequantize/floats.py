"""The float value that an integer value of a model stands for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from onnxedge.api import (
    Array,
    constant,
    drop_if_unused,
    graph_of,
    insert_before,
    is_standard,
    new_initializer,
    scope_of,
)

from .bounds import Bounds
from .steps import Step, node_step, step_of

Saturation = Literal["keep", "zero", "drop"]

#: operators that move integers unchanged: what they do to the integers they do to the floats
_MOVES = (
    *("Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "MaxPool"),
    *("Pad", "ReduceMax", "ReduceMin", "Reshape", "Resize", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile"),
    *("Transpose", "Unsqueeze"),
)


@dataclass(frozen=True)
class Kernel:
    """Say where an operator on integers has its operands: each a value, its scale and its zero point side by side.

    Attributes:
        op: the operator in float.
        operands: index of each value.
        result: index of the output's scale, the zero point behind it.
        bias: index of an int32 bias, whose scale is the product of the operands' scales.
    """

    op: str
    operands: tuple[int, ...]
    result: int
    bias: int | None = None


KERNELS: Mapping[str, Kernel] = {
    "QLinearConv": Kernel("Conv", (0, 3), 6, bias=8),
    "QLinearMatMul": Kernel("MatMul", (0, 3), 6),
    "com.microsoft::QGemm": Kernel("Gemm", (0, 3), 7, bias=6),
    "com.microsoft::QLinearAdd": Kernel("Add", (0, 3), 6),
    "com.microsoft::QLinearMul": Kernel("Mul", (0, 3), 6),
    "com.microsoft::QLinearSigmoid": Kernel("Sigmoid", (0,), 3),
    "com.microsoft::QLinearLeakyRelu": Kernel("LeakyRelu", (0,), 3),
    "com.microsoft::QLinearSoftmax": Kernel("Softmax", (0,), 3),
    "com.microsoft::QLinearGlobalAveragePool": Kernel("GlobalAveragePool", (0,), 3),
    "com.microsoft::QLinearAveragePool": Kernel("AveragePool", (0,), 3),
    "com.microsoft::QLinearConcat": Kernel("Concat", (), 0),
}
_OWN_ATTRIBUTES = ("channels_last", "opset")  #: of the runtime's operators, unknown to the standard's


def kernel_of(node: ir.Node) -> Kernel | None:
    """Return what is known of an operator that computes on integers, None for others."""
    name = node.op_type if is_standard(node) else f"{node.domain}::{node.op_type}"
    kernel = KERNELS.get(name)
    if kernel is None or kernel.op != "Concat":
        return kernel
    return Kernel("Concat", tuple(range(2, len(node.inputs), 3)), 0)


class Floats:
    """Find or make the float values; what is made stands beside the integers, which go when nobody reads them.

    Args:
        saturation: what stays of the range of an activation: ``keep`` all of it, ``zero`` only that nothing is
            negative, ``drop`` nothing.
    """

    def __init__(self, saturation: Saturation) -> None:
        self._saturation = saturation
        self._made: dict[tuple[ir.Value, tuple[object, ...]], ir.Value | str] = {}
        self._bounds = Bounds()

    def of(self, codes: ir.Value, step: Step) -> ir.Value | str:
        """Return the floats that integers stand for, or why there are none."""
        key = (codes, step.key)
        if key not in self._made:
            self._made[key] = self._make(codes, step)
        return self._made[key]

    def makers(self) -> list[ir.Node]:
        """Return the nodes that were made, those that turned out to be of no use too; drop constants nobody reads."""
        values = [value for value in self._made.values() if isinstance(value, ir.Value)]
        for value in values:
            drop_if_unused(value)
        return [node for value in values if (node := value.producer()) is not None]

    def _make(self, codes: ir.Value, step: Step) -> ir.Value | str:
        array, node = constant(codes), codes.producer()
        if array is not None:
            return self._constant(codes, array, step)
        if node is None:
            return "reads integers that come from outside of the graph"
        if node.op_type == "QuantizeLinear" and node.domain in ("", "ai.onnx", "com.microsoft"):
            return self._unquantized(node, codes, step)
        if step.axis is not None:
            return f"{node.op_type} stands between a quantized and a float value with several scales"
        if kernel_of(node) is not None:
            return self._computed(node, step)
        if is_standard(node) and node.op_type in _MOVES and (codes is node.outputs[0] or node.op_type == "Split"):
            return self._moved(node, codes, step)
        return f"{node.op_type} computes on integers and has no float form here"

    def _constant(self, codes: ir.Value, array: Array, step: Step) -> ir.Value | str:
        if not step.fits(array.shape):
            return "its scales do not fit its shape"
        producer = codes.producer()
        graph = graph_of(producer) if producer is not None else codes.graph
        assert isinstance(graph, ir.Graph)
        return new_initializer(graph, step.restored(array), codes.name or "weight")

    def _unquantized(self, node: ir.Node, codes: ir.Value, step: Step) -> ir.Value | str:
        source, own = node.inputs[0], node_step(node, codes)
        if isinstance(own, str):
            return own
        if own.key != step.key:
            return "is quantized with another scale or zero point than it is made float with"
        array = constant(source)
        if array is not None:  # a weight that training rounded
            if not step.fits(array.shape) or array.dtype != step.scale.dtype:
                return "its scales do not fit it"
            return new_initializer(graph_of(node), step.restored(step.rounded(array)), (codes.name or "w"))
        if source is None or source.dtype != ir.DataType.from_numpy(step.scale.dtype):
            return "its type before and behind the integers differs"
        if step.axis is not None:
            return "has several scales and is computed at run time"
        return self._saturated(source, step, node)

    def _saturated(self, source: ir.Value, step: Step, anchor: ir.Node) -> ir.Value:
        """Return a value within the range of its integers; the nodes are put before ``anchor``."""
        (low, high), (least, most) = step.bounds, self._bounds.of(source)
        if self._saturation == "drop" or (low <= least and most <= high):
            return source
        if self._saturation == "zero":
            if low != 0 or least >= 0:
                return source
            return insert_before(anchor, "Relu", [source], like=[source]).outputs[0]
        graph, dtype = graph_of(anchor), step.scale.dtype
        if scope_of(graph).opset_imports.get("", 13) < 11:
            bounds = {"min": float(low), "max": float(high)}
            return insert_before(anchor, "Clip", [source], attributes=bounds, like=[source]).outputs[0]
        ends = [new_initializer(graph, np.array(bound, dtype), name) for bound, name in ((low, "low"), (high, "high"))]
        return insert_before(anchor, "Clip", [source, *ends], like=[source]).outputs[0]

    def _moved(self, node: ir.Node, codes: ir.Value, step: Step) -> ir.Value | str:
        """Repeat a node that moves integers on the floats that they stand for."""
        count = len(node.inputs) if node.op_type == "Concat" else 1
        inputs: list[ir.Value | None] = list(node.inputs)
        if node.op_type == "Resize" and node.attributes.get_string("mode", "nearest") == "cubic":
            return "Resize interpolates with cubes on integers"
        for index in range(count):
            value = node.inputs[index]
            made = self.of(value, step) if value is not None else "a missing input"
            if isinstance(made, str):
                return made
            inputs[index] = made
        if node.op_type == "Pad" and node.attributes.get_string("mode", "constant") == "constant":
            fill = self._fill(node, step)
            if isinstance(fill, str):
                return fill
            inputs = [*inputs, *[None] * (3 - len(inputs))]
            inputs[2] = fill
        new = insert_before(node, node.op_type, inputs, attributes=dict(node.attributes), outputs=len(node.outputs))
        kind = ir.TensorType(ir.DataType.from_numpy(step.scale.dtype))
        for old, value in zip(node.outputs, new.outputs, strict=True):
            value.name = value.name if old.name else ""  # an output that nobody asks for
            value.type, value.shape = kind, old.shape
            self._made[old, step.key] = value
        return new.outputs[codes.index() or 0]

    def _fill(self, node: ir.Node, step: Step) -> ir.Value | str:
        """Return the float that a Pad fills up with."""
        given = node.inputs[2] if len(node.inputs) > 2 else None
        array = constant(given) if given is not None else np.zeros(())
        if array is None or array.size != 1:
            return "Pad fills up with an integer that is computed at run time"
        return new_initializer(graph_of(node), step.restored(array.reshape(())), "fill")

    def _computed(self, node: ir.Node, step: Step) -> ir.Value | str:
        """Compute in float what a node computes on integers."""
        kernel = kernel_of(node)
        assert kernel is not None
        inputs = [*node.inputs, *[None] * (kernel.result + 2 - len(node.inputs))]
        own = step_of(node.outputs[0].dtype, inputs[kernel.result], inputs[kernel.result + 1])
        if isinstance(own, str):
            return own
        if own.key != step.key:
            return "is quantized with another scale or zero point than it is made float with"
        made = self.kernel(node)
        if isinstance(made, str):
            return made
        made.type, made.shape = ir.TensorType(ir.DataType.FLOAT), node.outputs[0].shape
        return self._saturated(made, step, node)

    def kernel(self, node: ir.Node) -> ir.Value | str:
        """Return what a node on integers computes, in float and not yet rounded to its output's integers."""
        kernel = kernel_of(node)
        assert kernel is not None
        refusal = _refusal(node, kernel)
        if refusal:
            return refusal
        steps = [self._operand_step(node, index, number) for number, index in enumerate(kernel.operands)]
        floats: list[ir.Value | None] = []
        for index, own in zip(kernel.operands, steps, strict=True):
            made = self._operand(node, node.inputs[index], own)
            if isinstance(made, str):
                return made
            floats.append(made)
        bias = node.inputs[kernel.bias] if kernel.bias is not None and kernel.bias < len(node.inputs) else None
        if bias is not None:
            codes, scales = constant(bias), [own.scale for own in steps if isinstance(own, Step)]
            if codes is None:
                return "its bias is computed at run time or may be overridden"
            product = scales[0].astype(np.float32) * scales[1].astype(np.float32)
            floats.append(new_initializer(graph_of(node), codes.astype(np.float32) * product, bias.name or "bias"))
        attributes = {name: a for name, a in node.attributes.items() if name not in _OWN_ATTRIBUTES}
        return insert_before(node, kernel.op, floats, attributes=attributes, name=node.name).outputs[0]

    def _operand_step(self, node: ir.Node, index: int, number: int) -> Step | str:
        value = node.inputs[index]
        if value is None:
            return "an operand is missing"
        axis: int | None = None
        if number == 1:  # several scales: a weight's output channels
            array = constant(value)
            last = array.ndim - 1 if array is not None else None
            if node.op_type == "QGemm" and last is not None:
                axis = 0 if node.attributes.get_int("transB", 0) else last
            else:
                axis = 0 if node.op_type == "QLinearConv" else last
        zero = node.inputs[index + 2] if index + 2 < len(node.inputs) else None
        return step_of(value.dtype, node.inputs[index + 1], zero, axis=axis)

    def _operand(self, node: ir.Node, value: ir.Value | None, step: Step | str) -> ir.Value | str:
        if isinstance(step, str) or value is None:
            return step if isinstance(step, str) else "an operand is missing"
        made = self.of(value, step)
        if isinstance(made, ir.Value) or step.axis is not None:
            return made
        graph = graph_of(node)  # integers from outside, or that something computes: made float here
        if scope_of(graph).opset_imports.get("", 13) < 10:
            return made
        ends = [new_initializer(graph, step.scale, "scale")]
        ends.append(new_initializer(graph, step.zero.astype(step.dtype), "zero"))
        new = insert_before(node, "DequantizeLinear", [value, *ends]).outputs[0]
        new.type, new.shape = ir.TensorType(ir.DataType.FLOAT), value.shape
        return new


def _refusal(node: ir.Node, kernel: Kernel) -> str:
    """Return what a standard operator cannot say of the runtime's, empty where it can say all."""
    if node.attributes.get_int("channels_last", 0):
        return f"{node.op_type} has its channels last"
    version = scope_of(graph_of(node)).opset_imports.get("", 13)
    if kernel.op == "Softmax" and (version < 13) != ((node.attributes.get_int("opset", version) or version) < 13):
        return "its Softmax is of another opset than the model"
    return ""
