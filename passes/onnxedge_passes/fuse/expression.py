"""Small expressions in one value, found backwards from their last node and recognised by what they compute.

Exporters spell one function in many ways (factors in another order, ``x / sqrt(2)`` or ``x * 0.7071``, ``Pow(x, 3)`` or
``x * x * x``). Instead of a pattern for each spelling, the nodes between one value and the root are evaluated in
float64 on sample points and compared with the function. Source: own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxedge.api import Array, constant, constant_tensor, is_standard
from onnxedge_passes.cleanup.worklist import is_exported_twice, node_opset

_LARGEST_CONSTANT = 1 << 16  #: elements; larger ones are no parameters of what is looked for here
_MANY_READERS = 16  #: a value with more readers than this is no inner one of an expression
_BEHIND = 10  #: most nodes from an anchor on to roots
_CONE = 2  #: how many times the nodes of an expression are searched before its root


@dataclass(frozen=True)
class Expression:
    """Hold the nodes, in topological order, that compute ``root``'s output from ``source`` and constants alone."""

    root: ir.Node
    source: ir.Value
    nodes: tuple[ir.Node, ...]

    def evaluate(self, samples: Array) -> Array | None:
        """Return the root's output in float64 for ``samples`` in place of the source; None where that fails."""
        values: dict[int, Array] = {id(self.source): samples}
        with np.errstate(all="ignore"):
            for node in self.nodes:
                inputs = [_array(value, values) for value in node.inputs]
                try:
                    values[id(node.outputs[0])] = _NUMPY[node.op_type](node, inputs)
                except (ValueError, TypeError, IndexError, ZeroDivisionError):
                    return None  # shapes that do not fit the samples, or a form of the operator not known here
        return values[id(self.root.outputs[0])]

    def is_read_inside_only(self) -> bool:
        """Tell whether nobody outside reads a value between source and root."""
        inside = {id(node) for node in self.nodes}
        return all(
            node is self.root
            or (not node.outputs[0].is_graph_output() and all(id(use.node) in inside for use in node.outputs[0].uses()))
            for node in self.nodes
        )

    def constants_are_scalars(self) -> bool:
        """Tell whether no constant in the expression can change the shape of the source by broadcast."""
        rank = len(self.source.shape) if self.source.shape is not None else 0
        return all(
            value is self.source or (array := constant(value)) is None or (array.size == 1 and array.ndim <= rank)
            for node in self.nodes
            for value in node.inputs
        )


def expressions_around(
    anchor: ir.Node, operators: frozenset[str], limit: int, *, branching: bool = True, scalars: bool = False
) -> Iterator[Expression]:
    """Yield the expressions that hold ``anchor``, those whose root and whose source are furthest from it first.

    A search from the rare operator that every spelling has (Erf, Tanh, Sqrt) costs nothing where there is none, however
    many Mul and Add nodes a graph has.

    Args:
        anchor: a node of each expression.
        operators: what an expression consists of; each must be in this module's table.
        limit: most nodes of an expression.
        branching: only sources that are read twice or more.
        scalars: only expressions whose constants are single numbers.
    """
    search = _Search(anchor, operators, limit, scalars)
    if not is_standard(anchor) or node_opset(anchor) < 7 or not search.accepts(anchor):
        return
    behind = search.behind()
    if branching and not any(len(search.reads(node) or ()) > 1 for node in behind):
        return
    for root in reversed(behind):
        if is_exported_twice(root.outputs[0]):
            continue
        yield from search.ending_in(root, 2 if branching else 1)


@dataclass(frozen=True)
class _Search:
    anchor: ir.Node
    operators: frozenset[str]
    limit: int
    scalars: bool
    known: dict[ir.Node, list[ir.Value] | None] = field(default_factory=dict)  #: what ``reads`` found

    def accepts(self, node: ir.Node) -> bool:
        """Tell whether a node may be part of an expression."""
        return self.reads(node) is not None

    def reads(self, node: ir.Node) -> list[ir.Value] | None:
        """Return the inputs of a node that are no constants, None where it may be no part of an expression."""
        if node not in self.known:
            self.known[node] = self._reads(node)
        return self.known[node]

    def _reads(self, node: ir.Node) -> list[ir.Value] | None:
        if node.op_type not in self.operators or not is_standard(node) or node.graph is not self.anchor.graph:
            return None
        most = 1 if self.scalars else _LARGEST_CONSTANT
        read: list[ir.Value] = []
        for value in node.inputs:
            tensor = constant_tensor(value)
            if tensor is not None and tensor.size > most:
                return None
            if value is not None and tensor is None:
                read.append(value)
        return read

    def behind(self) -> list[ir.Node]:
        """Return ``anchor`` and the accepted nodes that it leads to, nearest first."""
        seen: dict[int, ir.Node] = {id(self.anchor): self.anchor}
        queue = [self.anchor]
        for node in queue:
            uses = node.outputs[0].uses()
            for use in uses if len(uses) <= _MANY_READERS else ():
                if id(use.node) not in seen and len(seen) < _BEHIND and self.accepts(use.node):
                    seen[id(use.node)] = use.node
                    queue.append(use.node)
        return queue

    def cone(self, root: ir.Node) -> dict[int, ir.Node]:
        """Return the accepted nodes that lead to ``root``, nearest first.

        More than an expression may hold: what comes before its source can lie nearer to the root than its far end.
        """
        cone: dict[int, ir.Node] = {id(root): root}
        queue = [root]
        for node in queue:
            for value in self.reads(node) or ():
                producer = value.producer()
                if producer is None or id(producer) in cone or len(cone) >= _CONE * self.limit:
                    continue
                if self.accepts(producer):
                    cone[id(producer)] = producer
                    queue.append(producer)
        return cone

    def ending_in(self, root: ir.Node, least_reads: int) -> Iterator[Expression]:
        """Walk back from ``root``, a node once all its readers are passed; where one value is open it is a source."""
        cone = self.cone(root)
        reads: dict[int, int] = {}
        for node in cone.values():
            for value in self.reads(node) or ():
                reads[id(value)] = reads.get(id(value), 0) + 1
        left, order, found = dict(reads), [root], []
        holds_anchor = root is self.anchor
        frontier: dict[int, ir.Value] = {}
        node = root
        while True:
            for value in self.reads(node) or ():
                left[id(value)] -= 1
                frontier[id(value)] = value
            if len(frontier) == 1 and holds_anchor:
                source = next(iter(frontier.values()))
                if reads[id(source)] >= least_reads:
                    found.append((source, len(order)))
            ready = next((v for key, v in frontier.items() if not left[key] and id(v.producer()) in cone), None)
            if ready is None or len(order) == self.limit:
                break
            del frontier[id(ready)]
            node = cone[id(ready.producer())]
            holds_anchor = holds_anchor or node is self.anchor
            order.append(node)
        for source, count in reversed(found):
            yield Expression(root, source, tuple(reversed(order[:count])))


def _array(value: ir.Value | None, values: Mapping[int, Array]) -> Array | None:
    if value is None or id(value) in values:
        return values[id(value)] if value is not None else None
    array = constant(value)
    return array.astype(np.float64) if array is not None and array.dtype.kind in "fV" else array


#: Float types that fusions are made for -> how far constants of that type are from their exact values.
FLOATS: Mapping[ir.DataType, float] = {ir.DataType.FLOAT: 2e-6, ir.DataType.DOUBLE: 2e-6, ir.DataType.FLOAT16: 2e-4}

Inputs = list[Array | None]


def _clip(node: ir.Node, inputs: Inputs) -> Array:
    low: Array | float | None = inputs[1] if len(inputs) > 1 else None
    high: Array | float | None = inputs[2] if len(inputs) > 2 else None
    if node_opset(node) < 11:
        low, high = (node.attributes.get_float(key, default) for key, default in (("min", -3.4e38), ("max", 3.4e38)))
    return np.clip(_first(inputs), low, high)


def _first(inputs: Inputs) -> Array:
    if inputs[0] is None:
        raise ValueError("input is missing")
    return inputs[0]


def _hard_sigmoid(node: ir.Node, inputs: Inputs) -> Array:
    alpha, beta = node.attributes.get_float("alpha", 0.2), node.attributes.get_float("beta", 0.5)
    return np.clip(float(np.float32(alpha)) * _first(inputs) + beta, 0.0, 1.0)


def _axes(node: ir.Node, inputs: Inputs) -> tuple[int, ...] | None:
    given = inputs[1] if len(inputs) > 1 else node.attributes.get_ints("axes", None)
    if given is None or len(given) == 0:
        if node.attributes.get_int("noop_with_empty_axes", 0) != 0:
            raise ValueError("reduces nothing")
        return None
    return tuple(int(axis) for axis in given)


def _reduce(function: Callable[..., Array]) -> Callable[[ir.Node, Inputs], Array]:
    def reduced(node: ir.Node, inputs: Inputs) -> Array:
        return function(_first(inputs), axis=_axes(node, inputs), keepdims=bool(node.attributes.get_int("keepdims", 1)))

    return reduced


def _global_mean(node: ir.Node, inputs: Inputs) -> Array:
    data = _first(inputs)
    return np.asarray(data.mean(axis=tuple(range(2, data.ndim)), keepdims=True))


def _softmax(node: ir.Node, inputs: Inputs) -> Array:
    axis = node.attributes.get_int("axis", -1)
    power = np.exp(_first(inputs) - _first(inputs).max(axis=axis, keepdims=True))
    return np.asarray(power / power.sum(axis=axis, keepdims=True))


def _reshape(node: ir.Node, inputs: Inputs) -> Array:
    data, shape = inputs
    if data is None or shape is None:
        raise ValueError("shape is missing")
    copies = not node.attributes.get_int("allowzero", 0)
    return data.reshape([data.shape[i] if d == 0 and copies else int(d) for i, d in enumerate(shape)])


def _cast(node: ir.Node, inputs: Inputs) -> Array:
    source = node.inputs[0]
    if source is None or {source.dtype, node.outputs[0].dtype} - FLOATS.keys() - {ir.DataType.BFLOAT16}:
        raise ValueError("not from float to float")
    return _first(inputs)


def _softplus(x: Array) -> Array:
    return np.asarray(np.maximum(x, 0.0) + np.log1p(np.exp(-np.abs(x))))


def _leaky_relu(node: ir.Node, inputs: Inputs) -> Array:
    x = _first(inputs)
    return np.where(x < 0, x * node.attributes.get_float("alpha", 0.01), x)


def _folded(function: Callable[..., Array]) -> Callable[[ir.Node, Inputs], Array]:
    """Return an operator with any number of inputs."""

    def folded(node: ir.Node, inputs: Inputs) -> Array:
        given = [array for array in inputs if array is not None]
        return functools.reduce(function, given)

    return folded


def _erf(array: Array) -> Array:
    from scipy.special import erf

    return np.asarray(erf(array))


def _plain(function: Callable[..., Array]) -> Callable[[ir.Node, Inputs], Array]:
    return lambda node, inputs: function(*inputs)


_NUMPY: Mapping[str, Callable[[ir.Node, Inputs], Array]] = {
    "Add": _plain(np.add),
    "Sub": _plain(np.subtract),
    "Mul": _plain(np.multiply),
    "Div": _plain(np.divide),
    "Pow": _plain(np.power),
    "Neg": _plain(np.negative),
    "Exp": _plain(np.exp),
    "Sqrt": _plain(np.sqrt),
    "Tanh": _plain(np.tanh),
    "Erf": _plain(_erf),
    "Reciprocal": _plain(np.reciprocal),
    "Sigmoid": _plain(lambda x: 1.0 / (1.0 + np.exp(-x))),
    "Relu": _plain(lambda x: np.maximum(x, 0.0)),
    "Min": _folded(np.minimum),
    "Max": _folded(np.maximum),
    "Sum": _folded(np.add),
    "Abs": _plain(np.abs),
    "Log": _plain(np.log),
    "Softplus": _plain(_softplus),
    "LeakyRelu": _leaky_relu,
    "Where": _plain(np.where),
    "Greater": _plain(np.greater),
    "GreaterOrEqual": _plain(np.greater_equal),
    "Less": _plain(np.less),
    "LessOrEqual": _plain(np.less_equal),
    "Identity": _plain(np.asarray),
    "Cast": _cast,
    "Clip": _clip,
    "HardSigmoid": _hard_sigmoid,
    "ReduceMean": _reduce(np.mean),
    "ReduceSum": _reduce(np.sum),
    "ReduceMax": _reduce(np.max),
    "ReduceSumSquare": _reduce(lambda x, **options: np.sum(x * x, **options)),
    "ReduceL2": _reduce(lambda x, **options: np.sqrt(np.sum(x * x, **options))),
    "ReduceLogSumExp": _reduce(lambda x, **options: np.log(np.sum(np.exp(x), **options))),
    "Softmax": _softmax,
    "GlobalAveragePool": _global_mean,
    "Reshape": _reshape,
}

_NOT_POINTWISE = frozenset(
    {"GlobalAveragePool", "Reshape", "Cast", "Softmax", *(name for name in _NUMPY if name.startswith("Reduce"))}
)
POINTWISE = frozenset(_NUMPY) - _NOT_POINTWISE
