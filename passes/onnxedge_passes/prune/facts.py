"""What is known of a model before it is cut: real shapes from one run, and the integers that follow from shapes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper

from onnxedge.api import Array, Feed, Session, constant, forked, is_standard, new_node, operator

Shapes = Mapping[ir.Value, tuple[int, ...]]

_CHAIN_KINDS = frozenset({"elementwise", "movement", "reduction", "shape", "source"})
_CHAIN_LIMIT = 4096  #: elements of the largest value that is followed as shape arithmetic


def evaluate(
    node: ir.Node, inputs: Sequence[Array | None], opset: int, attributes: Mapping[str, Any] | None = None
) -> list[Array] | None:
    """Run one standard node on arrays of any integer type with onnx's reference implementation.

    The attributes given replace the node's own of the same name, None removes one. Returns one array per output, or
    None where the implementation refuses.
    """
    from onnx.reference.ops import load_op

    given = dict(attributes or {})
    proto = onnx.NodeProto(op_type=node.op_type, input=[f"i{k}" for k in range(len(inputs))])
    proto.output.extend(f"o{k}" for k in range(len(node.outputs)))
    proto.attribute.extend(ir.to_proto(a) for name, a in node.attributes.items() if name not in given)
    proto.attribute.extend(helper.make_attribute(name, value) for name, value in given.items() if value is not None)
    settings = {"log": lambda *_: None, "opsets": {"": opset}, "new_ops": None, "verbose": 0}
    try:
        return [np.asarray(array) for array in load_op("", node.op_type, opset)(proto, settings).run(*inputs)]
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

    def rank(self, value: ir.Value | None) -> int:
        """Return the number of axes of a value, 0 for one that is missing or unknown."""
        return len(self.shapes.get(value, ())) if value is not None else 0


def shape_arithmetic(value: ir.Value, shapes: Shapes, opset: int, memo: dict[ir.Value, Array | None]) -> Array | None:
    """Compute a value that depends on constants and on shapes only, for the shapes given; None for other values."""
    if value not in memo:
        memo[value] = None  # what is being computed depends on no data until shown
        memo[value] = _compute(value, shapes, opset, memo)
    return memo[value]


def _compute(value: ir.Value, shapes: Shapes, opset: int, memo: dict[ir.Value, Array | None]) -> Array | None:
    array, node = constant(value), value.producer()
    if array is not None or node is None or not is_standard(node):
        return array
    kind, large = operator(node).kind, math.prod(shapes.get(value, ())) > _CHAIN_LIMIT
    if kind not in _CHAIN_KINDS or operator(node).random or large:
        return None
    inputs: list[Array | None] = []
    for source in node.inputs:
        if kind == "shape" and source is not None and source in shapes:
            inputs.append(np.broadcast_to(np.int8(0), shapes[source]))
        else:
            inputs.append(None if source is None else shape_arithmetic(source, shapes, opset, memo))
        if source is not None and (inputs[-1] is None or (kind != "shape" and inputs[-1].size > _CHAIN_LIMIT)):
            return None
    results = evaluate(node, inputs, opset)
    return results[value.index() or 0] if results is not None else None


def _sample_count(model: ir.Model, feed: Feed) -> int:
    free = (v for v in model.graph.inputs if v.shape and v.name in feed and not isinstance(v.shape[0], int))
    return next((int(feed[value.name or ""].shape[0]) for value in free), 1)


def _run_shapes(model: ir.Model, feed: Feed, threads: int) -> dict[ir.Value, tuple[int, ...]]:
    """Run a copy in which a Shape node reads every value, so that no activation is kept."""
    graph = model.graph
    shapes = {v: tuple(v.const_value.shape.numpy()) for v in graph.initializers.values() if v.const_value is not None}
    shapes |= {value: feed[value.name].shape for value in graph.inputs if value.name is not None and value.name in feed}
    outputs = (value for node in graph for value in node.outputs if value.name)
    wanted = [value for value in outputs if not isinstance(value.type, ir.SequenceType | ir.OptionalType)]
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
