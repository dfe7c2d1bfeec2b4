"""Transposes around a Gemm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxedge.api import Accuracy, Context, insert_before, is_standard, replace_uses, sole_consumer
from onnxedge_passes.cleanup.worklist import Outcome, Refused, Rule, input_at, node_opset, retire

_FLAGS = ("transA", "transB")


@dataclass(frozen=True, kw_only=True)
class FoldGemmTranspose(Rule):
    """Let a Gemm read its matrices transposed, and write its product transposed.

    Before: ``y = Gemm(Transpose(x), W, b)``; ``y = Transpose(Gemm(a, b))``
    After:  ``y = Gemm<transA=1>(x, W, b)``; ``y = Gemm<transA=1, transB=1>(b, a)``

    Left alone: a product with a bias or with other readers, behind which a Transpose stays.
    accuracy: rounding. Source: ONNX Gemm, opset 7.
    """

    name: ClassVar[str] = "fold-gemm-transpose"
    accuracy: ClassVar[Accuracy] = "rounding"
    roots: ClassVar[tuple[str, ...]] = ("Gemm", "Transpose")

    def rewrite(self, node: ir.Node, context: Context) -> Outcome:
        """Look for a Transpose before a Gemm, or a Gemm before a Transpose."""
        return _read(node) if node.op_type == "Gemm" else _write(node)


def _read(gemm: ir.Node) -> Outcome:
    for index, flag in enumerate(_FLAGS):
        operand = gemm.inputs[index]
        turn = operand.producer() if operand is not None else None
        if turn is None or turn.op_type != "Transpose" or not is_standard(turn) or turn.graph is not gemm.graph:
            continue
        source = turn.inputs[0]
        if source is None or list(turn.attributes.get_ints("perm", (1, 0))) != [1, 0]:
            continue
        gemm.replace_input_with(index, source)
        gemm.attributes[flag] = ir.AttrInt64(flag, 1 - gemm.attributes.get_int(flag, 0))
        retire(turn)
        return gemm.outputs[0]
    return None


def _write(turn: ir.Node) -> Outcome:
    product = turn.inputs[0]
    gemm = product.producer() if product is not None else None
    if gemm is None or product is None or gemm.op_type != "Gemm" or not is_standard(gemm):
        return None
    if gemm.graph is not turn.graph or node_opset(turn) < 11:  # before, a Gemm has a third input
        return None
    if input_at(gemm, 2) is not None:
        return Refused("Transpose not folded into the Gemm: it has a bias")
    if sole_consumer(product) is not turn:
        return Refused("Transpose not folded into the Gemm: the product has other readers or is exported")
    attributes = {
        "alpha": gemm.attributes.get_float("alpha", 1.0),
        "transA": 1 - gemm.attributes.get_int("transB", 0),
        "transB": 1 - gemm.attributes.get_int("transA", 0),
    }
    made = insert_before(turn, "Gemm", gemm.inputs[1::-1], attributes=attributes, name=gemm.name, like=turn.outputs)
    replace_uses(turn.outputs[0], made.outputs[0])
    retire(turn)
    return made.outputs[0]
