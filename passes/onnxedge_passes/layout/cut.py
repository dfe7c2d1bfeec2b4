"""Which part of a region is best turned: a minimum cut between what is turned and what is kept."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from onnxedge.api import constant_tensor, is_standard, sole_consumer
from onnxedge_passes.layout.orders import Perm, agree, inverse, is_single, is_sorted
from onnxedge_passes.layout.region import Region, perm_of

_CALL = 1024  #: elements whose move costs what running one more node costs
_UNKNOWN_SIZE = 64  #: what an unknown size counts as; the first of them is a batch of 1
_LARGEST_CONSTANT = 1 << 20  #: elements; a larger constant is not turned while others read it as it is
_SUMS = ("Add", "Sub", "Mul", "Div")  #: what a convolution's weight and bias take in, beside a constant
_ACTIVATIONS = ("Clip", "HardSigmoid", "LeakyRelu", "Relu", "Sigmoid", "Tanh")  #: what runtimes compute with it


def _price(value: ir.Value, order: Perm) -> int:
    """Return what transposing a value costs, in elements; where only axes of size 1 move it becomes a Reshape."""
    if agree(value, order, range(len(order))):
        return 1
    known = [size for size in value.shape or () if isinstance(size, int)]
    return math.prod(known) * int(_UNKNOWN_SIZE ** max(len(order) - len(known) - 1, 0)) + _CALL


@dataclass(frozen=True)
class _Term:
    """One Transpose that is needed if a value is there in one order and read in the other one.

    Attributes:
        value: what is transposed.
        price: what that costs.
        turned: the order that is read.
        producer: node that decides in which order the value is there; None for a value from outside, which is there
            in the old order.
        readers: nodes that read it and may be turned.
        always: it is read in that order whatever becomes of the readers.
        moves: it is a Transpose; else one more call of a reader.
    """

    value: ir.Value
    price: int
    turned: bool
    producer: ir.Node | None
    readers: tuple[ir.Node, ...]
    always: bool = False
    moves: bool = True

    def is_needed(self, part: set[ir.Node]) -> bool:
        if self.producer is not None and (self.producer in part) == self.turned:
            return False
        return self.always or any((reader in part) == self.turned for reader in self.readers)


def _terms(region: Region) -> list[_Term]:
    terms: list[_Term] = []
    for value, order in region.orders.items():
        if is_sorted(order) or is_single(value):
            continue
        price = _price(value, order)
        producer = value.producer()
        inside = producer if producer in region.nodes and order == _order_out(region, producer) else None
        others = value.is_graph_output()
        readers: list[ir.Node] = []
        transposes: list[Perm] = []
        stays = False
        for use in value.uses():
            made = region.nodes.get(use.node)
            if made is not None and use.idx in made.data:
                readers.append(use.node)
            elif (perm := perm_of(use.node)) is not None and use.node.graph is (producer or use.node).graph:
                transposes.append(perm)
                stays |= perm == order and use.node.outputs[0] not in region.orders
                others |= agree(value, perm, range(len(perm)))  # a view now
            else:
                others = True
        mine = tuple(dict.fromkeys(readers))
        met = any(len(perm) == len(order) and agree(value, perm, order) for perm in transposes)
        if inside is not None:
            terms.append(_Term(value, price, False, inside, mine, others))
            terms.append(_Term(value, price, True, inside, mine, met))
        elif constant_tensor(value) is None:
            given = perm_of(producer)
            if given is not None and not others:
                terms.append(_Term(value, price, False, None, mine))  # the Transpose goes when nobody reads it
            if not stays and (given is None or not agree(value, order, inverse(given))):
                terms.append(_Term(value, price, True, None, mine))
    return terms


def _apart(region: Region) -> Iterator[_Term]:
    """Yield a term for each node that takes one more call in one order than in the other.

    That is a node that would be computed together with a convolution before it, and a Shape, whose sizes must then be
    brought into order.
    """
    for node, made in region.nodes.items():
        if made.picks is not None and node.inputs[0] is not None:
            yield _Term(node.inputs[0], 1, True, None, (node,), moves=False)
    for value, order in region.orders.items():
        producer = value.producer()
        given = perm_of(producer)
        if producer is None or producer in region.nodes or is_sorted(order):
            continue
        source = producer.inputs[0] if given is not None else value
        if given is not None and not agree(value, order, inverse(given)):
            continue
        convolution = source.producer() if source is not None else None
        if source is None or convolution is None or convolution.op_type not in ("Conv", "ConvTranspose"):
            continue
        reader = sole_consumer(value) if sole_consumer(source) is not None and is_standard(convolution) else None
        while reader is not None and reader in region.nodes and reader.op_type in (*_SUMS, *_ACTIVATIONS):
            if sum(constant_tensor(operand) is None for operand in reader.inputs if operand is not None) != 1:
                break
            yield _Term(value, _CALL, given is None, None, (reader,), moves=False)
            reader = sole_consumer(reader.outputs[0]) if reader.op_type in _SUMS else None


def _order_out(region: Region, node: ir.Node | None) -> Perm | None:
    return region.nodes[node].after if node is not None and node in region.nodes else None


def cheapest(region: Region) -> set[ir.Node]:
    """Return the nodes to turn, none where that makes nothing cheaper."""
    if not region.nodes or any(not _is_free(node, region) for node in region.nodes):
        return set()
    import networkx as nx

    terms = [*_terms(region), *_apart(region)]
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
        owner: object = term.producer if term.producer is not None else "kept" if term.turned else "turned"
        gate: object = ("gate", number)
        if term.always:
            gate = "turned" if term.turned else "kept"
        connect(gate, owner, term.price, backwards=not term.turned)
        for reader in () if term.always else term.readers:
            connect(reader, gate, None, backwards=not term.turned)
    _, (side, _) = nx.minimum_cut(flow, "turned", "kept")
    part = {node for node in region.nodes if node in side}
    if not part:
        return part

    old, new = ([term for term in terms if term.is_needed(chosen)] for chosen in (set[ir.Node](), part))
    crossed = list(_crossed(region, part))
    cheaper = sum(term.price for term in new) + sum(crossed) < sum(term.price for term in old)
    fewer = sum(term.moves for term in new) + len(crossed) <= sum(term.moves for term in old)
    return part if cheaper and fewer else set()


def _crossed(region: Region, part: set[ir.Node]) -> Iterator[int]:
    """Yield the price of each Transpose that is turned round, not saved: of a value that is turned on both its sides.

    No cut can weigh this, as it costs where two nodes are turned together and not where one of them is. Twice, since
    such a Transpose is a term of the value before it and one of the value behind it where it stays as it is.
    """
    for value, order in region.orders.items():
        given = perm_of(value.producer())
        source = value.producer().inputs[0] if given is not None else None  # type: ignore[union-attr]
        if given is None or source is None or is_sorted(region.orders.get(source, given)):
            continue
        read = any(use.node in part for use in value.uses())
        if read and source.producer() in part and agree(value, order, inverse(given)):
            yield from [_price(value, order)] * 2


def _is_free(node: ir.Node, region: Region) -> bool:
    """Tell whether turning a node does not leave a large constant in the model twice."""
    for index in region.nodes[node].data:
        value = node.inputs[index]
        tensor = constant_tensor(value)
        if value is not None and tensor is not None and tensor.size > _LARGEST_CONSTANT and len(value.uses()) > 1:
            return False
    return True
