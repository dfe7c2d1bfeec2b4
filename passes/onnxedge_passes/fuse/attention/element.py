"""Elements of a tensor as functions of their place: sums of indices and sizes, and choices between two numbers.

Source: own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxedge.api import Array
from onnxedge_passes.fuse.attention.shapes import Size

#: key -> factor; a key is an axis counted from the last one, -1, or 0 for the number 1, or a size
Sum = Mapping[Size, int]


@dataclass(frozen=True)
class Integer:
    """Be a sum of indices and sizes."""

    terms: Sum


@dataclass(frozen=True)
class Choice:
    """Be one number where a condition holds, another elsewhere.

    Attributes:
        terms: a sum that is at most 0 where the condition holds.
        then, other: numbers; 1 and 0 for the condition itself.
    """

    terms: Sum
    then: float = 1.0
    other: float = 0.0

    @property
    def number(self) -> float | None:
        """Return the one number that all elements are, None where there are two."""
        if self.then == self.other:
            return self.then
        if set(self.terms) <= {0}:
            return self.then if self.terms.get(0, 0) <= 0 else self.other
        return None


Element = Integer | Choice


@dataclass(frozen=True)
class Placed:
    """Hold the size of each axis of a value and what its elements are."""

    dims: list[Size]
    element: Element


def plus(left: Sum, right: Sum, factor: int = 1) -> Sum:
    """Return ``left + factor * right``, without terms of 0."""
    total = {key: left.get(key, 0) + factor * right.get(key, 0) for key in (*left, *right)}
    return {key: number for key, number in total.items() if number}


def broadcast(parts: Sequence[Placed]) -> list[Size] | None:
    """Return the sizes of what several make together, None where one with an index might be repeated."""
    rank = max(len(part.dims) for part in parts)
    padded = [[1] * (rank - len(part.dims)) + part.dims for part in parts]
    out: list[Size] = []
    for axis in range(rank):
        other = {dims[axis] for dims in padded} - {1}
        if len(other) > 1:
            return None
        out.append(other.pop() if other else 1)
    return out


def sum_of(size: Size) -> Sum:
    """Return a size as a sum."""
    if isinstance(size, frozenset):
        return dict(size)
    return plus({}, {0: size} if isinstance(size, int) else {size: 1})


def size_of(terms: Sum) -> Size:
    """Return a sum as what stands for one size."""
    if set(terms) <= {0}:
        return terms.get(0, 0)
    return next(iter(terms)) if list(terms.values()) == [1] else frozenset(terms.items())


def of_array(array: Array) -> Placed | None:
    dims: list[Size] = list(array.shape)
    if array.size == 0 or array.dtype.kind not in "biuf":
        return None
    first = array.flat[0]
    if (array == first).all():
        number = first.item()
        return Placed(dims, Integer(sum_of(int(number))) if array.dtype.kind in "iu" else Choice({}, number, number))
    if array.dtype.kind in "iu":
        line = array.reshape(-1)
        axis = [a for a, size in enumerate(array.shape) if size > 1]
        step = int(line[1]) - int(line[0])
        is_even = len(axis) == 1 and (np.diff(line.astype(np.int64)) == step).all()
        return Placed(dims, Integer(plus({axis[0] - array.ndim: step}, sum_of(int(first))))) if is_even else None
    if array.ndim < 2 or (array != array.reshape(-1, *array.shape[-2:])[0]).any():
        return None
    matrix = array.reshape(-1, *array.shape[-2:])[0]
    low, high = matrix[-1, 0].item(), matrix[0, -1].item()
    offset = int(np.count_nonzero(matrix[0] == low)) - 1
    rows, columns = np.indices(matrix.shape, sparse=True)
    triangle = np.where(columns - rows <= offset, matrix[-1, 0], matrix[0, -1])
    terms = plus({-1: 1, -2: -1}, sum_of(offset), -1)
    return Placed(dims, Choice(terms, low, high)) if (triangle == matrix).all() else None


def inverted(choice: Choice) -> Choice:
    """Return the same choice with the opposite condition: of integers, not ``s <= 0`` is ``1 - s <= 0``."""
    return Choice(plus({0: 1}, choice.terms, -1), choice.other, choice.then)


def holds(element: Element) -> Choice | None:
    """Return where an element is not 0, as a condition."""
    if isinstance(element, Integer):
        return Choice(sum_of(int(not element.terms))) if set(element.terms) <= {0} else None
    if element.number is not None:
        return Choice(sum_of(int(not element.number)))
    if element.then and element.other:
        return Choice({})
    return Choice((element if element.then else inverted(element)).terms)


def given(element: Element, condition: Choice, is_met: bool) -> float | None:
    """Return the number that an element is where a condition holds, or where it does not."""
    if isinstance(element, Integer):
        return float(element.terms.get(0, 0)) if set(element.terms) <= {0} else None
    for same, met in ((condition, is_met), (inverted(condition), not is_met)):
        if element.terms == same.terms:
            return element.then if met else element.other
    return element.number


def moved(element: Element, places: Mapping[int, Sum]) -> Element:
    """Return an element with other sums in place of its indices.

    Args:
        element: of one tensor.
        places: axis, counted from the last one, -1 -> the index on it as a sum of another tensor's.
    """
    terms: Sum = {}
    for key, factor in element.terms.items():
        terms = plus(terms, places[key] if isinstance(key, int) and key < 0 else {key: 1}, factor)
    return Integer(terms) if isinstance(element, Integer) else Choice(terms, element.then, element.other)
