"""What of a model others rely on: its inputs and outputs, versions and metadata."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from onnxedge.model.graph import graphs_of


@dataclass(frozen=True)
class Port:
    """Describe an input or an output as the model declares it."""

    name: str | None
    dtype: ir.DataType | None
    shape: ir.Shape | None
    has_default: bool  #: it is an initializer, too

    @classmethod
    def of(cls, value: ir.Value) -> Port:
        """Describe a graph's input or output."""
        shape = value.shape.copy() if value.shape is not None else None
        return cls(value.name, value.dtype, shape, value.is_initializer())


@dataclass(frozen=True)
class Interface:
    """Hold what a model shows to the outside, as it is now."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    ir_version: int
    metadata: frozenset[str]  #: keys

    @classmethod
    def of(cls, model: ir.Model) -> Interface:
        """Describe a model."""
        inputs, outputs = (tuple(map(Port.of, values)) for values in (model.graph.inputs, model.graph.outputs))
        return cls(inputs, outputs, model.ir_version, frozenset(model.metadata_props))


@dataclass(frozen=True)
class Declared(Interface):
    """Hold in addition which values inside a model have a type in its file."""

    inner: frozenset[str | None] = frozenset()

    @classmethod
    def of(cls, model: ir.Model) -> Declared:
        """Describe a model as it was loaded."""
        shown = Interface.of(model)
        values = (value for graph in graphs_of(model) for node in graph for value in node.outputs)
        inner = frozenset(value.name for value in values if value.type is not None)
        return cls(shown.inputs, shown.outputs, shown.ir_version, shown.metadata, inner)
