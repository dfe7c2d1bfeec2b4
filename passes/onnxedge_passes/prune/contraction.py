"""Labels through contractions: one axis ends at a weight, another begins; attention ties its heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard

import numpy as np
import onnx_ir as ir

from onnxedge.api import Array, WeightAxes, constant_tensor, is_standard, operator, weight_axes
from onnxedge_passes.prune.labels import FIXED, Labels, Operand, Reader, line

_HEAD_COUNTS = ("num_heads", "q_num_heads", "kv_num_heads")


def propagate(labels: Labels, node: ir.Node) -> None:
    """Carry labels through a convolution or a product of matrices; what has no rule is locked."""
    axes, plain = weight_axes(node), node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul")
    value, weight = node.inputs[0], node.inputs[1] if len(node.inputs) > 1 else None
    if axes is None or value is None or not plain:
        labels.wall(node)
    elif weight is not None and _is_matrix(node, weight, labels):
        _weighted(labels, node, value, weight, axes)
        if not _is_weight(weight, labels):
            labels.lock(node, "its weight is read elsewhere, too", *(labels.fresh(weight, axis) for axis in (0, 1)))
    elif node.op_type == "MatMul" and all(labels.facts.rank(v) > 1 for v in node.inputs):
        _product(labels, node)
    else:
        labels.wall(node, "whose weight is computed at run time")


def _is_matrix(node: ir.Node, weight: ir.Value, labels: Labels) -> bool:
    """Tell whether a value is a constant kernel, or one matrix for all samples."""
    stored = constant_tensor(weight) is not None and weight in labels.facts.shapes
    return stored and ("Conv" in node.op_type or labels.facts.rank(weight) == 2)


def _is_weight(value: ir.Value | None, labels: Labels) -> TypeGuard[ir.Value]:
    """Tell whether a value is a constant that only contractions of the main graph read, as their weight."""
    if value is None or constant_tensor(value) is None or value.is_graph_output() or value not in labels.facts.shapes:
        return False
    for use in value.uses():
        entry = operator(use.node)
        at = (1, 2) if entry.kind == "recurrent" else (entry.weight,)
        if use.idx not in at or use.node.graph is not labels.facts.model.graph:
            return False
    return True


def _weighted(labels: Labels, node: ir.Node, value: ir.Value, weight: ir.Value, axes: WeightAxes) -> None:
    data, rank, columns = labels.get(value), labels.facts.rank(node.outputs[0]), node in labels.columns
    begins, ends = labels.fresh(weight, axes.output), labels.fresh(weight, axes.input)
    labels.readers.append(Reader(node, weight, value, axes, begins, ends, columns))
    result = begins.reshape([-1 if a == axes.output_axis % rank else 1 for a in range(rank)])
    if data.size > 1 and data.shape[axes.data_axis] == 1 and axes.data_axis == -1:  # rows multiplied one by one
        labels.lock(node, "a fixed axis is summed", ends, begins)
        result = data
    else:
        channels = _summed(labels, node, value, axes.data_axis)
        if axes.groups == 1:
            _end(labels, node, channels, ends)
        elif node.op_type == "ConvTranspose":
            labels.lock(node, "grouped ConvTranspose", channels, begins, ends)
            result = np.zeros([1] * rank, np.int32)
        else:
            _blocks(labels, node, channels.reshape(axes.groups, -1), begins, ends, columns)
    labels.of[node.outputs[0]] = result
    for bias in (value for value in node.inputs[2:] if value is not None):
        if constant_tensor(bias) is None:
            labels.lock(node, "its bias is computed at run time", begins, result, labels.get(bias))
        labels.operands.append(Operand(node, 2, begins if "Conv" in node.op_type else result))


def _summed(labels: Labels, node: ir.Node, value: ir.Value, axis: int) -> Array:
    """Return the labels along an axis that is summed, or holds heads; along the others they are tied."""
    held = labels.get(value)
    others = [a for a in range(held.ndim) if a != axis % held.ndim]
    units = labels.tie(node, held, others, f"{node.op_type} over the channels")
    return line(units, axis, labels.facts.shapes[value][axis])


def _blocks(labels: Labels, node: ir.Node, channels: Array, begins: Array, ends: Array, columns: bool) -> None:
    """Tie a grouped convolution: whole groups of inputs and outputs, or the same columns of every group."""
    begun = begins.reshape(len(channels), -1)
    if columns:
        for row in channels:
            _end(labels, node, row, ends)
        labels.join(begun[:1], begun, node)
        return
    labels.lock(node, "stays inside a group of a grouped convolution", ends)
    labels.tie(node, np.concatenate([channels, begun], axis=1), [1], "its inputs are fixed")
    labels.counts.append((node, "group", begins))


def _end(labels: Labels, node: ir.Node, channels: Array, ends: Array) -> None:
    """Tie the weight's rows to the channels that they multiply; rows of fixed or constant data stay."""
    live = channels > FIXED
    labels.edges.append((channels[live], ends[live]))
    labels.lock(node, "its inputs are fixed", ends[~live])


def _product(labels: Labels, node: ir.Node) -> None:
    """Carry labels through a MatMul [..., M, K] x [..., K, N] without a weight: a product, then a sum over K.

    What the heads differ in joins and goes on, so that a head goes as a whole; so do labels along M or N.
    """
    rank = labels.facts.rank(node.outputs[0])
    (a, first), (b, second) = (labels.aligned(value, rank) for value in node.inputs if value is not None)
    claims = (a[..., None], (*first, 1)), (b[..., None, :, :], (*second[:-2], 1, *second[-2:]))
    joint = labels.combine(node, claims, "is multiplied with channels that are fixed")
    units = labels.tie(node, joint, [rank - 1], "is summed in a product of two activations")
    labels.of[node.outputs[0]] = units.squeeze(-2)


def recurrent(labels: Labels, node: ir.Node) -> None:
    """Carry labels through LSTM, GRU and RNN: features end, hidden units begin, the same in both directions."""
    value, weight, recurrence = node.inputs[:3]
    if value is None or not _is_weight(weight, labels) or not _is_weight(recurrence, labels):
        labels.wall(node, "whose weight is computed at run time, or read elsewhere")
        return
    hidden, features = labels.fresh(recurrence, 2), labels.fresh(weight, 2)
    state = node.outputs[0] if node.outputs[0].name else None
    for index, (held, ends, data) in enumerate(((weight, features, value), (recurrence, hidden, state)), 1):
        gates = labels.fresh(held, 1)
        labels.join(gates, np.tile(hidden, len(gates) // len(hidden)), node)
        axes = WeightAxes(index, None, output=1, input=2, data_axis=-1, output_axis=-1)
        labels.readers.append(Reader(node, held, data, axes, gates, ends))
    _end(labels, node, _summed(labels, node, value, -1), features)
    for index, held in ((i, v) for i, v in enumerate(node.inputs) if i in (3, 5, 6, 7) and v is not None):
        spread = np.tile(hidden, labels.facts.shapes[held][-1] // len(hidden))
        if constant_tensor(held) is None:
            labels.join(spread, line(labels.get(held), -1, len(spread)), node)
        labels.operands.append(Operand(node, index, spread))
    labels.counts.append((node, "hidden_size", hidden))
    for output in (v for v in node.outputs if v.name):
        labels.of[output] = hidden.reshape([1] * (labels.facts.rank(output) - 1) + [-1])


def attention(labels: Labels, node: ir.Node) -> None:
    """Tie the heads of a fused attention or rotary embedding: with shared keys, all the heads that share them."""
    rotary, packed, shapes = "Rotary" in node.op_type, operator(node).weight is not None, labels.facts.shapes
    parts = [value for value in node.inputs[: 1 if rotary or packed else 3] if value is not None]
    heads = [shapes[value][1] if labels.facts.rank(value) == 4 else 0 for value in parts]
    count = heads[0] or node.attributes.get_int("num_heads", 0) or node.attributes.get_int("q_num_heads", 0)
    if rotary and not count and node.inputs[2] is not None:
        count = shapes[parts[0]][-1] // (2 * shapes[node.inputs[2]][-1])
    shared = max(heads[1:], default=0) or node.attributes.get_int("kv_num_heads", 0) or count
    lines = [] if any(labels.facts.rank(value) not in (3, 4) for value in parts) else _lines(labels, node, parts)
    if len(parts) == 1 and not rotary and lines:  # query, key and value in one
        size = len(lines[0]) // max(count + 2 * shared, 1)
        lines = np.split(lines[0], [count * size, (count + shared) * size])
    if not shared or not lines or any(len(along) % shared for along in lines):
        labels.wall(node, "in this form")
        return
    rows = np.concatenate([along.reshape(shared, -1) for along in lines], axis=1)
    units = labels.tie(node, rows, [1], "has one head of keys")
    if units.max() <= FIXED:
        return
    for index, value in enumerate(node.inputs):
        if value is not None and value not in parts:
            _with_heads(labels, node, index, value, units, [len(along) for along in lines])
    labels.counts += [(node, name, units) for name in _HEAD_COUNTS if node.attributes.get_int(name, 0)]
    for value in (v for v in node.outputs if v.name and labels.facts.rank(v) in (3, 4)):
        axis = 1 if labels.facts.rank(value) == 4 else 2
        wide = np.repeat(units.reshape(-1), shapes[value][axis] // units.size)
        labels.of[value] = wide.reshape([-1 if a == axis else 1 for a in range(len(shapes[value]))])


def _lines(labels: Labels, node: ir.Node, parts: list[ir.Value]) -> list[Array]:
    """Return the labels that the heads lie along, behind the weight that the operator may have; none without a rule."""
    if operator(node).weight is None:
        return [_summed(labels, node, value, 1 if labels.facts.rank(value) == 4 else 2) for value in parts]
    weight = node.inputs[1]
    if not _is_weight(weight, labels) or "qkv_hidden_sizes" in node.attributes:
        return []
    axes = WeightAxes(1, 2, output=1, input=0, data_axis=-1, output_axis=-1)
    begins, ends = labels.fresh(weight, 1), labels.fresh(weight, 0)
    labels.readers.append(Reader(node, weight, parts[0], axes, begins, ends))
    _end(labels, node, _summed(labels, node, parts[0], 2), ends)
    return [begins]


def _with_heads(labels: Labels, node: ir.Node, index: int, value: ir.Value, units: Array, sizes: Sequence[int]) -> None:
    """Cut what a fused attention adds head by head: a bias, a mask or a cache."""
    shape, stored, heads = labels.facts.shapes.get(value, ()), constant_tensor(value) is not None, units.reshape(-1)
    labels.lock(node, f"{node.op_type} depends on data", labels.get(value))
    by_head = len(shape) > (2 if is_standard(node) else 3) and shape[-3] > 1
    if not by_head and (len(shape) != 1 or value.dtype is None or not value.dtype.is_floating_point()):
        return
    if stored and by_head and not shape[-3] % units.size:
        spread = np.repeat(heads, shape[-3] // units.size).reshape(-1, 1, 1)
    elif stored and shape == (sum(sizes),):
        spread = np.concatenate([np.repeat(heads, size // units.size) for size in sizes])
    else:
        labels.lock(node, "its mask, cache or sink has an entry for each head", units)
        return
    labels.operands.append(Operand(node, index, spread))
