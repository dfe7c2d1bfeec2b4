"""Constants that prepare a signal before the first layer: Fourier, mel and cosine transforms are no weights."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from onnxedge.api import constant, is_constant, is_standard

_MOVE = """
    Cast Concat Expand Flatten Gather Identity Pad Reshape Slice Split Squeeze Tile Transpose Unsqueeze
"""
_ARITHMETIC = "Abs Add Clip Constant Div Max Min Mul Neg Pow Reciprocal ReduceMean ReduceSum Sqrt Sub"
_MOVES = frozenset(_MOVE.split())
_LINEAR = frozenset(("Conv", "MatMul", "Gemm"))
_PLAIN = _MOVES | _LINEAR | frozenset(_ARITHMETIC.split())  #: what signals are prepared with


def signal_constants(graph: ir.Graph) -> set[str]:
    """Return the names of constants that :func:`signal_nodes` read."""
    read = (value for node in signal_nodes(graph) for value in node.inputs if value is not None)
    return {value.name for value in read if value.name and is_constant(value)}


def signal_nodes(graph: ir.Graph) -> set[ir.Node]:
    """Return the nodes before which no layer lies and behind which a spectrum is taken.

    A spectrum is a Log, or the square of what a linear operator makes when nothing else reads that; before it lie
    linear operators, arithmetic and moves alone, and after it another linear operator.
    """
    found: set[ir.Node] = set()
    behind = _before_layers(graph)
    for node in graph:
        if not _is_spectrum(node) or not any(value in behind for value in node.outputs):
            continue
        upstream = _upstream(node)
        kinds = {other.op_type for other in upstream}
        if kinds & _LINEAR and kinds <= _PLAIN:
            found |= upstream
    return found


def _before_layers(graph: ir.Graph) -> set[ir.Value]:
    """Return the values that some linear operator depends on."""
    known: set[ir.Value] = set()
    for node in reversed(graph):
        if node.op_type in _LINEAR or any(value in known for value in node.outputs):
            known.update(value for value in node.inputs if value is not None)
    return known


def _is_spectrum(node: ir.Node) -> bool:
    if not is_standard(node):
        return False
    source = node.inputs[0] if node.inputs else None
    if node.op_type == "Log":
        return True
    if not _squares(node) or source is None:
        return False
    while True:
        producer = source.producer()
        if any(use.node is not node and use.node.op_type not in _MOVES for use in source.uses()):
            return False
        if producer is None or not is_standard(producer) or source.is_graph_output():
            return False
        if producer.op_type in _LINEAR:
            return True
        if producer.op_type not in _MOVES or producer.inputs[0] is None:
            return False
        source, node = producer.inputs[0], producer


def _squares(node: ir.Node) -> bool:
    if node.op_type == "Mul":
        return node.inputs[0] is node.inputs[1]
    if node.op_type == "Pow":
        exponent = constant(node.inputs[1])
        return exponent is not None and exponent.size == 1 and float(exponent.ravel()[0]) == 2
    return node.op_type in ("ReduceL2", "ReduceSumSquare")


def _upstream(node: ir.Node) -> set[ir.Node]:
    """Return the nodes that a node's inputs depend on."""
    seen: set[ir.Node] = set()
    waiting = list(_producers(node))
    while waiting:
        other = waiting.pop()
        if other not in seen:
            seen.add(other)
            waiting += _producers(other)
    return seen


def _producers(node: ir.Node) -> Iterable[ir.Node]:
    return (made for value in node.inputs if value is not None and (made := value.producer()) is not None)
