"""Einsum as multiplications, sums and transpositions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxedge.api import Accuracy, Context, is_constant, replace_uses
from onnxedge_passes.cleanup.worklist import Outcome, Refused, Rule, retire
from onnxedge_passes.fuse.linear.einsum import Dim, Emitter, Operand, Product, read, sizes_of


@dataclass(frozen=True, kw_only=True)
class EinsumToMatmul(Rule):
    """Turn an Einsum of one or two operands into MatMul, Mul, ReduceSum and Transpose.

    Before: ``y = Einsum<equation="bhtd,bhsd->bhts">(q, k)``; ``y = Einsum<equation="btd,dhk->bthk">(x, W)``
    After:  ``y = MatMul(q, Transpose(k))``; ``y = Reshape(MatMul(x, Reshape(W)), [0, 0, h, k])``

    Constant operands are rearranged at once. ONNX Runtime 1.31 on the CPU takes 28 us instead of 36 us for the first,
    79 us instead of 89 us for the second (64 tokens, 8 heads, 32 features), 19 us instead of 1.2 ms for a product of
    elements (``bij,bij->bij``).
    Left alone: more than two operands, before ``order-einsum``; an index twice in one term; a summed dimension that
    is not known to be equal in both, since one of 1 would be broadcast; merged dimensions of unknown size; ranks that
    are not known; integers.
    accuracy: rounding. Source: ONNX Einsum, opset 12.
    """

    name: ClassVar[str] = "einsum-to-matmul"
    accuracy: ClassVar[Accuracy] = "rounding"
    roots: ClassVar[tuple[str, ...]] = ("Einsum",)

    def rewrite(self, node: ir.Node, context: Context) -> Outcome:
        """Read the equation and emit what it says."""
        if not 1 <= len(node.inputs) <= 2:
            return None  # ``order-einsum`` takes them two by two
        if all(is_constant(value) for value in node.inputs):
            return None
        found = read(node)
        if isinstance(found, Refused):
            return found
        equation, dims = found
        sizes = sizes_of(equation.terms, dims)
        emitter = Emitter(node, {letter: size if isinstance(size, int) else None for letter, size in sizes.items()})
        pairs = zip(node.inputs, equation.terms, strict=True)
        operands = [Operand(value, list(term)) for value, term in pairs if value is not None]
        if len(operands) == 1:
            result = _one(emitter, operands[0], equation.result)
        else:
            made = _two(emitter, operands, equation.result, dims, sizes)
            if isinstance(made, Refused):
                return made
            result = made
        if not emitter.count:
            return None
        replace_uses(node.outputs[0], result.value)
        retire(node)
        return result.value


def _one(emitter: Emitter, operand: Operand, result: str) -> Operand:
    summed = "".join(axis for axis in operand.axes if axis not in result)
    return emitter.arrange(emitter.sum_away(operand, summed), list(result))


def _two(
    emitter: Emitter, operands: list[Operand], result: str, dims: list[list[Dim]], sizes: dict[str, Dim]
) -> Operand | Refused:
    terms = ["".join(operand.axes) for operand in operands]
    alone = ["".join(x for x in term if x not in terms[1 - i] + result) for i, term in enumerate(terms)]
    kept = ["".join(x for x in term if x not in alone[i]) for i, term in enumerate(terms)]
    of = [dict(zip(term, own, strict=True)) for term, own in zip(terms, dims, strict=True)]
    candidates = [(Product(kept[0], kept[1], result), (0, 1)), (Product(kept[1], kept[0], result), (1, 0))]
    product, (left, right) = min(candidates, key=lambda candidate: candidate[0].cost)
    if product.is_matmul and any(of[0][x] is None or of[0][x] != of[1][x] for x in product.summed):
        return Refused("Einsum left as it is: a summed dimension may be broadcast")
    if product.is_matmul and any(not isinstance(sizes[x], int) or sizes[x] == 0 for x in product.needed):
        return Refused("Einsum left as it is: the sizes of merged dimensions are not known")
    first, second = (emitter.sum_away(operands[i], alone[i]) for i in (left, right))
    return (_matrices if product.is_matmul else _elements)(emitter, first, second, product)


def _elements(emitter: Emitter, left: Operand, right: Operand, product: Product) -> Operand:
    order = list(product.result + product.summed)
    sides = []
    for operand in (left, right):
        own = emitter.arrange(operand, [axis for axis in order if axis in operand.axes])
        sides.append(emitter.spread(own, order))
    return emitter.sum_away(emitter.multiply(sides[0], sides[1], order), product.summed)


def _matrices(emitter: Emitter, left: Operand, right: Operand, product: Product) -> Operand:
    first = emitter.arrange(left, [*product.shared, *product.rows, *product.summed])
    second = emitter.arrange(right, [*product.shared, *product.summed, *product.columns])
    first, second = emitter.regroup(first, product.left_axes), emitter.regroup(second, product.right_axes)
    made = emitter.matmul(first, second, product.made_axes)
    split = emitter.regroup(made, [*product.shared, *product.rows, *product.columns])
    return emitter.arrange(split, list(product.result))
