"""Gradients of a piece of a graph, as more nodes of that graph: reverse-mode differentiation, operator by operator."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxedge.api import Array

OPSET = 13  #: the least version of the default domain that the nodes made here are valid in
Gradients = Sequence[str | None]  # one per input of a node


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    """Return an attribute's value."""
    found = next((a for a in node.attribute if a.name == name), None)
    return default if found is None else helper.get_attribute_value(found)


class NoGradient(Exception):
    """An operator has no rule here, or not in this form."""


class Backward:
    """Nodes that compute the gradients of some values from the gradient of another.

    Attributes:
        nodes: made so far, to run behind the ones they belong to.
        constants: initializers that they read.
    """

    def __init__(
        self,
        forward: Sequence[onnx.NodeProto],
        shapes: Mapping[str, tuple[int, ...]],
        known: Mapping[str, Array],
        dtypes: Mapping[str, np.dtype[Any]] | None = None,
    ) -> None:
        """Take in the nodes that are differentiated.

        Args:
            forward: in the graph's order.
            shapes: of all their values, for the batch that the gradients are taken on.
            known: constants among their inputs.
            dtypes: of their values, as far as known.
        """
        self.forward, self.shapes, self.known = forward, shapes, known
        self.dtypes = dtypes or {}
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.needed: set[str] = set()

    def differentiate(self, seeds: Mapping[str, str], wanted: Collection[str]) -> dict[str, str]:
        """Return the names of the gradients of the values in ``wanted``.

        Args:
            seeds: names of the gradients that are given, by value.
            wanted: inputs of the forward nodes.

        Raises:
            NoGradient: a node between them has no rule.
        """
        from onnxedge_passes.prune.gradient_rules import RULES

        self.needed = set(wanted)
        for node in self.forward:
            if self.needed.intersection(node.input):
                self.needed.update(node.output)
        parts = {name: [seed] for name, seed in seeds.items()}
        for node in reversed(self.forward):
            if not self.needed.intersection(node.input) or not any(name in parts for name in node.output):
                continue
            rule = RULES.get(node.op_type)
            if rule is None or node.domain not in ("", "ai.onnx"):
                raise NoGradient(node.op_type)
            if any(name in parts for name in node.output[1:]) and node.op_type != "Split":
                raise NoGradient(f"{node.op_type} with several outputs")
            grads = [self._sum(parts.get(name, [])) for name in node.output]
            for name, gradient in zip(node.input, rule(self, node, grads), strict=False):
                if gradient is not None and name in self.needed:
                    parts.setdefault(name, []).append(gradient)
        missing = [name for name in wanted if name not in parts]
        if missing:
            raise NoGradient("a weight that the output does not depend on")
        return {name: str(self._sum(parts[name])) for name in wanted}

    def make(self, op_type: str, *inputs: str | Array, **attributes: Any) -> str:
        """Add a node and return its output; arrays become initializers."""
        names = []
        for value in inputs:
            if isinstance(value, str):
                names.append(value)
                continue
            names.append(f"onnxedge_grad_c{len(self.constants)}")
            self.constants.append(numpy_helper.from_array(value, names[-1]))
        made = f"onnxedge_grad_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, names, [made], **attributes))
        return made

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a forward value."""
        return self.shapes[name]

    def reshape(self, value: str, shape: Sequence[int]) -> str:
        """Reshape."""
        return self.make("Reshape", value, np.array(shape, np.int64))

    def total(self, value: str, axes: Sequence[int], *, keep: bool = True) -> str:
        """Sum over axes."""
        return self.make("ReduceSum", value, np.array(axes, np.int64), keepdims=int(keep)) if axes else value

    def slices(self, value: str, axes: Sequence[int], starts: Sequence[int], ends: Sequence[int], steps: Any) -> str:
        """Slice."""
        return self.make("Slice", value, *(np.array(a, np.int64) for a in (starts, ends, axes, steps)))

    def fit(self, gradient: str, source: Sequence[int], name: str) -> str:
        """Sum a gradient of shape ``source`` over the axes along which the value ``name`` was broadcast."""
        own = self.shape(name)
        lead = len(source) - len(own)
        axes = [axis for axis, size in enumerate(source) if axis < lead or (own[axis - lead] == 1 and size != 1)]
        summed = self.total(gradient, axes)
        return self.reshape(summed, own) if lead else summed

    def needs(self, node: onnx.NodeProto, index: int) -> bool:
        """Tell whether the gradient of an input is asked for."""
        return index < len(node.input) and node.input[index] in self.needed

    def _sum(self, parts: list[str]) -> str | None:
        while len(parts) > 1:
            parts = [self.make("Add", parts[0], parts[1]), *parts[2:]]
        return parts[0] if parts else None
