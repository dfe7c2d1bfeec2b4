"""Attention as its operators compute it: ``MatMul(Softmax(MatMul(Q, K^T) * scale + mask), V)``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from onnxedge.api import is_standard, sole_consumer
from onnxedge_passes.cleanup.worklist import Refused
from onnxedge_passes.fuse.attention.axes import Axis, Factor, backward, chosen, forward, fresh, learn
from onnxedge_passes.fuse.attention.shapes import sizes
from onnxedge_passes.fuse.attention.steps import FAR, FLOATS, Step, scaled, scores_before, softmax_before, walk

Shown = tuple[ir.Value, list[Axis]]


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
    softmax, guard = softmax_before(weights) if weights is not None else (None, None)
    if softmax is None or weights is None or values is None or softmax.inputs[0] is None:
        return None
    if scores_before(softmax.inputs[0], FAR) is None:
        return None
    axes = fresh(weights)
    if axes is None or not 2 <= len(axes) <= 4 or weights.dtype not in FLOATS:
        return Refused("attention not fused: rank or type of the weights is not known, or not one that kernels take")
    inner = walk(weights, axes, softmax)
    if isinstance(inner, Refused):
        return inner
    scores, steps, at, single = inner
    return _assembled(product, scores, axes, at, steps, guard is not None, single)


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
    for _ in range(2 * FAR):
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
        back = chosen(node, value, axes) or backward(node, axes)
        if back is None or node.inputs[0] is None:
            break
        value, axes = node.inputs[0], back
        chain.append((value, axes))
    return Operand(chain, scale)


def ends_of(value: ir.Value, axes: list[Axis]) -> list[Shown]:
    """Follow a value along the graph, through views that alone read it."""
    ends: list[Shown] = [(value, axes)]
    for _ in range(FAR):
        reader = sole_consumer(value)
        if reader is None or reader.inputs[0] is not value or reader.graph is not value.producer().graph:  # type: ignore[union-attr]
            break
        further = forward(reader, axes)
        if further is None:
            break
        value, axes = reader.outputs[0], further
        ends.append((value, axes))
    return ends
