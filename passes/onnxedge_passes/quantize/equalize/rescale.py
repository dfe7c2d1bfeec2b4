"""Factors multiplied into the constants of a model; the constants keep their names."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from onnxedge.api import Array, constant

from .plan import Plan

_LEAST = 1e-30  #: weights of less lose digits as float32
_NOTHING = 1e-9  #: weights of so little of the largest one do nothing
Place = tuple[ir.Node, int]  #: a node and the index of one of its inputs


def scaled_constants(plan: Plan) -> list[tuple[Place, Array]] | None:
    """Return the constants that a plan changes, as they will be; None where one would overflow or lose its digits."""
    new: list[tuple[Place, Array]] = []
    for change, factor in plan.changed():
        array = constant(change.node.inputs[change.index])
        assert array is not None
        with np.errstate(over="ignore", under="ignore"):
            scaled = (array * factor).astype(np.float32)
        counts = np.abs(array) > _NOTHING * np.abs(array).max(initial=0.0)
        if not np.isfinite(scaled).all() or (np.abs(scaled)[counts] < _LEAST).any():
            return None
        new.append(((change.node, change.index), scaled))
    return new


def on_fork(places: Iterable[tuple[Place, Array]], model: ir.Model, fork: ir.Model) -> list[tuple[Place, Array]]:
    """Return the same places of a fork of a model."""
    twins = dict(zip(model.graph, fork.graph, strict=True))
    return [((twins[node], index), array) for (node, index), array in places]


def write_constants(places: Iterable[tuple[Place, Array]]) -> list[tuple[Place, Array]]:
    """Write initializers that one node alone reads, and return what they were."""
    old = []
    for (node, index), array in places:
        value = node.inputs[index]
        before = constant(value)
        assert before is not None
        assert value is not None
        old.append(((node, index), before))
        value.const_value = ir.Tensor(np.ascontiguousarray(array), name=value.name)
    return old
