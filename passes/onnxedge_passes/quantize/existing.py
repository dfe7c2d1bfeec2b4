"""Quantization that a model brings along."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxedge.api import Context, constant, drop_if_unused, new_initializer, remove_node

from .rounding import aligned

QUANTIZED = ("QuantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger")


def is_quantized(model: ir.Model) -> bool:
    """Tell whether activations of the main graph are quantized already."""
    return any(node.op_type in QUANTIZED for node in model.graph)


def fold_constants(model: ir.Model, context: Context) -> int:
    """Turn weights behind a DequantizeLinear into float constants and count them: runtimes may run it each time."""
    count = 0
    for node in list(model.graph):
        if node.op_type != "DequantizeLinear" or node.outputs[0].is_graph_output():
            continue
        array = restored(node)
        if array is None:
            continue
        old = node.outputs[0]
        name = old.name or "weight"
        new = new_initializer(model.graph, array, name)
        old.replace_all_uses_with(new)
        remove_node(node)
        drop_if_unused(old)
        context.note(new, "stood behind a DequantizeLinear that the runtime does not fold: quantized anew")
        count += 1
    return count


def restored(node: ir.Node) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]] | None:
    """Return the float32 constant that a DequantizeLinear makes, None where an input is no constant or in blocks."""
    codes, scale = constant(node.inputs[0]), constant(node.inputs[1])
    zero = constant(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else np.zeros(())
    if codes is None or scale is None or zero is None or node.attributes.get_int("block_size", False):
        return None
    if codes.dtype.kind not in "iu" or scale.dtype != np.float32:
        return None
    axis = None if scale.size == 1 else node.attributes.get_int("axis", 1) % codes.ndim
    if axis is None:
        scale, zero = scale.reshape(()), zero.reshape(())
    centred = codes.astype(np.int32) - aligned(np.asarray(zero, np.int32), codes.ndim, axis if np.ndim(zero) else None)
    return (centred.astype(np.float32) * aligned(scale, codes.ndim, axis)).astype(np.float32)
