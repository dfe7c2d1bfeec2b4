"""How many bytes folding adds to a model, and which nodes may be folded within the bounds."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import onnx_ir as ir

from onnxedge.api import Context, Pass, UserError, operator
from onnxedge_passes.cleanup.shapes.inference import Types
from onnxedge_passes.cleanup.worklist import Refused

QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
BATCH_BYTES = 64 << 20  #: results that one session computes
_MAX_WORK = 1e11  #: multiplications, by the product of output and largest input, that folding one node may take
_KINDS = "FLOAT DOUBLE FLOAT16 INT8 INT16 INT32 INT64 UINT8 UINT16 UINT32 UINT64 BOOL"
PLAIN = frozenset(kind for kind in ir.DataType if kind.name in _KINDS.split(" "))  #: what numpy and the runtime share
_LINEAR = frozenset({"elementwise", "movement", "shape", "source"})  #: kinds that look at each element once
_TIE_BYTES = 1 << 10  #: constants up to this size are read by nodes that have nothing to do with one another


@dataclass(frozen=True, kw_only=True)
class Bounded(Pass):
    """Hold the bounds of folding, for the pass and for the family that it belongs to."""

    max_constant_bytes: int = 1 << 20  #: a node that needs more bytes than this beyond what it frees is not folded
    max_growth: float = 0.1  #: share of the model's weight bytes that all folding together may add
    dequantize: bool = False  #: fold DequantizeLinear of constants too: larger, float weights
    max_memory_bytes: int = 1 << 30  #: memory that computing constants may take, beyond the constants themselves
    max_seconds: float = 10.0  #: time that computing constants may take at once

    def requires(self, model: ir.Model, context: Context) -> None:
        """Refuse bounds below 0."""
        for key in ("max_constant_bytes", "max_growth", "max_memory_bytes", "max_seconds"):
            if not getattr(self, key) >= 0:
                raise UserError(f"{self.name}: {key}={getattr(self, key):g} is no bound; give 0 or more")


class Growth:
    """Keep account of what folding adds to one graph.

    Attributes:
        budget: bytes that all folding together may still add.
        deferred: nodes that alone would add too much; together they may not.
    """

    def __init__(self, bounds: Bounded, graph: ir.Graph, types: Types, budget: int) -> None:
        self._bounds, self._graph, self._types, self.budget = bounds, graph, types, budget
        self.deferred: dict[ir.Node, None] = {}
        self._shared: set[ir.Value] = set()  #: values with several readers, or of another graph

    def judge(self, node: ir.Node) -> bool | Refused:
        """Tell whether a node of constants is folded now, and account for it; False where others decide with it."""
        made = sum(self._result_bytes(node, value) for value in node.outputs if value.name)
        if math.isinf(made):
            return Refused("not folded: the size of its result is not known before it is computed")
        read = [value for value in dict.fromkeys(node.inputs) if value is not None]
        sizes = {id(value): self._bytes(value) for value in read}
        freed = sum(sizes[id(value)] for value in read if self._is_freed_with(value, node))
        growth = int(made) - freed if node.op_type not in QUANTIZERS else 0  # asked for by ``dequantize``
        waits = bool(self.deferred) and any(value.producer() in self.deferred for value in read)
        too_large = growth > self._limit
        if too_large and made > sum(sizes.values()) + self._bounds.max_constant_bytes:
            return self._refused(growth)
        if operator(node).kind not in _LINEAR and made * max(sizes.values(), default=0) / 16 > _MAX_WORK:
            return Refused("not folded: it takes too long to compute here")
        if too_large or waits:
            self.deferred[node] = None
            return False
        self.budget -= max(growth, 0)
        return True

    def judge_deferred(self, folded: AbstractSet[int]) -> Iterator[tuple[list[ir.Node], Refused | None]]:
        """Yield deferred nodes that hang together, to be folded, or refused where together they add too much.

        Args:
            folded: ``id`` of the nodes that are folded already.
        """
        for group in self._groups():
            inside = {id(node) for node in group}
            gone = inside | folded
            made = [value for node in group for value in node.outputs]
            kept = sum(self._bytes(v) for v in made if any(id(use.node) not in gone for use in v.uses()))
            read = dict.fromkeys(value for node in group for value in node.inputs if value is not None)
            freed = sum(self._bytes(v) for v in read if id(v.producer()) not in inside and self._is_freed_by(v, gone))
            total = sum(self._bytes(value) for value in made)
            if kept - freed > self._limit or total > 8 * freed + BATCH_BYTES:
                yield group, self._refused(kept - freed)
                continue
            self.budget -= max(kept - freed, 0)
            yield group, None

    def result_bytes(self, node: ir.Node) -> int:
        """Return the bytes of a node's outputs whose sizes are known."""
        return sum(self._bytes(value) for value in node.outputs)

    @property
    def _limit(self) -> int:
        return min(self._bounds.max_constant_bytes, self.budget)

    def _refused(self, growth: int) -> Refused:
        limit = "max_constant_bytes" if growth > self._bounds.max_constant_bytes else "max_growth"
        return Refused(f"not folded: it would add more bytes than {limit} allows")

    def _groups(self) -> list[list[ir.Node]]:
        """Return the deferred nodes by what they read and make of one another; small constants tie nobody."""
        parent = {node: node for node in self.deferred}

        def root(node: ir.Node) -> ir.Node:
            while parent[node] is not node:
                parent[node] = parent[parent[node]]
                node = parent[node]
            return node

        first: dict[ir.Value, ir.Node] = {}
        for node in self.deferred:
            for value in (*node.inputs, *node.outputs):
                if value is not None and self._ties(value):
                    parent[root(node)] = root(first.setdefault(value, node))
        groups: defaultdict[ir.Node, list[ir.Node]] = defaultdict(list)
        for node in self.deferred:
            groups[root(node)].append(node)
        return list(groups.values())

    def _ties(self, value: ir.Value) -> bool:
        return value.producer() in self.deferred or self._bytes(value) > _TIE_BYTES

    def _result_bytes(self, node: ir.Node, value: ir.Value) -> float:
        """Return the bytes of an output, an upper bound where they depend on data, infinity where neither is known."""
        kind = self._types.static(value)
        if kind is not None:
            return math.prod(kind[0]) * kind[1].itemsize if kind[1] in PLAIN else math.inf
        source = self._types.static(node.inputs[0]) if node.inputs[0] is not None else None
        if source is None or node.op_type not in ("NonZero", "Compress", "Unique"):
            return math.inf
        return math.prod(source[0]) * 8 * max(len(source[0]), 1)

    def _bytes(self, value: ir.Value) -> int:
        kind = self._types.static(value)
        return int(math.prod(kind[0]) * kind[1].itemsize) if kind is not None else 0

    def _is_freed_with(self, value: ir.Value, node: ir.Node) -> bool:
        """Tell whether a node alone reads a value; to list its readers takes as long as there are many."""
        if value in self._shared or self._is_freed_by(value, {id(node)}):
            return value not in self._shared
        self._shared.add(value)
        return False

    def _is_freed_by(self, value: ir.Value, readers: AbstractSet[int]) -> bool:
        if value.is_graph_output() or value.graph is not self._graph:
            return False
        return all(id(use.node) in readers for use in value.uses())
