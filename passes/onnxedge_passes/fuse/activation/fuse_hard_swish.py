"""HardSwish from raw operators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxedge.api import Array, Context
from onnxedge_passes.cleanup.worklist import node_opset
from onnxedge_passes.fuse.activation.pointwise import Function, FuseActivation, Kernel


def _hard_swish(x: Array) -> Array:
    return np.asarray(x * np.clip(x + 3.0, 0.0, 6.0) / 6.0)


@dataclass(frozen=True, kw_only=True)
class FuseHardSwish(FuseActivation):
    """Fuse ``x * clip(x + 3, 0, 6) / 6`` into one operator.

    Before: ``y = Div(Mul(x, Clip(Add(x, 3), 0, 6)), 6)``, or ``Mul(x, HardSigmoid<alpha=1/6>(x))``
    After:  ``y = HardSwish(x)`` from opset 14

    Left alone: inner values with other readers; older opsets.
    accuracy: rounding. Source: Howard et al. 2019, arXiv:1905.02244, section 5.2.
    """

    name: ClassVar[str] = "fuse-hard-swish"
    roots: ClassVar[tuple[str, ...]] = ("Clip", "HardSigmoid", "Min", "Relu")
    limit: ClassVar[int] = 7
    functions: ClassVar[dict[Function, Callable[[Array], Array]]] = {Function("HardSwish"): _hard_swish}

    def kernel(self, function: Function, node: ir.Node, context: Context) -> Kernel | None:
        """Return the standard operator where the opset has it."""
        return Kernel("HardSwish") if node_opset(node) >= 14 else None
