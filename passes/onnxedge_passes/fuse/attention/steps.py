"""What is done to the scores of attention between its two products: scales, masks, the Softmax."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from onnxedge.api import constant, is_standard
from onnxedge_passes.cleanup.worklist import Refused, input_at, node_opset
from onnxedge_passes.fuse.attention.axes import Axis, backward, expanded

FAR = 12  #: nodes between a product and the Softmax behind or before it
FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
_VIEWS = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Dropout", "Expand")
_FUNCTIONS = ("Sub", "Clip", "Min", "Max", "Pow", "Neg", "Sigmoid", "Relu")  #: no kernel has them in between


@dataclass(frozen=True)
class Step:
    """Hold one thing that is done to the scores before the Softmax.

    Attributes:
        kind: ``scale``, ``tanh``, ``add`` a mask, or ``fill`` where a condition does not hold.
        axes: of the scores at that place.
        value: what is added, or the condition.
        number: factor, or what is filled in.
        keeps: the condition's outcome that keeps the scores.
    """

    kind: Literal["scale", "tanh", "add", "fill"]
    axes: list[Axis]
    value: ir.Value | None = None
    number: float = 1.0
    keeps: bool = True

    @property
    def masks(self) -> bool:
        """Tell whether this says which scores count."""
        return self.kind in ("add", "fill")


def softmax_before(value: ir.Value) -> tuple[ir.Node | None, ir.Node | None]:
    """Return the Softmax whose output a value shows, and the Where that replaces NaN in between."""
    guard = None
    for _ in range(FAR):
        node = value.producer()
        if node is None or not is_standard(node) or not node.inputs:
            return None, None
        if node.op_type == "Softmax":
            return node, guard
        source = node.inputs[0]
        if node.op_type == "Where":
            check = source.producer() if source is not None else None
            zero, source = constant(input_at(node, 1)), input_at(node, 2)
            if check is None or check.op_type != "IsNaN" or check.inputs[0] is not source:
                return None, None
            if zero is None or zero.size != 1 or zero.any():
                return None, None
            guard = node
        elif node.op_type not in (*_VIEWS, "Cast"):
            return None, None
        if source is None:
            return None, None
        value = source
    return None, None


def scores_before(value: ir.Value | None, left: int) -> int | None:
    """Return how many nodes lie between a value and the product that computes it, None where there is none near."""
    node = value.producer() if value is not None else None
    if node is None or not is_standard(node) or left <= 0:
        return None
    if node.op_type == "MatMul":
        return None if any(constant(v) is not None for v in node.inputs) else 0
    if node.op_type in (*_VIEWS, "Cast", "Div"):
        sources = node.inputs[:1]
    elif node.op_type in ("Mul", "Add", "Tanh", *_FUNCTIONS):
        sources = node.inputs
    elif node.op_type == "Where":
        sources = node.inputs[1:]
    else:
        return None
    found = [far for source in sources if (far := scores_before(source, left - 1)) is not None]
    return min(found) + 1 if found else None


def walk(
    weights: ir.Value, axes: list[Axis], softmax: ir.Node
) -> tuple[ir.Node, list[Step], list[Axis], bool] | Refused:
    """Walk from the weights to the product of queries and keys."""
    value, at, single = weights, axes, False
    steps: list[Step] = []
    passed = False
    for _ in range(2 * FAR):
        node = value.producer()
        assert node is not None
        if not _is_private(value):
            return Refused("attention not fused: its weights or scores have other readers")
        if node.op_type == "MatMul":
            if not passed:
                break
            return node, steps[::-1], at, single
        if node is softmax:
            axis = node.attributes.get_int("axis", 1 if node_opset(node) < 13 else -1)
            if axis not in (-1, len(at) - 1) or expanded(at[-1]) != expanded(axes[-1]):
                return Refused("attention not fused: the Softmax is not over the keys alone")
            passed = True
        back = _step(node, value, at, passed)
        if isinstance(back, Refused):
            return back
        value, at, step = back
        if step is not None:
            steps.append(step)
        single = single or (node is softmax and value.dtype == ir.DataType.FLOAT != weights.dtype)
    return Refused("attention not fused: too many operators between the two products")


def _is_private(value: ir.Value) -> bool:
    """Tell whether a value is read by one node, or by the two that guard against NaN."""
    if value.is_graph_output():
        return False
    readers = [use.node for use in value.uses()]
    return len(readers) == 1 or (len(readers) == 2 and {n.op_type for n in readers} == {"IsNaN", "Where"})


def _step(
    node: ir.Node, value: ir.Value, at: list[Axis], scores: bool
) -> tuple[ir.Value, list[Axis], Step | None] | Refused:
    """Go through one node between the two products, against the direction of the graph."""
    if not scores and node.op_type == "Where":
        inner = node.inputs[2]
        assert inner is not None
        return inner, at, None
    source = node.inputs[0]
    if node.op_type in ("Softmax", "Cast") and source is not None:
        if source.dtype not in FLOATS:
            return Refused(f"attention not fused: a {node.op_type} of a type that kernels do not take")
        return source, at, None
    if not scores or node.op_type in _VIEWS:
        axes = backward(node, at)
        if axes is None or source is None:
            return Refused(f"attention not fused: how a {node.op_type} turns the scores is not known")
        return source, axes, None
    if node.op_type == "Tanh" and source is not None:
        return source, at, Step("tanh", at)
    if node.op_type in ("Mul", "Div"):
        side, factor = scaled(node)
        return (
            (side, at, Step("scale", at, number=factor))
            if side is not None
            else Refused("attention not fused: the scores are scaled by what is no constant number")
        )
    if node.op_type == "Where":
        return _filled(node, at)
    far = [scores_before(v, FAR) if v is not None and _same_rank(v, at) else None for v in node.inputs]
    sides = [i for i, d in enumerate(far) if d is not None]
    if node.op_type != "Add" or not sides:
        return Refused(f"attention not fused: {node.op_type} between the scores and the Softmax")
    side_index = min(sides, key=lambda i: far[i] or 0)
    kept, mask = node.inputs[side_index], node.inputs[1 - side_index]
    assert kept is not None
    return kept, at, Step("add", at, mask)


def _same_rank(value: ir.Value, at: Sequence[Axis]) -> bool:
    return value.shape is not None and len(value.shape) == len(at)


def _filled(node: ir.Node, at: list[Axis]) -> tuple[ir.Value, list[Axis], Step | None] | Refused:
    for side, keeps in ((1, True), (2, False)):
        kept, fill = node.inputs[side], constant(node.inputs[3 - side])
        if fill is not None and fill.size == 1 and kept is not None and _same_rank(kept, at):
            number = float(fill.item())
            if number > -1e4:
                return Refused("attention not fused: scores are replaced by what does not mask them")
            return kept, at, Step("fill", at, node.inputs[0], number, keeps)
    return Refused("attention not fused: a Where between the scores and the Softmax that is no mask")


def scaled(node: ir.Node) -> tuple[ir.Value | None, float]:
    """Return what a Mul or Div by a constant number scales, and the factor; None where it is another thing."""
    for side in (0, 1):
        number, other = constant(node.inputs[1 - side]), node.inputs[side]
        if number is None or other is None or number.size != 1 or number.dtype.kind != "f":
            continue
        if other.shape is None or number.ndim > len(other.shape) or (node.op_type == "Div" and side == 1):
            continue
        factor = float(number.item())
        if node.op_type == "Div":
            factor = 1.0 / factor if factor else math.inf
        return (other, factor) if math.isfinite(factor) else (None, 1.0)
    return None, 1.0
