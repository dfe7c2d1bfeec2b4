"""Choices by a negated condition."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxedge.api import Accuracy, Context, replace_input
from onnxedge_passes.cleanup.worklist import Outcome, Rule, node_before, retire


@dataclass(frozen=True, kw_only=True)
class SwapWhere(Rule):
    """Swap the sides of a Where instead of negating its condition.

    Before: ``y = Where(Not(c), a, b)``
    After:  ``y = Where(c, b, a)``

    Left alone: negations in another graph. The Not stays for others that read it.
    accuracy: rounding (ONNX Runtime 1.31 on the CPU turns a -0.0 of the first side into 0.0, and one of the second
    not). Source: own.
    """

    name: ClassVar[str] = "swap-where"
    accuracy: ClassVar[Accuracy] = "rounding"
    roots: ClassVar[tuple[str, ...]] = ("Where",)

    def rewrite(self, node: ir.Node, context: Context) -> Outcome:
        """Look for a Not before the condition."""
        negation = node_before(node, "Not")
        if negation is None or len(node.inputs) != 3:
            return None
        left, right = node.inputs[1:]
        for index, value in enumerate((negation.inputs[0], right, left)):
            replace_input(node, index, value)
        retire(negation)
        return node.outputs[0]
