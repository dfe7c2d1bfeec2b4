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
    insert_before,
    is_standard,
    new_initializer,
    replace_uses,
    sole_consumer,
)
from onnxedge_passes.cleanup.worklist import Outcome, Refused, Rule, node_opset, retire

_OPERATORS = ("Mul", "Div", "Add", "Sub")
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
    roots: ClassVar[tuple[str, ...]] = _OPERATORS

    def rewrite(self, node: ir.Node, context: Context) -> Outcome:
        """Look at what produces the operand that is no constant."""
        outer = _step(node)
        if outer is None:
            return None
        before = outer[0].producer()
        if before is None or not is_standard(before) or before.graph is not node.graph:
            return None
        inner = _step(before) if before.op_type in _OPERATORS else None
        product = node.op_type in ("Mul", "Div")
        if inner is None or product != (before.op_type in ("Mul", "Div")) or node_opset(node) < 7:
            return None
        if sole_consumer(outer[0]) is not node:
            return Refused("constants not merged: the inner value has other readers or is exported")
        dtype = node.outputs[0].dtype
        merged = _merged(outer[1], inner[1], product, dtype) if dtype is not None else None
        if merged is None or dtype is None:
            return None
        value = new_initializer(graph_of(node), merged.astype(dtype.numpy()), f"{node.outputs[0].name}_constant")
        new = insert_before(
            node, "Mul" if product else "Add", [inner[0], value], name=node.name, like=node.outputs
        ).outputs[0]
        replace_uses(node.outputs[0], new)
        retire(node)
        return new


def _step(node: ir.Node) -> tuple[ir.Value, Array] | None:
    """Return the data of a node, and the constant, in float64, that it is multiplied with or that is added."""
    for side in (0, 1):
        data, operand = node.inputs[side], constant(node.inputs[1 - side])
        if data is None or operand is None or operand.dtype.kind != "f" or constant(data) is not None:
            continue
        if side == 1 and node.op_type in ("Div", "Sub"):
            return None
        exact = operand.astype(np.float64)
        with np.errstate(all="ignore"):
            return data, 1.0 / exact if node.op_type == "Div" else -exact if node.op_type == "Sub" else exact
    return None


def _merged(outer: Array, inner: Array, product: bool, dtype: ir.DataType) -> Array | None:
    if dtype not in _LARGEST or not (outer.size and inner.size):
        return None
    try:
        merged = np.asarray(outer * inner if product else outer + inner)
    except ValueError:
        return None
    if merged.size > max(outer.size, inner.size) or merged.ndim > max(outer.ndim, inner.ndim):
        return None
    sizes = [np.abs(array) for array in (outer, inner, merged)]
    if not product:
        return merged if all(size.max() <= _LARGEST[dtype] for size in sizes) else None
    return merged if all(_RANGE[0] <= size.min() and size.max() <= _RANGE[1] for size in sizes) else None
