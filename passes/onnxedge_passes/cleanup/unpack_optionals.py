"""Optional values of which it is known whether they hold something."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxedge.api import Context, graph_of, is_standard, new_initializer
from onnxedge_passes.cleanup.worklist import Outcome, Rule, input_at, replace_by, replace_node


@dataclass(frozen=True, kw_only=True)
class UnpackOptionals(Rule):
    """Read what an optional value holds, and say that it holds something, without the optional value.

    Before: ``y = OptionalGetElement(Optional(x))``; ``c = OptionalHasElement(Optional(x))``
    After:  ``y = x``; ``c = true``

    What PyTorch's exporters write for arguments that may be left out.
    Left alone: an element taken from an empty one (an error at run time); values that come from elsewhere, unless they
    are plain tensors or sequences.
    accuracy: exact. Source: ONNX OptionalGetElement, OptionalHasElement, opset 18.
    """

    name: ClassVar[str] = "unpack-optionals"
    roots: ClassVar[tuple[str, ...]] = ("OptionalGetElement", "OptionalHasElement")

    def rewrite(self, node: ir.Node, context: Context) -> Outcome:
        """Look at what makes the value, or at its type."""
        known, held = _held(input_at(node, 0))
        if not known or (held is None and node.op_type == "OptionalGetElement"):
            return None
        if node.op_type == "OptionalHasElement":
            flag = new_initializer(graph_of(node), np.array(held is not None), f"{node.outputs[0].name}_known")
            return replace_node(node, "Identity", [flag])
        assert held is not None
        return replace_by(node, held)


def _held(value: ir.Value | None) -> tuple[bool, ir.Value | None]:
    """Return whether it is known what a value holds, and what that is; None for nothing."""
    if value is None:
        return True, None
    if isinstance(value.type, ir.TensorType | ir.SequenceType):
        return True, value
    maker = value.producer()
    if maker is None or maker.op_type != "Optional" or not is_standard(maker):
        return False, None
    return True, input_at(maker, 0)
