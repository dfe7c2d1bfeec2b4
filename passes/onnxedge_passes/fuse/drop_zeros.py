"""Zeros that are added before a sum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxedge.api import Accuracy, Context, bypass, constant, graph_of, is_standard, scope_of
from onnxedge_passes.cleanup.eliminate_identity import neutral_operand
from onnxedge_passes.cleanup.worklist import Outcome, Refused, Rule

#: What they give does not depend on the sign of a zero that they read, but for the sign of a zero sum.
_SUMS = frozenset({
    "Add", "Sub", "Sum", "Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", "ReduceSum", "ReduceMean",
    "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSumExp", "AveragePool", "GlobalAveragePool", "Softmax",
    "LogSoftmax", "Exp", "Sigmoid", "HardSigmoid", "Softplus", "LayerNormalization", "RMSNormalization",
    "BatchNormalization", "InstanceNormalization", "GroupNormalization", "LSTM", "GRU", "RNN", "Abs", "Equal",
    "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "ArgMax", "ArgMin",
})  # fmt: skip
#: What gives a zero for a zero, or hands the elements on: their readers are asked in their stead.
_KEEPERS = frozenset({
    "Identity", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Split", "Gather", "Concat",
    "Expand", "Tile", "Pad", "Dropout", "Mul", "Neg", "Relu", "LeakyRelu", "PRelu", "Elu", "Selu", "Tanh",
    "Erf", "Gelu", "HardSwish", "Mish", "Swish", "Clip", "Max", "Min", "Where", "MaxPool", "DepthToSpace",
    "SpaceToDepth",
})  # fmt: skip
_MOST = 64  #: values that are looked at


@dataclass(frozen=True, kw_only=True)
class DropZeros(Rule):
    """Leave out an addition of 0.0 where nothing behind it divides: the bias of a layer that has learnt none.

    Before: ``y = Softmax(Reshape(Add(MatMul(x, W), 0.0)))``
    After:  ``y = Softmax(Reshape(MatMul(x, W)))``

    All that the addition does is to turn -0.0 into 0.0; onnxscript and ONNX Runtime leave it out everywhere, and
    1 / -0.0 is another infinity than 1 / 0.0.
    Left alone: readers that may tell the zeros apart, through what hands them on; zeros that change the shape.
    accuracy: rounding (a result that is 0.0 may be -0.0). Source: own.
    """

    name: ClassVar[str] = "drop-zeros"
    accuracy: ClassVar[Accuracy] = "rounding"
    roots: ClassVar[tuple[str, ...]] = ("Add", "Sub")

    def rewrite(self, node: ir.Node, context: Context) -> Outcome:
        """Find the zeros on one side and look at who reads the sum."""
        for side in (1, 0) if node.op_type == "Add" else (1,):
            zeros = constant(node.inputs[side])
            if zeros is None or zeros.dtype.kind != "f":
                continue
            kept = neutral_operand(node, side, lambda array: not array.any())
            if kept is None:
                continue
            if not _is_sign_lost(node):
                return Refused("0.0 still added: it turns -0.0 into 0.0, and what reads it may tell them apart")
            value = node.inputs[kept]
            return value if bypass(node, kept) else None
        return None


def _is_sign_lost(node: ir.Node) -> bool:
    """Tell whether no reader of a sum, nor of what is made of it, gives more than another zero for another zero."""
    graph, scope = graph_of(node), scope_of(graph_of(node))
    inner = scope.is_function or scope.opset_imports is not graph.opset_imports  # its outputs are read outside
    waiting = list(node.outputs)
    seen = set(waiting)
    while waiting:
        value = waiting.pop()
        if inner and value.is_graph_output():
            return False
        for use in value.uses():
            if use.node.op_type in _SUMS and is_standard(use.node):
                continue
            known = use.node.op_type in _KEEPERS and is_standard(use.node) and graph_of(use.node) is graph
            if not known or len(seen) > _MOST:
                return False
            fresh = [result for result in use.node.outputs if result not in seen]
            waiting += fresh
            seen.update(fresh)
    return True
