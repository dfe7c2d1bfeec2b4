"""The protobuf of a model without the bytes of its weights, for all that needs only their types and shapes."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import numpy as np
import onnx
import onnx_ir as ir

from onnxedge.model.edit import graphs_of

STUB_BYTES = 1024  #: a tensor of at most so many bytes stays whole: shapes are computed from such
_STUB = ".onnxedge-stub"


def skeleton(model: ir.Model) -> onnx.ModelProto:
    """Return a protobuf for the checker and for shape inference, small whatever the weights are.

    Larger initializers become inputs of the main graph, of their type; those of a subgraph that another one of that
    name, an input or an output stands in the way of are zeros. Nothing is read from files but tensors of at most
    :data:`STUB_BYTES`.
    """
    with _stubs(model) as graphs:
        proto = ir.serde.serialize_model(model)
    if any(graph is model.graph for graph in graphs):
        _make_inputs(proto.graph)
    if any(graph is not model.graph for graph in graphs):
        _hoist_nested(proto.graph, proto.graph)
    return proto


def large_bytes(model: ir.Model) -> int:
    """Return the bytes that a model's skeleton lacks."""
    tensors = (value.const_value for graph in graphs_of(model) for value in graph.initializers.values())
    return sum(t.nbytes for t in tensors if t is not None and t.dtype != ir.DataType.STRING and t.nbytes > STUB_BYTES)


@contextlib.contextmanager
def _stubs(model: ir.Model) -> Iterator[list[ir.Graph]]:
    """Put tensors without content in place of large ones, while the context lasts; yield the graphs that had some."""
    kept: list[tuple[ir.Value, ir.TensorProtocol]] = []
    graphs: list[ir.Graph] = []
    try:
        for graph in graphs_of(model):
            for value in graph.initializers.values():
                tensor = value.const_value
                if tensor is None or tensor.dtype == ir.DataType.STRING:
                    continue
                if tensor.nbytes > STUB_BYTES:
                    if not graphs or graphs[-1] is not graph:
                        graphs.append(graph)
                    kept.append((value, tensor))
                    dims = [d for d in tensor.shape if isinstance(d, int)]
                    value.const_value = ir.ExternalTensor(
                        _STUB, None, None, tensor.dtype, shape=ir.Shape(dims), name=value.name or ""
                    )
                elif isinstance(tensor, ir.ExternalTensor):
                    kept.append((value, tensor))
                    value.const_value = ir.Tensor(np.array(tensor.numpy()), dtype=tensor.dtype, name=value.name)
        yield graphs
    finally:
        for value, tensor in kept:
            value.const_value = tensor


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
