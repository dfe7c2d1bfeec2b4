"""Embeddings of words, positions and segments, their sum and its normalization, as one operator."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxedge.api import (
    Accuracy,
    Array,
    Context,
    constant,
    constant_tensor,
    graph_of,
    insert_before,
    is_standard,
    new_initializer,
    replace_uses,
    sole_consumer,
)
from onnxedge_passes.cleanup.worklist import Outcome, Refused, Rule, input_at, output_used, retire

_KERNEL = "EmbedLayerNormalization"
_DEEPEST = 4  #: sums inside each other that are taken apart


@dataclass(frozen=True)
class Lookup:
    """Hold a Gather of rows: ``table: [V, D]``, ``rows: [B, T]`` or ``[1, T]``."""

    table: ir.Value
    rows: ir.Value


@dataclass(frozen=True)
class Embeddings:
    """Hold what is added up before a normalization: lookups, words first, constants, and how much else."""

    lookups: list[Lookup]
    fixed: list[Array]
    others: int

    @property
    def ids(self) -> Lookup | None:
        """Return the first lookup of what the graph is given: only with one are these embeddings of a model's input."""
        return next((lookup for lookup in self.lookups if lookup.rows.is_graph_input()), None)


@dataclass(frozen=True, kw_only=True)
class FuseEmbedLayerNorm(Rule):
    """Fuse two or three lookups of embeddings, their sum and the LayerNormalization behind it into one operator.

    Before: ``y = LayerNormalization(Gather(words, ids) + Gather(segments, types) + Gather(positions, where), g, b)``,
    or with a constant ``[1, T, D]`` in place of the positions
    After:  ``y = com.microsoft::EmbedLayerNormalization(ids, types, words, positions, segments, g, b, , where)``

    Only where the target lists the kernel, and on GPUs alone is it worth listing. Rows counted from the end (negative
    ones) are not supported by the kernel.
    Left alone: sums that others read; tables computed at run time; ids of another rank than 2.
    accuracy: rounding. Source: ONNX Runtime's contributed operators.
    """

    name: ClassVar[str] = "fuse-embed-layer-norm"
    accuracy: ClassVar[Accuracy] = "rounding"
    roots: ClassVar[tuple[str, ...]] = ("LayerNormalization", "Gather")

    def rewrite(self, node: ir.Node, context: Context) -> Outcome:
        """Take the sum before the normalization apart."""
        if node.op_type == "Gather":
            return _taken_otherwise(node)
        total = node.inputs[0]
        embeddings = _embeddings(_parts(total, None)) if total is not None else None
        if total is None or embeddings is None:
            return None
        reason = _misfit(node, embeddings, is_shared=sole_consumer(total) is not node)
        if not context.target.has_kernel(_KERNEL, "com.microsoft"):
            whole = len(embeddings.lookups) + len(embeddings.fixed) > 1 and not embeddings.others
            reason = f"target {context.target.name} lists no kernel for it" if whole else ""
        elif not reason:
            return _fuse(node, total, embeddings.lookups, embeddings.fixed)
        return Refused(f"{_KERNEL} not fused: {reason}") if reason and embeddings.ids is not None else None


def _taken_otherwise(node: ir.Node) -> Refused | None:
    """Say why ids are looked up by themselves where sum and normalization became ``SkipLayerNormalization``."""
    reader, skip = sole_consumer(node.outputs[0]), "SkipLayerNormalization"
    for _ in range(_DEEPEST):
        if reader is not None and reader.op_type == "Add" and is_standard(reader):
            reader = sole_consumer(reader.outputs[0])
    if reader is None or reader.op_type != skip or reader.domain != "com.microsoft" or reader.graph is not node.graph:
        return None
    added = [value for index in (0, 1, 4) if (value := input_at(reader, index)) is not None]
    embeddings = _embeddings(part for value in added for part in _parts(value, reader))
    if embeddings is None or embeddings.ids is None or embeddings.ids.table is not node.inputs[0]:
        return None
    is_shared = len(reader.outputs) > 3 and output_used(reader.outputs[3])
    reason = _misfit(reader, embeddings, is_shared=is_shared, gamma=2)
    return Refused(f"{_KERNEL} not fused: {reason}") if reason else None


def _parts(value: ir.Value, reader: ir.Node | None, depth: int = 0) -> Iterator[ir.Value]:
    """Yield what is added up to a value, inner sums that nobody else reads taken apart."""
    node = value.producer()
    shared = reader is not None and sole_consumer(value) is not reader
    if shared or node is None or node.op_type != "Add" or not is_standard(node) or depth >= _DEEPEST:
        yield value
        return
    for source in node.inputs:
        if source is not None:
            yield from _parts(source, node, depth + 1)


def _embeddings(parts: Iterable[ir.Value]) -> Embeddings | None:
    """Sort what is added up, None where there is no lookup."""
    lookups: list[Lookup] = []
    fixed: list[Array] = []
    others = 0
    for part in parts:
        lookup, array = _lookup(part), constant(part)
        lookups += [lookup] if lookup is not None else []
        fixed += [array] if array is not None else []
        others += lookup is None and array is None
    return Embeddings(_ordered(lookups), fixed, others) if lookups else None


def _lookup(value: ir.Value) -> Lookup | None:
    node = value.producer()
    if node is None or node.op_type != "Gather" or not is_standard(node) or node.attributes.get_int("axis", 0) != 0:
        return None
    table, rows = node.inputs
    tensor = constant_tensor(table)
    if table is None or rows is None or tensor is None or len(tensor.shape) != 2:
        return None
    return Lookup(table, rows)


def _ordered(lookups: list[Lookup]) -> list[Lookup]:
    """Put the lookup that is the same for all the batch, as positions are, in the second place."""
    single = [lookup for lookup in lookups if lookup.rows.shape is not None and list(lookup.rows.shape)[:1] == [1]]
    if len(single) != 1 or len(lookups) < 2:
        return lookups
    others = [lookup for lookup in lookups if lookup is not single[0]]
    return [others[0], *single, *others[1:]]


def _misfit(node: ir.Node, embeddings: Embeddings, *, is_shared: bool, gamma: int = 1) -> str:
    """Say why the kernel cannot take what a normalization with gamma at an index sums up, empty where it can."""
    lookups, fixed = embeddings.lookups, embeddings.fixed
    first, total = lookups[0].rows, lookups[0].table
    if embeddings.others:
        return "something else is added to the embeddings"
    if is_shared:
        return "the sum has other readers or is exported"
    if not 2 <= len(lookups) + bool(fixed) <= 3 or len(lookups) > 3:
        return "it adds up two or three embeddings"
    last = node.attributes.get_int("axis", -1) in (-1, 2)
    if total.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16) or not last:
        return "it normalizes the last axis, in float32 and float16"
    if any(lookup.rows.shape is None or len(lookup.rows.shape) != 2 for lookup in lookups) or first.shape is None:
        return "ids of another rank than 2"
    width = lookups[0].table.shape[1] if lookups[0].table.shape is not None else None
    for index in (gamma, gamma + 1):
        array = constant(input_at(node, index))
        if array is None or array.shape != (width,):
            return "gamma and beta are no constant vectors"
    shapes = [[str(d) for d in lookup.rows.shape or ()] for lookup in lookups]
    positions = lookups[1:2] if not fixed else []
    for lookup, shape in zip(lookups, shapes, strict=True):
        single = lookup in positions and shape[0] == "1" and shape[1] == shapes[0][1]
        if (shape != shapes[0] or "None" in shape) and not single:
            return "the shapes of the ids are not known to be equal"
    if fixed:
        tokens = first.shape[1]
        whole = np.broadcast_shapes(*(array.shape for array in fixed))
        if not isinstance(tokens, int) or len(whole) != 3 or whole[0] != 1 or whole[1:] != (tokens, width):
            return "what is constant is not one row for each position"
    return ""


def _fuse(node: ir.Node, total: ir.Value, lookups: list[Lookup], fixed: list[Array]) -> ir.Value:
    graph = graph_of(node)
    words = lookups[0]
    places: ir.Value | None = None
    segments: Lookup | None
    if fixed:
        rows = np.sum(np.broadcast_arrays(*fixed), axis=0)[0].astype(fixed[0].dtype)
        positions = new_initializer(graph, rows, f"{node.name or 'embedding'}_positions")
        segments = lookups[1] if len(lookups) > 1 else None
    else:
        positions, places = lookups[1].table, _integers(node, lookups[1].rows)
        segments = lookups[2] if len(lookups) > 2 else None
    inputs = [
        _integers(node, words.rows),
        _integers(node, segments.rows) if segments is not None else None,
        words.table,
        positions,
        segments.table if segments is not None else None,
        node.inputs[1],
        node.inputs[2],
        None,
        places,
    ]
    while inputs[-1] is None:
        inputs.pop()
    fused = insert_before(
        node,
        _KERNEL,
        inputs,
        attributes={"epsilon": node.attributes.get_float("epsilon", 1e-5)},
        domain="com.microsoft",
        name=node.name,
        outputs=2,
        like=node.outputs[:1],
    )
    fused.outputs[1].type = ir.TensorType(ir.DataType.INT32)
    replace_uses(node.outputs[0], fused.outputs[0])
    retire(node)
    return fused.outputs[0]


def _integers(node: ir.Node, rows: ir.Value) -> ir.Value:
    """Return rows as int32, the one type that the kernel takes."""
    if rows.dtype == ir.DataType.INT32:
        return rows
    cast = insert_before(node, "Cast", [rows], attributes={"to": int(ir.DataType.INT32)}).outputs[0]
    cast.type, cast.shape = ir.TensorType(ir.DataType.INT32), rows.shape
    return cast
