"""The protobuf of a model without the bytes of its weights: to check it, to infer shapes, to make it again."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import onnx
import onnx_ir as ir

from onnxedge.model.graph import graphs_of, subgraphs
from onnxedge.model.weights import at_hand, in_file, in_memory, standing_in

STUB_BYTES = 1024  #: a tensor of at most so many bytes stays whole: shapes are computed from such
_STUB = ".onnxedge-stub"
_TENSORS = (ir.AttributeType.TENSOR, ir.AttributeType.TENSORS, ir.AttributeType.SPARSE_TENSOR)


class Skeleton:
    """Hold a model as it is now, in a tenth of the memory and for half the time of a copy.

    Args:
        model: not changed, and nothing of it is kept but its tensors.

    Attributes:
        absent_bytes: of the weights that :meth:`proto` does not hold.
    """

    def __init__(self, model: ir.Model) -> None:
        self.absent_bytes = 0
        self._stubbed: set[bool] = set()  # whether the main graph had some, and others

        def stub(value: ir.Value, tensor: ir.TensorProtocol) -> ir.TensorProtocol:
            if tensor.dtype == ir.DataType.STRING or tensor.nbytes <= STUB_BYTES:
                return in_memory(tensor)
            self._stubbed.add(value.graph is model.graph)
            self.absent_bytes += tensor.nbytes
            return in_file(tensor, _STUB)

        with standing_in(graphs_of(model), stub):
            self._proto = ir.serde.serialize_model(model)
        self._weights = [{v.name: v.const_value for v in g.initializers.values()} for g in graphs_of(model)]
        self._attributes = [attribute for _, _, attribute in _tensor_attributes(model)]

    def proto(self) -> onnx.ModelProto:
        """Return a protobuf for the checker and for shape inference, not to be changed, small whatever the weights are.

        Larger initializers are inputs of the main graph, of their type; those of a subgraph that another one of that
        name, an input or an output stands in the way of are zeros. Nothing was read from files but tensors of at most
        :data:`STUB_BYTES`.
        """
        if not self._stubbed:
            return self._proto
        proto = onnx.ModelProto()
        proto.CopyFrom(self._proto)
        if True in self._stubbed:
            _make_inputs(proto.graph)
        if False in self._stubbed:
            _hoist_nested(proto.graph, proto.graph)
        return proto

    def revive(self) -> ir.Model:
        """Return the model that it was made of, with the same tensors; each call makes a new one."""
        model = deserialize(self._proto)
        for graph, weights in zip(graphs_of(model), self._weights, strict=True):
            for name, tensor in weights.items():
                graph.initializers[name or ""].const_value = tensor
        if self._attributes:
            for (node, key, _), attribute in zip(_tensor_attributes(model), self._attributes, strict=True):
                node.attributes[key] = attribute
        return model

    def tensors(self) -> Iterator[ir.TensorProtocol]:
        """Yield the tensors of all initializers."""
        return (tensor for weights in self._weights for tensor in weights.values() if tensor is not None)


def deserialize(proto: onnx.ModelProto) -> ir.Model:
    """Return the model of a protobuf; nameless nodes stay nameless, onnx_ir gives them names that make files larger."""
    model = ir.serde.deserialize_model(proto)
    for graph in graphs_of(model):
        for value in graph.initializers.values():
            value.const_value = at_hand(value.const_value) if value.const_value is not None else None
    _forget_made_up_names(model.graph, proto.graph.node)
    for function, function_proto in zip(model.functions.values(), proto.functions, strict=True):
        _forget_made_up_names(function.graph, function_proto.node)
    return model


def _forget_made_up_names(graph: ir.Graph, protos: Sequence[onnx.NodeProto]) -> None:
    for node, proto in zip(graph, protos, strict=True):
        if not proto.name:
            node.name = ""
        if any(subgraphs(node)):
            for attribute in proto.attribute:
                if attribute.type == onnx.AttributeProto.GRAPH:
                    _forget_made_up_names(node.attributes[attribute.name].as_graph(), attribute.g.node)


def _tensor_attributes(model: ir.Model) -> Iterator[tuple[ir.Node, str, ir.Attr]]:
    for graph in graphs_of(model):
        for node in graph:
            for key, attribute in list(node.attributes.data.items()):
                if attribute.type in _TENSORS and not attribute.is_ref():
                    yield node, key, attribute


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
