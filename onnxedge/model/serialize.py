"""Models as protobuf and as the bytes of a file: what is written of them, and how much that is."""

from __future__ import annotations

from collections.abc import Container, Iterator

import onnx
import onnx_ir as ir

from onnxedge.errors import UserError
from onnxedge.model.graph import graphs_of
from onnxedge.model.interface import Declared
from onnxedge.model.skeleton import Skeleton
from onnxedge.model.weights import in_file, in_memory, standing_in
from onnxedge.model.wire import APART_BYTES, join

EMBED_LIMIT_BYTES = 1 << 30  #: above this, weights go into an external data file (protobuf ends at 2 GiB)


def serialize(model: ir.Model) -> onnx.ModelProto:
    """Return the protobuf of a model without what onnx_ir 1.1 writes twice: metadata of tensors, their shapes."""
    proto = ir.serde.serialize_model(model)
    for tensor in onnx.external_data_helper._get_all_tensors(proto):
        if len(tensor.metadata_props) > 1:
            entries = {entry.key: entry.value for entry in tensor.metadata_props}
            del tensor.metadata_props[:]
            for key, value in entries.items():
                tensor.metadata_props.add(key=key, value=value)
    _drop_doubled_info(proto.graph)
    return proto


def _drop_doubled_info(graph: onnx.GraphProto) -> None:
    """Drop the types and shapes of initializers, which the tensors themselves have."""
    tensors = {tensor.name for tensor in graph.initializer}
    kept = [info for info in graph.value_info if info.name not in tensors]
    if len(kept) < len(graph.value_info):
        del graph.value_info[:]
        graph.value_info.extend(kept)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _drop_doubled_info(attribute.g)


def encoded(model: ir.Model) -> Iterator[bytes | memoryview]:
    """Yield the bytes of a model's file in pieces; none of the large weights is copied or kept."""
    apart: dict[str, ir.TensorProtocol] = {}

    def empty(value: ir.Value, tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        if value.graph is model.graph and tensor.dtype != ir.DataType.STRING and tensor.nbytes >= APART_BYTES:
            apart[value.name or ""] = tensor
            return in_file(tensor, "")
        return in_memory(tensor)

    with standing_in(graphs_of(model), empty):
        proto = serialize(model)
    weights = {index: apart[t.name] for index, t in enumerate(proto.graph.initializer) if t.name in apart}
    for index in weights:
        proto.graph.initializer[index].ClearField("data_location")
        proto.graph.initializer[index].ClearField("external_data")
    return join(proto, weights)


def to_proto(model: ir.Model) -> onnx.ModelProto:
    """Return the protobuf of a model, with external weights read in.

    Raises:
        UserError: the weights do not fit in one protobuf message.
    """
    if weight_bytes(model) > EMBED_LIMIT_BYTES:
        raise UserError("model: over 1 GiB of weights do not fit in one protobuf; save it to a file")
    with standing_in(graphs_of(model), lambda _, tensor: in_memory(tensor)):
        return serialize(model)


def has_external_data(model: ir.Model) -> bool:
    """Tell whether any initializer's bytes lie in a file of their own."""
    return any(isinstance(v.const_value, ir.ExternalTensor) for g in graphs_of(model) for v in g.initializers.values())


def weight_bytes(model: ir.Model) -> int:
    """Return the bytes of all initializers, without reading them."""
    tensors = (v.const_value for g in graphs_of(model) for v in g.initializers.values())
    return sum(t.nbytes for t in tensors if t is not None and t.dtype != ir.DataType.STRING)


def written_bytes(skeleton: Skeleton, inner: Container[str | None] = ()) -> int:
    """Return the bytes that a model's file would have, external weights counted, without writing or reading them.

    Args:
        skeleton: of the model.
        inner: names of values inside whose types are written, as for :func:`drop_inferred`.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(skeleton.proto())
    kept = [info for info in proto.graph.value_info if info.name in inner]
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(kept)
    return skeleton.absent_bytes + int(proto.ByteSize())


def drop_inferred(model: ir.Model, original: Declared) -> None:
    """Drop the types and shapes that follow from inputs and operators: they only make files larger.

    Kept are the outputs of operators that onnx does not know, and what ``original`` declared for values still there.
    """
    for graph in graphs_of(model):
        for node in graph:
            if node.domain not in ("", "ai.onnx") or any(v.name in original.inner for v in node.outputs):
                continue
            for value in node.outputs:
                if not value.is_graph_output():
                    value.type = value.shape = None
    for value, was in zip(model.graph.outputs, original.outputs, strict=True):
        if not value.is_graph_input() and not value.is_initializer():  # the interface stays as it was declared
            value.shape = was.shape.copy() if was.shape is not None else None
