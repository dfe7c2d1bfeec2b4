"""Names of the values inside of a graph."""

from __future__ import annotations

import onnx_ir as ir

from onnxedge.api import refresh_scopes, unique_name

LONG = 12  #: characters up to which a name stays


def shorten_names(model: ir.Model) -> None:
    """Rename long-named values between the nodes of the main graph; graph inputs, outputs and initializers keep theirs.

    A name stands once where the value is made and once for each reader: exporters' names of 100 characters and more
    are a tenth of a small quantized file.
    """
    refresh_scopes(model)
    for node in model.graph:
        for value in node.outputs:
            if value.name and len(value.name) > LONG and not value.is_graph_output():
                value.name = unique_name(model.graph, "v")


def name_values(model: ir.Model) -> None:
    """Give every value of the main graph a name: what was observed is kept by name."""
    refresh_scopes(model)
    for node in model.graph:
        for value in node.outputs:
            if not value.name and (value.uses() or value.is_graph_output()):
                value.name = unique_name(model.graph, "v")
