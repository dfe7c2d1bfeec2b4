"""Constants that one after the other are multiplied or added."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxedge.api import (
    Accuracy,
    Array,
    Context,
    constant,
    graph_of,
    is_constant,
    is_standard,
    new_initializer,
    sole_consumer,
)
from onnxedge_passes.cleanup.worklist import Outcome, Refused, Rule, node_opset, replace_node

#: Largest element of a constant that is added: larger ones round what they are added to, which may be meant.
_LARGEST = {ir.DataType.FLOAT: 1e4, ir.DataType.DOUBLE: 1e4, ir.DataType.FLOAT16: 64.0}
_RANGE = (1e-4, 1e4)  #: magnitude of factors that are multiplied: far from overflow and from losing bits


@dataclass(frozen=True, kw_only=True)
class MergeConstants(Rule):
    """Merge two multiplications or divisions by constants, or two additions or subtractions of them, into one.

    Before: ``y = Mul(Div(x, 8), k)``; ``y = Sub(Add(x, a), b)``
    After:  ``y = Mul(x, k / 8)``; ``y = Add(x, a - b)``

    Left alone: a result that would take more elements than the larger of the two; factors of 0 or outside of 1e-4 to
    1e4; constants above 1e4 that are added (adding and subtracting 2^23 is a way to round); inner values with other
    readers; integers.
    accuracy: rounding. Source: own.
    """

    name: ClassVar[str] = "merge-constants"
    accuracy: ClassVar[Accuracy] = "rounding"
    roots: ClassVar[tuple[str, ...]] = ("Mul", "Div", "Add", "Sub")

    def rewrite(self, node: ir.Node, context: Context) -> Outcome:
        """Go back from node to node as long as what they add or multiply with merges, and put one node for them all."""
        dtype, step = node.outputs[0].dtype, _step(node)
        product = node.op_type in ("Mul", "Div")
        if dtype is None or step is None or node_opset(node) < 7 or not _is_moderate(step.operand, product, dtype):
            return None
        merged, first = step.operand, node
        while (before := _step_before(step.data, first, product)) is not None:
            if sole_consumer(step.data) is not first:
                if first is node:
                    return Refused("constants not merged: the inner value has other readers or is exported")
                break
            both = _merged(merged, before.operand, product, dtype)
            if both is None:
                break
            step, merged, first = before, both, before.node
        if first is node:
            return None
        value = new_initializer(graph_of(node), merged.astype(dtype.numpy()), f"{node.outputs[0].name}_constant")
        return replace_node(node, "Mul" if product else "Add", [step.data, value])


@dataclass(frozen=True)
class _Step:
    """Hold a node, its data, and the constant, in float64, that it multiplies that with or adds to it."""

    node: ir.Node
    data: ir.Value
    operand: Array


def _step_before(data: ir.Value, node: ir.Node, product: bool) -> _Step | None:
    """Return the step that produces the data of another one, None where it is of another kind."""
    before = data.producer()
    if before is None or before.op_type not in (("Mul", "Div") if product else ("Add", "Sub")):
        return None
    return _step(before) if is_standard(before) and before.graph is node.graph else None


def _step(node: ir.Node) -> _Step | None:
    """Return what a node does to the one of its operands that is no constant."""
    for side in (0, 1):
        data, operand = node.inputs[side], constant(node.inputs[1 - side])
        if data is None or operand is None or operand.dtype.kind != "f" or is_constant(data):
            continue
        exact = operand.astype(np.float64)
        if node.op_type not in ("Div", "Sub"):
            return _Step(node, data, exact)
        with np.errstate(all="ignore"):
            return _Step(node, data, 1.0 / exact if node.op_type == "Div" else -exact) if side == 0 else None
    return None


def _merged(outer: Array, inner: Array, product: bool, dtype: ir.DataType) -> Array | None:
    """Return what stands for two operands; None where it takes more elements, or where digits may be lost."""
    try:
        merged = np.asarray(outer * inner if product else outer + inner)
    except ValueError:
        return None
    if merged.size > max(outer.size, inner.size) or merged.ndim > max(outer.ndim, inner.ndim):
        return None
    return merged if _is_moderate(inner, product, dtype) and _is_moderate(merged, product, dtype) else None


def _is_moderate(operand: Array, product: bool, dtype: ir.DataType) -> bool:
    """Tell whether an operand, of at least one element, is far from where digits are lost."""
    if dtype not in _LARGEST or not operand.size:
        return False
    sizes = np.abs(operand)
    if not product:
        return bool(sizes.max() <= _LARGEST[dtype])
    return bool(_RANGE[0] <= sizes.min() and sizes.max() <= _RANGE[1])
