"""Products of flattened rows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxedge.api import Accuracy, Context, constant
from onnxedge_passes.cleanup.worklist import Outcome, Refused, Rule, input_at, node_before, replace_node


@dataclass(frozen=True, kw_only=True)
class LiftMatmul(Rule):
    """Multiply by a matrix without flattening the rows before and restoring them behind.

    Before: ``y = Reshape(MatMul(Reshape(x, [-1, K]), W), [B, T, N])`` with ``x: [B, T, K]`` and ``W: [K, N]``
    After:  ``y = MatMul(x, W)``

    ONNX Runtime 1.31 on the CPU takes 0.96 to 1.04 of the time; a Gemm between the Reshapes, which adds a bias as
    well, stays.
    Left alone: Reshapes to anything else than the rows of ``x``; values with other readers; more than one size that is
    not known.
    accuracy: rounding. Source: own.
    """

    name: ClassVar[str] = "lift-matmul"
    accuracy: ClassVar[Accuracy] = "rounding"
    roots: ClassVar[tuple[str, ...]] = ("Reshape",)

    def rewrite(self, node: ir.Node, context: Context) -> Outcome:
        """Look for the product and the first Reshape."""
        product = node_before(node, "MatMul", alone=True)
        rows = node_before(product, "Reshape", alone=True) if product is not None else None
        if product is None or rows is None:
            return None
        data, weight, target = rows.inputs[0], product.inputs[1], constant(input_at(node, 1))
        if data is None or weight is None or data.shape is None or weight.shape is None or target is None:
            return None
        features, dims, wanted = weight.shape[0], list(data.shape), target.tolist()
        made = rows.outputs[0].shape
        if len(weight.shape) != 2 or made is None or len(made) != 2 or not isinstance(features, int):
            return None
        fits = len(dims) > 2 and len(wanted) == len(dims) and dims[-1] == features == made[1]
        if not fits or features == 0 or wanted[-1] not in (weight.shape[1], -1) or wanted.count(-1) > 1:
            return Refused("Reshapes around the MatMul kept: they do more than to flatten and to restore the rows")
        for want, have in zip(wanted[:-1], dims[:-1], strict=True):
            if want != -1 and (want != have or want == 0):
                return Refused("Reshapes around the MatMul kept: the rows are not restored as they were")
        if wanted[-1] == -1 and not (isinstance(weight.shape[1], int) and math.prod(wanted[:-1]) > 0):
            return None
        return replace_node(node, "MatMul", [data, weight])
