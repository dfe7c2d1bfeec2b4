"""Two operators that undo each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxedge.api import Context
from onnxedge_passes.cleanup.worklist import Outcome, Rule, node_before, replace_by

_INVERSE = {
    "Neg": "Neg",
    "Not": "Not",
    "BitwiseNot": "BitwiseNot",
    "SpaceToDepth": "DepthToSpace",
    "DepthToSpace": "SpaceToDepth",
}


@dataclass(frozen=True, kw_only=True)
class CancelPairs(Rule):
    """Remove two operators in a row of which the second undoes the first, bit by bit.

    Before: ``y = Neg(Neg(x))``; ``y = Not(Not(x))``; ``y = DepthToSpace<blocksize=2>(SpaceToDepth<blocksize=2>(x))``
    After:  ``y = x``

    Left alone: Reciprocal, Exp and Log, and all others that round; blocks of another size or order.
    accuracy: exact. Source: own.
    """

    name: ClassVar[str] = "cancel-pairs"
    roots: ClassVar[tuple[str, ...]] = tuple(_INVERSE)

    def rewrite(self, node: ir.Node, context: Context) -> Outcome:
        """Let the readers of the second read what the first one read."""
        before = node_before(node, _INVERSE[node.op_type])
        first = before.inputs[0] if before is not None else None
        if before is None or first is None:
            return None
        if any(n.attributes.get_string("mode", "DCR") != "DCR" for n in (node, before)):
            return None
        if node.attributes.get_int("blocksize", 0) != before.attributes.get_int("blocksize", 0):
            return None
        return replace_by(node, first)
