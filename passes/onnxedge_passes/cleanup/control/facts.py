"""What holds for the values of a graph whatever its conditions are, and what else where one of them is given."""

from __future__ import annotations

import heapq
from collections import ChainMap
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import onnx
import onnx_ir as ir

from onnxedge.api import Array, is_standard, scope_of, subgraphs
from onnxedge_passes.cleanup.control.control_flow import Order, branches_of, needed_nodes
from onnxedge_passes.cleanup.shapes.inference import Kind, Types
from onnxedge_passes.cleanup.shapes.known import INTEGERS, elements_of_constant, fits, propagate
from onnxedge_passes.cleanup.shapes.size_rules import Row
from onnxedge_passes.cleanup.shapes.sizes import Sizes, own_names
from onnxedge_passes.cleanup.shapes.symbolic import Expr
from onnxedge_passes.cleanup.worklist import graph_opset

_DEPTH = 16  #: subgraphs inside of more subgraphs are not looked at
_RANK_OF_SEQUENCE = 3


class _Inferred(Types):
    """Types that follow from graph inputs and constants alone: what a file declares in between may be wrong."""

    def declare(self, value: ir.Value, *, with_shape: bool = True) -> None:
        super().declare(value, with_shape=with_shape and value.is_graph_input())

    def __init__(self, opset: int, computed: Callable[[ir.Value], Array | None]) -> None:
        super().__init__(opset, computed)
        self.refused: set[ir.Node] = set()  #: nodes that are not valid as far as inference can tell

    def take(self, value: ir.Value, kind: onnx.TypeProto | None) -> None:
        """Hold another value's type for this one's."""
        if kind is not None:
            self._types[value] = self._kind(kind)

    def proto(self, value: ir.Value) -> onnx.TypeProto | None:
        """Return the type of a value; an initializer's, too."""
        known = self._of(value)
        return known.proto if known is not None else None

    def above(self, base: _Inferred) -> None:
        """Know what ``base`` knows; what is learned stays here."""
        self._types = ChainMap({}, base._types)  # type: ignore[assignment]

    def _infer(self, node: ir.Node) -> list[Kind | None] | None:
        found = super()._infer(node)
        known = all(value is None or self.of(value) is not None for value in node.inputs)
        if found is None and known and self._schema(node) is not None:
            self.refused.add(node)
        return found


class _Measured(Sizes):
    """Sizes that may be taken over from one value to another."""

    def take(self, value: ir.Value, row: Row | None) -> None:
        """Hold another value's sizes for this one's."""
        if row is not None:
            self._rows[value] = row

    def forget(self, value: ir.Value) -> None:
        """Find the sizes of a value anew: more is known of its type."""
        self._rows[value] = None  # type: ignore[assignment]

    def above(self, base: _Measured) -> None:
        """Know what ``base`` knows; what is learned stays here."""
        self._rows = ChainMap({}, base._rows)  # type: ignore[assignment]


class Facts:
    """Types, sizes and small integers of the values of a nest: a main graph or a function, with all subgraphs.

    Nothing is written into the graph. What a file declares is believed of the main graph's inputs alone.

    Args:
        root: the outermost graph; the runtime checks the inputs of the model's own, and not those of a function.
    """

    def __init__(self, root: ir.Graph) -> None:
        is_main = not scope_of(root).is_function
        self.opset = graph_opset(root)
        self.elements: dict[ir.Value, Array] = {}
        self.types = _Inferred(self.opset, self._numbers)
        self._own = own_names(root) if is_main else set[str | None]()
        self.sizes = _Measured(self.types, self._own.__contains__)
        for value in root.inputs:
            self.types.declare(value, with_shape=is_main)
        self.learn(root)

    def learn(self, graph: ir.Graph, depth: int = 0) -> None:
        """Go through a graph and the graphs inside it, in order."""
        for node in graph:
            self.visit(node, depth)

    def visit(self, node: ir.Node, depth: int = 0) -> None:
        """Learn what follows for the outputs of one node."""
        with _unwritten(node):
            if any(subgraphs(node)):
                for value in node.outputs:
                    self.types.declare(value)
                if depth < _DEPTH:
                    self._visit_control(node, depth)
                return
            found = propagate(node, self.element, self.sizes.of) if is_standard(node) else []
            self.types.infer(node)
            if not is_standard(node):
                return
            self.sizes.infer(node, self.element)
            for value in node.outputs:
                self.sizes.tell(value)
        for value, array in zip(node.outputs, found, strict=False):
            kind = self.types.of(value)
            dtype = ir.DataType(kind.elem_type) if kind is not None else None
            if array is not None and dtype in INTEGERS and fits(array, dtype):
                self.elements[value] = array

    def element(self, value: ir.Value) -> Array | None:
        """Return the elements of a small array of integers, as numbers or expressions, None where unknown."""
        return self.elements[value] if value in self.elements else elements_of_constant(value)

    def take(self, value: ir.Value, like: ir.Value) -> None:
        """Know of a value what is known of another one, which it stands for."""
        self.types.take(value, self.types.proto(like))
        self.sizes.take(value, self.sizes.of(like))
        array = self.element(like)
        if array is not None:
            self.elements[value] = array

    def truth(self, value: ir.Value | None) -> bool | None:
        """Return a condition of one element, None where it depends on what the model is given."""
        array = self.element(value) if value is not None else None
        item = array.item() if array is not None and array.size == 1 else None
        return None if item is None or isinstance(item, Expr) else bool(item)

    def rank(self, value: ir.Value | None) -> int | None:
        """Return how many axes a value has, None where unknown."""
        dims = self.types.dims(value) if value is not None else None
        return len(dims) if dims is not None else None

    def _numbers(self, value: ir.Value) -> Array | None:
        array, kind = self.elements.get(value), self.types.of(value)
        if array is None or kind is None or any(isinstance(item, Expr) for item in array.ravel()):
            return None
        return array.astype(ir.DataType(kind.elem_type).numpy())

    def _visit_control(self, node: ir.Node, depth: int) -> None:
        for graph in subgraphs(node):
            for value in graph.inputs:
                self.types.declare(value, with_shape=False)
            self.learn(graph, depth + 1)
        branches = branches_of(node)
        for value, *ends in zip(node.outputs, *(b.outputs for b in branches or ()), strict=False) if branches else ():
            self._join(value, *ends)

    def _join(self, value: ir.Value, mine: ir.Value, other: ir.Value) -> None:
        """Learn of an If's output what its branches agree on."""
        first, second = self.types.of(mine), self.types.of(other)
        if first is None or second is None or first.elem_type != second.elem_type:
            return
        left, right = self.types.dims(mine), self.types.dims(other)
        dims = None
        if left is not None and right is not None and len(left) == len(right):
            dims = [a if a == b else None for a, b in zip(left, right, strict=True)]
        self.types.take(value, onnx.helper.make_tensor_type_proto(first.elem_type, dims))
        row = self.sizes.of(mine)
        if row == self.sizes.of(other):
            self.sizes.take(value, row)


class Case(Facts):
    """What follows where a condition is given, true or false.

    Attributes:
        impossible: the node that would fail then, or None.
        decided: the other Ifs whose condition follows: its truth, and the branches that they stand in.
        dropped: the branches that do not run.
    """

    def __init__(self, base: Facts, condition: ir.Value, truth: bool) -> None:
        self.opset, self._base = base.opset, base
        self.types = _Inferred(base.opset, self._numbers)
        self.types.above(base.types)
        self.sizes = _Measured(self.types, base._own.__contains__)
        self.sizes.above(base.sizes)
        self.elements = ChainMap({}, base.elements)  # type: ignore[assignment]
        known = base.element(condition)
        given = np.empty(known.shape if known is not None else (), object)
        given[...] = int(truth)
        self.elements[condition] = given
        self.impossible: ir.Node | None = None
        self.decided: dict[ir.Node, tuple[bool, tuple[ir.Graph, ...]]] = {}
        self.dropped: set[ir.Graph] = set()
        self._path: tuple[ir.Graph, ...] = ()
        self._condition = condition
        self._certain = True
        self._dead = False
        self._complete = False

    def follow(self, order: Order, condition: ir.Value, most: int) -> int:
        """Visit what depends on the condition, at most so many nodes; return how many there were."""
        queue, queued, count = list(order.readers(condition)), set[ir.Node](), 0
        heapq.heapify(queue)
        while queue and count < most:
            node = order.nodes[heapq.heappop(queue)]
            if node in queued:
                continue
            queued.add(node)
            self._certain = node in order.needed
            before = [self._known(value) for value in node.outputs]
            self.visit(node)
            count += 1 + sum(len(graph) for graph in subgraphs(node))
            for value, old in zip(node.outputs, before, strict=True):
                if self._known(value) != old:
                    for reader in order.readers(value):
                        heapq.heappush(queue, reader)
        self._complete = not queue
        return count

    def visit(self, node: ir.Node, depth: int = 0) -> None:
        """Learn of a node, and whether it can run."""
        for value in node.outputs:
            self.sizes.forget(value)
        super().visit(node, depth)
        if self._certain and self.impossible is None and cannot_run(node, self):
            self.impossible = node

    @property
    def is_valid(self) -> bool:
        """Tell whether inference has nothing against the graph when what follows in this case is written into it."""
        return self._complete and self.types.refused <= self._base.types.refused

    def _known(self, value: ir.Value) -> tuple[object, ...]:
        kind, array = self.types.proto(value), self.element(value)
        row = self.sizes.of(value)
        items = (array.shape, tuple(array.ravel().tolist())) if array is not None else None
        return kind.SerializeToString() if kind is not None else None, tuple(row) if row is not None else None, items

    def _visit_control(self, node: ir.Node, depth: int) -> None:
        branches = branches_of(node)
        truth = self.truth(node.inputs[0]) if branches is not None else None
        outer, certain = self._path, self._certain
        if branches is None:
            return  # a loop's body learns nothing here
        if truth is None:
            self._certain = False
            super()._visit_control(node, depth)
            self._certain = certain
            return
        taken, other = branches if truth else branches[::-1]
        if outer or node.inputs[0] is not self._condition:  # else it is looked at in the other case
            self._look_at(other, depth + 1)
        if not self._dead:
            self.decided[node] = truth, outer
            self.dropped.add(other)
        self._path = (*outer, taken)
        needed = needed_nodes(taken)
        for inner in taken:
            self._certain = certain and inner in needed
            self.visit(inner, depth + 1)
        self._path, self._certain = outer, certain
        for value, end in zip(node.outputs, taken.outputs, strict=False):
            self.take(value, end)

    def _look_at(self, graph: ir.Graph, depth: int) -> None:
        """Infer the types of a branch that does not run: the runtime does, too, and refuses what is not valid."""
        dead, certain = self._dead, self._certain
        self._dead, self._certain = True, False
        self.learn(graph, depth)
        self._dead, self._certain = dead, certain


def cannot_run(node: ir.Node, facts: Facts) -> bool:
    """Tell whether a node fails for the number of axes of its inputs: what ONNX demands and ONNX Runtime checks."""
    if not is_standard(node):
        return False
    ranks = [facts.rank(value) for value in node.inputs]
    first = ranks[0] if ranks else None
    if first is None:
        return False
    if node.op_type in ("LSTM", "GRU", "RNN"):
        return first != _RANK_OF_SEQUENCE
    if node.op_type in ("Conv", "ConvTranspose"):
        return len(ranks) > 1 and ranks[1] is not None and first != ranks[1]
    if node.op_type == "Gemm":
        return first > 2
    if node.op_type == "Transpose":
        perm = node.attributes.get_ints("perm", None)
        return perm is not None and len(perm) != first
    return False


@contextmanager
def _unwritten(node: ir.Node) -> Iterator[None]:
    """Put back the types and shapes that inference writes into the graph."""
    before = [(value, value.type, value.shape) for value in node.outputs]
    try:
        yield
    finally:
        for value, kind, shape in before:
            value.type, value.shape = kind, shape
