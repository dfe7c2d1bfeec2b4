"""Attention as its operators compute it: ``MatMul(Softmax(MatMul(Q, K^T) * scale + mask), V)``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import onnx_ir as ir

from onnxedge.api import constant, is_standard, sole_consumer
from onnxedge_passes.cleanup.worklist import Refused, input_at, node_opset
from onnxedge_passes.fuse.attention.axes import Axis, Factor, backward, chosen, expanded, forward, fresh, learn, sizes

_FAR = 12  #: nodes between a product and the Softmax behind or before it
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
_VIEWS = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Dropout", "Expand")
_FUNCTIONS = ("Sub", "Tanh", "Clip", "Min", "Max", "Pow", "Neg", "Sigmoid", "Relu")  #: no kernel has them in between

Shown = tuple[ir.Value, list[Axis]]


@dataclass(frozen=True)
class Step:
    """Hold one thing that is done to the scores before the Softmax.

    Attributes:
        kind: ``scale``, ``add`` a mask, or ``fill`` where a condition does not hold.
        axes: of the scores at that place.
        value: what is added, or the condition.
        number: factor, or what is filled in.
        keeps: the condition's outcome that keeps the scores.
    """

    kind: Literal["scale", "add", "fill"]
    axes: list[Axis]
    value: ir.Value | None = None
    number: float = 1.0
    keeps: bool = True


@dataclass(frozen=True)
class Operand:
    """Hold a factor of a product and the values that it is a view of, the farthest one last.

    Attributes:
        chain: value and its axes.
        scale: what the elements of the last value are multiplied by on the way.
    """

    chain: list[Shown]
    scale: float


@dataclass(frozen=True)
class Found:
    """Hold an attention block.

    Attributes:
        product: the second MatMul, which it ends with.
        scores: the first MatMul.
        batch: axes before the last two, of scores and output, as the MatMul sees them.
        queries, keys: axes over which query and key tokens are counted.
        depth, width: axes of a query's and of a value's features.
        query, key, value: operands.
        steps: what is done to the scores, in order.
        guarded: whether NaN among the weights is replaced by 0.
        single: whether the Softmax is computed in float32 though the operands are not.
        ends: the output and its views, the farthest one last.
    """

    product: ir.Node
    scores: ir.Node
    batch: list[Axis]
    queries: Axis
    keys: Axis
    depth: Axis
    width: Axis
    query: Operand
    key: Operand
    value: Operand
    steps: list[Step]
    guarded: bool
    single: bool
    ends: list[Shown] = field(default_factory=list)


def find(product: ir.Node) -> Found | Refused | None:
    """Return the attention block that ends in a MatMul, None where no Softmax stands between two products."""
    weights, values = product.inputs[0], product.inputs[1]
    softmax, guard = _softmax_before(weights) if weights is not None else (None, None)
    if softmax is None or weights is None or values is None or softmax.inputs[0] is None:
        return None
    if _scores_before(softmax.inputs[0], _FAR) is None:
        return None
    axes = fresh(weights)
    if axes is None or not 2 <= len(axes) <= 4 or weights.dtype not in _FLOATS:
        return Refused("attention not fused: rank or type of the weights is not known, or not one that kernels take")
    inner = _inside(weights, axes, softmax)
    if isinstance(inner, Refused):
        return inner
    scores, steps, at, single = inner
    return _assembled(product, scores, axes, at, steps, guard is not None, single)


def _softmax_before(value: ir.Value) -> tuple[ir.Node | None, ir.Node | None]:
    """Return the Softmax whose output a value shows, and the Where that replaces NaN in between."""
    guard = None
    for _ in range(_FAR):
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


def _scores_before(value: ir.Value | None, left: int) -> int | None:
    """Return how many nodes lie between a value and the product that computes it, None where there is none near."""
    node = value.producer() if value is not None else None
    if node is None or not is_standard(node) or left <= 0:
        return None
    if node.op_type == "MatMul":
        return None if any(constant(v) is not None for v in node.inputs) else 0
    if node.op_type in (*_VIEWS, "Cast", "Div"):
        sources = node.inputs[:1]
    elif node.op_type in ("Mul", "Add", *_FUNCTIONS):
        sources = node.inputs
    elif node.op_type == "Where":
        sources = node.inputs[1:]
    else:
        return None
    found = [far for source in sources if (far := _scores_before(source, left - 1)) is not None]
    return min(found) + 1 if found else None


def _inside(
    weights: ir.Value, axes: list[Axis], softmax: ir.Node
) -> tuple[ir.Node, list[Step], list[Axis], bool] | Refused:
    """Walk from the weights to the product of queries and keys."""
    value, at, single = weights, axes, False
    steps: list[Step] = []
    passed = False
    for _ in range(2 * _FAR):
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
        if source.dtype not in _FLOATS:
            return Refused(f"attention not fused: a {node.op_type} of a type that kernels do not take")
        return source, at, None
    if not scores or node.op_type in _VIEWS:
        axes = backward(node, at)
        if axes is None or source is None:
            return Refused(f"attention not fused: how a {node.op_type} turns the scores is not known")
        return source, axes, None
    if node.op_type in ("Mul", "Div"):
        side, factor = scaled(node)
        return (side, at, Step("scale", at, number=factor)) if side is not None else Refused(
            "attention not fused: the scores are scaled by what is no constant number"
        )
    if node.op_type == "Where":
        return _filled(node, at)
    far = [_scores_before(v, _FAR) if v is not None and _same_rank(v, at) else None for v in node.inputs]
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


def _assembled(
    product: ir.Node,
    scores: ir.Node,
    axes: list[Axis],
    at: list[Axis],
    steps: list[Step],
    guarded: bool,
    single: bool,
) -> Found | Refused:
    """Follow the three operands and the output."""
    query, key = scores.inputs
    value = product.inputs[1]
    if query is None or key is None or value is None:
        return Refused("attention not fused: an input of a product is missing")
    dims = [sizes(v) for v in (query, key, value)]
    if any(have is None for have in dims) or [len(d or ()) for d in dims] != [len(at), len(at), len(axes)]:
        return Refused("attention not fused: queries, keys and values differ in rank")
    if not all(v.dtype == value.dtype for v in (query, key)):
        return Refused("attention not fused: queries, keys and values differ in type")
    for have, shown in zip(dims, ([*at[:-1]], [*at[:-2], (), at[-1]], [*axes[:-2], axes[-1]]), strict=True):
        for size, axis in zip(have or (), shown, strict=False):
            learn(axis, size)
    depth: Axis = _feature(dims[0], -1)
    width: Axis = _feature(dims[2], -1)
    batches = [_batch(have or [], batch) for have, batch in zip(dims, (at[:-2], at[:-2], axes[:-2]), strict=True)]
    if any(batch is None for batch in batches) or batches[0] != at[:-2]:
        return Refused("attention not fused: queries, keys or values are broadcast over the batch")
    found = Found(
        product=product,
        scores=scores,
        batch=axes[:-2],
        queries=at[-2],
        keys=at[-1],
        depth=depth,
        width=width,
        query=follow(query, [*(batches[0] or []), at[-2], depth]),
        key=follow(key, [*(batches[1] or []), depth, at[-1]]),
        value=follow(value, [*(batches[2] or []), axes[-1], width]),
        steps=steps,
        guarded=guarded,
        single=single,
    )
    found.ends.extend(ends_of(product.outputs[0], [*axes[:-1], width]))
    return found


def _feature(dims: Sequence[object] | None, axis: int) -> Axis:
    size = dims[axis] if dims is not None else None
    return () if size == 1 else (Factor(size),)


def _batch(dims: Sequence[object], batch: Sequence[Axis]) -> list[Axis] | None:
    """Return the leading axes of an operand; only the heads may be broadcast."""
    out: list[Axis] = []
    for axis, factors in enumerate(batch):
        if dims[axis] == 1 and factors and not (axis == 1 and len(batch) == 2):
            return None
        if dims[axis] != 1 and not factors:
            return None
        out.append(() if dims[axis] == 1 else factors)
    return out


def follow(value: ir.Value, axes: list[Axis]) -> Operand:
    """Follow an operand against the direction of the graph, through views and products with a number."""
    chain: list[Shown] = [(value, axes)]
    scale = 1.0
    for _ in range(2 * _FAR):
        node = value.producer()
        if node is None or not is_standard(node):
            break
        if node.op_type in ("Mul", "Div"):
            side, factor = scaled(node)
            if side is None:
                break
            value, scale = side, scale * factor
            chain = [(value, axes)]
            continue
        back = chosen(node, value, axes) if node.op_type in ("Gather", "Split") else backward(node, axes)
        if back is None or node.inputs[0] is None:
            break
        value, axes = node.inputs[0], back
        chain.append((value, axes))
    return Operand(chain, scale)


def ends_of(value: ir.Value, axes: list[Axis]) -> list[Shown]:
    """Follow a value along the graph, through views that alone read it."""
    ends: list[Shown] = [(value, axes)]
    for _ in range(_FAR):
        reader = sole_consumer(value)
        if reader is None or reader.inputs[0] is not value or reader.graph is not value.producer().graph:  # type: ignore[union-attr]
            break
        further = forward(reader, axes)
        if further is None:
            break
        value, axes = reader.outputs[0], further
        ends.append((value, axes))
    return ends
