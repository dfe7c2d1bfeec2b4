"""Einsum of many operands as a chain of products of two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxedge.api import Accuracy, Context, insert_before, is_constant, replace_uses
from onnxedge_passes.cleanup.worklist import Outcome, Refused, Rule, retire
from onnxedge_passes.fuse.linear.einsum import Dim, Equation, read, sizes_of

_UNKNOWN = 32  #: what a size that is not known counts as
_OPTIMAL = 6  #: operands up to which all orders are tried


@dataclass(frozen=True, kw_only=True)
class OrderEinsum(Rule):
    """Multiply the operands of an Einsum two by two, in the order that takes the fewest operations.

    Before: ``y = Einsum<equation="ij,jk,kl->il">(a, b, c)`` with ``a: [64, 512]``, ``b: [512, 64]``, ``c: [64, 8]``
    After:  ``y = Einsum<equation="ij,jl->il">(a, Einsum<equation="jk,kl->jl">(b, c))``

    ONNX Runtime takes them from left to right. ``einsum-to-matmul`` makes MatMul, Mul and ReduceSum of the parts.
    Left alone: an index twice in one term; ranks that are not known; integers, which overflow in another order.
    accuracy: rounding. Source: numpy.einsum_path; ONNX Einsum, opset 12.
    """

    name: ClassVar[str] = "order-einsum"
    accuracy: ClassVar[Accuracy] = "rounding"
    roots: ClassVar[tuple[str, ...]] = ("Einsum",)

    def rewrite(self, node: ir.Node, context: Context) -> Outcome:
        """Ask for the order and emit a product for each step."""
        if len(node.inputs) < 3 or all(is_constant(value) for value in node.inputs):
            return None
        found = read(node)
        if isinstance(found, Refused):
            return found
        equation, dims = found
        operands = [value for value in node.inputs if value is not None]
        steps = _order(equation, dims)
        if steps is None:
            return Refused("Einsum left as it is: its sizes do not fit together")
        terms = [(value, term, own) for value, term, own in zip(operands, equation.terms, dims, strict=True)]
        for index, step in enumerate(steps):
            right, left = (terms.pop(place) for place in sorted(step, reverse=True))
            last = index == len(steps) - 1
            others = equation.result + "".join(term for _, term, _ in terms)
            result = equation.result if last else _kept(left[1], right[1], others)
            sizes = sizes_of((left[1], right[1]), (left[2], right[2]))
            made = insert_before(
                node,
                "Einsum",
                [left[0], right[0]],
                attributes={"equation": f"{left[1]},{right[1]}->{result}"},
                name=node.name,
            ).outputs[0]
            own = [sizes[letter] for letter in result]
            made.type, made.shape = node.outputs[0].type, node.outputs[0].shape if last else ir.Shape(own)
            terms.append((made, result, own))
        replace_uses(node.outputs[0], terms[0][0])
        retire(node)
        return terms[0][0]


def _order(equation: Equation, dims: list[list[Dim]]) -> list[tuple[int, ...]] | None:
    """Return which two of the terms left to multiply at each step; the product goes to the end."""
    sizes = sizes_of(equation.terms, dims)
    number = {letter: size if isinstance(size, int) else _UNKNOWN for letter, size in sizes.items()}
    views = [np.broadcast_to(np.float32(0), [number[letter] for letter in term]) for term in equation.terms]
    method = "optimal" if len(views) <= _OPTIMAL else "greedy"
    try:
        path = np.einsum_path(f"{','.join(equation.terms)}->{equation.result}", *views, optimize=(method, 2**62))[0]
    except (ValueError, MemoryError):
        return None
    steps = [tuple(step) for step in path[1:] if not isinstance(step, str)]
    if all(len(step) == 2 for step in steps):
        return steps
    return [(0, 1), *((0, place) for place in range(len(views) - 2, 0, -1))]  # all orders are alike


def _kept(left: str, right: str, others: str) -> str:
    """Return the indices of a product that are needed later: those of both, of the left, of the right."""
    both = [x for x in left if x in right and x in others]
    alone = [x for x in left if x not in right and x in others] + [x for x in right if x not in left and x in others]
    return "".join(both + alone)
