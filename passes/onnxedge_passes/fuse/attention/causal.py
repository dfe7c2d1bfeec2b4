"""Whether the masks of a block say that a query sees the keys up to its own place, and nothing else."""

from __future__ import annotations

import onnx_ir as ir

from onnxedge.api import constant_tensor, is_standard
from onnxedge_passes.fuse.attention.axes import Axis, expanded, length
from onnxedge_passes.fuse.attention.element import Choice, Sum, holds, inverted
from onnxedge_passes.fuse.attention.find import Found, Operand
from onnxedge_passes.fuse.attention.places import placed
from onnxedge_passes.fuse.attention.shapes import Size
from onnxedge_passes.fuse.attention.steps import Step

NOTHING = -1e9  #: scores that low have no weight next to any other
_NOTHING_HALF = -6e4  #: the same in float16, which ends at -65504
_FAR = 8  #: nodes between the queries or keys and what both are made of
_TRIANGLE: Sum = {-1: 1, -2: -1}  #: key - query <= 0


def is_causal(found: Found) -> bool:
    """Tell whether as many keys as queries are masked as a triangle, whatever computes the masks."""
    sizes = {_size(found.queries), _size(found.keys)}
    if None in sizes or (len(sizes) > 1 and not _same_origin(found)):
        return False
    shown = [_shown(step, found, sizes) for step in found.steps if step.masks]
    terms = [choice.terms for choice in shown if choice is not None and choice.number != 1.0]
    return len(terms) > 0 and None not in shown and all(sum_ == _TRIANGLE for sum_ in terms)


def _size(axis: Axis) -> Size | None:
    factors, known = expanded(axis), length(axis)
    return known if known is not None or len(factors) != 1 else factors[0].size


def _same_origin(found: Found) -> bool:
    """Tell whether queries and keys are made of the same tokens, so that there are as many of both."""
    origins = [_origin(found.query, found.queries), _origin(found.key, found.keys)]
    return None not in origins and origins[0] == origins[1]


def _origin(operand: Operand, tokens: Axis) -> tuple[ir.Value, int] | None:
    """Return the value that an operand's tokens are first seen in, and the axis that counts them."""
    value, axes = operand.chain[-1]
    place = next((i for i, axis in enumerate(axes[:-1]) if expanded(axis) == expanded(tokens)), None)
    for _ in range(_FAR):
        node = value.producer()
        source = _before(node, place, len(axes)) if node is not None and place is not None else None
        if source is None:
            break
        value = source
    return (value, place) if place is not None else None


def _before(node: ir.Node, place: int, rank: int) -> ir.Value | None:
    """Return the input of a node that has all axes but the last as its output has, None where there is none."""
    if node.op_type == "RotaryEmbedding" and node.domain in ("", "com.microsoft"):
        return node.inputs[0]
    if not is_standard(node):
        return None
    if node.op_type == "Split":
        return node.inputs[0] if node.attributes.get_int("axis", 0) % rank != place else None
    if node.op_type not in ("MatMul", "Add"):
        return None
    for side, other in ((0, 1), (1, 0))[: 1 if node.op_type == "MatMul" else 2]:
        tensor = constant_tensor(node.inputs[other])
        if tensor is not None and len(tensor.shape) == (2 if node.op_type == "MatMul" else 1):
            return node.inputs[side]
    return None


def _shown(step: Step, found: Found, sizes: set[Size | None]) -> Choice | None:
    """Return where a mask leaves the scores as they are, as a condition; None where that is not known."""
    part = placed(step.value)
    tail = [expanded(axis) for axis in step.axes[-2:]]
    if part is None or tail != [expanded(found.queries), expanded(found.keys)]:
        return None
    lowest = _NOTHING_HALF if _is_half(found) else NOTHING
    choice = holds(part.element) if step.kind == "fill" else part.element
    if not isinstance(choice, Choice):
        return None
    if step.kind == "fill":
        choice = choice if step.keeps else Choice(inverted(choice).terms)
    elif choice.number is not None:
        return Choice({}) if choice.number == 0 else None
    elif choice.then <= lowest and choice.other == 0:
        choice = Choice(inverted(choice).terms)
    elif not (choice.then == 0 and choice.other <= lowest):
        return None
    else:
        choice = Choice(choice.terms)
    return choice if all(part.dims[place] in sizes for place in (-1, -2) if place in choice.terms) else None


def _is_half(found: Found) -> bool:
    value = found.product.inputs[1]
    return value is not None and value.dtype == ir.DataType.FLOAT16
