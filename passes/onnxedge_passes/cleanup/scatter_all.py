"""Scatters that write every element."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxedge.api import Context, constant, is_standard, replace_uses
from onnxedge_passes.cleanup.worklist import Outcome, Rule, input_at, retire


@dataclass(frozen=True, kw_only=True)
class ScatterAll(Rule):
    """Take the updates of a ScatterND that overwrites all of its data.

    Before: ``y = ScatterND(x, [[0], [1], [2]], u)`` with ``x: [3, C]``; ``y = ScatterND(x, Unsqueeze(Range(0, n, 1),
    [-1]), u)`` with ``n`` the first size of ``x``, read from ``x`` or from what ``x`` is the Transpose of
    After:  ``y = u``

    What PyTorch exports for ``x[:, ...] = u``.
    Left alone: reductions; indices in another order; sizes that are read from another value.
    accuracy: exact. Source: ONNX ScatterND.
    """

    name: ClassVar[str] = "scatter-all"
    roots: ClassVar[tuple[str, ...]] = ("ScatterND",)

    def rewrite(self, node: ir.Node, context: Context) -> Outcome:
        """Look at what the indices are."""
        data, indices, updates = (input_at(node, index) for index in range(3))
        if data is None or indices is None or updates is None:
            return None
        if node.attributes.get_string("reduction", "none") != "none" or not (
            _is_every_row(data, indices) or _counts_rows(data, indices)
        ):
            return None
        if not replace_uses(node.outputs[0], updates):
            return None
        retire(node)
        return updates


def _is_every_row(data: ir.Value, indices: ir.Value) -> bool:
    rows = constant(indices)
    size = data.shape[0] if data.shape is not None and len(data.shape) else None
    return rows is not None and isinstance(size, int) and np.array_equal(rows, np.arange(size).reshape(-1, 1))


def _counts_rows(data: ir.Value, indices: ir.Value) -> bool:
    """Tell whether indices are ``Unsqueeze(Range(0, rows of the data, 1), [-1])``."""
    column = _maker(indices, "Unsqueeze")
    axes = constant(input_at(column, 1)) if column is not None else None
    counted = _maker(column.inputs[0], "Range") if column is not None else None
    if counted is None or axes is None or axes.tolist() not in ([-1], [1]):
        return False
    start, step = constant(counted.inputs[0]), constant(counted.inputs[2])
    if start is None or step is None or start.item() != 0 or step.item() != 1:
        return False
    source, axis = _size_read(counted.inputs[1])
    if source is data:
        return axis == 0
    turned = _maker(data, "Transpose")
    perm = turned.attributes.get_ints("perm", ()) if turned is not None and turned.inputs[0] is source else ()
    return len(perm) > 0 and axis == perm[0]


def _size_read(value: ir.Value | None) -> tuple[ir.Value | None, int | None]:
    """Return the value of which another one is a size, and the axis of that size; None where it is none."""
    picked = _maker(value, "Gather")
    if picked is not None:
        shape, where = _maker(picked.inputs[0], "Shape"), constant(input_at(picked, 1))
        if shape is None or where is None or where.size != 1 or shape.attributes.get_int("start", 0) != 0:
            return None, None
        return shape.inputs[0], int(where.item())
    cut = _maker(value, "Squeeze")
    shape = _maker(cut.inputs[0], "Shape") if cut is not None else None
    start = shape.attributes.get_int("start", 0) if shape is not None else -1
    if shape is None or start < 0 or shape.attributes.get_int("end", 0) != start + 1:
        return None, None
    return shape.inputs[0], start


def _maker(value: ir.Value | None, op_type: str) -> ir.Node | None:
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == op_type and is_standard(node) and node.inputs else None
