"""Labels through contractions: one axis ends at a weight, another begins; attention ties its heads."""

from __future__ import annotations

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
    elif _is_weight(weight, labels) and ("Conv" in node.op_type or labels.facts.rank(weight) == 2):
        _weighted(labels, node, value, weight, axes)
    elif node.op_type == "MatMul" and all(labels.facts.rank(v) > 1 for v in node.inputs):
        _product(labels, node)
    else:
        labels.wall(node, "whose weight is computed at run time, or read elsewhere")


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
    data, shape, rank = labels.get(value), labels.facts.shapes[value], labels.facts.rank(node.outputs[0])
    axis, columns = axes.data_axis % len(shape), node in labels.columns
    begins, ends = labels.fresh(weight, axes.output), labels.fresh(weight, axes.input)
    labels.readers.append(Reader(node, weight, value, axes, begins, ends, columns))
    result = begins.reshape([-1 if a == axes.output_axis % rank else 1 for a in range(rank)])
    if data.size > 1 and data.shape[axis] == 1 and axes.data_axis == -1:  # rows that each are multiplied alike
        labels.lock(node, "a fixed axis is summed", ends, begins)
        result = data
    else:
        others = [a for a in range(len(shape)) if a != axis]
        units = labels.tie(node, data, others, f"{node.op_type} slides over the channels")
        channels = line(units, axis, shape[axis])
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
    units = labels.tie(node, labels.get(value), (0, 1), f"{node.op_type} over time")
    _end(labels, node, line(units, -1, len(features)), features)
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
    rotary, shapes = "Rotary" in node.op_type, labels.facts.shapes
    parts = [value for value in node.inputs[: 1 if rotary or operator(node).weight else 3] if value is not None]
    if any(labels.facts.rank(value) not in (3, 4) for value in parts):
        labels.wall(node, "in this form")
        return
    count = node.attributes.get_int("num_heads", 0) or node.attributes.get_int("q_num_heads", 0)
    shape = shapes[parts[0]]
    if rotary and not count and node.inputs[2] is not None:
        count = shape[-1] // (2 * shapes[node.inputs[2]][-1])
    heads = shape[1] if len(shape) == 4 else count
    shared = node.attributes.get_int("kv_num_heads", 0)
    shared = shapes[parts[1]][1] if len(parts) > 1 and len(shapes[parts[1]]) == 4 else shared or heads
    lines = [_heads(labels, node, value) for value in parts]
    if len(parts) == 1 and not rotary:  # query, key and value in one
        size = len(lines[0]) // (heads + 2 * shared)
        lines = np.split(lines[0], [heads * size, (heads + shared) * size])
    if not shared or any(len(along) % shared for along in lines):
        labels.wall(node, "in this form")
        return
    rows = np.concatenate([along.reshape(shared, -1) for along in lines], axis=1)
    units = labels.tie(node, rows, [1], "has one head of keys")
    if units.max() <= FIXED:
        return
    for value in node.inputs:
        if value is not None and value not in parts:
            _with_heads(labels, node, value, units, lines)
    labels.counts += [(node, name, units) for name in _HEAD_COUNTS if node.attributes.get_int(name, 0)]
    for value in (v for v in node.outputs if v.name and labels.facts.rank(v) in (3, 4)):
        axis = 1 if labels.facts.rank(value) == 4 else 2
        labels.of[value] = _along(units, shapes[value], axis)


def _heads(labels: Labels, node: ir.Node, value: ir.Value) -> Array:
    """Return the labels along the axis that the heads lie on."""
    held, axis = labels.get(value), 1 if labels.facts.rank(value) == 4 else 2
    units = labels.tie(node, held, [a for a in range(held.ndim) if a != axis], f"{node.op_type} over the channels")
    channels, weight = line(units, axis, labels.facts.shapes[value][axis]), operator(node).weight
    return channels if weight is None else _projected(labels, node, value, channels)


def _projected(labels: Labels, node: ir.Node, value: ir.Value, channels: Array) -> Array:
    """Carry labels through the weight that com.microsoft::Attention has of its own."""
    weight, axes = node.inputs[1], WeightAxes(1, 2, output=1, input=0, data_axis=-1, output_axis=-1)
    if not _is_weight(weight, labels) or "qkv_hidden_sizes" in node.attributes:
        labels.wall(node, "in this form")
        return np.zeros(labels.facts.shapes[weight][1] if weight is not None else 0, np.int32)
    begins, ends = labels.fresh(weight, 1), labels.fresh(weight, 0)
    labels.readers.append(Reader(node, weight, value, axes, begins, ends))
    _end(labels, node, channels, ends)
    return begins


def _along(units: Array, shape: tuple[int, ...], axis: int) -> Array:
    """Spread one label per head (or shared head) along an axis."""
    wide = np.repeat(units.reshape(-1), shape[axis] // units.size)
    return wide.reshape([-1 if a == axis else 1 for a in range(len(shape))])


def _with_heads(labels: Labels, node: ir.Node, value: ir.Value, units: Array, lines: list[Array]) -> None:
    """Cut what a fused attention adds head by head: a bias, a mask or a cache."""
    shape = labels.facts.shapes.get(value, ())
    labels.lock(node, f"{node.op_type} depends on data", labels.get(value))
    by_head = len(shape) > (2 if is_standard(node) else 3) and shape[-3] > 1
    if not by_head and (len(shape) != 1 or value.dtype is None or not value.dtype.is_floating_point()):
        return
    if constant_tensor(value) is not None and by_head and not shape[-3] % units.size:
        spread = _along(units, shape, len(shape) - 3)
    elif constant_tensor(value) is not None and shape == (sum(map(len, lines)),):
        spread = np.concatenate([_along(units, along.shape, 0) for along in lines])
    else:
        labels.lock(node, "its mask, cache or sink has an entry for each head", units)
        return
    labels.operands.append(Operand(node, node.inputs.index(value), spread))
