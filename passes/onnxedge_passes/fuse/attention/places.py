"""What integers, conditions and masks that a graph computes from sizes are, as functions of the place in the tensor.

An integer is a sum of indices and sizes: ``Range(0, T, 1)`` is the index of its only axis. A condition is such a sum
that is at most 0, and a mask is one number where a condition holds and another elsewhere. So a causal mask is known as
one, whatever operators spell it, because its condition is ``key - query <= 0``. Source: own.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence

import onnx_ir as ir

from onnxedge.api import constant, is_standard
from onnxedge_passes.cleanup.worklist import input_at
from onnxedge_passes.fuse.attention.element import (
    Choice,
    Element,
    Integer,
    Placed,
    Sum,
    broadcast,
    given,
    holds,
    inverted,
    moved,
    of_array,
    plus,
    size_of,
    sum_of,
)
from onnxedge_passes.fuse.attention.shapes import Size, elements, is_sure, sizes

_DEEP = 48  #: nodes of the longest computation that is followed
_LARGEST = 1 << 22  #: elements of the largest constant that is looked at
_END = 1 << 30  #: an end of a Slice that is no less than any size
_INTEGERS = (ir.DataType.INT64, ir.DataType.INT32)
_EXACT = (*_INTEGERS, ir.DataType.FLOAT, ir.DataType.DOUBLE)  #: types that hold an index


def placed(value: ir.Value | None) -> Placed | None:
    """Return what the elements of a value are, None where that is no such function."""
    return _placed(value, _DEEP, {})


def _placed(value: ir.Value | None, left: int, seen: dict[ir.Value, Placed | None]) -> Placed | None:
    if value is None or left <= 0:
        return None
    if value not in seen:
        found = _computed(value, left, seen)
        dims = sizes(value)
        if found is not None and dims is not None and len(dims) == len(found.dims):
            own = [known if is_sure(known) else other for known, other in zip(dims, found.dims, strict=True)]
            found = Placed(own, moved(found.element, _own(own)))
        seen[value] = found
    return seen[value]


def _own(dims: Sequence[Size]) -> dict[int, Sum]:
    """Return the index on each axis; on one of size 1 that is 0."""
    return {axis: {} if dims[axis] == 1 else {axis: 1} for axis in range(-len(dims), 0)}


def _computed(value: ir.Value, left: int, seen: dict[ir.Value, Placed | None]) -> Placed | None:
    array = constant(value) if value.const_value is None or value.const_value.size <= _LARGEST else None
    if array is not None:
        return of_array(array) if array.size <= _LARGEST else None
    dims = sizes(value)
    is_index = value.dtype in _INTEGERS and dims is not None and (not dims or dims == [1])
    whole = elements(value) if is_index else None
    if whole is not None and len(whole) == 1 and dims is not None:
        return Placed(dims, Integer(sum_of(whole[0])))
    node = value.producer()
    rule = _RULES.get(node.op_type) if node is not None and is_standard(node) else None
    if node is None or rule is None:
        return None
    if node.op_type == "GatherND":
        return _picked(node, [_placed(v, left - 1, seen) for v in (node.inputs[0], *_columns(node))], dims)
    return rule(node, [_placed(v, left - 1, seen) for v in node.inputs], dims)


def _both(parts: Sequence[Placed | None]) -> tuple[list[Size], Element, Element] | None:
    if len(parts) != 2 or parts[0] is None or parts[1] is None:
        return None
    dims = broadcast([parts[0], parts[1]])
    return (dims, parts[0].element, parts[1].element) if dims is not None else None


Parts = Sequence[Placed | None]
_ACTS = {"Add": operator.add, "Sub": operator.sub, "Mul": operator.mul}


def _arithmetic(node: ir.Node, parts: Parts, dims: list[Size] | None) -> Placed | None:
    both = _both(parts)
    if both is None:
        return None
    shape, left, right = both
    if isinstance(left, Integer) and isinstance(right, Integer):
        if node.op_type != "Mul":
            return Placed(shape, Integer(plus(left.terms, right.terms, 1 if node.op_type == "Add" else -1)))
        for one, other in ((left, right), (right, left)):
            if set(one.terms) <= {0}:
                return Placed(shape, Integer(plus({}, other.terms, one.terms.get(0, 0))))
        return None
    if isinstance(left, Integer) or isinstance(right, Integer):
        return None
    terms = left.terms if right.number is not None else right.terms
    if left.number is None and right.number is None and left.terms != right.terms:
        return None
    act = _ACTS[node.op_type]
    ends = [[side.number] * 2 if side.number is not None else [side.then, side.other] for side in (left, right)]
    return Placed(shape, Choice(terms, *(act(first, second) for first, second in zip(*ends, strict=True))))


def _compared(node: ir.Node, parts: Parts, dims: list[Size] | None) -> Placed | None:
    both = _both(parts)
    if both is None or not isinstance(both[1], Integer) or not isinstance(both[2], Integer):
        return None
    apart = plus(both[1].terms, both[2].terms, -1)
    if node.op_type == "Equal":
        return Placed(both[0], Choice(sum_of(int(bool(apart))))) if set(apart) <= {0} else None
    if node.op_type in ("Greater", "GreaterOrEqual"):
        apart = plus({}, apart, -1)
    return Placed(both[0], Choice(apart if node.op_type.endswith("Equal") else plus(apart, {0: 1})))


def _logical(node: ir.Node, parts: Parts, dims: list[Size] | None) -> Placed | None:
    if node.op_type == "Not" and parts[0] is not None:
        inner = holds(parts[0].element)
        return Placed(parts[0].dims, Choice(inverted(inner).terms)) if inner is not None else None
    both = _both(parts)
    sides = [holds(element) for element in both[1:]] if both is not None else [None]
    if both is None or any(side is None for side in sides):
        return None
    first, second = (side for side in sides if side is not None)
    for one, other in ((first, second), (second, first)):
        if one.number is not None:
            wins = bool(one.number) == (node.op_type == "Or")
            return Placed(both[0], one if wins else other)
    return Placed(both[0], first) if first == second else None


def _cast(node: ir.Node, parts: Parts, dims: list[Size] | None) -> Placed | None:
    to, part = node.attributes.get_int("to", 0), parts[0]
    if part is None:
        return None
    if to == ir.DataType.BOOL:
        truth = holds(part.element)
        return Placed(part.dims, truth) if truth is not None else None
    if isinstance(part.element, Integer):
        return part if to in _EXACT else None
    number = part.element.number
    if to in _INTEGERS:
        is_whole = number is not None and float(number).is_integer()
        return Placed(part.dims, Integer(sum_of(int(number or 0)))) if is_whole else None
    return part if to in (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE) else None


def _where(node: ir.Node, parts: Parts, dims: list[Size] | None) -> Placed | None:
    known = [part for part in parts if part is not None]
    shape = broadcast(known) if len(known) == 3 else None
    condition = holds(known[0].element) if shape is not None else None
    if shape is None or condition is None:
        return None
    if condition.number is not None:
        return Placed(shape, known[1 if condition.number else 2].element)
    numbers = [given(part.element, condition, is_met) for part, is_met in zip(known[1:], (True, False), strict=True)]
    if numbers[0] is None or numbers[1] is None:
        return None
    return Placed(shape, Choice(condition.terms, numbers[0], numbers[1]))


def _trilu(node: ir.Node, parts: Parts, dims: list[Size] | None) -> Placed | None:
    part, shift = parts[0], parts[1] if len(parts) > 1 else Placed([], Integer({}))
    if part is None or shift is None or not isinstance(part.element, Choice) or part.element.number is None:
        return None
    if not isinstance(shift.element, Integer) or len(part.dims) < 2:
        return None
    apart = plus({-1: 1, -2: -1}, shift.element.terms, -1)
    is_upper = node.attributes.get_int("upper", 1) != 0
    return Placed(part.dims, Choice(plus({}, apart, -1) if is_upper else apart, part.element.number))


def _range(node: ir.Node, parts: Parts, dims: list[Size] | None) -> Placed | None:
    start, _, step = (part.element if part is not None else None for part in parts)
    if not isinstance(start, Integer) or not isinstance(step, Integer) or step.terms != {0: 1}:
        return None
    size = elements(node.inputs[1])
    length = size[0] if size is not None and len(size) == 1 and not start.terms else (node.outputs[0], 0)
    return Placed([length], Integer(plus({-1: 1}, start.terms)))


def _unsqueezed(node: ir.Node, parts: Parts, dims: list[Size] | None) -> Placed | None:
    """Keep the axes that are not 1, in their order."""
    part = parts[0]
    if part is None or dims is None:
        return None
    have = [axis for axis, size in enumerate(part.dims) if size != 1]
    want = [axis for axis, size in enumerate(dims) if size != 1]
    if len(have) != len(want):
        return None
    if len(have) > 1 and [part.dims[a] for a in have] != [dims[a] for a in want] and node.op_type != "Unsqueeze":
        return None
    shape: list[Size] = [1] * len(dims)
    places: dict[int, Sum] = {axis - len(part.dims): {} for axis in range(len(part.dims))}
    for old, new in zip(have, want, strict=True):
        shape[new] = part.dims[old]
        places[old - len(part.dims)] = {new - len(dims): 1}
    return Placed(shape, moved(part.element, places))


def _transposed(node: ir.Node, parts: Parts, dims: list[Size] | None) -> Placed | None:
    part = parts[0]
    if part is None:
        return None
    rank = len(part.dims)
    perm = [int(axis) for axis in node.attributes.get_ints("perm", range(rank)[::-1])]
    places: dict[int, Sum] = {axis - rank: {perm.index(axis) - rank: 1} for axis in range(rank)}
    return Placed([part.dims[axis] for axis in perm], moved(part.element, places))


def _expanded(node: ir.Node, parts: Parts, dims: list[Size] | None) -> Placed | None:
    target = elements(input_at(node, 1))
    part = parts[0]
    if part is None or target is None:
        return None
    shape = broadcast([part, Placed(target, part.element)])
    return Placed(shape, part.element) if shape is not None else None


def _filled(node: ir.Node, parts: Parts, dims: list[Size] | None) -> Placed | None:
    shape = elements(node.inputs[0])
    value = node.attributes.get_tensor("value", None)
    inner = of_array(value.numpy()) if value is not None else Placed([], Choice({}, 0.0, 0.0))
    return Placed(shape, inner.element) if shape is not None and inner is not None else None


def _sliced(node: ir.Node, parts: Parts, dims: list[Size] | None) -> Placed | None:
    part, steps, axes = parts[0], elements(input_at(node, 4)), elements(input_at(node, 3))
    if part is None or dims is None or axes is None or (input_at(node, 4) is not None and set(steps or [0]) != {1}):
        return None
    shape, places = list(part.dims), _own(dims)
    bounds = [_bounds(node, parts, index, len(axes)) for index in (1, 2)]
    for axis, start, end in zip(axes, *bounds, strict=True):
        if not isinstance(axis, int) or start is None or any(n < 0 for n in start.values()):
            return None
        at = axis % len(dims)
        places[at - len(dims)] = plus({at - len(dims): 1}, start)
        shape[at] = _length(part.dims[at], start, end) or dims[at]
    return Placed(shape, moved(part.element, places))


def _bounds(node: ir.Node, parts: Parts, index: int, count: int) -> list[Sum | None]:
    found, part = elements(node.inputs[index]), parts[index]
    if found is not None and len(found) == count:
        return [sum_of(size) for size in found]
    known = part.element.terms if count == 1 and part is not None and isinstance(part.element, Integer) else None
    return [known] * count


def _length(source: Size, start: Sum, end: Sum | None) -> Size | None:
    """Return the size that a Slice leaves of an axis, None where it is not known."""
    if end is None:
        return None
    if set(end) == {0} and end[0] >= _END:
        end = sum_of(source)
    room = plus(sum_of(source), end, -1)
    is_inside = all(factor >= 0 for factor in room.values()) and all(factor >= 0 for factor in end.values())
    is_cut = not start and isinstance(source, int) and source > 1  # a shorter source does not fit the scores either
    return size_of(plus(end, start, -1)) if is_inside or (is_cut and not set(end) <= {0}) else None


def _joined(node: ir.Node, parts: Parts, dims: list[Size] | None) -> Placed | None:
    """Join one element with integers that go on from it."""
    if len(parts) != 2 or parts[0] is None or parts[1] is None or dims is None:
        return None
    axis = node.attributes.get_int("axis", 0) % len(dims) - len(dims)
    rest = parts[1].element
    if parts[0].dims[axis] != 1 or not isinstance(rest, Integer):
        return None
    whole = moved(rest, {**_own(dims), axis: {axis: 1, 0: -1}})
    if moved(whole, {**_own(dims), axis: {}}) != moved(parts[0].element, {**_own(dims), axis: {}}):
        return None
    shape = list(parts[1].dims)
    shape[axis] = size_of(plus(sum_of(shape[axis]), {0: 1}))
    return Placed(shape, whole)


def _columns(node: ir.Node) -> list[ir.Value | None]:
    """Return the indices that a GatherND looks up on each axis, where they are joined on its last one."""
    where = input_at(node, 1)
    joint = where.producer() if where is not None else None
    if joint is None or joint.op_type != "Concat" or where is None or where.shape is None:
        return []
    return list(joint.inputs) if joint.attributes.get_int("axis", 0) in (-1, len(where.shape) - 1) else []


def _picked(node: ir.Node, parts: Parts, dims: list[Size] | None) -> Placed | None:
    data, columns = parts[0], parts[1:]
    if data is None or dims is None or len(columns) != len(data.dims) or node.attributes.get_int("batch_dims", 0) != 0:
        return None
    places: dict[int, Sum] = {}
    for axis, column in enumerate(columns):
        if column is None or not isinstance(column.element, Integer) or column.dims[-1:] != [1]:
            return None
        terms = column.element.terms
        if any(factor < 0 for factor in terms.values()) or len(column.dims) != len(dims) + 1:
            return None
        places[axis - len(columns)] = {k + 1 if isinstance(k, int) and k < 0 else k: n for k, n in terms.items()}
    return Placed(dims, moved(data.element, places))


def _summed(node: ir.Node, parts: Parts, dims: list[Size] | None) -> Placed | None:
    part = parts[0]
    return part if part is not None and part.element == Integer({}) else None


def _same(node: ir.Node, parts: Parts, dims: list[Size] | None) -> Placed | None:
    return parts[0]


_RULES: dict[str, Callable[[ir.Node, Parts, list[Size] | None], Placed | None]] = {
    **dict.fromkeys(("Add", "Sub", "Mul"), _arithmetic),
    **dict.fromkeys(("Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal"), _compared),
    **dict.fromkeys(("And", "Or", "Not"), _logical),
    **dict.fromkeys(("Unsqueeze", "Squeeze", "Reshape"), _unsqueezed),
    "Cast": _cast,
    "Concat": _joined,
    "ConstantOfShape": _filled,
    "CumSum": _summed,
    "Expand": _expanded,
    "GatherND": _picked,
    "Identity": _same,
    "Range": _range,
    "Slice": _sliced,
    "Transpose": _transposed,
    "Trilu": _trilu,
    "Where": _where,
}
