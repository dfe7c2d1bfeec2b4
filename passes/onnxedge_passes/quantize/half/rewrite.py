"""Nodes of a graph put into 16 bits, with a Cast where they meet others."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from onnxedge.api import (
    Array,
    constant,
    drop_if_unused,
    graph_of,
    insert_after,
    insert_before,
    new_initializer,
    remove_node,
    replace_uses,
    use_count,
)
from onnxedge_passes.cleanup.worklist import insert_behind

from .kernels import Ports


def narrow(array: Array, half: ir.DataType) -> Array:
    """Return an array in 16 bits; what overflows becomes infinite."""
    with np.errstate(over="ignore"):
        return array.astype(half.numpy())


def put_into(model: ir.Model, ports: Mapping[ir.Node, Ports], half: ir.DataType) -> int:
    """Let nodes compute in 16 bits and return how many Casts that takes.

    Args:
        model: edited in place.
        ports: the nodes, with the inputs and outputs that change.
        half: FLOAT16 or BFLOAT16.
    """
    halves: dict[ir.Value, ir.Value] = {}
    casts: list[ir.Node] = []

    def halved(value: ir.Value, reader: ir.Node) -> ir.Value:
        if value in halves:
            return halves[value]
        array = constant(value)
        if array is not None:
            halves[value] = new_initializer(graph_of(reader), narrow(array, half), value.name or "weight")
            return halves[value]
        cast = insert_behind(value, graph_of(reader), "Cast", [value], attributes={"to": int(half)}, like=[value])
        cast.outputs[0].type = ir.TensorType(half)
        casts.append(cast)
        halves[value] = cast.outputs[0]
        return halves[value]

    replaced: list[ir.Value] = []
    for node, where in ports.items():
        inputs = [halved(v, node) if v is not None and i in where.inputs else v for i, v in enumerate(node.inputs)]
        replaced += [v for i, v in enumerate(node.inputs) if v is not None and i in where.inputs]
        attributes = dict(node.attributes)
        if node.op_type == "Cast":
            attributes["to"] = ir.AttrInt64("to", int(half))
        new = insert_before(
            node,
            node.op_type,
            inputs,
            attributes=attributes,
            domain=node.domain,
            name=node.name,
            outputs=len(node.outputs),
            like=node.outputs,
        )
        new.metadata_props.update(node.metadata_props)
        for old, made in zip(node.outputs, new.outputs, strict=True):
            made.name = made.name if old.name else ""  # an output that nobody asks for
        for index, (old, made) in enumerate(zip(node.outputs, new.outputs, strict=True)):
            if index not in where.outputs or not made.name:
                replace_uses(old, made)
                continue
            back = insert_after(new, "Cast", [made], attributes={"to": int(ir.DataType.FLOAT)}, like=[old])
            casts.append(back)
            replace_uses(old, back.outputs[0])
            made.type = ir.TensorType(half)
            halves[back.outputs[0]] = made
        remove_node(node)
    for cast in reversed(casts):
        if not use_count(cast.outputs[0]) and not cast.outputs[0].is_graph_output():
            remove_node(cast)
    for value in replaced:
        drop_if_unused(value)
    return sum(cast.graph is not None for cast in casts)


def emulate(model: ir.Model, ports: Mapping[ir.Node, Ports], half: ir.DataType) -> None:
    """Let nodes compute in float32 on what 16 bits leave of their inputs, and round what they make.

    What a runtime without kernels for 16 bits can run, and what kernels compute that sum in float32.
    """
    rounded: dict[ir.Value, ir.Value] = {}
    narrow_to, wide = {"to": int(half)}, {"to": int(ir.DataType.FLOAT)}

    def pair(value: ir.Value, anchor: ir.Node) -> ir.Value:
        if value not in rounded:
            cast = insert_before(anchor, "Cast", [value], attributes=narrow_to)
            rounded[value] = insert_before(anchor, "Cast", [cast.outputs[0]], attributes=wide, like=[value]).outputs[0]
        return rounded[value]

    for node, where in ports.items():
        for index in where.inputs:
            value = node.inputs[index]
            if value is not None:
                node.replace_input_with(index, pair(value, node))
        for index in where.outputs:
            cast = insert_after(node, "Cast", [node.outputs[index]], attributes=narrow_to)
            back = insert_after(cast, "Cast", [cast.outputs[0]], attributes=wide, like=[node.outputs[index]]).outputs[0]
            replace_uses(node.outputs[index], back)
            cast.replace_input_with(0, node.outputs[index])
            rounded[back] = back
