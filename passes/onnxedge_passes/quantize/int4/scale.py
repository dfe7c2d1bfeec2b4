"""The data of layers divided by what the columns of their weights were multiplied by."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx_ir as ir

from onnxedge.api import (
    constant,
    graph_of,
    insert_after,
    insert_before,
    is_standard,
    new_initializer,
    set_constant,
    sole_consumer,
)
from onnxedge_passes.quantize.layers import Layer

from .blocks import Blocks

_NORMS = ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")


def scale_data(plan: Mapping[Layer, Blocks]) -> int:
    """Divide the data of layers whose columns were scaled; return how many nodes that took."""
    groups: dict[tuple[ir.Value, bytes], list[ir.Node]] = {}
    for layer, blocks in plan.items():
        if blocks.data_scale is None:
            continue
        for node in layer.nodes:
            assert node.inputs[0] is not None
            groups.setdefault((node.inputs[0], blocks.data_scale.tobytes()), []).append(node)
    added = 0
    for (value, scale), nodes in groups.items():
        factor = 1.0 / np.frombuffer(scale, np.float64)
        found = places(value, factor.size, nodes)
        for node, index in found:
            array = constant(node.inputs[index])
            assert array is not None
            set_constant(node, index, (array.reshape(factor.shape) * factor).astype(array.dtype))
        if found:
            continue
        dtype = value.dtype.numpy() if value.dtype is not None else np.float32
        held = new_initializer(graph_of(nodes[0]), factor.astype(dtype), "data_scale")
        maker = value.producer()
        make = insert_before if maker is None or maker.graph is not nodes[0].graph else insert_after
        anchor = nodes[0] if make is insert_before or maker is None else maker
        scaled = make(anchor, "Mul", [value, held], like=[value])
        for node in nodes:
            node.replace_input_with(0, scaled.outputs[0])
        added += 1
    return added


def places(value: ir.Value, size: int, nodes: Collection[ir.Node]) -> list[tuple[ir.Node, int]]:
    """Return the constants [K] that a value was scaled and shifted with last, as nodes and inputs; none if that is not
    what made it, or if others than some nodes read it.

    Args:
        value: data [..., K].
        size: K.
        nodes: that read it as their first input.
    """
    maker = value.producer()
    if value.is_graph_output() or any(use.node not in nodes or use.idx for use in value.uses()):
        return []
    if maker is None or not is_standard(maker):
        return []
    found: list[tuple[ir.Node, int]] = []
    if maker.op_type in _NORMS and value is maker.outputs[0]:
        found = [(maker, index) for index in (1, 2) if len(maker.inputs) > index and maker.inputs[index] is not None]
    elif maker.op_type == "Mul":
        found = _constant_input(maker, size)
    elif maker.op_type == "Add" and (shift := _constant_input(maker, size)):
        other = maker.inputs[1 - shift[0][1]]
        mul = other.producer() if other is not None else None
        if mul is None or mul.op_type != "Mul" or not is_standard(mul) or sole_consumer(mul.outputs[0]) is not maker:
            return []
        scale = _constant_input(mul, size)
        found = [*shift, *scale] if scale else []
    arrays = [constant(node.inputs[index]) for node, index in found]
    return found if all(array is not None and array.size == size for array in arrays) else []


def _constant_input(node: ir.Node, size: int) -> list[tuple[ir.Node, int]]:
    for index in (0, 1):
        array = constant(node.inputs[index])
        if array is not None and array.ndim and array.size == size == array.shape[-1]:
            return [(node, index)]
    return []
