"""Residual blocks: what a sum adds to a value that also enters it, found by the graph alone, and dropped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxedge.api import Array, Context, Feed, Session, bypass, constant, forked, is_constant, is_standard, weight_axes
from onnxedge_passes.prune.facts import Facts
from onnxedge_passes.prune.surgery import remove_dead


@dataclass(frozen=True, eq=False)
class ResidualBlock:
    """A sum of a value and of what weights make of it: without the block the value goes on alone.

    Attributes:
        add: the sum.
        index: its input that passes the block by.
        nodes: what lies in between, in the graph's order.
        stage: shape of the value, which the blocks of one stage share.
    """

    add: ir.Node
    index: int
    nodes: tuple[ir.Node, ...]
    stage: tuple[int, ...]


def find_residual_blocks(facts: Facts, context: Context) -> list[ResidualBlock]:
    """Return the innermost residual blocks of the main graph, in its order; sums that end none are noted.

    A block has a weight, gives nothing to others but its sum, and changes no shape.
    """
    place = {node: number for number, node in enumerate(facts.model.graph)}
    found: list[ResidualBlock] = []
    for add in facts.model.graph:
        if add.op_type != "Add" or not is_standard(add) or any(v is None or is_constant(v) for v in add.inputs):
            continue
        between = {index: _between(add, index, place) for index in (0, 1)}
        index = next((index for index, nodes in between.items() if nodes), None)
        reason = "" if index is not None else "neither of the two values that it adds enters what makes the other"
        if index is not None:
            nodes = between[index]
            if not any(_has_weight(node) for node in nodes):
                continue
            reason = _refusal(add, index, nodes, facts)
        elif not any(_has_weight(v.producer()) for v in add.inputs if v is not None):
            continue
        if reason or index is None:
            context.note(add, f"no block that can be dropped ends here: {reason}")
            continue
        ordered = tuple(sorted(between[index], key=lambda node: place[node]))
        found.append(ResidualBlock(add, index, ordered, facts.shapes[add.outputs[0]]))
    return _innermost(found, context)


def _between(add: ir.Node, index: int, place: dict[ir.Node, int]) -> set[ir.Node]:
    """Return the nodes that lead from one input of a sum to the other one."""
    shortcut, result = add.inputs[index], add.inputs[1 - index]
    maker = shortcut.producer() if shortcut is not None else None
    start = place.get(maker, -1) if maker is not None else -1
    seen: set[ir.Node] = set()
    pending = [result.producer() if result is not None else None]
    while pending:
        node = pending.pop()
        if node is None or node in seen or place.get(node, -1) <= start:
            continue
        seen.add(node)
        pending += [value.producer() for value in node.inputs if value is not None and value is not shortcut]
    reached: set[ir.Node] = set()
    for node in sorted(seen, key=lambda node: place[node]):
        if any(v is not None and (v is shortcut or v.producer() in reached) for v in node.inputs):
            reached.add(node)
    return reached if result is not None and result.producer() in reached else set()


def _has_weight(node: ir.Node | None) -> bool:
    axes = weight_axes(node) if node is not None else None
    return node is not None and axes is not None and is_constant(node.inputs[axes.index])


def _refusal(add: ir.Node, index: int, nodes: set[ir.Node], facts: Facts) -> str:
    shortcut, total = add.inputs[index], add.outputs[0]
    assert shortcut is not None
    if shortcut not in facts.shapes or facts.shapes[shortcut] != facts.shapes[total]:
        return "it changes the shape"
    for node in nodes:
        for value in node.outputs:
            if value.is_graph_output() or any(use.node is not add and use.node not in nodes for use in value.uses()):
                return "something of it is read elsewhere, too"
    if total.is_graph_output() and (shortcut.is_graph_output() or shortcut.producer() is None):
        return "its sum is a graph output, and what would stand for it cannot be one"
    return ""


def _innermost(found: Sequence[ResidualBlock], context: Context) -> list[ResidualBlock]:
    sums = {block.add for block in found}
    kept = []
    for block in found:
        if sums.isdisjoint(block.nodes):
            kept.append(block)
        else:
            context.note(block.add, "no block that can be dropped ends here: it holds other blocks")
    return kept


def chosen(blocks: Sequence[ResidualBlock], keep: float, losses: Array | None) -> list[ResidualBlock]:
    """Return the blocks to drop: so many of each stage that the share is met, by largest remainders.

    Args:
        blocks: in the graph's order.
        keep: share of them that stays.
        losses: float [blocks], what dropping each costs; None for the last ones of each stage.
    """
    stages: dict[tuple[int, ...], list[int]] = {}
    for number, block in enumerate(blocks):
        stages.setdefault(block.stage, []).append(number)
    total = len(blocks) - math.floor(keep * len(blocks) + 0.5)
    quotas = {stage: (1 - keep) * len(numbers) for stage, numbers in stages.items()}
    counts = {stage: math.floor(quota + 1e-9) for stage, quota in quotas.items()}
    by_remainder = sorted(stages, key=lambda stage: (counts[stage] - quotas[stage], -len(stages[stage])))
    for stage in by_remainder[: max(total - sum(counts.values()), 0)]:
        counts[stage] += 1
    gone: list[int] = []
    for stage, numbers in stages.items():
        order = numbers[::-1] if losses is None else sorted(numbers, key=lambda number: (losses[number], -number))
        gone += order[: counts[stage]]
    return [blocks[number] for number in sorted(gone)]


def losses_of(model: ir.Model, blocks: Sequence[ResidualBlock], feeds: Sequence[Feed], context: Context) -> Array:
    """Return float64 [blocks]: how far the outputs move without each, as a share of their mean square."""
    session = Session(model, threads=context.threads)
    wanted = [session.run(feed) for feed in feeds]
    place = {node: number for number, node in enumerate(model.graph)}
    losses = np.zeros(len(blocks))
    tracked = context.progress.track(blocks, "derive: blocks", len(blocks))
    for number, block in enumerate(tracked):
        fork, _ = forked(model)
        nodes = list(fork.graph)
        drop(nodes[place[block.add]], block.index)
        trial = Session(fork, threads=context.threads)
        losses[number] = sum(_distance(w, trial.run(feed)) for w, feed in zip(wanted, feeds, strict=True))
    return losses


def _distance(wanted: dict[str, Array], found: dict[str, Array]) -> float:
    total = 0.0
    for name, array in wanted.items():
        if isinstance(array, np.ndarray) and array.dtype.kind == "f" and array.size:
            first = np.nan_to_num(array.astype(np.float64))
            second = np.nan_to_num(found[name].astype(np.float64))
            total += float(np.square(first - second).mean() / max(float(np.square(first).mean()), 1e-30))
    return total


def drop(add: ir.Node, index: int) -> bool:
    """Let the readers of a sum read the value that passes the block by, and remove the block."""
    shortcut, result = add.inputs[index], add.inputs[1 - index]
    readers = [use.node for use in add.outputs[0].uses()]
    if not bypass(add, index):
        return False
    remove_dead(result.producer() if result is not None else None)
    maker = shortcut.producer() if shortcut is not None else None
    for node in readers if maker is not None and _is_relu(maker) else ():
        if _is_relu(node):
            bypass(node)  # a Relu of a Relu
    return True


def _is_relu(node: ir.Node) -> bool:
    return node.op_type == "Relu" and is_standard(node) and constant(node.inputs[0]) is None
