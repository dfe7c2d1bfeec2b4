"""Fake quantization: rounding to a grid and back to floats, as arrays and as nodes of a graph that is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxedge.api import Array, insert_before, new_initializer

Number = float | Array


@dataclass(frozen=True, eq=False)
class Steps:
    """A grid: ``(clip(round(x / scale) + zero, low, high) - zero) * scale``.

    Attributes:
        scale: float32, broadcasts against the tensor.
        zero: float32 of whole numbers, broadcasts, too; None for 0.
        low, high: codes.
    """

    scale: Array
    zero: Array | None
    low: float
    high: float

    def codes(self, array: Array, log_scale: Array | None = None) -> Array:
        """Return float32 codes, zero taken off."""
        found = np.rint(array / self.scale_of(log_scale))
        shifted = found if self.zero is None else found + self.zero
        clipped = np.clip(shifted, np.float32(self.low), np.float32(self.high))
        return np.asarray(clipped if self.zero is None else clipped - self.zero, np.float32)

    def scale_of(self, log_scale: Array | None) -> Array:
        """Return the scale once it is learned."""
        return self.scale if log_scale is None else np.asarray(self.scale * np.exp(log_scale), np.float32)

    def __call__(self, array: Array, log_scale: Array | None = None) -> Array:
        """Round an array to the grid, its scales by ``exp(log_scale)`` larger."""
        return np.asarray(self.codes(array, log_scale) * self.scale_of(log_scale), np.float32)


@dataclass(frozen=True, eq=False)
class WeightGrid:
    """The grid of a weight: a scale for each output channel, or for each block of neighbours along K.

    Attributes:
        name: of the weight.
        steps: broadcast against the weight, or against its blocks [N, B, b].
        block: elements of a block, 0 for a scale a channel.
        transposed: the weight is [N, K], not [K, N], where it has blocks.
        start: the weight rounded by samples, which training begins with; None for the weight itself.
    """

    name: str
    steps: Steps
    block: int = 0
    transposed: bool = False
    start: Array | None = None

    @property
    def log_scale_name(self) -> str:
        """Name of the parameter by which the scales are learned."""
        return f"onnxedge.log_scale.{self.name}"

    def rounded(self, weight: Array, log_scale: Array | None = None) -> Array:
        """Return the weight on its grid."""
        if not self.block:
            return self.steps(weight, log_scale)
        rows = weight if self.transposed else weight.T
        count = rows.shape[1]
        padded = np.pad(rows, [(0, 0), (0, -count % self.block)])
        parts = self.steps(padded.reshape(len(rows), -1, self.block), log_scale)
        flat = parts.reshape(len(rows), -1)[:, :count]
        return np.ascontiguousarray(flat if self.transposed else flat.T)

    def insert(self, graph: ir.Graph, *, learned: bool) -> bool:
        """Let all readers of the weight read it on its grid; False where there are none, or some in subgraphs.

        Round's gradient is taken to be 1 (Bengio et al. 2013, arXiv:1308.3432), so that of the scale is that of
        learned step sizes (Esser et al. 2020, arXiv:1902.08153, equation 3) by itself.
        """
        value = graph.initializers.get(self.name)
        uses = [(use.node, use.idx) for use in value.uses()] if value is not None else []
        if value is None or not uses or any(node.graph is not graph for node, _ in uses):
            return False
        chain = _Chain(graph, min((node for node, _ in uses), key=_Order(graph)), self.name)
        scale: ir.Value = chain.constant(self.steps.scale, "scale")
        if learned:
            zeros = np.zeros(self.steps.scale.shape, np.float32)
            log_scale = ir.Value(name=self.log_scale_name, const_value=ir.tensor(zeros, name=self.log_scale_name))
            log_scale.type, log_scale.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(zeros.shape)
            graph.register_initializer(log_scale)
            scale = chain.put("Mul", scale, chain.put("Exp", log_scale))
        whole = chain.blocks(value, self) if self.block else value
        rounded = chain.quantized(whole, scale, self.steps)
        result = chain.flat(rounded, value, self) if self.block else rounded
        for node, index in uses:
            node.replace_input_with(index, result)
        return True


@dataclass(frozen=True, eq=False)
class ActivationGrid:
    """The grid of an activation.

    Attributes:
        name: of the value.
        steps: of one scale.
        readers: names of the first outputs of the nodes that read it as integers; None for all readers.
    """

    name: str
    steps: Steps
    readers: tuple[str, ...] | None = None

    def insert(self, graph: ir.Graph) -> bool:
        """Let readers read the value on its grid; False where the graph has no such value, or none of the readers."""
        value = next((v for v in graph.inputs if v.name == self.name), None)
        value = value or next((v for node in graph for v in node.outputs if v.name == self.name), None)
        if value is None:
            return False
        uses = [use for use in value.uses() if use.node.graph is graph]
        if self.readers is not None:
            wanted = set(self.readers)
            uses = [use for use in uses if (use.node.outputs[0].name or "") in wanted]
        if not uses:
            return False
        pairs = [(use.node, use.idx) for use in uses]
        chain = _Chain(graph, min((node for node, _ in pairs), key=_Order(graph)), self.name)
        result = chain.quantized(value, chain.constant(self.steps.scale, "scale"), self.steps)
        for node, index in pairs:
            node.replace_input_with(index, result)
        return True


class _Order:
    """Compare nodes by their place in a graph."""

    def __init__(self, graph: ir.Graph) -> None:
        self._place = {node: number for number, node in enumerate(graph)}

    def __call__(self, node: ir.Node) -> int:
        return self._place[node]


class _Chain:
    """Put nodes before a node, named after a tensor."""

    def __init__(self, graph: ir.Graph, anchor: ir.Node, name: str) -> None:
        self._graph, self._anchor, self._name = graph, anchor, name

    def put(self, op_type: str, *inputs: ir.Value | Array, **attributes: Any) -> ir.Value:
        """Put a node; arrays become initializers."""
        values = [item if isinstance(item, ir.Value) else self.constant(item, "c") for item in inputs]
        name = f"{self._name}_{op_type.lower()}"
        return insert_before(self._anchor, op_type, values, attributes=attributes, name=name).outputs[0]

    def constant(self, array: Array, part: str) -> ir.Value:
        """Return a new initializer."""
        return new_initializer(self._graph, array, f"{self._name}_{part}")

    def quantized(self, value: ir.Value, scale: ir.Value, steps: Steps) -> ir.Value:
        """Round a value and make it float again."""
        codes = self.put("Round", self.put("Div", value, scale))
        zero = None if steps.zero is None else self.constant(steps.zero, "zero")
        shifted = codes if zero is None else self.put("Add", codes, zero)
        low, high = (np.array(bound, np.float32) for bound in (steps.low, steps.high))
        clipped = self.put("Clip", shifted, low, high)
        return self.put("Mul", clipped if zero is None else self.put("Sub", clipped, zero), scale)

    def blocks(self, weight: ir.Value, grid: WeightGrid) -> ir.Value:
        """Return a weight as [N, B, b], padded with zeros."""
        rows, columns = self._size(weight, grid)
        value = weight if grid.transposed else self.put("Transpose", weight, perm=[1, 0])
        if columns % grid.block:
            value = self.put("Pad", value, np.array([0, 0, 0, -columns % grid.block], np.int64))
        return self.put("Reshape", value, np.array([rows, -1, grid.block], np.int64))

    def flat(self, blocks: ir.Value, weight: ir.Value, grid: WeightGrid) -> ir.Value:
        """Return blocks in the shape of the weight."""
        rows, columns = self._size(weight, grid)
        value = self.put("Reshape", blocks, np.array([rows, -1], np.int64))
        if columns % grid.block:
            bounds: Sequence[int] = (0, columns, 1, 1)
            value = self.put("Slice", value, *(np.array([bound], np.int64) for bound in bounds))
        return value if grid.transposed else self.put("Transpose", value, perm=[1, 0])

    def _size(self, weight: ir.Value, grid: WeightGrid) -> tuple[int, int]:
        assert weight.const_value is not None
        first, second = (int(size) for size in weight.const_value.shape.numpy())
        return (first, second) if grid.transposed else (second, first)
