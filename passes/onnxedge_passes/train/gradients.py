"""Which operators ONNX Runtime's training has a right gradient for, and what that leaves of a graph to be trained.

Every operator of the table was compared with finite differences in onnxruntime-training-cpu 1.19.2. AveragePool is not
in it: in whole models its gradient was off by a factor of 1e5, or ended the process. Round passes gradients as if it
rounded nothing, which both engines are told.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import onnx_ir as ir

from onnxedge.api import constant, is_standard, node_label, subgraphs
from onnxedge_passes.cleanup.control.splice import captured
from onnxedge_passes.cleanup.worklist import input_at

#: Operators with a gradient, some of them only in the forms of ``_FORMS``.
_KNOWN = """
    Abs Add BatchNormalization Cast Clip Concat Conv Cos Div Dropout Erf Exp Expand Flatten Gather
    GatherElements GatherND Gelu Gemm GlobalAveragePool Identity LayerNormalization LeakyRelu Log LogSoftmax MatMul Max
    MaxPool Min Mul Neg Pad Pow Reciprocal ReduceL2 ReduceLogSumExp ReduceMean ReduceSum Relu Reshape Round
    ScatterElements ScatterND Sigmoid Sin Slice Softmax Split Sqrt Squeeze Sub Tanh Tile TopK Transpose Trilu Unsqueeze
    Where
"""
DIFFERENTIABLE = frozenset(_KNOWN.split())
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


def _is_automatic(node: ir.Node) -> str:
    return "with auto_pad" if node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET" else ""


def _window(node: ir.Node) -> str:
    if any(dilation != 1 for dilation in node.attributes.get_ints("dilations", ())):
        return "with dilations"
    return "with indices" if len(node.outputs) > 1 else _is_automatic(node)


def _of_two(node: ir.Node) -> str:
    return "" if len(node.inputs) == 2 else "of other than two operands"


def _dropout(node: ir.Node) -> str:
    mode = input_at(node, 2)
    given = constant(mode)
    return "while it drops" if mode is not None and (given is None or bool(given.any())) else ""


def _slice(node: ir.Node) -> str:
    steps = input_at(node, 4)
    given = constant(steps)
    return "backwards" if steps is not None and (given is None or bool((given < 1).any())) else ""


def _pad(node: ir.Node) -> str:
    return "" if node.attributes.get_string("mode", "constant") == "constant" else "other than with a constant"


def _scatter(node: ir.Node) -> str:
    return "" if node.attributes.get_string("reduction", "none") == "none" else "with a reduction"


def _normalization(node: ir.Node) -> str:
    if node.op_type == "LayerNormalization":
        whole = len(node.outputs) == 3 and input_at(node, 2) is not None
        return "" if whole else "without its mean, deviation and bias"
    return "in training mode" if node.attributes.get_int("training_mode", 0) else ""


def _transpose(node: ir.Node) -> str:
    return "" if "perm" in node.attributes else "without an order"


#: In which form an operator of the table has no gradient after all; nothing for the others.
_FORMS: dict[str, Callable[[ir.Node], str]] = {
    "Conv": _is_automatic,
    "MaxPool": _window,
    **dict.fromkeys(("Min", "Max"), _of_two),
    **dict.fromkeys(("ScatterElements", "ScatterND"), _scatter),
    **dict.fromkeys(("LayerNormalization", "BatchNormalization"), _normalization),
    "Dropout": _dropout,
    "Pad": _pad,
    "Slice": _slice,
    "Transpose": _transpose,
}


def fault(node: ir.Node) -> str:
    """Return why a node has no gradient, nothing where it has one."""
    kind = node.op_type if is_standard(node) else f"{node.domain}::{node.op_type}"
    if any(subgraphs(node)):
        return f"{kind} has no gradient: it runs graphs of its own"
    if not is_standard(node) or node.op_type not in DIFFERENTIABLE:
        return f"{kind} has no gradient"
    if node.op_type != "Cast" and any(value.dtype in _FLOATS[1:] for value in node.outputs):
        return f"{kind} has no gradient in {node.outputs[0].dtype}; put `fp32` before"
    form = _FORMS[node.op_type](node) if node.op_type in _FORMS else ""
    return f"{kind} has no gradient {form}" if form else ""


def walls(graph: ir.Graph, outputs: Collection[ir.Value]) -> tuple[dict[ir.Value, str], dict[ir.Node, str]]:
    """Return what can be differentiated, and what stands in between.

    Args:
        graph: the main graph.
        outputs: values that losses are on.

    Returns:
        For each value that some output depends on by floats: nothing where all ways there have gradients, else the
        node that has none; and those nodes with their reasons.
    """
    state: dict[ir.Value, str] = {value: "" for value in outputs if value.dtype in (*_FLOATS, None)}
    found: dict[ir.Node, str] = {}
    for node in reversed(graph):
        behind = [state[value] for value in node.outputs if value in state and value.dtype in (*_FLOATS, None)]
        if not behind:
            continue  # nothing depends on it, or by whole numbers alone
        reason = fault(node)
        if reason:
            found[node] = reason
        inherited = next((text for text in behind if text), "")
        for value in (*node.inputs, *captured(node)):
            if value is not None and value.dtype in (*_FLOATS, None):
                state[value] = state.get(value, "") or (node_label(node) if reason else inherited)
    return state, found
