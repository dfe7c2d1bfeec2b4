"""Which weights are made sparse, and why the others are not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import onnx_ir as ir

from onnxedge.api import Array, Context, WeightAxes, constant, constant_tensor, is_constant, operator, weight_axes
from onnxedge_passes.sparsify.pattern import Pattern

_BUILT = 0.9  #: share of zeros from which a weight is no learned one: a filter bank, a selection
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)


@dataclass(frozen=True, eq=False)
class Layer:
    """A weight and the contractions of the main graph that read it, all of them in the same way.

    Attributes:
        value: the weight.
        nodes: its readers, in the graph's order.
        axes: of the weight.
        shape: of the weight.
    """

    value: ir.Value
    nodes: tuple[ir.Node, ...]
    axes: WeightAxes
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def kernel(self) -> int:
        """Weights for one input and one output channel."""
        return self.size // (self.shape[self.axes.input] * self.shape[self.axes.output])

    @property
    def array(self) -> Array:
        """The weight as it is stored; read-only."""
        array = constant(self.value)
        assert array is not None
        return array

    def matrix(self, array: Array | None = None) -> Array:
        """Return the weight, or another array of its shape, as float64 [Ci/G * K, Co], input channels outermost."""
        held = self.array if array is None else array
        moved = np.moveaxis(held.astype(np.float64), self.axes.output, -1)
        return moved.reshape(-1, moved.shape[-1])

    def restored(self, matrix: Array) -> Array:
        """Return a matrix [Ci/G * K, Co] in the weight's order of axes and dtype."""
        sizes = [size for axis, size in enumerate(self.shape) if axis != self.axes.output]
        moved = np.moveaxis(matrix.reshape(*sizes, -1), -1, self.axes.output)
        return np.ascontiguousarray(moved).astype(self.array.dtype)


def find_layers(
    model: ir.Model, context: Context, *, pattern: Pattern | None, least: int, skip: Sequence[str]
) -> list[Layer]:
    """Return the weights that can be made sparse, in the graph's order; the others are noted with the reason.

    Args:
        model: its main graph is looked at.
        context: for notes.
        pattern: that the weights must be able to have, None for any.
        least: elements under which a weight stays as it is.
        skip: patterns of names of nodes whose weights stay as they are.
    """
    readers: dict[ir.Value, list[ir.Node]] = {}
    for node in model.graph:
        axes = weight_axes(node)
        value = node.inputs[axes.index] if axes is not None and axes.index < len(node.inputs) else None
        if value is not None and is_constant(value):
            readers.setdefault(value, []).append(node)
        else:
            _tell(node, value, context)
    if any(True for _ in model.graph.subgraphs()) or model.functions:
        context.note(None, "weights in subgraphs of If, Loop and Scan and in local functions stay dense")
    for name in skip:
        if not any(fnmatchcase(node.name or "", name) for nodes in readers.values() for node in nodes):
            context.note(None, f"skip: no node with a weight is called {name!r}")
    layers = []
    for value, nodes in readers.items():
        found = _layer(value, nodes, pattern, least, skip)
        if isinstance(found, Layer):
            layers.append(found)
        else:
            context.note(nodes[0], f"stays dense: {found}")
    return layers


def _tell(node: ir.Node, value: ir.Value | None, context: Context) -> None:
    """Say why a node that multiplies by a weight, or nearly so, has none that can be made sparse."""
    producer = value.producer() if value is not None else None
    if value is not None and value.is_initializer() and value.is_graph_input():
        reason = "its weight is a graph input that may be overridden; put `freeze-initializers` first"
    elif producer is not None and producer.op_type == "DequantizeLinear" and is_constant(producer.inputs[0]):
        reason = "its weight is stored as integers; put `sparsify` before `int8`"
    elif operator(node).kind == "recurrent":
        reason = "the weights of recurrent operators are left alone"
    elif node.op_type == "Einsum" and any(is_constant(source) for source in node.inputs):
        reason = "Einsum; put `fuse` first, which makes a MatMul of it where it can"
    elif node.op_type == "MatMul" and is_constant(node.inputs[0]):
        reason = "its weight is the first operand"
    elif node.op_type in ("Conv", "ConvTranspose"):
        reason = "its weight is computed at run time"
    else:
        return
    context.note(node, f"stays dense: {reason}")


def _layer(
    value: ir.Value, nodes: list[ir.Node], pattern: Pattern | None, least: int, skip: Sequence[str]
) -> Layer | str:
    """Return the layer of a constant weight, or why there is none."""
    tensor, axes = constant_tensor(value), weight_axes(nodes[0])
    assert tensor is not None
    assert axes is not None
    shape = tuple(int(size) for size in tensor.shape.numpy())
    if any(fnmatchcase(node.name or "", name) for node in nodes for name in skip):
        return "as asked by skip"
    if tensor.dtype not in _FLOATS:
        return f"its weight is {tensor.dtype.name.lower()}"
    if "Conv" not in nodes[0].op_type and len(shape) != 2:
        return "its weight is no matrix"
    other = _other_reader(value, nodes)
    if other:
        return other
    inputs = shape[axes.input] // (axes.groups if nodes[0].op_type == "ConvTranspose" else 1)
    if axes.groups > 1 and inputs == 1:
        return "depthwise: it has few weights, and each counts"
    if math.prod(shape) < max(least, 1):
        return f"fewer than {least} weights (min_elements)"
    if pattern is not None and nodes[0].op_type == "ConvTranspose":
        return f"no sparse kernel for {pattern} runs a ConvTranspose"
    if pattern is not None and shape[axes.input] % pattern.of:
        return f"its {shape[axes.input]} input channels are no multiple of {pattern.of}"
    layer = Layer(value, tuple(nodes), axes, shape)
    if not np.isfinite(layer.array).all():
        return "its weight holds infinities or NaN"
    if np.count_nonzero(layer.array) <= (1 - _BUILT) * layer.size:
        return "nearly all of it is zero already, as in a filter bank: each of the others counts"
    return layer


def _other_reader(value: ir.Value, nodes: list[ir.Node]) -> str:
    """Return what else is done with a weight, empty where its readers all read it in the same way."""
    if value.is_graph_output():
        return "its weight is a graph output"
    axes = weight_axes(nodes[0])
    for node, index in value.uses():
        theirs = weight_axes(node)
        if node not in nodes:
            inner = node.graph is not nodes[0].graph
            return f"its weight is also read {'in a subgraph' if inner else f'by {node.op_type}'}"
        if axes is None or theirs is None or index != theirs.index:
            return "its weight is also read as data"
        if (axes.output, axes.input, axes.groups) != (theirs.output, theirs.input, theirs.groups):
            return "its weight is read along other axes by another node"
    return ""
