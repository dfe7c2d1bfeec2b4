"""What the rules for GELU, SiLU and HardSwish share: a pointwise expression in one value that is a known function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from onnxedge.api import Accuracy, Array, Context, insert_before, replace_uses
from onnxedge_passes.cleanup.worklist import Outcome, Refused, Rule, retire
from onnxedge_passes.fuse.expression import POINTWISE, expressions

_LIMIT = 12  #: nodes of the longest spelling
_SAMPLES: Array = np.concatenate([np.linspace(-12.0, 12.0, 481), [-1e3, -87.0, -30.0, 30.0, 87.0, 1e3]])
_TOLERANCE = {ir.DataType.FLOAT: 2e-6, ir.DataType.DOUBLE: 2e-6, ir.DataType.FLOAT16: 2e-4}  #: of the constants used


@dataclass(frozen=True)
class Kernel:
    """Name the operator that computes an activation."""

    op_type: str
    domain: str = ""
    attributes: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True, kw_only=True)
class FuseActivation(Rule):
    """Replace a pointwise expression by the one operator that computes the same function."""

    accuracy: ClassVar[Accuracy] = "rounding"
    roots: ClassVar[tuple[str, ...]] = ("Mul", "Div")
    needs: ClassVar[frozenset[str]]  #: operators of which every spelling has one
    functions: ClassVar[dict[str, Callable[[Array], Array]]]  #: name -> the function in float64

    def kernel(self, function: str, node: ir.Node, context: Context) -> Kernel | None:
        """Return the operator for a function in a graph of the node's opset on the context's target."""
        raise NotImplementedError(f"{type(self).__name__} names no kernel")

    def rewrite(self, node: ir.Node, context: Context) -> Outcome:
        """Try each value that branches before the node as the argument of each function."""
        tolerance = _TOLERANCE.get(node.outputs[0].dtype or ir.DataType.UNDEFINED)
        if tolerance is None:
            return None
        for expression in expressions(node, POINTWISE, self.needs, _LIMIT):
            found = expression.evaluate(_SAMPLES) if expression.constants_are_scalars() else None
            function = self._name(found, tolerance) if found is not None else None
            if function is None:
                continue
            if not expression.is_read_inside_only():
                return Refused(f"{function} not fused: a value inside it has other readers")
            kernel = self.kernel(function, node, context)
            if kernel is None:
                return Refused(f"{function} not fused: target {context.target.name} has no kernel for it at this opset")
            fused = insert_before(
                node,
                kernel.op_type,
                [expression.source],
                attributes=dict(kernel.attributes),
                domain=kernel.domain,
                name=node.name,
                like=node.outputs,
            )
            replace_uses(node.outputs[0], fused.outputs[0])
            retire(node)
            return fused.outputs[0]
        return None

    def _name(self, found: Array, tolerance: float) -> str | None:
        """Return the name of the function that the samples fit best, None where none fits."""
        if found.shape != _SAMPLES.shape:
            return None
        errors = {
            name: float(np.max(np.abs(found - function(_SAMPLES)) / np.maximum(1.0, np.abs(_SAMPLES))))
            for name, function in self.functions.items()
        }
        best = min(errors, key=lambda name: errors[name] if np.isfinite(errors[name]) else np.inf)
        return best if errors[best] <= tolerance else None
