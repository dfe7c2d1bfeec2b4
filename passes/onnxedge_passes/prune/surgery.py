"""Cut channels out of the model: slice constants, adapt movement nodes, leave the bias of a block that goes whole."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxedge.api import (
    Array,
    bypass,
    constant,
    drop_if_unused,
    graph_of,
    insert_before,
    is_standard,
    new_initializer,
    remove_node,
    set_constant,
)
from onnxedge_passes.prune.adapt import constant_parts
from onnxedge_passes.prune.compensation import Constants
from onnxedge_passes.prune.cut import Adaptation, Cut
from onnxedge_passes.prune.groups import Group, Groups
from onnxedge_passes.prune.labels import FIXED
from onnxedge_passes.prune.linear import linear_problem
from onnxedge_passes.prune.stored import slice_scales


def apply(cut: Cut, constants: Constants) -> int:
    """Edit the model: refitted constants in, removed channels out.

    Args:
        cut: a removal without failures.
        constants: weights and biases that replace the model's own, in their whole shapes.

    Returns:
        Number of constants and nodes changed.
    """
    keeps = _keeps(cut)
    for reader in cut.labels.readers:  # a bias that the refit added
        if (reader.node, 2) in constants and (reader.node, 2) not in keeps and cut.gone(reader.begins).any():
            keeps[reader.node, 2] = [(0, cut.kept(reader.begins, 0))]
    for key in constants:
        keeps.setdefault(key, [])
    made: dict[tuple[ir.Value, bytes], ir.Value] = {}  # nodes that shared a constant go on sharing it
    shared = {
        node.inputs[index] for node, index in keeps if index < len(node.inputs) and _is_shared(node.inputs[index])
    }
    for (node, index), axes in keeps.items():
        value = node.inputs[index] if index < len(node.inputs) else None
        array = constants.get((node, index), constant(value))
        if array is None:
            continue
        for axis, kept in axes:
            array = np.take(array, kept, axis)
        content = (value, array.tobytes()) if value is not None and value in shared else None
        twin = made.get(content) if content is not None else None
        if twin is not None and value is not None:
            node.replace_input_with(index, twin)
            drop_if_unused(value)
            continue
        new = set_constant(node, index, array)
        if content is not None:
            made[content] = new
    for adaptation in cut.adaptations:
        _adapt(cut, adaptation)
    _adapt_counts(cut)
    slice_scales(cut)
    _reshape_values(cut)
    return len(keeps) + len(cut.adaptations)


def _is_shared(value: ir.Value | None) -> bool:
    return value is not None and len(value.uses()) > 1


def _keeps(cut: Cut) -> dict[tuple[ir.Node, int], list[tuple[int, Array]]]:
    """Return what stays of each constant input, by axis."""
    keeps: dict[tuple[ir.Node, int], list[tuple[int, Array]]] = {}
    for reader in cut.labels.readers:
        for side, labels in ((reader.axes.output, reader.begins), (reader.axes.input, reader.ends)):
            if cut.gone(labels).any():
                keeps.setdefault((reader.node, reader.axes.index), []).append((side, cut.kept(labels, 0)))
    for operand in cut.labels.operands:
        axis = cut.axis_of(operand.labels)
        value = operand.node.inputs[operand.index]
        if axis is None or axis == operand.skip_axis or value is None:
            continue
        shape = cut.facts.shapes[value]
        place = axis - operand.labels.ndim + len(shape)
        if place >= 0 and shape[place] > 1:
            keeps.setdefault((operand.node, operand.index), []).append((place, cut.kept(operand.labels, axis)))
    return keeps


def _adapt(cut: Cut, adaptation: Adaptation) -> None:
    node = adaptation.node
    for index, array in adaptation.operands.items():
        held = node.inputs[index] if index < len(node.inputs) else None
        maker = held.producer() if held is not None and constant(held) is None else None
        if held is None or maker is None:
            set_constant(node, index, array)
            continue
        twin = insert_before(node, "Concat", maker.inputs, attributes={"axis": 0}, like=[held])
        for part, old, at in constant_parts(cut, held):
            if not np.array_equal(old, array[at : at + old.size]):
                set_constant(twin, part, array[at : at + old.size])
        node.replace_input_with(index, twin.outputs[0])
        remove_dead(maker)
    for name, value in adaptation.attributes.items():
        if value is None:
            node.attributes.pop(name, None)
        else:
            node.attributes[name] = ir.Attr(name, ir.AttributeType.INTS, tuple(int(v) for v in value))


def _adapt_counts(cut: Cut) -> None:
    """Give nodes that lost whole groups or heads their new number of them."""
    for node, name, labels in ((n, name, held) for n, name, held in cut.labels.counts if name in n.attributes):
        kept = node.attributes.get_int(name, 1) * (1 - cut.gone(labels).mean())
        node.attributes[name] = ir.Attr(name, ir.AttributeType.INT, round(kept))


def _reshape_values(cut: Cut) -> None:
    for value, shape in cut.shapes.items():
        before = cut.facts.shapes[value]
        if shape == before or value.shape is None or len(value.shape) != len(shape) or value.is_initializer():
            continue
        dims = [
            dim if new == old else new if isinstance(dim, int) else None  # a multiple of the batch has no name any more
            for dim, old, new in zip(value.shape.dims, before, shape, strict=True)
        ]
        value.shape = ir.Shape(dims)


@dataclass(frozen=True, eq=False)
class Remnant:
    """What is left where a contraction lost all its inputs: a bias, added to a residual sum.

    Attributes:
        add: the residual sum.
        index: its input that the contraction gave.
        bias: node and input of the bias, None where there is none.
        channel_axis: axis of the sum that the bias goes along.
    """

    add: ir.Node
    index: int
    bias: tuple[ir.Node, int] | None
    channel_axis: int


def remnants(groups: Groups) -> list[list[Remnant] | None]:
    """Return for each free group what stays when it goes as a whole, None where it cannot go.

    It can where nobody shares an axis with it and each of its readers feeds a residual sum: that then adds a constant.
    """
    owner = np.full(len(groups.component), -1)
    for number, group in enumerate(groups.free):
        owner[group.units] = number
    mixed: set[int] = set()
    for labels in groups.labels.of.values():
        found = np.unique(owner[groups.units_of(labels[labels >= FIXED])])
        if len(found) > 1:
            mixed.update(found.tolist())
    return [None if number in mixed else _left_of(groups, group) for number, group in enumerate(groups.free)]


def _left_of(groups: Groups, group: Group) -> list[Remnant] | None:
    found = []
    for end in group.ends:
        linear = linear_problem(groups, end.reader)
        if linear is None or linear.shortcut is None or end.rows.size != len(end.reader.ends):
            return None
        use = next(iter(linear.output.uses()))
        rank = len(groups.labels.facts.shapes[linear.output])
        axis = 1 if end.reader.node.op_type == "Conv" else rank - 1
        found.append(Remnant(use.node, use.idx, linear.bias, axis))
    return found


def leave_bias(remnant: Remnant, rank: int) -> None:
    """Let a residual sum add the bias alone, or pass its other input on where that is none or 0; remove what fed it."""
    value = remnant.add.inputs[remnant.index]
    bias = None
    if remnant.bias is not None and remnant.bias[1] < len(remnant.bias[0].inputs):
        bias = constant(remnant.bias[0].inputs[remnant.bias[1]])
    before, readers = remnant.add.inputs[1 - remnant.index], list(remnant.add.outputs[0].uses())
    if (bias is None or not bias.any()) and bypass(remnant.add, 1 - remnant.index):
        remove_dead(value.producer() if value is not None else None)
        maker = before.producer() if before is not None else None
        for node in [use.node for use in readers if maker is not None and _is_relu(maker) and _is_relu(use.node)]:
            bypass(node)  # a Relu of a Relu
        return
    tensor = value.dtype.numpy() if value is not None and value.dtype is not None else np.float32
    array = np.zeros(1, tensor) if bias is None else bias
    wide = array.reshape([-1 if axis == remnant.channel_axis else 1 for axis in range(rank)])
    name = f"{remnant.add.name or 'block'}_bias"
    remnant.add.replace_input_with(remnant.index, new_initializer(graph_of(remnant.add), wide, name))
    if value is not None:
        remove_dead(value.producer())


def _is_relu(node: ir.Node) -> bool:
    return node.op_type == "Relu" and is_standard(node)


def remove_dead(node: ir.Node | None) -> None:
    """Remove a node that nobody reads, and those before it that only it read."""
    pending = [node]
    while pending:
        current = pending.pop()
        if current is None or current.graph is None or any(v.uses() or v.is_graph_output() for v in current.outputs):
            continue
        before = [value.producer() for value in current.inputs if value is not None]
        remove_node(current)
        pending += before
