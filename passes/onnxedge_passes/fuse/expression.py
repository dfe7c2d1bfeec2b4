"""Small expressions in one value, found backwards from their last node and recognised by what they compute.

Exporters spell one function in many ways (factors in another order, ``x / sqrt(2)`` or ``x * 0.7071``, ``Pow(x, 3)`` or
``x * x * x``). Instead of a pattern for each spelling, the nodes between one value and the root are evaluated in
float64 on sample points and compared with the function. Source: own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxedge.api import Array, constant, is_constant, is_standard
from onnxedge_passes.cleanup.worklist import node_opset

_LARGEST_CONSTANT = 1 << 16  #: elements; larger ones are no parameters of what is looked for here


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


def expressions(root: ir.Node, operators: frozenset[str], needs: frozenset[str], limit: int) -> Iterator[Expression]:
    """Yield the expressions that end in ``root``, for each value that branches before it.

    Args:
        root: last node.
        operators: what an expression consists of; each must be in this module's table.
        needs: yield nothing unless one of these is near.
        limit: most nodes of an expression.
    """
    cone = _cone(root, operators, limit)
    if not any(node.op_type in needs for node in cone):
        return
    reads: dict[int, int] = {}
    candidates: dict[int, ir.Value] = {}
    for node in cone:
        for value in node.inputs:
            if value is not None and not is_constant(value):
                candidates[id(value)] = value
                reads[id(value)] = reads.get(id(value), 0) + 1
    for key, source in candidates.items():
        if reads[key] < 2:
            continue
        nodes = _between(source, root, cone)
        if nodes is not None and any(node.op_type in needs for node in nodes):
            yield Expression(root, source, nodes)


def _cone(root: ir.Node, operators: frozenset[str], limit: int) -> list[ir.Node]:
    """Return the nodes that lead to ``root``, nearest first, as far as they are all of the given operators."""
    cone: dict[int, ir.Node] = {id(root): root}
    queue = [root]
    for node in queue:
        for value in node.inputs:
            producer = value.producer() if value is not None else None
            if producer is None or id(producer) in cone or producer.graph is not root.graph or len(cone) >= limit:
                continue
            if producer.op_type in operators and is_standard(producer) and node_opset(producer) >= 7:
                cone[id(producer)] = producer
                queue.append(producer)
    return queue


def _between(source: ir.Value, root: ir.Node, cone: list[ir.Node]) -> tuple[ir.Node, ...] | None:
    """Return the nodes from ``source`` to ``root`` in topological order, None where anything else flows in."""
    inside = {id(node) for node in cone}
    order: dict[int, ir.Node] = {}
    stack: list[tuple[ir.Node, bool]] = [(root, False)]
    while stack:
        node, done = stack.pop()
        if done:
            order.setdefault(id(node), node)
            continue
        if id(node) in order:
            continue
        stack.append((node, True))
        for value in node.inputs:
            if value is None or value is source or _is_parameter(value):
                continue
            producer = value.producer()
            if producer is None or id(producer) not in inside:
                return None
            stack.append((producer, False))
    return tuple(order.values())


def _is_parameter(value: ir.Value) -> bool:
    return is_constant(value) and (array := constant(value)) is not None and array.size <= _LARGEST_CONSTANT


def _array(value: ir.Value | None, values: Mapping[int, Array]) -> Array | None:
    if value is None or id(value) in values:
        return values[id(value)] if value is not None else None
    array = constant(value)
    return array.astype(np.float64) if array is not None and array.dtype.kind == "f" else array


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
    if given is None and node.attributes.get_int("noop_with_empty_axes", 0) != 0:
        raise ValueError("reduces nothing")
    return tuple(int(axis) for axis in given) if given is not None else None


def _reduce(function: Callable[..., Array]) -> Callable[[ir.Node, Inputs], Array]:
    def reduced(node: ir.Node, inputs: Inputs) -> Array:
        return function(_first(inputs), axis=_axes(node, inputs), keepdims=bool(node.attributes.get_int("keepdims", 1)))

    return reduced


def _global_mean(node: ir.Node, inputs: Inputs) -> Array:
    data = _first(inputs)
    return np.asarray(data.mean(axis=tuple(range(2, data.ndim)), keepdims=True))


def _reshape(node: ir.Node, inputs: Inputs) -> Array:
    data, shape = inputs
    if data is None or shape is None:
        raise ValueError("shape is missing")
    copies = not node.attributes.get_int("allowzero", 0)
    return data.reshape([data.shape[i] if d == 0 and copies else int(d) for i, d in enumerate(shape)])


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
    "Min": _plain(np.minimum),
    "Max": _plain(np.maximum),
    "Clip": _clip,
    "HardSigmoid": _hard_sigmoid,
    "ReduceMean": _reduce(np.mean),
    "ReduceSum": _reduce(np.sum),
    "GlobalAveragePool": _global_mean,
    "Reshape": _reshape,
}

POINTWISE = frozenset(_NUMPY) - {"ReduceMean", "ReduceSum", "GlobalAveragePool", "Reshape"}
