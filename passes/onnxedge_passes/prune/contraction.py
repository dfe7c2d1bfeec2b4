"""Labels through contractions: one axis ends at the weight, another begins; products of two activations join heads."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from onnxedge.api import Array, constant_tensor, weight_axes
from onnxedge_passes.prune.facts import Facts

if TYPE_CHECKING:
    from onnxedge_passes.prune.labels import Labels

FIXED = 0


def propagate(labels: Labels, node: ir.Node, *, grouped_columns: bool) -> None:
    """Carry labels through one contraction; what has no rule is locked."""
    if node.op_type in ("Conv", "ConvTranspose"):
        _convolution(labels, node, grouped_columns)
    elif node.op_type in ("Gemm", "MatMul") and labels.is_weight(node.inputs[1]):
        _matrix(labels, node)
    elif node.op_type == "MatMul" and all(constant_tensor(value) is None for value in node.inputs):
        _product(labels, node)
    else:
        _wall(labels, node)


def _wall(labels: Labels, node: ir.Node) -> None:
    for value in node.inputs:
        labels.lock(node, f"{node.op_type} whose weight is computed at run time, or has no rule", labels.get(value))


def _convolution(labels: Labels, node: ir.Node, columns: bool) -> None:
    from onnxedge_passes.prune.labels import Operand, Reader, line

    axes, weight, data = weight_axes(node), node.inputs[1], labels.get(node.inputs[0])
    if axes is None or weight is None or not labels.is_weight(weight):
        _wall(labels, node)
        return
    if any(size > 1 for axis, size in enumerate(data.shape) if axis != 1):
        labels.lock(node, "a convolution slides over the channels", data)
        data = np.zeros([1] * data.ndim, np.int32)
    source = labels.facts.shapes[node.inputs[0]] if node.inputs[0] is not None else ()
    channels = np.broadcast_to(line(data, 1), (source[1],))
    begins, ends = labels.fresh(weight, axes.output), labels.fresh(weight, axes.input)
    result = begins
    if axes.groups == 1:
        _end(labels, node, channels, ends)
    elif node.op_type == "ConvTranspose":
        labels.lock(node, "grouped ConvTranspose", np.concatenate([channels, begins, ends]))
        result = np.zeros(1, np.int32)
    else:
        _blocks(labels, node, channels.reshape(axes.groups, -1), begins.reshape(axes.groups, -1), ends, columns)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None and constant_tensor(bias) is None:
        labels.lock(node, "its bias is computed at run time", begins)
    elif bias is not None:
        labels.operands.append(Operand(node, 2, begins))
    labels.readers.append(Reader(node, weight, begins, ends, columns))
    if result.size == 1:
        labels.lock(node, "has one channel", begins)
        return
    labels.of[node.outputs[0]] = result.reshape(1, -1, *[1] * (data.ndim - 2))


def _blocks(labels: Labels, node: ir.Node, channels: Array, begins: Array, ends: Array, columns: bool) -> None:
    """Tie a grouped convolution: whole groups of inputs and outputs, or the same columns of every group."""
    if columns:
        for row in channels:
            _end(labels, node, row, ends)
        labels.join(begins[:1], begins, node)
        return
    labels.lock(node, "stays inside a group of a grouped convolution", ends)
    labels.join(begins[:, :1], begins, node)
    labels.lock(node, "its inputs are fixed", begins[(channels <= FIXED).any(axis=1)])
    labels.join(np.where(channels > 0, channels, begins[:, :1]), begins[:, :1], node)
    labels.lock(node, "meets channels that are fixed", channels[(channels <= FIXED).any(axis=1)])


def _end(labels: Labels, node: ir.Node, channels: Array, ends: Array) -> None:
    """Tie the weight's rows to the channels that they multiply; rows of fixed or constant data stay."""
    live = channels > 0
    labels.edges.append((channels[live], ends[live]))
    labels.lock(node, "its inputs are fixed", ends[~live])


def _matrix(labels: Labels, node: ir.Node) -> None:
    """Carry labels through a Gemm, or a MatMul with a constant [K, N] on the right."""
    from onnxedge_passes.prune.labels import Operand, Reader, line

    axes, weight, value = weight_axes(node), node.inputs[1], node.inputs[0]
    if axes is None or weight is None or value is None or len(labels.facts.shapes.get(weight, ())) != 2:
        _wall(labels, node)
        return
    data, shape = labels.get(value), labels.facts.shapes[value]
    begins, ends = labels.fresh(weight, axes.output), labels.fresh(weight, axes.input)
    axis = axes.data_axis % len(shape)
    result = np.zeros([1] * len(labels.facts.shapes[node.outputs[0]]), np.int32)
    if data.size > 1 and data.shape[axis] == 1:
        labels.lock(node, "a fixed axis is summed", np.concatenate([ends, begins]))
        if node.op_type == "MatMul":
            result = data
        else:
            labels.lock(node, "rows of a Gemm", data)
    else:
        if any(size > 1 for a, size in enumerate(data.shape) if a != axis):
            for row in np.moveaxis(data, axis, -1).reshape(-1, shape[axis]):
                _end(labels, node, row, ends)
        else:
            _end(labels, node, np.broadcast_to(line(data, axis), (shape[axis],)), ends)
        if begins.size > 1:
            result = begins.reshape([1] * (result.ndim - 1) + [-1])
        else:
            labels.lock(node, "has one channel", begins)
    labels.readers.append(Reader(node, weight, begins, ends))
    addend = node.inputs[2] if len(node.inputs) > 2 else None
    if addend is not None and constant_tensor(addend) is None:
        other = labels.get(addend)
        if other.size > 1 or len(labels.facts.shapes.get(addend, ())) > 0:
            labels.lock(node, "its bias is computed at run time", np.concatenate([begins, other.ravel()]))
    elif addend is not None and result.size > 1:
        labels.operands.append(Operand(node, 2, result))
    labels.of[node.outputs[0]] = result


def _product(labels: Labels, node: ir.Node) -> None:
    """Carry labels through a MatMul of two activations [..., M, K] x [..., K, N].

    Labels along K end and join; labels along the batch axes (heads) join and go on; with both, the labels of a head
    become one, since a head goes as a whole. Labels along M or N go on.
    """
    first, second = (_with_batch(labels.facts, v, labels.get(v), node) for v in node.inputs)
    if first is None or second is None:
        _wall(labels, node)
        return
    (a, a_shape), (b, b_shape) = first, second
    if a.size == 1 and b.size == 1:
        return
    summed_a, summed_b = np.moveaxis(a, -1, -2), b  # K next to last in both
    real_a, real_b = (*a_shape[:-2], a_shape[-1]), b_shape[:-1]
    alone = [
        (mine, x)
        for mine, other, real in ((summed_a, summed_b, real_b), (summed_b, summed_a, real_a))
        for x in range(len(real))
        if mine.shape[x] > 1 and other.shape[x] == 1 and real[x] > 1
    ]
    for mine, _ in alone:
        labels.lock(node, "is multiplied with channels that are fixed", mine)
    if alone:
        return
    if any(summed_a.shape[x] > 1 and summed_b.shape[x] > 1 for x in range(len(real_a))):
        labels.join(a[..., :, :, None], b[..., None, :, :], node)
    kept_a, kept_b = _collapse(labels, a, -1, node), _collapse(labels, b, -2, node)
    if kept_a.shape[-2] > 1 and kept_b.shape[-1] > 1:
        labels.lock(node, "two axes of a product are both cut", np.concatenate([kept_a.ravel(), kept_b.ravel()]))
        return
    parts = [kept for kept in (kept_a, kept_b) if kept.size > 1]
    if not parts:
        return
    labels.of[node.outputs[0]] = labels.join(parts[0], parts[1], node) if len(parts) == 2 else parts[0]


def _collapse(labels: Labels, array: Array, axis: int, node: ir.Node) -> Array:
    """Return what is left of labels when the summed axis is gone: nothing where only that axis was labelled."""
    if array.shape[axis] == 1:
        return array
    head = np.take(array, [0], axis)
    if head.size == 1:
        return np.zeros_like(head)
    labels.join(head, array, node)
    return head


def _with_batch(
    facts: Facts, value: ir.Value | None, array: Array, node: ir.Node
) -> tuple[Array, tuple[int, ...]] | None:
    """Return labels and shape with leading axes of size 1 up to the output's rank; None for vectors."""
    shape = facts.shapes.get(value) if value is not None else None
    rank = len(facts.shapes[node.outputs[0]])
    if shape is None or len(shape) < 2 or rank < len(shape):
        return None
    lead = (1,) * (rank - len(shape))
    return array.reshape(lead + array.shape), lead + shape
