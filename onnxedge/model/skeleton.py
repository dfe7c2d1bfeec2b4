"""The protobuf of a model without the bytes of its weights, for all that needs only their types and shapes."""

from __future__ import annotations

import math

import onnx
import onnx_ir as ir

from onnxedge.model.graph import graphs_of
from onnxedge.model.weights import in_file, in_memory, standing_in

STUB_BYTES = 1024  #: a tensor of at most so many bytes stays whole: shapes are computed from such
_STUB = ".onnxedge-stub"


def skeleton(model: ir.Model) -> onnx.ModelProto:
    """Return a protobuf for the checker and for shape inference, small whatever the weights are.

    Larger initializers become inputs of the main graph, of their type; those of a subgraph that another one of that
    name, an input or an output stands in the way of are zeros. Nothing is read from files but tensors of at most
    :data:`STUB_BYTES`.
    """
    stubbed: set[bool] = set()  # whether the main graph had some, and others

    def stub(value: ir.Value, tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        if tensor.dtype == ir.DataType.STRING or tensor.nbytes <= STUB_BYTES:
            return in_memory(tensor)
        stubbed.add(value.graph is model.graph)
        return in_file(tensor, _STUB)

    with standing_in(graphs_of(model), stub):
        proto = ir.serde.serialize_model(model)
    if True in stubbed:
        _make_inputs(proto.graph)
    if False in stubbed:
        _hoist_nested(proto.graph, proto.graph)
    return proto


def large_bytes(model: ir.Model) -> int:
    """Return the bytes that a model's skeleton lacks."""
    tensors = (value.const_value for graph in graphs_of(model) for value in graph.initializers.values())
    return sum(t.nbytes for t in tensors if t is not None and t.dtype != ir.DataType.STRING and t.nbytes > STUB_BYTES)


def _is_stub(tensor: onnx.TensorProto) -> bool:
    return tensor.data_location == onnx.TensorProto.EXTERNAL and tensor.external_data[0].value == _STUB


def _make_inputs(graph: onnx.GraphProto) -> None:
    stubs = {tensor.name: tensor for tensor in graph.initializer if _is_stub(tensor)}
    whole = [tensor for tensor in graph.initializer if tensor.name not in stubs]
    known = [info for info in graph.value_info if info.name not in stubs]
    inputs = {info.name for info in graph.input}
    for field, kept in ((graph.initializer, whole), (graph.value_info, known)):
        del field[:]
        field.extend(kept)
    for name, tensor in stubs.items():
        if name not in inputs:
            graph.input.append(onnx.helper.make_tensor_value_info(name, tensor.data_type, tensor.dims))


def _hoist_nested(main: onnx.GraphProto, graph: onnx.GraphProto) -> None:
    """Make inputs of the main graph of what subgraphs hold, zeros of what must stay where it is."""
    taken = {info.name: info for info in main.input} | dict.fromkeys(t.name for t in main.initializer)
    for node in graph.node:
        for attribute in node.attribute:
            for body in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
                bound = {info.name for field in (body.input, body.output) for info in field}
                kept: list[onnx.TensorProto] = []
                for tensor in body.initializer:
                    if not _is_stub(tensor):
                        kept.append(tensor)
                        continue
                    info = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
                    if tensor.name not in bound and taken.setdefault(tensor.name, info) == info:
                        continue
                    kept.append(_zeros(tensor))
                hoisted = {tensor.name for tensor in body.initializer} - {tensor.name for tensor in kept}
                main.input.extend(taken[name] for name in sorted(hoisted - {info.name for info in main.input}))
                known = [info for info in body.value_info if info.name not in hoisted]
                for field, rest in ((body.initializer, kept), (body.value_info, known)):
                    copies = [type(item).FromString(item.SerializeToString()) for item in rest]
                    del field[:]
                    field.extend(copies)
                _hoist_nested(main, body)


def _zeros(tensor: onnx.TensorProto) -> onnx.TensorProto:
    bits = math.prod(tensor.dims) * ir.DataType(tensor.data_type).bitwidth
    return onnx.TensorProto(
        name=tensor.name, data_type=tensor.data_type, dims=tensor.dims, raw_data=bytes((bits + 7) // 8)
    )
