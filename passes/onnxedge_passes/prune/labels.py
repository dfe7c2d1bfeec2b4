"""Channel labels: every channel that a weight begins gets a number, and each operator says where the numbers go.

A label array belongs to a value and broadcasts to its real shape: an axis on which nothing differs has size 1. Two
numbers stand for no channel: ``FIXED`` cannot be removed, ``FREE`` is constant data beside a channel (what Pad adds
around a picture). Constant data in a channel's place (what Pad or Concat adds to the channels) gets a number of its own
and goes with what it meets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxedge.api import Array, constant_tensor, operator, static_shape, weight_axes
from onnxedge_passes.prune.facts import Facts

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
        begins: labels int32 [Co] along the weight's output axis.
        ends: labels int32 [Ci/G] along its input axis.
        columns: a grouped convolution whose groups are cut alike, each by the same positions.
    """

    node: ir.Node
    weight: ir.Value
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
        count: number of labels, ``FIXED`` included.
    """

    def __init__(self, facts: Facts, columns: frozenset[ir.Node] = frozenset()) -> None:
        """Walk the graph; grouped convolutions in ``columns`` are cut inside their groups, others by whole groups."""
        self.facts = facts
        self.of: dict[ir.Value, Array] = {}
        self.edges: list[tuple[Array, Array]] = []
        self.locks: list[tuple[Array, ir.Node | ir.Value, str]] = []
        self.operands: list[Operand] = []
        self.readers: list[Reader] = []
        self.count = 1
        self._columns = columns
        self._weights: dict[tuple[ir.Value, int], Array] = {}
        for node in facts.model.graph:
            self._visit(node)
        for value in facts.model.graph.outputs:
            self.lock(value, "reaches a graph output", self.get(value))

    def get(self, value: ir.Value | None) -> Array:
        """Return the labels of a value, ``FIXED`` all over for what was never labelled."""
        found = self.of.get(value) if value is not None else None
        if found is not None:
            return found
        return np.zeros([1] * len(self.facts.shapes.get(value, ())) if value is not None else [], np.int32)

    def lock(self, where: ir.Node | ir.Value, reason: str, labels: Array) -> None:
        """Say that the channels in ``labels`` stay."""
        held = np.unique(labels[labels > 0])
        if held.size:
            self.locks.append((held, where, reason))

    def join(self, first: Array, second: Array, where: ir.Node) -> Array:
        """Make one channel of labels at equal positions; what meets ``FIXED`` is locked. Returns the joint labels."""
        first, second = np.broadcast_arrays(first, second)
        both = (first > 0) & (second > 0)
        self.edges.append((first[both], second[both]))
        for mine, other in ((first, second), (second, first)):
            self.lock(where, "meets channels that are fixed", mine[(mine > 0) & (other == FIXED)])
        joint = np.where((first == FIXED) | (second == FIXED), FIXED, np.maximum(first, second))
        return joint.astype(np.int32)

    def fresh(self, weight: ir.Value, axis: int) -> Array:
        """Return the labels of a weight's axis; a weight that several nodes read has the same for all of them."""
        if (weight, axis) not in self._weights:
            size = self.facts.shapes[weight][axis]
            self._weights[weight, axis] = np.arange(self.count, self.count + size, dtype=np.int32)
            self.count += size
        return self._weights[weight, axis]

    def _visit(self, node: ir.Node) -> None:
        rule = _RULES.get(operator(node).kind, Labels._wall)
        if any(value.name and value not in self.facts.shapes for value in node.outputs):
            rule = Labels._wall
        rule(self, node)
        for value in node.outputs:
            labels = self.get(value)
            if labels.size == 1 and labels.max() > 0:
                self.lock(value, "a single channel is cut out", labels)
                labels = np.zeros_like(labels)
            self.of[value] = labels
            if any(use.node.graph is not node.graph for use in value.uses()):
                self.lock(value, "read inside a subgraph", labels)

    def _wall(self, node: ir.Node) -> None:
        for value in node.inputs:
            self.lock(node, f"{node.op_type} has no rule for channels", self.get(value))

    def _leave(self, node: ir.Node) -> None:
        """Let nothing out: shapes and sources hold no channels."""

    def _elementwise(self, node: ir.Node) -> None:
        shape = self.facts.shapes[node.outputs[0]]
        constants = [i for i, v in enumerate(node.inputs) if v is not None and constant_tensor(v) is not None]
        claims = []
        for index, value in enumerate(node.inputs):
            if value is None or index in constants or (operator(node).data == (0,) and index > 0):
                continue
            claims.append(self._aligned(value, len(shape)))
        joint = np.full([1] * len(shape), FREE, np.int32)
        varying = np.broadcast_shapes(*(labels.shape for labels, _ in claims)) if claims else ()
        for labels, real in claims:
            if labels.size == 1:
                if labels.max() == FIXED and not any(v > 1 and real[a] > 1 for a, v in enumerate(varying)):
                    continue  # broadcast along every axis that is labelled
                labels = np.broadcast_to(labels, varying)
            joint = self.join(joint, labels, node)
        if not claims or (joint == FREE).all():
            joint = np.zeros([1] * len(shape), np.int32)
        self.of[node.outputs[0]] = compress(joint)
        self.operands += [Operand(node, i, joint) for i in constants if operator(node).data != (0,)]

    def _aligned(self, value: ir.Value, rank: int) -> tuple[Array, tuple[int, ...]]:
        shape = self.facts.shapes.get(value, ())
        lead = rank - len(shape)
        return self.get(value).reshape((1,) * lead + self.get(value).shape), (1,) * lead + shape

    def _movement(self, node: ir.Node) -> None:
        sources = list(node.inputs) if operator(node).data is None else [node.inputs[0]]
        labels = [
            self.get(value) if constant_tensor(value) is None else self._constant_data(node, value) for value in sources
        ]
        if all(self.get(value).max(initial=FIXED) <= FIXED for value in sources):
            return
        operands = [] if operator(node).data is None else list(node.inputs[1:])
        computed = [None if value is None else self.facts.computed(value) for value in operands]
        if any(v is not None and array is None for v, array in zip(operands, computed, strict=True)):
            for array in labels:
                self.lock(node, f"{node.op_type} depends on data", array)
            return
        shapes = [self.facts.shapes[value] for value in sources if value is not None]
        results = self.run_movement(node, shapes, labels, computed)
        if results is None:
            self._wall(node)
            return
        for value, result in zip(node.outputs, results, strict=False):
            found = compress(result.astype(np.int32))
            if node.op_type == "DepthToSpace":  # the channels that become the pixels of one go together
                found = self.join(found[:, :, :1, :1], found, node)[:, :, :1, :1]
            self.of[value] = self._numbered(found)
        if node.op_type != "Concat":
            return
        axis = node.attributes.get_int("axis", 1) % labels[0].ndim
        for index, addend in enumerate(sources):
            if constant_tensor(addend) is not None:
                self.operands.append(Operand(node, index, labels[index]))
                self.operands.append(Operand(node, index, self.of[node.outputs[0]], skip_axis=axis))

    def _constant_data(self, node: ir.Node, value: ir.Value | None) -> Array:
        """Return labels for a constant input of a Concat: numbers of their own along its axis."""
        rank = self._rank(value)
        labels = np.full([1] * rank, FREE, np.int32)
        if node.op_type != "Concat" or value is None:
            return labels
        axis = node.attributes.get_int("axis", 1) % rank
        return self._numbered(np.repeat(labels, self.facts.shapes[value][axis], axis))

    def _numbered(self, labels: Array) -> Array:
        """Give constant data that stands among channels numbers of its own."""
        free = labels == FREE
        if labels.size == 1 or not free.any():
            return labels
        result = labels.copy()
        result[free] = np.arange(self.count, self.count + int(free.sum()), dtype=np.int32)
        self.count += int(free.sum())
        return result

    def _rank(self, value: ir.Value | None) -> int:
        return len(self.facts.shapes.get(value, ())) if value is not None else 0

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
        full: list[Array | None] = [
            np.ascontiguousarray(np.broadcast_to(array, shape)) for array, shape in zip(labels, shapes, strict=True)
        ]
        changed = dict(attributes or {})
        if node.op_type == "Pad" and self.facts.opset < 11:
            changed["value"] = float(FREE)
        elif node.op_type == "Pad":
            operands = [*operands[:1], np.array(FREE, np.int32), *operands[2:]]
        return self.facts.evaluate(node, [*full, *operands], changed)

    def _per_channel(self, node: ir.Node, *, blocked: Callable[[int], Sequence[int]], why: str) -> None:
        """Pass labels on, lock what differs along a blocked axis, and note the parameters along axis 1."""
        value = node.inputs[0]
        labels, rank = self.get(value), self._rank(value)
        held = [axis for axis in blocked(rank) if labels.shape[axis] > 1]
        if held:
            self.lock(node, why, labels)
            return
        out = self.facts.shapes[node.outputs[0]]
        here = self.facts.shapes[value] if value is not None else ()
        if any(labels.shape[a] > 1 and (a >= len(out) or out[a] != here[a]) for a in range(rank)):
            self.lock(node, why, labels)
            return
        if labels.size == 1:
            return
        parameters = [i for i in operator(node).parameters if i < len(node.inputs) and node.inputs[i] is not None]
        if any(constant_tensor(node.inputs[i]) is None for i in parameters):
            self.lock(node, "a parameter per channel is computed at run time", labels)
            return
        if rank > 1:
            self.operands += [Operand(node, i, line(labels, 1)) for i in parameters]
        self.of[node.outputs[0]] = labels

    def _spatial(self, node: ir.Node) -> None:
        self._per_channel(node, blocked=lambda rank: range(2, rank), why=f"{node.op_type} over the channels")

    def _normalization(self, node: ir.Node) -> None:
        def blocked(rank: int) -> Sequence[int]:
            match node.op_type:
                case "BatchNormalization":
                    return [a for a in range(rank) if a != 1]
                case "InstanceNormalization":
                    return [0, *range(2, rank)]
                case "LayerNormalization" | "RMSNormalization":
                    return range(node.attributes.get_int("axis", -1) % rank, rank)
            return range(rank)

        if node.op_type in ("LayerNormalization", "RMSNormalization"):
            labels = self.get(node.inputs[0])
            if labels.size > 1 and all(labels.shape[a] == 1 for a in blocked(labels.ndim)):
                self.of[node.outputs[0]] = labels
                return
        self._per_channel(node, blocked=blocked, why=f"{node.op_type} shares statistics between channels")

    def _softmax(self, node: ir.Node) -> None:
        rank = self._rank(node.inputs[0])
        flat = self.facts.opset < 13 and node.op_type in ("Softmax", "LogSoftmax", "Hardmax")
        given = self.facts.computed(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1] is not None else None
        axis = node.attributes.get_int("axis", 1 if flat else -1) if given is None else int(given.reshape(-1)[0])
        blocked = range(axis % rank, rank) if flat else [axis % rank]
        self._per_channel(node, blocked=lambda _: blocked, why=f"{node.op_type} over the channels")

    def _reduction(self, node: ir.Node) -> None:
        labels = self.get(node.inputs[0])
        rank = labels.ndim
        axes: Sequence[int] = node.attributes.get_ints("axes", ())
        if "axis" in node.attributes or node.op_type in ("ArgMax", "ArgMin"):
            axes = [node.attributes.get_int("axis", 0)]
        if len(node.inputs) > 1 and node.inputs[1] is not None:
            found = self.facts.computed(node.inputs[1])
            axes = [int(a) for a in found.reshape(-1)] if found is not None else range(rank)
        if not axes:
            axes = [] if bool(node.attributes.get_int("noop_with_empty_axes", 0)) else range(rank)
        reduced = sorted({a % rank for a in axes}) if rank else []
        if any(labels.shape[a] > 1 for a in reduced):
            self.lock(node, f"{node.op_type} over the channels", labels)
            return
        keep = node.attributes.get_int("keepdims", 1)
        self.of[node.outputs[0]] = labels if keep else labels.squeeze(tuple(reduced))

    def _quantization(self, node: ir.Node) -> None:
        labels = self.get(node.inputs[0])
        scale = constant_tensor(node.inputs[1]) if len(node.inputs) > 1 else None
        if scale is None or scale.size != 1:
            self.lock(node, "quantized with a scale per channel or computed at run time", labels)
        else:
            self.of[node.outputs[0]] = labels

    def _contraction(self, node: ir.Node) -> None:
        from onnxedge_passes.prune import contraction

        contraction.propagate(self, node, grouped_columns=node in self._columns)

    def is_weight(self, value: ir.Value | None) -> bool:
        """Tell whether a value is a constant that only contractions of the main graph read, as their weight."""
        if value is None or constant_tensor(value) is None or value.is_graph_output():
            return False
        for use in value.uses():
            axes = weight_axes(use.node)
            if axes is None or axes.index != use.idx or use.node.graph is not self.facts.model.graph:
                return False
        return static_shape(value) is not None or value in self.facts.shapes


_RULES: dict[str, Callable[[Labels, ir.Node], None]] = {
    "elementwise": Labels._elementwise,
    "movement": Labels._movement,
    "spatial": Labels._spatial,
    "normalization": Labels._normalization,
    "softmax": Labels._softmax,
    "reduction": Labels._reduction,
    "quantization": Labels._quantization,
    "contraction": Labels._contraction,
    "shape": Labels._leave,
    "source": Labels._leave,
}


def line(labels: Array, axis: int) -> Array:
    """Return the labels along one axis; positions that agree but for ``FREE`` along the others are taken as one."""
    others = tuple(a for a in range(labels.ndim) if a != axis % labels.ndim)
    result: Array = labels.max(axis=others) if others else labels
    return result


def compress(labels: Array) -> Array:
    """Give size 1 to each axis along which nothing differs but ``FREE``."""
    for axis in range(labels.ndim):
        if labels.shape[axis] > 1:
            top = labels.max(axis=axis, keepdims=True)
            if ((labels == top) | (labels == FREE)).all():
                labels = top
    return labels
