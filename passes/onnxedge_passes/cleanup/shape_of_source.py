"""Shapes of values whose shape is that of another one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxedge.api import Context, graph_of, insert_before, new_initializer, operator
from onnxedge_passes.cleanup.worklist import Outcome, Rule, input_at, node_before, replace_node, retire

_ALIKE = ("BatchNormalization", "InstanceNormalization", "LayerNormalization", "LRN", "LpNormalization")


@dataclass(frozen=True, kw_only=True)
class ShapeOfSource(Rule):
    """Read the shape of what an elementwise operator or a Transpose reads, not of what it gives.

    Before: ``s = Shape(Cast(x))``; ``s = Shape(Transpose<perm=[0, 2, 1]>(x))``
    After:  ``s = Shape(x)``; ``s = Gather(Shape(x), [0, 2, 1])``

    The operator itself goes where nobody else reads it. Past unary elementwise operators, Softmax and normalizations;
    past a Transpose only where it goes.
    Left alone: operators with several data inputs, whose broadcast shape is not that of one of them.
    accuracy: exact. Source: own.
    """

    name: ClassVar[str] = "shape-of-source"
    roots: ClassVar[tuple[str, ...]] = ("Shape",)

    def rewrite(self, node: ir.Node, context: Context) -> Outcome:
        """Look at what produces the value whose shape is read."""
        value, before = node.inputs[0], node_before(node)
        source = input_at(before, 0) if before is not None else None
        if value is None or before is None or source is None or before.outputs[0] is not value:
            return None
        if _keeps_shape(before):
            node.replace_input_with(0, source)
            retire(before)
            return node.outputs[0]
        perm = before.attributes.get_ints("perm", None)
        only_shapes = not value.is_graph_output() and all(use.node.op_type == "Shape" for use in value.uses())
        if before.op_type != "Transpose" or perm is None or not only_shapes:
            return None
        start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", len(perm))
        order = np.array(list(perm)[start:end], np.int64)
        whole = insert_before(node, "Shape", [source], name=node.name).outputs[0]
        whole.type, whole.shape = node.outputs[0].type, ir.Shape([len(perm)])
        indices = new_initializer(graph_of(node), order, f"{node.outputs[0].name}_order")
        return replace_node(node, "Gather", [whole, indices], {"axis": 0})


def _keeps_shape(node: ir.Node) -> bool:
    """Tell whether the first output of a node has the shape of its first input, whatever that is."""
    entry = operator(node)
    return (entry.kind == "elementwise" and entry.commutes_with_movement) or (
        node.op_type in _ALIKE or entry.kind == "softmax"
    )
