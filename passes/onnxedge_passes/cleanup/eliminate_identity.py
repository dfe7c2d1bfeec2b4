"""Nodes that give back their input, bit by bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxedge.api import Array, Context, bypass, constant, is_standard
from onnxedge_passes.cleanup.worklist import Outcome, Refused, Rule, input_at, node_opset, output_used


@dataclass(frozen=True, kw_only=True)
class EliminateIdentity(Rule):
    """Let the readers of a node that changes nothing read its input.

    Before: ``a = Identity(x); b = Mul(a, 1.0); y = Relu(b)``
    After:  ``y = Relu(x)``

    Matched: Identity, Dropout at inference or of nothing, Cast to the same type, Reshape, Expand and Flatten to the
    same shape, Transpose in order, Pad by nothing, Slice and Gather of everything, Tile once, Resize by 1, Concat,
    Split, Sum and Mean of one, Max, Min, And and Or of one value, Mul and Div by 1, Pow of 1, Sub of 0, Add of -0.0
    or of an integer 0, And, Or, Xor, BitwiseAnd, BitwiseOr and BitwiseXor with what changes nothing, BitShift by 0,
    Where that always takes one side, and Abs, Ceil, Floor, Relu, Round and Sign of their own kind.
    Left alone: Add of +0.0 (``-0.0 + 0.0`` is ``0.0``; ``drop-zeros`` looks at who reads it), constants
    that change the shape by broadcast, a node between a graph input or initializer and a graph output.
    accuracy: exact. Source: own.
    """

    name: ClassVar[str] = "eliminate-identity"
    roots: ClassVar[tuple[str, ...]] = (
        "Identity", "Dropout", "Cast", "Reshape", "Expand", "Flatten", "Transpose", "Pad", "Slice", "Tile", "Concat",
        "Sum", "Max", "Min", "Mean", "Mul", "Div", "Add", "Sub", "Pow", "And", "Or", "Xor", "BitwiseAnd", "BitwiseOr",
        "BitwiseXor", "BitShift", "Where", "Split", "Gather", "Resize", "Upsample", "Abs", "Ceil", "Floor", "Relu",
        "Round", "Sign",
    )  # fmt: skip

    def rewrite(self, node: ir.Node, context: Context) -> Outcome:
        """Bypass the node if its rule says that it gives back one of its inputs."""
        if any(output_used(value) for value in node.outputs[1:]):
            return None
        source = _NEUTRAL[node.op_type](node)
        if source is None or isinstance(source, Refused):
            return source
        value = node.inputs[source]
        return value if bypass(node, source) else None


Answer = int | Refused | None  #: index of the input that comes out again


def _first(node: ir.Node) -> Answer:
    return 0 if input_at(node, 0) is not None else None


def _single(node: ir.Node) -> Answer:
    return 0 if len(node.inputs) == 1 else None


def _alike(node: ir.Node) -> Answer:
    """Answer for an operator that gives back a value that is all of its inputs."""
    return 0 if node.inputs[0] is not None and all(value is node.inputs[0] for value in node.inputs) else None


def _one_part(node: ir.Node) -> Answer:
    return 0 if len(node.outputs) == 1 and node_opset(node) >= 2 else None


def _repeated(node: ir.Node) -> Answer:
    before = node.inputs[0].producer() if node.inputs[0] is not None else None
    return 0 if before is not None and before.op_type == node.op_type and is_standard(before) else None


def _dropout(node: ir.Node) -> Answer:
    version = node_opset(node)
    if version < 7:
        return 0 if node.attributes.get_int("is_test", 0) else None
    mode, ratio = input_at(node, 2), constant(input_at(node, 1))
    if version < 12 or mode is None or (ratio is not None and not ratio.any()):
        return 0
    flag = constant(mode)
    return 0 if flag is not None and not flag.any() else None


def _cast(node: ir.Node) -> Answer:
    value = node.inputs[0]
    to = node.attributes.get_int("to")
    return 0 if value is not None and value.dtype is not None and to is not None and int(value.dtype) == to else None


def _reshape(node: ir.Node) -> Answer:
    data = node.inputs[0]
    if node_opset(node) < 5:
        shape: Array | None = np.array(node.attributes.get_ints("shape", ()))
    else:
        shape = constant(input_at(node, 1))
    if data is None or data.shape is None or shape is None or shape.size != len(data.shape):
        return None
    copies = not node.attributes.get_int("allowzero", 0)
    free = 0
    for want, have in zip(shape.tolist(), data.shape, strict=True):
        if want == -1:
            free += 1
        elif not (want == 0 and copies) and want != have:
            return None
    return 0 if free <= 1 else None


def _expand(node: ir.Node) -> Answer:
    data, shape = node.inputs[0], constant(input_at(node, 1))
    if data is None or data.shape is None or shape is None or shape.size > len(data.shape):
        return None
    tail = list(data.shape)[len(data.shape) - shape.size :]
    return 0 if all(want in (1, have) for want, have in zip(shape.tolist(), tail, strict=True)) else None


def _flatten(node: ir.Node) -> Answer:
    data = node.inputs[0]
    return 0 if data is not None and data.shape is not None and len(data.shape) == 2 and _axis(node, 1) == 1 else None


def _axis(node: ir.Node, default: int) -> int:
    axis = node.attributes.get_int("axis", default)
    return axis + 2 if axis < 0 else axis


def _transpose(node: ir.Node) -> Answer:
    perm = node.attributes.get_ints("perm", None)
    if perm is None:
        data = node.inputs[0]
        return 0 if data is not None and data.shape is not None and len(data.shape) < 2 else None
    return 0 if list(perm) == list(range(len(perm))) else None


def _pad(node: ir.Node) -> Answer:
    if node_opset(node) < 11:
        pads: Array | None = np.array(node.attributes.get_ints("pads", node.attributes.get_ints("paddings", (1,))))
    else:
        pads = constant(input_at(node, 1))
    return 0 if pads is not None and not pads.any() else None


def _tile(node: ir.Node) -> Answer:
    repeats = constant(input_at(node, 1)) if node_opset(node) >= 6 else None
    return 0 if repeats is not None and (repeats == 1).all() else None


def _slice(node: ir.Node) -> Answer:
    data = node.inputs[0]
    if node_opset(node) < 10:
        parts = [np.array(node.attributes.get_ints(key, ())) for key in ("starts", "ends")]
        axes: Array | None = np.array(node.attributes.get_ints("axes", range(parts[0].size)))
        steps: Array | None = np.ones(parts[0].size, np.int64)
    else:
        given = [constant(input_at(node, index)) for index in (1, 2)]
        if given[0] is None or given[1] is None:
            return None
        parts = [array for array in given if array is not None]
        axes = constant(node.inputs[3]) if input_at(node, 3) is not None else np.arange(parts[0].size)
        steps = constant(node.inputs[4]) if input_at(node, 4) is not None else np.ones(parts[0].size, np.int64)
    if axes is None or steps is None or parts[0].any() or (steps != 1).any() or data is None:
        return None
    rank = len(data.shape) if data.shape is not None else np.inf
    if not parts[0].size == parts[1].size == axes.size == steps.size or any(not -rank <= axis < rank for axis in axes):
        return None  # no Slice at all: the runtime refuses it
    for end, axis in zip(parts[1].tolist(), axes.tolist(), strict=True):
        dim = data.shape[axis] if data.shape is not None else None
        if end < 2**31 - 1 and not (isinstance(dim, int) and end >= dim):
            return None
    return 0


def _gather(node: ir.Node) -> Answer:
    data, indices = node.inputs[0], constant(input_at(node, 1))
    if data is None or data.shape is None or indices is None or indices.ndim != 1:
        return None
    axis = node.attributes.get_int("axis", 0)
    size = data.shape[axis] if -len(data.shape) <= axis < len(data.shape) else None
    return 0 if isinstance(size, int) and np.array_equal(indices, np.arange(size)) else None


def _resize(node: ir.Node) -> Answer:
    version = node_opset(node)
    scales = constant(input_at(node, 2 if version >= 11 else 1)) if version >= 9 else None
    if scales is None or scales.size == 0 or (scales != 1).any() or node.attributes.get_int("antialias", 0):
        return None
    mode = node.attributes.get_string("coordinate_transformation_mode", "half_pixel")
    return 0 if mode != "tf_crop_and_resize" and input_at(node, 3) is None else None


def _where(node: ir.Node) -> Answer:
    condition, left, right = node.inputs[:3]
    if left is None or right is None or condition is None:
        return None
    if left is right:
        return 1 if _fits_in(condition.shape, left) else None
    flag = constant(condition)
    if flag is None or flag.size == 0 or not (flag.all() or not flag.any()):
        return None
    side = 1 if flag.all() else 2
    taken, other = (left, right) if side == 1 else (right, left)
    return side if _keeps_shape(flag, taken) and _fits_in(other.shape, taken) else None


def _fits_in(dims: Sequence[int | ir.SymbolicDim] | ir.Shape | None, data: ir.Value) -> bool:
    """Tell whether broadcasting an operand of some dimensions against data gives the shape of the data."""
    if dims is None or data.shape is None or len(dims) > len(data.shape):
        return False
    pairs = zip(dims, list(data.shape)[len(data.shape) - len(dims) :], strict=True)
    return all(mine == 1 or (mine == have and isinstance(have, int)) for mine, have in pairs)


def _keeps_shape(operand: Array, data: ir.Value) -> bool:
    """Tell whether ``data (op) operand`` has the shape of ``data`` whatever its dynamic dimensions are."""
    return operand.ndim == 0 or _fits_in(operand.shape, data)


def neutral_operand(node: ir.Node, side: int, is_neutral: Callable[[Array], bool]) -> int | None:
    """Return the side of the other operand where the one on ``side`` is a neutral constant that adds no dimension."""
    operand, data = constant(node.inputs[side]), node.inputs[1 - side]
    if operand is None or data is None or operand.size == 0 or node_opset(node) < 7 or not is_neutral(operand):
        return None
    return 1 - side if _keeps_shape(operand, data) else None


def _all_one(operand: Array) -> bool:
    return bool((operand == 1).all())


def _all_zero(operand: Array) -> bool:
    return not operand.any()


def _all_plus_zero(operand: Array) -> bool:
    return not operand.any() and not (operand.dtype.kind == "f" and np.signbit(operand).any())


def _sub(node: ir.Node) -> Answer:
    return neutral_operand(node, 1, _all_plus_zero)


def _add(node: ir.Node) -> Answer:
    for side in (1, 0):
        found = neutral_operand(node, side, _all_zero)
        if found is not None:
            operand = constant(node.inputs[side])
            assert operand is not None
            if operand.dtype.kind not in "iu" and not (operand.dtype.kind == "f" and np.signbit(operand).all()):
                return Refused("not removed: adding +0.0 turns -0.0 into 0.0")
            return found
    return None


def _all_ones_bits(operand: Array) -> bool:
    return operand.dtype.kind in "iu" and bool((operand == np.array(-1).astype(operand.dtype)).all())


def _second(is_neutral: Callable[[Array], bool]) -> Callable[[ir.Node], Answer]:
    return lambda node: neutral_operand(node, 1, is_neutral)


def _either(is_neutral: Callable[[Array], bool]) -> Callable[[ir.Node], Answer]:
    def answer(node: ir.Node) -> Answer:
        right = neutral_operand(node, 1, is_neutral)
        return right if right is not None else neutral_operand(node, 0, is_neutral)

    return answer


def _logical(is_neutral: Callable[[Array], bool]) -> Callable[[ir.Node], Answer]:
    either = _either(is_neutral)
    return lambda node: found if (found := _alike(node)) is not None else either(node)


_NEUTRAL: Mapping[str, Callable[[ir.Node], Answer]] = {
    "Identity": _first,
    "Dropout": _dropout,
    "Cast": _cast,
    "Reshape": _reshape,
    "Expand": _expand,
    "Flatten": _flatten,
    "Transpose": _transpose,
    "Pad": _pad,
    "Slice": _slice,
    "Tile": _tile,
    "Concat": _single,
    "Sum": _single,
    "Max": _alike,
    "Min": _alike,
    "Mean": _single,
    "Mul": _either(_all_one),
    "Div": _second(_all_one),
    "Pow": _second(_all_one),
    "And": _logical(_all_one),
    "Or": _logical(_all_zero),
    "Xor": _either(_all_zero),
    "BitwiseAnd": _logical(_all_ones_bits),
    "BitwiseOr": _logical(_all_zero),
    "BitwiseXor": _either(_all_zero),
    "BitShift": _second(_all_zero),
    "Where": _where,
    "Split": _one_part,
    "Gather": _gather,
    "Resize": _resize,
    "Upsample": _resize,
    **dict.fromkeys(("Abs", "Ceil", "Floor", "Relu", "Round", "Sign"), _repeated),
    "Add": _add,
    "Sub": _sub,
}
