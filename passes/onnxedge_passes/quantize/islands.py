"""Float nodes between integers: what the crossings around them cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from onnxedge.api import Context, Costs, Placement, batch_one_shape, node_label, operator

SHORES = 16  #: nodes that are named for one island
NO_REASON = "what is around it computes in float"


@dataclass(frozen=True)
class Island:
    """Describe nodes that compute in float, read what integer kernels make, and are read by integer kernels.

    Attributes:
        nodes: in graph order.
        reason: why the first of them that has a reason is float.
        crossings: values that are made float for it, or quantized behind it.
        cost_ns: what the crossings take by the target's figures, 0 where it has none.
        shores: nodes at the crossings, with what these cost and why the node is float; the dearest first.
    """

    nodes: tuple[ir.Node, ...]
    reason: str
    crossings: int
    cost_ns: float
    shores: tuple[tuple[ir.Node, float, str], ...]

    def figures(self) -> dict[str, object]:
        """Return what is known, JSON-ready."""
        return {
            "first": node_label(self.nodes[0]),
            "nodes": len(self.nodes),
            "reason": self.reason,
            "crossings": self.crossings,
            "cost_ns": round(self.cost_ns),
            "at": [{"node": node_label(n), "cost_ns": round(ns), "reason": why} for n, ns, why in self.shores],
        }


def islands(model: ir.Model, placement: Placement, context: Context) -> list[Island]:
    """Return the islands of a model as it is before integers are written, those of the highest cost first."""
    rules = context.target.quantization
    assert rules is not None
    costs = Costs((), rules, batch_one_shape)
    integer = {node for unit in placement.integer for node in unit.nodes}
    reads = {(unit.node, index) for unit in placement.integer for index in unit.reads}
    found = []
    for nodes in _components(model, integer):
        entered = {
            v: node for node in reversed(nodes) for v in node.inputs if v is not None and v.producer() in integer
        }
        left = {v: node for node in nodes for v in node.outputs for use in v.uses() if (use.node, use.idx) in reads}
        if not (entered and left):
            continue
        prices: dict[ir.Node, float] = {}
        for value, node in (*entered.items(), *left.items()):
            prices[node] = prices.get(node, 0.0) + costs.crossing(value)
        dearest = sorted(prices, key=lambda node: -prices[node])[:SHORES]
        shores = tuple((node, prices[node], placement.reasons.get(node, NO_REASON)) for node in dearest)
        reason = next((placement.reasons[node] for node in nodes if node in placement.reasons), NO_REASON)
        found.append(Island(tuple(nodes), reason, len(entered) + len(left), sum(prices.values()), shores))
    return sorted(found, key=lambda island: -island.cost_ns)


def tell(found: list[Island], context: Context) -> None:
    """Note each island; those of equal cost and reason are counted together."""
    for island in found:
        size = f"{len(island.nodes)} float nodes" if len(island.nodes) > 1 else "a float node"
        price = f", about {island.cost_ns / 1e3:.2g} us a sample" if island.cost_ns else ""
        crossings = f"{island.crossings} crossings{price}"
        context.note(island.nodes[0], f"island of {size} between integers costs {crossings}: {island.reason}")


def _components(model: ir.Model, integer: set[ir.Node]) -> list[list[ir.Node]]:
    """Return the nodes that compute float and hand floats to each other, in graph order."""
    groups: dict[ir.Node, list[ir.Node]] = {}
    for node in model.graph:
        if node in integer or not _computes(node):
            continue
        own = [node]
        for maker in {m for v in node.inputs if v is not None and (m := v.producer()) in groups and m is not None}:
            other = groups[maker]
            if other is own:
                continue
            small, large = sorted((own, other), key=len)
            large += small
            for member in small:
                groups[member] = large
            own = large
        groups[node] = own
    order: Mapping[ir.Node, int] = {node: position for position, node in enumerate(model.graph)}
    distinct = {id(group): group for group in groups.values()}
    return [sorted(group, key=order.__getitem__) for group in distinct.values()]


def _computes(node: ir.Node) -> bool:
    floats = any(value.dtype == ir.DataType.FLOAT for value in node.outputs)
    return floats and operator(node).kind not in ("source", "shape", "quantization")
