"""A removal worked out on the labels: new shapes, what movement operators need, and who cannot follow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxedge.api import Array, PassError, constant, operator
from onnxedge_passes.prune.adapt import propose
from onnxedge_passes.prune.branches import choices
from onnxedge_passes.prune.facts import shape_arithmetic
from onnxedge_passes.prune.groups import Groups
from onnxedge_passes.prune.labels import FIXED, FREE, line


@dataclass(frozen=True, eq=False)
class Adaptation:
    """New shape operands and attributes of a movement or resize node.

    Attributes:
        node: the node.
        operands: new constants by input.
        attributes: new values by name.
    """

    node: ir.Node
    operands: Mapping[int, Array]
    attributes: Mapping[str, Any]


class Cut:
    """A removal worked out for every value and node, before anything is edited.

    Attributes:
        shapes: shape of each value afterwards, for the feed of the facts.
        adaptations: what movement nodes need.
        failures: nodes that cannot follow the cut, with the labels that are to be locked for it and the reason.
    """

    def __init__(self, groups: Groups, removed: Array) -> None:
        """Work out a removal.

        Args:
            groups: of the model.
            removed: bool [units], what goes.
        """
        self.groups, self.labels, self.facts = groups, groups.labels, groups.labels.facts
        self.removed = removed
        self.shapes = {value: self._shape(value, shape) for value, shape in self.facts.shapes.items()}
        self.adaptations: list[Adaptation] = []
        self.failures: list[tuple[ir.Node, Array, str]] = []
        self._own = {(o.node, o.index): o.labels for o in self.labels.operands if o.skip_axis is None}
        self._chain: dict[ir.Value, Array | None] = {}
        self._steady: dict[ir.Value, bool] = {}
        for node in self.facts.model.graph:
            self._check(node)

    def gone(self, labels: Array) -> Array:
        """Tell for each label whether it goes; FIXED and FREE stay."""
        return np.asarray((labels > FIXED) & self.removed[self.groups.units_of(labels)])

    def axis_of(self, labels: Array) -> int | None:
        """Return the axis along which a value is cut, None where nothing of it goes."""
        gone = self.gone(labels)
        if not gone.any():
            return None
        stays = ~gone & (labels != FREE)
        for axis in (a for a, size in enumerate(labels.shape) if size > 1):
            others = tuple(a for a in range(labels.ndim) if a != axis)
            if not (gone.any(axis=others) & stays.any(axis=others)).any():
                return axis
        raise PassError("prune", "a value cannot be cut along one axis")

    def kept(self, labels: Array, axis: int) -> Array:
        """Return the positions that stay along an axis."""
        return np.flatnonzero(~line(self.gone(labels), axis))

    def cut(self, labels: Array) -> Array:
        """Return a label array without the positions that go."""
        axis = self.axis_of(labels)
        return labels if axis is None else np.take(labels, self.kept(labels, axis), axis)

    def computed(self, value: ir.Value) -> Array | None:
        """Return a constant or what shape arithmetic gives after the cut."""
        return shape_arithmetic(value, self.shapes, self.facts.opset, self._chain)

    def _shape(self, value: ir.Value, shape: tuple[int, ...]) -> tuple[int, ...]:
        labels = self.labels.of.get(value)
        axis = self.axis_of(labels) if labels is not None else None
        if labels is None or axis is None:
            return shape
        return (*shape[:axis], len(self.kept(labels, axis)), *shape[axis + 1 :])

    def _check(self, node: ir.Node) -> None:
        kind = operator(node).kind
        if all(map(self._vanishes, node.inputs[:1])) or (kind != "movement" and all(map(self._vanishes, node.outputs))):
            return  # a block that goes whole takes the node with it
        values = [v for v in (*node.inputs, *node.outputs) if v is not None]
        if kind == "movement" and any(self.shapes.get(v) != self.facts.shapes.get(v) for v in values):
            self._check_movement(node)
            return
        if kind == "spatial" and self.shapes.get(node.outputs[0]) != self.facts.shapes.get(node.outputs[0]):
            self._check_resize(node)
            return
        if kind == "shape":
            return
        for output, sources in zip(node.outputs, choices(node), strict=False):
            held = [self.labels.get(v) for v in (output, *sources)]
            is_cut = any(self.gone(array).any() for array in held)
            if is_cut and not all(self._agree(self.cut(held[0]), self.cut(array)) for array in held[1:]):
                self._fail(node, np.concatenate([array.ravel() for array in held]), "its branches are cut differently")
        for value in node.inputs:
            self._check_operand(node, value)

    def _vanishes(self, value: ir.Value | None) -> bool:
        return value is not None and 0 in self.shapes.get(value, ()) and 0 not in self.facts.shapes[value]

    def _check_operand(self, node: ir.Node, value: ir.Value | None) -> None:
        """A size that is read as data must not change."""
        if value is None or constant(value) is not None:
            return
        if self.facts.computed(value) is None or all(self.facts.computed(v) is not None for v in node.outputs):
            return
        if not self._stays(value):
            self._fail(node, self._measured(value), "computes with the number of channels")

    def _stays(self, value: ir.Value) -> bool:
        """Tell whether a computed size stays, and what it is computed from: a comparison may hide that it does not."""
        if value not in self._steady:
            node, same = value.producer(), self._is_same(value)
            kind = operator(node).kind if node is not None else "source"
            inputs = [v for v in node.inputs if v is not None] if node is not None and kind != "shape" else []
            if kind == "movement":  # chooses among sizes, others may change, as long as there are as many
                inputs = [v for v in inputs if self._is_same(v) or not self._is_same(v, shape=True)]
            self._steady[value] = same and all(map(self._stays, inputs))
        return self._steady[value]

    def _is_same(self, value: ir.Value, *, shape: bool = False) -> bool:
        """Tell whether what is computed, or its shape alone, is the same after the cut."""
        before, after = self.facts.computed(value), self.computed(value)
        return (
            before is not None
            and after is not None
            and (before.shape == after.shape if shape else _same(before, after))
        )

    def _measured(self, value: ir.Value) -> Array:
        """Return the labels of every value whose shape a chain of shape arithmetic reads."""
        found, stack, seen = [np.zeros(0, np.int32)], [value], set()
        while stack:
            node = stack.pop().producer()
            if node is None or node in seen:
                continue
            seen.add(node)
            for source in node.inputs:
                if source is None:
                    continue
                if operator(node).kind == "shape":
                    found.append(self.labels.get(source).ravel())
                else:
                    stack.append(source)
        return np.concatenate(found)

    def _fail(self, node: ir.Node, labels: Array, reason: str) -> None:
        self.failures.append((node, labels[self.gone(labels)] if self.gone(labels).any() else labels, reason))

    def _check_resize(self, node: ir.Node) -> None:
        """Adapt constant sizes of a Resize; sizes computed from shapes must come out right."""
        sizes = node.inputs[3] if node.op_type == "Resize" and len(node.inputs) > 3 else None
        if sizes is None:
            return
        wanted = np.array(self.shapes[node.outputs[0]], np.int64)
        held, found = constant(sizes), self.computed(sizes)
        if held is not None and "axes" not in node.attributes:
            self.adaptations.append(
                Adaptation(node, {3: np.where(held == self.facts.shapes[node.outputs[0]], wanted, held)}, {})
            )
        elif "axes" not in node.attributes and not _same(found, wanted):
            self._fail(node, self.labels.get(node.outputs[0]), "its sizes are computed at run time")

    def _check_movement(self, node: ir.Node) -> None:
        every = operator(node).data is None
        sources = list(node.inputs) if every else [node.inputs[0]]
        proposal = propose(self, node)
        operands, attributes = proposal or ({}, {})
        labels = [self.cut(self._source(node, index, value)) for index, value in enumerate(sources)]
        computed: list[Array | None] = []
        for index, value in enumerate([] if every else node.inputs[1:], 1):
            computed.append(operands.get(index, self.computed(value) if value is not None else None))
        computed += [operands[i] for i in sorted(operands) if i > len(computed)]
        shapes = [self.shapes[value] for value in sources if value is not None]
        results = self.labels.run_movement(node, shapes, labels, computed, attributes) if proposal is not None else None
        wanted = [self.labels.get(value) for value in node.outputs]
        at_hand = every or node.op_type == "Transpose"  # label arrays of which axes stayed 1
        fits = results is not None and all(
            (at_hand or np.shape(result) == self.shapes.get(value, ())) and self._agree(result, self.cut(held))
            for value, held, result in zip(node.outputs, wanted, results, strict=False)
        )
        if not fits:
            touched = np.concatenate([array.ravel() for array in (*map(self.labels.get, sources), *wanted)])
            self._fail(node, touched, f"{node.op_type} cannot follow the cut")
        elif operands or attributes:
            self.adaptations.append(Adaptation(node, operands, attributes))

    def _agree(self, first: Array, second: Array) -> bool:
        """Tell whether two label arrays name the same units, where ``FREE`` may stand for what the other has."""
        try:
            a, b = np.broadcast_arrays(first, second)
        except ValueError:
            return False
        same = (self.groups.units_of(a) == self.groups.units_of(b)) & ((a > FIXED) == (b > FIXED))
        return bool((same | (a == FREE) | (b == FREE)).all())

    def _source(self, node: ir.Node, index: int, value: ir.Value | None) -> Array:
        return self._own.get((node, index), self.labels.get(value))


def _same(first: Array | None, second: Array | None) -> bool:
    return first is not None and second is not None and np.array_equal(first, second)
