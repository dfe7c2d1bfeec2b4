"""A constant vector added before GELU, as one operator with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxedge.api import Accuracy, Context, constant, insert_before, is_standard, replace_uses, sole_consumer
from onnxedge_passes.cleanup.worklist import Outcome, Refused, Rule, is_exported_twice, retire


@dataclass(frozen=True, kw_only=True)
class FuseBiasGelu(Rule):
    """Fuse the addition of a constant vector and the GELU behind it into one operator.

    Before: ``y = Gelu(Add(x, b))`` with ``b: [D]``, the operator of ONNX or of ``com.microsoft``, or ``FastGelu``
    After:  ``y = com.microsoft::BiasGelu(x, b)``, or ``com.microsoft::FastGelu(x, b)`` for the form by tanh

    Only where the target lists ``BiasGelu``. ONNX Runtime 1.31 on the CPU does it by itself, and a quantized MatMul
    takes the bias in, so that its target does not.
    Left alone: a sum with other readers; operands that are no constant vector as long as the last axis.
    accuracy: rounding. Source: ONNX Runtime's contributed operators.
    """

    name: ClassVar[str] = "fuse-bias-gelu"
    accuracy: ClassVar[Accuracy] = "rounding"
    roots: ClassVar[tuple[str, ...]] = ("Add",)

    def rewrite(self, node: ir.Node, context: Context) -> Outcome:
        """Find the GELU behind an Add."""
        readers = [use.node for use in node.outputs[0].uses()]
        kernel = next((kernel for reader in readers if (kernel := _kernel(reader))), "")
        if not kernel:
            return None
        operands = _operands(node)
        target = context.target
        if not (target.has_kernel("BiasGelu", "com.microsoft") and target.has_kernel(kernel, "com.microsoft")):
            return Refused(f"BiasGelu not fused: target {target.name} lists no kernel for it") if operands else None
        if operands is None:
            alone = len(readers) == 1
            return Refused(f"{kernel} not fused: no constant vector for the last axis is added") if alone else None
        gelu = sole_consumer(node.outputs[0])
        if gelu is None or gelu.graph is not node.graph:
            return Refused(f"{kernel} not fused: the sum has other readers or is exported")
        if is_exported_twice(gelu.outputs[0]):
            return Refused(f"{kernel} not fused: its output is exported twice")
        fused = insert_before(gelu, kernel, operands, domain="com.microsoft", name=gelu.name, like=gelu.outputs)
        replace_uses(gelu.outputs[0], fused.outputs[0])
        retire(gelu)
        return fused.outputs[0]


def _operands(node: ir.Node) -> tuple[ir.Value, ir.Value] | None:
    """Return the two inputs of an Add, the one that is a constant vector as long as the last axis last."""
    for source, other in (node.inputs, node.inputs[::-1]):
        bias = constant(other)
        shape = source.shape if source is not None else None
        if source is None or other is None or bias is None or shape is None or not len(shape):
            continue
        if bias.shape == (shape[-1],):
            return source, other
    return None


def _kernel(gelu: ir.Node) -> str:
    """Return the kernel with a bias for a GELU, empty for another operator or one that has a bias already."""
    if gelu.op_type == "Gelu" and is_standard(gelu):
        return "FastGelu" if gelu.attributes.get_string("approximate", "none") == "tanh" else "BiasGelu"
    if gelu.domain != "com.microsoft":
        return ""
    if gelu.op_type == "FastGelu":
        return "FastGelu" if len(gelu.inputs) == 1 or gelu.inputs[1] is None else ""
    return "BiasGelu" if gelu.op_type == "Gelu" else ""
