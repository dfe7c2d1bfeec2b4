"""Sequences whose elements are known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxedge.api import Context, constant, graph_of, insert_before, new_initializer
from onnxedge_passes.cleanup.worklist import (
    Outcome,
    Refused,
    Rule,
    input_at,
    node_before,
    node_opset,
    replace_by,
    replace_node,
)

_READERS = ("SequenceAt", "ConcatFromSequence", "SequenceLength")
_MOST_PARTS = 256  #: of a SplitToSequence; a chain of that many nodes helps nobody


@dataclass(frozen=True, kw_only=True)
class MergeSequences(Rule):
    """Read the elements of a sequence, where they are known, without the sequence.

    Before: ``y = SequenceAt(SplitToSequence<axis=1>(x, 2), 1)`` with ``x: [N, 4]``;
    ``y = ConcatFromSequence<axis=1>(SequenceConstruct(a, b))``
    After:  ``p, y = Split<axis=1>(x, [2, 2])``; ``y = Concat<axis=1>(a, b)``

    What PyTorch's exporters write for ``split``, ``chunk`` and ``cat``.
    Left alone: sequences that are grown, looped over or exported; positions and sizes computed at run time, or out of
    range.
    accuracy: exact. Source: ONNX SplitToSequence, opset 11.
    """

    name: ClassVar[str] = "merge-sequences"
    roots: ClassVar[tuple[str, ...]] = ("SplitToSequence", *_READERS)

    def rewrite(self, node: ir.Node, context: Context) -> Outcome:
        """Look at what makes the sequence that a node reads, or at who reads the one that it makes."""
        if node.op_type == "SplitToSequence":
            return _construct(node)
        maker = node_before(node, "SequenceConstruct")
        if maker is None or any(value is None for value in maker.inputs):
            return None
        parts = [value for value in maker.inputs if value is not None]
        match node.op_type:
            case "SequenceAt":
                return _take(node, parts)
            case "SequenceLength":
                count = new_initializer(graph_of(node), np.array(len(parts), np.int64), f"{node.outputs[0].name}_count")
                return replace_node(node, "Identity", [count])
        return _join(node, parts)


def _take(node: ir.Node, parts: list[ir.Value]) -> Outcome:
    position = constant(input_at(node, 1))
    if position is None or position.size != 1 or not -len(parts) <= int(position.item()) < len(parts):
        return Refused("sequence left as it is: the position is not a constant within it")
    return replace_by(node, parts[int(position.item())])


def _join(node: ir.Node, parts: list[ir.Value]) -> Outcome:
    axis = node.attributes.get_int("axis", 0)
    if node.attributes.get_int("new_axis", 0) != 0:
        if node_opset(node) < 13:
            return None
        axes = new_initializer(graph_of(node), np.array([axis], np.int64), f"{node.outputs[0].name}_axis")
        parts = [_put(node, "Unsqueeze", [part, axes], part.type) for part in parts]
    return replace_node(node, "Concat", parts, {"axis": axis})


def _put(node: ir.Node, op_type: str, inputs: list[ir.Value], kind: ir.TypeProtocol | None) -> ir.Value:
    value = insert_before(node, op_type, inputs, name=node.name).outputs[0]
    value.type = kind
    return value


def _construct(node: ir.Node) -> Outcome:
    """Write a SplitToSequence whose parts are known as a Split and a SequenceConstruct."""
    sequence, data = node.outputs[0], node.inputs[0]
    readers = [use.node for use in sequence.uses()]
    if data is None or data.shape is None or sequence.is_graph_output() or node_opset(node) < 13 or not readers:
        return None
    if not all(reader.graph is node.graph and _is_resolved(reader) for reader in readers):
        return Refused("sequence left as it is: what reads it is not understood, or at a position computed at run time")
    axis = node.attributes.get_int("axis", 0)
    if not -len(data.shape) <= axis < len(data.shape):
        return None
    sizes = _sizes(node, data.shape[axis])
    if sizes is None or not 0 < len(sizes) <= _MOST_PARTS:
        return Refused("sequence left as it is: the sizes of its parts are not known")
    single = input_at(node, 1) is None and not node.attributes.get_int("keepdims", 1)
    widths = new_initializer(graph_of(node), np.array(sizes, np.int64), f"{sequence.name}_sizes")
    split = insert_before(node, "Split", [data, widths], attributes={"axis": axis}, name=node.name, outputs=len(sizes))
    for value in split.outputs:
        value.type = data.type
    parts = list(split.outputs)
    if single:
        axes = new_initializer(graph_of(node), np.array([axis], np.int64), f"{sequence.name}_axis")
        parts = [_put(node, "Squeeze", [part, axes], data.type) for part in parts]
    return replace_node(node, "SequenceConstruct", parts)


def _is_resolved(reader: ir.Node) -> bool:
    if reader.op_type == "SequenceAt":
        position = constant(input_at(reader, 1))
        return position is not None and position.size == 1
    return reader.op_type in _READERS


def _sizes(node: ir.Node, whole: object) -> list[int] | None:
    """Return the sizes of the parts, None where they are not known or do not fit."""
    split = input_at(node, 1)
    if split is None:
        return [1] * whole if isinstance(whole, int) else None
    given = constant(split)
    if given is None or given.ndim > 1:
        return None
    if given.ndim == 1:
        return [int(size) for size in given] if given.size and (given >= 0).all() else None
    step = int(given.item())
    if not isinstance(whole, int) or step <= 0 or whole <= 0:
        return None
    return [min(step, whole - start) for start in range(0, whole, step)]
