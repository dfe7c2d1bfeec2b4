"""LayerNormalization from raw operators."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxedge.api import Accuracy, Context, insert_before
from onnxedge_passes.cleanup.worklist import Outcome, Refused, Rule, node_opset
from onnxedge_passes.fuse.normalization import (
    Normalization,
    finish,
    first_free,
    is_root_of_variance,
    normalizations,
    parameter,
    source_of,
)


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

    Over axis 1 the Transposes are only put for ONNX Runtime on the CPU, which takes 315 us instead of 523 us for
    [1, 96, 56, 56] and 31 us instead of 93 us for [1, 768, 7, 7].
    Left alone: opsets before 17; inner values with other readers; normalized dimensions that are not known.
    accuracy: rounding. Source: Ba et al. 2016, arXiv:1607.06450; ONNX LayerNormalization, opset 17.
    """

    name: ClassVar[str] = "fuse-layer-norm"
    accuracy: ClassVar[Accuracy] = "rounding"
    roots: ClassVar[tuple[str, ...]] = ("Sqrt", "Pow")

    def rewrite(self, node: ir.Node, context: Context) -> Outcome:
        """Search around the root of the variance."""
        if not is_root_of_variance(node):
            return None
        found, near = first_free(n for n in normalizations(node, centred=True) if n.is_over_last or n.axes == (1,))
        if not near:
            return None
        if node_opset(node) < 17:
            return Refused("layer normalization not fused: the operator comes with opset 17")
        if found is None:
            return Refused("layer normalization not fused: a value inside it has other readers")
        if found.is_over_last:
            return finish(found.expression.root, _normalized(found, source_of(found.expression)))
        if not context.target.runs_here:
            return Refused("layer normalization over the channels not fused: it would need two Transposes")
        return _over_channels(found)


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
    root = found.expression.root
    inputs = [source, parameter(root, found.gamma, source.dtype, "gamma")]
    if found.beta.any():
        inputs.append(parameter(root, found.beta, source.dtype, "beta"))
    attributes = {"axis": -len(found.axes), "epsilon": found.epsilon}
    fused = insert_before(root, "LayerNormalization", inputs, attributes=attributes, name=root.name)
    value = fused.outputs[0]
    value.type, value.shape = source.type, source.shape
    return value
