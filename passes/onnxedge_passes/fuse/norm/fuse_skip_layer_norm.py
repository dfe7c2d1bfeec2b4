"""A residual addition and the normalization of its sum, as one operator."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxedge.api import (
    Accuracy,
    Context,
    Target,
    constant,
    insert_before,
    is_constant,
    is_standard,
    replace_uses,
    sole_consumer,
)
from onnxedge_passes.cleanup.shapes.sizes import same_size
from onnxedge_passes.cleanup.worklist import Outcome, Refused, Rule, input_at, output_used, retire
from onnxedge_passes.fuse.norm.normalization import Normalization, finish, parameter, source_of

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

    In opsets that have no operator for a normalization ``fuse-layer-norm`` and ``fuse-rms-norm`` put these kernels. A
    value that comes from no Add they add to itself: ``x + x`` with four times the epsilon is normalized to what ``x``
    is, and doubling rounds nothing.

    Only where the target lists the kernel. ONNX Runtime 1.31 on the CPU takes 3 to 8 times as long for it as for the
    two operators, so that its target does not.
    Left alone: normalization over more than the last axis; values of another rank than 3, or of shapes that are not
    known to be equal; gamma of another shape than ``[D]`` or computed at run time; types other than float32 and
    float16.
    accuracy: rounding. Source: ONNX Runtime's contributed operators.
    """

    name: ClassVar[str] = "fuse-skip-layer-norm"
    accuracy: ClassVar[Accuracy] = "rounding"
    roots: ClassVar[tuple[str, ...]] = ("LayerNormalization", "RMSNormalization", "Add")

    def rewrite(self, node: ir.Node, context: Context) -> Outcome:
        """Find the Add before the normalization."""
        if node.op_type == "Add":
            return _left_outside(node)
        kernel = _KERNELS[node.op_type]
        added = residual_sum(node.inputs[0], node)
        if added is None:
            return None
        if not context.target.has_kernel(kernel, "com.microsoft"):
            return Refused(f"{kernel} not fused: target {context.target.name} lists no kernel for it")
        reason = misfit(added, [value for value in node.inputs[1:] if value is not None])
        if any(output_used(output) for output in node.outputs[1:]):
            reason = "mean or deviation are read, too"
        elif node.attributes.get_int("axis", -1) not in (-1, 2):
            reason = "the normalization is over more than the last axis"
        if reason:
            return Refused(f"{kernel} not fused: {reason}")
        parameters = [input_at(node, 1), *([input_at(node, 2)] if kernel == "SkipLayerNormalization" else [])]
        epsilon = node.attributes.get_float("epsilon", 1e-5)
        return add_and_normalize(kernel, added, node, parameters, epsilon, inside=(node,))


def _left_outside(added: ir.Node) -> Refused | None:
    """Say why an Add was not taken into the kernel that normalizes its sum alone."""
    total = added.outputs[0]
    for use in total.uses():
        node = use.node
        if node.domain != "com.microsoft" or node.op_type not in _KERNELS.values() or use.idx != 0:
            continue
        reason = misfit(added, []) if node.inputs[1] is total and residual_sum(total, node) is added else ""
        if reason:
            return Refused(f"sum not taken into {node.op_type}: {reason}")
    return None


def put_kernel(kernel: str, found: Normalization, target: Target) -> ir.Value | str:
    """Put a kernel in place of a normalization in raw operators, and of the Add before it, or say why not.

    Without an Add that fits the value is added to itself: ``x + x`` with four times the epsilon has the normalization
    of ``x``, and doubling rounds nothing. In float16, where it may overflow, the value is left alone.

    Args:
        kernel: operator of ``com.microsoft``.
        found: a normalization whose inner values nobody else reads.
        target: asked whether it lists the kernel.

    Returns:
        What stands for the normalization now; else the reason, empty where it is far from one that the kernel takes.
    """
    root, source = found.expression.root, source_of(found.expression)
    if found.axes != (found.rank - 1,) or not target.has_kernel(kernel, "com.microsoft"):
        return ""
    added = residual_sum(source, root) if root.outputs[0].dtype == source.dtype else None
    reason = misfit(added, []) if added is not None else ""
    if added is not None and not reason:
        parameters, inside = _parameters(kernel, found, source), _inside(found, added)
        return add_and_normalize(kernel, added, root, parameters, found.epsilon, inside=inside)
    if {source.dtype, root.outputs[0].dtype} != {ir.DataType.FLOAT}:
        return reason or "without a sum before it it takes float32"
    if found.rank != 3:
        return reason or "it takes values of rank 3"
    inputs = [source, source, *(value for value in _parameters(kernel, found, source) if value is not None)]
    options = {"attributes": {"epsilon": 4 * found.epsilon}, "domain": "com.microsoft", "name": root.name}
    return finish(root, insert_before(root, kernel, inputs, like=root.outputs, **options).outputs[0])


def _parameters(kernel: str, found: Normalization, source: ir.Value) -> list[ir.Value | None]:
    """Return gamma as an initializer, and beta, None for one that adds nothing, where the kernel has one."""
    root = found.expression.root
    gamma = parameter(root, found.gamma, source.dtype, "gamma")
    if kernel == _KERNELS["RMSNormalization"]:
        return [gamma]
    return [gamma, parameter(root, found.beta, source.dtype, "beta") if found.beta.any() else None]


def _inside(found: Normalization, added: ir.Node) -> list[ir.Node]:
    """Return the nodes that read a sum for its normalization alone: those of the spelling and the Cast before them."""
    inside, source = list(found.expression.nodes), found.expression.source
    cast = source.producer()
    if cast is not None and cast is not added and all(use.node in inside for use in source.uses()):
        inside.append(cast)
    return inside


def residual_sum(value: ir.Value | None, node: ir.Node) -> ir.Node | None:
    """Return the Add of two values computed at run time that what ``node`` normalizes comes from, None for another."""
    added = value.producer() if value is not None else None
    if added is None or added.op_type != "Add" or not is_standard(added) or added.graph is not node.graph:
        return None
    return None if any(term is None or constant(term) is not None for term in added.inputs) else added


def misfit(added: ir.Node, parameters: Sequence[ir.Value]) -> str:
    """Say why the kernels cannot take a sum, and gamma and beta for its normalization, empty where they can."""
    left, right = added.inputs
    assert left is not None
    assert right is not None
    if left.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
        return "it takes float32 and float16"
    if left.shape is None or right.shape is None or len(left.shape) != 3:
        return "it takes values of rank 3"
    if not all(same_size(a, b) for a, b in zip(left.shape, right.shape, strict=False)) or len(right.shape) != 3:
        return "the shapes of what is added are not known to be equal"
    if any(value.shape is None or [*value.shape] != [left.shape[2]] for value in parameters):
        return "gamma or beta is no vector as long as the last axis"
    if any(value.producer() is not None and not is_constant(value) for value in parameters):
        return "gamma or beta is computed at run time"
    return ""


def add_and_normalize(
    kernel: str,
    added: ir.Node,
    root: ir.Node,
    parameters: Sequence[ir.Value | None],
    epsilon: float,
    *,
    inside: Collection[ir.Node],
) -> ir.Value:
    """Put the kernel in place of a sum and its normalization.

    Args:
        kernel: operator of ``com.microsoft``.
        added: the Add.
        root: the node that the normalization ends with.
        parameters: gamma, and beta where the kernel has one.
        epsilon: of the normalization.
        inside: the nodes of the normalization; where others read the sum, too, it becomes an output.
    """
    left, right, bias = _operands(added)
    inputs = [left, right, *parameters, bias]
    while inputs[-1] is None:
        inputs.pop()
    total = added.outputs[0]
    within = {id(node) for node in inside}
    keeps = total.is_graph_output() or any(id(use.node) not in within for use in total.uses())
    fused = insert_before(
        root if not keeps else added,
        kernel,
        inputs,
        attributes={"epsilon": epsilon},
        domain="com.microsoft",
        name=root.name,
        outputs=4 if keeps else 1,
        like=root.outputs[:1],
    )
    if keeps:
        for unused in fused.outputs[1:3]:
            unused.name = ""
        fused.outputs[3].type, fused.outputs[3].shape = total.type, total.shape
        replace_uses(total, fused.outputs[3])
    replace_uses(root.outputs[0], fused.outputs[0])
    retire(root, added)
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
