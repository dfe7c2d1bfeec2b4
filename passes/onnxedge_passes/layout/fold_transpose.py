"""A Transpose before a flattening and a constant matrix."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxedge.api import Accuracy, Array, Context, constant, constant_tensor, set_constant
from onnxedge_passes.cleanup.worklist import Outcome, Refused, Rule, input_at, node_before, retire

_LARGEST_SHARED = 1 << 20  #: elements of a weight that may be kept twice, for others that read it


@dataclass(frozen=True, kw_only=True)
class FoldTranspose(Rule):
    """Permute the rows of a constant matrix instead of the features that it is multiplied with.

    Before: ``y = Gemm(Reshape(Transpose<perm=[0, 2, 3, 1]>(x), [-1, H * W * C]), W, b)`` with ``x: [N, C, H, W]``
    After:  ``y = Gemm(Reshape(x, [-1, C * H * W]), W', b)`` with the rows of ``W`` in the order of ``x``

    Left alone: a Transpose that moves the batch, features of unknown size, values with other readers.
    accuracy: rounding (the products are added in another order). Source: own.
    """

    name: ClassVar[str] = "fold-transpose"
    accuracy: ClassVar[Accuracy] = "rounding"
    roots: ClassVar[tuple[str, ...]] = ("Gemm", "MatMul")

    def rewrite(self, node: ir.Node, context: Context) -> Outcome:
        """Look for the flattening and the Transpose before a product."""
        view = node_before(node, "Reshape", "Flatten", alone=True)
        if view is None or node.attributes.get_int("transA", 0) != 0:
            return None
        transpose = node_before(view, "Transpose", alone=True)
        if transpose is None:
            return None
        data, tensor = transpose.inputs[0], constant_tensor(input_at(node, 1))
        perm = list(transpose.attributes.get_ints("perm", ()))
        if data is None or data.shape is None or tensor is None or len(tensor.shape) != 2 or not perm or perm[0] != 0:
            return None
        sizes = [size for size in list(data.shape)[1:] if isinstance(size, int)]
        rows = tensor.shape[1 if node.attributes.get_int("transB", 0) != 0 else 0]
        if len(sizes) != len(perm) - 1 or math.prod(sizes) != rows or 0 in sizes or not _flattens(view, int(rows)):
            return Refused("Transpose not folded into the matrix: not just the features of a sample are flattened")
        weight = node.inputs[1]
        assert weight is not None
        if len(weight.uses()) > 1 and tensor.size > _LARGEST_SHARED:
            return Refused("Transpose not folded into the matrix: others read it, and it is large")
        order = np.arange(rows).reshape(sizes).transpose([axis - 1 for axis in perm[1:]]).ravel()
        _permute(node, order)
        view.replace_input_with(0, data)
        retire(transpose)
        return node.outputs[0]


def _flattens(view: ir.Node, rows: int) -> bool:
    """Tell whether a node makes one row of each sample."""
    if view.op_type == "Flatten":
        return view.attributes.get_int("axis", 1) == 1
    shape = constant(input_at(view, 1))
    if shape is None or shape.size != 2 or view.attributes.get_int("allowzero", 0) != 0:
        return False
    batch, features = shape.tolist()
    return features == rows or (features == -1 and (batch == 0 or _is_batch(view, batch)))


def _is_batch(view: ir.Node, size: int) -> bool:
    source = view.inputs[0]
    return source is not None and source.shape is not None and source.shape[0] == size


def _permute(node: ir.Node, order: Array) -> None:
    """Give a product a weight whose row ``order[i]`` is row ``i`` of the old one."""
    weight = constant(node.inputs[1])
    assert weight is not None
    axis = 1 if node.attributes.get_int("transB", 0) != 0 else 0
    set_constant(node, 1, np.take(weight, np.argsort(order), axis=axis))
