"""Per-channel scale and shift after Conv, ConvTranspose, Gemm and MatMul, moved into their weights and bias."""

from __future__ import annotations

from dataclasses import dataclass

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
    if operand.ndim > max(linear.rank, 1) and operand.ndim > 0:
        return None
    if operand.ndim and linear.rank == 0 and operand.ndim > 1:
        return None
    axis = linear.axis % linear.rank if linear.rank else 0
    padded = operand.reshape([1] * (max(linear.rank, 1) - operand.ndim) + list(operand.shape))
    if any(d != 1 for i, d in enumerate(padded.shape) if i != axis) or padded.shape[axis] not in (1, linear.channels):
        return None
    return np.broadcast_to(padded.reshape(-1).astype(np.float64), (linear.channels,))


def rescale(linear: Linear, scale: Array, shift: Array) -> Refused | None:
    """Change a node to give ``scale * output + shift`` per channel; say why where it is left alone.

    Args:
        linear: the node; its output must have one reader.
        scale: float64 [channels].
        shift: float64 [channels].
    """
    node = linear.node
    weight_value, bias_value = node.inputs[1], input_at(node, 2)
    tensor = constant_tensor(weight_value)
    if weight_value is None or tensor is None:
        return Refused("not folded: the weight is computed at run time or may be overridden")
    if tensor.dtype not in _FLOATS:
        return Refused(f"not folded: the weight is {tensor.dtype.name.lower()}")
    scales = bool((scale != 1.0).any())
    if scales and len(weight_value.uses()) > 1 and tensor.nbytes > _SHARED_BYTES:
        return Refused("not folded: the weight has other readers and would be stored twice")
    if not (np.isfinite(scale).all() and np.isfinite(shift).all()) or np.abs(scale).max(initial=0.0) > _LARGEST:
        return Refused(f"not folded: |scale| exceeds {_LARGEST:g} or is not finite")
    bias = _bias(linear, bias_value)
    if isinstance(bias, Refused):
        return bias
    weight = tensor.numpy()
    with np.errstate(over="ignore"):
        new_weight = _scaled(linear, weight, scale).astype(weight.dtype) if scales else weight
        new_bias = (bias * scale + shift).astype(weight.dtype)
    if not (np.isfinite(new_weight).all() and np.isfinite(new_bias).all()):
        return Refused(f"not folded: it would leave the range of {weight.dtype}")
    if scales:
        set_constant(node, 1, new_weight)
    if node.op_type != "MatMul" and (bias_value is not None or new_bias.any()):
        set_constant(node, 2, new_bias, name=None if bias_value is not None else f"{weight_value.name}_bias")
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
