"""Elementwise operators and reductions that have no gradient, written in those that have one."""

from __future__ import annotations

from functools import partial, reduce

import numpy as np
import onnx_ir as ir

from onnxedge.api import Array, constant
from onnxedge_passes.cleanup.worklist import Refused
from onnxedge_passes.train.draft import Draft, Spelling


def _hard_sigmoid(draft: Draft) -> ir.Value:
    return _ramp(draft, draft.number("alpha", 0.2), draft.number("beta", 0.5))


def _hard_swish(draft: Draft) -> ir.Value:
    return draft.put("Mul", draft.x, _ramp(draft, 1 / 6, 0.5))


def _ramp(draft: Draft, slope: float, offset: float) -> ir.Value:
    return draft.put("Clip", draft.put("Add", draft.put("Mul", draft.x, slope), offset), 0.0, 1.0)


def _prelu(draft: Draft) -> ir.Value:
    """``Relu(x) - s Relu(-x)``."""
    below = draft.put("Mul", draft.put("Relu", draft.put("Neg", draft.x)), draft.input(1))
    return draft.put("Sub", draft.put("Relu", draft.x), below)


def _elu(draft: Draft, alpha: float = 1.0, gamma: float = 1.0) -> ir.Value | None:
    """``gamma (Relu(x) + alpha (exp(min(x, 0) / c) - 1))``, with c alpha for Celu and 1 for the others."""
    kind = draft.node.op_type
    alpha, gamma = draft.number("alpha", alpha), draft.number("gamma", gamma)
    if kind == "Celu" and alpha == 0:
        return None
    below = draft.put("Min", draft.x, 0.0)
    scaled = draft.put("Div", below, alpha) if kind == "Celu" else below
    value = draft.put("Sub", draft.put("Exp", scaled), 1.0)
    value = draft.put("Add", draft.put("Relu", draft.x), draft.put("Mul", value, alpha))
    return draft.put("Mul", value, gamma) if kind == "Selu" else value


def _softplus(draft: Draft) -> ir.Value:
    """``r + log(1 + exp(x - 2 r))`` with ``r = Relu(x)``: no overflow, and at 0 a slope of 1/2, which Abs had not."""
    above = draft.put("Relu", draft.x)
    below = draft.put("Exp", draft.put("Sub", draft.x, draft.put("Add", above, above)))
    return draft.put("Add", above, draft.put("Log", draft.put("Add", below, 1.0)))


def _mish(draft: Draft) -> ir.Value:
    return draft.put("Mul", draft.x, draft.put("Tanh", _softplus(draft)))


def _softsign(draft: Draft) -> ir.Value:
    return draft.put("Div", draft.x, draft.put("Add", draft.put("Abs", draft.x), 1.0))


def _swish(draft: Draft) -> ir.Value:
    alpha = draft.number("alpha", 1.0)
    scaled = draft.x if alpha == 1 else draft.put("Mul", draft.x, alpha)
    return draft.put("Mul", draft.x, draft.put("Sigmoid", scaled))


def _thresholded_relu(draft: Draft) -> ir.Value:
    return draft.put("Where", draft.put("Greater", draft.x, draft.number("alpha", 1.0)), draft.x, 0.0)


def _variadic(draft: Draft) -> ir.Value | None:
    """Write many operands two by two; Min and Max of two have a gradient, of more they have none."""
    kind, values = draft.node.op_type, [value for value in draft.node.inputs if value is not None]
    if kind in ("Min", "Max") and len(values) == 2:
        return None
    if len(values) == 1:
        return draft.put("Identity", values[0])
    step = "Add" if kind in ("Sum", "Mean") else kind
    value = reduce(lambda a, b: draft.put(step, a, b), values)
    return draft.put("Div", value, float(len(values))) if kind == "Mean" else value


def _sum_of(draft: Draft, inner: str, outer: str = "") -> ir.Value:
    """Write a reduction as the sum of something, and of that something else."""
    attributes = draft.node.attributes
    options = {name: attributes.get_int(name) for name in ("keepdims", "noop_with_empty_axes") if name in attributes}
    axes: ir.Value | Array | None = draft.input(1)
    if "axes" in attributes:
        axes = np.array(attributes.get_ints("axes"), np.int64)
    value = draft.x
    if inner:
        value = draft.put(inner, value, value) if inner == "Mul" else draft.put(inner, value)
    operands = () if axes is None else (axes,)
    value = draft.put("ReduceSum", value, *operands, **options)
    return draft.put(outer, value) if outer else value


def _extreme(draft: Draft) -> ir.Value | Refused | None:
    """Take the first of the sorted elements along each axis in turn."""
    node, dims = draft.node, draft.dims
    operand = draft.input(1)
    given = node.attributes.get_ints("axes", None) if operand is None else constant(operand)
    if operand is not None and given is None:
        return Refused("has no gradient: its axes are computed at run time")
    axes = [int(axis) for axis in np.asarray(given).reshape(-1)] if given is not None else []
    if not axes and node.attributes.get_int("noop_with_empty_axes", 0) != 0:
        return draft.put("Identity", draft.x)
    if dims is None:
        return Refused("has no gradient: the rank of its input is not known")
    rank = len(dims)
    axes = sorted({axis % rank for axis in axes}) if axes else list(range(rank))
    if any(dims[axis] == 0 for axis in axes):
        return None
    value = first_along(draft, draft.x, axes, largest=node.op_type == "ReduceMax")
    if node.attributes.get_int("keepdims", 1) != 0 or not axes:
        return value if axes else draft.put("Identity", value)
    return draft.put("Squeeze", value, np.array(axes, np.int64))


def first_along(draft: Draft, value: ir.Value, axes: list[int], *, largest: bool) -> ir.Value:
    """Return the largest, or least, element along axes, which stay with size 1."""
    for axis in axes:
        value, _ = draft.several("TopK", 2, value, np.array([1], np.int64), axis=axis, largest=int(largest))
    return value


SPELLINGS: dict[str, Spelling] = {
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "PRelu": _prelu,
    "Elu": _elu,
    "Selu": partial(_elu, alpha=1.67326319217681884765625, gamma=1.05070102214813232421875),
    "Celu": _elu,
    "Softplus": _softplus,
    "Mish": _mish,
    "Softsign": _softsign,
    "Swish": _swish,
    "ThresholdedRelu": _thresholded_relu,
    **dict.fromkeys(("Sum", "Mean", "Min", "Max"), _variadic),
    **dict.fromkeys(("ReduceMax", "ReduceMin"), _extreme),
    "ReduceSumSquare": partial(_sum_of, inner="Mul"),
    "ReduceL1": partial(_sum_of, inner="Abs"),
    "ReduceLogSum": partial(_sum_of, inner="", outer="Log"),
}
