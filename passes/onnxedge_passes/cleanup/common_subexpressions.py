"""Common subexpressions: the same operator on the same values, computed once."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import onnx_ir as ir

from onnxedge.api import (
    Context,
    Pass,
    Result,
    constant_tensor,
    insert_before,
    is_standard,
    move_uses,
    operator,
    remove_node,
    replace_uses,
    subgraphs,
)
from onnxedge_passes.cleanup.worklist import root_graphs

_SAMPLE_BYTES = 1024  #: initializers of more bytes are told apart by their first elements where these differ
_SAMPLED = 64
_SMALL_BYTES = 256  #: constants of two graphs are compared up to here
_NO_WORK = ("movement", "shape", "source")  #: kinds of operators that a copy of their result costs no less than


@dataclass(frozen=True, kw_only=True)
class CommonSubexpressions(Pass):
    """Compute equal nodes once and keep equal initializers once.

    Before: ``a = Shape(x); b = Shape(x); y = Concat(a, b)``
    After:  ``a = Shape(x); y = Concat(a, a)``

    A node of a branch or a body that is equal to one that an outer graph has computed by then is left out, too.
    Left alone: random operators, nodes with subgraphs, other domains (a custom operator may keep state), nodes of two
    branches, what a body computes alone, two exported outputs; initializers that a caller may override, or that
    BatchNormalization updates in training mode.
    Two nodes are equal when operator, attributes, number of outputs and inputs by position are; an empty optional
    input counts as a position: ``Clip(x, "", c)`` is not ``Clip(x, c, "")``.
    accuracy: exact. Source: own.
    """

    name: ClassVar[str] = "common-subexpressions"
    max_constant_bytes: int = 1 << 20  #: larger initializers are not compared

    def run(self, model: ir.Model, context: Context) -> Result:
        """Merge initializers first, so that nodes that read equal ones become equal."""
        rewrites = 0
        for root in root_graphs(model):
            graphs, updated = [root, *root.subgraphs()], _updated(root)
            rewrites += sum(self._merge_initializers(graph, updated) for graph in graphs)
            rewrites += _merge_nodes(root, updated, (), len(graphs) > 1)
        return Result(rewrites=rewrites)

    def _merge_initializers(self, graph: ir.Graph, updated: Set[ir.Value]) -> int:
        alike: defaultdict[Hashable, list[ir.Value]] = defaultdict(list)
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is None or value.is_graph_input() or value.is_graph_output() or value in updated:
                continue
            if tensor.dtype != ir.DataType.STRING and tensor.nbytes <= self.max_constant_bytes:
                alike[tensor.dtype, tuple(tensor.shape)].append(value)
        merged = 0
        for values in alike.values():
            for group in _by_key(values, _sample):
                for first, *equal in _by_key(group, _digest):
                    for value in equal:
                        move_uses(value, first)
                        del graph.initializers[value.name or ""]
                    merged += len(equal)
        return merged


def _updated(graph: ir.Graph) -> Set[ir.Value]:
    """Return the values that a node may write into: in training ONNX Runtime updates mean and variance in place."""
    training = (n for n in graph.all_nodes() if n.op_type == "BatchNormalization" and len(n.outputs) > 1)
    return {value for node in training for value in node.inputs[3:5] if value is not None}


def _by_key(values: Sequence[ir.Value], key: Callable[[ir.TensorProtocol], bytes]) -> Iterable[list[ir.Value]]:
    """Return the values of equal keys, in order; a single value's tensor is not looked at."""
    if len(values) < 2:
        return [list(values)]
    groups: defaultdict[bytes, list[ir.Value]] = defaultdict(list)
    for value in values:
        assert value.const_value is not None
        groups[key(value.const_value)].append(value)
    return groups.values()


def _sample(tensor: ir.TensorProtocol) -> bytes:
    """Return the first elements: those of weights differ, so that few are read whole."""
    if tensor.dtype == ir.DataType.STRING or tensor.nbytes <= _SAMPLE_BYTES:
        return b""
    return tensor.numpy().reshape(-1)[:_SAMPLED].tobytes()


def _digest(tensor: ir.TensorProtocol) -> bytes:
    return hashlib.sha256(tensor.tobytes()).digest()


def is_random(node: ir.Node) -> bool:
    """Tell whether two calls of a node may differ; Dropout's in training mode do."""
    return operator(node).random or node.op_type == "Dropout"


@dataclass
class _Open:
    """A graph that is being gone through: its nodes so far by what they compute."""

    graph: ir.Graph
    seen: dict[Hashable, ir.Node] = field(default_factory=dict)

    @cached_property
    def names(self) -> Set[str]:
        """Names that values of the graph have, or had."""
        made = (value for node in self.graph for value in node.outputs)
        return {value.name or "" for value in (*self.graph.inputs, *self.graph.initializers.values(), *made)}


def _merge_nodes(graph: ir.Graph, updated: Set[ir.Value], outer: Sequence[_Open], nested: bool) -> int:
    """Merge equal nodes of a graph, and in the graphs inside those that are equal to one ahead of them outside."""
    here = _Open(graph)
    twice = {value for value, count in Counter(graph.outputs).items() if count > 1}
    merged = 0
    for node in list(graph):
        for inner in subgraphs(node) if nested else ():
            ahead = (*outer, here) if is_standard(node) else ()  # others may run their graphs somewhere else
            merged += _merge_nodes(inner, updated, ahead, nested)
        key = _key(node, by_content=nested)
        if key is None:
            continue
        twin = here.seen.setdefault(key, node)
        if twin is not node:
            if _can_stand_in(twin, node, updated, twice):
                for mine, other in zip(node.outputs, twin.outputs, strict=True):
                    replace_uses(mine, other)
                remove_node(node)
                merged += 1
        elif _read_outside(node, key, updated, (*outer, here)):
            del here.seen[key]
            merged += 1
    return merged


def _read_outside(node: ir.Node, key: Hashable, updated: Set[ir.Value], open_graphs: Sequence[_Open]) -> bool:
    """Let the readers of a node read what an outer graph has computed already; False where none has."""
    depth = next((i for i, outer in enumerate(open_graphs[:-1]) if key in outer.seen), None)
    if depth is None or node.op_type == "Constant":
        return False
    twin = open_graphs[depth].seen[key]
    for mine, other in zip(node.outputs, twin.outputs, strict=True):
        if bool(mine.name) != bool(other.name) or mine in updated or other in updated:
            return False
        if any(other.name in inner.names for inner in open_graphs[depth + 1 :]) and other.name:
            return False  # read inside it would be another value
        if mine.is_graph_output() and (operator(node).kind in _NO_WORK or not isinstance(other.type, ir.TensorType)):
            return False
    for mine, other in zip(node.outputs, twin.outputs, strict=True):
        if mine.is_graph_output():
            copied = insert_before(node, "Identity", [other], like=[mine]).outputs[0]
            move_uses(mine, other)
            replace_uses(mine, copied)
        else:
            move_uses(mine, other)
    remove_node(node)
    return True


def _can_stand_in(twin: ir.Node, node: ir.Node, updated: Set[ir.Value], twice: Set[ir.Value]) -> bool:
    for mine, other in zip(node.outputs, twin.outputs, strict=True):
        if bool(mine.name) != bool(other.name) or mine in updated or other in updated:
            return False
        if mine.is_graph_output() and (other.is_graph_output() or mine in twice):
            return False
    return True


def _key(node: ir.Node, *, by_content: bool) -> Hashable | None:
    """Return what a node computes, None where it is equal to no other.

    Args:
        node: any node.
        by_content: small constants that it reads are told apart by their elements, as they stand in several graphs.
    """
    if not is_standard(node) or is_random(node):
        return None
    attributes: list[Hashable] = []
    for name, attribute in sorted(node.attributes.items()):
        value = attribute_key(attribute)
        if value is None:
            return None
        attributes.append((name, value))
    inputs = tuple(_input_key(v, by_content) if v is not None else None for v in node.inputs)
    return node.op_type, node.overload, inputs, tuple(attributes), len(node.outputs)


def _input_key(value: ir.Value, by_content: bool) -> Hashable:
    tensor = constant_tensor(value) if by_content else None
    if tensor is None or tensor.dtype == ir.DataType.STRING or tensor.nbytes > _SMALL_BYTES:
        return id(value)
    return tensor.dtype, tuple(tensor.shape), tensor.tobytes()


def attribute_key(attribute: ir.Attr) -> Hashable | None:
    """Return what identifies an attribute's value, None for a graph or a large or odd tensor."""
    if attribute.is_ref():
        return "reference", attribute.ref_attr_name
    kind = attribute.type
    if kind in (ir.AttributeType.INT, ir.AttributeType.FLOAT, ir.AttributeType.STRING):
        return kind, repr(attribute.value)
    if kind in (ir.AttributeType.INTS, ir.AttributeType.FLOATS, ir.AttributeType.STRINGS):
        return kind, repr(tuple(attribute.value))
    if kind == ir.AttributeType.TENSOR:
        tensor = attribute.as_tensor()
        if tensor.dtype != ir.DataType.STRING and tensor.nbytes <= 1024:
            return kind, tensor.dtype, tuple(tensor.shape), tensor.tobytes()
    return None
