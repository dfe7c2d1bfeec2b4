"""Copies of models: as ``ir.Model.clone`` of onnx_ir 1.1 makes them, in half the time and less memory.

That one looks at each node's and value's metadata by properties that make a store where there is none.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir._cloner import Cloner


def copied(model: ir.Model) -> ir.Model:
    """Return a copy of a model that shares its tensors."""
    copier = _Copier(attr_map={}, value_map={}, metadata_props={})
    return ir.Model(
        copier.clone_graph(model.graph),
        ir_version=model.ir_version,
        producer_name=model.producer_name,
        producer_version=model.producer_version,
        domain=model.domain,
        model_version=model.model_version,
        doc_string=model.doc_string,
        functions=[function.clone() for function in model.functions.values()],
        metadata_props=dict(model.metadata_props),
        device_configurations=model.device_configurations,
    )


class _Copier(Cloner):
    """Copy plain nodes here, and leave those with more to them to onnx_ir."""

    def clone_node(self, node: ir.Node, deep_copy: bool = False) -> ir.Node:
        known = self._value_map
        plain = not (node.device_configurations or node._metadata)
        if not plain or any(value is not None and value not in known for value in node._inputs):
            return super().clone_node(node, deep_copy=deep_copy)
        outputs = [
            ir.Value(
                name=value._name,
                shape=value._shape.copy() if value._shape is not None else None,
                type=value._type,
                doc_string=value.doc_string,
                const_value=value._const_value,
                metadata_props=dict(value._metadata_props) if value._metadata_props else None,
            )
            for value in node._outputs
        ]
        attributes = [self.clone_attr(key, item) for key, item in node.attributes.data.items()]
        made = ir.Node(
            node._domain,
            node._op_type,
            [known[value] if value is not None else None for value in node._inputs],
            [attribute for attribute in attributes if attribute is not None],
            overload=node._overload,
            outputs=outputs,
            version=node._version,
            name=node._name,
            doc_string=node.doc_string,
            metadata_props=dict(node._metadata_props) if node._metadata_props else None,
        )
        for value, new in zip(node._outputs, outputs, strict=True):
            known[value] = new
            if value._metadata:
                self.clone_meta(value._metadata, new.meta)
        return made
