"""The family ``fold``: everything that keeps each output bit as it is."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, fields
from itertools import cycle, islice
from typing import ClassVar

import onnx_ir as ir

from onnxedge.api import Context, Note, Pass, Result
from onnxedge_passes.cleanup.cancel_pairs import CancelPairs
from onnxedge_passes.cleanup.cancel_views import CancelViews
from onnxedge_passes.cleanup.common_subexpressions import CommonSubexpressions
from onnxedge_passes.cleanup.constants.fold_constants import FoldConstants, learned_types
from onnxedge_passes.cleanup.constants.growth import Bounded
from onnxedge_passes.cleanup.control.control_flow import has_control_flow
from onnxedge_passes.cleanup.control.decide_conditions import DecideConditions
from onnxedge_passes.cleanup.control.inline_if import InlineIf
from onnxedge_passes.cleanup.control.inline_loop import InlineLoop
from onnxedge_passes.cleanup.control.inline_scan import InlineScan
from onnxedge_passes.cleanup.control.merge_ifs import MergeIfs
from onnxedge_passes.cleanup.dead_code import DeadCode
from onnxedge_passes.cleanup.eliminate_identity import EliminateIdentity
from onnxedge_passes.cleanup.freeze_initializers import FreezeInitializers, are_fixed, freeze
from onnxedge_passes.cleanup.merge_casts import MergeCasts
from onnxedge_passes.cleanup.merge_concats import MergeConcats
from onnxedge_passes.cleanup.merge_gathers import MergeGathers
from onnxedge_passes.cleanup.merge_reductions import MergeReductions
from onnxedge_passes.cleanup.merge_sequences import MergeSequences
from onnxedge_passes.cleanup.merge_slices import MergeSlices
from onnxedge_passes.cleanup.merge_views import MergeViews
from onnxedge_passes.cleanup.scatter_all import ScatterAll
from onnxedge_passes.cleanup.shape_of_source import ShapeOfSource
from onnxedge_passes.cleanup.unpack_optionals import UnpackOptionals
from onnxedge_passes.cleanup.worklist import Rule, apply_rules

_MAX_ROUNDS = 8

RULES: tuple[Rule, ...] = (
    EliminateIdentity(),
    CancelPairs(),
    MergeCasts(),
    MergeViews(),
    CancelViews(),
    MergeReductions(),
    MergeSlices(),
    MergeConcats(),
    MergeGathers(),
    UnpackOptionals(),
    ShapeOfSource(),
    ScatterAll(),
    MergeSequences(),
)  #: exact rules; where several match at one node the first in this order is applied


@dataclass(frozen=True, kw_only=True)
class Fold(Bounded):
    """Fold constants, remove nodes that change nothing, repeated and dead ones, until nothing is left to do.

    Before: an exporter's graph with its shape arithmetic, Identity nodes and Constant nodes
    After:  the same graph with what does not depend on the inputs computed

    Left alone: see ``fold-constants``, ``decide-conditions``, ``inline-if``, ``inline-loop``, ``inline-scan``,
    ``merge-ifs``, ``common-subexpressions``, ``dead-code`` and the rules, each a pass of its own:
    ``eliminate-identity``, ``cancel-pairs``, ``cancel-views``, ``unpack-optionals``, ``shape-of-source``,
    ``scatter-all`` and the ``merge-`` ones.
    accuracy: exact. Source: own.
    """

    name: ClassVar[str] = "fold"

    def run(self, model: ir.Model, context: Context) -> Result:
        """Run the passes in turn, and all rules after them, until each of them was quiet since the last change.

        Types and shapes that are learned count as a change until the end of the round.
        """
        control = (DecideConditions(), InlineIf(), InlineLoop(), InlineScan(), MergeIfs())
        passes: tuple[Pass | None, ...] = (
            DeadCode(),
            FoldConstants(**{bound.name: getattr(self, bound.name) for bound in fields(Bounded)}),
            *(control if has_control_flow(model) else ()),
            CommonSubexpressions(),
            None,  # the rules
        )
        counts: Counter[str] = Counter()
        if are_fixed(model, context):
            counts[FreezeInitializers.name] = freeze(model)
        said, notes, quiet = len(context.notes), dict[Pass | None, list[Note]](), 0
        for step in islice(cycle(passes), _MAX_ROUNDS * len(passes)):
            before = counts.total()
            if step is None:
                counts.update(apply_rules(model, RULES, context).figures)
            else:
                with context.speaking(step.name):
                    counts[step.name] += step.run(model, context).rewrites
            notes[step] = context.notes[said:]  # in the place of earlier ones: what was left alone then may be gone now
            context.forget_notes(said)
            quiet = quiet + 1 if counts.total() == before else 0
            if quiet >= len(passes) and (step is None or not learned_types(model)):
                break
        context.add_notes(note for step in passes for note in notes[step])
        summary = ", ".join(f"{name} {count}" for name, count in counts.items() if count)
        return Result(rewrites=counts.total(), summary=summary, figures=dict(counts))
