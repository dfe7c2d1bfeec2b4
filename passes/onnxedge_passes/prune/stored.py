"""Weights stored as integers behind a DequantizeLinear: floats while a model is pruned, integers again after."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxedge.api import (
    Array,
    WeightAxes,
    constant,
    constant_tensor,
    drop_if_unused,
    insert_before,
    new_initializer,
    remove_node,
    replace_input,
    set_constant,
    weight_axes,
)
from onnxedge_passes.prune.cut import Cut

_KEY = "onnxedge_passes.prune.stored"
_TYPES = (ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT16, ir.DataType.UINT16, ir.DataType.INT32)


@dataclass(frozen=True, eq=False)
class Stored:
    """How a constant input was stored: ``(integer - zero) * scale``.

    Attributes:
        scale: float32 [] or [C].
        zero: of the integers' type, shape of ``scale``; None for zero.
        dtype: of the integers.
        axis: along which a scale per channel lies.
    """

    scale: Array
    zero: Array | None
    dtype: np.dtype[np.integer[Any]]
    axis: int

    def along(self, array: Array, rank: int) -> Array:
        """Return a scale or zero point in a shape that broadcasts against the constant."""
        return array.reshape([-1 if a == self.axis % rank else 1 for a in range(rank)]) if array.size > 1 else array


def unpack(model: ir.Model) -> None:
    """Turn constant weights and biases of contractions into floats, and remember how they were stored."""
    for node in list(model.graph):
        stored = _stored(node)
        uses = list(node.outputs[0].uses())
        inside = bool(uses) and all(_is_parameter(*use) for use in uses)
        if stored is None or not inside or node.outputs[0].is_graph_output():
            continue
        array, inputs = constant(node.inputs[0]), [value for value in node.inputs if value is not None]
        assert array is not None
        zero = 0 if stored.zero is None else stored.along(stored.zero, array.ndim).astype(np.float64)
        whole = (array - zero) * stored.along(stored.scale, array.ndim)
        value = set_constant(uses[0].node, uses[0].idx, whole.astype(np.float32))
        for use in uses:
            replace_input(use.node, use.idx, value)
            use.node.meta.setdefault(_KEY, {})[use.idx] = stored
        remove_node(node)
        for held in inputs:
            drop_if_unused(held)


def _stored(node: ir.Node) -> Stored | None:
    if node.op_type != "DequantizeLinear" or node.domain not in ("", "ai.onnx"):
        return None
    tensor, scale = constant_tensor(node.inputs[0]), constant(node.inputs[1])
    zero = constant(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else None
    has_zero, block = len(node.inputs) > 2 and node.inputs[2] is not None, node.attributes.get_int("block_size", 0)
    if tensor is None or scale is None or (has_zero and zero is None) or block:
        return None
    if tensor.dtype not in _TYPES or scale.dtype != np.float32 or scale.ndim > 1:
        return None
    return Stored(scale, zero, tensor.dtype.numpy(), node.attributes.get_int("axis", 1))


def _is_parameter(node: ir.Node, index: int) -> bool:
    axes = weight_axes(node)
    return axes is not None and index in (axes.index, axes.bias)


def slice_scales(cut: Cut) -> None:
    """Cut the remembered scales with the channels that they belong to."""
    for reader in cut.labels.readers:
        held: dict[int, Stored] = reader.node.meta.get(_KEY, {})
        for index, stored in list(held.items()):
            labels = _labels_along(reader.axes, index, stored, reader.begins, reader.ends)
            if stored.scale.size > 1 and labels is not None and cut.gone(labels).any():
                kept = cut.kept(labels, 0)
                zero = None if stored.zero is None else stored.zero[kept]
                held = held | {index: replace(stored, scale=stored.scale[kept], zero=zero)}
                reader.node.meta[_KEY] = held  # a fork of the model has the same dict


def _labels_along(axes: WeightAxes, index: int, stored: Stored, begins: Array, ends: Array) -> Array | None:
    if index == axes.bias:
        return begins
    return {axes.output: begins, axes.input: ends}.get(stored.axis)


def restore(model: ir.Model) -> None:
    """Store as integers what was so before; a scale grows where a refitted weight has left its range."""
    made: dict[ir.Value, ir.Value] = {}
    for node in list(model.graph):
        held: dict[int, Stored] = node.meta.pop(_KEY, {})
        growth: Array = np.ones(1)
        for index in sorted(held):  # the weight, then the bias, whose scale is the weight's times the data's
            value, array = node.inputs[index], constant(node.inputs[index])
            if value is None or array is None:
                continue
            if value not in made:
                made[value], growth = _pack(node, array, held[index], growth)
            replace_input(node, index, made[value])
            drop_if_unused(value)


def _pack(node: ir.Node, array: Array, stored: Stored, growth: Array) -> tuple[ir.Value, Array]:
    """Return a DequantizeLinear's output, and by how much the scale has grown."""
    limits, rank = np.iinfo(stored.dtype), array.ndim
    zero = stored.along(np.zeros(1) if stored.zero is None else stored.zero.astype(np.float64), rank)
    scale = stored.along(stored.scale.astype(np.float64).reshape(-1), rank)
    if growth.size == scale.size:
        scale = scale * growth.reshape(scale.shape)
    others = tuple(a for a in range(rank) if scale.size == 1 or a != stored.axis % rank)
    room = np.maximum(np.where(array > 0, limits.max - zero, zero - limits.min), 1)
    grown = np.maximum((np.abs(array) / room).max(axis=others, keepdims=True, initial=0) / scale, 1.0)
    scale = scale * grown
    integers = np.clip(np.rint(array / scale) + zero, limits.min, limits.max).astype(stored.dtype)
    flat = scale.astype(np.float32).reshape(stored.scale.shape)
    graph, name = node.graph, node.inputs[0].name if node.inputs[0] is not None else ""
    assert isinstance(graph, ir.Graph)
    parts = (integers, "quantized"), (flat, "scale")
    inputs = [new_initializer(graph, part, f"{name}_{what}") for part, what in parts]
    if stored.zero is not None:
        inputs.append(new_initializer(graph, stored.zero, f"{name}_zero"))
    attributes = {"axis": stored.axis} if stored.scale.size > 1 else None
    return insert_before(node, "DequantizeLinear", inputs, attributes=attributes).outputs[0], grown
