"""Sums, means and norms that are taken along one axis after the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxedge.api import Accuracy, Context, sole_consumer
from onnxedge_passes.cleanup.axes import axes_for, named_axes
from onnxedge_passes.cleanup.worklist import Outcome, Refused, Rule, node_before, replace_node
from onnxedge_passes.fuse.expression import FLOATS


@dataclass(frozen=True, kw_only=True)
class MergeSums(Rule):
    """Reduce along neighbouring axes at once.

    Before: ``y = ReduceMean<axes=[2]>(ReduceMean<axes=[3]>(x))``
    After:  ``y = ReduceMean<axes=[2, 3]>(x)``

    ReduceSum, ReduceL1, ReduceL2 and ReduceLogSumExp likewise. ONNX Runtime 1.31 on the CPU takes 6 us instead of 30
    us for the mean of [1, 64, 28, 28].
    Left alone: axes with another one between them (1.2 to 2.7 times slower at once); one result that keeps its axes
    and one that drops them; maxima and minima, in which the runtime finds a NaN or not by its place; products, which
    overflow in one order and not in another; means of integers.
    accuracy: rounding. Source: own.
    """

    name: ClassVar[str] = "merge-sums"
    accuracy: ClassVar[Accuracy] = "rounding"
    roots: ClassVar[tuple[str, ...]] = ("ReduceSum", "ReduceMean", "ReduceL1", "ReduceL2", "ReduceLogSumExp")

    def rewrite(self, node: ir.Node, context: Context) -> Outcome:
        """Look for a reduction of the same kind before a node."""
        source, before = node.inputs[0], node_before(node, node.op_type)
        data = before.inputs[0] if before is not None else None
        if source is None or before is None or data is None or data.shape is None or data.dtype not in FLOATS:
            return None
        rank = len(data.shape)
        first = _axes(before, rank)
        keeps = _keeps(before)
        second = _axes(node, rank if keeps or first is None else rank - len(first))
        if first is None or second is None:
            return None
        if not keeps:
            left = [axis for axis in range(rank) if axis not in first]
            second = {left[axis] for axis in second}
        if _keeps(node) != keeps and not (keeps and first <= second):
            return Refused(f"{node.op_type} not merged: it keeps its axes, or drops them, and the one before does not")
        axes = sorted(first | second)
        if axes != list(range(axes[0], axes[-1] + 1)):
            return Refused(f"{node.op_type} not merged: another axis lies between the axes, and at once it is slower")
        if sole_consumer(source) is not node:
            return Refused(f"{node.op_type} not merged: the one before has other readers or is exported")
        operands, attributes = axes_for(node, node.op_type, axes, f"{node.outputs[0].name}_axes")
        return replace_node(node, node.op_type, [data, *operands], {**attributes, "keepdims": int(_keeps(node))})


def _keeps(node: ir.Node) -> bool:
    return node.attributes.get_int("keepdims", 1) != 0


def _axes(node: ir.Node, rank: int) -> set[int] | None:
    """Return the axes of a reduction counted from the start, None where they are not named or not known."""
    axes = named_axes(node) or []
    found = {axis % rank for axis in axes if -rank <= axis < rank}
    return found if found and len(found) == len(axes) else None
