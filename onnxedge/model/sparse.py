"""Sparse weights made dense on loading, as ONNX Runtime does: onnx_ir 1.1 drops them without a word."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import onnx

from onnxedge.errors import UserError, first_line

LIMIT_BYTES = 1 << 30  #: of one weight made dense


def densified(proto: onnx.ModelProto, source: str) -> onnx.ModelProto:
    """Return a model without sparse weights: itself where it has none, else a copy.

    Raises:
        UserError: a sparse weight is not valid, or too large when dense.
    """
    if not any(_has_sparse(graph) for graph in _graphs(proto)):
        return proto
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for graph in _graphs(copy):
        if isinstance(graph, onnx.GraphProto):
            graph.initializer.extend(_dense(tensor, source) for tensor in graph.sparse_initializer)
            graph.ClearField("sparse_initializer")
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.SPARSE_TENSOR and node.op_type == "Constant":
                    tensor = _dense(attribute.sparse_tensor, source)
                    attribute.CopyFrom(onnx.helper.make_attribute("value", tensor))
    return copy


def _graphs(proto: onnx.ModelProto) -> Iterator[onnx.GraphProto | onnx.FunctionProto]:
    stack: list[onnx.GraphProto | onnx.FunctionProto] = [proto.graph, *proto.functions]
    while stack:
        graph = stack.pop()
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.GRAPH:
                    stack.append(attribute.g)
                elif attribute.type == onnx.AttributeProto.GRAPHS:
                    stack.extend(attribute.graphs)


def _has_sparse(graph: onnx.GraphProto | onnx.FunctionProto) -> bool:
    if isinstance(graph, onnx.GraphProto) and graph.sparse_initializer:
        return True
    constants = (node for node in graph.node if node.op_type == "Constant")
    return any(a.type == onnx.AttributeProto.SPARSE_TENSOR for node in constants for a in node.attribute)


def _dense(sparse: onnx.SparseTensorProto, source: str) -> onnx.TensorProto:
    """Return a sparse tensor as a dense one; its positions are linear, ``[count]``, or ``[count, rank]``."""
    name, dims = sparse.values.name, list(sparse.dims)
    where = f"{source}: sparse tensor {name!r}"
    width = onnx.helper.tensor_dtype_to_np_dtype(sparse.values.data_type).itemsize
    if any(d < 0 for d in dims) or math.prod(dims) * width > LIMIT_BYTES:
        raise UserError(f"{where}: needs over {LIMIT_BYTES >> 30} GiB for shape {dims}")
    try:
        values, places = onnx.numpy_helper.to_array(sparse.values), onnx.numpy_helper.to_array(sparse.indices)
        dense = np.zeros(dims, values.dtype)
        if places.ndim == 2:
            dense[tuple(places.T)] = values
        else:
            dense.reshape(-1)[places] = values
    except (ValueError, IndexError, TypeError) as err:
        raise UserError(f"{where}: {first_line(err, 100)}") from err
    return onnx.numpy_helper.from_array(dense, name)
