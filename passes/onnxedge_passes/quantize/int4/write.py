"""4-bit weights put into a graph."""

from __future__ import annotations

from collections.abc import Mapping

import ml_dtypes
import numpy as np
import onnx_ir as ir

from onnxedge.api import (
    Array,
    drop_if_unused,
    graph_of,
    insert_before,
    new_initializer,
    remove_node,
    replace_uses,
)
from onnxedge_passes.quantize.layers import Layer

from .blocks import MIDDLE, Blocks
from .pack import for_gather, for_matmul
from .scale import scale_data

_FOUR_BIT_IR = 10  #: least IR version with 4-bit tensors


def write(model: ir.Model, plan: Mapping[Layer, Blocks], *, block: int, accuracy_level: int) -> int:
    """Put rounded weights in the place of float ones.

    Args:
        model: edited in place.
        plan: layers of it with their codes.
        block: elements of a block.
        accuracy_level: of MatMulNBits.

    Returns:
        How many nodes were added to scale data that no constant before it could.
    """
    added = scale_data(plan)
    for layer, blocks in plan.items():
        if layer.form == "dequantize":
            _dequantize(model, layer, blocks, block)
        elif layer.form == "matmul-nbits":
            _matmul(layer, blocks, block, accuracy_level)
        else:
            _gather(layer, blocks, block)
        drop_if_unused(layer.value)
    return added


def _initializers(layer: Layer, arrays: tuple[Array, Array, Array | None]) -> list[ir.Value | None]:
    graph, name = graph_of(layer.nodes[0]), layer.value.name or "weight"
    weight, scale, zero = arrays
    made: list[ir.Value | None] = [new_initializer(graph, weight, f"{name}_4bit")]
    made.append(new_initializer(graph, scale.astype(layer.dtype), f"{name}_scale"))
    return made if zero is None else [*made, new_initializer(graph, zero, f"{name}_zero")]


def _matmul(layer: Layer, blocks: Blocks, block: int, accuracy_level: int) -> None:
    operands = _initializers(layer, for_matmul(blocks))
    attributes = {"K": blocks.columns, "N": len(blocks.codes), "bits": 4, "block_size": block}
    if accuracy_level:
        attributes["accuracy_level"] = accuracy_level
    for node in layer.nodes:
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        made = insert_before(
            node,
            "MatMulNBits",
            [node.inputs[0], *operands],
            attributes=attributes,
            domain="com.microsoft",
            name=node.name,
            like=node.outputs,
        )
        if bias is not None:
            made = insert_before(node, "Add", [made.outputs[0], bias], like=node.outputs)
        _replace(node, made)


def _gather(layer: Layer, blocks: Blocks, block: int) -> None:
    data, scale, *zero = _initializers(layer, for_gather(blocks))
    attributes = {"bits": 4, "block_size": block, "gather_axis": 0, "quantize_axis": 1}
    for node in layer.nodes:
        inputs = [data, node.inputs[1], scale, *zero]
        made = insert_before(
            node,
            "GatherBlockQuantized",
            inputs,
            attributes=attributes,
            domain="com.microsoft",
            name=node.name,
            like=node.outputs,
        )
        _replace(node, made)


def _dequantize(model: ir.Model, layer: Layer, blocks: Blocks, block: int) -> None:
    codes = blocks.codes.reshape(len(blocks.codes), -1)[:, : blocks.columns]
    symmetric = blocks.symmetric
    dtype = ml_dtypes.int4 if symmetric else ml_dtypes.uint4
    weight = (codes.astype(np.int8) - MIDDLE if symmetric else codes).astype(dtype)
    arrays = [weight, blocks.scale.astype(layer.dtype), *([] if symmetric else [blocks.zero.astype(dtype)])]
    graph, name = graph_of(layer.nodes[0]), layer.value.name or "weight"
    turned = [np.ascontiguousarray(array if layer.transposed else array.T) for array in arrays]
    values = [
        new_initializer(graph, array, f"{name}_{part}")
        for array, part in zip(turned, ("4bit", "scale", "zero"), strict=False)
    ]
    made = insert_before(
        graph[0],
        "DequantizeLinear",
        values,
        attributes={"axis": int(layer.transposed), "block_size": block},
        like=[layer.value],
    )
    for node in layer.nodes:
        node.replace_input_with(layer.index, made.outputs[0])
    model.ir_version = max(model.ir_version or 0, _FOUR_BIT_IR)


def _replace(node: ir.Node, made: ir.Node) -> None:
    replaced = replace_uses(node.outputs[0], made.outputs[0])
    assert replaced, "what a node makes can always be an output"
    remove_node(node)
