"""Pieces of a model between two values through which everything passes: what is reconstructed on its own."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxedge.api import weight_axes

Place = tuple[ir.Node, int]  #: a node and which of its inputs


@dataclass(frozen=True, eq=False)
class Block:
    """Consecutive nodes of the main graph.

    Attributes:
        nodes: in the graph's order.
        outputs: what is compared with the original: the value that leaves the block, or the model's outputs, and
            those that pass between the blocks it was joined of.
    """

    nodes: tuple[ir.Node, ...]
    outputs: tuple[ir.Value, ...]


def find_blocks(model: ir.Model, comparable: Collection[ir.Value]) -> list[Block]:
    """Cut the main graph wherever one value alone goes on that depends on weights, and it can be compared.

    Args:
        model: whose graph is cut.
        comparable: values that the original model has in the same shape.
    """
    order = list(model.graph)
    last = {value: number for number, node in enumerate(order) for value in node.inputs if value is not None}
    last |= dict.fromkeys(model.graph.outputs, len(order))
    depends: set[ir.Value] = set()
    live: set[ir.Value] = set()
    blocks: list[Block] = []
    start, has_weights = 0, False
    for number, node in enumerate(order):
        if weights(node) or any(value in depends for value in node.inputs if value is not None):
            depends.update(node.outputs)
            live.update(node.outputs)
        live = {value for value in live if last.get(value, -1) > number}
        has_weights |= bool(weights(node))
        if has_weights and len(live) == 1 and live <= set(comparable) and number + 1 < len(order):
            blocks.append(Block(tuple(order[start : number + 1]), tuple(live)))
            start, has_weights = number + 1, False
    outputs = tuple(value for value in model.graph.outputs if value in depends and value in comparable)
    if has_weights and outputs:
        blocks.append(Block(tuple(order[start:]), outputs))
    return blocks


def joined(blocks: Sequence[Block]) -> Block:
    """Make one block of consecutive ones."""
    nodes = tuple(node for block in blocks for node in block.nodes)
    return Block(nodes, tuple(value for block in blocks for value in block.outputs))


def weights(node: ir.Node) -> list[Place]:
    """Return weight and bias of a contraction that can be trained: float32, of this node alone."""
    axes = weight_axes(node)
    if axes is None or not _is_own(node.inputs[axes.index]):
        return []
    found = [(node, axes.index)]
    if node.op_type in ("Conv", "ConvTranspose", "Gemm"):
        return found + ([(node, 2)] if len(node.inputs) > 2 and _is_own(node.inputs[2]) else [])
    uses = list(node.outputs[0].uses())
    if len(uses) != 1 or uses[0].node.op_type != "Add" or uses[0].node.graph is not node.graph:
        return found
    addend = uses[0].node.inputs[1 - uses[0].idx]
    if addend is None or not _is_own(addend) or addend.shape is None or len(addend.shape) != 1:
        return found
    return [*found, (uses[0].node, 1 - uses[0].idx)]


def _is_own(value: ir.Value | None) -> bool:
    if value is None or not value.is_initializer() or value.is_graph_input() or value.is_graph_output():
        return False
    return value.const_value is not None and value.const_value.dtype == ir.DataType.FLOAT and len(value.uses()) == 1
