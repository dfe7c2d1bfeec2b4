"""Between which bounds a value is known to lie, from the nodes that it comes from."""

from __future__ import annotations

import math

import onnx_ir as ir

from onnxedge.api import constant, is_standard

Range = tuple[float, float]
ANY: Range = (-math.inf, math.inf)
_FIXED: dict[str, Range] = {"Relu": (0.0, math.inf), "Sigmoid": (0.0, 1.0), "Softmax": (0.0, 1.0), "Tanh": (-1.0, 1.0)}
_KEEPING = (
    *("AveragePool", "DepthToSpace", "Expand", "Flatten", "Gather", "GlobalAveragePool", "GlobalMaxPool", "Identity"),
    *("MaxPool", "ReduceMax", "ReduceMean", "ReduceMin", "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze"),
    *("Tile", "Transpose", "Unsqueeze"),
)
_DEPTH = 32  #: nodes that are looked back over


class Bounds:
    """Know the bounds of values; NaN lies in all of them."""

    def __init__(self) -> None:
        self._known: dict[ir.Value, Range] = {}

    def of(self, value: ir.Value, depth: int = 0) -> Range:
        """Return bounds of a value, infinite ones where nothing is known."""
        if value not in self._known:
            found = self._find(value, depth)
            if depth:
                return found  # perhaps cut off
            self._known[value] = found
        return self._known[value]

    def _find(self, value: ir.Value, depth: int) -> Range:
        node = value.producer()
        if node is None or not is_standard(node) or depth > _DEPTH:
            return ANY
        if node.op_type in _FIXED:
            return _FIXED[node.op_type]
        if node.op_type == "Clip":
            return _clipped(node)
        if node.op_type == "Concat":
            parts = [self.of(source, depth + 1) for source in node.inputs if source is not None]
            return (min(low for low, _ in parts), max(high for _, high in parts)) if parts else ANY
        source = node.inputs[0] if node.inputs else None
        if node.op_type not in _KEEPING or source is None:
            return ANY
        if value is not node.outputs[0] and node.op_type != "Split":
            return ANY
        low, high = self.of(source, depth + 1)
        return (min(low, 0.0), max(high, 0.0)) if node.op_type == "AveragePool" else (low, high)  # it may count padding


def _clipped(node: ir.Node) -> Range:
    bounds = [node.attributes.get_float("min", -math.inf), node.attributes.get_float("max", math.inf)]
    for index, value in enumerate(node.inputs[1:3]):
        if value is not None:
            array = constant(value)
            bounds[index] = float(array.reshape(())) if array is not None and array.size == 1 else ANY[index]
    low, high = (float(ANY[index] if bound is None else bound) for index, bound in enumerate(bounds))
    return (low, high) if low <= high else ANY
