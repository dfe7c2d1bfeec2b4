"""What ONNX Runtime makes of a quantized graph, read off the graph that it runs and compared with the prediction."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import onnx
import onnx_ir as ir

from onnxedge.model.edit import forked
from onnxedge.model.names import refresh_scopes
from onnxedge.operators import kind
from onnxedge.placement.place import Placement
from onnxedge.runtime import optimized_graph

Kind = Literal["integer", "float"]
_TAG = re.compile(r"@(\d+)@")
_NARROW = {onnx.TensorProto.UINT8, onnx.TensorProto.INT8, onnx.TensorProto.UINT16, onnx.TensorProto.INT16}
_BOUNDARY = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
_INTEGER = ("QLinear", "QGemm", "MatMulInteger", "ConvInteger", "DynamicQuantize")  #: how integer kernels' names begin
_FLOAT_OUT = ("DequantizeLinear", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM")
_QGEMM_WITH_OUTPUT = 8  #: inputs of a QGemm from which it makes integers


@dataclass(frozen=True)
class Difference:
    """Say where ONNX Runtime does something else than was predicted.

    Attributes:
        node: of the model.
        predicted: how it was to run.
        found: operator of the runtime that it runs as.
    """

    node: ir.Node
    predicted: Kind
    found: str

    def __str__(self) -> str:
        return f"predicted to run in {_PLURAL[self.predicted]}, but ONNX Runtime runs it as {self.found}"


_PLURAL: Mapping[Kind, str] = {"integer": "integers", "float": "float"}


@dataclass(frozen=True)
class Coverage:
    """Hold the comparison of a prediction with what ONNX Runtime runs, node by node.

    Attributes:
        integer: nodes that were predicted to run in integers and do, what their kernels absorb included.
        floating: nodes that were predicted to run in float and do.
        gone: nodes of either kind that the runtime fused into others or removed, and float ones that only move data
            and that it moved a Q or DQ past.
        differences: all others.
    """

    integer: int
    floating: int
    gone: int
    differences: tuple[Difference, ...]


def read_back(model: ir.Model, placement: Placement) -> Coverage:
    """Compare a prediction with the graph that ONNX Runtime runs on this machine.

    Args:
        model: as it is emitted; not changed.
        placement: what was predicted, for nodes of the model's main graph.

    Raises:
        CannotRun: ONNX Runtime does not load the model.
    """
    copy, _ = forked(model)
    for index, node in enumerate(copy.graph):
        node.name = f"@{index}@"
        for position, value in enumerate(node.outputs):
            value.name = f"@{index}@{position}" if value.name else ""  # fused nodes are named after what they make
    refresh_scopes(copy)
    tags = {node: index for index, node in enumerate(model.graph)}
    runs = _by_tag(optimized_graph(copy))
    integer = floating = gone = 0
    differences: list[Difference] = []
    for unit in placement.integer:
        for position, node in enumerate(unit.nodes):
            found = runs.get(tags.get(node, -1), [])
            floats = [op for op, narrow in found if not narrow]
            if floats:
                differences.append(Difference(node, "integer", floats[0]))
            elif found or position:
                integer += 1
            else:
                gone += 1
    for node in placement.reasons:
        found = runs.get(tags.get(node, -1), [])
        integers = [op for op, narrow in found if narrow]
        if integers and (kind(node) == "movement" or node.op_type == "MaxPool"):
            gone += 1
        elif integers:
            differences.append(Difference(node, "float", integers[0]))
        else:
            floating, gone = floating + bool(found), gone + (not found)
    return Coverage(integer, floating, gone, tuple(differences))


def _by_tag(model: onnx.ModelProto) -> dict[int, list[tuple[str, bool]]]:
    """Return for the number in each name the operators that the runtime made of the node, and whether on integers."""
    runs: dict[int, list[tuple[str, bool]]] = {}
    for node, narrow in integer_nodes(model):
        if node.op_type in _BOUNDARY:
            continue
        for tag in _TAG.findall(node.name):
            runs.setdefault(int(tag), []).append((node.op_type, narrow))
    return runs


def integer_nodes(model: onnx.ModelProto) -> Iterator[tuple[onnx.NodeProto, bool]]:
    """Yield the nodes of an optimized graph, and whether each computes on integers of 8 or 16 bits."""
    graph = model.graph
    narrow = {value.name for value in graph.input if value.type.tensor_type.elem_type in _NARROW}
    constants = {tensor.name for tensor in graph.initializer}
    known = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    for node in graph.node:
        named = node.op_type.startswith(_INTEGER)
        reads = any(name in narrow for name in node.input if name not in constants)
        on_integers = named or (reads and node.op_type not in ("DequantizeLinear", "Cast"))
        for name in node.output:
            inferred = node.op_type == "QuantizeLinear" or (on_integers and node.op_type not in _FLOAT_OUT)
            if node.op_type == "QGemm":
                inferred = len(node.input) > _QGEMM_WITH_OUTPUT
            if known[name] in _NARROW if name in known else inferred:
                narrow.add(name)
        yield node, on_integers
