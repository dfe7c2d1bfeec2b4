"""Channel groups: which channels must go together, and which may not go at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from onnxedge.api import Array, macs, node_label
from onnxedge_passes.prune.facts import Facts
from onnxedge_passes.prune.labels import FIXED, Labels, Reader

_ROUNDS = 8  #: alignment settles in two or three


@dataclass(frozen=True)
class Width:
    """Say how long an axis is for given numbers of kept units: ``fixed + sum(multiplicity * kept[group])``."""

    fixed: int
    terms: tuple[tuple[int, int], ...] = ()

    def at(self, kept: Sequence[int]) -> int:
        """Return the length."""
        return self.fixed + sum(count * kept[group] for group, count in self.terms)


@dataclass(frozen=True, eq=False)
class Cost:
    """One contraction: multiply-accumulates and weights per unit of ``output * input``."""

    node: ir.Node
    macs: float
    params: float
    output: Width
    input: Width


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
    where: ir.Node | ir.Value | None = field(default=None, compare=False)

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
        self.costs = self._costs()
        counted = {reader.node for reader in labels.readers}
        self.other_macs = sum(macs(node, self._shape) or 0 for node in labels.facts.model.graph if node not in counted)

    def units_of(self, labels: Array) -> Array:
        """Return the unit of each label, that of ``FIXED`` for FREE too."""
        return self.component[np.maximum(labels, FIXED)]

    def _reasons(self) -> dict[int, tuple[str, ir.Node | ir.Value]]:
        reasons: dict[int, tuple[str, ir.Node | ir.Value]] = {}
        for held, where, reason in self.labels.locks:
            for unit in np.unique(self.component[held]).tolist():
                reasons.setdefault(unit, (reason, where))
        return reasons

    def _collect(self, reasons: Mapping[int, tuple[str, ir.Node | ir.Value]]) -> list[Group]:
        """Give units with the same members, in the same numbers and for the same reason, one group."""
        members: dict[int, list[tuple[int, int]]] = {}
        sites = self._sites()
        for site, readers in enumerate(sites):
            labels = readers[0][0].begins if readers[0][1] else readers[0][0].ends
            for unit, count in zip(*np.unique(self.units_of(labels), return_counts=True), strict=True):
                members.setdefault(int(unit), []).append((site, int(count)))
        groups: dict[object, list[int]] = {}
        for unit in sorted(members):
            if unit != self.component[FIXED]:
                groups.setdefault((tuple(members[unit]), reasons.get(unit)), []).append(unit)
        return [
            self._group(
                np.array(units), [sites[site] for site, _ in members[units[0]]], *reasons.get(units[0], ("", None))
            )
            for units in groups.values()
        ]

    def _sites(self) -> list[list[tuple[Reader, bool]]]:
        """Return, for each axis of each weight, the contractions that read it, and whether channels begin there."""
        sites: dict[int, list[tuple[Reader, bool]]] = {}
        for reader in self.labels.readers:
            sites.setdefault(id(reader.begins), []).append((reader, True))
            sites.setdefault(id(reader.ends), []).append((reader, False))
        return list(sites.values())

    def _group(
        self, units: Array, sites: list[list[tuple[Reader, bool]]], reason: str, where: ir.Node | ir.Value | None
    ) -> Group:
        begins = tuple(reader for site in sites for reader, is_begin in site if is_begin)
        ends = []
        for reader in (reader for site in sites for reader, is_begin in site if not is_begin):
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

    def _costs(self) -> list[Cost]:
        group_of = np.full(len(self.component), -1)
        for number, group in enumerate(self.free):
            group_of[group.units] = number
        costs = []
        for reader in self.labels.readers:
            output, inner = (self._width(labels, group_of) for labels in (reader.begins, reader.ends))
            size = len(reader.begins) * len(reader.ends)
            elements = int(np.prod(self.labels.facts.shapes[reader.weight]))
            costs.append(
                Cost(reader.node, (macs(reader.node, self._shape) or 0) / size, elements / size, output, inner)
            )
        return costs

    def _shape(self, value: ir.Value | None) -> tuple[int, ...] | None:
        return self.labels.facts.shapes.get(value) if value is not None else None

    def _width(self, labels: Array, group_of: Array) -> Width:
        numbers, counts = np.unique(group_of[self.units_of(labels)], return_counts=True)
        terms = [(int(g), int(n) // len(self.free[g].units)) for g, n in zip(numbers, counts, strict=True) if g >= 0]
        return Width(len(labels) - sum(count * len(self.free[g].units) for g, count in terms), tuple(terms))


def find_groups(facts: Facts) -> Groups:
    """Find the channel groups; grouped convolutions go by whole groups, or, where that ties all, by columns."""
    groups = Groups(Labels(facts))
    stuck = frozenset(
        reader.node
        for group in groups.locked
        if group.reason == "all its channels are tied together"
        for reader in group.begins
        if reader.node.attributes.get_int("group", 1) > 1 and len(reader.ends) > 1
    )
    return Groups(Labels(facts, stuck)) if stuck else groups


def _settle(labels: Labels) -> Array:
    """Return the unit of each label, once every value can be cut along one axis."""
    edges = [np.concatenate([pair[side] for pair in labels.edges] or [np.zeros(0, int)]) for side in (0, 1)]
    wide = [array for array in labels.of.values() if sum(size > 1 for size in array.shape) > 1]
    for _ in range(_ROUNDS):
        links = coo_array((np.ones(len(edges[0]), np.int8), (edges[0], edges[1])), shape=(labels.count, labels.count))
        component = connected_components(links, directed=False)[1]
        more = [pair for array in wide for pair in _alignment(array, component)]
        if not more:
            return np.asarray(component)
        edges = [np.concatenate([edges[side], *(pair[side] for pair in more)]) for side in (0, 1)]
    return np.asarray(component)


def _alignment(array: Array, component: Array) -> list[tuple[Array, Array]]:
    """Return the edges that make a value's units lie along one axis: the axis that leaves most units."""
    axes = [axis for axis, size in enumerate(array.shape) if size > 1]
    units = np.where(array >= FIXED, component[np.maximum(array, FIXED)], -1)
    best: tuple[int, list[tuple[Array, Array]]] = (-1, [])
    for axis in axes:
        rows = np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)
        kinds = np.moveaxis(units, axis, 0).reshape(array.shape[axis], -1)
        top = kinds.max(axis=1, keepdims=True)
        odd = (kinds != top) & (kinds >= 0)
        if not odd.any():
            return []
        first = np.broadcast_to(rows[np.arange(len(rows)), kinds.argmax(axis=1)][:, None], rows.shape)
        side = len(rows) + int(kinds.max()) + 1
        held = kinds >= 0
        pairs = (np.nonzero(held)[0], kinds[held] + len(rows))
        links = coo_array((np.ones(len(pairs[0]), np.int8), pairs), shape=(side, side))
        count = len(np.unique(connected_components(links, directed=False)[1][: len(rows)]))
        if count > best[0]:
            best = (count, [(first[odd], rows[odd])])
    return best[1]
