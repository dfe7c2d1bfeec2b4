"""Products with a reciprocal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxedge.api import Accuracy, Context, constant
from onnxedge_passes.cleanup.worklist import Outcome, Rule, node_before, node_opset, replace_node
from onnxedge_passes.fuse.expression import FLOATS


@dataclass(frozen=True, kw_only=True)
class MergeReciprocals(Rule):
    """Divide instead of multiplying by a reciprocal.

    Before: ``y = Mul(x, Div(1, d))``; ``y = Mul(x, Reciprocal(d))``
    After:  ``y = Div(x, d)``

    Left alone: a reciprocal with other readers; integers, whose division drops the fraction.
    accuracy: rounding (a quotient where the reciprocal overflows). Source: own.
    """

    name: ClassVar[str] = "merge-reciprocals"
    accuracy: ClassVar[Accuracy] = "rounding"
    roots: ClassVar[tuple[str, ...]] = ("Mul",)

    def rewrite(self, node: ir.Node, context: Context) -> Outcome:
        """Find the reciprocal on one side."""
        if node.outputs[0].dtype not in FLOATS or node_opset(node) < 7:
            return None
        for side in (0, 1):
            before, other = node_before(node, index=side, alone=True), node.inputs[1 - side]
            divisor = _divisor(before) if before is not None else None
            if divisor is not None and other is not None and constant(other) is None:
                return replace_node(node, "Div", [other, divisor])
        return None


def _divisor(node: ir.Node) -> ir.Value | None:
    """Return what a node gives the reciprocal of, None for other nodes."""
    if node.op_type == "Reciprocal":
        return node.inputs[0]
    one = constant(node.inputs[0]) if node.op_type == "Div" else None
    divisor = node.inputs[1] if one is not None else None
    if one is None or divisor is None or one.size != 1 or one.item() != 1:
        return None
    return divisor if one.ndim == 0 or (divisor.shape is not None and one.ndim <= len(divisor.shape)) else None
