"""What the rules for activations share: a pointwise expression in one value that is a known function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from onnxedge.api import Accuracy, Array, Context, insert_before, replace_uses
from onnxedge_passes.cleanup.worklist import Outcome, Refused, Rule, retire
from onnxedge_passes.fuse.expression import FLOATS, POINTWISE, Expression, expressions_around

#: Where expressions are evaluated; 0, 1 and -1 are among them.
SAMPLES: Array = np.concatenate([np.arange(-240, 241) / 20.0, [-1e3, -87.0, -30.0, 30.0, 87.0, 1e3]])


@dataclass(frozen=True)
class Function:
    """Name an activation as people do, with its parameters."""

    name: str
    parameters: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Kernel:
    """Name the operator that computes an activation."""

    op_type: str
    domain: str = ""
    attributes: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True, kw_only=True)
class FuseActivation(Rule):
    """Replace a pointwise expression by the one operator that computes the same function.

    ``roots`` are the operators of which every spelling has one; the expression is searched around them.
    """

    accuracy: ClassVar[Accuracy] = "rounding"
    functions: ClassVar[dict[Function, Callable[[Array], Array]]] = {}  #: what is looked for, in float64
    limit: ClassVar[int] = 12  #: nodes of the longest spelling
    branching: ClassVar[bool] = True  #: every spelling reads its argument twice
    landmarks: ClassVar[dict[str, str]] = {}  #: root -> the name of the function that nearly all of its uses spell

    def kernel(self, function: Function, node: ir.Node, context: Context) -> Kernel | None:
        """Return the operator for a function in a graph of the node's opset on the context's target."""
        raise NotImplementedError(f"{type(self).__name__} names no kernel")

    def emit(self, function: Function, expression: Expression, context: Context) -> ir.Value | Refused | None:
        """Put what computes the function before the expression's root and return its output.

        Returns None where the spelling that is there is to stay.
        """
        node = expression.root
        kernel = self.kernel(function, node, context)
        if kernel is None:
            target = context.target.name
            return Refused(f"{function.name} not fused: target {target} has no kernel for it at this opset")
        if len(expression.nodes) == 1 and node.op_type == kernel.op_type:
            return None
        fused = insert_before(
            node,
            kernel.op_type,
            [expression.source],
            attributes=dict(kernel.attributes),
            domain=kernel.domain,
            name=node.name,
            like=node.outputs,
        )
        return fused.outputs[0]

    def rewrite(self, node: ir.Node, context: Context) -> Outcome:
        """Try each value that branches before the node as the argument of each function."""
        tolerance = FLOATS.get(node.outputs[0].dtype or ir.DataType.UNDEFINED)
        if tolerance is None or node.outputs[0].dtype == ir.DataType.DOUBLE:
            return None  # ONNX Runtime has no double kernels of most activations, or computes them in float
        for expression in expressions_around(node, POINTWISE, self.limit, branching=self.branching, scalars=True):
            if expression.root.outputs[0].dtype not in FLOATS or not expression.constants_are_scalars():
                continue
            found = expression.evaluate(SAMPLES)
            if found is None or found.shape != SAMPLES.shape:
                continue
            function = self.recognise(found, tolerance)
            if function is None:
                continue
            if not expression.is_read_inside_only():
                return Refused(f"{function.name} not fused: a value inside it has other readers")
            new = self.emit(function, expression, context)
            if new is None or isinstance(new, Refused):
                return new
            replace_uses(expression.root.outputs[0], new)
            retire(expression.root)
            return new
        meant = self.landmarks.get(node.op_type)
        return Refused(f"{meant} not fused: what is computed around it is another function") if meant else None

    def recognise(self, found: Array, tolerance: float) -> Function | None:
        """Return the function that the samples fit best, None where none fits."""
        errors = {function: _error(found, exact(SAMPLES)) for function, exact in self.functions.items()}
        best = min(errors, key=lambda function: errors[function])
        return best if errors[best] <= tolerance else None


def fits(found: Array, exact: Array, tolerance: float) -> bool:
    """Tell whether samples of a function are those of another one up to the rounding of constants."""
    return _error(found, exact) <= tolerance


def _error(found: Array, exact: Array) -> float:
    with np.errstate(all="ignore"):
        error = float(np.max(np.abs(found - exact) / np.maximum(1.0, np.abs(SAMPLES))))
    return error if np.isfinite(error) else np.inf
