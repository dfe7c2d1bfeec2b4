"""The family ``fuse``: fewer operators that compute the same up to float rounding."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxedge.api import Accuracy, Context, Pass, Result
from onnxedge_passes.cleanup.cancel_views import CancelViews
from onnxedge_passes.cleanup.common_subexpressions import CommonSubexpressions
from onnxedge_passes.cleanup.constants.fold_constants import FoldConstants
from onnxedge_passes.cleanup.eliminate_identity import EliminateIdentity
from onnxedge_passes.cleanup.gather_to_slice import GatherToSlice
from onnxedge_passes.cleanup.merge_views import MergeViews
from onnxedge_passes.cleanup.swap_where import SwapWhere
from onnxedge_passes.cleanup.worklist import Rule, apply_rules
from onnxedge_passes.fuse.activation.fuse_bias_gelu import FuseBiasGelu
from onnxedge_passes.fuse.activation.fuse_elu import FuseElu
from onnxedge_passes.fuse.activation.fuse_gelu import FuseGelu
from onnxedge_passes.fuse.activation.fuse_hard_sigmoid import FuseHardSigmoid
from onnxedge_passes.fuse.activation.fuse_hard_swish import FuseHardSwish
from onnxedge_passes.fuse.activation.fuse_leaky_relu import FuseLeakyRelu
from onnxedge_passes.fuse.activation.fuse_mish import FuseMish
from onnxedge_passes.fuse.activation.fuse_quick_gelu import FuseQuickGelu
from onnxedge_passes.fuse.activation.fuse_silu import FuseSilu
from onnxedge_passes.fuse.activation.fuse_softmax import FuseSoftmax
from onnxedge_passes.fuse.activation.fuse_softplus import FuseSoftplus
from onnxedge_passes.fuse.activation.narrow_softmax import NarrowSoftmax
from onnxedge_passes.fuse.activation.spell_activations import SpellActivations
from onnxedge_passes.fuse.attention import AbsorbHeads, FuseAttention
from onnxedge_passes.fuse.attention.pack_attention import PackAttention
from onnxedge_passes.fuse.drop_zeros import DropZeros
from onnxedge_passes.fuse.linear.einsum_to_matmul import EinsumToMatmul
from onnxedge_passes.fuse.linear.flatten_projections import FlattenProjections
from onnxedge_passes.fuse.linear.fold_affine import FoldAffine
from onnxedge_passes.fuse.linear.fold_affine_before import FoldAffineBefore
from onnxedge_passes.fuse.linear.fold_batchnorm import FoldBatchnorm
from onnxedge_passes.fuse.linear.fold_gemm_sum import FoldGemmSum
from onnxedge_passes.fuse.linear.fold_gemm_transpose import FoldGemmTranspose
from onnxedge_passes.fuse.linear.fold_pad import FoldPad
from onnxedge_passes.fuse.linear.fuse_space_to_depth import FuseSpaceToDepth
from onnxedge_passes.fuse.linear.lift_matmul import LiftMatmul
from onnxedge_passes.fuse.linear.matmul_to_gemm import MatmulToGemm
from onnxedge_passes.fuse.linear.merge_projections import MergeProjections
from onnxedge_passes.fuse.linear.order_einsum import OrderEinsum
from onnxedge_passes.fuse.merge_clips import MergeClips
from onnxedge_passes.fuse.merge_constants import MergeConstants
from onnxedge_passes.fuse.merge_reciprocals import MergeReciprocals
from onnxedge_passes.fuse.merge_sums import MergeSums
from onnxedge_passes.fuse.norm.fold_norm_affine import FoldNormAffine
from onnxedge_passes.fuse.norm.fuse_embed_layer_norm import FuseEmbedLayerNorm
from onnxedge_passes.fuse.norm.fuse_group_norm import FuseGroupNorm
from onnxedge_passes.fuse.norm.fuse_instance_norm import FuseInstanceNorm
from onnxedge_passes.fuse.norm.fuse_layer_norm import FuseLayerNorm
from onnxedge_passes.fuse.norm.fuse_rms_norm import FuseRmsNorm
from onnxedge_passes.fuse.norm.fuse_skip_layer_norm import FuseSkipLayerNorm
from onnxedge_passes.fuse.norm.keep_layer_norm import KeepLayerNorm
from onnxedge_passes.fuse.rotary.fuse_rotary_embedding import FuseRotaryEmbedding
from onnxedge_passes.fuse.slices_to_split import SlicesToSplit
from onnxedge_passes.layout.fold_transpose import FoldTranspose
from onnxedge_passes.layout.push_transposes import PushTransposes
from onnxedge_passes.layout.transpose_to_reshape import TransposeToReshape

_MAX_ROUNDS = 8

RULES: tuple[Rule, ...] = (
    FoldBatchnorm(),
    OrderEinsum(),
    EinsumToMatmul(),
    MatmulToGemm(),
    FoldGemmSum(),
    FoldGemmTranspose(),
    LiftMatmul(),
    NarrowSoftmax(),
    FoldAffine(),
    FoldAffineBefore(),
    MergeConstants(),
    DropZeros(),
    MergeSums(),
    FuseInstanceNorm(),
    FuseGroupNorm(),
    FuseLayerNorm(),
    FuseRmsNorm(),
    FoldNormAffine(),
    KeepLayerNorm(),
    FuseGelu(),
    FuseHardSwish(),
    FuseSilu(),
    FuseQuickGelu(),
    FuseMish(),
    FuseElu(),
    FuseSoftplus(),
    FuseHardSigmoid(),
    FuseLeakyRelu(),
    FuseSoftmax(),
    FuseSpaceToDepth(),
    FuseBiasGelu(),
    FuseRotaryEmbedding(),
    FuseEmbedLayerNorm(),
    FuseSkipLayerNorm(),
    MergeProjections(),
    MergeClips(),
    SwapWhere(),
    SpellActivations(),
    FoldPad(),
    FoldTranspose(),
    MergeViews(),
    CancelViews(),
    EliminateIdentity(),
)  #: where several match at one node the first in this order is applied
ATTENTION: tuple[Rule, ...] = (FuseAttention(), AbsorbHeads(), PackAttention())

LATE: tuple[Rule, ...] = (
    TransposeToReshape(),
    MergeReciprocals(),
    GatherToSlice(),
    SlicesToSplit(),
)  #: they take patterns apart


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
        """Run one worklist over all rules, then move Transposes, and both again while that finds anything.

        Attention comes between the two: its parts are fused by then, and its Transposes still stand where they were.
        """
        patterns = [rule for rule in RULES if not isinstance(rule, FoldAffineBefore)]  # it takes the 0.5 out of a GELU
        said = len(context.notes)
        figures = Counter(apply_rules(model, patterns, context).figures)
        figures.update(apply_rules(model, ATTENTION, context).figures)
        for _ in range(_MAX_ROUNDS):
            if figures.total():
                context.forget_notes(said)  # of the round before: what was left alone then may be gone now
            with context.speaking(PushTransposes.name):
                pushed = PushTransposes().run(model, context).rewrites
            changed = pushed or figures.total()  # else the rules above would find nothing again
            rules = (*RULES, *ATTENTION, *LATE) if changed else (FoldAffineBefore(), *LATE)
            result = apply_rules(model, rules, context)
            figures.update({PushTransposes.name: pushed, **result.figures})
            shared = CommonSubexpressions().run(model, context).rewrites if figures.total() else 0
            figures[CommonSubexpressions.name] += shared  # two fusions make the same constants
            if not pushed and not result.rewrites and not shared:
                break
        # Last, as others look for the MatMul and the Add; a view of rows that are flat already is no more than a name.
        flat = apply_rules(model, (FlattenProjections(), EliminateIdentity()), context)
        figures.update(flat.figures)
        if flat.rewrites:
            figures[CommonSubexpressions.name] += CommonSubexpressions().run(model, context).rewrites
        if figures[FuseAttention.name]:
            figures[FoldConstants.name] += _share_sizes(model, context)
        if figures[FoldConstants.name]:  # shapes that are constants now let views merge
            figures.update(apply_rules(model, (MergeViews(), CancelViews(), EliminateIdentity()), context).figures)
        summary = ", ".join(f"{name} {count}" for name, count in figures.items() if count)
        return Result(rewrites=figures.total(), summary=summary, figures=dict(figures))


def _share_sizes(model: ir.Model, context: Context) -> int:
    """Let the lengths that attention is given be read from where the graph computes the same sizes already."""
    said = len(context.notes)
    shared = FoldConstants(max_constant_bytes=0, max_growth=0.0).run(model, context).rewrites
    context.forget_notes(said)
    return shared
