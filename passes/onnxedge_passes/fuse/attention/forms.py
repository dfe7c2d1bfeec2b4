"""The forms in which attention kernels take queries, keys and values, and the values of the graph that have them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxedge.api import constant_tensor, graph_of, insert_before, new_initializer, replace_uses
from onnxedge_passes.cleanup.worklist import insert_behind, node_opset, retire
from onnxedge_passes.fuse.attention.axes import Axis, expanded, flat, length
from onnxedge_passes.fuse.attention.find import Found, Operand, Shown

_SHARED = "onnxedge.attention_parts"  #: marks a Split that was made here, with the count of its parts


@dataclass(frozen=True)
class View:
    """Say how to make a value of a wanted form from one of the graph.

    Attributes:
        value: of the graph.
        perm, shape: of a Transpose and of a Reshape to put behind it, in this order; empty for none.
        part: which of how many parts of its last axis to take; empty for all of it.
    """

    value: ir.Value
    perm: tuple[int, ...] = ()
    shape: tuple[int, ...] = ()
    part: tuple[int, int] | None = None

    def build(self, anchor: ir.Node, wish: str) -> ir.Value:
        """Put the nodes before ``anchor`` and return the value."""
        value = self.value if self.part is None else _part(anchor, self.value, *self.part)
        if self.perm:
            value = transposed(anchor, value, self.perm, f"{wish}_heads")
        if self.shape:
            shape = new_initializer(graph_of(anchor), np.array(self.shape, np.int64), f"{wish}_shape")
            value = insert_before(anchor, "Reshape", [value, shape], outputs=[f"{wish}_view"]).outputs[0]
            value.type = self.value.type
        return value


def transposed(anchor: ir.Node, value: ir.Value, perm: Sequence[int], name: str) -> ir.Value:
    """Put a Transpose before a node and return its output."""
    out = insert_before(anchor, "Transpose", [value], attributes={"perm": list(perm)}, outputs=[name]).outputs[0]
    out.type = value.type
    out.shape = ir.Shape([value.shape[axis] for axis in perm]) if value.shape is not None else None
    return out


def _part(anchor: ir.Node, value: ir.Value, index: int, count: int) -> ir.Value:
    """Return one of the equal parts of the last axis of a value, from one Split for all who want one."""
    graph = graph_of(anchor)
    for reader in (use.node for use in value.uses()):
        if reader.graph is anchor.graph and reader.metadata_props.get(_SHARED) == str(count):
            return reader.outputs[index]
    inputs: list[ir.Value | None] = [value]
    rank, width = (len(value.shape), value.shape[-1]) if value.shape is not None else (0, None)
    assert isinstance(width, int)
    attributes: dict[str, object] = {"axis": rank - 1}
    if node_opset(anchor) >= 13:
        inputs.append(new_initializer(graph, np.full(count, width // count, np.int64), "attention_parts"))
    else:
        attributes["split"] = [width // count] * count
    names = [f"attention_{name}" for name in "qkv"[:count]]
    split = insert_behind(value, graph, "Split", inputs, attributes=attributes, outputs=names)
    split.metadata_props[_SHARED] = str(count)
    for output in split.outputs:
        output.type = value.type
        output.shape = ir.Shape([*list(value.shape or ())[:-1], width // count])
    return split.outputs[index]


@dataclass(frozen=True)
class Heads:
    """Say which axes count batches, query heads and key heads.

    Attributes:
        batch: factors of the batch.
        query: factors of the query heads, outermost first.
        key: those of them that keys and values have, too; fewer in grouped-query attention.
        query_count, key_count: how many heads.
    """

    batch: Axis
    query: Axis
    key: Axis
    query_count: int
    key_count: int


def heads_of(found: Found) -> Heads | None:
    """Return the axes of batch and heads, None where the number of heads is not known."""
    axes = [expanded(axis) for axis in found.batch]
    if len(axes) == 2:
        batch, query = axes
    elif len(axes) == 1:
        batch, query = _divided(axes[0], found)
    else:
        batch, query = (), ()
    kept = [_kept(query, operand) for operand in (found.key, found.value)]
    key = kept[0] if kept[0] == kept[1] else query
    counts = [length(query), length(key)]
    if counts[0] is None or counts[1] is None:
        return None
    return Heads(batch, query, key, counts[0], counts[1])


def _divided(axis: Axis, found: Found) -> tuple[Axis, Axis]:
    """Divide an axis that counts batches and heads together: the heads are what the query's features come with."""
    for _, axes in found.query.chain[::-1]:
        order = flat(axes)
        for count in range(len(axis), 0, -1):
            if order == (*axis[:-count], *expanded(found.queries), *axis[-count:], *expanded(found.depth)):
                return axis[:-count], axis[-count:]
    return axis, ()


def _kept(query: Axis, operand: Operand) -> Axis:
    """Return the heads that the farthest view of an operand still has."""
    order = flat(operand.chain[-1][1])
    kept = tuple(factor for factor in query if factor in order)
    lead = query[: len(kept)]
    return kept if kept == lead else query  # repeated in groups of neighbours, or else not at all


def tokens_first(
    shown: Sequence[Shown], batch: Axis, tokens: Axis, heads: Axis, features: Axis, *, turned: bool = False
) -> View | None:
    """Return how to see an operand as ``[B, T, H * D]``.

    Args:
        shown: the values that it is a view of.
        batch, tokens, heads, features: axes.
        turned: also take a value in the form ``[T, B, H * D]``, where there is none in the other.
    """
    for order, perm in orders([batch, tokens, (*heads, *features)], turned=turned):
        for value, axes in reversed(shown):
            part = _chosen(axes, order)
            if part is not None and isinstance(value.shape, ir.Shape) and isinstance(value.shape[-1], int):
                return View(value, perm=perm, part=part)
            if flat(axes) == flat(order):
                shape = reshaped(axes, order)
                if shape is not None and not (shape and perm):
                    return View(value, perm=perm, shape=shape)
    return None


def _chosen(axes: Sequence[Axis], wanted: Sequence[Axis]) -> tuple[int, int] | None:
    """Return which of how many parts of the last axis is wanted, None where that is not what the axes show."""
    have, want = [expanded(axis) for axis in axes], [expanded(axis) for axis in wanted]
    if len(have) != 3 or have[:2] != want[:2] or not have[2] or have[2][1:] != want[2]:
        return None
    first = have[2][0]
    if first.chosen is None or not isinstance(first.size, int) or not 1 < first.size <= len("qkv"):
        return None
    return first.chosen, first.size


def heads_first(shown: Sequence[Shown], batch: Axis, tokens: Axis, heads: Axis, features: Axis) -> View | None:
    """Return how to see an operand as ``[B, H, T, D]``."""
    wanted = [expanded(axis) for axis in (batch, heads, tokens, features)]
    best: View | None = None
    for value, axes in reversed(shown):
        have = [expanded(axis) for axis in axes]
        if have == wanted:
            return View(value)
        if flat(axes) == flat(wanted) and (shape := reshaped(axes, wanted)) is not None:
            best = View(value, shape=shape)
        elif best is None and len(have) == 4 and sorted(map(id, flat(have))) == sorted(map(id, flat(wanted))):
            perm = [have.index(axis) if axis else -1 for axis in wanted]
            free = iter([i for i, axis in enumerate(have) if not axis])
            if all(axis in have for axis in wanted):
                best = View(value, perm=tuple(next(free) if i < 0 else i for i in perm))
    return best


def reshaped(axes: Sequence[Axis], wanted: Sequence[Axis]) -> tuple[int, ...] | None:
    """Return the shape for a Reshape, empty where the axes are as wanted already, None where none is known."""
    have = [expanded(axis) for axis in axes]
    want = [expanded(axis) for axis in wanted]
    if have == want:
        return ()
    shape: list[int] = []
    for index, axis in enumerate(want):
        size = length(axis)
        if size is not None:
            shape.append(size)
        elif index < len(have) and have[index] == axis:
            shape.append(0)
        else:
            shape.append(-1)
    return tuple(shape) if shape.count(-1) <= 1 else None


@dataclass(frozen=True)
class End:
    """Say which value of the graph a kernel's output replaces, and how to make one of the other.

    Attributes:
        value: of the graph.
        perm, shape: of a Transpose and of a Reshape to put behind the kernel, in this order; empty for none.
    """

    value: ir.Value
    perm: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def is_exported(self) -> bool:
        """Tell whether the kernel's output is itself an output of the graph, so that its shape is declared."""
        return not self.perm and not self.shape and self.value.is_graph_output()

    def replace(self, anchor: ir.Node, output: ir.Value) -> ir.Value:
        """Put the nodes before ``anchor``, let all that reads the value read theirs, and return what they make."""
        if self.perm:
            output = transposed(anchor, output, self.perm, f"{output.name}_turned")
        if self.shape:
            shape = new_initializer(graph_of(anchor), np.array(self.shape, np.int64), f"{output.name}_shape")
            output = insert_before(anchor, "Reshape", [output, shape], like=[self.value]).outputs[0]
        last = self.value.producer()
        replace_uses(self.value, output)
        retire(last)
        spread(output)
        return output


def end_of(shown: Sequence[Shown], wanted: Sequence[Axis], *, turned: bool = False) -> End | None:
    """Return the farthest value behind the product that holds the same elements in the order wanted."""
    for order, perm in orders(wanted, turned=turned):
        for value, axes in reversed(shown):
            if flat(axes) == flat(order) and (shape := reshaped(order, axes)) is not None:
                return End(value, perm, shape)
    return None


def orders(wanted: Sequence[Axis], *, turned: bool) -> list[tuple[list[Axis], tuple[int, ...]]]:
    """Return the orders of axes to look for, and the Transpose between each and the wanted one.

    Args:
        wanted: axes.
        turned: whether the first two of three may change places.
    """
    own: list[tuple[list[Axis], tuple[int, ...]]] = [(list(wanted), ())]
    return [*own, ([wanted[1], wanted[0], wanted[2]], (1, 0, 2))] if turned else own


def spread(value: ir.Value) -> None:
    """Tell the projection behind a new output, and its bias, what is known of batch and tokens by now."""
    for _ in range(3):
        readers = [use.node for use in value.uses()]
        reader = readers[0] if len(readers) == 1 else None
        if reader is None or value.shape is None or reader.outputs[0].is_graph_output():
            return
        other = next((v for v in reader.inputs if v is not value), None)
        tensor = constant_tensor(other)
        fits = tensor is not None and len(tensor.shape) == (2 if reader.op_type == "MatMul" else 1)
        if reader.op_type not in ("MatMul", "Add") or not fits or tensor is None:
            return
        lead, width = list(value.shape)[:-1], tensor.shape[-1]
        value = reader.outputs[0]
        value.shape = ir.Shape([*lead, width if isinstance(width, int) else None])
