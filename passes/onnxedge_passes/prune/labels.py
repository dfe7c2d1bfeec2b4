"""Channel labels: every channel that a weight begins gets a number, and each operator says where the numbers go.

A label array belongs to a value and broadcasts to its real shape: an axis on which nothing differs has size 1. Two
numbers stand for no channel: ``FIXED`` cannot be removed, ``FREE`` is constant data beside a channel (what Pad adds
around a picture). Constant data in a channel's place (what Pad or Concat adds to the channels) gets a number of its own
and goes with what it meets. An operator that looks at several channels at once ties them to one unit, a head say.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxedge.api import Array, WeightAxes
from onnxedge_passes.prune.facts import Facts, evaluate

FIXED, FREE = 0, -1


@dataclass(frozen=True, eq=False)
class Operand:
    """A constant input that is cut where the value it is broadcast against is cut.

    Attributes:
        node, index: the input.
        labels: label array of the value that its axes align with, from the last one.
        skip_axis: axis of ``labels`` along which the constant has positions of its own (Concat), or None.
    """

    node: ir.Node
    index: int
    labels: Array
    skip_axis: int | None = None


@dataclass(frozen=True, eq=False)
class Reader:
    """A contraction with a constant weight: ``begins`` on one axis of the weight, ``ends`` on another.

    Attributes:
        node, weight: the contraction and the value of its weight.
        data: what is summed away, along ``axes.data_axis``; None where the operator keeps it to itself.
        axes: what the axes of the weight mean.
        begins: labels int32 [Co] along the weight's output axis.
        ends: labels int32 [Ci/G] along its input axis.
        columns: a grouped convolution whose groups are cut alike, each by the same positions.
    """

    node: ir.Node
    weight: ir.Value
    data: ir.Value | None
    axes: WeightAxes
    begins: Array
    ends: Array
    columns: bool = False


class Labels:
    """Propagate labels through the main graph of a model.

    Attributes:
        of: label array of each value.
        edges: pairs of equally shaped label arrays; labels at equal positions are one channel.
        locks: label arrays that cannot be removed, where, and why.
        operands, readers: constants to cut.
        counts: attributes that count groups or heads, with labels of which equally many belong to each.
        count: number of labels, ``FIXED`` included.
    """

    def __init__(self, facts: Facts, columns: frozenset[ir.Node] = frozenset()) -> None:
        """Begin with nothing; grouped convolutions in ``columns`` are cut inside their groups, others by groups."""
        self.facts, self.columns = facts, columns
        self.of: dict[ir.Value, Array] = {}
        self.edges: list[tuple[Array, Array]] = []
        self.locks: list[tuple[Array, ir.Node | ir.Value, str]] = []
        self.operands: list[Operand] = []
        self.readers: list[Reader] = []
        self.counts: list[tuple[ir.Node, str, Array]] = []
        self.count = 1
        self._weights: dict[tuple[ir.Value, int], Array] = {}

    def get(self, value: ir.Value | None) -> Array:
        """Return the labels of a value, ``FIXED`` all over for what was never labelled."""
        found = self.of.get(value) if value is not None else None
        return np.zeros([1] * self.facts.rank(value), np.int32) if found is None else found

    def lock(self, where: ir.Node | ir.Value, reason: str, *labels: Array) -> None:
        """Say that the channels in ``labels`` stay."""
        held = np.unique(np.concatenate([np.zeros(0, int), *(array[array > FIXED] for array in labels)]))
        if held.size:
            self.locks.append((held, where, reason))

    def join(self, first: Array, second: Array, where: ir.Node) -> Array:
        """Make one channel of labels at equal positions; what meets ``FIXED`` is locked. Returns the joint labels."""
        first, second = np.broadcast_arrays(first, second)
        both = (first > FIXED) & (second > FIXED)
        self.edges.append((first[both], second[both]))
        for mine, other in ((first, second), (second, first)):
            self.lock(where, "meets channels that are fixed", mine[other == FIXED])
        joint = np.where((first == FIXED) | (second == FIXED), FIXED, np.maximum(first, second))
        return joint.astype(np.int32)

    def tie(self, where: ir.Node, labels: Array, axes: Iterable[int], reason: str) -> Array:
        """Make one unit of what differs along some axes, locked where it differs along no other. Returns the units."""
        along = tuple(axis for axis in axes if labels.shape[axis] > 1)
        if not along:
            return labels
        units: Array = labels.max(axis=along, keepdims=True)
        if len(np.unique(units[units > FIXED])) < 2:
            self.lock(where, reason, labels)
            return np.zeros_like(units)
        self.join(units, labels, where)
        return units

    def aligned(self, value: ir.Value, rank: int) -> tuple[Array, tuple[int, ...]]:
        """Return labels and shape of a value with leading axes of size 1 up to a rank."""
        lead = (1,) * (rank - self.facts.rank(value))
        return self.get(value).reshape(lead + self.get(value).shape), lead + self.facts.shapes.get(value, ())

    def combine(self, where: ir.Node, claims: Sequence[tuple[Array, Sequence[int]]], reason: str) -> Array:
        """Join the labels of values (with their shapes, all of one rank) that are broadcast against each other.

        Values without labels tie what differs along their axes: to cut there, they would have to be cut too.
        """
        rank = len(claims[0][1])
        joint, fixed = np.full([1] * rank, FREE, np.int32), set[int]()
        for labels, shape in claims:
            if labels.size == 1:
                fixed |= {axis for axis, size in enumerate(shape) if size > 1}
            else:
                joint = self.join(joint, labels, where)
        if joint.size == 1:
            return np.zeros([1] * rank, np.int32)
        return self.tie(where, joint, sorted(fixed), reason)

    def fresh(self, weight: ir.Value, axis: int) -> Array:
        """Return the labels of a weight's axis; a weight that several nodes read has the same for all of them."""
        if (weight, axis) not in self._weights:
            self._weights[weight, axis] = self.numbers(self.facts.shapes[weight][axis])
        return self._weights[weight, axis]

    def numbers(self, size: int) -> Array:
        """Return labels that nothing has yet."""
        self.count += size
        return np.arange(self.count - size, self.count, dtype=np.int32)

    def wall(self, node: ir.Node, why: str = "has no rule for channels") -> None:
        """Let no channel through an operator."""
        for value in node.inputs:
            self.lock(node, f"{node.op_type} {why}", self.get(value))

    def run_movement(
        self,
        node: ir.Node,
        shapes: Sequence[tuple[int, ...]],
        labels: Sequence[Array],
        operands: Sequence[Array | None],
        attributes: Mapping[str, Any] | None = None,
    ) -> list[Array] | None:
        """Run a movement on label arrays of the given shapes; axes that Transpose and Concat leave alone stay 1."""
        if node.op_type == "Transpose":
            perm = node.attributes.get_ints("perm", tuple(reversed(range(labels[0].ndim))))
            return [labels[0].transpose(perm)]
        if node.op_type == "Concat":
            axis = node.attributes.get_int("axis", 1) % labels[0].ndim
            common = np.broadcast_shapes(*((*a.shape[:axis], 1, *a.shape[axis + 1 :]) for a in labels))
            shapes = [(*common[:axis], shape[axis], *common[axis + 1 :]) for shape in shapes]
        full: list[Array | None] = [  # operators that fill up do so with 0, which stands for FREE here
            np.ascontiguousarray(np.broadcast_to(array - FREE, shape))
            for array, shape in zip(labels, shapes, strict=True)
        ]
        if node.op_type == "Pad" and self.facts.opset < 11:
            attributes = {**(attributes or {}), "value": 0.0}
        elif node.op_type == "Pad":
            operands = [*operands[:1], None, *operands[2:]]
        results = evaluate(node, [*full, *operands], self.facts.opset, attributes)
        return results and [result + FREE for result in results]


def line(labels: Array, axis: int, size: int | None = None) -> Array:
    """Return the labels along one axis; positions that agree but for ``FREE`` along the others are taken as one.

    Args:
        labels: label array.
        axis: the one that is kept.
        size: real length of it, where a label that stands for all positions is to be repeated.
    """
    others = tuple(a for a in range(labels.ndim) if a != axis % labels.ndim)
    result: Array = labels.max(axis=others) if others else labels
    return result if size is None else np.broadcast_to(result, (size,))


def compress(labels: Array) -> Array:
    """Give size 1 to each axis along which nothing differs but ``FREE``."""
    for axis in range(labels.ndim):
        if labels.shape[axis] > 1:
            top = labels.max(axis=axis, keepdims=True)
            if ((labels == top) | (labels == FREE)).all():
                labels = top
    return labels
