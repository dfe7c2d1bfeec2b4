"""Normalizations without a gradient, written in operators that have one."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxedge.api import static_shape, use_count
from onnxedge_passes.cleanup.worklist import Refused
from onnxedge_passes.train.draft import Draft, Spelling

_PER_CHANNEL = 21  #: opset from which scale and bias of GroupNormalization have one number a channel, not a group
_UNKNOWN_RANK = Refused("has no gradient: the rank of its input is not known")


def frozen_batch_normalization(draft: Draft) -> ir.Value | Refused | None:
    """``(x - mean) (scale / sqrt(var + epsilon)) + bias`` by running statistics."""
    dims, parameters = draft.dims, [draft.input(index) for index in range(1, 5)]
    if dims is None or any(value is None for value in parameters):
        return _UNKNOWN_RANK
    if _is_training(draft.node):
        return Refused("has no gradient here: it normalises by the batch; export the model for inference")
    scale, bias, mean, variance = parameters
    deviation = draft.put("Sqrt", draft.put("Add", variance, draft.number("epsilon", 1e-5)))
    factor, rank = draft.put("Div", scale, deviation), len(dims)
    centred = draft.put("Sub", draft.x, _per_channel(draft, mean, rank))
    scaled = draft.put("Mul", centred, _per_channel(draft, factor, rank))
    return draft.put("Add", scaled, _per_channel(draft, bias, rank))


def live_batch_normalization(draft: Draft) -> ir.Value | Refused | None:
    """Leave the outputs of training away; engines normalise by the batch themselves while they train."""
    node = draft.node
    if _is_training(node):
        return Refused("has no gradient here: it normalises by the batch; export the model for inference")
    if len(node.outputs) == 1 or any(use_count(value) or value.is_graph_output() for value in node.outputs[1:]):
        return None
    kept = {name: node.attributes[name].value for name in ("epsilon", "momentum") if name in node.attributes}
    return draft.put("BatchNormalization", *node.inputs, **kept)


def _is_training(node: ir.Node) -> bool:
    return bool(node.attributes.get_int("training_mode", 0))


def _per_channel(draft: Draft, value: ir.Value | None, rank: int) -> ir.Value:
    """Return [C] as [C, 1, 1...], to go with [N, C, ...]."""
    assert value is not None
    return draft.put("Reshape", value, np.array([-1] + [1] * (rank - 2), np.int64)) if rank > 2 else value


def _standardised(draft: Draft, value: ir.Value, axes: list[int]) -> ir.Value:
    """Return ``(x - mean) / sqrt(mean((x - mean)^2) + epsilon)`` over axes."""
    centred = draft.put("Sub", value, draft.mean(value, axes))
    variance = draft.mean(draft.put("Mul", centred, centred), axes)
    return draft.put("Div", centred, draft.put("Sqrt", draft.put("Add", variance, draft.number("epsilon", 1e-5))))


def _instance_normalization(draft: Draft) -> ir.Value | Refused:
    dims = draft.dims
    if dims is None or len(dims) < 3:
        return _UNKNOWN_RANK
    value = _standardised(draft, draft.x, list(range(2, len(dims))))
    scaled = draft.put("Mul", value, _per_channel(draft, draft.input(1), len(dims)))
    return draft.put("Add", scaled, _per_channel(draft, draft.input(2), len(dims)))


def _group_normalization(draft: Draft) -> ir.Value | Refused:
    dims, groups = draft.dims, draft.node.attributes.get_int("num_groups", 0) or 0
    if dims is None or groups < 1:
        return _UNKNOWN_RANK
    scale, bias = draft.input(1), draft.input(2)
    known = [0, *(d for d in dims[1:] if d is not None)]  # a 0 stands for the batch
    whole = np.array(known, np.int64) if len(known) == len(dims) else draft.put("Shape", draft.x)
    grouped = draft.put("Reshape", draft.x, np.array([0, groups, -1], np.int64))
    value = _standardised(draft, grouped, [2])
    if draft.opset < _PER_CHANNEL:  # there scale and bias are [G]
        value = draft.put("Mul", value, _per_channel(draft, scale, 3))
        return draft.put("Reshape", draft.put("Add", value, _per_channel(draft, bias, 3)), whole)
    value = draft.put("Reshape", value, whole)
    scaled = draft.put("Mul", value, _per_channel(draft, scale, len(dims)))
    return draft.put("Add", scaled, _per_channel(draft, bias, len(dims)))


def _rms_normalization(draft: Draft) -> ir.Value | Refused:
    dims = draft.dims
    if dims is None:
        return _UNKNOWN_RANK
    axis, rank = draft.node.attributes.get_int("axis", -1) or 0, len(dims)
    square = draft.mean(draft.put("Mul", draft.x, draft.x), list(range(axis % rank, rank)))
    root = draft.put("Sqrt", draft.put("Add", square, draft.number("epsilon", 1e-5)))
    return draft.put("Mul", draft.put("Div", draft.x, root), draft.input(1))


def _layer_normalization(draft: Draft) -> ir.Value | Refused | None:
    """Declare mean and deviation, which the gradient reads, and a bias, without which it fails."""
    node, scale, bias = draft.node, draft.input(1), draft.input(2)
    if len(node.outputs) == 3 and all(value.name for value in node.outputs) and bias is not None:
        return None
    if any(use_count(value) or value.is_graph_output() for value in node.outputs[1:]):
        return Refused("has no gradient: its mean or deviation is read")
    shape = static_shape(scale)
    if shape is None:
        return Refused("has no gradient: the shape of its scale is not known")
    kept = {name: attribute.value for name, attribute in node.attributes.items()}
    return draft.several("LayerNormalization", 3, draft.x, scale, bias or np.zeros(shape, np.float32), **kept)[0]


SPELLINGS: dict[str, Spelling] = {
    "InstanceNormalization": _instance_normalization,
    "GroupNormalization": _group_normalization,
    "RMSNormalization": _rms_normalization,
    "LayerNormalization": _layer_normalization,
}
