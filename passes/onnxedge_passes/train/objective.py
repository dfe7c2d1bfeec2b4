"""Which losses a model is trained with: found out from its outputs, the teacher's and the labels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from onnxedge.api import (
    Array,
    Data,
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
LABELS = "labels"  #: what losses call labels that came without the name of an output
_VIEWS = ("Identity", "Flatten", "Squeeze", "Reshape")
_LEAST_VARIANCE = 1e-8  #: of a teacher's value whose error is measured in it


Weight = tuple[float, float]  #: of a loss at the first step and at the last
#: [S, ...] by the output that they are for; under the empty name those that came without one.
Labels = Mapping[str, Array]


@dataclass(frozen=True)
class Head:
    """Hold an output that is trained on labels.

    Attributes:
        output: its name.
        loss: against the labels.
        column: what the loss calls them.
        labels: as the loss reads them.
        axis: of the output's classes; of no meaning for numbers.
    """

    output: str
    loss: HardLabels | Regression
    column: str
    labels: Array
    axis: int


@dataclass(frozen=True, kw_only=True)
class Objective:
    """Hold what a model is trained for.

    Attributes:
        heads: outputs that are trained on labels.
        others: losses that read no labels.
    """

    heads: Sequence[Head] = ()
    others: Sequence[Loss] = ()

    @property
    def losses(self) -> list[Loss]:
        """The terms of the sum, but for those that never weigh anything."""
        return [loss for loss in (*(head.loss for head in self.heads), *self.others) if any(loss.weights)]


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


def read_labels(data: Data, outputs: Sequence[str | None], labels: Array | None) -> dict[str, Array]:
    """Return the labels of samples: those beside them, and each array that has the name of an output."""
    found = {"": labels} if labels is not None else {}
    for name in outputs:
        own = data.column(name) if name else None
        if name and own is not None:
            found[name] = own
    return found


def read_tasks(texts: Sequence[str], model: ir.Model, who: str) -> dict[str, Weight]:
    """Return the weights of outputs, of texts such as ``age``, ``age=0.5``, ``age=1:0.2`` (from the first step on).

    Raises:
        UserError: there is no such output, or the weight is none.
    """
    tasks: dict[str, Weight] = {}
    known = [value.name or "" for value in float_outputs(model)]
    for text in texts:
        name, _, numbers = (text if "=" in text else f"{text}=1").rpartition("=")
        name = name.strip()
        if name not in known:
            raise UserError(f"{who}: tasks: no float32 output {name!r}{did_you_mean(name, known)}")
        first, colon, last = numbers.partition(":")
        try:
            weight = (float(first), float(last if colon else first))
        except ValueError:
            raise UserError(f"{who}: tasks: {text!r} is none of NAME, NAME=WEIGHT, NAME=FIRST:LAST") from None
        if not all(0 <= number < math.inf for number in weight) or not any(weight):
            raise UserError(f"{who}: tasks: the weight of {name!r} is not above 0 and finite")
        tasks[name] = weight
    return tasks


def find_heads(
    model: ir.Model,
    labels: Labels,
    who: str,
    *,
    tasks: Mapping[str, Weight],
    weight: Weight = (1.0, 1.0),
    output: str = "",
    kind: Kind = "auto",
    smoothing: float = 0.0,
) -> list[Head]:
    """Return the outputs that are trained on labels: each that has some of its own, and the one that the others fit.

    Args:
        model: shapes inferred.
        labels: class numbers, one-hot rows, or targets.
        who: the pass, for messages.
        tasks: weights of outputs; what is not named does not count, but where none is all do.
        weight: of all of them.
        output: name of the output that the labels under the empty name are for; the first that fits for none.
        kind: classes, values, or by the type and shape of the labels.
        smoothing: of classes.

    Raises:
        UserError: no output fits, or one that is named has no labels.
    """
    options: dict[str, Any] = {"kind": kind, "smoothing": smoothing}
    counted = tuple(tasks) or tuple(value.name or "" for value in float_outputs(model))
    if output and tasks and output not in tasks:
        raise UserError(f"{who}: output={output} is not among the tasks")
    own = [name for name in labels if name and name in counted]
    heads: dict[str, Head] = {}
    if "" in labels:  # it is for an output that has none of its own, if there is one
        free = tuple(name for name in counted if name not in own) or counted
        head = label_head(model, labels[""], who, output=output, among=free, **options)
        heads[head.output] = head
    for name in own:
        if name not in heads:
            heads[name] = label_head(model, labels[name], who, output=name, column=f"labels.{name}", **options)
    bare = [name for name in tasks if name not in heads]
    if bare:
        raise UserError(f"{who}: tasks: {bare[0]!r} has no labels; give an array of its name")
    return [
        replace(head, loss=replace(head.loss, weight=product(weight, tasks.get(head.output, (1.0, 1.0)))))
        for head in heads.values()
    ]


def product(first: Weight, second: Weight) -> Weight:
    """Return the weight of a part of a part."""
    return first[0] * second[0], first[1] * second[1]


def label_head(
    model: ir.Model,
    labels: Array,
    who: str,
    *,
    output: str = "",
    among: Sequence[str] = (),
    column: str = LABELS,
    kind: Kind = "auto",
    smoothing: float = 0.0,
) -> Head:
    """Return the output that labels are for.

    Args:
        model: shapes inferred.
        labels: [S, ...]; class numbers, one-hot rows, or targets.
        who: the pass, for messages.
        output: its name; the one that fits for none.
        among: names of those that may be; all for none.
        column: what the loss is to call them.
        kind: classes, values, or by the type and shape of the labels.
        smoothing: of classes.

    Raises:
        UserError: no output fits.
    """
    outputs = [v for v in float_outputs(model) if v.name == output or (not output and (not among or v.name in among))]
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
            hard = HardLabels(output=end.value, axis=end.axis, smoothing=smoothing, labels=column)
            return Head(end.output, hard, column, _checked(classes, dims, end, who), class_axis(dims, end.axis))
        targets = _as_targets(labels, dims) if kind == "values" or (kind == "auto" and not whole) else None
        if targets is not None:
            return Head(end.output, Regression(output=end.output, targets=column), column, targets, -1)
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
    student: ir.Model,
    teacher: ir.Model,
    said: dict[str, Array],
    *,
    temperature: float,
    weight: Weight,
    who: str,
    tasks: Mapping[str, Weight],
) -> list[Loss]:
    """Return a loss for each output against the teacher's: soft labels for class scores, squared errors otherwise.

    A squared error is measured in the teacher's variance, so that outputs of other units weigh alike.

    Args:
        student, teacher: shapes inferred.
        said: what the teacher gives for some samples, by output.
        temperature: of soft labels.
        weight: of all of them together.
        who: the pass, for messages.
        tasks: weights of outputs; what is not named does not count, but where none is all weigh alike.

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
    alike = (1 / len(pairs), 1 / len(pairs))
    for value, other in pairs:
        if tasks and value.name not in tasks:
            continue
        share = product(weight, tasks.get(value.name or "", alike))
        end, far = find_end(value), find_end(other)
        if _is_scores(said[other.name or ""], end):
            named: dict[str, Any] = {"output": end.value, "teacher": far.value, "axis": end.axis}
            if (end.value == end.output) != (far.value == far.output):  # one gives scores, the other probabilities
                named |= {"output": end.output, "teacher": far.output}
            losses.append(SoftLabels(**named, temperature=temperature, weight=share))
        else:
            variance = max(float(np.var(said[other.name or ""])), _LEAST_VARIANCE)
            share = product(share, (1 / variance, 1 / variance))
            losses.append(Regression(output=value.name or "", teacher=other.name or "", weight=share))
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
