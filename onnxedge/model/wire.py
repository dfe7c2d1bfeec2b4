"""Serialized models with their weights apart: to parse or compose them with the rest is to copy them each time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from mmap import mmap

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from onnxedge.model.check import MAX_RANK
from onnxedge.model.weights import content_of

APART_BYTES = 4096  #: from here on the bytes of an initializer of the main graph stand apart
_GRAPH, _INITIALIZER, _RAW = 7, 5, 9  #: fields of ModelProto, GraphProto and TensorProto, as in onnx.proto
_VARINT, _FIXED64, _DELIMITED, _FIXED32 = 0, 1, 2, 5  #: wire types of protobuf
_CONTENT = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data", "external_data")
_WHOLE_BYTES = {
    kind.value: kind
    for kind in ir.DataType
    if kind not in (ir.DataType.UNDEFINED, ir.DataType.STRING) and kind.bitwidth >= 8
}  #: element types of at least a byte, by number


@dataclass(frozen=True)
class Region:
    """Say where the bytes of a tensor lie, and what they are."""

    offset: int
    length: int
    dtype: ir.DataType
    dims: tuple[int, ...]


class _Irregular(ValueError):
    """Say that a message has not the form that everybody writes; protobuf may still read it."""


@dataclass(frozen=True, slots=True)
class _Field:
    """Place a field of a message: where its tag begins, where its content does, and where that ends."""

    number: int
    start: int
    content: int
    end: int


def split(data: bytes | mmap) -> tuple[bytes, dict[int, Region]]:
    """Return a serialized model whose large initializers are of shape [0], and where their bytes lie, by their index.

    Whatever is unusual stays as it is, for protobuf and for the checks to judge: a second graph, doubled fields, a
    tensor whose bytes are not as many as its dimensions need.
    """
    try:
        graphs = [field for field in _fields(data, 0, len(data)) if field.number == _GRAPH]
        if len(graphs) != 1:
            return data[:], {}
        graph, regions = _split_graph(data, graphs[0])
    except _Irregular:
        return data[:], {}
    return data[: graphs[0].start] + _head(_GRAPH, len(graph)) + graph + data[graphs[0].end :], regions


def _split_graph(data: bytes | mmap, graph: _Field) -> tuple[bytes, dict[int, Region]]:
    pieces: list[bytes] = []
    regions: dict[int, Region] = {}
    copied, index = graph.content, 0
    for field in _fields(data, graph.content, graph.end):
        if field.number != _INITIALIZER:
            continue
        if field.end - field.content >= APART_BYTES and (found := _take_apart(data, field)) is not None:
            tensor, regions[index] = found
            pieces += (data[copied : field.start], _head(_INITIALIZER, len(tensor)), tensor)
            copied = field.end
        index += 1
    pieces.append(data[copied : graph.end])
    return b"".join(pieces), regions


def _take_apart(data: bytes | mmap, field: _Field) -> tuple[bytes, Region] | None:
    """Return a tensor as one of shape [0], and where its bytes lie; None where it has to stay as it is."""
    raws = [inner for inner in _fields(data, field.content, field.end) if inner.number == _RAW]
    if len(raws) != 1:
        return None
    (raw,) = raws
    try:
        tensor = onnx.TensorProto.FromString(data[field.content : raw.start] + data[raw.end : field.end])
    except DecodeError:
        return None
    dtype, dims, length = _WHOLE_BYTES.get(tensor.data_type), tuple(tensor.dims), raw.end - raw.content
    if dtype is None or any(getattr(tensor, name) for name in _CONTENT) or tensor.data_location:
        return None
    if (
        length < APART_BYTES
        or len(dims) > MAX_RANK
        or any(d < 0 for d in dims)
        or math.prod(dims) * dtype.bitwidth != 8 * length
    ):
        return None
    tensor.dims[:] = [0]
    return tensor.SerializeToString(), Region(raw.content, length, dtype, dims)


def _fields(data: bytes | mmap, start: int, end: int) -> Iterator[_Field]:
    """Yield the fields of a message whose content has a length, in order."""
    while start < end:
        tag, content = _varint(data, start, end)
        wire = tag & 7
        if wire == _DELIMITED:
            length, content = _varint(data, content, end)
            if content + length > end:
                raise _Irregular
            yield _Field(tag >> 3, start, content, content + length)
            start = content + length
        elif wire == _VARINT:
            _, start = _varint(data, content, end)
        elif wire in (_FIXED32, _FIXED64):
            start = content + (4 if wire == _FIXED32 else 8)
        else:
            raise _Irregular
    if start != end:
        raise _Irregular


def _varint(data: bytes | mmap, place: int, end: int) -> tuple[int, int]:
    """Return a number, 7 bits a byte, and the place behind it."""
    value = 0
    for shift in range(0, 70, 7):
        if place >= end:
            break
        byte = data[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
    raise _Irregular


def _head(number: int, length: int) -> bytes:
    """Return what stands before the content of a field: its tag and its length."""
    head = bytearray([number << 3 | _DELIMITED])
    while length > 127:
        head.append(length & 127 | 128)
        length >>= 7
    head.append(length)
    return bytes(head)


def join(proto: onnx.ModelProto, weights: Mapping[int, ir.TensorProtocol]) -> Iterator[bytes | memoryview]:
    """Yield a serialized model in pieces, with the bytes of tensors as raw data of initializers that have no content.

    Args:
        proto: the model; it is taken apart.
        weights: tensors by the index of their initializer.

    Raises:
        OSError: a tensor cannot be read, or has not the bytes that its shape needs.
    """
    parts: list[tuple[bytes, ir.TensorProtocol | None]] = []
    size = 0
    for index, tensor in enumerate(proto.graph.initializer):
        content, weight = tensor.SerializeToString(deterministic=True), weights.get(index)
        length = 0 if weight is None else weight.nbytes
        if weight is not None:
            content += _head(_RAW, length)
        content = _head(_INITIALIZER, len(content) + length) + content
        parts.append((content, weight))
        size += len(content) + length
    del proto.graph.initializer[:]
    graph = proto.graph.SerializeToString(deterministic=True)
    proto.ClearField("graph")
    yield proto.SerializeToString(deterministic=True)
    yield _head(_GRAPH, len(graph) + size) + graph
    for content, weight in parts:
        yield content
        if weight is not None:
            yield content_of(weight)
