"""Which losses a model is trained with: found out from its outputs, the teacher's and the labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from onnxedge.api import (
    Array,
    Feature,
    HardLabels,
    Loss,
    Regression,
    SoftLabels,
    UserError,
    did_you_mean,
    is_standard,
)

Kind = Literal["auto", "classes", "values"]
_VIEWS = ("Identity", "Flatten", "Squeeze", "Reshape")
_LEAST_VARIANCE = 1e-8  #: of a teacher's value whose error is measured in it


@dataclass(frozen=True)
class End:
    """Hold an output of a model, and the value that a loss is on.

    Attributes:
        output: name of the output.
        value: the scores before a Softmax that the output is made of, else the output.
        axis: of the classes, None for what losses take by themselves.
    """

    output: str
    value: str
    axis: int | None = None


def find_end(output: ir.Value) -> End:
    """Return where a loss goes for an output: before the Softmax, where the output is one of some scores."""
    name, node = output.name or "", output.producer()
    seen = 0
    while node is not None and is_standard(node) and node.op_type in _VIEWS and node.inputs[0] is not None and seen < 3:
        node, seen = node.inputs[0].producer(), seen + 1
    if node is None or node.op_type not in ("Softmax", "LogSoftmax") or not is_standard(node):
        return End(name, name)
    scores = node.inputs[0]
    axis = node.attributes.get_int("axis", -1)
    rank = len(scores.shape) if scores is not None and scores.shape is not None else None
    if scores is None or not scores.name or scores.is_graph_input() or rank is None or axis is None:
        return End(name, name)
    return End(name, scores.name, axis % rank)


def float_outputs(model: ir.Model) -> list[ir.Value]:
    """Return the outputs of float32."""
    return [value for value in model.graph.outputs if value.dtype == ir.DataType.FLOAT and value.name]


def label_losses(
    model: ir.Model,
    labels: Array,
    who: str,
    *,
    output: str = "",
    kind: Kind = "auto",
    smoothing: float = 0.0,
    weight: float = 1.0,
) -> tuple[Loss, Array]:
    """Return the loss against labels, and the labels as it reads them.

    Args:
        model: shapes inferred.
        labels: [S, ...]; class numbers, one-hot rows, or targets.
        who: the pass, for messages.
        output: name of the output that they are for; the one that fits for none.
        kind: classes, values, or by the type and shape of the labels.
        smoothing: of classes.
        weight: of the loss.

    Raises:
        UserError: no output fits.
    """
    outputs = [value for value in float_outputs(model) if not output or value.name == output]
    if not outputs:
        known = [value.name or "" for value in float_outputs(model)]
        what = f"no float32 output {output!r}{did_you_mean(output, known)}" if output else "no output of float32"
        raise UserError(f"{who}: the model has {what}")
    whole = labels.dtype.kind in "biu"
    for value in outputs:
        end, dims = find_end(value), _dims(value)
        if dims is None:
            continue
        classes = _as_classes(labels, dims, end.axis) if kind != "values" and (whole or kind == "classes") else None
        if classes is not None:
            loss = HardLabels(output=end.value, axis=end.axis, smoothing=smoothing, weight=weight)
            return loss, _checked(classes, dims, end, who)
        targets = _as_targets(labels, dims) if kind == "values" or (kind == "auto" and not whole) else None
        if targets is not None:
            return Regression(output=value.name or "", targets="labels", weight=weight), targets
    shown = f"{labels.dtype}[{','.join(['S', *map(str, labels.shape[1:])])}]"
    names = ", ".join(f"{value.name!r} {_dims(value)}" for value in outputs)
    raise UserError(f"{who}: labels {shown} fit no output ({names}); name one by output=")


def _dims(value: ir.Value) -> list[int | None] | None:
    return None if value.shape is None else [d if isinstance(d, int) else None for d in value.shape]


def class_axis(dims: Sequence[int | None], axis: int | None) -> int:
    """Return the axis of the classes of scores, as losses take it."""
    return axis if axis is not None else 1 if len(dims) > 3 else len(dims) - 1


def _as_classes(labels: Array, dims: Sequence[int | None], axis: int | None) -> Array | None:
    """Return labels as class numbers of the scores' shape without their classes, None where they do not fit."""
    if len(dims) < 2:
        return None
    at = class_axis(dims, axis)
    count, rest = dims[at], [d for i, d in enumerate(dims) if i not in (0, at)]
    shape = list(labels.shape)
    if count is None or count < 2:
        return None
    if shape[1:] == [count] and not rest:
        return np.asarray(labels.argmax(1))
    places = [d for d in rest if d != 1]
    own = [d for d in shape[1:] if d != 1]
    if len(own) != len(places) or any(d is not None and d != o for d, o in zip(places, own, strict=True)):
        return None
    sizes = iter(own)
    return labels.reshape(shape[0], *(1 if d == 1 else next(sizes) for d in rest))


def _checked(classes: Array, dims: Sequence[int | None], end: End, who: str) -> Array:
    count = dims[class_axis(dims, end.axis)]
    assert count is not None
    if (classes != classes.astype(np.int64)).any():
        raise UserError(f"{who}: labels are no whole numbers; classes are needed for output {end.output!r}")
    if int(classes.max()) >= count:
        raise UserError(f"{who}: label {int(classes.max())} is no class of output {end.output!r}, which has {count}")
    if int(classes.max()) < 0:
        raise UserError(f"{who}: no label is 0 or more")
    return classes.astype(np.int64)


def _as_targets(labels: Array, dims: Sequence[int | None]) -> Array | None:
    shape = [d for d in dims[1:] if d != 1]
    own = [d for d in labels.shape[1:] if d != 1]
    if len(shape) != len(own) or any(d is not None and d != o for d, o in zip(shape, own, strict=True)):
        return None
    sizes = iter(own)
    full = [1 if d == 1 else next(sizes) for d in dims[1:]]
    return labels.reshape(len(labels), *full).astype(np.float32)


def teacher_losses(
    student: ir.Model, teacher: ir.Model, said: dict[str, Array], *, temperature: float, weight: float, who: str
) -> list[Loss]:
    """Return a loss for each output against the teacher's: soft labels for class scores, squared errors otherwise.

    A squared error is measured in the teacher's variance, so that outputs of other units weigh alike.

    Args:
        student, teacher: shapes inferred.
        said: what the teacher gives for some samples, by output.
        temperature: of soft labels.
        weight: of all of them together.
        who: the pass, for messages.

    Raises:
        UserError: the teacher has other outputs.
    """
    ours, theirs = float_outputs(student), float_outputs(teacher)
    names = {value.name for value in theirs}
    if not ours or len(ours) != len(theirs):
        raise UserError(f"{who}: the student has {len(ours)} outputs of float32, the teacher {len(theirs)}")
    by_name = {value.name: value for value in theirs}
    pairs = [(v, by_name[v.name] if names == {o.name for o in ours} else t) for v, t in zip(ours, theirs, strict=True)]
    losses: list[Loss] = []
    share = weight / len(pairs)
    for value, other in pairs:
        end, far = find_end(value), find_end(other)
        if _is_scores(said[other.name or ""], end):
            named: dict[str, Any] = {"output": end.value, "teacher": far.value, "axis": end.axis}
            if (end.value == end.output) != (far.value == far.output):  # one gives scores, the other probabilities
                named |= {"output": end.output, "teacher": far.output}
            losses.append(SoftLabels(**named, temperature=temperature, weight=share))
        else:
            variance = max(float(np.var(said[other.name or ""])), _LEAST_VARIANCE)
            losses.append(Regression(output=value.name or "", teacher=other.name or "", weight=share / variance))
    return losses


def _is_scores(array: Array, end: End) -> bool:
    if end.value != end.output:
        return True
    return array.ndim == 2 and array.shape[1] >= 2


def feature_losses(texts: Sequence[str], kind: Literal["l2", "attention"], weight: float) -> list[Loss]:
    """Return losses on values inside, of texts such as ``layer3`` or ``layer3=stage3`` (student's, teacher's)."""
    losses: list[Loss] = []
    for text in texts:
        ours, _, theirs = text.partition("=")
        losses.append(Feature(output=ours.strip(), teacher=theirs.strip(), kind=kind, weight=weight / len(texts)))
    return losses
