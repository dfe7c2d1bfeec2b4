"""Products of integers, and LSTMs of the runtime's own, put into a graph."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxedge.api import (
    Quantization,
    constant,
    drop_if_unused,
    graph_of,
    insert_before,
    new_initializer,
    remove_node,
    replace_uses,
)
from onnxedge_passes.cleanup.worklist import insert_behind
from onnxedge_passes.quantize.emission import weight_limit
from onnxedge_passes.quantize.layers import Layer
from onnxedge_passes.quantize.rounding import Weight, round_weight

Part = Layer | ir.Node  #: a weight with its products, or an LSTM


def write(parts: Sequence[Part], rules: Quantization) -> None:
    """Let parts of a graph compute on integers; data that several products read is rounded once."""
    rounded: dict[ir.Value, ir.Node] = {}
    for part in parts:
        if isinstance(part, Layer):
            _product(part, rules, rounded)
        else:
            _lstm(part, rules)


def product_weight(layer: Layer, rules: Quantization) -> Weight:
    """Return a layer's weight [K, N] on its integer grid, a scale a column."""
    array = layer.matrix.T
    return round_weight(array, 1, limit=weight_limit(layer.nodes[0], array, rules))


def recurrent_weight(node: ir.Node, index: int, rules: Quantization) -> list[Weight]:
    """Return one of a recurrent node's weights, turned to [inputs, gates * hidden], for each direction."""
    array = constant(node.inputs[index])
    assert array is not None
    return [round_weight(turned, 1, limit=weight_limit(node, array, rules)) for turned in array.swapaxes(1, 2)]


def _product(layer: Layer, rules: Quantization, rounded: dict[ir.Value, ir.Node]) -> None:
    graph, name = graph_of(layer.nodes[0]), layer.value.name or "weight"
    weight = product_weight(layer, rules)
    codes = new_initializer(graph, np.ascontiguousarray(weight.codes), f"{name}_int8")
    scale = new_initializer(graph, weight.scale, f"{name}_scale")
    for node in layer.nodes:
        data = node.inputs[0]
        assert data is not None
        if data not in rounded:
            rounded[data] = insert_behind(data, graph, "DynamicQuantizeLinear", [data], outputs=3)
        q, step, zero = rounded[data].outputs
        product = insert_before(node, "MatMulInteger", [q, codes, zero], name=node.name)
        floats = insert_before(node, "Cast", [product.outputs[0]], attributes={"to": int(ir.DataType.FLOAT)})
        steps = insert_before(node, "Mul", [step, scale])
        made = insert_before(node, "Mul", [floats.outputs[0], steps.outputs[0]], like=node.outputs)
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if bias is not None:
            made = insert_before(node, "Add", [made.outputs[0], bias], like=node.outputs)
        replace_uses(node.outputs[0], made.outputs[0])
        remove_node(node)
    drop_if_unused(layer.value)


def _lstm(node: ir.Node, rules: Quantization) -> None:
    """Put the runtime's LSTM in the place of a standard one: weights turned, int8 with a scale a column."""
    graph, inputs = graph_of(node), [*node.inputs, *[None] * (8 - len(node.inputs))]
    old = [inputs[1], inputs[2]]
    for index in (1, 2):
        value, parts = inputs[index], recurrent_weight(node, index, rules)
        assert value is not None
        name = value.name or "weight"
        inputs[index] = new_initializer(graph, np.stack([part.codes for part in parts]), f"{name}_int8")
        scale = np.stack([part.scale for part in parts])
        inputs.append(new_initializer(graph, scale, f"{name}_scale"))
        inputs.append(new_initializer(graph, np.zeros(scale.shape, np.int8), f"{name}_zero"))
    made = insert_before(
        node,
        "DynamicQuantizeLSTM",
        inputs,
        attributes=dict(node.attributes),
        domain="com.microsoft",
        name=node.name,
        outputs=len(node.outputs),
        like=node.outputs,
    )
    for before, after in zip(node.outputs, made.outputs, strict=True):
        if before.name:
            replace_uses(before, after)
        else:
            after.name = ""  # an output that nobody asks for
    remove_node(node)
    for value in old:
        if value is not None:
            drop_if_unused(value)
