"""Casts in a row, casts to the type of another value, and casts of a filled tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxedge.api import Context
from onnxedge_passes.cleanup.worklist import (
    Outcome,
    Rule,
    attributes_of,
    input_at,
    node_before,
    replace_by,
    replace_node,
    retire,
)

_SIGNED = {ir.DataType.INT8: 7, ir.DataType.INT16: 15, ir.DataType.INT32: 31, ir.DataType.INT64: 63}
_UNSIGNED = {ir.DataType.UINT8: 8, ir.DataType.UINT16: 16, ir.DataType.UINT32: 32, ir.DataType.UINT64: 64}
_FILLINGS = (  #: what ConstantOfShape makes at each of its opsets
    *_SIGNED,
    *_UNSIGNED,
    ir.DataType.FLOAT16,
    ir.DataType.FLOAT,
    ir.DataType.DOUBLE,
    ir.DataType.BOOL,
)
_FLOATS = {  #: bits of the significand, and what is held without loss
    ir.DataType.FLOAT16: (11, ()),
    ir.DataType.BFLOAT16: (8, ()),
    ir.DataType.FLOAT: (24, (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)),
    ir.DataType.DOUBLE: (53, (ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.FLOAT)),
}


@dataclass(frozen=True, kw_only=True)
class MergeCasts(Rule):
    """Cast once what is cast twice, fill a tensor with what it is cast to, write CastLike as a plain Cast.

    Before: ``y = Cast<to=FLOAT16>(Cast<to=FLOAT>(x))`` with ``x: float16[N]``; ``y = CastLike(x, t)``;
    ``y = Cast<to=FLOAT>(ConstantOfShape<value=1>(s))``
    After:  ``y = x``; ``y = Cast<to=FLOAT16>(x)`` with ``t: float16[M]``; ``y = ConstantOfShape<value=1.0>(s)``

    Left alone: a first cast that may lose digits or range; a filling that the other type does not hold; a float
    that would be cast to an integer in another way where it is out of range; types that are not known.
    accuracy: exact. Source: own.
    """

    name: ClassVar[str] = "merge-casts"
    roots: ClassVar[tuple[str, ...]] = ("Cast", "CastLike")

    def rewrite(self, node: ir.Node, context: Context) -> Outcome:
        """Look at the cast before this one."""
        source = node.inputs[0]
        if source is None:
            return None
        if node.op_type == "CastLike":
            like = input_at(node, 1)
            if like is None or like.dtype is None:
                return None
            return replace_node(node, "Cast", [source], {"to": int(like.dtype), **attributes_of(node)})
        before, to = node_before(node, "Cast", "ConstantOfShape"), node.attributes.get_int("to", 0)
        if before is None:
            return None
        if before.op_type == "ConstantOfShape":
            return _fill(node, before, ir.DataType(to))
        first = before.inputs[0]
        if first is None or first.dtype is None or not _is_redundant(first.dtype, before, ir.DataType(to)):
            return None
        if first.dtype == to:
            return replace_by(node, first)
        node.replace_input_with(0, first)
        retire(before)
        return node.outputs[0]


def _fill(node: ir.Node, before: ir.Node, to: ir.DataType) -> Outcome:
    """Fill a tensor with a number of another type, where that type holds the number."""
    shape = before.inputs[0]
    given = before.attributes.get_tensor("value", None)
    number = given.numpy().reshape(-1) if given is not None else np.zeros(1, np.float32)
    if shape is None or to not in _FILLINGS or number.dtype.kind not in "biuf" or not np.isfinite(number).all():
        return None
    with np.errstate(all="ignore"):
        cast = number.astype(to.numpy())
    exact, made = (array.astype(np.float64) for array in (number, cast))
    if made != exact or np.signbit(made) != np.signbit(exact):
        return None
    return replace_node(node, "ConstantOfShape", [shape], {"value": ir.tensor(cast)})


def _is_redundant(source: ir.DataType, before: ir.Node, to: ir.DataType) -> bool:
    """Tell whether casting by way of ``before`` is the same as casting at once, whatever the value."""
    middle = ir.DataType(before.attributes.get_int("to", 0))
    if ir.DataType.STRING in (source, middle, to) or not _holds(middle, source):
        return False
    if to in _SIGNED or to in _UNSIGNED:
        return (source not in _FLOATS and middle not in _FLOATS) or _holds(to, source)
    return to in _FLOATS or to == ir.DataType.BOOL


def _holds(wide: ir.DataType, narrow: ir.DataType) -> bool:
    """Tell whether a type holds each value of another."""
    if wide == narrow or narrow == ir.DataType.BOOL:
        return wide in _FLOATS or wide in _SIGNED or wide in _UNSIGNED or wide == narrow
    if wide in _FLOATS:
        digits, floats = _FLOATS[wide]
        return narrow in floats or _SIGNED.get(narrow, _UNSIGNED.get(narrow, 99)) <= digits
    if wide in _SIGNED:
        return _SIGNED.get(narrow, _UNSIGNED.get(narrow, 99)) <= _SIGNED[wide]
    return wide in _UNSIGNED and _UNSIGNED.get(narrow, 99) <= _UNSIGNED[wide]
