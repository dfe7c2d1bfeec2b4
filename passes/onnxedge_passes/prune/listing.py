"""Channel groups as people and JSON read them: every constant that a group cuts, its axis and the slice of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from onnxedge.api import (
    Array,
    ChannelGroup,
    ChannelGroups,
    Context,
    Member,
    constant_tensor,
    member_positions,
    node_label,
    operator,
)
from onnxedge_passes.prune.branches import open_branches
from onnxedge_passes.prune.groups import Group, Groups
from onnxedge_passes.prune.labels import FIXED, Operand, line
from onnxedge_passes.prune.prune import analyse, tell_locked
from onnxedge_passes.prune.stored import unpack

#: operator -> names of its inputs where the table of operators has none
_NAMES = {
    "BatchNormalization": ("data", "scale", "bias", "mean", "variance"),
    "InstanceNormalization": ("data", "scale", "bias"),
    "GroupNormalization": ("data", "scale", "bias"),
    "LayerNormalization": ("data", "scale", "bias"),
    "RMSNormalization": ("data", "scale"),
    "PRelu": ("data", "slope"),
    "LSTM": ("data", "weight", "recurrence", "bias", "lengths", "state", "cell", "peepholes"),
    "GRU": ("data", "weight", "recurrence", "bias", "lengths", "state"),
    "RNN": ("data", "weight", "recurrence", "bias", "lengths", "state"),
}


def list_groups(model: ir.Model, context: Context) -> ChannelGroups:
    """Return the channel groups of a model with its constants computed; BatchNormalization stays, as the file has it.

    Raises:
        CannotRun: the runtime does not run the model.
    """
    from onnxedge_passes.cleanup.fold import Fold
    from onnxedge_passes.fuse.linear.einsum_to_matmul import EinsumToMatmul

    folding = Context(context.target, None, original=context.original)
    locking = Context(context.target, context.calibration, original=context.original)
    locking.begin("prune")
    quantized = any(node.op_type == "QuantizeLinear" for node in model.graph.all_nodes())
    Fold(dequantize=not quantized).run(model, folding)
    open_branches(model, locking, 2)
    unpack(model)
    EinsumToMatmul().run(model, folding)
    groups = analyse(model, context)
    tell_locked(groups, locking)
    every = [*groups.free, *groups.locked]
    described = [_described(group, members) for group, members in zip(every, _members(groups, every), strict=True)]
    free, locked = described[: len(groups.free)], described[len(groups.free) :]
    names = {group.name for group in locked}
    notes = tuple(note for note in locking.notes if note.where not in names)
    return ChannelGroups(tuple(free), tuple(group for group in locked if _is_made(group)), notes)


def _is_made(group: ChannelGroup) -> bool:
    """Tell whether the model makes the channels: those of its inputs are no group of its own."""
    return any(member.side == "makes" for member in group.members)


def _members(groups: Groups, every: Sequence[Group]) -> list[list[Member]]:
    """Return for each group the constants that hold its channels, in the graph's order."""
    owner = np.full(len(groups.component), -1)
    for number, group in enumerate(every):
        owner[group.units] = number
    found: list[list[Member]] = [[] for _ in every]
    seen: set[tuple[ir.Node, int, int]] = set()
    for member, node, index, labels in _constants(groups):
        if (node, index, member.axis) in seen:
            continue
        seen.add((node, index, member.axis))
        units = groups.units_of(labels)
        owners = np.where(labels > FIXED, owner[units], -1)
        for number in np.unique(owners[owners >= 0]).tolist():
            held = np.flatnonzero(owners == number)
            found[number].append(_placed(member, held, units[held]))
    return found


def _placed(member: Member, positions: Array, units: Array) -> Member:
    """Return a member with the positions of a group along its axis."""
    order = np.lexsort((positions, units))
    counts = np.unique(units, return_counts=True)[1]
    if (counts != counts[0]).any():
        slices, _ = member_positions(positions[:, None])
        return replace(member, slices=slices)
    slices, index = member_positions(positions[order].reshape(len(counts), -1))
    return replace(member, slices=slices, count=int(counts[0]), index=index)


def _described(group: Group, members: Sequence[Member]) -> ChannelGroup:
    where = node_label(group.where) if isinstance(group.where, ir.Node) else ""
    if isinstance(group.where, ir.Value):
        where = f"value {group.where.name or '?'!r}"
    name = group.name if group.begins or not group.ends else node_label(group.ends[0].reader.node)
    return ChannelGroup(name, len(group.units), group.channels, tuple(members), group.reason, where)


def _constants(groups: Groups) -> Iterator[tuple[Member, ir.Node, int, Array]]:
    """Yield the constants in the graph's order: member without positions, node, input, labels along its axis."""
    order = {node: number for number, node in enumerate(groups.labels.facts.model.graph)}
    shapes = groups.labels.facts.shapes
    rows: list[tuple[int, int, Member, ir.Node, int, Array]] = []
    for reader in groups.labels.readers:
        axes, name = reader.axes, reader.weight.name or ""
        label, what = node_label(reader.node), _operand_name(reader.node, axes.index)
        makes = Member("makes", label, what, name, axes.output, len(reader.begins), (), 0, "")
        reads = Member("reads", label, what, name, axes.input, len(reader.ends), (), 0, "")
        rows.append((order[reader.node], 1, makes, reader.node, axes.index, reader.begins))
        rows.append((order[reader.node], 0, reads, reader.node, axes.index, reader.ends))
    for operand in groups.labels.operands:
        value = operand.node.inputs[operand.index]
        shape = shapes.get(value) if value is not None else None
        if value is None or shape is None or constant_tensor(value) is None:
            continue
        for axis in _cut_axes(groups, operand):
            place = axis - operand.labels.ndim + len(shape)
            if place < 0 or shape[place] != operand.labels.shape[axis]:
                continue
            what = _operand_name(operand.node, operand.index)
            follows = Member(
                "follows", node_label(operand.node), what, value.name or "", place, shape[place], (), 0, ""
            )
            labels = line(operand.labels, axis)
            rows.append((order.get(operand.node, len(order)), 2, follows, operand.node, operand.index, labels))
    rows.sort(key=lambda row: row[:2])
    yield from (row[2:] for row in rows)


def _cut_axes(groups: Groups, operand: Operand) -> Iterator[int]:
    """Yield the axes along which the units of an operand differ: a head goes as a whole, not its features."""
    units = groups.units_of(operand.labels)
    for axis in range(units.ndim):
        if axis != operand.skip_axis and (units != np.take(units, [0], axis)).any():
            yield axis


def _operand_name(node: ir.Node, index: int) -> str:
    names = _NAMES.get(node.op_type, ())
    if node.op_type in ("Add", "Mul"):
        return "bias" if node.op_type == "Add" else "scale"
    if not names and index in (operator(node).weight, operator(node).bias):
        return "weight" if index == operator(node).weight else "bias"
    return names[index] if index < len(names) else f"input {index}"
