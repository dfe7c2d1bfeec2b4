"""What a model's graph says about the values of an input: range, mean and deviation, index bounds, sizes of axes.

The graph is followed from the input through data movement and arithmetic with constants to the first operator that
tells something. Nothing of this is certain; it only makes synthetic samples less absurd.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxedge.data.moments import Moments, estimated, named, normalization_after, weight_of
from onnxedge.model.graph import constant, is_standard

Array = np.ndarray[Any, Any]

_MOVEMENT = frozenset(
    {"Cast", "CastLike", "Clip", "Concat", "DequantizeLinear", "Dropout", "Expand", "Flatten", "Identity", "Pad"}
    | {"QuantizeLinear", "Reshape", "Resize", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Unsqueeze"}
    | {"Upsample"}
)
_ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div"})
_ID_TABLES = {(0, 2), (1, 4)}  #: EmbedLayerNormalization: (input of ids, input of their table)
_STEPS = 400  #: nodes looked at for one input
_WEIGHT_ELEMENTS = 1 << 24  #: a first weight larger than this is not read


@dataclass
class Facts:
    """What was found for one input.

    Attributes:
        moments: of a float input; None where nothing was found.
        bound: integers must stay below it, because they index a table; None where nothing was found.
        equals: constants that the input is compared with.
        sizes: sizes that a reader needs, by axis of the input.
        channels_last: whether the input is turned from channels last to channels first.
        contraction: the first Conv, MatMul or Gemm with a constant weight that reads it, None where there is none.
    """

    moments: Moments | None = None
    bound: int | None = None
    equals: list[float] = field(default_factory=list)
    sizes: dict[int, int] = field(default_factory=dict)
    channels_last: bool = False
    contraction: ir.Node | None = None


@dataclass(frozen=True)
class _Place:
    """A value on the way: ``a * input + b``, with the input's axes in this order (None: no longer known)."""

    value: ir.Value
    a: Array
    b: Array
    axes: tuple[int, ...] | None


def facts_of(value: ir.Value) -> Facts:
    """Follow an input to what reads it."""
    facts = Facts()
    rank = None if value.shape is None else len(value.shape)
    queue = [_Place(value, np.ones(1), np.zeros(1), None if rank is None else tuple(range(rank)))]
    seen: set[int] = set()
    for _ in range(_STEPS):
        if not queue:
            break
        place = queue.pop(0)
        if id(place.value) in seen:
            continue
        seen.add(id(place.value))
        for node, index in place.value.uses():
            queue.extend(_look(node, index, place, facts))
    return facts


def _look(node: ir.Node, index: int, place: _Place, facts: Facts) -> Iterator[_Place]:
    """Note what a reader says, and yield where to look next."""
    kind = node.op_type
    if (node.domain, kind) == ("com.microsoft", "EmbedLayerNormalization"):
        for ids, table in _ID_TABLES:
            if index == ids:
                _note_bound(node, table, 0, place, facts)
    if not is_standard(node):
        return
    if kind in _ARITHMETIC:
        yield from _arithmetic(node, index, place)
    elif kind == "Transpose" and index == 0:
        yield _transposed(node, place, facts)
    elif kind in _MOVEMENT:
        _note_range(node, index, place, facts)
        if index == 0 or kind == "Concat":
            axes = place.axes if kind in ("Identity", "Cast", "Dropout", "Pad", "Clip", "QuantizeLinear") else None
            yield from (_Place(output, place.a, place.b, axes) for output in node.outputs)
    elif kind == "Equal":
        other = constant(node.inputs[1 - index])
        if other is not None and other.size == 1 and place.a.size == 1 and place.a[0] != 0:
            facts.equals.append(float((other.reshape(-1)[0] - place.b[0]) / place.a[0]))
    elif kind in ("Gather", "GatherElements") and index == 1:
        _note_bound(node, 0, node.attributes.get_int("axis", 0), place, facts)
    elif kind == "OneHot" and index == 0:
        depth = constant(node.inputs[1])
        if depth is not None:
            _bound(int(depth.reshape(-1)[0]), place, facts)
    elif kind == "BatchNormalization" and index == 0:
        _note_batchnorm(node, place, facts)
    elif kind in ("Conv", "MatMul", "Gemm") and index == 0:
        _note_contraction(node, place, facts)


def _arithmetic(node: ir.Node, index: int, place: _Place) -> Iterator[_Place]:
    other = constant(node.inputs[1 - index])
    if other is None or other.size not in (1, max(other.shape, default=1)) or other.dtype.kind not in "fiu":
        return
    c = other.astype(np.float64).reshape(-1)
    if not (place.a.size == 1 or c.size in (1, place.a.size)):
        return
    a, b = place.a, place.b
    match node.op_type, index:
        case "Add", _:
            b = b + c
        case "Sub", 0:
            b = b - c
        case "Sub", _:
            a, b = -a, c - b
        case "Mul", _:
            a, b = a * c, b * c
        case "Div", 0 if bool((c != 0).all()):
            a, b = a / c, b / c
        case _:
            return
    if a.size > 16 or b.size > 16 or not (a != 0).all():
        return  # a window or a position embedding, not a normalization
    yield _Place(node.outputs[0], a, b, place.axes)


def _transposed(node: ir.Node, place: _Place, facts: Facts) -> _Place:
    order = node.attributes.get_ints("perm") if "perm" in node.attributes else None
    axes = None
    if place.axes is not None:
        order = order if order is not None else list(range(len(place.axes)))[::-1]
        axes = tuple(place.axes[axis] for axis in order)
        facts.channels_last |= axes == (0, 3, 1, 2)
    return _Place(node.outputs[0], place.a, place.b, axes)


def _note_range(node: ir.Node, index: int, place: _Place, facts: Facts) -> None:
    """Take the range of a Clip, or of a QuantizeLinear, as the range of the input."""
    if index != 0 or facts.moments is not None:
        return
    limits: tuple[Any, Any] | None = None
    if node.op_type == "QuantizeLinear" and len(node.inputs) > 1:
        scale = constant(node.inputs[1])
        zero = constant(node.inputs[2]) if len(node.inputs) > 2 else np.zeros(1, np.uint8)
        if scale is not None and zero is not None and scale.size == zero.size == 1 and zero.dtype.kind in "iu":
            ends = np.array([np.iinfo(zero.dtype).min, np.iinfo(zero.dtype).max], np.float64)
            limits = tuple((ends - float(zero.reshape(-1)[0])) * float(scale.reshape(-1)[0]))
    elif node.op_type == "Clip" and len(node.inputs) > 2:
        low, high = constant(node.inputs[1]), constant(node.inputs[2])
        if low is not None and high is not None:
            limits = (float(low), float(high))
    if limits is None or place.a.size != 1:
        return
    low, high = sorted((limit - float(place.b[0])) / float(place.a[0]) for limit in limits)
    middle, width = (low + high) / 2, high - low
    if np.isfinite(width) and width > 0:
        facts.moments = Moments(np.array([middle]), np.array([width / 4]), low, high)


def _note_bound(node: ir.Node, table: int, axis: int, place: _Place, facts: Facts) -> None:
    value = node.inputs[table]
    if value is None:
        return
    shape: Sequence[Any] | None = None if value.shape is None else tuple(value.shape)
    if shape is None and value.const_value is not None:
        shape = tuple(value.const_value.shape)
    if shape is not None and -len(shape) <= axis < len(shape) and isinstance(shape[axis], int):
        _bound(int(shape[axis]), place, facts)


def _bound(rows: int, place: _Place, facts: Facts) -> None:
    if place.a.size == place.b.size == 1 and place.a[0] == 1:
        rows = max(1, rows - max(0, int(place.b[0])))
        facts.bound = rows if facts.bound is None else min(rows, facts.bound)


def _note_batchnorm(node: ir.Node, place: _Place, facts: Facts) -> None:
    mean, variance = weight_of(node.inputs[3]), weight_of(node.inputs[4])
    if mean is None or variance is None:
        return
    if place.axes is not None and len(place.axes) > 1:
        facts.sizes.setdefault(place.axes[1], mean.size)
    if facts.moments is None and (mean.size in (1, place.a.size) or place.a.size == 1):
        a, b = place.a, place.b
        facts.moments = named((mean - b) / a, np.sqrt(np.maximum(variance, 1e-12)) / np.abs(a), True)


def _note_contraction(node: ir.Node, place: _Place, facts: Facts) -> None:
    source = node.inputs[1]
    if source is not None and source.const_value is not None and source.const_value.size > _WEIGHT_ELEMENTS:
        return
    weight = weight_of(source)
    if weight is None or weight.ndim < 2:
        return
    facts.contraction = facts.contraction or node
    weight = weight.astype(np.float64)
    if node.op_type == "Conv":
        groups = node.attributes.get_int("group", 1)
        if place.axes is not None and len(place.axes) > 1:
            facts.sizes.setdefault(place.axes[1], weight.shape[1] * groups)
    else:
        groups = 1
        if not (node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1):
            weight = np.swapaxes(weight, -1, -2)
        weight = weight.reshape(-1, weight.shape[-1])  # [N, K]
        if place.axes is not None:
            facts.sizes.setdefault(place.axes[-1], weight.shape[-1])
    if facts.moments is not None or not np.isfinite(weight).all() or not weight.size:
        return
    bias = weight_of(node.inputs[2]) if len(node.inputs) > 2 else None
    after, extra = normalization_after(node.outputs[0])
    offset = np.zeros(1) if bias is None else bias.reshape(-1).astype(np.float64)
    facts.moments = estimated(weight, groups, offset + extra, after, place.a, place.b)
