"""LayerNormalization from raw operators."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxedge.api import Accuracy, Array, Context, constant, insert_before, new_initializer, replace_uses
from onnxedge_passes.cleanup.worklist import Outcome, Refused, Rule, node_opset, retire
from onnxedge_passes.fuse.expression import Expression, expressions

_MEANS = frozenset({"ReduceMean", "ReduceSum", "GlobalAveragePool"})
_OPERATORS = _MEANS | {"Add", "Sub", "Mul", "Div", "Pow", "Neg", "Sqrt", "Reciprocal", "Reshape"}
_LIMIT = 16  #: nodes of the longest spelling
_DYNAMIC = 3  #: what an unknown leading dimension is in the samples
_TOLERANCE = 1e-7  #: relative, in float64
_FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16)


@dataclass(frozen=True)
class Parameters:
    """Hold what identifies a layer normalization: first normalized axis, epsilon, gamma and beta of shape [*D]."""

    axis: int
    epsilon: float
    gamma: Array
    beta: Array

    def apply(self, x: Array) -> Array:
        """Compute the normalization in float64."""
        return _normalized(x, self.axis, self.epsilon) * self.gamma + self.beta


@dataclass(frozen=True, kw_only=True)
class FuseLayerNorm(Rule):
    """Fuse the operators that spell a layer normalization over the last axes into one.

    Before: ``d = x - ReduceMean(x); y = d / Sqrt(ReduceMean(d * d) + epsilon) * gamma + beta``, or as converters from
    TFLite write it: ``k = Reciprocal(Sqrt(variance + epsilon)) * gamma; y = x * k + (beta - mean * k)`` with the means
    through GlobalAveragePool
    After:  ``y = LayerNormalization(x, gamma, beta)``

    The spelling does not matter: gamma and beta are read off what the nodes compute, and the result is compared on
    further samples, some of them with a variance as small as epsilon.
    Left alone: opsets before 17; inner values with other readers; a last dimension that is not known. With gamma or
    beta computed at run time, what stands before them is fused.
    accuracy: rounding. Source: Ba et al. 2016, arXiv:1607.06450; ONNX LayerNormalization, opset 17.
    """

    name: ClassVar[str] = "fuse-layer-norm"
    accuracy: ClassVar[Accuracy] = "rounding"
    roots: ClassVar[tuple[str, ...]] = ("Add", "Sub", "Mul", "Div")

    def rewrite(self, node: ir.Node, context: Context) -> Outcome:
        """Try each value that branches before the node as the one that is normalized."""
        if node.outputs[0].dtype not in _FLOATS:
            return None
        inside: set[ir.Node] = context.analysis("fuse-layer-norm: refused", set)
        for expression in expressions(node, _OPERATORS, _MEANS, _LIMIT):
            if not any(inner.op_type in ("Sqrt", "Pow") for inner in expression.nodes):
                continue
            parameters = _recognised(expression)
            if parameters is None:
                continue
            reason = ""
            if node_opset(node) < 17:
                reason = "the operator comes with opset 17"
            elif not expression.is_read_inside_only():
                reason = "a value inside it has other readers"
            if not reason:
                return _fuse(node, expression.source, parameters)
            if node in inside:  # said already, of the longer spelling that ends later
                return None
            inside.update(inner for inner in expression.nodes if inner is not node)
            return Refused(f"layer normalization not fused: {reason}")
        return None


def _fuse(node: ir.Node, source: ir.Value, parameters: Parameters) -> ir.Value:
    assert node.graph is not None
    graph = node.graph if isinstance(node.graph, ir.Graph) else node.graph.graph
    dtype = (node.outputs[0].dtype or ir.DataType.FLOAT).numpy()
    label = node.name or node.outputs[0].name or "layer_norm"
    inputs = [source, new_initializer(graph, parameters.gamma.astype(dtype), f"{label}_gamma")]
    if parameters.beta.any():
        inputs.append(new_initializer(graph, parameters.beta.astype(dtype), f"{label}_beta"))
    axis = parameters.axis - len(source.shape or ())
    fused = insert_before(
        node,
        "LayerNormalization",
        inputs,
        attributes={"axis": axis, "epsilon": parameters.epsilon},
        name=node.name,
        like=node.outputs,
    )
    replace_uses(node.outputs[0], fused.outputs[0])
    retire(node)
    return fused.outputs[0]


def _recognised(expression: Expression) -> Parameters | None:
    """Return the parameters of the layer normalization that an expression computes, None where it is another thing."""
    shape = expression.source.shape
    if shape is None or not 1 <= len(shape) <= 6:
        return None
    dims = [d if isinstance(d, int) else None for d in shape]
    epsilon = _epsilon(expression)
    axes = _normalized_axes(expression, len(dims))
    for axis in axes:
        inner = [d for d in dims[axis:] if d is not None]
        if len(inner) < len(dims) - axis or not 2 <= math.prod(inner) <= 1 << 16:
            continue
        full = [_DYNAMIC if d is None else d for d in dims[:axis]]
        small = [min(d, _DYNAMIC) for d in full]
        for outer in (small, full) if small != full else (full,):
            parameters = _fitted(expression, axis, epsilon, [*outer, *inner])
            if parameters is not None:
                return parameters
    return None


def _normalized_axes(expression: Expression, rank: int) -> tuple[int, ...]:
    """Return which first normalized axes to try: what the reductions say, the last one or two where they are hidden."""
    for node in expression.nodes:
        if node.op_type in ("ReduceMean", "ReduceSum"):
            given = constant(node.inputs[1]) if len(node.inputs) > 1 else node.attributes.get_ints("axes", None)
            if given is None:
                return ()
            axes = sorted(int(axis) % rank for axis in given)
            return (axes[0],) if axes == list(range(axes[0], rank)) else ()
    return tuple(axis for axis in (rank - 1, rank - 2) if axis >= 0)


def _epsilon(expression: Expression) -> float:
    """Return the scalar that is added before the root is drawn, 0 where there is none."""
    for node in expression.nodes:
        if node.op_type not in ("Sqrt", "Pow"):
            continue
        added = node.inputs[0].producer() if node.inputs[0] is not None else None
        if added is None or added.op_type != "Add":
            continue
        for value in added.inputs:
            array = constant(value)
            if array is not None and array.size == 1 and 0.0 < float(array.item()) < 1.0:
                return float(array.item())
    return 0.0


def _normalized(x: Array, axis: int, epsilon: float) -> Array:
    axes = tuple(range(axis, x.ndim))
    centred = x - x.mean(axis=axes, keepdims=True)
    return np.asarray(centred / np.sqrt((centred * centred).mean(axis=axes, keepdims=True) + epsilon))


def _fitted(expression: Expression, axis: int, epsilon: float, shape: list[int]) -> Parameters | None:
    """Read gamma and beta off ``f(x)`` and ``f(-x)``, and keep them if they hold on other samples.

    ``f(x) = n(x) * gamma + beta`` with ``n(-x) = -n(x)``, so that beta is half their sum and gamma half their
    difference over ``n(x)``.
    """
    rng = np.random.default_rng(0)
    x = rng.choice([-1.0, 1.0], shape) * rng.uniform(0.5, 1.5, shape)
    plus, minus = expression.evaluate(x), expression.evaluate(-x)
    if plus is None or minus is None or plus.shape != tuple(shape) or not np.isfinite(plus).all():
        return None
    outer = tuple(range(axis))
    direction = _normalized(x, axis, epsilon)
    beta = ((plus + minus) / 2).mean(axis=outer)
    gamma = ((plus - minus) / 2 * direction).sum(axis=outer) / (direction * direction).sum(axis=outer)
    scale = float(np.abs(gamma).max() + np.abs(beta).max())
    beta = np.where(np.abs(beta) < 1e-10 * scale, 0.0, beta)
    parameters = Parameters(axis, epsilon, gamma, beta)
    tiny = math.sqrt(epsilon) if epsilon else 1e-3
    for sample in (rng.standard_normal(shape) * 3.0 + 2.0, rng.standard_normal(shape) * tiny, x):
        found = expression.evaluate(sample)
        if found is None or not np.allclose(found, parameters.apply(sample), rtol=0.0, atol=_TOLERANCE * scale):
            return None
    return parameters
