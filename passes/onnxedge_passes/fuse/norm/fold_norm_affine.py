"""Scale and shift behind a normalization that has room for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxedge.api import (
    Accuracy,
    Array,
    Context,
    constant,
    graph_of,
    insert_before,
    is_constant,
    is_standard,
    new_initializer,
    replace_uses,
    sole_consumer,
    static_shape,
)
from onnxedge_passes.cleanup.worklist import Outcome, Refused, Rule, input_at, is_exported_twice, output_used, retire


@dataclass(frozen=True, kw_only=True)
class FoldNormAffine(Rule):
    """Fold a scale and a shift that follow a normalization into its gamma and beta.

    Before: ``y = Add(Mul(LayerNormalization(x, 1), g), b)`` with ``g, b: [D]``, constants or computed at run time;
    behind InstanceNormalization constants of the shape ``[C, 1, 1]``
    After:  ``y = LayerNormalization(x, g, b)``

    Left alone: a gamma or beta that is there already and cannot be multiplied or added before the model runs; operands
    of another shape (constants may be scalars); results with other readers or exported.
    accuracy: rounding. Source: ONNX LayerNormalization, opset 17; RMSNormalization, opset 23.
    """

    name: ClassVar[str] = "fold-norm-affine"
    accuracy: ClassVar[Accuracy] = "rounding"
    roots: ClassVar[tuple[str, ...]] = ("LayerNormalization", "RMSNormalization", "InstanceNormalization")

    def rewrite(self, node: ir.Node, context: Context) -> Outcome:
        """Look at the one reader of a normalization."""
        after = sole_consumer(node.outputs[0])
        if after is None or after.op_type not in ("Mul", "Add") or not is_standard(after):
            return None
        if after.graph is not node.graph or is_exported_twice(after.outputs[0]):
            return None
        if any(output_used(value) for value in node.outputs[1:]):
            return None
        operand = after.inputs[1 if after.inputs[0] is node.outputs[0] else 0]
        shape = _parameter_shape(node)
        if operand is None or shape is None or operand.dtype != node.inputs[1].dtype or _rank(node) is None:  # type: ignore[union-attr]
            return None
        if is_constant(operand):
            inputs = _with_constant(node, after, operand, shape)
        elif node.op_type != "InstanceNormalization" and static_shape(operand) == shape:
            inputs = _with_value(node, after, operand)
        else:
            return None
        if inputs is None or isinstance(inputs, Refused):
            return inputs
        fused = insert_before(after, node.op_type, inputs, name=node.name, like=after.outputs)
        fused.attributes.update(node.attributes)
        replace_uses(after.outputs[0], fused.outputs[0])
        retire(after)
        return fused.outputs[0]


def _rank(node: ir.Node) -> int | None:
    source = node.inputs[0]
    return len(source.shape) if source is not None and source.shape is not None else None


def _parameter_shape(node: ir.Node) -> tuple[int, ...] | None:
    scale = input_at(node, 1)
    array = constant(scale)
    return array.shape if array is not None else static_shape(scale)


def _with_value(node: ir.Node, after: ir.Node, operand: ir.Value) -> list[ir.Value | None] | Refused | None:
    """Return the inputs with an operand that is computed at run time: it takes a place that says nothing yet."""
    scale, shift = node.inputs[1], input_at(node, 2)
    if after.op_type == "Add":
        if node.op_type != "LayerNormalization":
            return None
        return [node.inputs[0], scale, operand] if shift is None else None
    ones = constant(scale)
    if ones is None or (ones != 1).any() or shift is not None:
        return Refused("scale not folded into the normalization before it: one of them is computed at run time")
    return [node.inputs[0], operand]


def _with_constant(
    node: ir.Node, after: ir.Node, operand: ir.Value, shape: tuple[int, ...]
) -> list[ir.Value | None] | Refused | None:
    """Return the inputs with a constant multiplied or added to what is there."""
    row = _row(node, constant(operand), shape)
    if row is None:
        return None
    scale, shift = constant(node.inputs[1]), constant(input_at(node, 2))
    if input_at(node, 2) is not None and shift is None:
        return Refused("constant not folded into the normalization before it: its beta is computed at run time")
    if after.op_type == "Mul":
        if scale is None:
            return Refused("constant not folded into the normalization before it: its gamma is computed at run time")
        made = {1: _times(scale, row), 2: _times(shift, row) if shift is not None else None}
    elif node.op_type == "RMSNormalization":
        return None
    else:
        made = {1: None, 2: row if shift is None else (shift.astype(np.float64) + row).astype(shift.dtype)}
    if any(array is not None and not np.isfinite(array.astype(np.float64)).all() for array in made.values()):
        return Refused("constant not folded into the normalization before it: not finite")
    inputs: list[ir.Value | None] = [*node.inputs[:3]]
    for index, array in made.items():
        if array is not None:
            wish = f"{after.name or after.outputs[0].name}_{'gamma' if index == 1 else 'beta'}"
            inputs[index : index + 1] = [new_initializer(graph_of(node), array, wish)]
    return inputs


def _times(array: Array, row: Array) -> Array:
    with np.errstate(all="ignore"):
        return np.asarray((array.astype(np.float64) * row.astype(np.float64)).astype(array.dtype))


def _row(node: ir.Node, operand: Array | None, shape: tuple[int, ...]) -> Array | None:
    """Return a constant operand in the shape of the parameters, None where it does not broadcast like them."""
    rank = _rank(node)
    if operand is None or rank is None or operand.ndim > rank:
        return None
    if operand.size == 1:
        return np.broadcast_to(operand.reshape([1] * len(shape)), shape)
    behind = rank - 2 if node.op_type == "InstanceNormalization" else 0
    own = (*[1] * (rank - behind - len(shape)), *shape, *[1] * behind)
    wide = (*[1] * (rank - operand.ndim), *operand.shape)
    return operand.reshape(shape) if wide == own else None
