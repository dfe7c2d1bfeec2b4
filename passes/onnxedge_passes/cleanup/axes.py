"""Axes that a node names: an attribute of older opsets, an input of newer ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxedge.api import constant, graph_of, new_initializer
from onnxedge_passes.cleanup.worklist import input_at, node_opset

#: Reductions that name the axes they go over; ArgMax and ArgMin have one axis, as attribute.
REDUCTIONS = (
    *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd"),
    *("ReduceSum", "ReduceSumSquare"),
)


def takes_axes_as_input(node: ir.Node, op_type: str = "") -> bool:
    """Tell whether Squeeze, Unsqueeze or a reduction, at the opset of a node, has its axes as second input."""
    return node_opset(node) >= (13 if (op_type or node.op_type) in ("Squeeze", "Unsqueeze", "ReduceSum") else 18)


def named_axes(node: ir.Node) -> list[int] | None:
    """Return the axes that Squeeze, Unsqueeze or a reduction names; None where it names none or computes them."""
    if not takes_axes_as_input(node):
        found = node.attributes.get_ints("axes", None)
        return list(found) if found is not None else None
    given = constant(input_at(node, 1))
    return [int(axis) for axis in given.ravel()] if given is not None else None


def axes_for(
    node: ir.Node, op_type: str, axes: Sequence[int], wish: str
) -> tuple[list[ir.Value], dict[str, list[int]]]:
    """Return the inputs, and the attributes, that tell an operator of a node's opset its axes.

    Args:
        node: says in which graph, and so at which opset.
        op_type: Squeeze, Unsqueeze or a reduction.
        axes: that it is to name.
        wish: name of the constant.
    """
    if not takes_axes_as_input(node, op_type):
        return [], {"axes": list(axes)}
    return [new_initializer(graph_of(node), np.array(axes, np.int64), wish)], {}
