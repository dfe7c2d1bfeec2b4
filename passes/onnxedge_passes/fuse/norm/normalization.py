"""Normalizations spelled in raw operators, recognised by what they compute: shared by the rules that fuse them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from onnxedge.api import Array, constant, graph_of, insert_before, new_initializer, replace_uses
from onnxedge_passes.cleanup.worklist import retire
from onnxedge_passes.fuse.expression import Expression, expressions_around

_REDUCTIONS = ("ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL2")
_OPERATORS = frozenset(_REDUCTIONS) | {
    *("GlobalAveragePool", "Add", "Sub", "Mul", "Div", "Pow", "Neg", "Sqrt", "Reciprocal", "Reshape", "Cast"),
    *("Identity", "Sum"),
}
_LIMIT = 20  #: nodes of the longest spelling
_UNKNOWN = 3  #: what an unknown or irrelevant dimension is in the samples
_LARGEST = 1 << 16  #: elements that are normalized together in the samples

#: Types that are normalized -> how far, relative to the largest gamma, rounded constants move the result.
FLOATS = {
    ir.DataType.FLOAT: 1e-7,
    ir.DataType.DOUBLE: 1e-7,
    ir.DataType.FLOAT16: 1e-3,
    ir.DataType.BFLOAT16: 8e-3,
}


@dataclass(frozen=True)
class Normalization:
    """Hold what identifies a normalization ``n(x) * gamma + beta``.

    Attributes:
        expression: the nodes that spell it.
        rank: of what is normalized.
        axes: axes of the statistics, not negative.
        epsilon: added to the variance or mean square.
        gamma, beta: float64, one number for each index of the axes that parameters vary along.
        sample: shape of samples that the nodes take.
        is_known: whether all dimensions that parameters vary along are known; else the parameters stand for nothing.
    """

    expression: Expression
    rank: int
    axes: tuple[int, ...]
    epsilon: float
    gamma: Array
    beta: Array
    sample: tuple[int, ...]
    is_known: bool = True

    @property
    def is_over_last(self) -> bool:
        """Tell whether the statistics are over the last axes."""
        return self.axes == tuple(range(self.axes[0], self.rank))


def is_root_of_variance(node: ir.Node) -> bool:
    """Tell whether a node may draw the root that every spelling has: Sqrt, or Pow by 0.5 or -0.5."""
    if node.op_type != "Pow":
        return node.op_type == "Sqrt"
    exponent = constant(node.inputs[1])
    return exponent is not None and exponent.size == 1 and abs(float(exponent.item())) == 0.5


def normalizations(
    anchor: ir.Node, *, centred: bool, per_channel: bool = False, unknown: bool = False
) -> Iterator[Normalization]:
    """Yield the normalizations around the root of a variance, the longest spelling first.

    Args:
        anchor: a ReduceL2, or a node that :func:`is_root_of_variance`; around others there are none.
        centred: with the mean subtracted; else by the root of the mean square alone.
        per_channel: parameters along axis 1 and statistics over all axes behind it; else both over the same axes.
        unknown: also those over dimensions of unknown size, which are not known and can only be spoken of.
    """
    if anchor.op_type != "ReduceL2" and not is_root_of_variance(anchor):
        return
    for expression in expressions_around(anchor, _OPERATORS, _LIMIT):
        shape = expression.source.shape
        if expression.source.dtype not in FLOATS or expression.root.outputs[0].dtype not in FLOATS:
            continue
        if shape is None or not 1 <= len(shape) <= 6:
            continue
        dims = [d if isinstance(d, int) else None for d in shape]
        for axes in _statistics_axes(expression, len(dims)):
            if per_channel and (len(dims) < 3 or axes != tuple(range(2, len(dims)))):
                continue
            varying = (1,) if per_channel else axes
            if not unknown and any(dims[axis] is None for axis in varying):
                continue
            found = _fitted(expression, dims, axes, varying, centred)
            if found is not None:
                yield found
                break


def _statistics_axes(expression: Expression, rank: int) -> tuple[tuple[int, ...], ...]:
    """Return which axes to try: what the reductions say, the last one or two where they are hidden."""
    for node in expression.nodes:
        if node.op_type not in _REDUCTIONS:
            continue
        given = constant(node.inputs[1]) if len(node.inputs) > 1 else node.attributes.get_ints("axes", None)
        if given is None or any(inner.op_type == "Reshape" for inner in expression.nodes):
            break
        return (tuple(sorted({int(axis) % rank for axis in np.ravel(given)})),) if np.size(given) else ()
    return tuple(tuple(range(axis, rank)) for axis in (rank - 1, rank - 2) if axis >= 0)


def _fitted(
    expression: Expression,
    dims: list[int | None],
    axes: tuple[int, ...],
    parameter_axes: tuple[int, ...],
    centred: bool,
) -> Normalization | None:
    """Fit parameters on small samples, or on samples of the value's own shape where the nodes insist on it."""
    is_known = all(dims[axis] is not None for axis in parameter_axes)
    needed = {axis: dims[axis] or 0 for axis in parameter_axes} if is_known else {}
    full = [needed.get(axis) or (_UNKNOWN if d is None else d) for axis, d in enumerate(dims)]
    small = [needed.get(axis) or min(d, _UNKNOWN) for axis, d in enumerate(full)]
    tells = parameter_axes == axes and small != full and expression.evaluate(np.ones(small)) is not None
    for shape in (small,) if tells or small == full else (small, full):
        if 2 <= math.prod(shape[axis] for axis in axes) <= _LARGEST and math.prod(shape) <= 4 * _LARGEST:
            found = _fitted_on(expression, shape, axes, parameter_axes, centred)
            if found is not None:
                return found if is_known else replace(found, is_known=False)
    return None


def _normalized(x: Array, axes: tuple[int, ...], epsilon: float, centred: bool) -> Array:
    x = x - x.mean(axis=axes, keepdims=True) if centred else x
    return np.asarray(x / np.sqrt((x * x).mean(axis=axes, keepdims=True) + epsilon))


def _fitted_on(
    expression: Expression, shape: list[int], axes: tuple[int, ...], parameter_axes: tuple[int, ...], centred: bool
) -> Normalization | None:
    """Read gamma and beta off ``f(x)`` and ``f(-x)``, and keep them if they hold on other samples.

    ``f(x) = n(x) * gamma + beta`` with ``n(-x) = -n(x)``, so that beta is half their sum and gamma half their
    difference over ``n(x)``. Some of the other samples have a variance as small as epsilon.
    """
    rng = np.random.default_rng(0)
    epsilon = _epsilon(expression)
    x = rng.choice([-1.0, 1.0], shape) * rng.uniform(0.5, 1.5, shape)
    plus, minus = expression.evaluate(x), expression.evaluate(-x)
    if plus is None or minus is None or plus.shape != tuple(shape) or not np.isfinite(plus).all():
        return None
    others = tuple(axis for axis in range(len(shape)) if axis not in parameter_axes)
    direction = _normalized(x, axes, epsilon, centred)
    beta = ((plus + minus) / 2).mean(axis=others, keepdims=True)
    with np.errstate(all="ignore"):
        gamma = ((plus - minus) / 2 * direction).sum(axis=others, keepdims=True)
        gamma = gamma / (direction * direction).sum(axis=others, keepdims=True)
    if not (np.isfinite(gamma).all() and np.isfinite(beta).all()):
        return None
    scale = float(np.abs(gamma).max() + np.abs(beta).max())
    beta = np.where(np.abs(beta) < 1e-10 * scale, 0.0, beta)
    if not centred and beta.any():
        return None
    tiny = math.sqrt(epsilon) if epsilon else 1e-3
    for sample in (rng.standard_normal(shape) * 3.0 + 2.0, rng.standard_normal(shape) * tiny, x):
        found = expression.evaluate(sample)
        expected = _normalized(sample, axes, epsilon, centred) * gamma + beta
        if found is None or not np.allclose(found, expected, rtol=0.0, atol=_tolerance(expression) * scale):
            return None
    kept = [shape[axis] for axis in parameter_axes]
    parameters = (gamma.reshape(kept), beta.reshape(kept))
    return Normalization(expression, len(shape), axes, epsilon, *parameters, tuple(shape))


def _tolerance(expression: Expression) -> float:
    return max(FLOATS.get(node.outputs[0].dtype or ir.DataType.FLOAT, 1e-7) for node in expression.nodes)


def _epsilon(expression: Expression) -> float:
    """Return the scalar that is added before the root is drawn, 0 where there is none."""
    for node in expression.nodes:
        if not is_root_of_variance(node):
            continue
        added = node.inputs[0].producer() if node.inputs[0] is not None else None
        if added is None or added.op_type not in ("Add", "Sum"):
            continue
        for value in added.inputs:
            array = constant(value)
            if array is not None and array.size == 1 and 0.0 < float(array.item()) < 1.0:
                return float(array.item())
    return 0.0


def first_free(found: Iterable[Normalization]) -> tuple[Normalization | None, list[Normalization]]:
    """Return the first normalization whose inner values nobody else reads, and all that were looked at."""
    seen: list[Normalization] = []
    for normalization in found:
        seen.append(normalization)
        if normalization.expression.is_read_inside_only():
            return normalization, seen
    return None, seen


@dataclass(frozen=True)
class Statistics:
    """Hold the nodes that compute the mean, and the reciprocal of the root of the variance, where others read them."""

    means: tuple[ir.Node, ...] = ()
    inverses: tuple[ir.Node, ...] = ()


def first_shared(found: Iterable[Normalization], *, statistics: bool) -> tuple[Normalization, Statistics] | None:
    """Return the first normalization of which few nodes must stay for those who read its inner values.

    Args:
        found: normalizations with the mean subtracted.
        statistics: whether the operator gives mean and reciprocal of the deviation, so that their nodes need not stay.
    """
    for normalization in found:
        expression = normalization.expression
        inside = {id(node) for node in expression.nodes}
        read = [
            node
            for node in expression.nodes
            if node is not expression.root
            and (node.outputs[0].is_graph_output() or any(id(u.node) not in inside for u in node.outputs[0].uses()))
        ]
        means, inverses = (
            tuple(node for node in read if statistics and _is_statistic(normalization, node, inverse=inverse))
            for inverse in (False, True)
        )
        given = {id(node) for node in (*means, *inverses)}
        stay = [node for node in read if id(node) not in given]
        seen: set[int] = set()
        while stay:
            node = stay.pop()
            if id(node) in inside and id(node) not in seen | given:
                seen.add(id(node))
                stay += [source for value in node.inputs if value is not None and (source := value.producer())]
        if 2 * len(seen) < len(expression.nodes):
            return normalization, Statistics(means, inverses)
    return None


def _is_statistic(normalization: Normalization, node: ir.Node, *, inverse: bool) -> bool:
    """Tell whether a node computes, in float32, the mean, or the reciprocal of the root of the variance."""
    expression, axes = normalization.expression, normalization.axes
    if {node.outputs[0].dtype, expression.source.dtype} != {ir.DataType.FLOAT}:
        return False
    part = Expression(node, expression.source, expression.nodes[: expression.nodes.index(node) + 1])
    rng = np.random.default_rng(1)
    for scale, offset in ((3.0, 2.0), (math.sqrt(normalization.epsilon) or 1e-3, 0.0)):
        x = rng.standard_normal(normalization.sample) * scale + offset
        expected = x.mean(axis=axes, keepdims=True)
        if inverse:
            expected = 1 / np.sqrt(x.var(axis=axes, keepdims=True) + normalization.epsilon)
        found = part.evaluate(x)
        if found is None or found.shape != expected.shape or not np.allclose(found, expected, rtol=1e-6, atol=1e-9):
            return False
    return True


def source_of(expression: Expression) -> ir.Value:
    """Return what is normalized: before the Cast to float32 of a model that casts up inside, else the source."""
    cast = expression.source.producer()
    if cast is None or cast.op_type != "Cast" or cast.domain not in ("", "ai.onnx"):
        return expression.source
    given = cast.inputs[0]
    is_up = expression.source.dtype == ir.DataType.FLOAT
    half = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
    if given is not None and is_up and given.dtype in half and given.dtype == expression.root.outputs[0].dtype:
        return given
    return expression.source


def parameter(root: ir.Node, array: Array, dtype: ir.DataType | None, name: str) -> ir.Value:
    """Add gamma or beta as an initializer of a type."""
    label = root.name or root.outputs[0].name or "norm"
    return new_initializer(graph_of(root), array.astype((dtype or ir.DataType.FLOAT).numpy()), f"{label}_{name}")


def finish(root: ir.Node, value: ir.Value) -> ir.Value:
    """Let ``value`` stand for a root's output, cast to its type where they differ, and retire the spelling."""
    old = root.outputs[0]
    if value.dtype != old.dtype and value.dtype is not None and old.dtype is not None:
        cast = insert_before(root, "Cast", [value], attributes={"to": int(old.dtype)}, like=[old])
        value = cast.outputs[0]
    replace_uses(old, value)
    retire(root)
    return value
