"""What a model consists of, to tell whether it was edited."""

from __future__ import annotations

import onnx_ir as ir

from onnxedge.model.graph import graphs_of


def content_of(model: ir.Model) -> list[object]:
    """List the parts of a model, so that the lists before and after are equal where nothing was edited in place.

    Nodes and values count as themselves, what is written of them by content; tensors are never edited.
    """
    found: list[object] = [model.ir_version, dict(model.opset_imports), dict(model.metadata_props), model.doc_string]
    found += [(name, dict(function.opset_imports)) for name, function in model.functions.items()]
    for graph in graphs_of(model):
        found += [graph, graph.name, *graph.inputs, None, *graph.outputs, None]
        for value in (*graph.inputs, *graph.initializers.values()):
            found += [value, value.name, value.const_value, value.type, _dims(value)]
        for node in graph:
            found += [node, node._domain, node._op_type, node._overload, node._name, *node._inputs, None]
            found.extend(node._attributes.data.values())
            if node._metadata_props:
                found.append(dict(node._metadata_props))
            for value in node._outputs:
                found += [value, value._name, value._type, _dims(value)]
    return found


def _dims(value: ir.Value) -> object:
    shape = value.shape
    return None if shape is None else tuple(shape)
