"""Rotary position embedding from raw operators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxedge.api import (
    Accuracy,
    Context,
    constant,
    graph_of,
    insert_before,
    is_standard,
    new_initializer,
    replace_uses,
    sole_consumer,
)
from onnxedge_passes.cleanup.worklist import Outcome, Refused, Rule, is_exported_twice, node_opset, retire
from onnxedge_passes.fuse.attention.axes import Axis, fresh
from onnxedge_passes.fuse.attention.find import Shown, follow
from onnxedge_passes.fuse.attention.forms import tokens_first
from onnxedge_passes.fuse.attention.shapes import Size, is_named, sizes
from onnxedge_passes.fuse.rotary.rotary_pairs import Rotation, rotation, same_shape
from onnxedge_passes.fuse.rotary.rotary_tables import Tables


@dataclass(frozen=True, kw_only=True)
class FuseRotaryEmbedding(Rule):
    """Fuse the operators that turn pairs of features by an angle that depends on the position into one.

    Before: ``y = x * cos + Concat(-x[D/2:], x[:D/2]) * sin`` with ``x: [B, H, T, D]`` or ``[B, T, H, D]`` and the two
    halves of cos and sin equal; or as complex numbers, ``y = Concat(a * cos - b * sin, a * sin + b * cos)`` with the
    first and the second features ``a, b: [.., D/2]`` of all pairs; in both, halves or neighbours may be pairs
    After:  ``y = com.microsoft::RotaryEmbedding(x, position, cos[:D/2], sin[:D/2])`` where the target has that kernel,
    else, and where cos and sin have a batch, ``RotaryEmbedding`` from opset 23

    Cos and sin are computed of one number for each pair from the start: ``Concat(f, f)`` in front of them goes.
    How the features are moved is read off what the nodes do to a sample. ONNX Runtime 1.31 on the CPU takes 0.4 to 0.7
    of the time of the single operators (128 tokens, 12 heads of 64: 28 us against 68 us), and 0.1 to 0.5 where they are
    written as complex numbers (24 us against 158 us).
    Left alone: cos and sin whose halves are not known to be equal; other types than float32 and float16; a batch of
    positions that is not known to be the batch of x; targets and opsets with no kernel.
    accuracy: rounding. Source: Su et al. 2021, arXiv:2104.09864; ONNX RotaryEmbedding, opset 23.
    """

    name: ClassVar[str] = "fuse-rotary-embedding"
    accuracy: ClassVar[Accuracy] = "rounding"
    roots: ClassVar[tuple[str, ...]] = ("Add", "Concat")

    def rewrite(self, node: ir.Node, context: Context) -> Outcome:
        """Find what is turned, and the kernel for it."""
        found = rotation(node)
        if found is None:
            return None
        contributed = context.target.has_kernel("RotaryEmbedding", "com.microsoft")
        contributed = contributed and found.x.dtype == ir.DataType.FLOAT
        standard = context.target.has_kernel("RotaryEmbedding", opset=node_opset(node))
        if not (contributed or standard):
            return _refused(f"target {context.target.name} has no kernel for it at this opset")
        have = sizes(found.x)
        if have is None or len(have) != (5 if found.paired else 4) or found.x.dtype not in _FLOATS:
            return _refused("kernels take float32 and float16 of rank 4")
        dims = [*have[:3], 2 * have[3]] if found.paired and isinstance(have[3], int) else have
        tokens, batched, reason = _positions(found, dims)
        if reason:
            return _refused(reason)
        tables = Tables(node, found, tokens, batched=batched, context=context)
        if not (tables.repeats(found.cos) and tables.repeats(found.sin)):
            return _refused("cos and sin are not known to be equal for both features of a pair")
        if standard and (batched or (dims[0] == 1 and constant(found.cos) is None)):
            contributed = False  # the other would need rows of positions, or the tables without their batch
        return _call(node, found, dims, tables, contributed=contributed)


_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)


def _refused(reason: str) -> Refused:
    return Refused(f"rotary embedding not fused: {reason}")


def _positions(found: Rotation, dims: Sequence[Size]) -> tuple[int, bool, str]:
    """Return the axis of tokens, whether each sample has positions of its own, and why there is no telling."""
    turns = [sizes(value) for value in (found.cos, found.sin)]
    if found.column:
        turns = [turn[:-1] if turn is not None and len(turn) > 1 and turn[-1] == 1 else None for turn in turns]
    same = turns[0] == turns[1] or same_shape(found.cos, found.sin)
    if turns[0] is None or not same or not 2 <= len(turns[0]) <= 4:
        return 0, False, "the shapes of cos and sin are not known to be equal"
    where = [1] * (4 - len(turns[0])) + turns[0]
    fit = (axis for axis in (2, 1) if where[3 - axis] == 1 and (where[axis] == 1) == (dims[axis] == 1))
    tokens = next(fit, 0)
    width = dims[3] // (2 if found.whole else 1) if isinstance(dims[3], int) else None
    if not tokens or where[3] != width:
        return 0, False, "cos and sin are not those of batch and position alone"
    batched = where[0] != 1
    if batched and (where[0] != dims[0] or not (isinstance(dims[0], int) or is_named(dims[0]))):
        return 0, False, "the batch of positions is not known to be that of the input"
    if tokens == 1 and not isinstance(dims[2], int):
        return 0, False, "the number of heads is not known"
    return tokens, batched, ""


def _call(node: ir.Node, found: Rotation, dims: Sequence[Size], tables: Tables, *, contributed: bool) -> ir.Value:
    heads, features = dims[1 if tables.tokens == 2 else 2], dims[3]
    assert isinstance(features, int)
    attributes: dict[str, int] = {"interleaved": 1} if found.interleaved else {}
    flat = _tokens_first(node, found, tables.tokens) if isinstance(heads, int) else None
    if flat is not None and isinstance(heads, int):
        attributes["num_heads"] = heads
        flat.shape = flat.shape or _shape([dims[0], dims[tables.tokens], heads * features])
    source = flat or (_reshaped(node, found.x, [0, 0, 0, features], dims) if found.paired else found.x)
    if contributed:
        inputs = [source, tables.positions(found.cos), tables.table(found.cos), tables.table(found.sin)]
    else:
        inputs = [source, tables.batched_table(found.cos), tables.batched_table(found.sin)]
    domain = "com.microsoft" if contributed else ""
    call = insert_before(
        node, "RotaryEmbedding", inputs, attributes=attributes, domain=domain, name=node.name, like=node.outputs
    )
    output = call.outputs[0]
    output.shape = source.shape
    if flat is not None:
        apart = [dims[axis] for axis in (0, 2, 1, 3)] if tables.tokens == 2 else dims
        output = _reshaped(node, output, [0, 0, heads, features], apart)
        if tables.tokens == 2:
            output = insert_before(node, "Transpose", [output], attributes={"perm": [0, 2, 1, 3]}).outputs[0]
            output.type, output.shape = found.x.type, _shape(dims)
    old = node.outputs[0]
    if found.stacked:
        reader = sole_consumer(old)
        if reader is not None and reader.op_type == "Reshape" and is_standard(reader) and reader.graph is node.graph:
            end = reader.outputs[0]
            old = end if sizes(end) == dims and not is_exported_twice(end) else old
        if old is node.outputs[0]:
            output = _reshaped(node, output, [0, 0, 0, features // 2, 2], [*dims[:3], features // 2, 2])
    last = old.producer()
    replace_uses(old, output)
    retire(last)
    return output


def _tokens_first(node: ir.Node, found: Rotation, tokens: int) -> ir.Value | None:
    """Return the input as ``[B, T, H * D]`` where the graph has it so; None where only heads-first is at hand.

    What comes behind, attention above all, can then take over the moving of the heads.
    """
    axes = fresh(found.x)
    if axes is None:
        return None
    heads = 3 - tokens
    chain = _unscaled(found.x, axes)[1 if tokens == 2 else 0 :]
    view = tokens_first(chain, axes[0], axes[tokens], axes[heads], tuple(f for axis in axes[3:] for f in axis))
    return view.build(node, "rotary") if view is not None else None


def _unscaled(value: ir.Value, axes: list[Axis]) -> list[Shown]:
    """Return a value and the values that it is a view of, but not what a Mul or Div by a number is a multiple of."""
    operand = follow(value, axes)
    return operand.chain if operand.scale == 1.0 and operand.chain[0][0] is value else [(value, axes)]


def _reshaped(node: ir.Node, value: ir.Value, shape: Sequence[Size], dims: Sequence[Size]) -> ir.Value:
    target = new_initializer(graph_of(node), np.array(shape, np.int64), "rotary_shape")
    new = insert_before(node, "Reshape", [value, target]).outputs[0]
    new.type, new.shape = value.type, _shape(dims)
    return new


def _shape(dims: Sequence[Size]) -> ir.Shape:
    return ir.Shape([d if isinstance(d, int | str) else None for d in dims])
