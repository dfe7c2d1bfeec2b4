"""What an Einsum says, and what one of one or two operands computes in operators that have kernels of their own."""

from __future__ import annotations

import math
import string
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxedge.api import Array, constant_tensor, graph_of, insert_before, new_initializer
from onnxedge_passes.cleanup.worklist import Refused, node_opset

_FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_SHARED_BYTES = 4 << 10  #: a constant of more than this that others read too is not stored in another order


Dim = int | str | None


@dataclass(frozen=True)
class Equation:
    """Hold the indices of the operands and of the result, each a letter; ``...`` is letters of its own."""

    terms: tuple[str, ...]
    result: str


def read(node: ir.Node) -> tuple[Equation, list[list[Dim]]] | Refused:
    """Return the equation of an Einsum and the sizes of its operands, or why it is left as it is."""
    shapes = [value.shape if value is not None else None for value in node.inputs]
    if any(shape is None for shape in shapes) or node.outputs[0].dtype not in _FLOATS:
        return Refused("Einsum left as it is: a rank is not known, or it is not of floats")
    dims: list[list[Dim]] = [
        [d if isinstance(d, int) else d.value for d in shape] for shape in shapes if shape is not None
    ]
    equation = parse(node.attributes.get_string("equation", "") or "", [len(d) for d in dims])
    if equation is None:
        return Refused("Einsum left as it is: an index is repeated in one term")
    return equation, dims


def sizes_of(terms: Sequence[str], dims: Sequence[Sequence[Dim]]) -> dict[str, Dim]:
    """Return the size of each index: of two the one that is not 1, None where it is not known or they differ."""
    sizes: dict[str, Dim] = {}
    for term, own in zip(terms, dims, strict=True):
        for letter, dim in zip(term, own, strict=True):
            have = sizes.get(letter, 1)
            sizes[letter] = dim if have == 1 else have if dim in (1, have) else None
    return sizes


def parse(equation: str, ranks: Sequence[int]) -> Equation | None:
    """Read an equation for operands of known ranks; None where it is not one, or an index is repeated in a term."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(ranks):
        return None
    used = set(equation)
    spare = [letter for letter in string.ascii_letters if letter not in used]
    widths = [
        rank - len(term.replace("...", "")) if "..." in term else 0 for term, rank in zip(terms, ranks, strict=True)
    ]
    if min(widths) < 0 or max(widths) > len(spare):
        return None
    dots = "".join(spare[: max(widths)])
    full = [term.replace("...", dots[len(dots) - width :]) for term, width in zip(terms, widths, strict=True)]
    if any(not term.isalpha() and term for term in full) or any(len(set(term)) < len(term) for term in full):
        return None
    if any(len(term) != rank for term, rank in zip(full, ranks, strict=True)):
        return None
    if arrow:
        result = right.replace("...", dots)
    else:
        letters = "".join(full)
        result = dots + "".join(sorted(x for x in set(letters) - set(dots) if letters.count(x) == 1))
    valid = len(set(result)) == len(result) and set(dots) <= set(result) <= set("".join(full))
    return Equation(tuple(full), result) if valid else None


@dataclass
class Operand:
    """Hold a value and the letter of each of its axes; several letters on one axis where axes were merged."""

    value: ir.Value
    axes: list[str]


@dataclass
class Emitter:
    """Put nodes before an Einsum; a constant is rearranged at once.

    Attributes:
        node: the Einsum.
        sizes: letter -> dimension, where it is known.
    """

    node: ir.Node
    sizes: dict[str, int | None]
    count: int = field(default=0)

    def sum_away(self, operand: Operand, letters: str) -> Operand:
        """Sum over the axes of some letters."""
        if not letters:
            return operand
        axes = [operand.axes.index(letter) for letter in letters]
        kept = [axis for axis in operand.axes if axis not in letters]
        if node_opset(self.node) >= 13:
            value = self._put("ReduceSum", [operand.value, self._integers(axes)], kept, keepdims=0)
        else:
            value = self._put("ReduceSum", [operand.value], kept, axes=axes, keepdims=0)
        return Operand(value, kept)

    def arrange(self, operand: Operand, order: Sequence[str]) -> Operand:
        """Transpose to an order of axes."""
        perm = [operand.axes.index(axis) for axis in order]
        if perm == list(range(len(perm))):
            return operand
        array = self._array(operand.value)
        if array is not None:
            return Operand(self._constant(array.transpose(perm)), list(order))
        return Operand(self._put("Transpose", [operand.value], order, perm=perm), list(order))

    def spread(self, operand: Operand, order: Sequence[str]) -> Operand:
        """Insert axes of size 1 for the letters that an operand has not, but for leading ones, which broadcast adds."""
        first = next((i for i, axis in enumerate(order) if axis in operand.axes), len(order))
        missing = [i for i, axis in enumerate(order) if axis not in operand.axes and i > first]
        if not missing:
            return operand
        shifted = [i - first for i in missing]
        axes = list(order[first:])
        array = self._array(operand.value)
        if array is not None:
            return Operand(self._constant(np.expand_dims(array, tuple(shifted))), axes)
        if node_opset(self.node) >= 13:
            value = self._put("Unsqueeze", [operand.value, self._integers(shifted)], axes)
        else:
            value = self._put("Unsqueeze", [operand.value], axes, axes=shifted)
        return Operand(value, axes)

    def regroup(self, operand: Operand, axes: list[str]) -> Operand:
        """Merge or split axes; letters stay in order, sizes of what changes must be known."""
        if axes == operand.axes:
            return operand
        same = 0
        while same < min(len(axes), len(operand.axes)) and axes[same] == operand.axes[same]:
            same += 1
        shape = [0] * same + [math.prod(self.sizes.get(letter) or 1 for letter in axis) for axis in axes[same:]]
        array = self._array(operand.value)
        if array is not None:
            return Operand(self._constant(array.reshape([*array.shape[:same], *shape[same:]])), axes)
        return Operand(self._put("Reshape", [operand.value, self._integers(shape)], axes), axes)

    def multiply(self, left: Operand, right: Operand, order: list[str]) -> Operand:
        """Multiply element by element; both broadcast to an order of axes."""
        return Operand(self._put("Mul", [left.value, right.value], order), order)

    def matmul(self, left: Operand, right: Operand, order: list[str]) -> Operand:
        """Multiply matrices."""
        return Operand(self._put("MatMul", [left.value, right.value], order), order)

    def _put(self, op_type: str, inputs: list[ir.Value], order: Sequence[str], /, **attributes: object) -> ir.Value:
        value = insert_before(self.node, op_type, inputs, attributes=attributes, name=self.node.name).outputs[0]
        dims = [[self.sizes.get(letter) for letter in axis] for axis in order]
        value.type = self.node.outputs[0].type
        value.shape = ir.Shape([None if None in d else math.prod(x or 0 for x in d) for d in dims])
        self.count += 1
        return value

    def _array(self, value: ir.Value) -> Array | None:
        tensor = constant_tensor(value)
        if tensor is None or (len(value.uses()) > 1 and tensor.nbytes > _SHARED_BYTES):
            return None
        return tensor.numpy()

    def _constant(self, array: Array) -> ir.Value:
        return new_initializer(graph_of(self.node), array, f"{self.node.name or 'einsum'}_weight")

    def _integers(self, numbers: list[int]) -> ir.Value:
        return new_initializer(graph_of(self.node), np.array(numbers, np.int64), f"{self.node.name or 'einsum'}_shape")


@dataclass(frozen=True)
class Product:
    """Say what each index of two operands is for: ``left`` and ``right`` are in the order of the multiplication."""

    left: str
    right: str
    result: str

    @property
    def shared(self) -> str:
        """Return the indices of a batch of matrices."""
        return "".join(x for x in self.result if x in self.left and x in self.right)

    @property
    def summed(self) -> str:
        """Return the indices that are summed over."""
        return "".join(x for x in self.left if x in self.right and x not in self.result)

    @property
    def rows(self) -> str:
        """Return the indices of the left operand alone."""
        return "".join(x for x in self.result if x in self.left and x not in self.right)

    @property
    def columns(self) -> str:
        """Return the indices of the right operand alone."""
        return "".join(x for x in self.result if x in self.right and x not in self.left)

    @property
    def is_matmul(self) -> bool:
        """Tell whether matrices are multiplied: an index is summed over, and an operand has one of its own."""
        return bool(self.summed and (self.rows or self.columns))

    @property
    def left_axes(self) -> list[str]:
        """Return the axes of the left matrices; with no batch its own indices stay apart."""
        return [*self.shared, *([self.rows] if self.shared else self.rows), self.summed]

    @property
    def right_axes(self) -> list[str]:
        """Return the axes of the right matrices."""
        return [*self.shared, self.summed, *([self.columns] if self.shared or self.columns else [])]

    @property
    def made_axes(self) -> list[str]:
        """Return the axes of the product."""
        return [*self.left_axes[:-1], *self.right_axes[len(self.shared) + 1 :]]

    @property
    def needed(self) -> str:
        """Return the indices whose sizes must be known for the Reshapes that merge and split axes."""
        needed = self.summed + self.columns if len(self.summed) > 1 else ""
        needed += self.columns if len(self.columns) > 1 else ""
        return needed + (self.rows + self.summed + self.columns if self.shared and len(self.rows) != 1 else "")

    @property
    def cost(self) -> tuple[int, int]:
        """Count the sizes that must be known, and the operands and results that must be rearranged."""
        orders = (self.shared + self.rows + self.summed, self.shared + self.summed + self.columns)
        pairs = ((orders[0], self.left), (orders[1], self.right), (self.shared + self.rows + self.columns, self.result))
        return len(self.needed), sum(a != b for a, b in pairs)
