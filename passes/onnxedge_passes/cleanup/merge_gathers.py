"""Gathers from one value that are put together again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxedge.api import Context, insert_before, is_standard, sole_consumer
from onnxedge_passes.cleanup.worklist import Outcome, Refused, Rule, node_opset, replace_node


@dataclass(frozen=True, kw_only=True)
class MergeGathers(Rule):
    """Gather at once what is gathered from one value in parts and put together along the axis of the indices.

    Before: ``i, j = Split(k); y = Concat<axis=0>(Gather(x, i), Gather(x, j))``
    After:  ``y = Gather(x, k)``, by way of ``y = Gather(x, Concat(i, j))``

    Left alone: parts with other readers, from other values or axes; indices of other ranks or types; a Concat along
    another axis.
    accuracy: exact. Source: ONNX Gather, opset 1; the case of a Split is onnxsim's ``fuse_split_gather_concat``.
    """

    name: ClassVar[str] = "merge-gathers"
    roots: ClassVar[tuple[str, ...]] = ("Concat",)

    def rewrite(self, node: ir.Node, context: Context) -> Outcome:
        """Look at what makes each part of a Concat."""
        gathers = [value.producer() if value is not None else None for value in node.inputs]
        parts = [gather for gather in gathers if gather is not None and gather.op_type == "Gather"]
        if len(parts) < 2 or len(parts) < len(gathers) or node_opset(node) < 4:
            return None
        if not all(is_standard(part) and part.graph is node.graph for part in parts):
            return None
        first, indices = parts[0], [part.inputs[1] for part in parts]
        data, axis = first.inputs[0], _axis(first)
        if data is None or axis is None or any(p.inputs[0] is not data or _axis(p) != axis for p in parts):
            return None
        if any(sole_consumer(part.outputs[0]) is not node for part in parts):
            return Refused("Gathers not merged: one of them has other readers or is exported")
        kinds = {(len(v.shape), v.dtype) for v in indices if v is not None and v.shape is not None}
        if len(kinds) != 1 or any(value is None or value.shape is None for value in indices):
            return None
        rank, dtype = kinds.pop()
        along = node.attributes.get_int("axis", 0)
        along -= axis - (len(data.shape) - 1 + rank if along < 0 and data.shape is not None else 0)
        if not 0 <= along < rank:
            return None
        joined = insert_before(node, "Concat", indices, attributes={"axis": along}, name=first.name).outputs[0]
        joined.type = ir.TensorType(dtype) if dtype is not None else None
        return replace_node(node, "Gather", [data, joined], {"axis": axis})


def _axis(gather: ir.Node) -> int | None:
    """Return the axis of a Gather counted from the start, None where the rank of its data is not known."""
    axis, data = gather.attributes.get_int("axis", 0), gather.inputs[0]
    if data is None or data.shape is None:
        return None
    return axis % len(data.shape) if -len(data.shape) <= axis < len(data.shape) else None
