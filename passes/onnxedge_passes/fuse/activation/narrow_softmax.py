"""Softmax of half precision, computed in float32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxedge.api import Accuracy, Context
from onnxedge_passes.cleanup.worklist import Outcome, Refused, Rule, attributes_of, node_before, replace_node


@dataclass(frozen=True, kw_only=True)
class NarrowSoftmax(Rule):
    """Take a float16 Softmax in float16 where the runtime's kernel adds up in float32 by itself.

    Before: ``y = Cast<to=FLOAT16>(Softmax<axis=-1>(Cast<to=FLOAT>(x)))`` with ``x: float16[N, M]``
    After:  ``y = Softmax<axis=-1>(x)``

    ONNX Runtime's CUDA kernel does; on the CPU the runtime puts the casts there itself.
    Left alone: other runtimes; values in between with other readers.
    accuracy: rounding. Source: own.
    """

    name: ClassVar[str] = "narrow-softmax"
    accuracy: ClassVar[Accuracy] = "rounding"
    roots: ClassVar[tuple[str, ...]] = ("Cast",)

    def rewrite(self, node: ir.Node, context: Context) -> Outcome:
        """Look for the Softmax and the Cast before it."""
        softmax = node_before(node, "Softmax", "LogSoftmax", alone=True)
        wide = node_before(softmax, "Cast", alone=True) if softmax is not None else None
        if softmax is None or wide is None or node.attributes.get_int("to", 0) != ir.DataType.FLOAT16:
            return None
        source = wide.inputs[0]
        if source is None or source.dtype != ir.DataType.FLOAT16 or wide.attributes.get_int("to", 0) != 1:
            return None
        if not context.target.runtime.startswith("onnxruntime"):
            return Refused("Softmax kept in float32: the runtime may add up in float16")
        return replace_node(node, softmax.op_type, [source], attributes_of(softmax))
