"""The sizes that operators give, from those of what they read: one rule an operator."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

from onnxedge.api import Array, constant
from onnxedge_passes.cleanup.axes import REDUCTIONS
from onnxedge_passes.cleanup.shapes import symbolic
from onnxedge_passes.cleanup.shapes.symbolic import Expr, Item, symbol
from onnxedge_passes.cleanup.worklist import input_at, node_opset

Row = list[Item]
Elements = Callable[[ir.Value], Array | None]


def broadcast(rows: Sequence[Row], owner: ir.Value) -> Row:
    """Return the sizes after numpy's broadcasting; where it depends on sizes a new symbol of ``owner`` stands."""
    if all(row == rows[0] for row in rows[1:]):
        return list(rows[0])
    rank = max(len(row) for row in rows)
    result: Row = []
    for axis in range(-rank, 0):
        items = {row[axis] for row in rows if len(row) >= -axis and row[axis] != 1}
        numbers = [item for item in items if isinstance(item, int)]
        common = symbolic.broadcast(items)
        if common is not None:
            result.append(common)
        else:
            result.append(numbers[0] if numbers else symbol((owner, axis + rank)))
    return result


class Operands:
    """What rules may ask of a node's other inputs."""

    def __init__(self, node: ir.Node, sizes_of: Callable[[ir.Value | None], Row | None], elements: Elements) -> None:
        self._node, self._sizes_of, self._elements = node, sizes_of, elements

    def sizes(self, index: int) -> Row:
        """Return the sizes of an operand.

        Raises:
            ValueError: its rank is not known.
        """
        row = self._sizes_of(input_at(self._node, index))
        if row is None:
            raise ValueError("rank is not known")
        return row

    def items(self, index: int, attribute: str = "") -> Row | None:
        """Return the elements of an operand, or of the attribute that it was in older opsets.

        Raises:
            ValueError: they are not known.
        """
        value = input_at(self._node, index)
        if value is None:
            given = self._node.attributes.get_ints(attribute, None) if attribute else None
            return list(given) if given is not None else None
        found = self._elements(value)
        if found is None:
            raise ValueError("operand is not known")
        return found.ravel().tolist()

    def numbers(self, index: int, attribute: str = "") -> list[int] | None:
        """Return the same where all of them are known as numbers.

        Raises:
            ValueError: they are not.
        """
        items = self.items(index, attribute)
        if items is not None and any(isinstance(item, Expr) for item in items):
            raise ValueError("operand is not known")
        return items  # type: ignore[return-value]


Rule = Callable[[ir.Node, Row, Operands], Sequence[Row | None]]


def _reshape(node: ir.Node, data: Row, operands: Operands) -> Sequence[Row | None]:
    target = operands.items(1, "shape")
    if target is None:
        return ()
    copies = not node.attributes.get_int("allowzero", 0)
    sizes: Row = [data[axis] if item == 0 and copies else item for axis, item in enumerate(target)]
    if sizes.count(-1) == 1:
        rest = symbolic.product([item for item in sizes if item != -1])
        whole = symbolic.product(data)
        exact = symbolic.exact_quotient(whole, rest)
        if exact is None:
            common = [item for item in sizes if item != -1 and item in data]
            exact = _without(data, sizes) if common else None
        sizes[sizes.index(-1)] = exact if exact is not None else symbol(("quotient", whole, rest))
    if any((low := symbolic.lower_bound(item)) is None or low < 0 for item in sizes):
        return ()  # a computed -1 or 0 has a meaning of its own
    return (sizes,)


def _without(data: Row, sizes: Row) -> Item | None:
    """Return what is left for ``-1`` after sizes on both sides are struck out: valid also where one of them is 0.

    The runtime refuses to infer a size of an empty tensor, so that what is struck out is never 0.
    """
    left, right = list(data), [item for item in sizes if item != -1]
    for item in list(right):
        if item in left:
            left.remove(item)
            right.remove(item)
    return symbolic.exact_quotient(symbolic.product(left), symbolic.product(right))


def _flatten(node: ir.Node, data: Row, operands: Operands) -> Sequence[Row | None]:
    axis = node.attributes.get_int("axis", 1)
    axis += len(data) if axis < 0 else 0
    return ([symbolic.product(data[:axis]), symbolic.product(data[axis:])],)


def _transpose(node: ir.Node, data: Row, operands: Operands) -> Sequence[Row | None]:
    return ([data[axis] for axis in node.attributes.get_ints("perm", range(len(data))[::-1])],)


def _squeeze(node: ir.Node, data: Row, operands: Operands) -> Sequence[Row | None]:
    axes = operands.numbers(1, "axes")
    if axes is None:
        return ([item for item in data if item != 1],) if all(isinstance(item, int) for item in data) else ()
    gone = {axis % len(data) for axis in axes}
    return ([item for axis, item in enumerate(data) if axis not in gone],)


def _unsqueeze(node: ir.Node, data: Row, operands: Operands) -> Sequence[Row | None]:
    axes = operands.numbers(1, "axes") or []
    rank = len(data) + len(axes)
    new, rest = {axis % rank for axis in axes}, iter(data)
    return ([1 if axis in new else next(rest) for axis in range(rank)],)


def _concat(node: ir.Node, data: Row, operands: Operands) -> Sequence[Row | None]:
    rows = [operands.sizes(index) for index in range(len(node.inputs))]
    axis = node.attributes.get_int("axis", 0) % len(data)
    result = list(data)
    for row in rows[1:]:
        result = [
            symbolic.add(mine, other) if at == axis else other if isinstance(other, int) else mine
            for at, (mine, other) in enumerate(zip(result, row, strict=True))
        ]
    return (result,)


def _split(node: ir.Node, data: Row, operands: Operands) -> Sequence[Row | None]:
    axis, count = node.attributes.get_int("axis", 0) % len(data), len(node.outputs)
    parts = operands.items(1, "split")
    if parts is None:
        part = symbolic.exact_quotient(data[axis], count)
        parts = [part] * count if part is not None else None
    if parts is None:
        return ()
    return [[part if at == axis else item for at, item in enumerate(data)] for part in parts]


def _slice(node: ir.Node, data: Row, operands: Operands) -> Sequence[Row | None]:
    starts, ends = operands.items(1, "starts"), operands.items(2, "ends")
    if starts is None or ends is None:
        return ()
    axes = operands.numbers(3, "axes") or list(range(len(starts)))
    steps = operands.numbers(4) or [1] * len(starts)
    result = list(data)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = _slice_size(data[axis], start, end, step)
        result[axis] = size if size is not None else symbol((node.outputs[0], axis % len(data)))
    return (result,)


def _slice_size(size: Item, start: Item, end: Item, step: int) -> Item | None:
    if isinstance(size, int) and isinstance(start, int) and isinstance(end, int):
        return len(range(*slice(start, end if end > -(2**31) or step > 0 else None, step).indices(size)))
    first, last = _bound(size, start), _bound(size, end)
    if step != 1 or first is None or last is None:
        return None
    return symbolic.subtract(last, first) if symbolic.is_less(last, first) is False else None


def _bound(size: Item, at: Item) -> Item | None:
    """Return a slice's bound counted from the start, no larger than the size; None where it may be negative."""
    if isinstance(at, int) and at >= 2**31 - 1:
        return size
    low = symbolic.lower_bound(at)
    if isinstance(at, int) and at < 0:
        counted = symbolic.add(size, at)
        return counted if (symbolic.lower_bound(counted) or -1) >= 0 else None
    if low is None or low < 0:
        return None
    return symbolic.smaller(size, at)


def _expand(node: ir.Node, data: Row, operands: Operands) -> Sequence[Row | None]:
    target = operands.items(1)
    if target is None or any((low := symbolic.lower_bound(item)) is None or low < 0 for item in target):
        return ()
    return (broadcast((data, target), node.outputs[0]),)


def _tile(node: ir.Node, data: Row, operands: Operands) -> Sequence[Row | None]:
    repeats = operands.items(1) if node_opset(node) >= 6 else None
    if repeats is None:
        return ()
    return ([symbolic.multiply(size, times) for size, times in zip(data, repeats, strict=True)],)


def _pad(node: ir.Node, data: Row, operands: Operands) -> Sequence[Row | None]:
    pads = operands.items(1, "pads")
    axes = operands.numbers(3) or list(range(len(data)))
    if pads is None or len(pads) != 2 * len(axes):
        return ()
    result = list(data)
    for at, axis in enumerate(axes):
        result[axis] = symbolic.add(data[axis], symbolic.add(pads[at], pads[at + len(axes)]))
    return (result,)


def _gather(node: ir.Node, data: Row, operands: Operands) -> Sequence[Row | None]:
    axis = node.attributes.get_int("axis", 0) % len(data)
    return ([*data[:axis], *operands.sizes(1), *data[axis + 1 :]],)


def _matmul(node: ir.Node, data: Row, operands: Operands) -> Sequence[Row | None]:
    other = operands.sizes(1)
    left, right = (data if len(data) > 1 else [1, *data]), (other if len(other) > 1 else [*other, 1])
    batch = broadcast((left[:-2], right[:-2]), node.outputs[0]) if len(left) + len(right) > 4 else []
    return ([*batch, *([left[-2]] if len(data) > 1 else []), *([right[-1]] if len(other) > 1 else [])],)


def _gemm(node: ir.Node, data: Row, operands: Operands) -> Sequence[Row | None]:
    other = operands.sizes(1)
    rows = data[1] if node.attributes.get_int("transA", 0) else data[0]
    return ([rows, other[0] if node.attributes.get_int("transB", 0) else other[1]],)


def _reduction(node: ir.Node, data: Row, operands: Operands) -> Sequence[Row | None]:
    if node.op_type in ("ArgMax", "ArgMin"):
        axes: list[int] | None = [node.attributes.get_int("axis", 0)]
    else:
        axes = operands.numbers(1, "axes")
    if not axes and node.attributes.get_int("noop_with_empty_axes", 0) != 0:
        return (data,)
    gone = {axis % len(data) for axis in axes or range(len(data))}
    if node.attributes.get_int("keepdims", 1):
        return ([1 if axis in gone else item for axis, item in enumerate(data)],)
    return ([item for axis, item in enumerate(data) if axis not in gone],)


def _window(node: ir.Node, data: Row, operands: Operands) -> Sequence[Row | None]:
    """Return ``(H + pads - dilation * (K - 1) - 1) / stride + 1`` for each axis of a convolution or pooling."""
    rank = len(data) - 2
    if node.op_type == "Conv":
        weight = operands.sizes(1)
        channels, kernel = weight[0], [*weight[2:]]
    else:
        channels, kernel = data[1], list(node.attributes.get_ints("kernel_shape", ()))
    if node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET" or node.attributes.get_int("ceil_mode", 0) != 0:
        return ()
    strides, dilations = (list(node.attributes.get_ints(key, [1] * rank)) for key in ("strides", "dilations"))
    pads = list(node.attributes.get_ints("pads", [0] * 2 * rank))
    result: Row = [data[0], channels]
    for axis in range(rank):
        reach = symbolic.add(symbolic.multiply(dilations[axis], symbolic.add(kernel[axis], -1)), 1)
        free = symbolic.subtract(symbolic.add(data[axis + 2], pads[axis] + pads[axis + rank]), reach)
        result.append(symbolic.add(symbolic.divide(free, strides[axis]) if strides[axis] != 1 else free, 1))
    sizes: Row = [
        item if isinstance(item, int) or (symbolic.lower_bound(item) or -1) >= 0 else _named(item) for item in result
    ]
    return (sizes,) if node.op_type != "MaxPool" else (sizes, sizes)


def _named(item: Item) -> Item:
    """Return a symbol for a size that is no negative number where the runtime gets so far."""
    return symbol(("size", item))


def _same_space(node: ir.Node, data: Row, operands: Operands) -> Sequence[Row | None]:
    return ([data[0], data[1], *([1] * (len(data) - 2))],)


def _resize(node: ir.Node, data: Row, operands: Operands) -> Sequence[Row | None]:
    factors = constant(input_at(node, 2)) if node_opset(node) >= 11 else constant(input_at(node, 1))
    if factors is None or factors.size != len(data) or (factors != factors.round()).any() or (factors < 1).any():
        return ()
    return ([symbolic.multiply(size, int(factor)) for size, factor in zip(data, factors, strict=True)],)


def _range(node: ir.Node, data: Row, operands: Operands) -> Sequence[Row | None]:
    start, limit, delta = (operands.items(index) for index in range(3))
    if start is None or limit is None or delta != [1]:
        return ()
    count = symbolic.subtract(limit[0], start[0])
    low = symbolic.lower_bound(count)
    return ([count if low is not None and low >= 0 else symbolic.larger(0, count)],)


def _constant_of_shape(node: ir.Node, data: Row, operands: Operands) -> Sequence[Row | None]:
    return (operands.items(0),)


RULES: dict[str, Rule] = {
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Transpose": _transpose,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Expand": _expand,
    "Tile": _tile,
    "Pad": _pad,
    "Gather": _gather,
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Conv": _window,
    "MaxPool": _window,
    "AveragePool": _window,
    "GlobalAveragePool": _same_space,
    "GlobalMaxPool": _same_space,
    "Resize": _resize,
    "Upsample": _resize,
    "Range": _range,
    "ConstantOfShape": _constant_of_shape,
    **dict.fromkeys((*REDUCTIONS, "ArgMax", "ArgMin"), _reduction),
}
