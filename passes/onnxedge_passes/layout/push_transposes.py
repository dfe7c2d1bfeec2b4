"""Transposes moved along the graph until as few as possible are left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import networkx as nx
import onnx_ir as ir

from onnxedge.api import (
    Accuracy,
    Context,
    Pass,
    Result,
    constant,
    constant_tensor,
    graph_of,
    graphs_of,
    insert_after,
    insert_before,
    is_standard,
    new_initializer,
    replace_uses,
)
from onnxedge_passes.cleanup.worklist import node_opset, retire
from onnxedge_passes.layout.turned import Perm, Turned, composed, inverse, keeps_rank, rank, turned

_LARGEST_REGION = 2000  #: nodes that are looked at together
_CALL = 1024  #: elements whose move costs what running one more node costs
_UNKNOWN_SIZE = 64  #: what an unknown size counts as; an unknown first one is a batch of 1
_LARGEST_CONSTANT = 1 << 20  #: elements; a larger constant is not turned while others read it as it is


@dataclass(frozen=True, kw_only=True)
class PushTransposes(Pass):
    """Write elementwise operators, Concat, Split, Pad, Slice, reductions and their like in the axis order around them.

    Before: ``y = Conv(Transpose<perm=[0, 3, 1, 2]>(Relu(Transpose<perm=[0, 2, 3, 1]>(Conv(x)) + b)))``, ``b: [C]``
    After:  ``y = Conv(Relu(Conv(x) + b'))``, ``b': [C, 1, 1]``

    For each region of operators that work in any order of the axes, a minimum cut finds the part that is to work in the
    order of a Transpose next to it, so that the fewest elements are moved; applied where Transposes become cheaper and
    not more.
    Left alone: what lies behind an operator with an order of its own (Conv, MatMul, Reshape, Gather), behind an unknown
    one, or in another graph; operands that are not constant; opsets before 11.
    accuracy: rounding (a reduction adds in another order, vector units round some functions differently at the end of
    a row). Source: own; the idea is ONNX Runtime's ``onnx_transpose_optimization.cc``.
    """

    name: ClassVar[str] = "push-transposes"
    accuracy: ClassVar[Accuracy] = "rounding"

    def run(self, model: ir.Model, context: Context) -> Result:
        """Go through each graph until nothing becomes cheaper."""
        return Result(rewrites=sum(_push(graph) for graph in graphs_of(model)))


def _push(graph: ir.Graph) -> int:
    rewrites = 0
    tried: set[tuple[ir.Node, Perm]] = set()
    again = True
    while again:
        again = False
        for transpose in [node for node in graph if _perm(node) is not None]:
            for start, perm in list(_starts(transpose)) if transpose.graph is not None else ():
                if transpose.graph is None or start.graph is not transpose.graph or (start, perm) in tried:
                    continue
                region = _grow(start, perm)
                part = _cheapest(region)
                tried.update((node, made.before) for node, made in region.nodes.items())
                if part:
                    _apply(region, part)
                    rewrites += 1
                    again = True
                    tried.clear()
    return rewrites


def _perm(node: ir.Node | None) -> Perm | None:
    """Return the order of a Transpose, None for another node."""
    if node is None or node.graph is None or node.op_type != "Transpose" or not is_standard(node):
        return None
    if node_opset(node) < 11:
        return None
    have = rank(node.inputs[0])
    perm = node.attributes.get_ints("perm", range(have)[::-1] if have is not None else None)
    return tuple(perm) if perm is not None else None


def _starts(transpose: ir.Node) -> Iterator[tuple[ir.Node, Perm]]:
    """Yield the neighbours of a Transpose with the order that would make it superfluous."""
    perm = _perm(transpose)
    assert perm is not None
    for use in transpose.outputs[0].uses():
        if use.node.graph is transpose.graph and _perm(use.node) is None:
            yield use.node, inverse(perm)
    producer = transpose.inputs[0].producer() if transpose.inputs[0] is not None else None
    if producer is not None and producer.graph is transpose.graph and _perm(producer) is None and keeps_rank(producer):
        yield producer, perm


@dataclass
class _Region:
    """Nodes that can be turned together, and the order in which each value between them would come."""

    nodes: dict[ir.Node, Turned] = field(default_factory=dict)
    orders: dict[ir.Value, Perm] = field(default_factory=dict)


def _grow(start: ir.Node, perm: Perm) -> _Region:
    """Follow values from node to node as far as the nodes work in any order."""
    region = _Region()
    queue: list[tuple[ir.Node, Perm]] = [(start, perm)]
    while queue and len(region.nodes) < _LARGEST_REGION:
        node, order = queue.pop()
        made = turned(node, order) if node not in region.nodes and _perm(node) is None else None
        if made is None:
            continue
        inputs = [value for index in made.data if (value := node.inputs[index]) is not None]
        outputs = [value for value in node.outputs if value.name]
        needs = [(value, made.before) for value in inputs] + [(value, made.after) for value in outputs]
        if any(region.orders.get(value, wish) != wish for value, wish in needs):
            continue
        region.nodes[node] = made
        region.orders.update(needs)
        for value in inputs:
            queue.extend((use.node, made.before) for use in value.uses() if use.node.graph is node.graph)
            producer = value.producer()
            if producer is not None and producer.graph is node.graph and keeps_rank(producer):
                queue.append((producer, made.before))
        for value in outputs:
            queue.extend((use.node, made.after) for use in value.uses() if use.node.graph is node.graph)
    return region


def _price(value: ir.Value) -> int:
    """Return what transposing a value costs, in elements."""
    elements = 1
    for axis, size in enumerate(value.shape or ()):
        elements *= size if isinstance(size, int) else 1 if axis == 0 else _UNKNOWN_SIZE
    return elements + _CALL


@dataclass(frozen=True)
class _Term:
    """One Transpose that is needed if a value is there in one order and read in the other one.

    Attributes:
        value: what is transposed.
        turned: the order that is read.
        producer: node that decides in which order the value is there; None for a value from outside, which is there
            in the old order.
        readers: nodes that read it and may be turned.
        always: it is read in that order whatever becomes of the readers.
    """

    value: ir.Value
    turned: bool
    producer: ir.Node | None
    readers: tuple[ir.Node, ...]
    always: bool = False

    def is_needed(self, part: set[ir.Node]) -> bool:
        if self.producer is not None and (self.producer in part) == self.turned:
            return False
        return self.always or any((reader in part) == self.turned for reader in self.readers)


def _terms(region: _Region) -> list[_Term]:
    terms: list[_Term] = []
    for value, order in region.orders.items():
        if all(size == 1 for size in value.shape or ()) or order == tuple(range(len(order))):
            continue
        producer = value.producer()
        inside = producer if producer in region.nodes and order == _order_out(region, producer) else None
        readers, transposes, others = [], [], value.is_graph_output()
        for use in value.uses():
            made = region.nodes.get(use.node)
            if made is not None and use.idx in made.data:
                readers.append(use.node)
            elif _perm(use.node) is not None and use.node.graph is (producer or use.node).graph:
                transposes.append(_perm(use.node))
            else:
                others = True
        mine = tuple(dict.fromkeys(readers))
        if inside is not None:
            terms.append(_Term(value, False, inside, mine, others))
            terms.append(_Term(value, True, inside, mine, order in transposes))
        elif constant_tensor(value) is None:
            given = _perm(producer)
            if given is not None and not others:
                terms.append(_Term(value, False, None, mine))  # the Transpose goes when nobody reads it
            if order not in transposes and (given is None or composed(given, order) != tuple(range(len(given)))):
                terms.append(_Term(value, True, None, mine))
    return terms


def _order_out(region: _Region, node: ir.Node | None) -> Perm | None:
    return region.nodes[node].after if node is not None and node in region.nodes else None


def _cheapest(region: _Region) -> set[ir.Node]:
    """Return the nodes to turn, none where that makes nothing cheaper."""
    if not region.nodes or any(not _is_free(node, region) for node in region.nodes):
        return set()
    terms = _terms(region)
    flow = nx.DiGraph()
    flow.add_nodes_from(("turned", "kept"))

    def connect(first: object, second: object, price: int | None, *, backwards: bool) -> None:
        first, second = (second, first) if backwards else (first, second)
        have = flow.edges[first, second].get("capacity") if flow.has_edge(first, second) else 0
        if price is None or have is None:
            flow.add_edge(first, second)  # no capacity: never cut
        else:
            flow.add_edge(first, second, capacity=have + price)

    for number, term in enumerate(terms):
        price = _price(term.value)
        owner: object = term.producer if term.producer is not None else "kept" if term.turned else "turned"
        gate: object = ("gate", number)
        if term.always:
            gate = "turned" if term.turned else "kept"
        connect(gate, owner, price, backwards=not term.turned)
        for reader in () if term.always else term.readers:
            connect(reader, gate, None, backwards=not term.turned)
    _, (side, _) = nx.minimum_cut(flow, "turned", "kept")
    part = {node for node in region.nodes if node in side}
    if not part:
        return part

    def total(chosen: set[ir.Node], price: Callable[[ir.Value], int]) -> int:
        return sum(price(term.value) for term in terms if term.is_needed(chosen))

    if total(part, _price) >= total(set(), _price) or total(part, lambda v: 1) > total(set(), lambda v: 1):
        return set()
    return part


def _is_free(node: ir.Node, region: _Region) -> bool:
    """Tell whether turning a node does not leave a large constant in the model twice."""
    for index in region.nodes[node].data:
        value = node.inputs[index]
        tensor = constant_tensor(value)
        if value is not None and tensor is not None and tensor.size > _LARGEST_CONSTANT and len(value.uses()) > 1:
            return False
    return True


def _apply(region: _Region, part: set[ir.Node]) -> None:
    """Turn nodes, and put Transposes where a value is read in the other order."""
    made: dict[ir.Value, ir.Value] = {}
    order = _in_topological_order([node for node in region.nodes if node in part])
    for node in order:
        _turn(node, region.nodes[node], made)
    for node in reversed(order):
        for value in node.outputs:
            if value in made:
                _hand_over(value, made[value], region.nodes[node].after, part)
    feeders = [value.producer() for node in order for value in node.inputs if value is not None]
    retire(*order)
    retire(*(feeder for feeder in dict.fromkeys(feeders) if feeder is not None and feeder not in part))


def _in_topological_order(nodes: list[ir.Node]) -> list[ir.Node]:
    """Return nodes so that each stands behind those that it reads."""
    inside = set(nodes)
    order: dict[ir.Node, None] = {}
    stack = [(node, False) for node in reversed(nodes)]
    while stack:
        node, done = stack.pop()
        if done:
            order[node] = None
        elif node not in order:
            stack.append((node, True))
            sources = [value.producer() for value in node.inputs if value is not None]
            stack.extend((source, False) for source in sources if source in inside and source not in order)
    return list(order)


def _turn(node: ir.Node, how: Turned, made: dict[ir.Value, ir.Value]) -> None:
    inputs = list(node.inputs)
    graph = graph_of(node)
    for index in how.data:
        value = node.inputs[index]
        if value is not None:
            inputs[index] = _in_order(value, how.before, node, made)
    for index, array in how.operands.items():
        inputs += [None] * (index + 1 - len(inputs))
        inputs[index] = new_initializer(graph, array, f"{node.outputs[0].name}_turned")
    attributes = {**{name: a.value for name, a in node.attributes.items()}, **how.attributes}
    new = insert_before(
        node, node.op_type, inputs, attributes=attributes, name=node.name, outputs=len(node.outputs), like=node.outputs
    )
    new.metadata_props.update(node.metadata_props)
    for old, value in zip(node.outputs, new.outputs, strict=True):
        if not old.name:
            value.name = ""
            continue
        known = rank(old) == len(how.after)
        value.shape = ir.Shape([old.shape[axis] for axis in how.after]) if known else None  # type: ignore[index]
        made[old] = value


def _in_order(value: ir.Value, order: Perm, reader: ir.Node, made: dict[ir.Value, ir.Value]) -> ir.Value:
    """Return a value with its axes in another order, transposed where nothing else gives it."""
    if value in made:
        return made[value]
    array = constant(value)
    if all(size == 1 for size in value.shape or ()):
        result = value
    elif array is not None:
        result = new_initializer(graph_of(reader), array.transpose(order), f"{value.name}_turned")
    else:
        given = _perm(value.producer())
        source, perm = value, order
        if given is not None:
            source, perm = value.producer().inputs[0], composed(given, order)  # type: ignore[union-attr, assignment]
        if perm == tuple(range(len(perm))):
            return source
        twins = [use.node for use in source.uses() if _perm(use.node) == perm and use.node.graph is reader.graph]
        result = _transposed(source, perm, reader, value)
        result.shape = ir.Shape([value.shape[axis] for axis in order]) if value.shape is not None else None
        for twin in twins:
            if replace_uses(twin.outputs[0], result):
                retire(twin)
    made[value] = result
    return result


def _transposed(value: ir.Value, perm: Perm, reader: ir.Node, like: ir.Value) -> ir.Value:
    """Put a Transpose right behind the producer of a value, first of all for one from outside the graph."""
    producer, graph = value.producer(), graph_of(reader)
    options: dict[str, Any] = {"attributes": {"perm": list(perm)}, "like": [like]}
    if producer is not None and producer.graph is reader.graph:
        return insert_after(producer, "Transpose", [value], **options).outputs[0]
    return insert_before(graph[0], "Transpose", [value], **options).outputs[0]


def _hand_over(old: ir.Value, new: ir.Value, order: Perm, part: set[ir.Node]) -> None:
    """Let the readers that were not turned read a turned value, Transposes of it included."""
    back = inverse(order)
    if back == tuple(range(len(back))) and replace_uses(old, new):
        return
    for use in list(old.uses()):
        given = _perm(use.node)
        if given is None or use.node in part:
            continue
        perm = composed(back, given)
        if perm == tuple(range(len(perm))) and replace_uses(use.node.outputs[0], new):
            retire(use.node)
        else:
            use.node.replace_input_with(0, new)
            use.node.attributes["perm"] = ir.AttrInt64s("perm", perm)
    if old.is_graph_output() or any(use.node not in part for use in old.uses()):
        producer = new.producer()
        assert producer is not None
        restored = _transposed(new, back, producer, old)
        for use in list(old.uses()):
            if use.node not in part:
                use.node.replace_input_with(use.idx, restored)
        replace_uses(old, restored)
