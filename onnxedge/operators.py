"""The one table of operator semantics: what an operator does to the axes of its inputs, and what it costs.

Default-domain operators are listed by name, others as ``domain::Op``. An operator that is not listed is *unknown*:
no pass may reason through it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import onnx_ir as ir

from onnxedge.model.graph import subgraphs

Kind = Literal[
    "elementwise",  # equal indices after broadcasting; no other element is looked at
    "movement",  # input 0 (all of Concat's) is rearranged, repeated, cut or padded; no arithmetic
    "contraction",  # an axis of the data is summed away against a weight, another begins
    "spatial",  # works inside each channel: axes 0 and 1 stay, the others may change size
    "normalization",  # statistics over some axes, then a scale and shift per channel
    "reduction",  # axes are reduced
    "softmax",  # competition along an axis; the shape stays
    "recurrent",  # contraction over features and a loop over time
    "attention",  # heads of a query, key and value, each by itself
    "quantization",  # float to integer and back
    "shape",  # reads the shape of its input, not the data
    "source",  # makes a tensor from attributes or from shape operands alone
    "selection",  # reads data to decide which elements come out: indices, sorting, counting
    "control",  # runs subgraphs
    "unknown",
]


@dataclass(frozen=True)
class Operator:
    """Describe one operator.

    Attributes:
        kind: what it does to axes.
        data: inputs that carry data; the others are parameters or shape operands. ``None`` means all.
        weight: input that holds the weight of a contraction.
        bias: input that holds its bias, one number per output channel.
        parameters: inputs with one number per channel (axis 1 of the data, the normalised axes for LayerNormalization).
        commutes_with_movement: elementwise without a second tensor, so that it can trade places with a movement.
        keeps_zero: maps 0 to 0 (unary elementwise only).
        random: two runs differ, so that it is never folded or merged.
    """

    kind: Kind
    data: tuple[int, ...] | None = (0,)
    weight: int | None = None
    bias: int | None = None
    parameters: tuple[int, ...] = ()
    commutes_with_movement: bool = False
    keeps_zero: bool = False
    random: bool = False


UNKNOWN = Operator("unknown")


_ROWS = (
    (
        "Abs Asin Asinh Atan Atanh Ceil Celu Elu Erf Floor Gelu HardSwish LeakyRelu Mish Neg Relu Round Selu Sign "
        "Sin Sinh Softsign Sqrt Swish Tan Tanh ThresholdedRelu Identity Cast CastLike Dropout "
        "com.microsoft::Gelu com.microsoft::FastGelu com.microsoft::QuickGelu",
        Operator("elementwise", commutes_with_movement=True, keeps_zero=True),
    ),
    (
        "Acos Acosh Cos Cosh Exp HardSigmoid Log LogSigmoid Reciprocal Shrink Sigmoid Softplus Clip "
        "Not IsInf IsNaN BitwiseNot",
        Operator("elementwise", commutes_with_movement=True),
    ),
    (
        "Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean "
        "Min Mod Mul Or Pow PRelu Sub Sum Where Xor com.microsoft::BiasGelu",
        Operator("elementwise", data=None),
    ),
    (
        "CenterCropPad DepthToSpace Expand Flatten Gather GatherElements GatherND Pad Reshape Slice SpaceToDepth Split "
        "Squeeze Tile Transpose Trilu Unsqueeze",
        Operator("movement"),
    ),
    ("Concat", Operator("movement", data=None)),
    (
        "Conv ConvTranspose Gemm com.microsoft::FusedConv com.microsoft::FusedGemm",
        Operator("contraction", weight=1, bias=2),
    ),
    ("MatMul ConvInteger MatMulInteger com.microsoft::FusedMatMul", Operator("contraction", weight=1)),
    ("QLinearConv", Operator("contraction", weight=3, bias=8)),
    ("QLinearMatMul", Operator("contraction", weight=3)),
    ("Einsum", Operator("contraction", data=None)),
    ("LSTM GRU RNN", Operator("recurrent", weight=1, bias=3)),
    (
        "Attention RotaryEmbedding com.microsoft::MultiHeadAttention com.microsoft::GroupQueryAttention "
        "com.microsoft::RotaryEmbedding",
        Operator("attention", data=None),
    ),
    ("com.microsoft::Attention", Operator("attention", weight=1, bias=2)),
    (
        "AveragePool MaxPool LpPool GlobalAveragePool GlobalMaxPool GlobalLpPool Resize Upsample",
        Operator("spatial"),
    ),
    ("BatchNormalization", Operator("normalization", parameters=(1, 2, 3, 4))),
    ("InstanceNormalization GroupNormalization LayerNormalization", Operator("normalization", parameters=(1, 2))),
    ("RMSNormalization SimplifiedLayerNormalization", Operator("normalization", parameters=(1,))),
    ("LRN LpNormalization MeanVarianceNormalization", Operator("normalization")),
    (
        "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum "
        "ReduceSumSquare ArgMax ArgMin",
        Operator("reduction"),
    ),
    ("Softmax LogSoftmax Hardmax CumSum CumProd", Operator("softmax")),
    ("QuantizeLinear DequantizeLinear", Operator("quantization", parameters=(1, 2))),
    ("DynamicQuantizeLinear", Operator("quantization")),
    ("Shape Size", Operator("shape")),
    ("Constant ConstantOfShape EyeLike Range", Operator("source", data=())),
    (
        "RandomNormal RandomUniform RandomNormalLike RandomUniformLike Bernoulli Multinomial",
        Operator("source", data=(), random=True),
    ),
    ("Compress NonMaxSuppression NonZero OneHot TopK Unique", Operator("selection", data=None)),
    ("If Loop Scan SequenceMap", Operator("control", data=None)),
)
OPERATORS: Mapping[str, Operator] = MappingProxyType({name: entry for names, entry in _ROWS for name in names.split()})


def operator(node: ir.Node) -> Operator:
    """Return what the table says about a node's operator, :data:`UNKNOWN` where it says nothing."""
    name = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"
    return OPERATORS.get(name, UNKNOWN)


def kind(node: ir.Node) -> Kind:
    """Return the kind of a node's operator."""
    return operator(node).kind


def data_inputs(node: ir.Node) -> list[ir.Value]:
    """Return the inputs of a node that carry data, without its parameters and shape operands."""
    wanted = operator(node).data
    return [v for i, v in enumerate(node.inputs) if v is not None and (wanted is None or i in wanted)]


@dataclass(frozen=True)
class WeightAxes:
    """Say where the weight of a contraction is and what its axes mean.

    Attributes:
        index: input of the node that is the weight.
        bias: input that is the bias, whether the node has one or not; None where the operator knows no bias.
        output: axis of the weight that becomes the channel axis of the output. A grouped ConvTranspose has the
            channels of one group there.
        input: axis of the weight that the data's channels are summed over. A grouped Conv has the channels of one
            group there.
        data_axis: axis of the data that is summed away (negative: from the end).
        output_axis: axis of the output that the weight's output axis becomes.
        groups: number of groups.
    """

    index: int
    bias: int | None
    output: int
    input: int
    data_axis: int
    output_axis: int
    groups: int = 1


def weight_axes(node: ir.Node) -> WeightAxes | None:
    """Return the axes of a contraction's weight, or None for other operators and for Einsum and recurrent ones.

    MatMul's weight is taken to be its second input, of rank 2; the caller checks that it is a constant.
    """
    entry = operator(node)
    if entry.kind != "contraction" or entry.weight is None:
        return None
    if "Conv" in node.op_type:
        groups = node.attributes.get_int("group", 1)
        axes = (1, 0) if node.op_type == "ConvTranspose" else (0, 1)
        return WeightAxes(entry.weight, entry.bias, *axes, data_axis=1, output_axis=1, groups=groups)
    transposed = bool(node.attributes.get_int("transB", 0))
    data_axis = -1 if not node.attributes.get_int("transA", 0) else -2
    return WeightAxes(entry.weight, entry.bias, *((0, 1) if transposed else (1, 0)), data_axis, output_axis=-1)


ShapeOf = Callable[[ir.Value | None], tuple[int, ...] | None]


def batch_one_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """Return a value's shape with 1 for an unknown first dimension, None where another dimension is unknown."""
    if value is None or value.shape is None:
        return None
    dims = [d if isinstance(d, int) else 1 if i == 0 else None for i, d in enumerate(value.shape.dims)]
    return None if None in dims else tuple(d for d in dims if d is not None)


def macs(node: ir.Node, shape_of: ShapeOf = batch_one_shape) -> int | None:
    """Count a node's multiply-accumulates: contractions, recurrent operators and attention only, 0 for all others.

    Args:
        node: any node; what subgraphs hold is not counted here, see :func:`model_macs`.
        shape_of: gives the shapes; by default the graph's own with 1 for an unknown batch.

    Returns:
        The count, or None where a shape that it needs is not known.
    """
    entry = operator(node)
    if entry.kind == "attention" and node.op_type != "RotaryEmbedding":
        return _attention_macs(node, shape_of)
    if entry.kind not in ("contraction", "recurrent"):
        return 0
    data, result = shape_of(node.inputs[0]), shape_of(node.outputs[0])
    if entry.kind == "recurrent":
        return _recurrent_macs(node, shape_of)
    if node.op_type == "Einsum":
        return _einsum_macs(node, shape_of)
    weight = shape_of(node.inputs[entry.weight]) if entry.weight is not None else None
    if node.op_type == "ConvTranspose":  # each input element meets [Co/G, *K]
        return None if data is None or weight is None else math.prod(data) * math.prod(weight[1:])
    axes = weight_axes(node)
    if axes is None or result is None or weight is None:
        return None
    if "Conv" in node.op_type:  # each output element meets [Ci/G, *K]
        return math.prod(result) * math.prod(weight[1:])
    return math.prod(result) * (
        weight[axes.input] if len(weight) == 2 else weight[-2] if len(weight) > 2 else weight[0]
    )


def _recurrent_macs(node: ir.Node, shape_of: ShapeOf) -> int | None:
    """Count ``T * N * (W + R)``: every step multiplies input and state with all of both weights."""
    data, weight, recurrence = (shape_of(v) for v in node.inputs[:3])
    if data is None or weight is None or recurrence is None:
        return None
    return data[0] * data[1] * (math.prod(weight) + math.prod(recurrence))


def _attention_macs(node: ir.Node, shape_of: ShapeOf) -> int | None:
    """Count ``B * T * S * (query features + value features)``, and the projection of the packed operator."""
    query, result = shape_of(node.inputs[0]), shape_of(node.outputs[0])
    other = shape_of(node.inputs[1]) if len(node.inputs) > 1 else None  # the keys, or the packed operator's weight
    present = shape_of(node.outputs[1]) if len(node.outputs) > 1 else None
    has_projection = operator(node).weight is not None
    if query is None or result is None or (has_projection and other is None):
        return None
    rows = max(result[0] * result[-2], 1)  # of [B, T, features] and of [B, heads, T, features]
    values = math.prod(result) // rows
    if has_projection or other is None:  # queries, keys and values of one tensor
        queries, keys = values, result[-2]
    else:
        queries, keys = math.prod(query) // rows, other[2] if len(other) == 4 else other[1]
    if present is not None:
        keys = present[-2]
    projection = rows * math.prod(other) if has_projection and other is not None else 0
    return projection + rows * keys * (queries + values)


def _einsum_macs(node: ir.Node, shape_of: ShapeOf) -> int | None:
    """Count the product of all index ranges, as if the operands were multiplied in one loop nest."""
    equation = node.attributes.get_string("equation", "") or ""
    terms = equation.replace(" ", "").split("->")[0].split(",")
    sizes: dict[str, int] = {}
    for term, value in zip(terms, node.inputs, strict=False):
        shape = shape_of(value)
        if shape is None or "." in term or len(term) != len(shape):
            return None
        for letter, size in zip(term, shape, strict=True):
            sizes[letter] = max(sizes.get(letter, 1), size)
    return math.prod(sizes.values())


def model_macs(model: ir.Model, shape_of: ShapeOf = batch_one_shape) -> int:
    """Count the multiply-accumulates of one run; nodes whose shapes are not known count 0.

    The costlier branch of an If counts, the body of a Loop or Scan once, a local function at each call.
    """
    return _graph_macs(model, model.graph, shape_of, {})


def _graph_macs(
    model: ir.Model, nodes: ir.Graph | ir.Function, shape_of: ShapeOf, known: dict[ir.OperatorIdentifier, int]
) -> int:
    """Count what a graph takes; ``known`` holds what functions take: 40 that call each other twice are 2^40 calls."""
    total = 0
    for node in nodes:
        total += macs(node, shape_of) or 0
        key = node.op_identifier()
        function = model.functions.get(key)
        if function is not None:
            if key not in known:
                known[key] = _graph_macs(model, function, shape_of, known)
            total += known[key]
        total += max((_graph_macs(model, graph, shape_of, known) for graph in subgraphs(node)), default=0)
    return total
