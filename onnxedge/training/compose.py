"""Student and loss as one plain ONNX graph, whose output 0 is the loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxedge.errors import UserError
from onnxedge.model.edit import forked
from onnxedge.model.graph import Array, opset
from onnxedge.model.names import refresh_scopes
from onnxedge.training.losses import Loss
from onnxedge.training.tail import Tail, named
from onnxedge.verify import infer_shapes

_LEAST_OPSET = 13  #: from which on Softmax works along one axis and ReduceSum takes its axes as an input


@dataclass(frozen=True)
class Composed:
    """Hold a training graph and what its inputs are.

    Attributes:
        model: output 0 is the loss, a float32 scalar; output 1 the terms, float32 [terms]; then the student's own.
        teachers: value of the teacher -> input that it is fed to.
        columns: column of the data (labels, targets) -> input.
        weights: input of the terms' weights, float32 [terms]; may change from step to step.
        schedule: weights to begin and to end with, float32 [2, terms], in the order of the losses.
        adapters: initializers that are trained beside the student's and given up afterwards.
    """

    model: ir.Model
    teachers: Mapping[str, str]
    columns: Mapping[str, str]
    weights: str
    schedule: Array
    adapters: tuple[str, ...]

    @property
    def loss(self) -> str:
        """Return the name of output 0."""
        return self.model.graph.outputs[0].name or ""


def compose(student: ir.Model, losses: Sequence[Loss], *, teacher: ir.Model | None = None, seed: int = 0) -> Composed:
    """Put losses behind a student: one graph of standard operators, of the student's own opset.

    Labels, teacher logits and teacher features are inputs: they are computed once, by inference, or for each batch.

    Args:
        student: not changed; its tensors are shared.
        losses: terms of the sum; several may be on one value, or each on its own (heads, tasks).
        teacher: where the teacher's values are looked up by name, for their sizes; it does not come into the graph.
            Without it they are taken to be of the student's sizes.
        seed: of the adapters' weights.

    Raises:
        UserError: no loss, a value that is not there, not float32, or of a size that does not fit.
    """
    if not losses:
        raise UserError("loss: there is none; give at least one term")
    if opset(student) < _LEAST_OPSET:
        raise UserError(f"loss: the student is of opset {opset(student)}; put `prepare-training` before")
    for loss in losses:
        loss.check()
    model, _ = forked(student)
    refresh_scopes(model)
    infer_shapes(model)
    graph, ours = model.graph, _values(model)
    tail = Tail(graph, None if teacher is None else _inferred(teacher), np.random.default_rng(seed))
    terms = [loss.build(tail, named(ours, loss.output, "the student")) for loss in losses]
    weights = tail.input("loss_weights", [len(terms)], ir.DataType.FLOAT)
    rows = [tail.put("Reshape", term, np.array([1], np.int64)) for term in terms]
    listed = tail.put("Concat", *rows, axis=0)
    total = tail.put("ReduceSum", tail.put("Mul", listed, weights), keepdims=0)
    for value, dims in ((total, []), (listed, [len(terms)])):
        value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(dims)
    graph.outputs[:] = [total, listed, *graph.outputs]
    return Composed(
        model,
        {key: value.name or "" for key, value in tail.teachers.items()},
        {key: value.name or "" for key, value in tail.columns.items()},
        weights.name or "",
        np.array([loss.weights for loss in losses], np.float32).T.copy(),
        tuple(value.name or "" for value in tail.adapters),
    )


def _inferred(model: ir.Model) -> dict[str, ir.Value]:
    copy, _ = forked(model)
    refresh_scopes(copy)
    infer_shapes(copy)
    return _values(copy)


def _values(model: ir.Model) -> dict[str, ir.Value]:
    """Return the values that depend on a model's inputs, by name; inputs too."""
    computed = (value for node in model.graph for value in node.outputs)
    return {value.name: value for value in (*model.graph.inputs, *computed) if value.name}
