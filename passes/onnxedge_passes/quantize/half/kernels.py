"""Which inputs and outputs of a node may have 16 bits, by ONNX's own schemas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from onnxedge.api import Target, is_standard, operator, subgraphs

#: operators of the runtime whose float inputs and outputs are all of one type
_CONTRIB = (
    *(
        "Attention",
        "BiasGelu",
        "EmbedLayerNormalization",
        "FastGelu",
        "FusedMatMul",
        "Gelu",
        "GroupQueryAttention",
        "MatMulNBits",
        "MultiHeadAttention",
    ),
    *("QuickGelu", "RotaryEmbedding", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization"),
)
_EXACT = ("ArgMax", "ArgMin", "TopK", "NonMaxSuppression", "Range", "CumSum", "OneHot", "Multinomial", "Unique")


@dataclass(frozen=True)
class Ports:
    """Say which inputs and outputs of a node are float32 and may be of 16 bits."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def ports_of(node: ir.Node, target: Target, opset: int, half: ir.DataType) -> Ports | str:
    """Return where a node may compute with 16 bits, or why it cannot.

    Args:
        node: of the main graph.
        target: whose kernels run it.
        opset: of the default domain.
        half: FLOAT16 or BFLOAT16.
    """
    if any(True for _ in subgraphs(node)):
        return "it holds a subgraph"
    if any(value is not None and value.is_graph_input() and value.is_initializer() for value in node.inputs):
        return "a weight of it may be overridden and would be cast at each run; put `freeze-initializers` first"
    if node.op_type in target.half_missing:
        return f"the target has no kernel for {node.op_type} in 16 bits"
    reads = [i for i, value in enumerate(node.inputs) if value is not None and value.dtype == ir.DataType.FLOAT]
    makes = [i for i, value in enumerate(node.outputs) if value.name and value.dtype == ir.DataType.FLOAT]
    if node.domain == "com.microsoft" and node.op_type in _CONTRIB and target.has_kernel(node.op_type, node.domain):
        return Ports(tuple(reads), tuple(makes))
    if not is_standard(node):
        return f"it is not known what {node.domain}::{node.op_type} takes"
    kind = operator(node).kind
    if kind in ("quantization", "source", "shape", "unknown", "control"):
        return ""
    if node.op_type in _EXACT or (node.op_type.startswith("Cast") and reads and not makes):
        return f"{node.op_type} decides by small differences, or counts"
    return _by_schema(node, reads, makes, opset, half)


def _by_schema(node: ir.Node, reads: list[int], makes: list[int], opset: int, half: ir.DataType) -> Ports | str:
    try:
        schema = onnx.defs.get_schema(node.op_type, opset)
    except onnx.defs.SchemaError:
        return f"it is not known what {node.op_type} takes"
    wanted = f"tensor({half.name.lower()})"
    allowed = {c.type_param_str for c in schema.type_constraints if wanted in c.allowed_type_strs}
    inputs = [index for index in reads if _formal(schema.inputs, index) in allowed]
    outputs = [index for index in makes if _formal(schema.outputs, index) in allowed]
    if node.op_type == "Cast":
        return Ports((), tuple(outputs)) if outputs else f"Cast at opset {opset} has no {half.name.lower()}"
    if makes and not outputs:
        return f"{node.op_type} at opset {opset} has no {half.name.lower()}"
    if node.op_type in ("Compress", "NonZero") or not (inputs and outputs):
        return ""
    return Ports(tuple(inputs), tuple(outputs))


def _formal(formals: Sequence[onnx.defs.OpSchema.FormalParameter], index: int) -> str:
    """Return the type parameter of an input or output; the last one is repeated where it may be."""
    return formals[min(index, len(formals) - 1)].type_str if formals else ""
