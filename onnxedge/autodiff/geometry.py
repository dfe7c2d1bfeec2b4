"""Where the windows of a convolution or a pool lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx

from onnxedge.autodiff.backward import attribute


@dataclass(frozen=True)
class Geometry:
    """Hold how a window slides; all lists have one number an axis of space.

    Attributes:
        kernel, strides, dilations: in elements.
        begins, ends: pads.
        size, out: of the input and the output.
    """

    kernel: Sequence[int]
    strides: Sequence[int]
    dilations: Sequence[int]
    begins: Sequence[int]
    ends: Sequence[int]
    size: Sequence[int]
    out: Sequence[int]

    @property
    def rank(self) -> int:
        """Return the number of axes of space."""
        return len(self.kernel)

    @property
    def pads(self) -> list[int]:
        """Return begins and ends as an attribute has them."""
        return [*self.begins, *self.ends]

    @property
    def reached(self) -> list[int]:
        """Return how far the windows reach from where the first begins."""
        axes = zip(self.strides, self.out, self.kernel, self.dilations, strict=True)
        return [s * (o - 1) + (k - 1) * d + 1 for s, o, k, d in axes]


def geometry(node: onnx.NodeProto, size: Sequence[int], out: Sequence[int], kernel: Sequence[int]) -> Geometry:
    """Read a node's attributes, ``auto_pad`` as explicit pads.

    Args:
        node: Conv or a pool.
        size, out: of its input and its output, the axes of space.
        kernel: of the window.
    """
    rank = len(kernel)
    strides, dilations = (attribute(node, name, None) or [1] * rank for name in ("strides", "dilations"))
    pads = attribute(node, "pads", None) or [0] * (2 * rank)
    auto = attribute(node, "auto_pad", b"NOTSET")
    if auto in (b"SAME_UPPER", b"SAME_LOWER"):
        axes = zip(size, out, kernel, strides, dilations, strict=True)
        totals = [max((o - 1) * s + (k - 1) * d + 1 - n, 0) for n, o, k, s, d in axes]
        small, large = [total // 2 for total in totals], [total - total // 2 for total in totals]
        pads = [*small, *large] if auto == b"SAME_UPPER" else [*large, *small]
    elif auto == b"VALID":
        pads = [0] * (2 * rank)
    return Geometry(kernel, strides, dilations, pads[:rank], pads[rank:], size, out)
