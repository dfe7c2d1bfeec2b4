"""LayerNormalization from raw operators."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import tee
from typing import ClassVar

import onnx_ir as ir

from onnxedge.api import Accuracy, Context, graph_of, insert_before, replace_uses
from onnxedge_passes.cleanup.worklist import Outcome, Refused, Rule, insert_behind, node_opset, retire
from onnxedge_passes.fuse.norm.fuse_skip_layer_norm import put_kernel
from onnxedge_passes.fuse.norm.normalization import (
    Normalization,
    Statistics,
    finish,
    first_free,
    first_shared,
    normalizations,
    parameter,
    source_of,
)

_KERNEL = "SkipLayerNormalization"


@dataclass(frozen=True, kw_only=True)
class FuseLayerNorm(Rule):
    """Fuse the operators that spell a layer normalization into one.

    Before: ``d = x - ReduceMean(x); y = d / Sqrt(ReduceMean(d * d) + epsilon) * gamma + beta``, or as converters from
    TFLite write it: ``k = Reciprocal(Sqrt(variance + epsilon)) * gamma; y = x * k + (beta - mean * k)`` with the means
    through GlobalAveragePool
    After:  ``y = LayerNormalization(x, gamma, beta)``; over the channels of an image between two Transposes

    The spelling does not matter: gamma and beta are read off what the nodes compute, and the result is compared on
    further samples, some of them with a variance as small as epsilon. Casts up to float32 inside are dropped: the
    operator computes in float32 itself. gamma and beta that are computed at run time join in ``fold-norm-affine``.

    Where others read the mean or the reciprocal of the deviation, these become outputs of the operator on ONNX Runtime.
    What computes another inner value stays beside it if that is less than half of the nodes: for [128, 768] the CPU
    takes 0.55 of the time where the mean is read, 0.75 where ``d`` is, 0.96 where the variance is.

    Over axis 1 the Transposes are only put for ONNX Runtime on the CPU, which takes 315 us instead of 523 us for
    [1, 96, 56, 56] and 31 us instead of 93 us for [1, 768, 7, 7].

    Before opset 17 it becomes ``com.microsoft::SkipLayerNormalization``, see ``fuse-skip-layer-norm``, on targets that
    list the kernel.
    Left alone: opsets before 17 on other targets; inner values with other readers that half of the nodes lead to;
    normalized dimensions that are not known, or others than the last ones and the channels.
    accuracy: rounding. Source: Ba et al. 2016, arXiv:1607.06450; ONNX LayerNormalization, opset 17.
    """

    name: ClassVar[str] = "fuse-layer-norm"
    accuracy: ClassVar[Accuracy] = "rounding"
    roots: ClassVar[tuple[str, ...]] = ("Sqrt", "Pow")

    def rewrite(self, node: ir.Node, context: Context) -> Outcome:
        """Search around the root of the variance."""
        spelled, again = tee(normalizations(node, centred=True, unknown=True))
        found, near = first_free(n for n in spelled if n.is_known and (n.is_over_last or n.axes == (1,)))
        if not near:
            other = next(again, None)
            if other is None:
                return None
            reason = "other axes than the last ones or the channels" if other.is_known else "axes of unknown size"
            return Refused(f"layer normalization not fused: it is over {reason}")
        if node_opset(node) < 17:
            made = put_kernel(_KERNEL, found, context.target) if found is not None else ""
            if isinstance(made, ir.Value):
                return made
            others = f", and {_KERNEL} is not for it: {made}" if made else ""
            return Refused(f"layer normalization not fused: the operator comes with opset 17{others}")
        if found is None:
            runs = context.target.runtime.startswith("onnxruntime")
            shared = first_shared((n for n in near if n.is_over_last), statistics=runs)
            if shared is None:
                return Refused("layer normalization not fused: a value inside it has other readers")
            return _shared(*shared)
        if found.is_over_last:
            return finish(found.expression.root, _normalized(found, source_of(found.expression)))
        if not context.target.runs_here:
            return Refused("layer normalization over the channels not fused: it would need two Transposes")
        return _over_channels(found)


def _shared(found: Normalization, statistics: Statistics) -> ir.Value:
    """Put the operator just behind its input: those who read inner values may stand anywhere behind that."""
    root, source = found.expression.root, found.expression.source
    count = 3 if statistics.inverses else 2 if statistics.means else 1
    fused = _operator(found, source, outputs=count, early=True)
    rows = ir.Shape([*list(source.shape or ())[: found.axes[0]], *[1] * len(found.axes)])
    for output, nodes in zip(fused.outputs[1:], (statistics.means, statistics.inverses), strict=False):
        output.type, output.shape = source.type, rows
        for node in nodes:
            replace_uses(node.outputs[0], output)
        if not nodes:
            output.name = ""
    value = finish(root, fused.outputs[0])
    retire(*statistics.means, *statistics.inverses)
    return value


def _over_channels(found: Normalization) -> ir.Value:
    root, source = found.expression.root, source_of(found.expression)
    there = [0, *range(2, found.rank), 1]
    back = [0, found.rank - 1, *range(1, found.rank - 1)]
    turned = _transposed(root, source, there)
    return finish(root, _transposed(root, _normalized(found, turned), back))


def _transposed(root: ir.Node, value: ir.Value, perm: list[int]) -> ir.Value:
    turned = insert_before(root, "Transpose", [value], attributes={"perm": perm}).outputs[0]
    turned.type = value.type
    turned.shape = ir.Shape([value.shape[axis] for axis in perm]) if value.shape is not None else None
    return turned


def _normalized(found: Normalization, source: ir.Value) -> ir.Value:
    return _operator(found, source).outputs[0]


def _operator(found: Normalization, source: ir.Value, *, outputs: int = 1, early: bool = False) -> ir.Node:
    """Put the operator before the end of the spelling, or as early as its input allows."""
    root = found.expression.root
    inputs = [source, parameter(root, found.gamma, source.dtype, "gamma")]
    if found.beta.any():
        inputs.append(parameter(root, found.beta, source.dtype, "beta"))
    options = {
        "attributes": {"axis": -len(found.axes), "epsilon": found.epsilon},
        "name": root.name,
        "outputs": outputs,
        "like": [source],
    }
    if early:
        return insert_behind(source, graph_of(root), "LayerNormalization", inputs, **options)
    return insert_before(root, "LayerNormalization", inputs, **options)
