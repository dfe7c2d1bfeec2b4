"""Sizes of the axes of values, as numbers or expressions, so that two dynamic shapes can be told to be equal."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

from onnxedge.api import operator
from onnxedge_passes.cleanup.shapes.inference import Dims, Types
from onnxedge_passes.cleanup.shapes.size_rules import RULES, Elements, Operands, Row, broadcast
from onnxedge_passes.cleanup.shapes.symbolic import Expr, symbol
from onnxedge_passes.cleanup.worklist import input_at, node_opset

_SAME = frozenset({"ScatterND", "ScatterElements", "Trilu", "EyeLike", "CumSum", "LRN"})


class Sizes:
    """Hold the sizes of values; where an operator has no rule here, onnx's inference and new symbols stand in.

    Args:
        types: what onnx's inference knows.
        names: tells whether a dimension's name stands for one size everywhere.
    """

    def __init__(self, types: Types, names: Callable[[str], bool]) -> None:
        self._types = types
        self._names = names
        self._rows: dict[ir.Value, Row] = {}

    def of(self, value: ir.Value | None) -> Row | None:
        """Return the sizes of a value's axes, None for an unknown rank."""
        if value is None:
            return None
        known = self._rows.get(value)
        if known is None:
            dims = self._types.dims(value)
            if dims is None:
                return None
            known = self._rows[value] = [
                d if isinstance(d, int) else symbol(d if d is not None and self._names(d) else (value, axis))
                for axis, d in enumerate(dims)
            ]
        return known

    def dims(self, row: Row) -> Dims:
        """Return sizes as dimensions: numbers, names, None for what has neither.

        Where a name is declared of several inputs, each size still goes by the name that its own input gives it.
        """
        return [self._named(item) if isinstance(item, Expr) else item for item in row]

    def _named(self, item: Expr) -> str | None:
        match item.key():
            case str(name):
                return name
            case (ir.Value() as value, int(axis)) if value.is_graph_input():
                declared = (self._types.dims(value) or {axis: None})[axis]
                return declared if isinstance(declared, str) else None
        return None

    def infer(self, node: ir.Node, elements: Elements) -> None:
        """Find the sizes of a node's outputs; its types are inferred already."""
        rows = self._by_rule(node, elements)
        for value, row in zip(node.outputs, rows, strict=False):
            dims = self._types.dims(value)
            if row is not None and (dims is None or len(dims) == len(row)):
                self._rows[value] = [
                    d if isinstance(d, int) else size for d, size in zip(dims or row, row, strict=True)
                ]

    def tell(self, value: ir.Value) -> None:
        """Tell the types what is known of a value's sizes: numbers, and dimensions with a name."""
        dims = self._types.dims(value)
        row = self.of(value) if dims is None or None in dims else None
        if row is not None:
            self._types.refine(value, self.dims(row))

    def _by_rule(self, node: ir.Node, elements: Elements) -> Sequence[Row | None]:
        kind = operator(node).kind
        rule = RULES.get(node.op_type)
        first = self.of(input_at(node, 0))
        try:
            if rule is not None:
                return rule(node, first, Operands(node, self.of, elements)) if first is not None else ()
            if kind in ("softmax", "normalization", "quantization") or node.op_type in _SAME:
                return (first,)
            if kind == "elementwise":
                return (self._broadcast(node),)
        except (IndexError, ValueError, TypeError, ZeroDivisionError, OverflowError, StopIteration):
            pass  # an invalid node, or a form that is not known here
        return ()

    def _broadcast(self, node: ir.Node) -> Row | None:
        rows = [row for value in node.inputs if value is not None and (row := self.of(value)) is not None]
        if not rows or len(rows) < sum(value is not None for value in node.inputs) or node_opset(node) < 7:
            return None
        return rows[0] if node.op_type in ("Clip", "Dropout", "CastLike") else broadcast(rows, node.outputs[0])


def same_size(left: int | ir.SymbolicDim, right: int | ir.SymbolicDim) -> bool:
    """Tell whether two dimensions are one number or bear one name."""
    if isinstance(left, int) or isinstance(right, int):
        return left == right
    return left.value is not None and left.value == right.value


def own_names(graph: ir.Graph) -> set[str | None]:
    """Return the names of dimensions that stand once among the inputs of a graph, and so for one size everywhere."""
    names = [d.value for value in graph.inputs for d in value.shape or () if isinstance(d, ir.SymbolicDim)]
    return {name for name in names if names.count(name) == 1}
