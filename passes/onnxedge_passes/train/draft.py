"""Nodes that are put in the place of one that has no gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxedge.api import Array, graph_of, insert_before, new_initializer, replace_uses
from onnxedge_passes.cleanup.worklist import Refused, input_at, node_opset, replace_node, retire

_AXES_AS_INPUT = 18  #: opset from which ReduceMean takes its axes as an input


class Draft:
    """Write what one node computes in other operators.

    Attributes:
        node: the node; it stays until :meth:`stand_in`.
        opset: version of the default domain that it is written in.
        x: its input 0.
    """

    def __init__(self, node: ir.Node, x: ir.Value) -> None:
        self.node, self.opset, self.x = node, node_opset(node), x

    @property
    def dims(self) -> list[int | None] | None:
        """Return the sizes of input 0, None for those that are not known, None for all where the rank is not."""
        return None if self.x.shape is None else [d if isinstance(d, int) else None for d in self.x.shape]

    def number(self, name: str, default: float) -> float:
        """Return an attribute."""
        return float(self.node.attributes.get_float(name, default))

    def input(self, index: int) -> ir.Value | None:
        """Return an input, None where it is missing."""
        return input_at(self.node, index)

    def put(self, op_type: str, *inputs: ir.Value | Array | float | None, **attributes: Any) -> ir.Value:
        """Put a node before the one that is replaced; arrays become initializers, numbers float32 scalars."""
        return self.several(op_type, 1, *inputs, **attributes)[0]

    def several(
        self, op_type: str, count: int, *inputs: ir.Value | Array | float | None, **attributes: Any
    ) -> Sequence[ir.Value]:
        """Put a node of several outputs."""
        values = [item if isinstance(item, ir.Value | None) else self._constant(item) for item in inputs]
        label = self.node.outputs[0].name or self.node.op_type.lower()
        node = insert_before(self.node, op_type, values, attributes=attributes, name=label, outputs=count)
        return node.outputs

    def _constant(self, item: Array | float) -> ir.Value:
        array = np.asarray(item, None if isinstance(item, np.ndarray) else np.float32)
        return new_initializer(graph_of(self.node), array, f"{self.node.name or self.node.op_type.lower()}_c")

    def mean(self, value: ir.Value, axes: Sequence[int]) -> ir.Value:
        """Return the mean over axes, which stay with size 1."""
        if self.opset < _AXES_AS_INPUT:
            return self.put("ReduceMean", value, axes=list(axes))
        return self.put("ReduceMean", value, np.array(axes, np.int64))

    def stand_in(self, value: ir.Value) -> ir.Value:
        """Let a value that was put stand for the node's output 0, under its name, and remove the node."""
        old = self.node.outputs[0]
        name, kind, shape = old.name, old.type, old.shape
        if not replace_uses(old, value):
            return replace_node(self.node, "Identity", [value])
        retire(self.node)
        value.name, value.type, value.shape = name, kind, shape
        return value


#: How a node is written otherwise: its value, None where it stays as it is, or why it cannot be.
Spelling = Callable[[Draft], ir.Value | Refused | None]
