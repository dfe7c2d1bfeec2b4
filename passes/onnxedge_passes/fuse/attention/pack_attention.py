"""Attention and the three products with constant weights that feed it, as one operator."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

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
from onnxedge_passes.cleanup.worklist import Outcome, Refused, Rule, input_at, is_exported_twice, output_used, retire
from onnxedge_passes.fuse.attention.shapes import is_named, sizes
from onnxedge_passes.fuse.linear.merge_projections import projection

_UNPACKED, _PACKED = "MultiHeadAttention", "Attention"
_MEANS_THE_SAME = ("num_heads", "scale", "unidirectional", "mask_filter_value")  #: attributes of both operators
_FAR = 4  #: nodes from a product to the attention: the bias, a Reshape behind Gemm, Split


@dataclass(frozen=True)
class Part:
    """Hold one of the three operands of an attention.

    Attributes:
        source: what is multiplied, ``[B, T, D]``.
        weight: [D, N].
        bias: [N].
        nodes: what computes the operand from the source.
    """

    source: ir.Value
    weight: Array
    bias: Array
    nodes: tuple[ir.Node, ...]


@dataclass(frozen=True, kw_only=True)
class PackAttention(Rule):
    """Fuse three products of one value with constant weights, and the attention that they feed, into one operator.

    Before: ``y = com.microsoft::MultiHeadAttention(x Wq + bq, x Wk + bk, x Wv + bv, , , mask)``, each product a
    MatMul or a Gemm between two Reshapes, or a part that Split takes of one product; some may have no bias
    After:  ``y = com.microsoft::Attention(x, [Wq Wk Wv], [bq bk bv], , , mask)``

    Only where the target lists ``com.microsoft::Attention``. ONNX Runtime 1.31 on the CPU has the kernel, in 0.67 to
    1.05 of the time (one thread, 16 to 1500 tokens), but a MatMul can be made INT8 and this operator cannot, so that
    its target does not. A bias is always written: without one that kernel crashes. Scores masked whole by -inf give
    NaN in both.
    Left alone: operands that others read, too, or that come from several values; weights that others read; a mask by
    key, a cache of keys and values; other types than float32.
    accuracy: rounding. Source: ONNX Runtime's contributed operators.
    """

    name: ClassVar[str] = "pack-attention"
    accuracy: ClassVar[Accuracy] = "rounding"
    roots: ClassVar[tuple[str, ...]] = ("MatMul", "Gemm")

    def rewrite(self, node: ir.Node, context: Context) -> Outcome:
        """Find the attention that a product is the query of, and its other two operands."""
        attention = _fed_by(node)
        if attention is None or attention.graph is not node.graph:
            return None
        parts = [part for value in attention.inputs[:3] if (part := _part(value)) is not None]
        reason = _misfit(attention, parts)
        if not context.target.has_kernel(_PACKED, "com.microsoft"):
            listed = f"packed attention not made: target {context.target.name} lists no kernel for it"
            return Refused(listed) if not reason else None
        return Refused(f"packed attention not made: {reason}") if reason else _pack(attention, parts)


def _fed_by(node: ir.Node) -> ir.Node | None:
    """Return the attention whose query a product leads to."""
    nodes = [node]
    for _ in range(_FAR):
        uses = [(use.node, value) for maker in nodes for value in maker.outputs for use in value.uses()]
        if len(uses) > len("qkv"):
            return None
        for reader, value in uses:
            if reader.op_type == _UNPACKED and reader.domain == "com.microsoft" and reader.inputs[0] is value:
                return reader
        nodes = [reader for reader, _ in uses if reader.op_type in ("Add", "Reshape", "Split") and is_standard(reader)]
    return None


def _part(value: ir.Value | None) -> Part | None:
    """Take an operand apart, from its end: Split and Reshape in any order, bias, product, Reshape."""
    columns, passed = slice(None), dict[str, ir.Node]()
    while (node := value.producer() if value is not None else None) is not None:
        if node.op_type not in ("Split", "Reshape") or node.op_type in passed or not is_standard(node):
            break
        if node.op_type == "Split":
            found = _columns(node, value)
            if found is None:
                return None
            columns = found
        passed[node.op_type] = node
        value = node.inputs[0]
    view = passed.get("Reshape")
    if node is not None and node.op_type == "Add" and is_standard(node):
        inner = (source.producer() for source in node.inputs if source is not None)
        node = next((n for n in inner if n is not None and n.op_type == "MatMul"), None)
    product = projection(node) if node is not None and node.op_type in ("MatMul", "Gemm") else None
    if product is None or product.end.outputs[0] is not value:
        return None
    source = product.node.inputs[0] if view is None else _unfolded(product.node.inputs[0], view)
    if source is None:
        return None
    bias = product.bias if product.bias is not None else np.zeros(product.weight.shape[1], product.weight.dtype)
    return Part(source, product.weight[:, columns], bias[columns], (product.node, product.end, *passed.values()))


def _columns(split: ir.Node, value: ir.Value | None) -> slice | None:
    """Return which part of the last axis of its input an output of Split is."""
    widths = [output.shape[-1] if output.shape is not None and len(output.shape) else None for output in split.outputs]
    source = split.inputs[0]
    rank = len(source.shape) if source is not None and source.shape is not None else 0
    if not rank or split.attributes.get_int("axis", 0) not in (-1, rank - 1):
        return None
    start = 0
    for output, width in zip(split.outputs, widths, strict=True):
        if not isinstance(width, int):
            return None
        if output is value:
            return slice(start, start + width)
        start += width
    return None


def _unfolded(rows: ir.Value | None, view: ir.Node) -> ir.Value | None:
    """Return the ``[B, T, D]`` that a Reshape makes the rows of a product of, where a view behind has the same B and T.

    One of the two may have no size that is known: it is the same where the other one is, as there are as many rows.
    """
    before = rows.producer() if rows is not None else None
    if before is None or before.op_type != "Reshape" or not is_standard(before) or rows is None or rows.shape is None:
        return None
    source, given = before.inputs[0], view.inputs[0]
    have, kept = (sizes(value) if value is not None else None for value in (source, view.outputs[0]))
    if have is None or kept is None or not len(have) == len(kept) == 3 or have[2] != rows.shape[-1]:
        return None
    known = [mine for mine, other in zip(have[:2], kept[:2], strict=True) if mine == other]
    if len(known) == 1 and given is not None and given.shape is not None and kept[2] == given.shape[-1]:
        return source if isinstance(known[0], int) and known[0] > 0 else None
    return source if len(known) == 2 and all(isinstance(d, int) or is_named(d) for d in known) else None


def _misfit(attention: ir.Node, parts: Sequence[Part]) -> str:
    """Say why an attention cannot be packed, empty where it can."""
    if len(parts) < 3 or len({id(part.source) for part in parts}) > 1:
        return "queries, keys and values are not all products of one value with constant weights of their own"
    source = parts[0].source
    if source.dtype != ir.DataType.FLOAT or any(part.weight.dtype != np.float32 for part in parts):
        return "other types than float32"
    if source.shape is None or len(source.shape) != 3 or parts[0].weight.shape != parts[1].weight.shape:
        return "the input is not known to be of rank 3, or keys are not as wide as queries"
    if any(input_at(attention, index) is not None for index in (4, *range(6, 10))):
        return "a mask by key or a cache"
    if any(output_used(value) for value in attention.outputs[1:]):
        return "keys, values or scores are read, too"
    if is_exported_twice(attention.outputs[0]):
        return "its output is exported twice"
    if any(name not in _MEANS_THE_SAME for name in attention.attributes):
        return "an attribute that is not known here"
    bias = input_at(attention, 3)
    if bias is not None and constant(bias) is None:
        return "its bias is computed at run time"
    inside = {id(node) for part in parts for node in part.nodes} | {id(attention)}
    if any(id(reader) not in inside for reader in _readers(parts)):
        return "queries, keys or values have other readers"
    return ""


def _readers(parts: Sequence[Part]) -> Iterator[ir.Node | None]:
    """Yield what reads the values between a source and the attention, None for a graph output."""
    for part in parts:
        for value in (output for node in part.nodes for output in node.outputs):
            if value.is_graph_output():
                yield None
            yield from (use.node for use in value.uses())


def _pack(attention: ir.Node, parts: Sequence[Part]) -> ir.Value:
    graph, name = graph_of(attention), attention.name or "attention"
    widths = [part.weight.shape[1] for part in parts]
    bias = np.concatenate([part.bias for part in parts])
    own = constant(input_at(attention, 3))
    inputs: list[ir.Value | None] = [
        parts[0].source,
        new_initializer(graph, np.concatenate([part.weight for part in parts], axis=1), f"{name}_weight"),
        new_initializer(graph, bias if own is None else bias + own, f"{name}_bias"),
    ]
    mask = input_at(attention, 5)
    if mask is not None:
        inputs += [None, None, mask]
    packed = insert_before(
        attention, _PACKED, inputs, domain="com.microsoft", name=attention.name, like=attention.outputs[:1]
    )
    for attribute in attention.attributes.values():
        packed.attributes[attribute.name] = attribute
    if widths[2] != widths[0]:
        packed.attributes["qkv_hidden_sizes"] = ir.AttrInt64s("qkv_hidden_sizes", widths)
    replace_uses(attention.outputs[0], packed.outputs[0])
    retire(attention)
    return packed.outputs[0]
