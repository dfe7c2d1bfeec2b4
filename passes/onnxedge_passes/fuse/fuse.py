"""The family ``fuse``: fewer operators that compute the same up to float rounding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxedge.api import Accuracy, Context, Pass, Result
from onnxedge_passes.cleanup.eliminate_identity import EliminateIdentity
from onnxedge_passes.cleanup.worklist import Rule, apply_rules
from onnxedge_passes.fuse.fold_affine import FoldAffine
from onnxedge_passes.fuse.fold_batchnorm import FoldBatchnorm
from onnxedge_passes.fuse.fold_pad import FoldPad
from onnxedge_passes.fuse.fuse_gelu import FuseGelu
from onnxedge_passes.fuse.fuse_hard_swish import FuseHardSwish
from onnxedge_passes.fuse.fuse_layer_norm import FuseLayerNorm
from onnxedge_passes.fuse.fuse_silu import FuseSilu
from onnxedge_passes.fuse.keep_layer_norm import KeepLayerNorm
from onnxedge_passes.fuse.matmul_to_gemm import MatmulToGemm
from onnxedge_passes.fuse.merge_views import MergeViews

RULES: tuple[Rule, ...] = (
    FoldBatchnorm(),
    MatmulToGemm(),
    FoldAffine(),
    FuseLayerNorm(),
    KeepLayerNorm(),
    FuseGelu(),
    FuseHardSwish(),
    FuseSilu(),
    FoldPad(),
    MergeViews(),
    EliminateIdentity(),
)  #: where several match at one node the first in this order is applied


@dataclass(frozen=True, kw_only=True)
class Fuse(Pass):
    """Apply all fusion rules together until none of them finds anything.

    Before: ``Conv -> BatchNormalization -> Relu``, normalization and activations spelled in single operators
    After:  ``Conv -> Relu``, ``LayerNormalization``, ``Gelu``, ``HardSwish``, ``Gemm``

    Left alone: what each rule leaves alone, with its reason in the notes.
    accuracy: rounding. Source: the rules, each a pass of its own.
    """

    name: ClassVar[str] = "fuse"
    accuracy: ClassVar[Accuracy] = "rounding"

    def run(self, model: ir.Model, context: Context) -> Result:
        """Run one worklist over all rules."""
        return apply_rules(model, RULES, context)
