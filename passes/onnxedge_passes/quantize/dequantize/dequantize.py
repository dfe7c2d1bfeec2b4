"""The pass: every integer that is made float again becomes the float that it stands for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxedge.api import (
    Accuracy,
    Array,
    Context,
    Pass,
    Result,
    constant,
    graph_of,
    graphs_of,
    insert_before,
    is_standard,
    new_initializer,
    remove_node,
    replace_uses,
    use_count,
)

from .dynamic import contrib, integer_product
from .floats import Floats, Saturation, kernel_of
from .steps import node_step

#: the runtime's own, with float data and integer weights
_FLOATING = (
    *("DynamicQuantizeLSTM", "DynamicQuantizeMatMul", "GatherBlockQuantized", "MatMulIntegerToFloat", "MatMulNBits"),
)
_DOMAINS = ("", "ai.onnx", "com.microsoft")
_INTEGER = ("QuantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger")


@dataclass(frozen=True, kw_only=True)
class Dequantize(Pass):
    """Remove quantization: the model computes in float again.

    Before: ``DQ(Q(x)) -> Conv(., DQ(W int8), DQ(b int32)) -> Q -> DQ``, or ``QLinearConv``, or a MatMulInteger
    behind a DynamicQuantizeLinear
    After:  ``Conv(x, W, b) -> Clip``

    Weights keep the values that their integers stand for; only the rounding of activations goes. The range of an
    activation's integers stays as a Clip (``saturation=keep``), since a Relu or Clip may have been left to it, unless
    what comes before lies within it anyway. ``saturation=zero`` keeps only a lower end of 0, as Relu: closer to the
    float model where ranges are calibrated ones that cut outliers off. ``drop`` keeps nothing. Pairs, constants behind
    a DequantizeLinear (with blocks, too), rounded weights, operators that move integers between Q and DQ, QLinearConv,
    QLinearMatMul and ONNX Runtime's QGemm, QLinearAdd and others, MatMulInteger and ConvInteger, DynamicQuantizeMatMul,
    MatMulIntegerToFloat, DynamicQuantizeLSTM, MatMulNBits and GatherBlockQuantized are known, in subgraphs and
    functions, too. The file grows to its float size.

    Left alone, with the reason: integers that come from outside or go there; a Q and DQ with different scales; scales
    that are computed at run time or can be overridden; activations with several scales; 8-bit floats; other operators
    on integers.
    accuracy: lossy. Source: ONNX operators QuantizeLinear and DequantizeLinear, opsets 10 to 25.
    """

    name: ClassVar[str] = "dequantize"
    accuracy: ClassVar[Accuracy] = "lossy"
    sets_form: ClassVar[bool] = True

    saturation: Saturation = "keep"  #: what stays of an activation's range: all, only that nothing is negative, nothing
    weights: bool = True  #: make constants float, too; without it they stay stored as integers

    def run(self, model: ir.Model, context: Context) -> Result:
        """Go over all graphs; then drop the integers that nobody reads any more."""
        floats = Floats(self.saturation)
        counts: Counter[str] = Counter()
        done: list[ir.Node] = []
        for graph in list(graphs_of(model)):
            for node in list(graph):
                kind = _form(node)
                found = self._replacement(node, kind, floats) if kind else None
                if isinstance(found, str):
                    context.note(node, f"left as it is: {found}")
                elif found is not None:
                    done += [maker for maker in (found[0].producer(),) if maker is not None]
                    counts[kind] += _take_place(*found)
        _drop_unread([*floats.makers(), *done])
        for node in (node for graph in graphs_of(model) for node in graph):
            if (is_standard(node) and node.op_type in _INTEGER) or kernel_of(node) is not None:
                context.note(node, f"left as it is: {_use(node)}")
        told = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
        return Result(rewrites=sum(counts.values()), summary=told, figures=dict(sorted(counts.items())))

    def _replacement(self, node: ir.Node, kind: str, floats: Floats) -> tuple[ir.Value, ir.Value] | str | None:
        """Return a value and the float that takes its place, why there is none, or None where none is wanted."""
        if kind == "products":
            return integer_product(node, floats)
        if kind == "kernels":
            if node.op_type != "QGemm":
                return contrib(node)
            made = floats.kernel(node)
            return made if isinstance(made, str) else (node.outputs[0], made)
        if kind == "weights" and not self.weights:
            return None
        stored = _stored(node)
        if stored is not None:
            return node.outputs[0], new_initializer(graph_of(node), stored, node.outputs[0].name or "weight")
        codes = node.inputs[0]
        maker = codes.producer() if codes is not None else None
        if maker is not None and maker.op_type == "DynamicQuantizeLinear" and node.inputs[1] is maker.outputs[1]:
            source = maker.inputs[0]
            return (node.outputs[0], source) if source is not None else "its input is missing"
        step = node_step(node, codes)
        if isinstance(step, str) or codes is None:
            return step if isinstance(step, str) else "its input is missing"
        made = floats.of(codes, step)
        if isinstance(made, str):
            return made
        if made.dtype is not None and node.outputs[0].dtype not in (None, made.dtype):
            return "its output is of another type than its scale"
        return node.outputs[0], made


def _form(node: ir.Node) -> str:
    """Return what a node that makes floats of integers is, empty for others."""
    if node.domain not in _DOMAINS:
        return ""
    if node.op_type == "DequantizeLinear":
        maker = node.inputs[0].producer() if node.inputs[0] is not None else None
        return "weights" if maker is None or maker.op_type == "Constant" else "pairs"
    if node.op_type in ("MatMulInteger", "ConvInteger"):
        return "products"
    if _stored(node) is not None:
        return "weights"
    if node.domain != "com.microsoft":
        return ""
    if node.op_type in _FLOATING:
        return "kernels"
    return "kernels" if node.op_type == "QGemm" and (len(node.inputs) < 8 or node.inputs[7] is None) else ""


def _stored(node: ir.Node) -> Array | None:
    """Return the floats of a weight that ``int8`` stores as integers behind a Cast and a Mul, None for others."""
    if node.op_type != "Mul" or not is_standard(node):
        return None
    for cast, scale in (node.inputs, node.inputs[::-1]):
        maker, factor = cast.producer() if cast is not None else None, constant(scale)
        if maker is None or maker.op_type != "Cast" or not is_standard(maker) or factor is None:
            continue
        codes = constant(maker.inputs[0])
        if codes is not None and codes.dtype == np.int8 and factor.dtype == np.float32:
            return np.asarray(codes.astype(np.float32) * factor)
    return None


def _take_place(old: ir.Value, new: ir.Value) -> bool:
    """Let the readers of one value read another, behind an Identity where it cannot be an output itself."""
    if replace_uses(old, new):
        return True
    anchor = old.producer()
    assert anchor is not None
    return replace_uses(old, insert_before(anchor, "Identity", [new], like=[old]).outputs[0])


def _drop_unread(nodes: Iterable[ir.Node]) -> None:
    """Remove nodes that nobody reads, and what only they read: what made integers, moved and scaled them."""
    stack = list(nodes)
    while stack:
        node = stack.pop()
        if node.graph is None or any(use_count(v) or v.is_graph_output() for v in node.outputs):
            continue
        sources = [value.producer() for value in node.inputs if value is not None]
        remove_node(node)
        stack += [source for source in sources if source is not None]


def _use(node: ir.Node) -> str:
    """Say why a node on integers is still needed."""
    if any(value.is_graph_output() for value in node.outputs):
        return "the model gives its integers out"
    readers = sorted({use.node.op_type for value in node.outputs for use in value.uses()})
    return f"its integers are read by {', '.join(readers)}"
