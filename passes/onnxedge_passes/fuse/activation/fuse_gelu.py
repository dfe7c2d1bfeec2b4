"""GELU from raw operators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxedge.api import Array, Context
from onnxedge_passes.cleanup.worklist import node_opset
from onnxedge_passes.fuse.activation.pointwise import Function, FuseActivation, Kernel


def _gelu(x: Array) -> Array:
    from scipy.special import erf

    return np.asarray(0.5 * x * (1.0 + erf(x / np.sqrt(2.0))))


def _gelu_tanh(x: Array) -> Array:
    return np.asarray(0.5 * x * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3))))


@dataclass(frozen=True, kw_only=True)
class FuseGelu(FuseActivation):
    """Fuse the operators that spell GELU, by the error function or by tanh, into one.

    Before: ``y = Mul(Mul(x, 0.5), Add(Erf(Div(x, 1.4142)), 1))`` in any order of factors, or with
    ``Tanh(0.7979 * (x + 0.044715 * x^3))``
    After:  ``y = Gelu(x)`` from opset 20, else ``com.microsoft::Gelu`` or ``com.microsoft::FastGelu``

    Left alone: inner values with other readers; targets with no kernel; other constants.
    accuracy: rounding. Source: Hendrycks and Gimpel 2016, arXiv:1606.08415.
    """

    name: ClassVar[str] = "fuse-gelu"
    roots: ClassVar[tuple[str, ...]] = ("Erf", "Tanh", "Sigmoid")
    landmarks: ClassVar[dict[str, str]] = {"Erf": "GELU"}
    functions: ClassVar[dict[Function, Callable[[Array], Array]]] = {
        Function("GELU"): _gelu,
        Function("GELU (tanh)"): _gelu_tanh,
    }

    def kernel(self, function: Function, node: ir.Node, context: Context) -> Kernel | None:
        """Return the standard operator where the opset has it, else ONNX Runtime's where the target has it."""
        form = "none" if function.name == "GELU" else "tanh"
        if node_opset(node) >= 20:
            return Kernel("Gelu", attributes=(("approximate", form),))
        op_type = "Gelu" if form == "none" else "FastGelu"
        return Kernel(op_type, "com.microsoft") if context.target.has_kernel(op_type, "com.microsoft") else None
