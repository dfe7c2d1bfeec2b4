"""Gradients of a piece of a graph, as more nodes of that graph: reverse-mode differentiation, operator by operator."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

Array = np.ndarray[Any, Any]
OPSET = 13  #: the least version of the default domain that the nodes made here are valid in
Gradients = Sequence[str | None]  # one per input of a node
_SHARED_BYTES = 1 << 16  #: of constants that are compared with those before


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    """Return an attribute's value."""
    found = next((a for a in node.attribute if a.name == name), None)
    return default if found is None else helper.get_attribute_value(found)


class NoGradient(Exception):
    """An operator has no rule here, or not in this form."""


class Backward:
    """Nodes that compute the gradients of some values from the gradient of another.

    What is asked for twice is made once. Gradients are float32; a Cast alone may lead to and from another float.

    Attributes:
        nodes: made so far, to run behind the ones they belong to.
        constants: initializers that they read.
        prefix: of the names of both.
    """

    def __init__(
        self,
        forward: Sequence[onnx.NodeProto],
        shapes: Mapping[str, tuple[int, ...]],
        known: Mapping[str, Array],
        dtypes: Mapping[str, np.dtype[Any]] | None = None,
        opset: int = OPSET,
        prefix: str = "onnxedge_grad",
    ) -> None:
        """Take in the nodes that are differentiated.

        Args:
            forward: in the graph's order.
            shapes: of all their values, for the batch that the gradients are taken on.
            known: constants among their inputs.
            dtypes: of their values, as far as known; float32 for others.
            opset: version of the default domain of the graph.
            prefix: of the names of what is made; longer where the graph has such names.
        """
        self.forward, self.shapes, self.known = forward, shapes, known
        self.dtypes, self.opset = dtypes or {}, opset
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.needed: set[str] = set()
        self._made: dict[Any, str] = {}
        taken = {name for node in forward for name in (*node.input, *node.output)} | set(shapes)
        while any(name.startswith(prefix) for name in taken):
            prefix += "_"
        self.prefix = prefix

    def differentiate(self, seeds: Mapping[str, str], wanted: Collection[str], *, some: bool = False) -> dict[str, str]:
        """Return the names of the gradients of the values in ``wanted``.

        Args:
            seeds: names of the gradients that are given, by value.
            wanted: inputs or outputs of the forward nodes.
            some: leave out those that what is differentiated does not depend on.

        Raises:
            NoGradient: a node between them has no rule.
        """
        from onnxedge.autodiff.table import RULES

        self.needed = set(wanted)
        for node in self.forward:
            if self.needed.intersection(node.input):
                self.needed.update(name for name in node.output if name)
        parts = {name: [seed] for name, seed in seeds.items()}
        for node in reversed(self.forward):
            if not self.needed.intersection(node.input) or not any(name in parts for name in node.output):
                continue
            rule = RULES.get(node.op_type)
            if rule is None or node.domain not in ("", "ai.onnx"):
                raise NoGradient(f"{node.domain}::{node.op_type}" if node.domain else node.op_type)
            if any(name in parts for name in node.output[1:]) and node.op_type != "Split":
                raise NoGradient(f"{node.op_type} with several outputs")
            kind = self.dtypes.get(node.output[0])
            if kind is not None and kind != np.float32 and node.op_type not in _ANY_FLOAT:
                raise NoGradient(f"{node.op_type} in {kind}")
            grads = [self._sum(parts.get(name, [])) for name in node.output]
            for name, gradient in zip(node.input, rule(self, node, grads), strict=False):
                if gradient is not None and name in self.needed:
                    parts.setdefault(name, []).append(gradient)
        missing = [name for name in wanted if name not in parts]
        if missing and not some:
            raise NoGradient("a weight that the output does not depend on")
        return {name: str(self._sum(parts[name])) for name in wanted if name in parts}

    def make(self, op_type: str, *inputs: str | Array | np.float32, **attributes: Any) -> str:
        """Add a node and return its output; arrays become initializers."""
        return self.several(op_type, 1, *inputs, **attributes)[0]

    def several(self, op_type: str, count: int, *inputs: str | Array | np.float32, **attributes: Any) -> list[str]:
        """Add a node of several outputs."""
        names = [value if isinstance(value, str) else self.constant(value) for value in inputs]
        key = (op_type, count, *names, repr(sorted(attributes.items())))
        if key not in self._made:
            self._made[key] = f"{self.prefix}_{len(self.nodes)}"
            outputs = self._outputs(self._made[key], count)
            self.nodes.append(helper.make_node(op_type, names, outputs, **attributes))
        return self._outputs(self._made[key], count)

    @staticmethod
    def _outputs(first: str, count: int) -> list[str]:
        return [first, *(f"{first}_{index}" for index in range(1, count))]

    def constant(self, array: Array | np.float32) -> str:
        """Add an initializer and return its name."""
        array = np.asarray(array)
        key = None
        if array.nbytes <= _SHARED_BYTES:
            key = ("constant", array.dtype.str, array.shape, array.tobytes())
            if key in self._made:
                return self._made[key]
        name = f"{self.prefix}_c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name))
        if key is not None:
            self._made[key] = name
        return name

    def scale(self, value: str, factor: float) -> str:
        """Multiply by a number."""
        return value if factor == 1 else self.make("Mul", value, scalar(factor))

    def mask(self, condition: str) -> str:
        """Return 1 where a value of any type is other than 0, else 0."""
        return self.make("Cast", condition, to=onnx.TensorProto.FLOAT)

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

    def concat(self, parts: Sequence[str | Array], axis: int) -> str:
        """Concatenate; one part is itself."""
        return parts[0] if len(parts) == 1 and isinstance(parts[0], str) else self.make("Concat", *parts, axis=axis)

    def fit(self, gradient: str, source: Sequence[int], name: str) -> str:
        """Sum a gradient of shape ``source`` over the axes along which the value ``name`` was broadcast."""
        return self.fit_to(gradient, source, self.shape(name))

    def fit_to(self, gradient: str, source: Sequence[int], own: Sequence[int]) -> str:
        """Sum a gradient of shape ``source`` over the axes along which a value of shape ``own`` was broadcast."""
        lead = len(source) - len(own)
        axes = [axis for axis, size in enumerate(source) if axis < lead or (own[axis - lead] == 1 and size != 1)]
        if lead and set(axes) == set(range(lead)):
            return self.total(gradient, axes, keep=False)
        summed = self.total(gradient, axes)
        return self.reshape(summed, own) if lead else summed

    def needs(self, node: onnx.NodeProto, index: int) -> bool:
        """Tell whether the gradient of an input is asked for."""
        return index < len(node.input) and node.input[index] in self.needed

    def operand(self, node: onnx.NodeProto, index: int) -> Array | None:
        """Return what a constant input holds, None where there is no such input.

        Raises:
            NoGradient: it is computed at run time.
        """
        name = node.input[index] if index < len(node.input) else ""
        if not name:
            return None
        if name not in self.known:
            raise NoGradient(f"{node.op_type} whose input {index} is computed at run time")
        return self.known[name]

    def _sum(self, parts: list[str]) -> str | None:
        while len(parts) > 1:
            parts = [self.make("Add", parts[0], parts[1]), *parts[2:]]
        return parts[0] if parts else None


def scalar(value: float) -> Array:
    """Return a float32 scalar."""
    return np.array(value, np.float32)


_ANY_FLOAT = ("Cast", "Identity")  #: operators with a rule that is right in every float type
