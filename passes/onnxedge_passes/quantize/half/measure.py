"""What 16 bits do to each node, measured in one graph that gives a few numbers a node."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxedge.api import Feed, Session, constant, forked, new_initializer, new_node

from .kernels import Ports

_NODES = 400  #: nodes that are measured in one run


@dataclass
class Loss:
    """Hold what 16 bits do to a node's outputs when its inputs are exact.

    Attributes:
        largest: the largest magnitude among its inputs and outputs.
        noise, signal: sums of squares over all samples.
        finite: nothing was infinite or NaN that was not so in float32.
    """

    largest: float = 0.0
    noise: float = 0.0
    signal: float = 0.0
    finite: bool = True

    @property
    def share(self) -> float:
        """Return noise over signal."""
        if not self.finite or not np.isfinite(self.noise):
            return np.inf
        return self.noise / self.signal if self.signal > 0 else (np.inf if self.noise > 0 else 0.0)


def losses(
    model: ir.Model, ports: Mapping[ir.Node, Ports], feeds: Iterable[Feed], half: ir.DataType, *, threads: int
) -> dict[ir.Node, Loss]:
    """Return what 16 bits do to each node: its inputs rounded, computed in float32, its outputs rounded.

    Raises:
        CannotRun: the runtime does not run the model, or does not cast.
    """
    feeds, nodes = list(feeds), list(ports)
    found: dict[ir.Node, Loss] = {}
    for start in range(0, len(nodes), _NODES):
        part = nodes[start : start + _NODES]
        names, probe = _probe(model, part, ports, half)
        session = Session(probe, threads=threads, level="disable")
        for feed in feeds:
            numbers = session.run(feed, [name for row in names for name in row])
            for node, row in zip(part, names, strict=True):
                _add(found.setdefault(node, Loss()), [numbers[name] for name in row])
    return found


def _add(loss: Loss, numbers: list[np.ndarray[tuple[int, ...], np.dtype[np.float32]]]) -> None:
    """Take in one run: noise, signal and largest output, then the largest inputs."""
    noise, signal, *largest = (float(number) for number in numbers)
    finite = [size for size in largest if np.isfinite(size)]
    loss.largest = max(loss.largest, *finite, 0.0) if finite else loss.largest
    if np.isfinite(signal):
        loss.noise += noise
        loss.signal += signal
        loss.finite &= bool(np.isfinite(noise))


def _probe(
    model: ir.Model, nodes: list[ir.Node], ports: Mapping[ir.Node, Ports], half: ir.DataType
) -> tuple[list[list[str]], ir.Model]:
    """Return a copy whose outputs are the numbers of each node, and their names."""
    copy, _ = forked(model)
    graph, twins = copy.graph, dict(zip(model.graph, copy.graph, strict=True))
    graph.outputs.clear()
    rounded: dict[ir.Value, ir.Value] = {}
    axes = new_initializer(graph, np.array([-1], np.int64), "flat")

    def put(op: str, inputs: list[ir.Value | None], attributes: dict[str, object] | None = None) -> ir.Value:
        node = new_node(graph, op, inputs, attributes=attributes)
        graph.append(node)
        return node.outputs[0]

    def halved(value: ir.Value) -> ir.Value:
        if value not in rounded:
            rounded[value] = put("Cast", [put("Cast", [value], {"to": int(half)})], {"to": int(ir.DataType.FLOAT)})
        return rounded[value]

    def square(value: ir.Value) -> ir.Value:
        return put("ReduceSumSquare", [put("Reshape", [value, axes])], {"keepdims": 0})

    def largest(value: ir.Value) -> ir.Value:
        return put("ReduceMax", [put("Abs", [put("Reshape", [value, axes])])], {"keepdims": 0})

    names = []
    for original in nodes:
        node, where = twins[original], ports[original]
        inputs = [halved(v) if v is not None and i in where.inputs else v for i, v in enumerate(node.inputs)]
        twin = new_node(
            graph, node.op_type, inputs, attributes=dict(node.attributes), domain=node.domain, outputs=len(node.outputs)
        )
        for old, made in zip(node.outputs, twin.outputs, strict=True):
            made.name = made.name if old.name else ""
        graph.append(twin)
        output = node.outputs[where.outputs[0]]
        off = put("Sub", [output, halved(twin.outputs[where.outputs[0]])])
        read = [v for i in where.inputs if (v := node.inputs[i]) is not None and constant(v) is None]
        numbers = [square(off), square(output), largest(output), *map(largest, read)]
        for number in numbers:
            number.type, number.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([])
        graph.outputs.extend(numbers)
        names.append([number.name or "" for number in numbers])
    return names, copy
