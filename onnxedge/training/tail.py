"""The end of a training graph: nodes put behind a student, and the inputs that they read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxedge.errors import UserError, did_you_mean
from onnxedge.model.edit import new_initializer, new_node
from onnxedge.model.graph import Array
from onnxedge.model.names import unique_name

Dims = Sequence[int | str | None]  #: sizes, symbols, or None where neither is known


class Tail:
    """Append nodes to a student's graph, and remember which inputs and weights that took.

    Args:
        graph: of the student; shapes inferred.
        teacher: values of the teacher by name, shapes inferred; None where there is none to look at.
        rng: for the weights of adapters.
    """

    def __init__(self, graph: ir.Graph, teacher: Mapping[str, ir.Value] | None, rng: np.random.Generator) -> None:
        self._graph, self._teacher, self._rng = graph, teacher, rng
        self.teachers: dict[str, ir.Value] = {}  #: value of the teacher -> input
        self.columns: dict[str, ir.Value] = {}  #: column of the data -> input
        self.adapters: list[ir.Value] = []

    def put(self, op_type: str, *inputs: ir.Value | Array | float, **attributes: Any) -> ir.Value:
        """Append a node and return its output; arrays become initializers, numbers float32 scalars."""
        values = [item if isinstance(item, ir.Value) else self._constant(item) for item in inputs]
        node = new_node(self._graph, op_type, values, attributes=attributes, name=f"loss_{op_type.lower()}")
        self._graph.append(node)
        return node.outputs[0]

    def _constant(self, item: Array | float) -> ir.Value:
        return new_initializer(self._graph, np.asarray(item, None if isinstance(item, np.ndarray) else "f4"), "loss_c")

    def total(self, value: ir.Value, axes: Sequence[int], *, keep: bool = True) -> ir.Value:
        """Sum over axes."""
        return self.put("ReduceSum", value, np.array(axes, np.int64), keepdims=int(keep))

    def mean(self, value: ir.Value) -> ir.Value:
        """Return the mean of all elements, a scalar."""
        return self.put("ReduceMean", value, keepdims=0)

    def teacher_shape(self, name: str) -> Dims | None:
        """Return the dimensions of a teacher's value, None where no teacher was given.

        Raises:
            UserError: the teacher has no such value, or none of float32, or its rank is not known.
        """
        return None if self._teacher is None else shape_of(named(self._teacher, name, "the teacher"), "the teacher")

    def teacher(self, name: str, dims: Dims, dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Value:
        """Return the input that holds a teacher's value."""
        return self._input(self.teachers, name, f"teacher.{name}", dims, dtype)

    def column(self, name: str, dims: Dims, dtype: ir.DataType) -> ir.Value:
        """Return the input that holds a column of the data: labels, targets."""
        return self._input(self.columns, name, name, dims, dtype)

    def input(self, wish: str, dims: Dims, dtype: ir.DataType) -> ir.Value:
        """Add an input of the graph."""
        name, shape = unique_name(self._graph, wish), ir.Shape(list(dims))
        value = ir.Value(name=name, shape=shape, type=ir.TensorType(dtype))
        self._graph.inputs.append(value)
        return value

    def _input(self, known: dict[str, ir.Value], key: str, wish: str, dims: Dims, dtype: ir.DataType) -> ir.Value:
        if key not in known:
            known[key] = self.input(wish, dims, dtype)
        value = known[key]
        mine = shape_of(value, "the loss")
        pairs = zip(mine, dims, strict=False)
        differ = any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in pairs)
        if differ or len(mine) != len(dims) or value.dtype != dtype:
            raise UserError(f"loss: two losses read {key!r} in different shapes or types")
        return value

    def adapter(self, value: ir.Value, axis: int, rank: int, width: tuple[int, int]) -> ir.Value:
        """Map ``width[0]`` channels of a student's feature to the teacher's ``width[1]``, by weights of its own.

        A 1x1 Conv where the channels are axis 1 of several, a linear layer where they are the last. The weights are
        drawn from a normal distribution of variance 1 / ``width[0]``, the bias is 0.
        """
        ours, theirs = width
        spatial = axis == 1 and rank > 2
        draw = self._rng.standard_normal((theirs, ours) if spatial else (ours, theirs)) / np.sqrt(ours)
        weight = draw.reshape(theirs, ours, *[1] * (rank - 2)) if spatial else draw
        arrays = (weight.astype(np.float32), np.zeros(theirs, np.float32))
        made = [
            new_initializer(self._graph, array, f"adapter.{value.name}.{part}")
            for array, part in zip(arrays, ("weight", "bias"), strict=True)
        ]
        self.adapters += made
        return (
            self.put("Conv", value, *made) if spatial else self.put("Add", self.put("MatMul", value, made[0]), made[1])
        )


def named(values: Mapping[str, ir.Value], name: str, whose: str) -> ir.Value:
    """Return a value of float32 by its name.

    Raises:
        UserError: there is none of that name, or it is of another type.
    """
    value = values.get(name)
    if value is None:
        raise UserError(f"loss: {whose} has no value {name!r}{did_you_mean(name, values)}")
    if value.dtype not in (ir.DataType.FLOAT, None):
        raise UserError(f"loss: value {name!r} of {whose} is {value.dtype}, needs float32; put `fp32` before")
    return value


def shape_of(value: ir.Value, whose: str) -> Dims:
    """Return the dimensions of a value.

    Raises:
        UserError: its rank is not known.
    """
    if value.shape is None:
        raise UserError(f"loss: the rank of value {value.name!r} of {whose} is not known; fix the model's input shapes")
    return [d if isinstance(d, int) else d.value for d in value.shape]
