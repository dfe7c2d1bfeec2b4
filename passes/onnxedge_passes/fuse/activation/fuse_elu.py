"""ELU, SELU and CELU from raw operators."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxedge.api import Array, Context
from onnxedge_passes.cleanup.worklist import Refused, node_opset
from onnxedge_passes.fuse.activation.pointwise import SAMPLES, Function, FuseActivation, Kernel, fits
from onnxedge_passes.fuse.activation.spell_activations import can_spell, spelled_elu
from onnxedge_passes.fuse.expression import Expression

_SINCE = {"Elu": 6, "Selu": 6, "Celu": 12}


def _exponential(gamma: float, alpha: float, scale: float) -> Array:
    negative = np.minimum(SAMPLES, 0.0)
    return np.asarray(gamma * np.where(SAMPLES > 0, SAMPLES, alpha * np.expm1(negative / scale)))


@dataclass(frozen=True, kw_only=True)
class FuseElu(FuseActivation):
    """Fuse ``x where x > 0, else alpha * (exp(x) - 1)`` into one operator.

    Before: ``y = Where(Greater(x, 0), x, Sub(Exp(x), 1))``; with a factor ``gamma``; with ``exp(x / alpha)``
    After:  ``y = Elu(x)``; ``y = Selu<alpha, gamma>(x)``; ``y = Celu<alpha>(x)`` from opset 12; for ONNX Runtime on the
    CPU the spelling of ``spell-activations`` instead of a Where

    ONNX Runtime 1.31 on the CPU takes 1.9 to 3.6 times as long for the operators as for what they stand for (262,144
    elements).
    Left alone: inner values with other readers; other spellings than by Where, on that target.
    accuracy: rounding. Source: Clevert et al. 2016, arXiv:1511.07289; Klambauer et al. 2017, arXiv:1706.02515; Barron
    2017, arXiv:1704.07483.
    """

    name: ClassVar[str] = "fuse-elu"
    roots: ClassVar[tuple[str, ...]] = ("Exp",)
    limit: ClassVar[int] = 9

    def recognise(self, found: Array, tolerance: float) -> Function | None:
        """Read gamma off the largest sample, alpha off the smallest."""
        gamma = float(found[int(np.argmax(SAMPLES))] / SAMPLES.max())
        if not 0.01 < gamma < 100.0:
            return None
        alpha = -float(found[int(np.argmin(SAMPLES))]) / gamma
        if not 0.01 < alpha < 100.0:
            return None
        if fits(found, _exponential(gamma, alpha, 1.0), tolerance):
            plain = abs(gamma - 1.0) <= tolerance
            return (
                Function("Elu", (("alpha", alpha),))
                if plain
                else Function("Selu", (("alpha", alpha), ("gamma", gamma)))
            )
        if fits(found, _exponential(1.0, alpha, alpha), tolerance):
            return Function("Celu", (("alpha", alpha),))
        return None

    def emit(self, function: Function, expression: Expression, context: Context) -> ir.Value | Refused | None:
        """Put the operator, or the spelling that the runtime is faster with."""
        if not can_spell(expression.root, expression.source, context):
            return super().emit(function, expression, context)
        if not any(node.op_type == "Where" for node in expression.nodes):
            return None
        return spelled_elu(expression.root, expression.source, function.name, dict(function.parameters))

    def kernel(self, function: Function, node: ir.Node, context: Context) -> Kernel | None:
        """Return the standard operator where the opset has it."""
        version = node_opset(node)
        if version < _SINCE[function.name] or not context.target.has_kernel(function.name, opset=version):
            return None
        if function.name == "Celu" and node.outputs[0].dtype != ir.DataType.FLOAT:
            return None
        return Kernel(function.name, attributes=function.parameters)
