"""What constant folding knows of the values of a graph: types, sizes, small integers, and what it has computed."""

from __future__ import annotations

import onnx_ir as ir

from onnxedge.api import Array
from onnxedge_passes.cleanup.shapes.inference import Types
from onnxedge_passes.cleanup.shapes.known import elements_of_constant, propagate
from onnxedge_passes.cleanup.shapes.sizes import Sizes, own_names
from onnxedge_passes.cleanup.worklist import graph_opset


class Knowledge:
    """Hold what is known of the values of a graph and of the graphs inside it, which read them too."""

    def __init__(self, model: ir.Model, graph: ir.Graph) -> None:
        self.opset = graph_opset(graph)
        self.arrays: dict[int, Array] = {}  #: folded values, by ``id``, that do not stand in the graph yet
        self.folded: dict[int, ir.Node] = {}  #: their nodes, held so that no other value takes over an ``id``
        self.elements: dict[ir.Value, Array] = {}
        own = own_names(model.graph) if graph is model.graph else set[str | None]()
        self.types = Types(self.opset, lambda value: self.arrays.get(id(value)))
        self.sizes = Sizes(self.types, own.__contains__)

    def elements_of(self, value: ir.Value) -> Array | None:
        """Return the elements of a small array of integers, as numbers or expressions, None where unknown."""
        if value in self.elements:
            return self.elements[value]
        array = self.arrays.get(id(value))
        if array is None:
            return elements_of_constant(value)
        return array.astype(object) if array.dtype.kind in "ib" else None

    def propagate(self, node: ir.Node) -> list[Array | None]:
        """Return what follows for the elements of a node's outputs from those of its inputs."""
        return propagate(node, self.elements_of, self.sizes.of)

    def infer(self, node: ir.Node) -> None:
        """Learn types and sizes of a node's outputs."""
        self.types.infer(node)
        self.sizes.infer(node, self.elements_of)
        for value in node.outputs:
            self.sizes.tell(value)
