"""What a pass can say of a model besides rewriting it: its channel groups, and models with one part of it changed.

A pass offers either by a method of that name, and the command line asks through the registry: it knows no pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import onnx_ir as ir

from onnxedge.model.graph import Array
from onnxedge.passes import Context, Note


@dataclass(frozen=True)
class Member:
    """Say which slice of a constant belongs to a channel group.

    Attributes:
        side: ``makes`` the channels (output axis of a contraction), ``follows`` them (bias, scale), ``reads`` them
            (input axis of a contraction).
        node: the node that reads the constant, as Netron shows it.
        operand: what the constant is to the node: ``weight``, ``bias``, ``scale``, or the number of the input.
        tensor: name of the constant.
        axis, size: the axis, and its whole length.
        slices: (start, stop, step) of the positions of all units, in the order of the axis.
        count: positions of one unit.
        index: how unit ``u`` maps to positions, such as ``u + 16`` or ``49u + j, j < 49``;
            ``in order`` where the units take the covered positions one after the other, empty where they do not.
    """

    side: Literal["makes", "follows", "reads"]
    node: str
    operand: str
    tensor: str
    axis: int
    size: int
    slices: tuple[tuple[int, int, int], ...]
    count: int
    index: str


@dataclass(frozen=True)
class ChannelGroup:
    """Describe channels that go together: a width that can be chosen, or one that is locked.

    Attributes:
        name: the first contraction that makes the channels, or reads them where none does.
        units: what can go one by one: channels, heads, blocks of a grouped convolution.
        channels: channels of one unit where it is made.
        members: constants that are cut along with it.
        reason: why nothing of it can be removed; empty where it can.
        where: the node or value that the reason speaks of.
    """

    name: str
    units: int
    channels: int
    members: tuple[Member, ...]
    reason: str = ""
    where: str = ""


@dataclass(frozen=True)
class ChannelGroups:
    """Hold the channel groups of a model.

    Attributes:
        free: groups that can be cut, in the graph's order.
        locked: groups that cannot, each with its reason.
        notes: what stays outside of all groups, and why.
    """

    free: tuple[ChannelGroup, ...]
    locked: tuple[ChannelGroup, ...]
    notes: tuple[Note, ...] = ()


@runtime_checkable
class ListsGroups(Protocol):
    """A pass that can list the channel groups of a model."""

    def channel_groups(self, model: ir.Model, context: Context) -> ChannelGroups:
        """Return the groups; the model may be edited, it is a copy.

        Raises:
            CannotRun: the runtime does not run the model, so that its shapes are not known.
        """


@dataclass(frozen=True)
class Part:
    """Name a part of a model that can be varied alone, and how many channels (or nodes) it has."""

    name: str
    size: int


@runtime_checkable
class Variations(Protocol):
    """Models in which one part, or all parts at once, are pruned or quantized."""

    @property
    def parts(self) -> Sequence[Part]:
        """What can be varied alone, in the graph's order."""

    @property
    def ratios(self) -> tuple[float, ...] | None:
        """The only ratios that make sense, (0.0,) for parts that change whole; None where any share of 0..1 does."""

    def kept(self, part: int | None, ratio: float) -> int:
        """Return how many channels stay at a ratio, as the target's widths allow; None stands for all parts."""

    def model(self, part: int | None, ratio: float) -> ir.Model:
        """Return the model at a ratio, a new one at each call."""


@runtime_checkable
class Varies(Protocol):
    """A pass whose work can be tried part by part."""

    def variations(self, model: ir.Model, context: Context, *, thorough: bool = False) -> Variations:
        """Return the variations; the model may be edited, it is a copy.

        Args:
            model: as it came.
            context: samples, target, seed, progress.
            thorough: make each as well as the pass can, where that takes much longer.

        Raises:
            CannotRun: the runtime does not run the model.
            UserError: nothing of the model can be varied.
        """


def member_positions(positions: Array) -> tuple[tuple[tuple[int, int, int], ...], str]:
    """Return the slices that positions (int [units, count]) cover, and how a unit maps to its positions, in words."""
    return tuple(_slices(np.unique(positions))), _index(positions)


def _slices(covered: Array) -> list[tuple[int, int, int]]:
    """Split rising positions into slices: a single one with a step where that says it, else runs."""
    steps = np.diff(covered)
    if len(covered) > 1 and (steps == steps[0]).all():
        return [(int(covered[0]), int(covered[-1]) + 1, int(steps[0]))]
    cuts = np.flatnonzero(steps != 1) + 1
    return [(int(run[0]), int(run[-1]) + 1, 1) for run in np.split(covered, cuts)]


def _index(positions: Array) -> str:
    units, count = positions.shape
    first, stride = int(positions[0, 0]), int(positions[1, 0] - positions[0, 0]) if units > 1 else 0
    step = int(positions[0, 1] - positions[0, 0]) if count > 1 else 1
    if (positions != first + stride * np.arange(units)[:, None] + step * np.arange(count)).any():
        return "in order" if (np.diff(positions.ravel()) > 0).all() else ""
    terms = [_times(stride, "u")] * bool(stride) + [_times(step, "j")] * (count > 1) + [str(first)] * bool(first)
    return " + ".join(terms or ["0"]) + (f", j < {count}" if count > 1 else "")


def _times(factor: int, name: str) -> str:
    return name if factor == 1 else f"{factor}{name}"
