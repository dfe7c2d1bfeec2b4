"""The rule that puts one operator in place of an attention block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxedge.api import Accuracy, Context
from onnxedge_passes.cleanup.worklist import Outcome, Refused, Rule, node_opset
from onnxedge_passes.fuse.attention.find import find
from onnxedge_passes.fuse.attention.forms import heads_of
from onnxedge_passes.fuse.attention.kernels import build, plan


@dataclass(frozen=True, kw_only=True)
class FuseAttention(Rule):
    """Fuse the operators that spell scaled dot-product attention into one.

    Before: ``y = MatMul(Softmax(MatMul(q, k) * scale + mask), v)``, with the Reshape and Transpose nodes that split the
    heads before and merge them behind, the scale on either side, masks added or filled in, scores kept below a number
    by a Tanh, keys and values repeated
    After:  ``y = Attention(q, k, v, mask)`` from opset 23, else ``com.microsoft::GroupQueryAttention(q, k, v)`` where
    the mask is causal, else ``com.microsoft::MultiHeadAttention(q, k, v)``, where the target has that kernel

    Which axis is what is read off how the operators move the elements, so that the layout and its spelling do not
    matter; tokens that stand before the batch are turned. A mask is causal when it is a triangle, constant or computed
    from sizes (Range, compared; Trilu; Slice of a constant), for as many keys as queries: it becomes the attribute for
    it. Rows that are masked whole by -inf give zeros, as the operator is defined, where single operators give NaN.

    Measured with ONNX Runtime 1.31 on one thread, ratio to single operators at its highest level of optimization, for
    batch 1 to 64, 1 to 32 heads, 1 to 1500 tokens, 16 to 64 features: Attention on ``[B, T, H * D]`` 0.46 to 0.97, on
    ``[B, H, T, D]`` 0.83 to 1.12; MultiHeadAttention 0.78 to 0.96 without a mask, 1.01 to 1.14 from 128 heads in all
    the batch, 0.84 to 1.18 with a mask; causal, for batch 1 and 4, 1 to 512 tokens, 4 to 32 heads on 2 to 8 of keys, 32
    to 128 features: GroupQueryAttention 0.56 to 0.97, with as many key heads 0.80 to 1.03, MultiHeadAttention with
    repeated keys 0.83 to 1.41. So on that target only what also takes over splitting and merging the heads is used, and
    MultiHeadAttention only without a mask and on less than 128 heads.
    Left alone: weights or scores with other readers; another function between the products; masks in another view;
    scores capped after the mask is added; heads whose number is not known; targets and opsets with no kernel, or none
    that is faster. GroupQueryAttention: heads of other than a multiple of 8 features, or a cache of keys (it takes
    more than one new token only for a batch of 1); an empty batch or no token is an error of the operator.
    accuracy: rounding. Source: Vaswani et al. 2017, arXiv:1706.03762; Ainslie et al. 2023, arXiv:2305.13245; ONNX
    Attention, opset 23.
    """

    name: ClassVar[str] = "fuse-attention"
    accuracy: ClassVar[Accuracy] = "rounding"
    roots: ClassVar[tuple[str, ...]] = ("MatMul",)

    def rewrite(self, node: ir.Node, context: Context) -> Outcome:
        """Find the block that ends in the MatMul, choose the kernel and call it."""
        if node_opset(node) < 7:
            return None
        found = find(node)
        if found is None or isinstance(found, Refused):
            return found
        heads = heads_of(found)
        if heads is None:
            return Refused("attention not fused: the number of heads is not known")
        choice = plan(found, heads, context)
        return choice if isinstance(choice, Refused) else build(found, choice, context)
