"""Rotary position embedding from raw operators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from onnxedge.api import (
    Accuracy,
    Array,
    Context,
    constant,
    graph_of,
    insert_before,
    is_standard,
    new_initializer,
    replace_uses,
)
from onnxedge_passes.cleanup.worklist import Outcome, Refused, Rule, node_opset, retire
from onnxedge_passes.fuse.attention.axes import fresh, is_named, sizes
from onnxedge_passes.fuse.attention.find import follow
from onnxedge_passes.fuse.attention.forms import tokens_first
from onnxedge_passes.fuse.rotary_tables import Tables

_FAR = 8  #: nodes between a value and the same with its features turned
_LARGEST = 1 << 22  #: elements of the sample that shows how features are moved


@dataclass(frozen=True, kw_only=True)
class FuseRotaryEmbedding(Rule):
    """Fuse the operators that turn pairs of features by an angle that depends on the position into one.

    Before: ``y = x * cos + Concat(-x[D/2:], x[:D/2]) * sin`` with ``x: [B, H, T, D]`` or ``[B, T, H, D]`` and the two
    halves of cos and sin equal, or with neighbouring features as pairs
    After:  ``y = com.microsoft::RotaryEmbedding(x, position, cos[:D/2], sin[:D/2])`` where the target has that kernel,
    else ``RotaryEmbedding`` from opset 23

    How the features are moved is read off what the nodes do to a sample. ONNX Runtime 1.31 on the CPU takes 0.4 to 0.7
    of the time of the single operators (128 tokens, 12 heads of 64: 28 us against 68 us).
    Left alone: cos and sin whose halves are not known to be equal; other types than float32 and float16; a batch of
    positions that is not known to be the batch of x; targets and opsets with no kernel.
    accuracy: rounding. Source: Su et al. 2021, arXiv:2104.09864; ONNX RotaryEmbedding, opset 23.
    """

    name: ClassVar[str] = "fuse-rotary-embedding"
    accuracy: ClassVar[Accuracy] = "rounding"
    roots: ClassVar[tuple[str, ...]] = ("Add",)

    def rewrite(self, node: ir.Node, context: Context) -> Outcome:
        """Find what is turned, on either side of the Add."""
        products = [_factors(value) for value in node.inputs]
        for straight, turned in (products, products[::-1]):
            for x, cos in _orders(straight):
                for moved, sin in _orders(turned):
                    pairs = _pairs(moved, x)
                    if pairs:
                        return _fuse(node, x, cos, sin, context, interleaved=pairs == "neighbours")
        return None


def _factors(value: ir.Value | None) -> tuple[ir.Value, ir.Value] | None:
    node = value.producer() if value is not None else None
    if value is None or node is None or node.op_type != "Mul" or not is_standard(node):
        return None
    left, right = node.inputs
    return (left, right) if left is not None and right is not None and len(value.uses()) == 1 else None


def _orders(pair: tuple[ir.Value, ir.Value] | None) -> list[tuple[ir.Value, ir.Value]]:
    return [pair, pair[::-1]] if pair is not None else []


def _pairs(moved: ir.Value, x: ir.Value) -> str:
    """Say which features are pairs where ``moved`` is ``x`` turned by a right angle: ``halves`` or ``neighbours``."""
    node = moved.producer()
    if node is None or node.op_type not in ("Concat", "Reshape") or x.shape is None or not len(x.shape):
        return ""
    count = x.shape[-1]
    shape = [d if isinstance(d, int) else 2 for d in x.shape]
    if not isinstance(count, int) or count % 2 or count == 0 or np.prod(shape) > _LARGEST:
        return ""
    sample = np.broadcast_to(np.arange(1.0, count + 1), shape)
    found = _evaluated(moved, x, sample, _FAR)
    if found is None or found.shape != tuple(shape):
        return ""
    half, order = count // 2, np.arange(1.0, count + 1)
    turned = {
        "halves": np.concatenate([-order[half:], order[:half]]),
        "neighbours": np.stack([-order[1::2], order[::2]], axis=-1).reshape(-1),
    }
    return next((name for name, row in turned.items() if (found == row).all()), "")


def _evaluated(value: ir.Value | None, x: ir.Value, sample: Array, left: int) -> Array | None:
    """Return what moves of features make of a sample of x, None where another operator or value takes part."""
    if value is x:
        return sample
    node = value.producer() if value is not None else None
    if value is None or node is None or left <= 0 or not is_standard(node) or node.op_type not in _MOVES:
        return constant(value)
    inputs = [_evaluated(source, x, sample, left - 1) for source in node.inputs]
    if any(array is None and source is not None for array, source in zip(inputs, node.inputs, strict=True)):
        return None
    try:
        return _MOVES[node.op_type](node, inputs, next(i for i, v in enumerate(node.outputs) if v is value))
    except (ValueError, IndexError, TypeError):
        return None


def _given(node: ir.Node, inputs: list[Any], index: int, name: str) -> list[int] | None:
    if index < len(inputs) and inputs[index] is not None:
        return [int(i) for i in np.ravel(inputs[index])]
    found = node.attributes.get_ints(name, None)
    return list(found) if found is not None else None


def _slice(node: ir.Node, inputs: list[Any], output: int) -> Array:
    data: Array = inputs[0]
    starts, ends = _given(node, inputs, 1, "starts") or [], _given(node, inputs, 2, "ends") or []
    axes = _given(node, inputs, 3, "axes") or list(range(len(starts)))
    steps = _given(node, inputs, 4, "steps") or [1] * len(starts)
    index = [slice(None)] * data.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step < 1:
            raise ValueError("backwards")
        index[axis] = slice(start, end, step)
    return data[tuple(index)]


def _split(node: ir.Node, inputs: list[Any], output: int) -> Array:
    axis, count = node.attributes.get_int("axis", 0), len(node.outputs)
    parts = _given(node, inputs, 1, "split")
    where = list(np.cumsum(parts)[:-1]) if parts is not None else count
    return np.asarray(np.split(inputs[0], where, axis=axis)[output])


def _squeeze(node: ir.Node, inputs: list[Any], output: int) -> Array:
    axes = _given(node, inputs, 1, "axes")
    return np.asarray(np.squeeze(inputs[0], tuple(axes) if axes is not None else None))


def _reshape(node: ir.Node, inputs: list[Any], output: int) -> Array:
    data, shape = inputs
    return np.asarray(np.reshape(data, [data.shape[i] if d == 0 else int(d) for i, d in enumerate(shape)]))


_MOVES: dict[str, Callable[[ir.Node, list[Any], int], Array]] = {
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Reshape": _reshape,
    "Neg": lambda node, inputs, output: np.negative(inputs[0]),
    "Mul": lambda node, inputs, output: np.multiply(inputs[0], inputs[1]),
    "Identity": lambda node, inputs, output: np.asarray(inputs[0]),
    "Unsqueeze": lambda node, inputs, output: np.expand_dims(
        inputs[0], tuple(_given(node, inputs, 1, "axes") or [inputs[0].ndim])
    ),
    "Concat": lambda node, inputs, output: np.concatenate(inputs, axis=node.attributes.get_int("axis", 0)),
    "Gather": lambda node, inputs, output: np.take(inputs[0], inputs[1], axis=node.attributes.get_int("axis", 0)),
}


def _fuse(
    node: ir.Node, x: ir.Value, cos: ir.Value, sin: ir.Value, context: Context, *, interleaved: bool
) -> ir.Value | Refused:
    contributed = context.target.has_kernel("RotaryEmbedding", "com.microsoft") and x.dtype == ir.DataType.FLOAT
    standard = context.target.has_kernel("RotaryEmbedding", opset=node_opset(node))
    if not (contributed or standard):
        return Refused(
            f"rotary embedding not fused: target {context.target.name} has no kernel for it at this opset"
        )
    dims, turns = sizes(x), [sizes(cos), sizes(sin)]
    if dims is None or len(dims) != 4 or x.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
        return Refused("rotary embedding not fused: kernels take float32 and float16 of rank 4")
    if turns[0] is None or turns[0] != turns[1] or not 2 <= len(turns[0]) <= 4:
        return Refused("rotary embedding not fused: the shapes of cos and sin are not known to be equal")
    where = [1] * (4 - len(turns[0])) + turns[0]
    tokens = 2 if where[1] == 1 else 1 if where[2] == 1 else 0
    if not tokens or where[3] != dims[3] or (where[tokens] == 1) != (dims[tokens] == 1):
        return Refused("rotary embedding not fused: cos and sin are not those of batch and position alone")
    batched = where[0] != 1
    if batched and (where[0] != dims[0] or not (isinstance(dims[0], int) or is_named(dims[0]))):
        return Refused("rotary embedding not fused: the batch of positions is not known to be that of the input")
    if tokens == 1 and not isinstance(dims[2], int):
        return Refused("rotary embedding not fused: the number of heads is not known")
    tables = Tables(node, x, tokens, batched=batched, interleaved=interleaved, context=context)
    if not (tables.repeats(cos) and tables.repeats(sin)):
        return Refused("rotary embedding not fused: cos and sin are not known to be equal for both features of a pair")
    return _call(node, x, tables, cos, sin, contributed=contributed)


def _call(node: ir.Node, x: ir.Value, tables: Tables, cos: ir.Value, sin: ir.Value, *, contributed: bool) -> ir.Value:
    attributes: dict[str, int] = {"interleaved": 1} if tables.interleaved else {}
    dims = x.shape
    assert dims is not None
    heads, features = dims[1 if tables.tokens == 2 else 2], dims[3]
    source = _tokens_first(node, x, tables.tokens, heads, features)
    if source is not x:
        attributes["num_heads"] = int(heads)  # type: ignore[arg-type]
    if contributed:
        inputs = [source, tables.positions(cos), tables.table(cos), tables.table(sin)]
    else:
        inputs = [source, tables.batched_table(cos), tables.batched_table(sin)]
    call = insert_before(
        node,
        "RotaryEmbedding",
        inputs,
        attributes=attributes,
        domain="com.microsoft" if contributed else "",
        name=node.name,
        like=node.outputs,
    )
    output = call.outputs[0]
    if source is not x:
        output.shape = source.shape
        output = _reshaped(node, output, [0, 0, heads, features])
        if tables.tokens == 2:
            output.shape = ir.Shape([dims[axis] for axis in (0, 2, 1, 3)])
            output = insert_before(
                node, "Transpose", [output], attributes={"perm": [0, 2, 1, 3]}, like=node.outputs
            ).outputs[0]
        output.shape = node.outputs[0].shape
    replace_uses(node.outputs[0], output)
    retire(node)
    return output


def _tokens_first(node: ir.Node, x: ir.Value, tokens: int, heads: object, features: object) -> ir.Value:
    """Return the input as ``[B, T, H * D]`` where the graph has it so; x where only heads-first is at hand.

    What comes behind, attention above all, can then take over the moving of the heads.
    """
    if not isinstance(heads, int) or not isinstance(features, int):
        return x
    if tokens == 1:
        return _reshaped(node, x, [0, 0, heads * features])
    axes = fresh(x)
    operand = follow(x, axes) if axes is not None else None
    if axes is None or operand is None or operand.scale != 1.0:
        return x
    view = tokens_first(operand.chain[1:], axes[0], axes[2], axes[1], axes[3])
    return view.build(node, "rotary") if view is not None else x


def _reshaped(node: ir.Node, value: ir.Value, shape: list[Any]) -> ir.Value:
    target = new_initializer(graph_of(node), np.array(shape, np.int64), "rotary_shape")
    new = insert_before(node, "Reshape", [value, target]).outputs[0]
    new.type = value.type
    return new
