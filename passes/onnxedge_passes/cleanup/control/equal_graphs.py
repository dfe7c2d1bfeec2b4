"""Subgraphs that compute the same."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable

import onnx_ir as ir

from onnxedge.api import is_standard
from onnxedge_passes.cleanup.common_subexpressions import attribute_key, is_random

_MOST_BYTES = 1 << 20  #: larger initializers are not compared
_DEPTH = 16  #: subgraphs inside of more subgraphs are not compared


def same_results(first: ir.Graph, second: ir.Graph) -> bool:
    """Tell whether two branches give back the same, bit by bit: equal operators on equal constants and outer values.

    In whatever order the nodes stand. Random operators, other domains and loops are equal to nothing.
    """
    numbers: dict[Hashable, int] = {}
    mine, other = (_numbered(graph, {}, numbers) for graph in (first, second))
    return len(mine) > 0 and mine == other


def _numbered(graph: ir.Graph, outer: dict[ir.Value, int], numbers: dict[Hashable, int], depth: int = 0) -> list[int]:
    """Return a number for each output, equal where the values are."""
    known = dict(outer)

    def of(value: ir.Value) -> int:
        if value not in known:
            known[value] = numbers.setdefault(_outer_key(value), len(numbers))
        return known[value]

    for node in graph:
        attributes = _attributes(node, known, numbers, depth)
        key: Hashable = id(node)
        if is_standard(node) and not is_random(node) and attributes is not None:
            inputs = tuple(of(value) if value is not None else None for value in node.inputs)
            key = node.op_type, node.overload, inputs, attributes, len(node.outputs)
        for index, value in enumerate(node.outputs):
            known[value] = numbers.setdefault((key, index, bool(value.name)), len(numbers))
    return [of(value) for value in graph.outputs]


def _outer_key(value: ir.Value) -> Hashable:
    """Return what identifies a value that no node of a branch makes: its elements where it is constant."""
    tensor = value.const_value if value.is_initializer() and not value.is_graph_input() else None
    if tensor is None or tensor.dtype == ir.DataType.STRING or tensor.nbytes > _MOST_BYTES:
        return "value", id(value)
    return "constant", tensor.dtype, tuple(tensor.shape), hashlib.sha256(tensor.tobytes()).digest()


def _attributes(node: ir.Node, known: dict[ir.Value, int], numbers: dict[Hashable, int], depth: int) -> Hashable | None:
    found: list[Hashable] = []
    for name, attribute in sorted(node.attributes.items()):
        if attribute.type == ir.AttributeType.GRAPH and not attribute.is_ref():
            if node.op_type != "If" or depth >= _DEPTH:
                return None
            key: Hashable = tuple(_numbered(attribute.as_graph(), known, numbers, depth + 1))
        else:
            key = attribute_key(attribute)
        if key is None:
            return None
        found.append((name, key))
    return tuple(found)
