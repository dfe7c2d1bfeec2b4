"""Channel groups: which channels must go together, and which may not go at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from onnxedge.api import Array, node_label
from onnxedge_passes.prune.costs import contraction_costs
from onnxedge_passes.prune.facts import Facts
from onnxedge_passes.prune.labels import FIXED, Labels, Reader
from onnxedge_passes.prune.rules import propagate

Where = ir.Node | ir.Value
Reason = tuple[str, Where | None]  #: why something stays, and at what
_ROUNDS = 8  #: alignment settles in two or three


@dataclass(frozen=True, eq=False)
class End:
    """A contraction that sums a group's channels away.

    Attributes:
        reader: the contraction.
        rows: int [U, r], positions of each unit along the input axis of the weight.
    """

    reader: Reader
    rows: Array


@dataclass(frozen=True, eq=False)
class Group:
    """Units with the same members: one width that can be chosen.

    Attributes:
        units: component number of each unit; a unit is what goes as a whole: a channel, a head, a block of groups.
        begins: the contractions whose output axis holds the units.
        ends: the contractions that sum them away.
        channels: channels of one unit where it begins.
        reason: why nothing of it can be removed, with the place; empty where it can.
        where: the place that the reason speaks of.
    """

    units: Array
    begins: tuple[Reader, ...]
    ends: tuple[End, ...]
    channels: int
    reason: str = ""
    where: Where | None = field(default=None, compare=False)

    @property
    def name(self) -> str:
        """The first contraction that makes the channels."""
        return node_label(self.begins[0].node) if self.begins else "?"


class Groups:
    """The channel groups of a model.

    Attributes:
        labels: where each channel goes.
        component: int [labels], the unit that a label belongs to.
        free: groups that can be cut.
        locked: groups that cannot, with the reason.
        costs: every contraction with a weight that can be cut, its axes as functions of the kept units of ``free``.
        other_macs: multiply-accumulates of the other contractions of the main graph.
    """

    def __init__(self, labels: Labels) -> None:
        """Join the labels to units, and the units with the same members to groups."""
        self.labels = labels
        self.component = _settle(labels)
        reasons = self._reasons()
        groups = self._collect(reasons)
        self.free = [group for group in groups if not group.reason]
        self.locked = [group for group in groups if group.reason]
        self.costs, self.other_macs = contraction_costs(self)

    def units_of(self, labels: Array) -> Array:
        """Return the unit of each label, that of ``FIXED`` for FREE too."""
        return self.component[np.maximum(labels, FIXED)]

    def _reasons(self) -> dict[int, Reason]:
        reasons: dict[int, Reason] = {int(self.component[FIXED]): ("lies along one axis with fixed channels", None)}
        for held, where, reason in self.labels.locks:
            for unit in np.unique(self.component[held]).tolist():
                reasons.setdefault(unit, (reason, where))
        return reasons

    def _collect(self, reasons: Mapping[int, Reason]) -> list[Group]:
        """Give units with the same members, in the same numbers and for the same reason, one group."""
        sites = [(reader, labels) for reader in self.labels.readers for labels in (reader.begins, reader.ends)]
        members: dict[int, list[tuple[int, int]]] = {}
        for site, (_, labels) in enumerate(sites):
            for unit, count in zip(*np.unique(self.units_of(labels), return_counts=True), strict=True):
                members.setdefault(int(unit), []).append((site, int(count)))
        groups: dict[tuple[tuple[tuple[int, int], ...], Reason], list[int]] = {}
        for unit in sorted(members):
            groups.setdefault((tuple(members[unit]), reasons.get(unit, ("", None))), []).append(unit)
        return [
            self._group(np.array(units), [sites[site] for site, _ in held], *told)
            for (held, told), units in groups.items()
        ]

    def _group(self, units: Array, sites: list[tuple[Reader, Array]], reason: str, where: Where | None) -> Group:
        begins = tuple(reader for reader, labels in sites if labels is reader.begins)
        ends = []
        for reader in (reader for reader, labels in sites if labels is reader.ends):
            found = self.units_of(reader.ends)
            order = np.argsort(found, kind="stable")
            order = order[np.isin(found[order], units)]
            ends.append(End(reader, order.reshape(len(units), -1)))
        channels = int(np.isin(self.units_of(begins[0].begins), units).sum() // len(units)) if begins else 1
        if not reason and not begins:
            reason = "is made by no contraction that can be cut"
        elif not reason and not ends:
            reason = "it ends in a product of two activations, or nowhere"
        elif not reason and len(units) < 2:
            reason = "all its channels are tied together"
        return Group(units, begins, tuple(ends), channels, reason, where)


def find_groups(facts: Facts) -> Groups:
    """Find the channel groups; grouped convolutions go by whole groups, or, where that ties all, by columns."""
    groups = Groups(propagate(facts))
    stuck = frozenset(
        reader.node
        for group in groups.locked
        if group.reason == "all its channels are tied together"
        for reader in group.begins
        if reader.axes.groups > 1 and len(reader.ends) > 1
    )
    return Groups(propagate(facts, stuck)) if stuck else groups


def _settle(labels: Labels) -> Array:
    """Return the unit of each label, once every value can be cut along one axis."""
    wide = [array for array in labels.of.values() if sum(size > 1 for size in array.shape) > 1]
    unit, pairs = np.arange(labels.count), [np.stack(pair) for pair in labels.edges]
    for _ in range(_ROUNDS):
        unit = _joined(np.concatenate([np.zeros((2, 0), int), *pairs], axis=1), labels.count)[unit]
        pairs = [_alignment(np.where(array >= FIXED, unit[np.maximum(array, FIXED)], -1)) for array in wide]
        if not any(pair.size for pair in pairs):
            break
    return unit


def _joined(pairs: Array, count: int) -> Array:
    """Return the component of each of some numbers; pairs int [2, E] are in one."""
    links = coo_array((np.ones(pairs.shape[1], np.int8), (pairs[0], pairs[1])), shape=(count, count))
    return np.asarray(connected_components(links, directed=False)[1])


def _alignment(units: Array) -> Array:
    """Return the pairs of units to join so that a value's units lie along one axis: the one that joins fewest."""
    best, least = np.zeros((2, 0), int), np.inf
    for axis in (axis for axis, size in enumerate(units.shape) if size > 1):
        rows = np.moveaxis(units, axis, 0).reshape(units.shape[axis], -1)
        first = np.broadcast_to(rows.max(axis=1, keepdims=True), rows.shape)
        pairs = np.stack([first, rows])[:, (rows >= 0) & (rows != first)]
        involved, places = np.unique(pairs, return_inverse=True)
        lost = len(involved) - len(np.unique(_joined(places.reshape(2, -1), len(involved))))
        if lost < least:
            best, least = pairs, lost
    return best
