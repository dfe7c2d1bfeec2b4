"""How slots run through a graph: one rule for each kind of operator; what has none locks what it reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import onnx_ir as ir

from onnxedge.api import Array, clip_bounds, constant, constant_tensor, is_constant, is_standard, static_shape

from .moves import MOVES
from .slots import FIXED, Bound, Change, Slots, own_constant

Rule = Callable[[ir.Node, Slots], bool]  #: gives the output its slots; False where it has nothing to say


def find_slots(model: ir.Model) -> Slots:
    """Return the slots of the main graph; shapes must be inferred."""
    slots = Slots()
    for node in model.graph:
        name = node.op_type if is_standard(node) else f"{node.domain}::{node.op_type}"
        rule = _RULES.get(name)
        if rule is None or not rule(node, slots):
            slots.lock(node.inputs)
    graph = model.graph
    for value in list(slots.of):
        if value.is_graph_output() or any(use.node.graph is not graph for use in value.uses()):
            slots.lock([value])
    return slots


def _rank(value: ir.Value | None) -> int:
    return len(value.shape) if value is not None and value.shape is not None else 0


def _size(value: ir.Value | None) -> tuple[int, ...] | None:
    tensor = constant_tensor(value)
    return None if tensor is None else tuple(int(d) for d in tensor.shape.numpy())


def _bias_slots(node: ir.Node, index: int, made: Array, slots: Slots) -> None:
    """Let a bias [C] follow what it is added to; where it cannot, nothing is scaled."""
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        return
    shape = _size(value)
    if own_constant(value) and shape and shape[-1] == made.size == int(np.prod(shape)):
        slots.changes.append(Change(node, index, made.reshape(shape), np.array(FIXED), "bias"))
        return
    slots.lock_slots(made)


def _contraction(node: ir.Node, slots: Slots, axes: tuple[int, int], data_axis: int, out_axis: int) -> bool:
    """Let channels end at a weight matrix and others begin: ``axes`` are its output and its input axis."""
    shape = _size(node.inputs[1])
    data, output = node.inputs[0], node.outputs[0]
    if shape is None or not own_constant(node.inputs[1]) or not _rank(output):
        return False
    read = slots.along(data, data_axis)
    made = slots.new(shape[axes[0]])
    one = [1] * len(shape)
    rows, columns = list(one), list(one)
    rows[axes[0]], columns[axes[1]] = made.size, shape[axes[1]]
    if read is not None and read.size != shape[axes[1]]:
        return False
    reads = np.array(FIXED) if read is None else read.reshape(columns)
    slots.changes.append(Change(node, 1, made.reshape(rows), reads, "weight"))
    _bias_slots(node, 2, made, slots)
    return slots.set(output, made, out_axis)


def _gemm(node: ir.Node, slots: Slots) -> bool:
    if node.attributes.get_int("transA", False):
        return False
    return _contraction(node, slots, (0, 1) if node.attributes.get_int("transB", False) else (1, 0), -1, -1)


def _matmul(node: ir.Node, slots: Slots) -> bool:
    if is_constant(node.inputs[1]):
        if _rank(node.inputs[1]) != 2 or _rank(node.inputs[0]) < 2 or len(node.inputs) != 2:
            return False
        return _contraction(node, slots, (1, 0), -1, -1)
    slots.lock(node.inputs[:1])
    second = slots.of.get(node.inputs[1]) if node.inputs[1] is not None else None
    if second is None or second.ndim < 2 or second.shape[-2] != 1 or _rank(node.outputs[0]) < second.ndim:
        return False
    return slots.set(node.outputs[0], second.reshape([1] * (_rank(node.outputs[0]) - second.ndim) + list(second.shape)))


def _conv(node: ir.Node, slots: Slots) -> bool:
    shape = _size(node.inputs[1])
    if shape is None or not own_constant(node.inputs[1]) or not _rank(node.outputs[0]):
        return False
    groups = node.attributes.get_int("group", 1) or 1
    read = slots.along(node.inputs[0], 1)
    tail = [1] * (len(shape) - 2)
    if node.op_type == "ConvTranspose":
        made = slots.new(shape[1] * groups)
        makes = made.reshape(groups, shape[1]).repeat(shape[0] // groups, axis=0).reshape(shape[0], shape[1], *tail)
        inputs, needed = np.arange(shape[0]).reshape(-1, 1, *tail), shape[0]
    else:
        made = slots.new(shape[0])
        makes = made.reshape(-1, 1, *tail)
        inputs = np.arange(shape[1] * groups).reshape(groups, shape[1]).repeat(shape[0] // groups, axis=0)
        inputs, needed = inputs.reshape(shape[0], shape[1], *tail), shape[1] * groups
    if read is not None and read.size != needed:
        return False
    reads = np.array(FIXED) if read is None else read[inputs]
    slots.changes.append(Change(node, 1, makes, reads, "weight"))
    _bias_slots(node, 2, made, slots)
    return slots.set(node.outputs[0], made, 1)


def _normalization(node: ir.Node, slots: Slots, scale: int, bias: int | None, axis: int) -> bool:
    """Let channels begin at the scale of a normalization; what it reads stays as it is."""
    slots.lock(node.inputs)
    value = node.inputs[scale] if scale < len(node.inputs) else None
    shape = _size(value)
    if not own_constant(value) or not shape or int(np.prod(shape)) != shape[-1]:
        return True
    made = slots.new(shape[-1])
    slots.changes.append(Change(node, scale, made.reshape(shape), np.array(FIXED), "scale"))
    if bias is not None:
        _bias_slots(node, bias, made, slots)
    return slots.set(node.outputs[0], made, axis)


def _layer_norm(node: ir.Node, slots: Slots) -> bool:
    axis = node.attributes.get_int("axis", -1)
    if axis not in (-1, _rank(node.inputs[0]) - 1):
        return False
    return _normalization(node, slots, 1, None if "RMS" in node.op_type or "Simplified" in node.op_type else 2, -1)


def _skip_norm(node: ir.Node, slots: Slots) -> bool:
    return _normalization(node, slots, 2, None if "Simplified" in node.op_type else 3, -1)


def _channel_norm(node: ir.Node, slots: Slots) -> bool:
    if node.op_type == "BatchNormalization" and node.attributes.get_int("training_mode", False):
        return False
    return _normalization(node, slots, 1, 2, 1)


def _passes(node: ir.Node, slots: Slots) -> bool:
    """Let channels through an operator of one input that is positively homogeneous."""
    data = slots.of.get(node.inputs[0]) if node.inputs[0] is not None else None
    slots.lock(node.inputs[1:])
    return data is None or slots.set(node.outputs[0], data)


def _prelu(node: ir.Node, slots: Slots) -> bool:
    return _passes(node, slots) and _rank(node.outputs[0]) == _rank(node.inputs[0])


def _dropout(node: ir.Node, slots: Slots) -> bool:
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        return False
    return _passes(node, slots)


def _clip(node: ir.Node, slots: Slots) -> bool:
    bounds = clip_bounds(node)
    data = slots.of.get(node.inputs[0]) if node.inputs[0] is not None else None
    if bounds is None or data is None or bounds[0] not in (0.0, -np.inf):
        return False
    if np.isfinite(bounds[1]):
        if bounds[0] != 0.0:
            return False
        slots.bounds.append(Bound(node, bounds[1]))
    return slots.set(node.outputs[0], data)


def _sum(node: ir.Node, slots: Slots) -> bool:
    """Let all members of a sum share their channels; constants follow where they have an element per channel."""
    output = node.outputs[0]
    rank = _rank(output)
    tracked = [(i, v, slots.of[v]) for i, v in enumerate(node.inputs) if v is not None and v in slots.of]
    if not tracked or not rank:
        return False
    joint = np.full([1] * rank, -1)
    for index, value, found in tracked:
        found = found.reshape([1] * (rank - found.ndim) + list(found.shape))
        joint = found if index == tracked[0][0] else slots.join(*np.broadcast_arrays(joint, found))
        if _stretched(value, output, found):
            return False
    for index, other in enumerate(node.inputs):
        if other is None or any(index == i for i, _, _ in tracked):
            continue
        array, shape = constant(other), _size(other)
        if array is None or shape is None or len(shape) > rank:
            return False
        aligned = [1] * (rank - len(shape)) + list(shape)
        fits = all(a == j or j == 1 for a, j in zip(aligned, joint.shape, strict=True))
        if not fits or not own_constant(other):
            if array.any():
                return False
            continue
        slots.changes.append(
            Change(node, index, joint.reshape(joint.shape[rank - len(shape) :]), np.array(FIXED), "bias")
        )
    return slots.set(output, np.array(joint))


def _stretched(value: ir.Value, output: ir.Value, found: Array) -> bool:
    """Tell whether channels that differ along an axis come to stand for others by broadcasting (sizes unknown, too)."""
    shape = output.shape
    assert shape is not None
    return any(size > 1 and shape[axis] != size for axis, size in enumerate(found.shape))


def _product(node: ir.Node, slots: Slots) -> bool:
    """Let channels through a product: of one factor alone, or end and begin at a constant per channel."""
    output, rank = node.outputs[0], _rank(node.outputs[0])
    first, second = node.inputs[:2]
    if first is None or second is None or first is second or not rank:
        return False
    if node.op_type == "Div":
        slots.lock([second])
    elif is_constant(first) or is_constant(second):
        index = 0 if is_constant(first) else 1
        if _scaled(node, index, slots):
            return True
    found = [(v, slots.of[v]) for v in (first, second) if v in slots.of and not (v is second and node.op_type == "Div")]
    if not found:
        return False
    value, kept = max(found, key=lambda entry: (slots.roots(entry[1]).any(), entry[1].size, _elements(entry[0])))
    slots.lock([v for v, _ in found if v is not value])
    kept = kept.reshape([1] * (rank - kept.ndim) + list(kept.shape))
    if _stretched(value, output, kept):
        return False
    return slots.set(output, kept)


def _elements(value: ir.Value) -> int:
    shape = value.shape
    return int(np.prod([d if isinstance(d, int) else 1 for d in shape])) if shape is not None else 0


def _scaled(node: ir.Node, index: int, slots: Slots) -> bool:
    """Let channels end and others begin at a constant with one element per channel."""
    value, data, output = node.inputs[index], node.inputs[1 - index], node.outputs[0]
    shape, rank = _size(value), _rank(output)
    if shape is None or data is None or not own_constant(value) or _rank(data) != rank or len(shape) > rank:
        return False
    axes = [i - len(shape) for i, size in enumerate(shape) if size > 1]
    if len(axes) != 1:
        return False
    axis, count = axes[0], shape[axes[0]]
    dims = data.shape
    if dims is None or dims[axis + rank] != count:
        return False
    read = slots.of.get(data)
    if read is not None and (read.size != count or read.shape[axis] != count):
        return False
    made = slots.new(count).reshape([count if i - len(shape) == axis else 1 for i in range(len(shape))])
    reads = np.array(FIXED) if read is None else read.reshape(made.shape)
    slots.changes.append(Change(node, index, made, reads, "scale"))
    return slots.set(output, made.reshape(-1), axis)


def _pool(node: ir.Node, slots: Slots) -> bool:
    """Let channels through what works inside each channel of axis 1."""
    if slots.along(node.inputs[0], 1) is None:
        return False
    if any(v.uses() or v.is_graph_output() for v in node.outputs[1:]):
        return False
    return _passes(node, slots)


def _resize(node: ir.Node, slots: Slots) -> bool:
    mode = node.attributes.get_string("coordinate_transformation_mode", "half_pixel")
    before, after = static_shape(node.inputs[0]), static_shape(node.outputs[0])
    axes = (before or (0, 0))[:2] == (after or (1, 1))[:2]
    if before is None or after is None:
        dims = [v.shape for v in (node.inputs[0], node.outputs[0]) if v is not None and v.shape is not None]
        axes = len(dims) == 2 and dims[0][1] == dims[1][1] and isinstance(dims[0][1], int)
    return axes and mode != "tf_crop_and_resize" and _pool(node, slots)


def _reduction(node: ir.Node, slots: Slots) -> bool:
    """Let channels through a mean, sum or extreme over axes along which they do not differ."""
    data = slots.of.get(node.inputs[0]) if node.inputs[0] is not None else None
    given = constant(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1] is not None else None
    if data is None or (len(node.inputs) > 1 and node.inputs[1] is not None and given is None):
        return False
    listed = (
        [int(a) for a in given.reshape(-1)] if given is not None else list(node.attributes.get_ints("axes", []) or [])
    )
    if not listed:
        return False
    axes = {a % data.ndim for a in listed}
    if any(data.shape[a] != 1 for a in axes):
        return False
    if not node.attributes.get_int("keepdims", True):
        data = data.reshape([size for i, size in enumerate(data.shape) if i not in axes])
    return slots.set(node.outputs[0], data)


def _heads(node: ir.Node, slots: Slots) -> bool:
    """Let the values' channels through attention; queries and keys stay as they are."""
    inputs = list(node.inputs)
    value = inputs[2] if len(inputs) > 2 else None
    slots.lock([v for v in inputs if v is not value])
    read = slots.of.get(value) if value is not None else None
    if read is None or read.ndim != 3 or any(v is not None for v in (*inputs[3:4], *inputs[6:])):
        return False
    if inputs[0] is value or inputs[1] is value or any(v.uses() or v.is_graph_output() for v in node.outputs[1:]):
        return False
    return slots.along(value, -1) is not None and slots.set(node.outputs[0], read)


_BY_NAME: tuple[tuple[str, Rule], ...] = (
    ("Conv ConvTranspose", _conv),
    ("Gemm", _gemm),
    ("MatMul", _matmul),
    ("Relu LeakyRelu Identity Abs Neg", _passes),
    ("PRelu", _prelu),
    ("Dropout", _dropout),
    ("Clip", _clip),
    ("Add Sub Sum", _sum),
    ("Mul Div", _product),
    ("MaxPool AveragePool LpPool GlobalAveragePool GlobalMaxPool GlobalLpPool", _pool),
    ("Resize Upsample", _resize),
    ("ReduceMean ReduceSum ReduceMax ReduceMin ReduceL1 ReduceL2", _reduction),
    ("LayerNormalization RMSNormalization SimplifiedLayerNormalization", _layer_norm),
    ("com.microsoft::SkipLayerNormalization com.microsoft::SkipSimplifiedLayerNormalization", _skip_norm),
    ("BatchNormalization InstanceNormalization", _channel_norm),
    ("com.microsoft::MultiHeadAttention", _heads),
)
_RULES: Mapping[str, Rule] = MappingProxyType(
    {**{name: rule for names, rule in _BY_NAME for name in names.split()}, **MOVES}
)
