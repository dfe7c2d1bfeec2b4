"""What the values of a graph are for one batch: shapes, types, and those that no data changes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxedge.autodiff.backward import Array
from onnxedge.runtime import Session

_DRAWN = ("Random", "Multinomial", "Bernoulli")  #: operators whose outputs differ each time
_LARGE = 1 << 16  #: elements of a float constant that is computed once in place of each time


@dataclass(frozen=True)
class Values:
    """Hold a graph's nodes and what is known about their values.

    Attributes:
        nodes: without those whose outputs are now initializers.
        initializers: by name.
        shapes: of all values.
        known: what the constants hold.
        dtypes: of values, as far as known.
    """

    nodes: list[onnx.NodeProto]
    initializers: Mapping[str, onnx.TensorProto]
    shapes: Mapping[str, tuple[int, ...]]
    known: Mapping[str, Array]
    dtypes: Mapping[str, np.dtype[Any]]


def graph_values(
    model: onnx.ModelProto, feed: Mapping[str, Array], weights: Mapping[str, Array], known: Mapping[str, Array]
) -> Values:
    """Run a graph once and look at its values.

    Args:
        model: without the initializers in ``weights``.
        feed: of its inputs.
        weights: what is trained, and running statistics.
        known: its initializers.

    Raises:
        CannotRun: ONNX Runtime does not run it on this batch.
    """
    given = {**feed, **weights}
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    graph = whole.graph
    del graph.input[:], graph.output[:], graph.value_info[:]
    graph.input.extend(
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in given.items()
    )
    dtypes, sizes = _inferred(whole)
    fixed = _fixed(graph, known)
    small = [
        name
        for name in fixed
        if name in dtypes and (dtypes[name].kind in "iub" or math.prod(sizes.get(name, (_LARGE,))) < _LARGE)
    ]
    names = [name for node in graph.node for name in node.output if name]
    for index, name in enumerate(names):
        graph.node.append(helper.make_node("Shape", [name], [f"onnxedge_shape_{index}"]))
    wanted = [*(f"onnxedge_shape_{index}" for index in range(len(names))), *small]
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    found = Session(whole, level="disable").run(given)
    shapes = {name: tuple(found[f"onnxedge_shape_{index}"].tolist()) for index, name in enumerate(names)}
    folded = {name: found[name] for name in small}
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    held |= {name: numpy_helper.from_array(array, name) for name, array in folded.items()}
    nodes = [node for node in model.graph.node if not all(name in folded for name in node.output if name)]
    constants = {**known, **folded}
    shapes |= {name: array.shape for name, array in {**given, **constants}.items()}
    dtypes |= {name: array.dtype for name, array in {**given, **constants}.items()}
    return Values(nodes, held, shapes, constants, dtypes)


def _fixed(graph: onnx.GraphProto, known: Mapping[str, Array]) -> list[str]:
    """Return values that depend on neither data nor weights: on constants and shapes alone."""
    fixed, found = set(known), []
    for node in graph.node:
        inner = any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in node.attribute)
        if inner or node.domain not in ("", "ai.onnx") or node.op_type.startswith(_DRAWN):
            continue
        if node.op_type in ("Shape", "Size", "Constant") or (node.input and all(n in fixed for n in node.input if n)):
            names = [name for name in node.output if name]
            fixed.update(names)
            found += names
    return found


def _inferred(model: onnx.ModelProto) -> tuple[dict[str, np.dtype[Any]], dict[str, tuple[int, ...]]]:
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    dtypes, sizes = {}, {}
    for info in inferred.graph.value_info:
        kind = info.type.tensor_type
        if not kind.elem_type or kind.elem_type == onnx.TensorProto.STRING:
            continue
        dtypes[info.name] = np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type))
        if kind.HasField("shape") and all(dim.HasField("dim_value") for dim in kind.shape.dim):
            sizes[info.name] = tuple(dim.dim_value for dim in kind.shape.dim)
    return dtypes, sizes
