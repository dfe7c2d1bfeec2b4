"""Per-channel scale and shift around Conv, ConvTranspose, Gemm and MatMul, moved into their weights and bias."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxedge.api import Array, constant, constant_tensor, set_constant
from onnxedge_passes.cleanup.worklist import Refused, input_at, node_opset

LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_SHARED_BYTES = 4 << 10  #: a weight of more than this that others read too is not copied for one of them
_LARGEST = 1e4  #: |scale| above this is not folded: it hints at a dead channel or a variance near zero
_FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16)


@dataclass(frozen=True)
class Linear:
    """Hold a node that is linear in its weight: ``[Co, Ci/G, *K]``, ``[Ci, Co/G, *K]``, or ``[K, N]``.

    Attributes:
        node: Conv, ConvTranspose, Gemm or MatMul.
        channels: output channels ``Co`` or ``N``.
        rank: of the output; 0 where it is not known (MatMul).
    """

    node: ir.Node
    channels: int
    rank: int

    @property
    def axis(self) -> int:
        """Return the output axis of the channels."""
        return -1 if self.node.op_type in ("Gemm", "MatMul") else 1


def linear_before(value: ir.Value | None) -> Linear | None:
    """Return the linear node that produces a value, None where it is another operator or its weight has no shape."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type not in LINEAR or node.domain not in ("", "ai.onnx") or len(node.inputs) < 2:
        return None
    weight = node.inputs[1]
    tensor = constant_tensor(weight)
    dims = tensor.shape if tensor is not None else (weight.shape if weight is not None else None)
    if dims is None or len(dims) < 2 or not all(isinstance(d, int) for d in dims):
        return None
    sizes = [int(d) for d in dims]  # type: ignore[arg-type]
    match node.op_type:
        case "Conv":
            return Linear(node, sizes[0], len(sizes))
        case "ConvTranspose":
            return Linear(node, sizes[1] * node.attributes.get_int("group", 1), len(sizes))
        case "Gemm":
            return Linear(node, sizes[0 if node.attributes.get_int("transB", 0) else 1], 2)
    data = node.inputs[0]
    if len(sizes) != 2 or data is None:
        return None
    return Linear(node, sizes[1], len(data.shape) if data.shape is not None else 0)


def per_channel(operand: Array, linear: Linear) -> Array | None:
    """Return an operand as float64 [channels] if it broadcasts along the channels and changes no shape, else None."""
    return along(operand, linear.axis, linear.rank, linear.channels)


def along(operand: Array, axis: int, rank: int, channels: int) -> Array | None:
    """Return an operand as float64 [channels] if it varies along one axis alone and adds no dimension, else None.

    Args:
        operand: what is multiplied with the data or added to it.
        axis: axis of the data.
        rank: of the data, 0 where it is not known.
        channels: size of the axis.
    """
    if operand.ndim > max(rank, 1):
        return None
    axis = axis % rank if rank else 0
    padded = (*[1] * (max(rank, 1) - operand.ndim), *operand.shape)
    if any(d != 1 for i, d in enumerate(padded) if i != axis) or padded[axis] not in (1, channels):
        return None
    return np.broadcast_to(operand.reshape(-1).astype(np.float64), (channels,))


def rescale(linear: Linear, scale: Array, shift: Array) -> Refused | None:
    """Change a node to give ``scale * output + shift`` per channel; say why where it is left alone.

    Args:
        linear: the node; its output must have one reader.
        scale: float64 [channels].
        shift: float64 [channels].
    """
    weight = _editable_weight(linear.node, scale, shift)
    if isinstance(weight, Refused):
        return weight
    bias = _bias(linear, input_at(linear.node, 2))
    if isinstance(bias, Refused):
        return bias
    with np.errstate(over="ignore"):
        new_weight = _scaled(linear, weight, scale).astype(weight.dtype) if (scale != 1.0).any() else None
        new_bias = (bias * scale + shift).astype(weight.dtype)
    return _set(linear.node, weight.dtype, new_weight, new_bias)


def rescale_input(linear: Linear, scale: Array, shift: Array) -> Refused | None:
    """Change a node to give what it gave for ``scale * x + shift`` per channel of its input; say why where not.

    Args:
        linear: the node.
        scale: float64 [input channels].
        shift: float64 [input channels]; zeros for a convolution that pads and for ConvTranspose, whose borders see
            less of it than the middle.
    """
    node = linear.node
    if shift.any() and (node.op_type == "ConvTranspose" or (node.op_type == "Conv" and _pads(node))):
        return Refused("not folded: the padding behind it must stay zero")
    if shift.any() and node.op_type == "MatMul":
        return Refused("not folded: a MatMul has no bias")
    weight = _editable_weight(node, scale, shift)
    if isinstance(weight, Refused):
        return weight
    bias = _bias(linear, input_at(node, 2)) if shift.any() else None
    if isinstance(bias, Refused):
        return bias
    with np.errstate(over="ignore"):
        new_weight = _scaled_input(linear, weight, scale).astype(weight.dtype) if (scale != 1.0).any() else None
        new_bias = (bias + _response(linear, weight, shift)).astype(weight.dtype) if bias is not None else None
    return _set(node, weight.dtype, new_weight, new_bias)


def input_channels(linear: Linear) -> int:
    """Return how many channels a node with a constant weight reads, 0 where the weight is computed at run time."""
    tensor = constant_tensor(linear.node.inputs[1])
    if tensor is None:
        return 0
    dims = [int(d) for d in tensor.shape]  # type: ignore[arg-type]
    match linear.node.op_type:
        case "Conv":
            return dims[1] * linear.node.attributes.get_int("group", 1)
        case "Gemm" if linear.node.attributes.get_int("transB", 0):
            return dims[1]
    return dims[0]


def _pads(node: ir.Node) -> bool:
    if node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID", ""):
        return True
    return any(node.attributes.get_ints("pads", ()))


def _editable_weight(node: ir.Node, scale: Array, shift: Array) -> Array | Refused:
    """Return the weight if it may be replaced by a scaled one."""
    value = node.inputs[1]
    tensor = constant_tensor(value)
    if value is None or tensor is None:
        return Refused("not folded: the weight is computed at run time or may be overridden")
    if tensor.dtype not in _FLOATS:
        return Refused(f"not folded: the weight is {tensor.dtype.name.lower()}")
    if (scale != 1.0).any() and len(value.uses()) > 1 and tensor.nbytes > _SHARED_BYTES:
        return Refused("not folded: the weight has other readers and would be stored twice")
    if not (np.isfinite(scale).all() and np.isfinite(shift).all()) or np.abs(scale).max(initial=0.0) > _LARGEST:
        return Refused(f"not folded: |scale| exceeds {_LARGEST:g} or is not finite")
    return tensor.numpy()


def _set(node: ir.Node, dtype: Any, weight: Array | None, bias: Array | None) -> Refused | None:
    """Give a node a new weight and bias, None for those that stay."""
    if any(array is not None and not np.isfinite(array).all() for array in (weight, bias)):
        return Refused(f"not folded: it would leave the range of {dtype}")
    label = node.inputs[1].name if node.inputs[1] is not None else None
    if weight is not None:
        set_constant(node, 1, weight)
    bias_value = input_at(node, 2)
    if bias is not None and node.op_type != "MatMul" and (bias_value is not None or bias.any()):
        set_constant(node, 2, bias, name=None if bias_value is not None else f"{label}_bias")
        if node.op_type == "Gemm":
            node.attributes.pop("beta", None)
    return None


def _bias(linear: Linear, value: ir.Value | None) -> Array | Refused:
    """Return the bias as float64 [channels], zeros where there is none."""
    if linear.node.op_type == "MatMul" or value is None:
        return np.zeros(linear.channels)
    bias = constant(value)
    if bias is None:
        return Refused("not folded: the bias is computed at run time or may be overridden")
    if linear.node.op_type != "Gemm":
        return bias.astype(np.float64)
    if linear.node.op_type == "Gemm" and node_opset(linear.node) < 7:
        return Refused("not folded: Gemm before opset 7 broadcasts in its own way")
    row = per_channel(bias, linear)
    if row is None:
        return Refused("not folded: the bias of the Gemm differs from row to row")
    return row * linear.node.attributes.get_float("beta", 1.0)


def _scaled(linear: Linear, weight: Array, scale: Array) -> Array:
    exact = weight.astype(np.float64)
    match linear.node.op_type:
        case "Conv":
            return np.asarray(exact * scale.reshape(-1, *[1] * (weight.ndim - 1)))
        case "ConvTranspose":
            groups = linear.node.attributes.get_int("group", 1)
            blocks = exact.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
            return np.asarray((blocks * scale.reshape(groups, 1, -1, *[1] * (weight.ndim - 2))).reshape(weight.shape))
        case "Gemm" if linear.node.attributes.get_int("transB", 0):
            return np.asarray(exact * scale[:, None])
    return np.asarray(exact * scale)


def _scaled_input(linear: Linear, weight: Array, scale: Array) -> Array:
    exact = weight.astype(np.float64)
    match linear.node.op_type:
        case "Conv":
            groups = linear.node.attributes.get_int("group", 1)
            blocks = exact.reshape(groups, -1, *weight.shape[1:])
            by_group = scale.reshape(groups, 1, weight.shape[1], *[1] * (weight.ndim - 2))
            return np.asarray((blocks * by_group).reshape(weight.shape))
        case "Gemm" if linear.node.attributes.get_int("transB", 0):
            return np.asarray(exact * scale)
    return np.asarray(exact * scale.reshape(-1, *[1] * (weight.ndim - 1)))


def _response(linear: Linear, weight: Array, shift: Array) -> Array:
    """Return what a Conv or Gemm gives, without bias, for an input that is ``shift`` everywhere: float64 [channels]."""
    response = _scaled_input(linear, weight, shift)
    if linear.node.op_type == "Conv":
        return np.asarray(response.reshape(len(response), -1).sum(axis=1))
    transposed = linear.node.attributes.get_int("transB", 0)
    return np.asarray(response.sum(axis=1 if transposed else 0) * linear.node.attributes.get_float("alpha", 1.0))
