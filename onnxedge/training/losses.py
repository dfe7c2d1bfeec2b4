"""What a student is trained for: terms of a loss, each a few standard operators that end in one number."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from onnxedge.errors import UserError
from onnxedge.training.tail import Dims, Tail, shape_of

_TINY = 1e-24  #: added to a squared norm, so that a feature that is 0 everywhere has a gradient, of 0


@dataclass(frozen=True, kw_only=True)
class Loss:
    """One term of the loss, on one value of the student.

    Attributes:
        output: name of the value: an output, or one between nodes.
        weight: factor in the sum; two for the first step and the last, with a line between.
        axis: of the classes or channels; None for 1 where the value has four axes or more, else the last.
    """

    output: str
    weight: float | tuple[float, float] = 1.0
    axis: int | None = None

    def check(self) -> None:
        """Refuse options out of range.

        Raises:
            UserError: with the reason.
        """
        if not all(map(math.isfinite, self.weights)):
            raise UserError(f"loss: weight {self.weight} of {self.output!r} is no finite number")

    @property
    def weights(self) -> tuple[float, float]:
        """Factors in the sum at the first step and at the last."""
        return self.weight if isinstance(self.weight, tuple) else (self.weight, self.weight)

    def build(self, tail: Tail, value: ir.Value) -> ir.Value:
        """Put the term behind the student and return its value, a scalar."""
        raise NotImplementedError

    def class_axis(self, dims: Dims) -> int:
        """Return the axis of the classes or channels, from 0.

        Raises:
            UserError: the value has no such axis, or its size there is not known.
        """
        rank = len(dims)
        axis = self.axis if self.axis is not None else 1 if rank > 3 else -1
        if rank < 2 or not -rank <= axis < rank or axis % rank == 0:
            raise UserError(f"loss: value {self.output!r} has {rank} axes; none behind the batch is axis {axis}")
        if not isinstance(dims[axis], int):
            raise UserError(f"loss: the size of axis {axis} of value {self.output!r} is not known")
        return axis % rank


@dataclass(frozen=True, kw_only=True)
class SoftLabels(Loss):
    """Kullback-Leibler divergence from the teacher's classes to the student's, at a temperature.

    ``T^2 mean(sum_c p_c (log p_c - log q_c))`` with ``p = softmax(teacher / T)`` and ``q = softmax(student / T)``; the
    mean is over samples and places. In float32, right to about 1e-8 T^2.
    Source: Hinton et al. 2015, arXiv:1503.02531, section 2.

    Attributes:
        teacher: name of the teacher's logits; the student's own name where empty.
        temperature: T, above 0.
    """

    teacher: str = ""
    temperature: float = 4.0

    def check(self) -> None:
        """Refuse a temperature that is none."""
        super().check()
        if not 0 < self.temperature < math.inf:
            raise UserError(f"loss: temperature {self.temperature} is not above 0 and finite")

    def build(self, tail: Tail, value: ir.Value) -> ir.Value:
        """Divide both by the temperature, and compare."""
        axis = self.class_axis(shape_of(value, "the student"))
        teacher, cool = _same_shape(tail, value, self.teacher or self.output), 1 / self.temperature
        wanted = tail.put("Mul", teacher, cool)
        apart = tail.put(
            "Sub",
            tail.put("LogSoftmax", wanted, axis=axis),
            tail.put("LogSoftmax", tail.put("Mul", value, cool), axis=axis),
        )
        lost = tail.total(tail.put("Mul", tail.put("Softmax", wanted, axis=axis), apart), [axis])
        return tail.put("Mul", tail.mean(lost), self.temperature**2)


@dataclass(frozen=True, kw_only=True)
class HardLabels(Loss):
    """Cross-entropy with labels: ``mean(-log q_label)`` over the samples and places that have one.

    A negative label is none: its place does not count, as -1 and -100 are meant elsewhere; one too large fails the run.
    With ``smoothing`` s the wanted classes are ``(1 - s)`` the label and ``s`` all alike.
    Source: Szegedy et al. 2016, arXiv:1512.00567, section 7.

    Attributes:
        labels: column of the data, int64, of the value's shape without the axis of classes.
        smoothing: 0..1.
    """

    labels: str = "labels"
    smoothing: float = 0.0

    def check(self) -> None:
        """Refuse a share that is none."""
        super().check()
        if not 0 <= self.smoothing <= 1:
            raise UserError(f"loss: smoothing {self.smoothing} is not within 0..1")

    def build(self, tail: Tail, value: ir.Value) -> ir.Value:
        """Pick the log-probability of each label."""
        dims = shape_of(value, "the student")
        axis = self.class_axis(dims)
        count = float(int(dims[axis]))  # type: ignore[arg-type]
        labels = tail.column(self.labels, [d for i, d in enumerate(dims) if i != axis], ir.DataType.INT64)
        places = tail.put("Unsqueeze", labels, np.array([axis], np.int64))
        zero = np.array(0, np.int64)
        counts = tail.put("GreaterOrEqual", places, zero)
        log = tail.put("LogSoftmax", value, axis=axis)
        picked = tail.put("GatherElements", log, tail.put("Where", counts, places, zero), axis=axis)
        if self.smoothing:
            alike = tail.put("Mul", tail.total(log, [axis]), self.smoothing / count)
            picked = tail.put("Add", tail.put("Mul", picked, 1 - self.smoothing), alike)
        counted = tail.put("Cast", counts, to=int(ir.DataType.FLOAT))
        lost = tail.put("ReduceSum", tail.put("Mul", picked, counted), keepdims=0)
        many = tail.put("Max", tail.put("ReduceSum", counted, keepdims=0), 1.0)
        return tail.put("Neg", tail.put("Div", lost, many))


@dataclass(frozen=True, kw_only=True)
class Regression(Loss):
    """Mean squared error: ``mean((student - target)^2)`` over all elements.

    Attributes:
        targets: column of the data, of the value's shape; not read where ``teacher`` is given.
        teacher: name of the teacher's value that is the target.
    """

    targets: str = "targets"
    teacher: str = ""

    def build(self, tail: Tail, value: ir.Value) -> ir.Value:
        """Compare with the column or with the teacher."""
        dims = shape_of(value, "the student")
        if self.teacher:
            return _mean_square(tail, value, _same_shape(tail, value, self.teacher))
        return _mean_square(tail, value, tail.column(self.targets, dims, ir.DataType.FLOAT))


@dataclass(frozen=True, kw_only=True)
class Feature(Loss):
    """Distance of a value inside the student from one inside the teacher.

    ``l2``: ``mean((a(student) - teacher)^2)``, with an adapter a of own weights where the widths differ (Romero et al.
    2015, arXiv:1412.6550, section 2.2). ``attention``: the same mean of what is left of both when squares are summed
    over the channels and divided by their norm over all places; widths may differ (Zagoruyko and Komodakis 2017,
    arXiv:1612.03928, section 3.1).

    Attributes:
        teacher: name of the teacher's value; the student's own name where empty.
        kind: how they are compared.
    """

    teacher: str = ""
    kind: Literal["l2", "attention"] = "l2"

    def check(self) -> None:
        """Refuse a kind that is none."""
        super().check()
        if self.kind not in ("l2", "attention"):
            raise UserError(f"loss: kind {self.kind!r} of {self.output!r} is neither 'l2' nor 'attention'")

    def build(self, tail: Tail, value: ir.Value) -> ir.Value:
        """Compare values of one width, or maps of attention."""
        name, dims = self.teacher or self.output, shape_of(value, "the student")
        axis = self.class_axis(dims)
        theirs = tail.teacher_shape(name)
        _check_fit(self.output, name, dims, theirs or dims, axis)
        wanted = [*dims]
        wanted[axis] = width = (theirs or dims)[axis]
        if not isinstance(width, int):
            raise UserError(f"loss: the size of axis {axis} of value {name!r} of the teacher is not known")
        target = tail.teacher(name, wanted)
        if self.kind == "attention":
            if len(dims) < 3:
                raise UserError(f"loss: value {self.output!r} has channels alone, no attention; use 'l2'")
            maps = (self._attention(tail, feature, axis, len(dims)) for feature in (value, target))
            return _mean_square(tail, *maps)
        if width != dims[axis]:
            if axis != 1 and axis != len(dims) - 1:
                raise UserError(f"loss: no adapter along axis {axis} of {self.output!r}; it must be 1 or the last")
            value = tail.adapter(value, axis, len(dims), (int(dims[axis]), width))  # type: ignore[arg-type]
        return _mean_square(tail, value, target)

    @staticmethod
    def _attention(tail: Tail, feature: ir.Value, axis: int, rank: int) -> ir.Value:
        squares = tail.total(tail.put("Mul", feature, feature), [axis])
        norm = tail.total(tail.put("Mul", squares, squares), range(1, rank))
        return tail.put("Div", squares, tail.put("Sqrt", tail.put("Add", norm, _TINY)))


def distillation(
    output: str, *, teacher: str = "", labels: str = "labels", temperature: float = 4.0, alpha: float = 0.9
) -> tuple[Loss, ...]:
    """Return ``alpha`` times soft labels and ``1 - alpha`` times hard ones; a part of weight 0 is left out.

    Raises:
        UserError: alpha is not within 0..1.
    """
    if not 0 <= alpha <= 1:
        raise UserError(f"loss: alpha {alpha} is not within 0..1")
    soft = SoftLabels(output=output, teacher=teacher, temperature=temperature, weight=alpha)
    hard = HardLabels(output=output, labels=labels, weight=1 - alpha)
    return tuple(loss for loss in (soft, hard) if loss.weight)


def _mean_square(tail: Tail, value: ir.Value, target: ir.Value) -> ir.Value:
    apart = tail.put("Sub", value, target)
    return tail.mean(tail.put("Mul", apart, apart))


def _same_shape(tail: Tail, value: ir.Value, teacher: str) -> ir.Value:
    """Return the input for a teacher's value that has the shape of the student's."""
    dims, theirs = shape_of(value, "the student"), tail.teacher_shape(teacher)
    _check_fit(value.name or "?", teacher, dims, theirs or dims, None)
    return tail.teacher(teacher, dims)


def _check_fit(student: str, teacher: str, dims: Dims, theirs: Dims, free: int | None) -> None:
    """Refuse shapes that differ along another axis than ``free`` and the batch."""
    pairs = zip(dims, theirs, strict=False)
    sizes = [
        i
        for i, (a, b) in enumerate(pairs)
        if i not in (0, free) and isinstance(a, int) and isinstance(b, int) and a != b
    ]
    if len(dims) != len(theirs) or sizes:
        shown = ["x".join(str(d or "?") for d in shape) for shape in (dims, theirs)]
        raise UserError(
            f"loss: value {student!r} of the student is {shown[0]}, {teacher!r} of the teacher {shown[1]}; "
            "choose values of one size"
        )
