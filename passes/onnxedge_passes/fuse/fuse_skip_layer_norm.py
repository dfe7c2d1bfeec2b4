"""A residual addition and the normalization of its sum, as one operator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxedge.api import Accuracy, Context, constant, insert_before, is_standard, replace_uses, sole_consumer
from onnxedge_passes.cleanup.worklist import Outcome, Refused, Rule, input_at, retire

_KERNELS = {
    "LayerNormalization": "SkipLayerNormalization",
    "RMSNormalization": "SkipSimplifiedLayerNormalization",
}


@dataclass(frozen=True, kw_only=True)
class FuseSkipLayerNorm(Rule):
    """Fuse an Add of two values of the same shape and the normalization behind it into one operator.

    Before: ``s = Add(x, r); y = LayerNormalization(s, gamma, beta)`` or ``y = RMSNormalization(s, gamma)``; ``x`` may
    be ``Add(h, bias)`` with a constant vector
    After:  ``y, , , s = com.microsoft::SkipLayerNormalization(x, r, gamma, beta)`` (bias as a further input), or
    ``SkipSimplifiedLayerNormalization``; the sum is an output where others read it

    Only where the target lists the kernel. ONNX Runtime 1.31 on the CPU takes 3 to 8 times as long for it as for the
    two operators, so that its target does not.
    Left alone: normalization over more than the last axis; values of another rank than 3, or of shapes that are not
    known to be equal; gamma of another shape than ``[D]``; other types than float32 and float16.
    accuracy: rounding. Source: ONNX Runtime's contributed operators.
    """

    name: ClassVar[str] = "fuse-skip-layer-norm"
    accuracy: ClassVar[Accuracy] = "rounding"
    roots: ClassVar[tuple[str, ...]] = ("LayerNormalization", "RMSNormalization")

    def rewrite(self, node: ir.Node, context: Context) -> Outcome:
        """Find the Add before the normalization."""
        kernel = _KERNELS[node.op_type]
        if not context.target.has_kernel(kernel, "com.microsoft"):
            return None
        total = node.inputs[0]
        added = total.producer() if total is not None else None
        if total is None or added is None or added.op_type != "Add" or not is_standard(added):
            return None
        if added.graph is not node.graph or any(value is None or constant(value) is not None for value in added.inputs):
            return None
        reason = _misfit(node, added)
        if reason:
            return Refused(f"{kernel} not fused: {reason}")
        return _fuse(node, added, kernel)


def _misfit(node: ir.Node, added: ir.Node) -> str:
    """Say why the kernel cannot take an addition and its normalization, empty where it can."""
    left, right = added.inputs
    assert left is not None
    assert right is not None
    if left.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
        return "it takes float32 and float16"
    if left.shape is None or right.shape is None or len(left.shape) != 3:
        return "it takes values of rank 3"
    if not all(_same(a, b) for a, b in zip(left.shape, right.shape, strict=False)) or len(right.shape) != 3:
        return "the shapes of what is added are not known to be equal"
    if node.attributes.get_int("axis", -1) not in (-1, 2):
        return "the normalization is over more than the last axis"
    for value in node.inputs[1:]:
        if value is not None and (value.shape is None or [*value.shape] != [left.shape[2]]):
            return "gamma or beta is no vector as long as the last axis"
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        return "mean or deviation are read, too"
    return ""


def _same(left: int | ir.SymbolicDim, right: int | ir.SymbolicDim) -> bool:
    if isinstance(left, int) or isinstance(right, int):
        return left == right
    return left.value is not None and left.value == right.value


def _fuse(node: ir.Node, added: ir.Node, kernel: str) -> ir.Value:
    left, right, bias = _operands(added)
    gamma, beta = input_at(node, 1), input_at(node, 2)
    inputs = [left, right, gamma, *([beta] if kernel == "SkipLayerNormalization" else []), bias]
    while inputs[-1] is None:
        inputs.pop()
    total = added.outputs[0]
    keeps = total.is_graph_output() or len(total.uses()) > 1
    fused = insert_before(
        node if not keeps else added,
        kernel,
        inputs,
        attributes={"epsilon": node.attributes.get_float("epsilon", 1e-5)},
        domain="com.microsoft",
        name=node.name,
        outputs=4 if keeps else 1,
        like=node.outputs[:1],
    )
    if keeps:
        for unused in fused.outputs[1:3]:
            unused.name = ""
        fused.outputs[3].type, fused.outputs[3].shape = total.type, total.shape
        replace_uses(total, fused.outputs[3])
    replace_uses(node.outputs[0], fused.outputs[0])
    retire(node, added)
    return fused.outputs[0]


def _operands(added: ir.Node) -> tuple[ir.Value | None, ir.Value | None, ir.Value | None]:
    """Return the two values that are added, and the constant vector that one of them was given just before."""
    for side in (0, 1):
        value, other = added.inputs[side], added.inputs[1 - side]
        before = value.producer() if value is not None else None
        if value is None or before is None or before.op_type != "Add" or not is_standard(before):
            continue
        if sole_consumer(value) is not added or before.graph is not added.graph:
            continue
        for inner in (0, 1):
            source, bias = before.inputs[inner], before.inputs[1 - inner]
            array = constant(bias)
            if source is None or array is None or value.shape is None or array.shape != (value.shape[-1],):
                continue
            if source.shape is not None and len(source.shape) == 3 and source.shape[-1] == value.shape[-1]:
                return source, other, bias
    return added.inputs[0], added.inputs[1], None
