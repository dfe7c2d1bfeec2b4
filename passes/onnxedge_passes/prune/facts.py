"""What is known of a model before it is cut: real shapes from one run, and the integers that follow from shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper

from onnxedge.api import Array, Feed, Session, constant, forked, new_node, operator, static_shape

Shapes = Mapping[ir.Value, tuple[int, ...]]

_CHAIN_KINDS = frozenset({"elementwise", "movement", "reduction", "source"})
_CHAIN_LIMIT = 4096  #: elements of the largest value that is followed as shape arithmetic


def evaluate(
    node: ir.Node, inputs: list[Array | None], opset: int, attributes: Mapping[str, Any] | None = None
) -> list[Array] | None:
    """Run one standard node on arrays of any integer type with onnx's reference implementation.

    Args:
        node: gives operator and attributes; it may stand in a graph, which is not looked at.
        inputs: one array per input, None for a missing one.
        opset: version of the default domain.
        attributes: replace the node's own of the same name; None removes one.

    Returns:
        One array per output, or None where the implementation refuses.
    """
    from onnx.reference import ReferenceEvaluator

    proto = onnx.NodeProto(op_type=node.op_type)
    proto.input.extend(f"i{k}" if array is not None else "" for k, array in enumerate(inputs))
    proto.output.extend(f"o{k}" for k in range(len(node.outputs)))
    given = dict(attributes or {})
    kept = [a for name, a in node.attributes.items() if name not in given and not a.is_ref()]
    proto.attribute.extend(ir.to_proto(attribute) for attribute in kept)
    proto.attribute.extend(helper.make_attribute(name, value) for name, value in given.items() if value is not None)
    anything = onnx.TypeProto()
    inward, outward = (
        [helper.make_value_info(n, anything) for n in names if n] for names in (proto.input, proto.output)
    )
    graph = helper.make_graph([proto], "one", inward, outward)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    feed = {f"i{k}": array for k, array in enumerate(inputs) if array is not None}
    try:
        return [np.asarray(array) for array in ReferenceEvaluator(model).run(None, feed)]
    except Exception:  # numpy, onnx and index errors of any kind: all say that the node does not fit the arrays
        return None


class Facts:
    """Know the shapes of the main graph's values and the values of its shape arithmetic.

    Attributes:
        model: as it was when it was looked at; edits make the facts stale.
        shapes: shape of each value of the main graph in one run on ``feed``.
        opset: version of the default domain.
        samples: samples in that run, 1 where the model fixes its batch.
    """

    def __init__(self, model: ir.Model, feed: Feed, *, threads: int = 1) -> None:
        """Run the model once.

        Raises:
            CannotRun: the runtime does not run the model.
        """
        self.model = model
        self.opset = model.graph.opset_imports.get("", model.graph.opset_imports.get("ai.onnx", 1))
        self.samples = _sample_count(model, feed)
        self.shapes = _run_shapes(model, feed, threads)
        self._chain: dict[ir.Value, Array | None] = {}

    def computed(self, value: ir.Value) -> Array | None:
        """Return a constant, or what a chain of shape arithmetic gives for the shapes of the run, else None."""
        return shape_arithmetic(value, self.shapes, self.opset, self._chain)

    def evaluate(
        self, node: ir.Node, inputs: list[Array | None], attributes: Mapping[str, Any] | None = None
    ) -> list[Array] | None:
        """Run a node on arrays, see :func:`evaluate`."""
        return evaluate(node, inputs, self.opset, attributes)


def shape_arithmetic(value: ir.Value, shapes: Shapes, opset: int, memo: dict[ir.Value, Array | None]) -> Array | None:
    """Compute a value that depends on constants and on shapes only, for the shapes given; None for other values."""
    if value in memo:
        return memo[value]
    memo[value] = None  # what is being computed depends on no data until shown
    memo[value] = _compute(value, shapes, opset, memo)
    return memo[value]


def _compute(value: ir.Value, shapes: Shapes, opset: int, memo: dict[ir.Value, Array | None]) -> Array | None:
    array = constant(value)
    if array is not None:
        return array
    node = value.producer()
    if node is None or node.domain not in ("", "ai.onnx") or value.is_graph_input():
        return None
    kind, entry = operator(node).kind, operator(node)
    if kind == "shape":
        source = node.inputs[0]
        shape = shapes.get(source) if source is not None else None
        if shape is None:
            return None
        if node.op_type == "Size":
            return np.array(int(np.prod(shape, dtype=np.int64)), np.int64)
        end = node.attributes.get_int("end", len(shape))
        return np.array(shape[slice(node.attributes.get_int("start", 0), end)], np.int64)
    size = shapes.get(value)
    if kind not in _CHAIN_KINDS or entry.random or (size is not None and np.prod(size, dtype=np.int64) > _CHAIN_LIMIT):
        return None
    inputs: list[Array | None] = []
    for source in node.inputs:
        inputs.append(None if source is None else shape_arithmetic(source, shapes, opset, memo))
        if source is not None and inputs[-1] is None:
            return None
    if sum(array.size for array in inputs if array is not None) > _CHAIN_LIMIT:
        return None
    results = evaluate(node, inputs, opset)
    return results[value.index() or 0] if results is not None else None


def _sample_count(model: ir.Model, feed: Feed) -> int:
    for value in model.graph.inputs:
        array, shape = feed.get(value.name or ""), value.shape
        if array is not None and array.ndim and shape is not None and not isinstance(shape[0], int):
            return int(array.shape[0])
    return 1


def _run_shapes(model: ir.Model, feed: Feed, threads: int) -> dict[ir.Value, tuple[int, ...]]:
    """Run a copy in which a Shape node reads every value, so that no activation is kept."""
    shapes: dict[ir.Value, tuple[int, ...]] = {}
    wanted: list[ir.Value] = []
    for value in model.graph.inputs:
        array = feed.get(value.name or "")
        known = array.shape if array is not None else static_shape(value)
        if known is not None:
            shapes[value] = tuple(known)
    for value in model.graph.initializers.values():
        if value.const_value is not None and value not in shapes:
            shapes[value] = tuple(value.const_value.shape.numpy())
    for node in model.graph:
        for value in node.outputs:
            if not value.name or isinstance(value.type, ir.SequenceType | ir.OptionalType):
                continue
            array = constant(value) if node.op_type == "Constant" else None
            if array is not None:
                shapes[value] = array.shape
            else:
                wanted.append(value)
    probe, probed = forked(model, wanted)
    readers = [new_node(probe.graph, "Shape", [value], name=f"onnxedge_shape_{k}") for k, value in enumerate(probed)]
    probe.graph.outputs.clear()
    for reader in readers:
        probe.graph.append(reader)
        probe.graph.outputs.append(reader.outputs[0])
    found = Session(probe, threads=threads, level="disable").run(feed)
    for value, reader in zip(wanted, readers, strict=True):
        shapes[value] = tuple(int(d) for d in found[reader.outputs[0].name or ""])
    return shapes
