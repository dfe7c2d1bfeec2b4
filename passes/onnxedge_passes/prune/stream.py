"""Run a model piece by piece over all samples at once, with only what later pieces need kept between them."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper

from onnxedge.api import Array, Feed, Session

Held = dict[str, list[Array]]
_NOTHING: Array = np.zeros(0)


class Stream:
    """The main graph of a model on its way through the calibration samples.

    Values are computed when they are fetched, for every feed, and dropped when nothing that is still to run reads
    them. Constant inputs of nodes that have not run yet can be replaced.
    """

    def __init__(self, model: ir.Model, feeds: Sequence[Feed], *, threads: int = 1) -> None:
        self._threads = threads
        self._nodes = list(model.graph)
        self._number = {node: number for number, node in enumerate(self._nodes)}
        self._protos = [ir.to_proto(node) for node in self._nodes]
        self._reads = [_reads(proto) for proto in self._protos]
        self._maker = {name: n for n, proto in enumerate(self._protos) for name in proto.output if name}
        self._initializers = dict(model.graph.initializers.items())
        self._versions = [helper.make_opsetid(domain, version) for domain, version in model.graph.opset_imports.items()]
        self._functions = [ir.to_proto(function) for function in model.functions.values()]
        self._ir_version = model.ir_version
        self._done = [False] * len(self._nodes)
        self._replaced: dict[int, dict[int, Array]] = {}
        self._waiting: dict[str, int] = {}
        for read in self._reads:
            for name in read:
                self._waiting[name] = self._waiting.get(name, 0) + 1
        self._inputs = [
            value.name or "" for value in model.graph.inputs if not value.is_initializer() or value.name in feeds[0]
        ]
        self.held: Held = {name: [feed[name] for feed in feeds] for name in self._inputs}

    def join(self, feeds: Sequence[Feed]) -> None:
        """Take up more feeds: they are brought to where the others are."""
        self.release()
        inner = [name for name in self.held if name not in self._inputs]
        before, self.held = self.held, {name: [feed[name] for feed in feeds] for name in self._inputs}
        if inner:
            made = self._results(self._behind(inner), inner)
            self.held = {name: made[name] if name in made else self.held[name] for name in before}
        self.held = {name: [*arrays, *self.held[name]] for name, arrays in before.items()}

    def keep(self, count: int) -> None:
        """Drop all but the first feeds."""
        self.held = {name: arrays[:count] for name, arrays in self.held.items()}

    def replace(self, node: ir.Node, index: int, array: Array) -> None:
        """Give an input of a node that has not run another constant."""
        number = self._number[node]
        if self._done[number]:
            raise ValueError("the node has run")
        self._replaced.setdefault(number, {})[index] = array

    def fetch(self, values: Iterable[ir.Value]) -> list[list[Array]]:
        """Return the arrays of values, one per feed; a value must be new or still be needed."""
        names = [value.name or "" for value in values]
        nodes = self._missing(names)
        if nodes:
            self._run(nodes, names)
        result = [list(self.held[name]) for name in names]
        self._forget(set(names))
        return result

    def piece(self, values: Iterable[ir.Value]) -> tuple[onnx.ModelProto, list[str]]:
        """Return what computes values that were not fetched yet, without running it, and the held values it reads."""
        names = [value.name or "" for value in values]
        numbers = self._missing(names)
        inputs = sorted({name for n in numbers for name in self._reads[n] if name in self.held})
        return self._segment(numbers, inputs, names), inputs

    def release(self) -> None:
        """Drop what only the last fetch asked for."""
        self._forget(set())

    def _missing(self, names: Sequence[str]) -> list[int]:
        """Return the nodes to run for some values, in the graph's order."""
        numbers = self._behind([name for name in names if name not in self.held])
        for number in numbers:
            if self._done[number]:
                raise ValueError(f"a value of {self._nodes[number].op_type} was dropped")
        return numbers

    def _behind(self, names: Sequence[str]) -> list[int]:
        """Return the nodes that some values are computed by from what is held, in the graph's order."""
        found: set[int] = set()
        stack = list(names)
        while stack:
            number = self._maker.get(stack.pop())
            if number is not None and number not in found:
                found.add(number)
                stack.extend(name for name in self._reads[number] if name not in self.held)
        return sorted(found)

    def _run(self, numbers: list[int], names: Sequence[str]) -> None:
        for number in numbers:
            self._done[number] = True
            for name in self._reads[number]:
                self._waiting[name] -= 1
        made = [name for n in numbers for name in self._protos[n].output if name]
        self.held.update(self._results(numbers, [n for n in made if self._waiting.get(n, 0) > 0 or n in names], names))

    def _results(self, numbers: list[int], wanted: Sequence[str], pinned: Collection[str] | None = None) -> Held:
        """Run some nodes on each feed; with ``pinned`` what nothing else needs of it is dropped at once."""
        inputs = sorted({name for n in numbers for name in self._reads[n] if name in self.held})
        session = Session(self._segment(numbers, inputs, wanted), threads=self._threads)
        count = len(next(iter(self.held.values()))) if self.held else 1
        spent = [name for name in inputs if pinned is not None and not self._waiting[name] and name not in pinned]
        outputs: Held = {name: [] for name in wanted}
        for k in range(count):
            for name, array in session.run({name: self.held[name][k] for name in inputs}).items():
                outputs[name].append(array)
            for name in spent:
                self.held[name][k] = _NOTHING
        return outputs

    def _segment(self, numbers: list[int], inputs: Sequence[str], wanted: Sequence[str]) -> onnx.ModelProto:
        protos, constants = [], []
        used: set[str] = set()
        for number in numbers:
            proto = onnx.NodeProto()
            proto.CopyFrom(self._protos[number])
            for index, array in self._replaced.get(number, {}).items():
                name = f"onnxedge_replaced_{number}_{index}"
                proto.input.extend([""] * (index + 1 - len(proto.input)))
                proto.input[index] = name
                constants.append(numpy_helper.from_array(array, name))
            protos.append(proto)
            used.update(_reads(proto))
        for name in sorted(used & set(self._initializers) - set(inputs)):
            tensor = self._initializers[name].const_value
            if tensor is not None:
                constants.append(
                    numpy_helper.from_array(tensor.numpy(), name) if tensor.dtype.value < 16 else ir.to_proto(tensor)
                )
                constants[-1].name = name
        ports = [
            helper.make_tensor_value_info(name, _dtype(self.held[name][0]), _dims(self.held[name])) for name in inputs
        ]
        outputs = [onnx.ValueInfoProto(name=name) for name in wanted]
        graph = helper.make_graph(protos, "segment", ports, outputs, constants)
        model = helper.make_model(graph, opset_imports=self._versions, functions=self._functions)
        model.ir_version = self._ir_version if self._ir_version >= 4 else 4  # initializers that are no inputs
        return model

    def _forget(self, pinned: set[str]) -> None:
        for name in [n for n in self.held if self._waiting.get(n, 0) == 0 and n not in pinned]:
            del self.held[name]


def held_bytes(model: ir.Model, shapes: Mapping[ir.Value, tuple[int, ...]], stops: Collection[ir.Value]) -> int:
    """Return the most bytes of float32 activations that a stream holds between its runs.

    Args:
        model: run in the graph's order.
        shapes: of its values.
        stops: values that are fetched.
    """
    return max(held_by_stop(model, shapes, stops).values(), default=0)


def held_by_stop(
    model: ir.Model, shapes: Mapping[ir.Value, tuple[int, ...]], stops: Collection[ir.Value]
) -> dict[ir.Value, int]:
    """Return the bytes of float32 activations that a stream holds when a value is fetched, see :func:`held_bytes`."""
    order = list(model.graph)
    last = {value: n for n, node in enumerate(order) for value in node.inputs if value is not None}
    ends: dict[int, int] = {}
    found: dict[ir.Value, int] = {}
    alive = 0
    for number, node in enumerate(order):
        for value in node.outputs:
            size = 4 * math.prod(shapes.get(value, (0,)))
            alive += size
            finish = max(last.get(value, number), number)
            ends[finish] = ends.get(finish, 0) + size
        alive -= ends.pop(number, 0)
        found |= {value: alive for value in node.outputs if value in stops}
    return found


def _reads(proto: onnx.NodeProto) -> set[str]:
    """Return the names that a node reads, what its subgraphs take from outside included."""
    names = {name for name in proto.input if name}
    for attribute in proto.attribute:
        for graph in [*([attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else []), *attribute.graphs]:
            made = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
            made |= {name for node in graph.node for name in node.output}
            inner = {name for node in graph.node for name in _reads(node)} | {value.name for value in graph.output}
            names |= inner - made
    return names


def _dtype(array: Array) -> int:
    return int(helper.np_dtype_to_tensor_dtype(array.dtype))


def _dims(arrays: Sequence[Array]) -> list[int | str]:
    """Return dimensions that all arrays share, a name for the others."""
    return [
        size if all(a.ndim == arrays[0].ndim and a.shape[axis] == size for a in arrays) else f"d{axis}"
        for axis, size in enumerate(arrays[0].shape)
    ]
