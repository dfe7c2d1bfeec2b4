"""Which weights of products and tables become integers, in which form, and why the others do not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal, get_args

import numpy as np
import onnx_ir as ir

from onnxedge.api import Array, Context, Target, constant, constant_tensor, is_constant, is_standard

Form = Literal["matmul-nbits", "gather-blocks", "dequantize", "integers"]

LEAST_ROWS = 16  #: elements of the smallest block that kernels take
_BLOCKED_OPSET = 21  #: from which DequantizeLinear knows blocks and 4 bits
_INDEX = {"MatMul": 1, "Gemm": 1, "Gather": 0}  #: input of each operator that is the weight
_WHOLE = {"com.microsoft::FusedMatMul", "com.microsoft::FusedGemm", "com.microsoft::Attention", "LSTM", "GRU", "RNN"}


@dataclass(frozen=True, eq=False)
class Layer:
    """A weight and the nodes of the main graph that read it in the same way.

    Attributes:
        value: the weight.
        nodes: its readers, in the graph's order.
        form: what it becomes.
        transposed: it is stored as [N, K] (Gemm with transB, tables), not as [K, N].
    """

    value: ir.Value
    nodes: tuple[ir.Node, ...]
    form: Form
    transposed: bool

    @property
    def is_table(self) -> bool:
        """Tell whether it is an embedding."""
        return self.nodes[0].op_type == "Gather"

    @property
    def data(self) -> ir.Value | None:
        """What the first reader multiplies by it, None for a table."""
        return None if self.is_table else self.nodes[0].inputs[0]

    @property
    def index(self) -> int:
        """Input of the readers that is the weight."""
        return _INDEX[self.nodes[0].op_type]

    @property
    def size(self) -> tuple[int, int]:
        """N and K."""
        tensor = constant_tensor(self.value)
        assert tensor is not None
        first, second = (int(size) for size in tensor.shape.numpy())
        return (first, second) if self.transposed else (second, first)

    @property
    def dtype(self) -> np.dtype[np.floating]:
        """Of the weight."""
        tensor = constant_tensor(self.value)
        assert tensor is not None
        return tensor.dtype.numpy()

    @property
    def matrix(self) -> Array:
        """The weight as float32 [N, K]; read-only."""
        array = constant(self.value)
        assert array is not None
        return np.asarray(array if self.transposed else array.T, np.float32)

    def like(self, matrix: Array) -> Array:
        """Return a matrix [N, K] in the weight's own order of axes and dtype."""
        return np.ascontiguousarray(matrix if self.transposed else matrix.T).astype(self.dtype)

    def on(self, twins: Mapping[ir.Node, ir.Node]) -> Layer:
        """Return the same layer of a copy of the model."""
        nodes = tuple(twins[node] for node in self.nodes)
        value = nodes[0].inputs[self.index]
        assert value is not None
        return replace(self, value=value, nodes=nodes)


def find_layers(
    model: ir.Model,
    context: Context,
    *,
    least: int,
    skip: Sequence[str],
    form: Callable[[bool], str],
    block: int = 1,
    operators: Collection[str] = ("MatMul", "Gemm", "Gather"),
) -> list[Layer]:
    """Return the weights that can be made of integers, in the graph's order; the others are noted with the reason.

    Args:
        model: its main graph is looked at.
        context: for notes.
        least: elements under which a weight stays as it is.
        skip: patterns of names of nodes whose weights stay as they are.
        form: gives what a weight becomes, or why it does not; told whether it is a table.
        block: elements of a table's block.
        operators: that are looked at.
    """
    readers: dict[tuple[ir.Value, bool, bool], list[ir.Node]] = {}
    for node in model.graph:
        index = _INDEX.get(node.op_type) if is_standard(node) and node.op_type in operators else None
        value = node.inputs[index] if index is not None and index < len(node.inputs) else None
        if value is not None and is_constant(value):
            transposed = node.op_type == "Gather" or bool(node.attributes.get_int("transB", 0))
            readers.setdefault((value, node.op_type == "Gather", transposed), []).append(node)
        elif node.op_type not in operators or index is not None:
            _tell(node, value, context)
    if model.functions or any(True for _ in model.graph.subgraphs()):
        context.note(None, "weights in subgraphs of If, Loop and Scan and in local functions stay float")
    covered: Counter[ir.Value] = Counter()
    for (value, *_), nodes in readers.items():
        covered[value] += len(nodes)
    layers: list[Layer] = []
    for (value, is_table, transposed), nodes in readers.items():
        wanted = form(is_table)
        if any(fnmatchcase(node.name or "", name) for node in nodes for name in skip):
            reason = "as asked by skip"
        else:
            reason = _refusal(value, nodes, least, block, len(value.uses()) - covered[value])
        if not reason and wanted not in get_args(Form):
            reason = wanted
        if reason:
            context.note(nodes[0], f"stays float: {reason}")
        else:
            layers.append(Layer(value, tuple(nodes), wanted, transposed))  # type: ignore[arg-type]
    return layers


def four_bit_form(target: Target, version: int, is_table: bool) -> str:
    """Return the form of a weight of 4 bits on a target, for a model of an opset, or why it has none."""
    if is_table:
        if target.has_kernel("GatherBlockQuantized", "com.microsoft"):
            return "gather-blocks"
        return "the target has no kernel that reads a table of 4 bits; all of it would be made float at each run"
    if target.has_kernel("MatMulNBits", "com.microsoft"):
        return "matmul-nbits"
    if version >= _BLOCKED_OPSET:
        return "dequantize"
    return f"opset {version} has no 4-bit blocks; put `convert(opset={_BLOCKED_OPSET})` before `int4`"


def _refusal(value: ir.Value, nodes: Sequence[ir.Node], least: int, block: int, others: int) -> str:
    """Return why a constant stays float, empty where it need not."""
    tensor = constant_tensor(value)
    assert tensor is not None
    shape = tuple(int(size) for size in tensor.shape.numpy())
    if tensor.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
        return f"its weight is {tensor.dtype.name.lower()}"
    if len(shape) != 2:
        return "its weight is no matrix"
    if int(np.prod(shape)) < least:
        return f"fewer than {least} weights (min_elements)"
    if value.is_graph_output():
        return "its weight is a graph output"
    if others:
        return "its weight is read in another way, too, or in a subgraph, so that it has to stay"
    for node in nodes:
        reason = _operator_refusal(node, shape, block)
        if reason:
            return reason
    array = constant(value)
    return "" if array is not None and np.isfinite(array).all() else "its weight holds infinities or NaN"


def _operator_refusal(node: ir.Node, shape: tuple[int, ...], block: int) -> str:
    if node.op_type == "Gather":
        if node.attributes.get_int("axis", 0) not in (0, -2):
            return "its columns are gathered, not its rows"
        return f"its {shape[1]} columns are no multiple of the block of {block}" if shape[1] % block else ""
    data = node.inputs[0]
    rank = len(data.shape) if data is not None and data.shape is not None else 0
    if rank < 2:
        return "its data has an unknown rank, or one axis alone"
    if node.op_type == "MatMul":
        return "" if shape[0] >= LEAST_ROWS else f"fewer than {LEAST_ROWS} rows"
    if node.attributes.get_int("transA", 0) or node.attributes.get_float("alpha", 1.0) != 1:
        return "its data is transposed, or its product scaled (alpha)"
    if len(node.inputs) > 2 and node.inputs[2] is not None and node.attributes.get_float("beta", 1.0) != 1:
        return "its bias is scaled (beta)"
    inner = shape[1] if node.attributes.get_int("transB", 0) else shape[0]
    return "" if inner >= LEAST_ROWS else f"fewer than {LEAST_ROWS} rows"


def _tell(node: ir.Node, value: ir.Value | None, context: Context) -> None:
    """Say why a node that multiplies by a weight has none that can be made small."""
    name = node.op_type if is_standard(node) else f"{node.domain}::{node.op_type}"
    if name in _WHOLE:
        context.note(node, f"stays float: the weights of {node.op_type} have no form of integers here")
    elif value is not None and value.is_initializer() and value.is_graph_input():
        reason = "its weight is a graph input that may be overridden; put `freeze-initializers` first"
        context.note(node, f"stays float: {reason}")
    elif value is not None and (maker := value.producer()) is not None and maker.op_type == "DequantizeLinear":
        reason = "its weight is stored as integers already; put `dequantize` first to round it anew"
        context.note(node, f"stays float: {reason}")
    elif node.op_type == "MatMul" and is_standard(node) and is_constant(node.inputs[0]):
        context.note(node, "stays float: its weight is the first operand")
