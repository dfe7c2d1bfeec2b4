"""Mish from raw operators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxedge.api import Array, Context
from onnxedge_passes.cleanup.worklist import Refused, node_opset
from onnxedge_passes.fuse.activation.pointwise import Function, FuseActivation, Kernel
from onnxedge_passes.fuse.activation.spell_activations import can_spell, spelled_mish
from onnxedge_passes.fuse.expression import Expression


def _mish(x: Array) -> Array:
    return np.asarray(x * np.tanh(np.maximum(x, 0.0) + np.log1p(np.exp(-np.abs(x)))))


@dataclass(frozen=True, kw_only=True)
class FuseMish(FuseActivation):
    """Fuse ``x * tanh(softplus(x))`` into one operator.

    Before: ``y = Mul(x, Tanh(Softplus(x)))``, with the logarithm spelled out or guarded, or with exponentials alone
    After:  ``y = Mish(x)`` from opset 18; for ONNX Runtime on the CPU the quotient of exponentials that
    ``spell-activations`` makes of Mish

    Left alone: inner values with other readers; older opsets.
    accuracy: rounding. Source: Misra 2019, arXiv:1908.08681.
    """

    name: ClassVar[str] = "fuse-mish"
    roots: ClassVar[tuple[str, ...]] = ("Tanh", "Exp")
    functions: ClassVar[dict[Function, Callable[[Array], Array]]] = {Function("Mish"): _mish}

    def emit(self, function: Function, expression: Expression, context: Context) -> ir.Value | Refused | None:
        """Put the operator, or the spelling that the runtime is faster with."""
        if not can_spell(expression.root, expression.source, context):
            return super().emit(function, expression, context)
        if not any(node.op_type in ("Softplus", "Log") for node in expression.nodes):
            return None
        return spelled_mish(expression.root, expression.source)

    def kernel(self, function: Function, node: ir.Node, context: Context) -> Kernel | None:
        """Return the standard operator where the opset has it."""
        return Kernel("Mish") if node_opset(node) >= 18 else None
