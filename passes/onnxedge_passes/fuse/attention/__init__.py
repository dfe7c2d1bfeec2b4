"""Scaled dot-product attention, found from raw operators by what they compute."""

from onnxedge_passes.fuse.attention.absorb_heads import AbsorbHeads
from onnxedge_passes.fuse.attention.fuse_attention import FuseAttention

__all__ = ["AbsorbHeads", "FuseAttention"]
