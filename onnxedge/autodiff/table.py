"""Which operators have a gradient, and what it is: one rule an operator for all that needs gradients."""

from __future__ import annotations

from collections.abc import Callable

import onnx

from onnxedge.autodiff import convolutions, elementwise, matrix, pools, reductions, shapes
from onnxedge.autodiff.backward import Backward, Gradients

#: What the gradients of a node's outputs become on the way to its inputs.
Rule = Callable[[Backward, onnx.NodeProto, Gradients], Gradients]
_SLOPES = "Relu Abs Sigmoid Tanh Erf Sqrt Exp Log Reciprocal Sin Cos LeakyRelu Clip HardSigmoid HardSwish"
_REDUCTIONS = """
    GlobalAveragePool ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceSum
    ReduceSumSquare
"""
RULES: dict[str, Rule] = {
    **dict.fromkeys(("Add", "Sub", "Mul", "Div"), elementwise.binary),
    **dict.fromkeys(("Sum", "Mean"), elementwise.several),
    **dict.fromkeys(("Min", "Max"), elementwise.extreme),
    **dict.fromkeys(_SLOPES.split(), elementwise.slope),
    **dict.fromkeys(_REDUCTIONS.split(), reductions.reduction),
    **dict.fromkeys(("Softmax", "LogSoftmax"), reductions.softmax),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"), shapes.view),
    **dict.fromkeys(("ScatterElements", "ScatterND"), shapes.scatter),
    "Neg": elementwise.negative,
    "Pow": elementwise.power,
    "Gelu": elementwise.gelu,
    "Where": elementwise.where,
    "Cast": elementwise.cast,
    "Round": elementwise.straight_through,
    "LayerNormalization": reductions.layer_normalization,
    "BatchNormalization": reductions.batch_normalization,
    "Dropout": shapes.dropout,
    "Expand": shapes.expand,
    "Tile": shapes.tile,
    "Trilu": shapes.trilu,
    "Transpose": shapes.transpose,
    "Concat": shapes.concat,
    "Split": shapes.split,
    "Slice": shapes.slices,
    "Pad": shapes.pad,
    "Gather": shapes.gather,
    "GatherElements": shapes.gather_elements,
    "GatherND": shapes.gather_places,
    "TopK": shapes.top,
    "MatMul": matrix.matmul,
    "Gemm": matrix.gemm,
    "Conv": convolutions.convolution,
    "ConvTranspose": convolutions.transposed_convolution,
    "AveragePool": pools.average_pool,
    "MaxPool": pools.max_pool,
}
