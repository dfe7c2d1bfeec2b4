"""Regions of operators that work in any order of their axes."""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx_ir as ir

from onnxedge.api import is_standard
from onnxedge_passes.cleanup.worklist import is_exported_twice, node_opset
from onnxedge_passes.layout.orders import Perm, is_sorted, rank
from onnxedge_passes.layout.regrouped import OLDEST, turned
from onnxedge_passes.layout.turned import Turned

_LARGEST_REGION = 2000  #: nodes that are looked at together


def perm_of(node: ir.Node | None) -> Perm | None:
    """Return the order of a Transpose, None for another node."""
    if node is None or node.graph is None or node.op_type != "Transpose" or not is_standard(node):
        return None
    if node_opset(node) < OLDEST:
        return None
    have = rank(node.inputs[0])
    perm = node.attributes.get_ints("perm", range(have)[::-1] if have is not None else None)
    return tuple(perm) if perm is not None else None


@dataclass
class Region:
    """Nodes that can be turned together, and the order in which each value between them would come."""

    nodes: dict[ir.Node, Turned] = field(default_factory=dict)
    orders: dict[ir.Value, Perm] = field(default_factory=dict)


def grow(start: ir.Node, before: Perm | None, after: Perm | None = None) -> Region:
    """Follow values from node to node as far as the nodes work in any order.

    Args:
        start: first node.
        before: order in which its data is to come; None where the order of its outputs is given.
        after: order in which its outputs are to come.
    """
    region = Region()
    queue: list[tuple[ir.Node, Perm | None, Perm | None]] = [(start, before, after)]
    while queue and len(region.nodes) < _LARGEST_REGION:
        node, before, after = queue.pop()
        if node in region.nodes or any(is_exported_twice(value) for value in node.outputs):
            continue
        if before is None:
            before = region.orders.get(node.inputs[0]) if node.inputs[0] is not None else None
        wish = after or region.orders.get(node.outputs[0])
        wishes = [wish] if wish is not None else [*_asked_for(node.outputs[0]), None]
        made = next((how for wish in wishes if (how := turned(node, before, wish)) is not None), None)
        if made is None:
            continue
        inputs = [value for index in made.data if (value := node.inputs[index]) is not None]
        outputs = [value for value in node.outputs if value.name]
        needs = [(value, made.before) for value in inputs] + [(value, made.after) for value in outputs]
        if any(region.orders.get(value, wish) != wish for value, wish in needs):
            continue
        region.nodes[node] = made
        region.orders.update(needs)
        for value, order in needs:
            if not is_sorted(order):
                queue.extend((use.node, order, None) for use in value.uses() if use.node.graph is node.graph)
        for value in inputs:
            producer = value.producer()
            if producer is not None and producer.graph is node.graph and producer.inputs:
                queue.append((producer, None, made.before))
    return region


def _asked_for(value: ir.Value) -> list[Perm]:
    """Return the orders that Transposes bring a value into."""
    return [perm for use in value.uses() if (perm := perm_of(use.node)) is not None]
