"""Transposes that move no data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxedge.api import Context, graph_of, new_initializer
from onnxedge_passes.cleanup.worklist import Outcome, Rule, node_opset, replace_node


@dataclass(frozen=True, kw_only=True)
class TransposeToReshape(Rule):
    """Write a Transpose that only moves axes of size 1 as a Reshape, which costs nothing and merges with others.

    Before: ``y = Transpose<perm=[0, 2, 3, 1]>(x)`` with ``x: [N, 1, 8, 8]``
    After:  ``y = Reshape(x, [-1, 8, 8, 1])``

    Left alone: more than one dimension that is not known; empty tensors.
    accuracy: exact. Source: own.
    """

    name: ClassVar[str] = "transpose-to-reshape"
    roots: ClassVar[tuple[str, ...]] = ("Transpose",)

    def rewrite(self, node: ir.Node, context: Context) -> Outcome:
        """Compare the order of the axes that are larger than 1."""
        data = node.inputs[0]
        if data is None or data.shape is None or node_opset(node) < 5 or len(data.shape) < 2:
            return None
        perm = list(node.attributes.get_ints("perm", range(len(data.shape))[::-1]))
        if sorted(perm) != list(range(len(data.shape))):
            return None  # not valid
        moved = [axis for axis in perm if data.shape[axis] != 1]
        sizes = [size if isinstance(size := data.shape[axis], int) else -1 for axis in perm]
        if moved != sorted(moved) or perm == sorted(perm) or sizes.count(-1) > 1 or 0 in sizes:
            return None
        shape = new_initializer(graph_of(node), np.array(sizes, np.int64), f"{node.outputs[0].name}_shape")
        return replace_node(node, "Reshape", [data, shape])
