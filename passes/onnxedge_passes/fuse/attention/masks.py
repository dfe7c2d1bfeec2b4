"""The mask that is added to the scores, as one value that attention kernels take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxedge.api import Array, Context, constant, graph_of, insert_after, insert_before, is_standard, new_initializer
from onnxedge_passes.cleanup.worklist import Refused, node_opset
from onnxedge_passes.fuse.attention.axes import Axis, expanded, length
from onnxedge_passes.fuse.attention.causal import NOTHING, is_causal
from onnxedge_passes.fuse.attention.find import Found
from onnxedge_passes.fuse.attention.forms import Heads
from onnxedge_passes.fuse.attention.shapes import Size, is_named, sizes
from onnxedge_passes.fuse.attention.steps import Step

_ABSORBING = -1e30  #: a score added to a number that low does not show
_FAR = 16  #: nodes between a mask and what it is made of


@dataclass(frozen=True)
class Mask:
    """Hold what stands for the mask.

    Attributes:
        value: float, ``[B or 1, H or 1, T, S]``; None for no mask.
        causal: whether query ``i`` sees the keys up to ``i``, and the mask says nothing else.
        empties: whether the mask may hold -inf for all keys of a query.
    """

    value: ir.Value | None = None
    causal: bool = False
    empties: bool = False


@dataclass(frozen=True)
class Scaling:
    """Hold the factor of all scores, and the number that they are kept below by a Tanh, 0 for none."""

    factor: float
    softcap: float = 0.0


def scaling_of(found: Found) -> Scaling | Refused:
    """Return the factor of all scores; what is added before one is not handled."""
    scale, cap, added = found.query.scale * found.key.scale, 0.0, False
    for step in found.steps:
        if added and not step.masks:
            done = "scaled" if step.kind == "scale" else "capped"
            return Refused(f"attention not fused: the scores are {done} after the mask is added")
        if step.kind == "tanh" and cap:
            return Refused("attention not fused: the scores are capped twice")
        added = step.masks
        cap = 1.0 if step.kind == "tanh" else cap * step.number if step.kind == "scale" else cap
        scale *= step.number if step.kind == "scale" else 1.0
    if cap < 0:
        return Refused("attention not fused: the scores are capped by a number below 0")
    if not 0 < np.float32(scale) < np.inf:  # 0 stands for the default, the root of a number below 0 is none
        return Refused("attention not fused: the scores are scaled by no number above 0")
    return Scaling(scale, cap)


def mask_of(found: Found, heads: Heads, context: Context, *, lowest_empties: bool) -> Mask | Refused:
    """Build the mask before the end of a block.

    Args:
        found: the block.
        heads: its axes.
        context: keeps what was built for other blocks.
        lowest_empties: whether the kernel takes a row of the lowest float for one of -inf, that gives zeros.
    """
    steps = [step for step in found.steps if step.masks]
    if not steps:
        return Mask()
    for step in steps:
        reason = _misfit(step, found, heads)
        if reason:
            return Refused(f"attention not fused: {reason}")
    if is_causal(found):
        return Mask(causal=True)
    whole = _constant(steps, _dtype(found))
    if whole is not None:
        return _known(found, heads, whole)
    return _computed(found, heads, steps, context, lowest_empties=lowest_empties)


def _misfit(step: Step, found: Found, heads: Heads) -> str:
    """Say why a mask cannot be brought to four axes, empty where it can."""
    assert step.value is not None
    dims = sizes(step.value)
    if dims is None or len(dims) > len(step.axes):
        return "the rank of a mask is not known"
    have = [expanded(axis) for axis in step.axes]
    tail = [expanded(found.queries), expanded(found.keys)]
    if have == [heads.batch, heads.query, *tail]:
        return ""
    if have in ([(*heads.batch, *heads.query), *tail], tail):
        return "" if len(dims) < 3 or dims[0] == 1 or not heads.query else "a mask counts batches and heads together"
    return "a mask is added to another view of the scores"


def _constant(steps: Sequence[Step], dtype: np.dtype[Any]) -> Array | None:
    """Return the whole mask where all of it is constant; what is filled in has no weight as long as a key is left."""
    total: Array = np.zeros((), dtype)
    for step in steps:
        array = constant(step.value)
        if array is None:
            return None
        with np.errstate(over="ignore"):
            if step.kind == "add":
                total = (total + array).astype(dtype)
            else:
                total = np.where(array.astype(bool) == step.keeps, total, -np.inf).astype(dtype)
    return total


def _known(found: Found, heads: Heads, mask: Array) -> Mask | Refused:
    if not mask.any():
        return Mask()
    if mask.ndim == 3 and not heads.query:
        mask = mask[:, None]
    mask = mask.reshape([1] * (4 - mask.ndim) + list(mask.shape))
    rows, columns = length(found.queries), length(found.keys)
    if rows is None or columns is None:
        return Refused("attention not fused: a constant mask where the lengths are not known")
    whole = np.broadcast_to(mask, (*mask.shape[:2], rows, columns))
    shown = whole > NOTHING
    if not shown.any(axis=-1).all():
        return Refused("attention not fused: a constant mask hides all keys of a query")
    label = f"{found.product.name or 'attention'}_mask"
    return Mask(new_initializer(graph_of(found.product), np.ascontiguousarray(whole), label))


def _computed(
    found: Found,
    heads: Heads,
    steps: Sequence[Step],
    context: Context,
    *,
    lowest_empties: bool,
) -> Mask | Refused:
    dtype = _dtype(found)
    fills = [number for step in steps for number in _fills(step)]
    lowest = float(np.finfo(dtype).min)
    unknown = any(number is None for number in fills)
    reaches = unknown or any(number is not None and np.isfinite(number) and number <= lowest for number in fills)
    if any(step.kind == "fill" and step.number > _ABSORBING for step in steps):
        return Refused("attention not fused: scores are replaced by a number that is not low enough to be added")
    if lowest_empties and reaches and (len(steps) > 1 or (found.guarded and unknown)):
        return Refused("attention not fused: whether rows that are masked whole give zeros or a mean is not known")
    clamp = lowest * (1 - (1e-6 if dtype == np.float32 else 1e-3)) if lowest_empties and reaches else None
    empties = unknown or any(number is not None and np.isneginf(number) for number in fills)
    return Mask(_Writer(found, heads, steps, clamp, context).write(), empties=empties)


class _Writer:
    """Write the nodes that compute a mask, once for all blocks that add the same one."""

    def __init__(
        self, found: Found, heads: Heads, steps: Sequence[Step], clamp: float | None, context: Context
    ) -> None:
        self.found, self.heads, self.steps, self.clamp = found, heads, steps, clamp
        self.graph, self.dtype = graph_of(found.product), _dtype(found)
        self.made: dict[tuple[object, ...], ir.Value] = context.analysis("fuse-attention: masks", dict)
        first = steps[0].value
        assert first is not None
        self.source = first
        producer = first.producer()
        own = producer is not None and producer.graph is found.product.graph
        self.shared = len(steps) == 1
        self.after: ir.Node | None = producer if own and self.shared else None
        self.before: ir.Node = self.graph[0] if self.shared else found.product

    def write(self) -> ir.Value:
        step = self.steps[0]
        rows, columns = expanded(self.found.queries), expanded(self.found.keys)
        sized = tuple(factor.size for factor in (*rows, *columns))
        key = (self.source, id(self.graph), step.kind, step.number, step.keeps, self.clamp, len(step.axes), sized)
        old = self.made.get(key)
        if old is not None and len(self.steps) == 1 and old.uses():
            return old
        value, dims = self._total()
        if self.clamp is not None:
            value = self._node("Max", [value, self._number(self.clamp)], dims)
        value = self._four(value, dims)
        if self.shared:
            self.made[key] = value
        return value

    def _node(
        self, op_type: str, inputs: Sequence[ir.Value | None], dims: Sequence[Size], **attributes: object
    ) -> ir.Value:
        options = {"attributes": attributes, "outputs": ["attention_mask"]}
        if self.after is None:
            node = insert_before(self.before, op_type, inputs, **options)
        else:
            node = self.after = insert_after(self.after, op_type, inputs, **options)
        value = node.outputs[0]
        value.type = ir.TensorType(ir.DataType.from_numpy(self.dtype))
        value.shape = ir.Shape([d if isinstance(d, int | str) else None for d in dims])
        return value

    def _number(self, number: float) -> ir.Value:
        return new_initializer(self.graph, np.array(number, self.dtype), "attention_masked")

    def _total(self) -> tuple[ir.Value, list[Size]]:
        """Do to zeros what is done to the scores."""
        total: ir.Value | None = None
        dims: list[Size] = []
        for step in self.steps:
            assert step.value is not None
            dims = _broadcast(dims, sizes(step.value) or [])
            if step.kind == "add":
                total = step.value if total is None else self._node("Add", [total, step.value], dims)
                continue
            kept, fill = total if total is not None else self._number(0.0), self._number(step.number)
            order = [kept, fill] if step.keeps else [fill, kept]
            total = self._node("Where", [step.value, *order], dims)
        assert total is not None
        return total, dims

    def _four(self, value: ir.Value, dims: list[Size]) -> ir.Value:
        """Give a mask four axes, the last two as long as they are said to be.

        A last axis of unknown size is as long as the keys: a mask that is the same for all keys would do nothing.
        """
        if len(dims) == 3 and not self.heads.query:
            dims = [dims[0], 1, *dims[1:]]
            value = self._unsqueezed(value, [1], dims)
        rows = len(dims) > 1 and _is_length(dims[-2], self.found.queries)
        columns = dims[-1:] != [1] or self.found.keys == ()
        if not (rows and columns):
            return self._expanded(value, dims, (rows, columns))
        lead = [1] * (4 - len(dims))
        return self._unsqueezed(value, list(range(len(lead))), [*lead, *dims]) if lead else value

    def _unsqueezed(self, value: ir.Value, axes: list[int], dims: Sequence[Size]) -> ir.Value:
        if node_opset(self.found.product) < 13:
            return self._node("Unsqueeze", [value], dims, axes=axes)
        where = new_initializer(self.graph, np.array(axes, np.int64), "attention_mask_axes")
        return self._node("Unsqueeze", [value, where], dims)

    def _expanded(self, value: ir.Value, dims: Sequence[Size], exact: Sequence[bool]) -> ir.Value:
        parts: list[ir.Value | int] = [1, 1]
        for index, axis in enumerate((self.found.queries, self.found.keys)):
            size = 1 if exact[index] else length(axis)
            parts.append(size if size is not None else self._length(index, value, len(dims), square=exact[1]))
        numbers = [part for part in parts if isinstance(part, int)]
        if len(numbers) == len(parts):
            target = self._integer(numbers)
        else:
            pieces = [self._integer([part]) if isinstance(part, int) else part for part in parts]
            target = self._integers("Concat", pieces, axis=0)
        lead = [1] * (4 - len(dims)) + list(dims[:-2])
        return self._node("Expand", [value, target], [*lead, length(self.found.queries), length(self.found.keys)])

    def _length(self, index: int, mask: ir.Value, rank: int, *, square: bool) -> ir.Value:
        """Return the number of queries or keys, from a value that stands before all blocks where there is one."""
        axis = expanded((self.found.queries, self.found.keys)[index])
        if square and [f.size for f in axis] == [f.size for f in expanded(self.found.keys)]:
            return self._size(mask, rank - 1)
        for value in self.graph.inputs:
            names = [d.value if isinstance(d, ir.SymbolicDim) else d for d in value.shape or ()]
            if len(axis) == 1 and is_named(axis[0].size) and axis[0].size in names:
                return self._size(value, names.index(axis[0].size))
        self.shared, self.after, self.before = False, None, self.found.product  # here on it is this block's own
        operand = self.found.scores.inputs[index]
        assert operand is not None
        return self._size(operand, len(self.steps[0].axes) - 2 + index)

    def _size(self, value: ir.Value, axis: int) -> ir.Value:
        if node_opset(self.found.product) >= 15:
            return self._integers("Shape", [value], start=axis, end=axis + 1)
        return self._integers("Gather", [self._integers("Shape", [value]), self._integer([axis])])

    def _integers(self, op_type: str, inputs: Sequence[ir.Value | None], **attributes: object) -> ir.Value:
        value = self._node(op_type, inputs, [None], **attributes)
        value.type = ir.TensorType(ir.DataType.INT64)
        return value

    def _integer(self, numbers: list[int]) -> ir.Value:
        return new_initializer(self.graph, np.array(numbers, np.int64), "attention_mask_shape")


def _is_length(size: Size, axis: Axis) -> bool:
    factors = expanded(axis)
    return size == length(axis) or (len(factors) == 1 and factors[0].size == size)


def _broadcast(left: Sequence[Size], right: Sequence[Size]) -> list[Size]:
    rank = max(len(left), len(right))
    pairs = zip(*([1] * (rank - len(dims)) + list(dims) for dims in (left, right)), strict=True)
    return [b if a == 1 else a for a, b in pairs]


def _dtype(found: Found) -> np.dtype[Any]:
    value = found.product.inputs[1]
    assert value is not None
    return (value.dtype or ir.DataType.FLOAT).numpy()


def _fills(step: Step) -> list[float | None]:
    """Return the numbers that a mask masks with, None for one that is not known."""
    if step.kind == "fill":
        return [step.number]
    value = step.value
    for _ in range(_FAR):
        if value is None:
            break
        array = constant(value)
        if array is not None:
            return [float(array.min(initial=0.0))]
        node = value.producer()
        if node is None or not is_standard(node) or not node.inputs:
            break
        if node.op_type == "Where":
            return [n for v in node.inputs[1:] for n in (_fills(Step("add", step.axes, v)))]
        if node.op_type not in ("Expand", "Slice", "Unsqueeze", "Squeeze", "Reshape", "Transpose", "Identity", "Cast"):
            break
        value = node.inputs[0]
    return [None]
