"""InstanceNormalization from raw operators."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxedge.api import Accuracy, Context, insert_before
from onnxedge_passes.cleanup.worklist import Outcome, Refused, Rule
from onnxedge_passes.fuse.norm.normalization import (
    Normalization,
    finish,
    first_free,
    normalizations,
    parameter,
)

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)  #: ONNX Runtime has no kernel for float64


@dataclass(frozen=True, kw_only=True)
class FuseInstanceNorm(Rule):
    """Fuse the operators that spell an instance normalization, or the inner part of a group normalization, into one.

    Before: ``d = x - ReduceMean(x); y = d / Sqrt(ReduceMean(d * d) + epsilon) * gamma + beta`` over axes 2 and 3,
    with ``gamma, beta: [C, 1, 1]`` or none
    After:  ``y = InstanceNormalization(x, gamma, beta)``

    ONNX Runtime 1.31 on the CPU takes 61 us for the operator and 223 us for the nodes it stands for ([1, 64, 64, 64]).
    Left alone: inner values with other readers; a channel count that is not known; float64; of rank 3 what is not
    image-like: one gamma for all channels and no Reshape before it, which ``fuse-layer-norm`` takes.
    accuracy: rounding. Source: Ulyanov et al. 2016, arXiv:1607.08022; ONNX InstanceNormalization, opset 6.
    """

    name: ClassVar[str] = "fuse-instance-norm"
    accuracy: ClassVar[Accuracy] = "rounding"
    roots: ClassVar[tuple[str, ...]] = ("Sqrt", "Pow")

    def rewrite(self, node: ir.Node, context: Context) -> Outcome:
        """Search around the root of the variance."""
        found, near = first_free(n for n in normalizations(node, centred=True, per_channel=True) if _is_image(n))
        if not near:
            return None
        if found is None:
            return Refused("instance normalization not fused: a value inside it has other readers")
        root, source = found.expression.root, found.expression.source
        if source.dtype not in _FLOATS:
            return Refused("instance normalization not fused: the runtime has no kernel for this type")
        fused = insert_before(
            root,
            "InstanceNormalization",
            [source, *(parameter(root, getattr(found, key), source.dtype, key) for key in ("gamma", "beta"))],
            attributes={"epsilon": found.epsilon},
            name=root.name,
            like=[source],
        )
        return finish(root, fused.outputs[0])


def _is_image(found: Normalization) -> bool:
    if found.rank > 3:
        return True
    before = found.expression.source.producer()
    varies = any(np.ptp(array) > 0 for array in (found.gamma, found.beta))
    return varies or (before is not None and before.op_type == "Reshape")
