"""What a model is made of and what it costs: the analysis behind ``onnxedge inspect``."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import onnx_ir as ir

from onnxedge.errors import UserError
from onnxedge.measure import measure_size
from onnxedge.model.graph import constant_node_tensor, graphs_of, is_standard, static_shape, subgraphs
from onnxedge.operators import macs
from onnxedge.placement import place
from onnxedge.report.records import Measure
from onnxedge.target import Target
from onnxedge.verify import infer_shapes

Role = Literal["integer", "moves", "absorbed", "float"]


@dataclass(frozen=True)
class Port:
    """Describe an input or output: name, dtype as numpy names it, dimensions (int, symbol, None where unknown)."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...] | None


@dataclass(frozen=True)
class OperatorCount:
    """Sum up all nodes of one operator, subgraphs and local functions included.

    Attributes:
        operator: name, with the domain in front where it is not ONNX's own.
        nodes: number of nodes.
        parameters: elements of the constants that they read; a shared one counts for its first reader.
        macs: multiply-accumulates of one sample, as far as shapes are known.
        unknown: nodes whose multiply-accumulates are not known.
        roles: how many of the nodes the target would run in which way, see :func:`predict_roles`; empty without a
            target that has integer rules.
    """

    operator: str
    nodes: int
    parameters: int
    macs: int
    unknown: int
    roles: Mapping[str, int]


@dataclass(frozen=True)
class Activations:
    """Hold the memory that the main graph's values need, each freed behind its last reader.

    Attributes:
        peak_bytes: most bytes alive at once, weights not counted.
        at: the node that runs then.
        unknown: number of values whose size is not known and is not in the sum.
    """

    peak_bytes: int
    at: str
    unknown: int


@dataclass(frozen=True)
class Inspection:
    """Hold what was found out about a model.

    Attributes:
        name: file name, or the graph's name for a model in memory.
        producer: what made the file, with its version.
        ir_version, opsets: versions that the model asks for.
        inputs, outputs: what a caller feeds and gets; overridable initializers are no inputs here.
        overridable: number of initializers that a caller may feed in place of the stored ones.
        functions, subgraph_count: number of local functions and of graphs inside nodes.
        size: nodes, parameters, bytes and multiply-accumulates.
        weight_dtypes: dtype -> bytes of constants.
        operators: most multiply-accumulates first, then most nodes.
        activations: memory for activations.
        target: name of the target asked about, empty for none.
        quantized: number of QuantizeLinear nodes; where there are some, nothing is predicted for a target.
        integer_macs: share 0..1 of the multiply-accumulates that the target would run in integers, or None.
        float_reasons: why nodes would stay float -> number of nodes, most first.
        assumed: what was assumed about free dimensions, in words; empty where all shapes are stated.
    """

    name: str
    producer: str
    ir_version: int
    opsets: Mapping[str, int]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    overridable: int
    functions: int
    subgraph_count: int
    size: Measure
    weight_dtypes: Mapping[str, int]
    operators: tuple[OperatorCount, ...]
    activations: Activations
    quantized: int
    target: str = ""
    integer_macs: float | None = None
    float_reasons: Mapping[str, int] = field(default_factory=dict)
    assumed: str = ""

    def to_json(self) -> str:
        """Return all of it as JSON text."""
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"


def inspect_model(
    model: ir.Model,
    *,
    path: Path | None = None,
    target: Target | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
) -> Inspection:
    """Analyse a model; it is not changed.

    Args:
        model: a loaded model.
        path: its file, for the name and the bytes on disk.
        target: whose integer rules are asked about.
        input_shapes: sizes for free dimensions, by input name. Free first dimensions (the batch) are 1 otherwise.

    Raises:
        UserError: an input shape that does not fit.
    """
    shaped = model.clone()
    assumed = _fix_shapes(shaped, input_shapes or {})
    infer_shapes(shaped)
    quantized = sum(node.op_type == "QuantizeLinear" for graph in graphs_of(shaped) for node in graph)
    ruled = target is not None and target.quantization is not None and not quantized
    roles, reasons = predict_roles(shaped, target) if target is not None and ruled else ({}, {})
    operators = _count_operators(shaped, roles)
    return Inspection(
        name=path.name if path is not None else model.graph.name or "model",
        producer=" ".join(filter(None, (model.producer_name, model.producer_version))),
        ir_version=model.ir_version,
        opsets={domain or "ai.onnx": version for domain, version in sorted(model.opset_imports.items())},
        inputs=tuple(_port(v) for v in model.graph.inputs if not v.is_initializer()),
        outputs=tuple(_port(v) for v in model.graph.outputs),
        overridable=sum(v.is_initializer() for v in model.graph.inputs),
        functions=len(model.functions),
        subgraph_count=sum(1 for _ in graphs_of(model)) - 1 - len(model.functions),
        size=measure_size(model, path, shaped),
        weight_dtypes=_weight_dtypes(model),
        operators=operators,
        activations=activation_peak(shaped),
        target=target.name if target is not None else "",
        quantized=quantized,
        integer_macs=_integer_share(shaped, roles) if ruled else None,
        float_reasons=reasons,
        assumed=assumed,
    )


def _port(value: ir.Value) -> Port:
    dims = None if value.shape is None else tuple(d if isinstance(d, int) else d.value for d in value.shape)
    return Port(value.name or "", _dtype_text(value), dims)


def _dtype_text(value: ir.Value) -> str:
    return "unknown type" if value.dtype is None else _dtype_name(value.dtype)


def _dtype_name(dtype: ir.DataType) -> str:
    """Return a dtype as numpy and the data files name it."""
    return "string" if dtype == ir.DataType.STRING else dtype.numpy().name


def _fix_shapes(model: ir.Model, shapes: Mapping[str, Sequence[int]]) -> str:
    """Write the given sizes into the inputs of a scratch copy, 1 for a free batch; say in words what was assumed."""
    inputs = {value.name or "": value for value in model.graph.inputs if not value.is_initializer()}
    for name in shapes:
        if name not in inputs:
            raise UserError(f"--input-shape: no input is called {name!r}; the model has {', '.join(inputs) or 'none'}")
    sizes: dict[str, int] = {}
    batch = False
    for name, value in inputs.items():
        if name in shapes:
            sizes |= _given_sizes(value, shapes[name])
        elif value.shape is not None and len(value.shape) and not isinstance(value.shape[0], int):
            batch = True
            if value.shape[0].value:
                sizes.setdefault(value.shape[0].value, 1)
            value.shape = ir.Shape([1, *list(value.shape)[1:]])
    for value in model.graph.outputs:  # a symbol means the same size wherever it stands
        if value.shape is not None:
            dims = [d if isinstance(d, int) else sizes.get(d.value or "", d) for d in value.shape]
            value.shape = ir.Shape(dims)
    free = any(v.shape is None or not v.shape.is_static() for v in inputs.values())
    parts = ["batch 1"] * batch + ["other free dimensions unknown (--input-shape sets them)"] * free
    return ", ".join(parts)


def _given_sizes(value: ir.Value, shape: Sequence[int]) -> dict[str, int]:
    """Write a given shape into an input and return the sizes of its symbols."""
    old = list(value.shape) if value.shape is not None else [None] * len(shape)
    if len(old) != len(shape) or any(isinstance(d, int) and d != size for d, size in zip(old, shape, strict=True)):
        have = "x".join("?" if d is None else str(d) for d in old)
        raise UserError(f"--input-shape: input {value.name!r} is {have}, {'x'.join(map(str, shape))} came")
    value.shape = ir.Shape(list(shape))
    return {d.value: size for d, size in zip(old, shape, strict=True) if isinstance(d, ir.SymbolicDim) and d.value}


def _weight_dtypes(model: ir.Model) -> dict[str, int]:
    found: Counter[str] = Counter()
    for graph in graphs_of(model):
        constants = [constant_node_tensor(node) for node in graph if node.op_type == "Constant" and is_standard(node)]
        for tensor in (*(value.const_value for value in graph.initializers.values()), *constants):
            if tensor is not None and tensor.dtype != ir.DataType.STRING:
                found[_dtype_name(tensor.dtype)] += tensor.nbytes
    return dict(found.most_common())


def operator_name(node: ir.Node) -> str:
    """Return a node's operator, with the domain in front where it is not ONNX's own."""
    return node.op_type if is_standard(node) else f"{node.domain}::{node.op_type}"


def _count_operators(model: ir.Model, roles: Mapping[ir.Node, Role]) -> tuple[OperatorCount, ...]:
    nodes: Counter[str] = Counter()
    parameters: Counter[str] = Counter()
    work: Counter[str] = Counter()
    unknown: Counter[str] = Counter()
    counted: dict[str, Counter[str]] = {}
    seen: set[int] = set()
    for graph in graphs_of(model):
        for node in graph:
            name = operator_name(node)
            nodes[name] += 1
            parameters[name] += sum(_new_elements(node, seen))
            count = macs(node)
            work[name] += count or 0
            unknown[name] += count is None
            if node in roles:
                counted.setdefault(name, Counter())[roles[node]] += 1
    rows = [OperatorCount(n, nodes[n], parameters[n], work[n], unknown[n], dict(counted.get(n, {}))) for n in nodes]
    return tuple(sorted(rows, key=lambda row: (-row.macs, -row.nodes, row.operator)))


def _new_elements(node: ir.Node, seen: set[int]) -> Iterable[int]:
    """Yield the sizes of the initializers that a node is the first to read, and of the tensor that a Constant holds."""
    for value in node.inputs:
        if value is not None and value.const_value is not None and value.is_initializer() and id(value) not in seen:
            seen.add(id(value))
            yield value.const_value.size
    if node.op_type == "Constant" and is_standard(node):
        tensor = constant_node_tensor(node)
        yield tensor.size if tensor is not None else 0


def _integer_share(model: ir.Model, roles: Mapping[ir.Node, Role]) -> float | None:
    work = {node: macs(node) or 0 for graph in graphs_of(model) for node in graph}
    total = sum(work.values())
    return sum(count for node, count in work.items() if roles.get(node) == "integer") / total if total else None


def predict_roles(model: ir.Model, target: Target) -> tuple[dict[ir.Node, Role], dict[str, int]]:
    """Return how a target would run each node of an ``int8`` model, and why nodes stay float, counted.

    ``integer``: an integer kernel; ``moves``: moves integers unchanged; ``absorbed``: disappears in the kernel before
    it; ``float``: stays as it is. Nodes that compute on no activations of the main graph are in neither.
    """
    placement = place(model, target)
    roles: dict[ir.Node, Role] = dict.fromkeys(placement.reasons, "float")
    for unit in placement.integer:
        roles[unit.node] = "integer" if unit.role == "kernel" else "moves"
        roles.update(dict.fromkeys(unit.nodes[1:], "absorbed"))
    return roles, dict(Counter(placement.reasons.values()).most_common())


def activation_peak(model: ir.Model) -> Activations:
    """Walk the main graph in its order and find the most bytes of activations alive at once.

    A value lives from the node that makes it to its last reader, nodes inside subgraphs included; graph inputs live
    from the start, graph outputs to the end. A node with subgraphs needs the largest of them on top. Values made
    from constants alone count like any other; a runtime that reuses buffers in place needs less.
    """
    sizes = _Sizes()
    peak, at = _walk(model.graph, sizes)
    return Activations(peak, at, len(sizes.unknown))


class _Sizes:
    """Know the bytes of values and remember those whose size nobody knows."""

    def __init__(self) -> None:
        self.unknown: set[int] = set()

    def of(self, value: ir.Value) -> int:
        shape = static_shape(value)
        if shape is None or value.dtype is None or value.dtype == ir.DataType.STRING:
            self.unknown.add(id(value))
            return 0
        return math.ceil(math.prod(shape) * value.dtype.bitwidth / 8)


def _walk(graph: ir.Graph, sizes: _Sizes) -> tuple[int, str]:
    """Return the peak bytes of a graph and the operator and name of the node that runs then."""
    last = _last_readers(graph)
    live = {id(v): sizes.of(v) for v in graph.inputs if not v.is_initializer()}
    now = sum(live.values())
    peak, at = now, ""
    for index, node in enumerate(graph):
        if node.op_type != "Constant":
            made = {id(v): sizes.of(v) for v in node.outputs if v.uses() or v.is_graph_output()}
            live |= made
            now += sum(made.values())
        inner = max((_walk(inside, sizes)[0] for inside in subgraphs(node)), default=0)
        if now + inner > peak:
            peak, at = now + inner, f"{operator_name(node)} {node.name!r}" if node.name else operator_name(node)
        for key in last.get(index, ()):
            now -= live.pop(key, 0)
    return peak, at


def _last_readers(graph: ir.Graph) -> dict[int, list[int]]:
    """Return node index -> values (by identity) that nobody reads behind it; graph outputs are in no list."""
    last: dict[int, int] = {}
    for index, node in enumerate(graph):
        for value in _reads(node):
            last[id(value)] = index
    for value in graph.outputs:
        last.pop(id(value), None)
    by_index: dict[int, list[int]] = {}
    for key, index in last.items():
        by_index.setdefault(index, []).append(key)
    return by_index


def _reads(node: ir.Node) -> Iterable[ir.Value]:
    """Yield what a node reads, what the nodes of its subgraphs read from outside included."""
    yield from (value for value in node.inputs if value is not None)
    for graph in subgraphs(node):
        for inside in graph:
            yield from _reads(inside)
        yield from graph.outputs
