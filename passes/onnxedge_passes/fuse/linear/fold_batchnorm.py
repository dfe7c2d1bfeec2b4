"""BatchNormalization after a linear operator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxedge.api import (
    Accuracy,
    Array,
    Context,
    bypass,
    constant,
    graph_of,
    insert_before,
    is_standard,
    new_initializer,
    replace_uses,
    sole_consumer,
)
from onnxedge_passes.cleanup.worklist import Outcome, Refused, Rule, node_opset, output_used, retire
from onnxedge_passes.fuse.linear.affine import linear_before, rescale


@dataclass(frozen=True, kw_only=True)
class FoldBatchnorm(Rule):
    """Fold inference-mode BatchNormalization into the Conv, ConvTranspose, Gemm or MatMul that feeds it.

    Before: ``Conv(x, W, b) -> BatchNormalization(gamma, beta, mean, var)``
    After:  ``Conv(x, W * s, (b - mean) * s + beta)`` with ``s = gamma / sqrt(var + epsilon)``

    A MatMul of matrices becomes a Gemm. Reshapes and Transposes between a product and the normalization are followed
    where they keep the columns together.
    Left alone: training mode; parameters computed at run time or that a caller may override; an output with other
    readers or exported; a weight that others read too; a product of higher rank.
    accuracy: rounding. Source: Jacob et al. 2018, arXiv:1712.05877, section 3.2.
    """

    name: ClassVar[str] = "fold-batchnorm"
    accuracy: ClassVar[Accuracy] = "rounding"
    roots: ClassVar[tuple[str, ...]] = ("BatchNormalization",)

    def rewrite(self, node: ir.Node, context: Context) -> Outcome:
        """Move scale and shift of the normalization into the producer of its input."""
        if node.inputs[0] is None or not is_inference(node):
            return None
        source, axis = _unmoved(node.inputs[0])
        linear = linear_before(source)
        if linear is None or (source is not node.inputs[0] and linear.axis != -1):
            return Refused("not folded: no Conv, ConvTranspose, Gemm or MatMul before it")
        if linear.axis == -1 and (linear.rank != 2 or axis != 1):
            return Refused("not folded: the channels are not the MatMul's last axis")
        if sole_consumer(source) is None or sole_consumer(node.inputs[0]) is not node:
            return Refused("not folded: its input has other readers or is exported")
        affine = inference_affine(node)
        if isinstance(affine, Refused):
            return affine
        scale, shift = affine
        if scale.shape != (linear.channels,):
            return Refused("not folded: its parameters are not one per channel")
        refused = rescale(linear, scale, shift)
        if refused is not None:
            return refused
        bypass(node)
        return _with_bias(linear.node, shift) if linear.node.op_type == "MatMul" else linear.node.outputs[0]


def _unmoved(value: ir.Value) -> tuple[ir.Value, int]:
    """Follow channels, axis 1 of a value, back through Reshapes and Transposes that they alone are read by."""
    axis = 1
    while (mover := value.producer()) is not None and is_standard(mover) and sole_consumer(value) is not None:
        source = mover.inputs[0] if mover.op_type in ("Reshape", "Transpose") else None
        if source is None or source.shape is None or value.shape is None or not len(source.shape):
            break
        if mover.op_type == "Transpose":
            axis = list(mover.attributes.get_ints("perm", range(len(value.shape))[::-1]))[axis]
        elif (
            axis != len(value.shape) - 1 or not isinstance(value.shape[-1], int) or value.shape[-1] != source.shape[-1]
        ):
            break
        else:
            axis = len(source.shape) - 1
        value = source
    return value, axis


def _with_bias(matmul: ir.Node, shift: Array) -> ir.Value:
    """Put a Gemm that adds a row in the place of a MatMul of matrices."""
    if not shift.any():
        return matmul.outputs[0]
    weight = constant(matmul.inputs[1])
    assert weight is not None
    bias = new_initializer(graph_of(matmul), shift.astype(weight.dtype), f"{matmul.outputs[0].name}_bias")
    gemm = insert_before(matmul, "Gemm", [*matmul.inputs, bias], name=matmul.name, like=matmul.outputs)
    replace_uses(matmul.outputs[0], gemm.outputs[0])
    retire(matmul)
    return gemm.outputs[0]


def inference_affine(node: ir.Node) -> tuple[Array, Array] | Refused:
    """Return scale and shift of a BatchNormalization in inference mode: float64 [C] each."""
    parameters = [constant(value) for value in node.inputs[1:5]]
    gamma, beta, mean, variance = (p.astype(np.float64) if p is not None else None for p in parameters)
    if gamma is None or beta is None or mean is None or variance is None:
        return Refused("not folded: a parameter is computed at run time or may be overridden")
    with np.errstate(all="ignore"):
        scale = gamma / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
        return scale, beta - mean * scale


def is_inference(node: ir.Node) -> bool:
    """Tell whether a BatchNormalization uses the statistics that it is given."""
    version = node_opset(node)
    if any(output_used(value) for value in node.outputs[1:]) or len(node.inputs) < 5:
        return False
    if version < 7:
        return bool(node.attributes.get_int("is_test", 0)) and bool(node.attributes.get_int("spatial", 1))
    if version < 9:
        return bool(node.attributes.get_int("spatial", 1))
    return not node.attributes.get_int("training_mode", 0)
