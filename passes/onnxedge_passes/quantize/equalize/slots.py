"""Slots: the channels of a graph that one positive factor can run through without changing what the graph computes.

A factor enters where a linear operator (or the scale of a normalization) makes a channel, runs through operators that
are positively homogeneous, and leaves where the next linear operator reads the channel. Channels that an operator
adds, concatenates or competes with each other share a slot. Slot 0 stands for what cannot be scaled.

Each value that carries slots has an integer array of its own rank that says which slot each element belongs to, with
size 1 on the axes that make no difference; so a Reshape, a Transpose or a Concat is the same operation on that array.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import onnx_ir as ir

from onnxedge.api import Array, constant_tensor

FIXED = 0  #: the slot of everything that stays as it is


@dataclass(frozen=True, eq=False)
class Change:
    """Say how one constant is multiplied: by the factors of ``makes`` over those of ``reads``.

    Attributes:
        node, index: input of a node that is a constant of the model.
        makes, reads: slots, int64, broadcast to the shape of the constant.
        role: ``weight`` of a contraction, ``scale`` of a normalization or a product by a constant per channel,
            ``bias`` of any of them.
    """

    node: ir.Node
    index: int
    makes: Array
    reads: Array
    role: Literal["weight", "scale", "bias"]


@dataclass(frozen=True, eq=False)
class Bound:
    """A Clip from 0 to a finite bound, which holds only while no scaled channel reaches it."""

    node: ir.Node
    high: float


@dataclass(eq=False)
class Slots:
    """Hold the slots of a graph while it is walked and after.

    Attributes:
        of: slots of each value that carries some.
        changes: what is to be multiplied.
        bounds: Clips on the way.
    """

    of: dict[ir.Value, Array] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)
    bounds: list[Bound] = field(default_factory=list)
    _parent: list[int] = field(default_factory=lambda: [FIXED])

    def new(self, count: int) -> Array:
        """Return new slots, int64 [count]."""
        first = len(self._parent)
        self._parent.extend(range(first, first + count))
        return np.arange(first, first + count)

    def root(self, slot: int) -> int:
        """Return the slot that stands for all that a slot was joined with."""
        parent = self._parent
        while parent[slot] != slot:
            parent[slot] = parent[parent[slot]]
            slot = parent[slot]
        return slot

    def join(self, first: Array, second: Array) -> Array:
        """Let two arrays of slots be one, element by element after broadcasting, and return the joint array."""
        first, second = np.broadcast_arrays(first, second)
        for one, other in {(int(a), int(b)) for a, b in zip(first.reshape(-1), second.reshape(-1), strict=True)}:
            low, high = sorted((self.root(one), self.root(other)))
            self._parent[high] = low
        return np.array(first)

    def lock(self, values: Iterable[ir.Value | None]) -> None:
        """Let the channels of values stay as they are."""
        for value in values:
            slots = self.of.get(value) if value is not None else None
            if slots is not None:
                self.join(slots, np.array(FIXED))

    def lock_slots(self, slots: Array) -> None:
        """Let slots stay as they are."""
        self.join(slots, np.array(FIXED))

    def roots(self, slots: Array) -> Array:
        """Return the representative of each slot in an array."""
        unique, inverse = np.unique(slots, return_inverse=True)
        return np.array([self.root(int(slot)) for slot in unique])[inverse].reshape(slots.shape)

    def along(self, value: ir.Value | None, axis: int) -> Array | None:
        """Return the slots of a value along one axis, int64 [C]; None, and locked, where other axes matter too."""
        slots = self.of.get(value) if value is not None else None
        if slots is None:
            return None
        axis %= slots.ndim
        if slots.size != slots.shape[axis]:
            self.lock_slots(slots)
            return None
        return slots.reshape(-1)

    def set(self, value: ir.Value, slots: Array, axis: int | None = None) -> bool:
        """Let a value carry slots, along one axis if given; False where its rank is unknown or another one."""
        if value.shape is None or (axis is None and slots.ndim != len(value.shape)):
            return False
        if axis is not None:
            shape = [1] * len(value.shape)
            shape[axis] = slots.size
            slots = slots.reshape(shape)
        self.of[value] = slots
        return True


def own_constant(value: ir.Value | None) -> bool:
    """Tell whether a value is a float32 initializer that one node alone reads, and no graph output."""
    tensor = constant_tensor(value)
    if value is None or tensor is None or tensor.dtype != ir.DataType.FLOAT or value.producer() is not None:
        return False
    return len(value.uses()) == 1 and not value.is_graph_output()


def compressed(slots: Array) -> Array:
    """Return slots with size 1 on each axis along which they do not differ."""
    for axis in range(slots.ndim):
        first = slots.take([0], axis=axis) if slots.shape[axis] else slots
        if slots.shape[axis] > 1 and (slots == first).all():
            slots = first
    return slots
