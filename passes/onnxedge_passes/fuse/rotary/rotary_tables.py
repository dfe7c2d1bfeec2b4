"""Cosines and sines of a rotary embedding in the forms that kernels take, written once for all that read them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import onnx_ir as ir

from onnxedge.api import (
    Context,
    constant,
    drop_if_unused,
    graph_of,
    insert_after,
    insert_before,
    is_standard,
    new_initializer,
)
from onnxedge_passes.cleanup.axes import named_axes
from onnxedge_passes.cleanup.worklist import node_opset
from onnxedge_passes.fuse.attention.shapes import Size, sizes
from onnxedge_passes.fuse.rotary.rotary_pairs import Rotation

_FAR = 16  #: nodes between a table and what shows that each of its numbers stands in it twice
_POINTWISE = ("Cos", "Sin", "Cast", "Identity", "Neg")


class Tables:
    """Write the tables that a call of the kernel reads.

    Args:
        node: the one that ends the embedding.
        found: the rotation of ``[B, H, T, D]`` or ``[B, T, H, D]``.
        tokens: the axis of tokens, 2 or 1.
        batched: whether each sample has positions of its own.
        context: keeps what was written for others.
    """

    def __init__(self, node: ir.Node, found: Rotation, tokens: int, *, batched: bool, context: Context) -> None:
        self.node, self.x, self.tokens, self.batched = node, found.x, tokens, batched
        self.interleaved, self.whole, self.column = found.interleaved, found.whole, found.column
        self.graph = graph_of(node)
        self.made: dict[tuple[object, ...], ir.Value] = context.analysis("fuse-rotary-embedding: tables", dict)
        self.after: ir.Node | None = None
        self.before: ir.Node = node

    def repeats(self, value: ir.Value | None, left: int = _FAR) -> bool:
        """Tell whether both features of each pair have the same number."""
        if self.whole:
            return True
        array = constant(value)
        if array is not None:
            count = array.shape[-1] if array.ndim else 0
            if count % 2:
                return False
            pairs = (array[..., ::2], array[..., 1::2]) if self.interleaved else np.split(array, 2, axis=-1)
            return bool(np.array_equal(pairs[0], pairs[1]))
        node = value.producer() if value is not None else None
        if value is None or node is None or not is_standard(node) or left <= 0:
            return False
        if node.op_type in _POINTWISE:
            return self.repeats(node.inputs[0], left - 1)
        if node.op_type in ("Mul", "Div", "Add"):
            return all(self._is_one(source) or self.repeats(source, left - 1) for source in node.inputs)
        if node.op_type in ("Squeeze", "Unsqueeze"):
            return _keeps_last(node) and self.repeats(node.inputs[0], left - 1)
        if node.op_type == "Gather" and value.shape is not None:
            data = node.inputs[0]
            rank = len(data.shape) if data is not None and data.shape is not None else 0
            return rank > 1 and node.attributes.get_int("axis", 0) % rank < rank - 1 and self.repeats(data, left - 1)
        return self._twice(value) is not None

    def _is_one(self, value: ir.Value | None) -> bool:
        return value is not None and value.shape is not None and (not len(value.shape) or value.shape[-1] == 1)

    def _twice(self, value: ir.Value) -> ir.Value | None:
        """Return what stands in a value twice, side by side, None where that is not seen at once."""
        node = value.producer()
        if node is None or node.op_type != "Concat" or not is_standard(node) or value.shape is None or self.interleaved:
            return None
        last = node.attributes.get_int("axis", 0) in (-1, len(value.shape) - 1)
        return node.inputs[0] if last and len(node.inputs) == 2 and node.inputs[0] is node.inputs[1] else None

    def table(self, value: ir.Value) -> ir.Value:
        """Return ``[T, D/2]``, or ``[B * T, D/2]`` where each sample has positions of its own."""
        return self._written(value, (-1, self._half(value)), whole=self.whole)

    def batched_table(self, value: ir.Value) -> ir.Value:
        """Return ``[B, T, D/2]``."""
        half = self._half(value)
        if self.batched:
            first = value.shape[0] if value.shape is not None else None
            return self._written(value, (first if isinstance(first, int) else 0, -1, half), whole=self.whole)
        single = self._written(value, (1, -1, half), whole=self.whole)
        dims = self.x.shape
        if dims is not None and dims[0] == 1:
            return single
        if dims is not None and isinstance(dims[0], int):
            size = dims[0]
            return self._once(
                f"expanded {size}", value, lambda: self._put("Expand", [single, self._ints([size, 1, 1])], like=value)
            )
        self.after, self.before = None, self.node
        batch = self._put("Shape", [self.x], integer=True, start=0, end=1)
        target = self._put("Concat", [batch, self._ints([1, 1])], integer=True, axis=0)
        return self._put("Expand", [single, target], like=value)

    def _written(self, value: ir.Value, shape: tuple[int, ...], *, whole: bool) -> ir.Value:
        """Return one number for each pair, in a shape.

        As the graph makes the table, but of one number for each pair and in that shape from the start, so that neither
        what writes each number twice nor views between are needed.

        Args:
            value: the table, or what it is made of.
            shape: ``[T, D/2]`` or ``[B, T, D/2]``; -1 for T, 0 for a B that the first axis of ``value`` has.
            whole: whether ``value`` has one number for each pair.
        """
        node, twice = value.producer(), None if whole else self._twice(value)
        if twice is not None:
            return self._written(twice, shape, whole=True)
        if (whole and self._has(value, shape)) or node is None or node.graph is not self.node.graph:
            return self._shown(value, shape, whole=whole)
        source = node.inputs[0] if node.inputs and is_standard(node) else None
        if source is None or constant(value) is not None:
            return self._shown(value, shape, whole=whole)
        if node.op_type == "Identity" or (_is_view(node) and (whole or _keeps_last(node))):
            if shape[0] == 0 and (_first(value) is None or _first(source) != _first(value)):
                return self._shown(value, shape, whole=whole)
            return self._written(source, shape, whole=whole)
        inputs = [v for v in node.inputs if v is not None and not _is_number(v)]
        if node.op_type not in (*_POINTWISE, "Mul", "Div", "Add") or len(inputs) != 1:
            return self._shown(value, shape, whole=whole)
        inner = self._written(inputs[0], shape, whole=whole)
        op_type, attributes = node.op_type, cast(dict[str, Any], dict(node.attributes))
        operands = [inner if v is inputs[0] else v for v in node.inputs if v is not None]

        def write() -> ir.Value:
            made = self._put(op_type, operands, like=value, **attributes)
            made.shape = inner.shape
            return made

        return self._once(f"made {shape}", value, write, whole)

    def _has(self, value: ir.Value, shape: tuple[int, ...]) -> bool:
        """Tell whether a value, of as many elements, has a shape."""
        dims = sizes(value)
        fits = dims is not None and len(dims) == len(shape) and dims[-1] == shape[-1]
        return fits and (len(shape) == 2 or shape[0] in (0, _first(value)))

    def _shown(self, value: ir.Value, shape: tuple[int, ...], *, whole: bool) -> ir.Value:
        def write() -> ir.Value:
            part = value if whole else self._halved(value, shape[-1])
            return part if whole and self._has(part, shape) else self._reshape(part, shape)

        return self._once(f"shown {shape}", value, write, whole)

    def positions(self, value: ir.Value) -> ir.Value:
        """Return the row of the table for each token, or the row of the first one."""
        if not self.batched:
            return self._once("first", value, lambda: self._ints([0]))
        return self._once("rows", value, lambda: self._rows(value))

    def _rows(self, value: ir.Value) -> ir.Value:
        dims = sizes(value)
        batch, tokens = (dims[0], dims[self.tokens]) if dims is not None else (None, None)
        if isinstance(batch, int) and isinstance(tokens, int):
            rows = np.arange(batch * tokens, dtype=np.int64).reshape(batch, tokens)
            return new_initializer(self.graph, rows, "rotary_rows")
        shape = self._put("Shape", [value], integer=True)
        sides = self._put("Gather", [shape, self._ints([0, self.tokens])], integer=True)
        axes: list[ir.Value] = [self._ints([0])] if node_opset(self.node) >= 18 else []
        attributes = {"keepdims": 0} if axes else {"keepdims": 0, "axes": [0]}
        count = self._put("ReduceProd", [sides, *axes], integer=True, **attributes)
        row = self._put("Range", [self._int(0), count, self._int(1)], integer=True)
        return self._put("Reshape", [row, sides], integer=True)

    def _once(self, kind: str, value: ir.Value, write: Callable[[], ir.Value], whole: bool = False) -> ir.Value:
        key = (kind, value, id(self.graph), self.interleaved, whole)
        old = self.made.get(key)
        if old is not None and old.uses():
            return old
        producer = value.producer()
        own = producer is not None and producer.graph is self.node.graph
        self.after, self.before = producer if own else None, self.graph[0]
        new: ir.Value = write()
        self.made[key] = new
        return new

    def _half(self, value: ir.Value) -> int:
        dims = sizes(value)
        size = dims[-2 if self.column else -1] if dims is not None else None
        assert isinstance(size, int)
        return size if self.whole else size // 2

    def _halved(self, value: ir.Value, half: int) -> ir.Value:
        """Return one number for each pair of a table that has two."""
        array = constant(value)
        if array is not None:
            return new_initializer(self.graph, array[..., ::2] if self.interleaved else array[..., :half], "rotary")
        if node_opset(self.node) < 10 and not self.interleaved:
            return self._put("Slice", [value], like=value, axes=[-1], starts=[0], ends=[half])
        step = 2 if self.interleaved else 1
        bounds = [self._ints([number]) for number in (0, half * step, -1, step)]
        return self._put("Slice", [value, *bounds], like=value)

    def _reshape(self, value: ir.Value, shape: tuple[int, ...]) -> ir.Value:
        array = constant(value)
        if array is not None:
            drop_if_unused(value)
            return new_initializer(self.graph, array.reshape(shape), "rotary")
        made = self._put("Reshape", [value, self._ints(list(shape))], like=value)
        made.shape = ir.Shape([size if size > 0 else None for size in shape])
        return made

    def _put(
        self,
        op_type: str,
        inputs: Sequence[ir.Value],
        *,
        like: ir.Value | None = None,
        integer: bool = False,
        **attributes: Any,
    ) -> ir.Value:
        options: dict[str, Any] = {"attributes": attributes, "outputs": [f"rotary_{op_type.lower()}"]}
        if self.after is None:
            node = insert_before(self.before, op_type, inputs, **options)
        else:
            node = self.after = insert_after(self.after, op_type, inputs, **options)
        value = node.outputs[0]
        value.type = like.type if like is not None else ir.TensorType(ir.DataType.INT64) if integer else None
        return value

    def _ints(self, numbers: list[int]) -> ir.Value:
        return new_initializer(self.graph, np.array(numbers, np.int64), "rotary_numbers")

    def _int(self, number: int) -> ir.Value:
        return new_initializer(self.graph, np.array(number, np.int64), "rotary_number")


def _first(value: ir.Value) -> Size | None:
    dims = sizes(value)
    return dims[0] if dims else None


def _is_number(value: ir.Value) -> bool:
    """Tell whether a value is one number that does not change the rank of what it is combined with."""
    array = constant(value)
    return array is not None and array.size == 1 and array.ndim <= 2


def _is_view(node: ir.Node) -> bool:
    """Tell whether a node only adds axes, or removes axes that are known to be 1."""
    if node.op_type == "Unsqueeze":
        return True
    dims = sizes(node.inputs[0]) if node.op_type == "Squeeze" and node.inputs[0] is not None else None
    axes = named_axes(node)
    if dims is None or axes is None:
        return False
    return all(-len(dims) <= axis < len(dims) and dims[axis] == 1 for axis in axes)


def _keeps_last(node: ir.Node) -> bool:
    """Tell whether a Squeeze or Unsqueeze leaves the last axis of its input the last."""
    source, output = node.inputs[0], node.outputs[0]
    axes = named_axes(node)
    if axes is None or source is None or source.shape is None:
        return False
    wider = output if node.op_type == "Unsqueeze" else source
    if wider.shape is None:
        return False
    rank = len(wider.shape)
    return all(axis % rank != rank - 1 for axis in axes)
