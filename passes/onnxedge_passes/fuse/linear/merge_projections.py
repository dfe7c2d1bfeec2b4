"""Products of one value with several constant weights, as one product."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxedge.api import (
    Accuracy,
    Array,
    Context,
    constant,
    constant_tensor,
    graph_of,
    is_standard,
    new_initializer,
    replace_uses,
    sole_consumer,
    use_count,
)
from onnxedge_passes.cleanup.worklist import (
    Outcome,
    Refused,
    Rule,
    input_at,
    insert_behind,
    is_exported_twice,
    node_opset,
    retire,
)

_MANY_READERS = 64  #: of a value with more of them the products are not searched for what keeps them apart


@dataclass(frozen=True)
class Projection:
    """Hold a product and what is added to it at once.

    Attributes:
        node: MatMul or Gemm.
        end: the Add of a bias behind a MatMul, else the node itself.
        weight: [K, N].
        bias: [N], None for none.
    """

    node: ir.Node
    end: ir.Node
    weight: Array
    bias: Array | None


@dataclass(frozen=True, kw_only=True)
class MergeProjections(Rule):
    """Merge MatMul or Gemm nodes that multiply the same value by constant weights, and the biases added to them.

    Before: ``q = Add(MatMul(x, Wq), bq); k = Add(MatMul(x, Wk), bk); v = Add(MatMul(x, Wv), bv)``
    After:  ``q, k, v = Split(Add(MatMul(x, [Wq Wk Wv]), [bq bk bv]))``

    Only for targets that say ``merged_projections``: fewer, larger products suit GPUs. ONNX Runtime 1.31 on the CPU
    takes 0.96 to 0.99 of the time for one row and 1.00 to 1.08 for more, as Split copies.
    Left alone: weights that others read, too; products of which some have a bias and some none; Gemm with alpha, beta
    or a transposed input.
    accuracy: rounding. Source: own.
    """

    name: ClassVar[str] = "merge-projections"
    accuracy: ClassVar[Accuracy] = "rounding"
    roots: ClassVar[tuple[str, ...]] = ("MatMul", "Gemm")

    def rewrite(self, node: ir.Node, context: Context) -> Outcome:
        """Find the other products of the same value."""
        source = node.inputs[0]
        if source is None or use_count(source) < 2 or node_opset(node) < 7:
            return None
        target, mine = context.target, projection(node)
        if use_count(source) > _MANY_READERS and (mine is None or not target.merged_projections):
            return None
        found: list[Projection] = []
        for user in dict.fromkeys(use.node for use in source.uses()):
            if user.op_type == node.op_type and user.graph is node.graph and user.inputs[0] is source:
                other = mine if user is node else projection(user)
                found += [other] if other is not None else []
        same = [other for other in found if mine is not None and _fits(mine, other)]
        if target.merged_projections:
            return _merge(source, same) if len(same) > 1 else _misfit(node, mine, found)
        if len(same) < 2 or same[0] is not mine:
            return None
        return Refused(f"products not merged: target {target.name} does not gain by it")


def projection(node: ir.Node) -> Projection | None:
    """Return a product with a constant weight that nobody else reads, None for another node."""
    tensor, weight = constant_tensor(input_at(node, 1)), input_at(node, 1)
    if tensor is None or weight is None or not is_standard(node) or len(tensor.shape) != 2 or len(weight.uses()) > 1:
        return None
    if is_exported_twice(node.outputs[0]):
        return None
    if tensor.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE):
        return None
    if node.op_type == "Gemm":
        return _gemm(node, tensor)
    reader = sole_consumer(node.outputs[0])
    if reader is not None and reader.op_type == "Add" and is_standard(reader) and reader.graph is node.graph:
        other = reader.inputs[1] if reader.inputs[0] is node.outputs[0] else reader.inputs[0]
        bias = constant(other)
        if bias is not None and bias.shape == (tensor.shape[1],):
            return None if is_exported_twice(reader.outputs[0]) else Projection(node, reader, tensor.numpy(), bias)
    return Projection(node, node, tensor.numpy(), None)


def _gemm(node: ir.Node, tensor: ir.TensorProtocol) -> Projection | None:
    attributes = node.attributes
    if any(attributes.get_float(key, 1.0) != 1.0 for key in ("alpha", "beta")) or attributes.get_int("transA", 0) != 0:
        return None
    weight = tensor.numpy().T if attributes.get_int("transB", 0) != 0 else tensor.numpy()
    added = input_at(node, 2)
    bias = constant(added)
    if added is not None and (bias is None or bias.shape != (weight.shape[1],)):
        return None
    return Projection(node, node, weight, bias)


def _fits(mine: Projection, other: Projection) -> bool:
    return (
        (mine.bias is None) == (other.bias is None)
        and mine.weight.dtype == other.weight.dtype
        and mine.weight.shape[0] == other.weight.shape[0]
    )


def _misfit(node: ir.Node, mine: Projection | None, found: list[Projection]) -> Refused | None:
    """Say what keeps a product from being merged with those of the same value, None where there are no others."""
    weight = input_at(node, 1)
    if len(found) <= (mine is not None) or weight is None or weight.shape is None or len(weight.shape) != 2:
        return None
    if mine is not None:
        return Refused("products not merged: some have a bias and some none")
    if constant_tensor(weight) is None:
        return Refused("products not merged: a weight is computed at run time")
    if len(weight.uses()) > 1:
        return Refused("products not merged: a weight has other readers")
    return Refused("products not merged: one is scaled, transposed, exported twice or has another bias than a vector")


def _merge(source: ir.Value, projections: list[Projection]) -> ir.Value:
    first = projections[0]
    graph, known = graph_of(first.node), source.shape
    widths = [p.weight.shape[1] for p in projections]
    label = f"{first.node.name or first.node.op_type.lower()}_merged"

    def put(op_type: str, inputs: list[ir.Value], outputs: list[str]) -> ir.Node:
        node = insert_behind(inputs[0], graph, op_type, inputs, name=label, outputs=outputs)
        for value in node.outputs:
            value.type = first.end.outputs[0].type
        return node

    weight = new_initializer(graph, np.concatenate([p.weight for p in projections], axis=1), f"{label}_weight")
    inputs = [source, weight]
    biases = [p.bias for p in projections if p.bias is not None]
    bias = new_initializer(graph, np.concatenate(biases), f"{label}_bias") if biases else None
    if bias is not None and first.node.op_type == "Gemm":
        inputs.append(bias)
    total = put(first.node.op_type, inputs, [label]).outputs[0]
    if bias is not None and first.node.op_type == "MatMul":
        total = put("Add", [total, bias], [label]).outputs[0]
    if known is not None:
        total.shape = ir.Shape([*list(known)[:-1], sum(widths)])
    names = [p.end.outputs[0].name or "projection" for p in projections]
    split = put("Split", [total], names)
    axis = -1 if node_opset(first.node) >= 11 else len(source.shape or ()) - 1
    split.attributes["axis"] = ir.AttrInt64("axis", axis)
    if node_opset(first.node) >= 13:
        where = new_initializer(graph, np.array(widths, np.int64), f"{label}_widths")
        split.resize_inputs(2)
        split.replace_input_with(1, where)
    else:
        split.attributes["split"] = ir.AttrInt64s("split", widths)
    for projection, output in zip(projections, split.outputs, strict=True):
        old = projection.end.outputs[0]
        output.type, output.shape = old.type, old.shape
        replace_uses(old, output)
        retire(projection.end)
    return total
