"""Contractions whose weight becomes int8, as matrices: one row an output channel, one column an input."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxedge.api import Array, constant, constant_tensor, is_standard

from ..rounding import Weight

_OPERATORS = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True, eq=False)
class Layer:
    """A weight and the nodes of the main graph that read it, all in the same way.

    Attributes:
        value: the weight.
        nodes: its readers.
        nearest: the weight rounded to nearest; its scale stays.
        centred: the bias takes up the mean error of the outputs.
    """

    value: ir.Value
    nodes: tuple[ir.Node, ...]
    nearest: Weight
    centred: bool

    @property
    def node(self) -> ir.Node:
        """Return the first reader."""
        return self.nodes[0]

    @property
    def groups(self) -> int:
        """Return G, of a grouped convolution."""
        return (self.node.attributes.get_int("group", 1) or 1) if self.node.op_type == "Conv" else 1

    @property
    def columns(self) -> int:
        """Return K: what one output is computed from."""
        shape = self.nearest.codes.shape
        return math.prod(shape[1:]) if self.node.op_type == "Conv" else shape[-1 if self._transposed else 0]

    @property
    def kernel(self) -> tuple[int, ...]:
        """Return the sizes of a convolution's window."""
        return self.nearest.codes.shape[2:] if self.node.op_type == "Conv" else ()

    @property
    def _transposed(self) -> bool:
        return bool(self.node.attributes.get_int("transB", False))

    def matrix(self, array: Array) -> Array:
        """Return an array of the weight's shape as [G, N, K]."""
        if self.node.op_type != "Conv":
            return (array if self._transposed else array.T)[None]
        return array.reshape(self.groups, len(array) // self.groups, -1)

    def array(self, matrix: Array) -> Array:
        """Return what :meth:`matrix` made a matrix of."""
        if self.node.op_type == "Conv":
            return matrix.reshape(self.nearest.codes.shape)
        return np.ascontiguousarray(matrix[0] if self._transposed else matrix[0].T)

    def scale(self) -> Array:
        """Return the scale as float32 [G, N, 1], or what broadcasts to it."""
        scale = self.nearest.scale
        return scale.reshape(self.groups, -1, 1) if scale.ndim else scale.reshape(1, 1, 1)

    def output_shape(self, node: ir.Node, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of what a reader makes of data of some shape; of a product that of its data."""
        if node.op_type != "Conv":
            return tuple(shape)
        attributes, rank = node.attributes, len(self.kernel)
        strides = attributes.get_ints("strides", (1,) * rank)
        dilations = attributes.get_ints("dilations", (1,) * rank)
        mode = attributes.get_string("auto_pad", "NOTSET") or "NOTSET"
        pads = attributes.get_ints("pads", (0,) * (2 * rank)) if mode == "NOTSET" else (0,) * (2 * rank)
        if mode.startswith("SAME"):
            return (shape[0], 0, *(-(-size // step) for size, step in zip(shape[2:], strides, strict=True)))
        spans = [(k - 1) * d + 1 for k, d in zip(self.kernel, dilations, strict=True)]
        whole = [size + pads[i] + pads[i + rank] for i, size in enumerate(shape[2:])]
        return (shape[0], 0, *((w - s) // step + 1 for w, s, step in zip(whole, spans, strides, strict=True)))


def find_layers(model: ir.Model, rounded: Callable[[ir.Node, Array], tuple[Weight, bool] | None]) -> list[Layer]:
    """Return the layers of the main graph in its order; a weight that is read in several ways is none.

    Args:
        model: not changed.
        rounded: gives a node's weight rounded to nearest and whether its bias takes up mean errors, None where it
            stays float.
    """
    readers: dict[ir.Value, list[ir.Node]] = {}
    for node in model.graph:
        value = node.inputs[1] if node.op_type in _OPERATORS and is_standard(node) and len(node.inputs) > 1 else None
        if value is not None and constant_tensor(value) is not None and node.inputs[0] is not None:
            readers.setdefault(value, []).append(node)
    layers: list[Layer] = []
    for value, nodes in readers.items():
        tensor = constant_tensor(value)
        assert tensor is not None
        if tensor.dtype != ir.DataType.FLOAT or len(nodes) != len(value.uses()) or len({_form(n) for n in nodes}) > 1:
            continue
        if nodes[0].op_type != "Conv" and (len(tensor.shape) != 2 or nodes[0].attributes.get_int("transA", False)):
            continue
        array = constant(value)
        if array is None or not array.size or not np.isfinite(array).all():
            continue
        found = [rounded(node, array) for node in nodes]
        first = found[0]
        same = [f for f in found if f is not None and first is not None and np.array_equal(f[0].scale, first[0].scale)]
        if first is not None and len(same) == len(nodes) and _along_rows(nodes[0], first[0]):
            layers.append(Layer(value, tuple(nodes), first[0], all(f[1] for f in same)))
    return layers


def _form(node: ir.Node) -> tuple[object, ...]:
    return node.op_type, node.attributes.get_int("transB", False), node.attributes.get_int("group", 1)


def _along_rows(node: ir.Node, weight: Weight) -> bool:
    """Tell whether an output channel has one scale."""
    if weight.axis is None:
        return True
    return weight.axis == (0 if node.op_type == "Conv" or node.attributes.get_int("transB", False) else 1)
