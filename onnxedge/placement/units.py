"""Units: what one integer kernel of a target computes, read off the graph by the target's rules."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from onnxedge.model.graph import constant, constant_tensor, is_constant, is_standard, opset, sole_consumer
from onnxedge.operators import kind
from onnxedge.target import Quantization, Target

Role = Literal["kernel", "moves", "on-integers"]
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
LARGEST_FILL = 100.0  #: magnitude of a constant of a Where beyond which it is taken for a mask
_OPERANDS = {"Concat": (0, None), "Add": (0, 2), "Mul": (0, 2), "MatMul": (0, 2), "Where": (1, 3)}  #: inputs from, to


@dataclass(frozen=True, eq=False)
class Unit:
    """Describe nodes that one integer kernel computes.

    Attributes:
        nodes: the operator, then the bias Add and the activation that it absorbs.
        reads: inputs of the operator that are activations.
        constants: inputs of the operator that are constants, to be quantized like activations.
        weight: input of the operator that is a constant weight.
        bias: the constant bias, from the operator's own input or from the absorbed Add.
        role: ``kernel`` computes with scales of its own; ``moves`` and ``on-integers`` keep the input's scale.
        needs_output: integer only if the output is quantized.
    """

    nodes: tuple[ir.Node, ...]
    reads: tuple[int, ...]
    role: Role
    constants: tuple[int, ...] = ()
    weight: int | None = None
    bias: ir.Value | None = None
    needs_output: bool = True

    @property
    def node(self) -> ir.Node:
        """Return the operator."""
        return self.nodes[0]

    @property
    def activation(self) -> ir.Node | None:
        """Return the absorbed Relu or Clip."""
        last = self.nodes[-1]
        return last if last.op_type in ("Relu", "Clip") and len(self.nodes) > 1 else None

    @property
    def outputs(self) -> tuple[ir.Value, ...]:
        """Return what comes out behind all that is absorbed."""
        return tuple(v for v in self.nodes[-1].outputs if v.uses() or v.is_graph_output())

    def input_values(self) -> list[ir.Value]:
        """Return the activations that the operator reads."""
        return [v for i in self.reads if (v := self.node.inputs[i]) is not None]


def find_units(model: ir.Model, target: Target) -> tuple[list[Unit], dict[ir.Node, str]]:
    """Return what the target's rules let run in integers in the main graph, and why the other nodes cannot."""
    rules = target.quantization
    assert rules is not None
    version = opset(model)
    units: list[Unit] = []
    reasons: dict[ir.Node, str] = {}
    claimed: set[ir.Node] = set()
    for node in model.graph:
        if node in claimed or not _computes(node):
            continue
        found = _unit(node, rules, version)
        if isinstance(found, Unit):
            units.append(found)
            claimed.update(found.nodes)
        else:
            reasons[node] = f"{_op(node)}: {found.format(target=target.name)}"
    return units, reasons


def _op(node: ir.Node) -> str:
    return node.op_type if is_standard(node) else f"{node.domain}::{node.op_type}"


def _computes(node: ir.Node) -> bool:
    """Tell whether a node works on float32 that is not known before the run."""
    if kind(node) in ("source", "shape", "quantization") or not node.outputs:
        return False
    floats = [v for v in node.inputs if v is not None and v.dtype == ir.DataType.FLOAT and not is_constant(v)]
    return bool(floats) and any(v.dtype == ir.DataType.FLOAT for v in node.outputs)


def _unit(node: ir.Node, rules: Quantization, version: int) -> Unit | str:
    """Return the unit that starts at a node, or why it has no integer form."""
    op = node.op_type
    if not is_standard(node) or op not in (*rules.integer, *rules.pass_through, *rules.on_integers):
        return "no integer kernel on {target}"
    if version < rules.min_opset.get(op, 0):
        return f"takes no integers before opset {rules.min_opset[op]}"
    if op in rules.pass_through:
        return _moving(node, "moves")
    if op in rules.on_integers:
        return _padding(node) if op == "Pad" else _moving(node, "on-integers")
    if op in WEIGHTED and (op != "MatMul" or _rank(node.inputs[1]) == 2):
        return _weighted(node, rules)
    return _plain(node, rules)


def _rank(value: ir.Value | None) -> int:
    tensor = constant_tensor(value)
    return -1 if tensor is None else len(tensor.shape)


def _moving(node: ir.Node, role: Role) -> Unit | str:
    if node.inputs[0] is None or is_constant(node.inputs[0]):
        return "its data is constant"
    if node.op_type == "Resize" and node.attributes.get_string("mode", "nearest") != "nearest":
        return "integer only in mode nearest"
    if node.op_type == "MaxPool" and any(v.uses() or v.is_graph_output() for v in node.outputs[1:]):
        return "its indices are read"
    if node.op_type in ("ReduceMax", "ReduceMin") and node.attributes.get_int("noop_with_empty_axes", False):
        return "noop_with_empty_axes"
    return Unit((node,), (0,), role)


def _padding(node: ir.Node) -> Unit | str:
    if node.inputs[0] is None or is_constant(node.inputs[0]):
        return "its data is constant"
    fill = node.inputs[2] if len(node.inputs) > 2 else None
    if fill is not None and node.attributes.get_string("mode", "constant") == "constant":
        value = constant(fill)
        if value is None or value.size != 1 or float(value.reshape(-1)[0]) != 0.0:
            return "pads with another constant than 0"
    return Unit((node,), (0,), "on-integers")


def _weighted(node: ir.Node, rules: Quantization) -> Unit | str:
    weight = constant_tensor(node.inputs[1])
    if weight is None:
        return _not_constant(node.inputs[1])
    if weight.dtype != ir.DataType.FLOAT:
        return f"its weight is {weight.dtype.name.lower()}, not float32"
    if is_constant(node.inputs[0]):
        return "its data is constant"
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    channels = _output_channels(node, weight)
    if bias is not None and ((tensor := constant_tensor(bias)) is None or tensor.size != channels):
        return "its bias is no constant vector with one number per output channel"
    if node.op_type == "Gemm":
        alpha, beta = (node.attributes.get_float(name, 1.0) for name in ("alpha", "beta"))
        if node.attributes.get_int("transA", 0) or alpha != 1.0 or (bias is not None and beta != 1.0):
            return "has transA, alpha or beta"
    nodes = [node]
    if node.op_type in rules.bias_add and bias is None and (add := sole_consumer(node.outputs[0])) is not None:
        found = _bias_of(add, node.outputs[0], channels)
        if found is not None and (rules.bias_add_shapes == "any" or _is_known(node.inputs[0])):
            nodes.append(add)
            bias = found
    nodes.extend(_absorbed(nodes[-1], rules, node.op_type))
    return Unit(tuple(nodes), (0,), "kernel", weight=1, bias=bias, needs_output=_needs_output(nodes, rules))


def _not_constant(weight: ir.Value | None) -> str:
    if weight is not None and weight.is_initializer() and weight.is_graph_input():
        return "its weight is a graph input that a caller may override; put `freeze-initializers` first"
    return "its weight is computed at run time"


def _needs_output(nodes: Sequence[ir.Node], rules: Quantization) -> bool:
    """Tell whether a kernel is integer only with a Q behind it.

    Where an activation that it could absorb is all that reads it, the runtime looks for the Q behind that one, and
    finds none if it was not absorbed.
    """
    op, after = nodes[0].op_type, sole_consumer(nodes[-1].outputs[0])
    if op in rules.quantize_output or nodes[-1].op_type in rules.float_before_output:
        return True
    return op in rules.absorbing and after is not None and after.op_type in rules.float_before_output


def _output_channels(node: ir.Node, weight: ir.TensorProtocol) -> int:
    dims = list(weight.shape.numpy())
    if node.op_type == "ConvTranspose":
        return dims[1] * node.attributes.get_int("group", 1)
    if node.op_type == "Gemm":
        return dims[0] if node.attributes.get_int("transB", 0) else dims[1]
    return dims[0] if node.op_type == "Conv" else dims[-1]


def _is_known(value: ir.Value | None) -> bool:
    """Tell whether a value has two axes, or is known in all dimensions."""
    shape = value.shape if value is not None else None
    return shape is not None and (len(shape) == 2 or all(isinstance(size, int) for size in shape))


def _bias_of(add: ir.Node, product: ir.Value, channels: int) -> ir.Value | None:
    """Return the constant vector that an Add adds to a product along its last axis."""
    if add.op_type != "Add" or not is_standard(add):
        return None
    other = next((v for v in add.inputs if v is not product), None)
    tensor = constant_tensor(other)
    if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensor.size != channels:
        return None
    dims = list(tensor.shape.numpy())
    return other if dims and dims[-1] == channels else None


def _absorbed(last: ir.Node, rules: Quantization, op: str) -> Iterator[ir.Node]:
    """Yield the activation behind a node that the kernel's output range makes superfluous."""
    if op not in rules.absorbing:
        return
    after = sole_consumer(last.outputs[0])
    if after is None or not is_standard(after) or after.op_type not in rules.float_before_output:
        return
    if after.op_type == "Relu" or clip_bounds(after) is not None:
        yield after


def clip_bounds(node: ir.Node) -> tuple[float, float] | None:
    """Return the constant bounds of a Clip that lets 0 through, or None for computed bounds and others."""
    low, high = node.attributes.get_float("min", -math.inf), node.attributes.get_float("max", math.inf)
    for index, value in enumerate(node.inputs[1:3]):
        if value is None:
            continue
        array = constant(value)
        if array is None or array.size != 1:
            return None
        if index == 0:
            low = float(array.reshape(-1)[0])
        else:
            high = float(array.reshape(-1)[0])
    low, high = (-math.inf if low is None else low), (math.inf if high is None else high)
    return (low, high) if low <= 0.0 < high and (low == 0.0 or math.isfinite(low) or math.isinf(high)) else None


def _plain(node: ir.Node, rules: Quantization) -> Unit | str:
    """Return the unit of an operator whose inputs are all activations or constants quantized like them."""
    reads: list[int] = []
    constants: list[int] = []
    first, end = _OPERANDS.get(node.op_type, (0, 1))
    for index, value in enumerate(node.inputs[:end]):
        if index < first:
            continue
        if value is None or value.dtype not in (ir.DataType.FLOAT, None):
            return "an input is missing or no float32"
        (constants if is_constant(value) else reads).append(index)
    if not reads:
        return "its data is constant"
    if node.op_type == "Where" and not all(_is_moderate(node.inputs[index]) for index in constants):
        return f"its constant lies beyond {LARGEST_FILL:g}: one scale for it and the data would swallow the data"
    if rules.residual_branch_only and node.op_type == "Add":
        branch = _residual_branch(node)
        if branch is None:
            return "no residual branch beside a weighted operator"
        reads, constants = [branch], []
    nodes = (node, *_absorbed(node, rules, node.op_type))
    needs_output = _needs_output(nodes, rules)
    return Unit(nodes, tuple(reads), "kernel", constants=tuple(constants), needs_output=needs_output)


def _is_moderate(value: ir.Value | None) -> bool:
    array = constant(value)
    return array is not None and bool(np.abs(array).max(initial=0.0) <= LARGEST_FILL)  # not so for NaN


def _residual_branch(add: ir.Node) -> int | None:
    """Return the input of an Add that is the shortcut beside a weighted operator, None where there is no such pair."""
    weighted = [_behind_weighted(v) for v in add.inputs]
    if any(is_constant(v) for v in add.inputs) or not any(weighted):
        return None
    return 0 if weighted[1] and not (weighted[0] and _position(add.inputs[0]) > _position(add.inputs[1])) else 1


def _position(value: ir.Value | None) -> int:
    """Return how many weighted operators lie in a row before a value: the longer branch is the main one."""
    count = 0
    while value is not None and (node := value.producer()) is not None and node.inputs and count < 16:
        if node.op_type not in (*WEIGHTED, "BatchNormalization", "Relu", "Clip"):
            break
        count += node.op_type in WEIGHTED
        value = node.inputs[0]
    return count


def _behind_weighted(value: ir.Value | None) -> bool:
    node = value.producer() if value is not None else None
    if node is not None and node.op_type == "BatchNormalization" and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return node is not None and is_standard(node) and node.op_type in WEIGHTED
