"""Rotations of pairs of features, recognised by how operators move the features of a sample."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxedge.api import Array, constant, constant_tensor, is_standard, sole_consumer
from onnxedge_passes.cleanup.axes import named_axes
from onnxedge_passes.cleanup.worklist import input_at
from onnxedge_passes.fuse.attention.shapes import sizes
from onnxedge_passes.fuse.rotary.rotary_moves import FAR, MOVES, is_moved

_POINTWISE = ("Cos", "Sin", "Cast", "Tile", "Expand", "Mul", "Add")  #: operators that tables are made with

Factors = tuple[ir.Value, ir.Value]


@dataclass(frozen=True)
class Rotation:
    """Hold what turns pairs of features by an angle.

    Attributes:
        x: what is turned, ``[.., D]``, or ``[.., D/2, 2]`` where ``paired``.
        cos, sin: one number for each feature, or for each pair where ``whole``; ``[.., D/2, 1]`` where ``column``.
        interleaved: whether neighbours are pairs, not halves.
        whole: whether the tables have one number for each pair.
        paired: whether what is turned has pairs as its last axis.
        column: whether the tables have a last axis of 1.
        stacked: whether the result has pairs as its last axis.
    """

    x: ir.Value
    cos: ir.Value
    sin: ir.Value
    interleaved: bool
    whole: bool = False
    paired: bool = False
    column: bool = False
    stacked: bool = False


def rotation(node: ir.Node) -> Rotation | None:
    """Return the rotation that ends in an Add, or in the Concat of both features of each pair."""
    return _of_pairs(node) if node.op_type == "Concat" else _of_features(node)


def _of_features(node: ir.Node) -> Rotation | None:
    """Find ``x * cos + turned * sin`` where ``turned`` is ``x`` turned by a right angle."""
    products = [_factors(value) for value in node.inputs]
    for straight, turned in (products, products[::-1]):
        for x, cos in _orders(straight):
            for moved, sin in _orders(turned):
                pairs = _pairs(moved, x)
                if pairs == "halves":
                    return Rotation(x, cos, sin, interleaved=False)
                if pairs == "neighbours":
                    single = [_unrepeated(table) for table in (cos, sin)]
                    if single[0] is not None and single[1] is not None:
                        return Rotation(x, single[0], single[1], interleaved=True, whole=True, column=True)
                    return Rotation(x, cos, sin, interleaved=True)
    return None


def _unrepeated(table: ir.Value) -> ir.Value | None:
    """Return the ``[.., D/2, 1]`` of which Tile or Expand, and a Reshape behind, write each number twice."""
    node = table.producer()
    repeat = node.inputs[0].producer() if node is not None and node.op_type == "Reshape" and node.inputs[0] else None
    source = repeat.inputs[0] if repeat is not None and repeat.op_type in ("Tile", "Expand") else None
    raised = source.producer() if source is not None else None
    if node is None or repeat is None or source is None or raised is None or raised.op_type != "Unsqueeze":
        return None
    inner, axes = raised.inputs[0], constant(input_at(raised, 1))
    shape, counts = constant(input_at(node, 1)), constant(input_at(repeat, 1))
    if inner is None or inner.shape is None or axes is None or shape is None or counts is None or shape.ndim != 1:
        return None
    dims = list(inner.shape)
    for axis in sorted(int(axis) % (len(inner.shape) + axes.size) for axis in axes.ravel()):
        dims.insert(axis, 1)
    if counts.tolist() != [1] * (len(dims) - 1) + [2] or dims[-1] != 1 or not isinstance(dims[-2], int):
        return None
    kept = [0 < size == have or size == 0 for size, have in zip(shape[:-1].tolist(), dims, strict=False)]
    if len(shape) != len(dims) - 1 or not all(kept) or shape[-1] not in (-1, 2 * dims[-2]):
        return None
    if node.attributes.get_int("allowzero", 0) or not all(is_standard(n) for n in (node, repeat, raised)):
        return None
    source.shape = ir.Shape(dims)
    return source


def _of_pairs(node: ir.Node) -> Rotation | None:
    """Find ``a * cos - b * sin`` and ``a * sin + b * cos``, side by side, of the features ``a`` and ``b`` of pairs."""
    if len(node.inputs) != 2:
        return None
    raised = [_raised(value) for value in node.inputs]
    stacked = all(value is not None for value in raised)
    ends = raised if stacked else [value if sole_consumer(value) is node else None for value in node.inputs if value]
    nodes = [value.producer() if value is not None else None for value in ends]
    if len(nodes) != 2 or nodes[0] is None or nodes[1] is None:
        return None
    difference, total = nodes[0], nodes[1]
    if difference.op_type != "Sub" or total.op_type != "Add" or not (is_standard(difference) and is_standard(total)):
        return None
    output = sizes(difference.outputs[0])
    column = not stacked and output is not None and len(output) == 5 and output[-1] == 1
    last = 4 if stacked or column else 3
    if node.attributes.get_int("axis", 0) not in (-1, last):
        return None
    minus, plus = ([_factors(value) for value in part.inputs] for part in (difference, total))
    for a, cos in _orders(minus[0]):
        for b, sin in _orders(minus[1]):
            crossed = {_key((a, sin)), _key((b, cos))}
            if None in plus or {_key(pair) for pair in plus if pair is not None} != crossed:
                continue
            found = _source(a, b, interleaved=stacked or column, column=column)
            if found is not None:
                x, paired = _unpaired(found[0]) if found[1] else found
                return Rotation(x, cos, sin, stacked or column, True, paired, column, stacked or column)
    return None


def _unpaired(x: ir.Value) -> tuple[ir.Value, bool]:
    """Return the ``[.., D]`` that a Reshape makes pairs of where there is one, and whether the axis of pairs stays."""
    node, dims = x.producer(), sizes(x)
    before = node.inputs[0] if node is not None and node.op_type == "Reshape" and is_standard(node) else None
    have = sizes(before) if before is not None else None
    if before is None or have is None or dims is None or not isinstance(dims[3], int):
        return x, True
    return (before, False) if have == [*dims[:3], 2 * dims[3]] else (x, True)


def same_shape(left: ir.Value | None, right: ir.Value | None, depth: int = FAR) -> bool:
    """Tell whether two values, made in the same way of tables of the same shape, have the same shape."""
    if left is right:
        return True
    tables = [constant_tensor(value) for value in (left, right)]
    if tables[0] is not None and tables[1] is not None:
        floats = all(table.dtype.is_floating_point() for table in tables if table is not None)
        return floats and list(tables[0].shape) == list(tables[1].shape)
    nodes = [value.producer() if value is not None else None for value in (left, right)]
    if nodes[0] is None or nodes[1] is None or depth <= 0 or not all(is_standard(node) for node in nodes if node):
        return False
    first, second = nodes[0], nodes[1]
    kinds = {first.op_type, second.op_type}
    alike = len(kinds) == 1 or kinds == {"Cos", "Sin"}
    alike = alike and first.op_type in (*MOVES, *_POINTWISE) and len(first.inputs) == len(second.inputs)
    alike = alike and {a.name: a.value for a in first.attributes.values()} == {
        a.name: a.value for a in second.attributes.values()
    }
    return (
        alike
        and len(first.outputs) == 1
        and all(same_shape(a, b, depth - 1) for a, b in zip(first.inputs, second.inputs, strict=True))
    )


def _raised(value: ir.Value | None) -> ir.Value | None:
    """Return what an Unsqueeze gives a last axis of 1, where nobody else reads either."""
    node = value.producer() if value is not None else None
    if value is None or node is None or node.op_type != "Unsqueeze" or not is_standard(node):
        return None
    source, given = node.inputs[0], named_axes(node)
    have = sizes(source) if source is not None else None
    if source is None or given is None or len(given) != 1 or sole_consumer(value) is None:
        return None
    is_last = given[0] == -1 or (have is not None and given[0] == len(have))
    return source if is_last and sole_consumer(source) is node else None


def _factors(value: ir.Value | None) -> Factors | None:
    node = value.producer() if value is not None else None
    if value is None or node is None or node.op_type != "Mul" or not is_standard(node):
        return None
    left, right = node.inputs
    return (left, right) if left is not None and right is not None and sole_consumer(value) is not None else None


def _orders(pair: Factors | None) -> list[Factors]:
    return [pair, pair[::-1]] if pair is not None else []


def _key(pair: Factors | None) -> frozenset[int] | None:
    return frozenset(id(value) for value in pair) if pair is not None else None


def _pairs(moved: ir.Value, x: ir.Value) -> str:
    """Say which features are pairs where ``moved`` is ``x`` turned by a right angle: ``halves`` or ``neighbours``."""
    node = moved.producer()
    if node is None or node.op_type not in ("Concat", "Reshape"):
        return ""
    if is_moved(moved, x, _halves_turned):
        return "halves"
    return "neighbours" if is_moved(moved, x, _neighbours_turned) else ""


def _source(a: ir.Value, b: ir.Value, *, interleaved: bool, column: bool) -> tuple[ir.Value, bool] | None:
    """Return what ``a`` and ``b`` are the first and second features of all pairs of, and whether it has them apart."""
    value: ir.Value | None = a
    for _ in range(FAR):
        node = value.producer() if value is not None else None
        if node is None or node.op_type not in MOVES or not is_standard(node) or not node.inputs:
            return None
        value = node.inputs[0]
        dims = sizes(value) if value is not None else None
        if value is None or dims is None or len(dims) not in (4, 5):
            continue
        paired = len(dims) == 5
        if paired and (not interleaved or dims[-1] != 2):
            continue
        picks = (_even, _odd) if interleaved else (_lower, _upper)
        if all(is_moved(part, value, pick, paired, column) for part, pick in zip((a, b), picks, strict=True)):
            return value, paired
    return None


def _even(row: Array) -> Array:
    return row[::2]


def _odd(row: Array) -> Array:
    return row[1::2]


def _lower(row: Array) -> Array:
    return row[: len(row) // 2]


def _upper(row: Array) -> Array:
    return row[len(row) // 2 :]


def _halves_turned(row: Array) -> Array:
    return np.concatenate([-_upper(row), _lower(row)])


def _neighbours_turned(row: Array) -> Array:
    return np.stack([-_odd(row), _even(row)], axis=-1).reshape(-1)
