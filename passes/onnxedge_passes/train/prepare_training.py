"""A graph that can be trained, and what of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import onnx_ir as ir

from onnxedge.api import Accuracy, Context, Result, UserError, did_you_mean, infer_shapes, node_label, opset
from onnxedge_passes.cleanup.constants.fold_constants import FoldConstants
from onnxedge_passes.cleanup.control.inline_functions import InlineFunctions
from onnxedge_passes.cleanup.convert import Convert
from onnxedge_passes.cleanup.freeze_initializers import freeze
from onnxedge_passes.cleanup.worklist import Outcome, Rule, apply_rules, input_at
from onnxedge_passes.train import norms, pointwise, spatial
from onnxedge_passes.train.draft import Draft, Spelling
from onnxedge_passes.train.gradients import walls
from onnxedge_passes.train.weights import find_weights, lift_constants

_LEAST_OPSET, _MOST_OPSET, _MOST_IR = 17, 21, 10  #: what onnxruntime-training 1.19.2 reads, with LayerNormalization
_NEWER = ("FLOAT4E2M1", "FLOAT8E8M0", "INT2", "UINT2")  #: types of later IR versions
_BATCHNORM: dict[str, Spelling] = {
    "live": norms.live_batch_normalization,
    "frozen": norms.frozen_batch_normalization,
}
_SPELLINGS = {**pointwise.SPELLINGS, **spatial.SPELLINGS, **norms.SPELLINGS}


@dataclass(frozen=True)
class Trainable:
    """Say what of a prepared graph is trained.

    Attributes:
        weights: name of an initializer of the prepared graph -> name of the constant of the original graph.
        spared: those weights of one axis or none, norms and biases, that weight decay is not for.
        statistics: running statistics of BatchNormalization, which are no weights but change while they are live.
        untrained: name of a weight of the original graph -> why it stays as it is.
    """

    weights: Mapping[str, str]
    spared: tuple[str, ...]
    statistics: tuple[str, ...]
    untrained: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class PrepareTraining(Rule):
    """Write the model so that ONNX Runtime's training has a right gradient for every node it can.

    Before: ``y = HardSwish(x)``; ``y = Conv<auto_pad="SAME_UPPER">(x, w)``; ``w = Constant<...>()``
    After:  ``y = Mul(x, Clip(x / 6 + 0.5, 0, 1))``; ``y = Conv<pads=[...]>(x, w)``; ``w`` an initializer

    Opset 17 to 21, IR version 10 at most; local functions inlined; what depends on no weight and no input folded; old
    Clip and ``auto_pad``, whose gradients are silently wrong, in today's form; constants lifted to initializers;
    LayerNormalization with three outputs and a bias. In operators that have gradients: HardSwish, HardSigmoid, PRelu,
    the ELU family, Softplus, Softsign, Mish, Swish, ThresholdedRelu; Sum, Mean, Min and Max of many; ReduceMax,
    ReduceMin, ReduceL1, ReduceSumSquare, ReduceLogSum; GroupNormalization, InstanceNormalization, RMSNormalization;
    AveragePool, GlobalMaxPool, DepthToSpace, SpaceToDepth, Resize, ConvTranspose, Slices backwards. Weights keep their
    names, by which they are put back into the original.
    Each node that still has none, and that a weight reaches an output by, is a note: what lies before is not trained.
    Left alone: other types than float32; Resize, ConvTranspose, block moves of unknown size; LSTM, GRU, control flow.
    accuracy: rounding. Source: own measurement against finite differences in onnxruntime-training-cpu 1.19.2.
    """

    name: ClassVar[str] = "prepare-training"
    accuracy: ClassVar[Accuracy] = "rounding"
    fixes_defaults: ClassVar[bool] = True
    sets_form: ClassVar[bool] = True
    roots: ClassVar[tuple[str, ...]] = (*_SPELLINGS, "BatchNormalization")
    batchnorm: Literal["live", "frozen"] = "live"  #: normalise by the batch in training, or by running statistics
    outputs: tuple[str, ...] = ()  #: values that losses will be on; the model's outputs for none

    def requires(self, model: ir.Model, context: Context) -> None:
        """Refuse outputs that are not there."""
        known = {value.name for node in model.graph for value in node.outputs if value.name}
        for name in self.outputs:
            if name not in known:
                raise UserError(f"{self.name}: the model has no value {name!r}{did_you_mean(name, known)}")

    def run(self, model: ir.Model, context: Context) -> Result:
        """Prepare the model, and name what cannot be trained."""
        return self.prepare(model, context)[0]

    def prepare(self, model: ir.Model, context: Context) -> tuple[Result, Trainable]:
        """Prepare the model in place and return, beside the result, what of it is trained.

        Raises:
            UserError: a node or a type cannot be written for an opset and IR version that training reads.
        """
        original = {value.name for value in model.graph.initializers.values()}
        original |= {node.outputs[0].name for node in model.graph if node.op_type == "Constant"}
        counts: Counter[str] = Counter()
        counts["inputs frozen"] = freeze(model)
        if model.functions:
            counts["functions inlined"] = InlineFunctions().run(model, context).rewrites
        counts["constants lifted"] = lift_constants(model.graph)
        infer_shapes(model)
        found = {name: value for name, value in find_weights(model.graph).items() if name in original}
        counts["constants folded"] = _fold_others(model, found.values(), context)
        if opset(model) > _MOST_OPSET:  # operators that are newer are spelled out first
            counts["rewritten"] += apply_rules(model, (self,), context).rewrites
        counts["nodes converted"] = self._convert(model, context)
        counts["constants lifted"] += lift_constants(model.graph)
        counts["rewritten"] += apply_rules(model, (self,), context).rewrites
        trained = self._trainable(model, tuple(found), context)
        summary = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        figures = {**counts, "weights": len(trained.weights), "untrained": len(trained.untrained)}
        return Result(rewrites=counts.total(), summary=summary, figures=figures), trained

    def rewrite(self, node: ir.Node, context: Context) -> Outcome:
        """Write one node otherwise."""
        source = input_at(node, 0)
        if source is None or source.dtype != ir.DataType.FLOAT:
            return None
        draft = Draft(node, source)
        spelling = _BATCHNORM[self.batchnorm] if node.op_type == "BatchNormalization" else _SPELLINGS[node.op_type]
        value = spelling(draft)
        return draft.stand_in(value) if isinstance(value, ir.Value) and value is not node.outputs[0] else value

    def _convert(self, model: ir.Model, context: Context) -> int:
        for value in model.graph.initializers.values():
            if value.dtype is not None and value.dtype.name in _NEWER:
                kind = f"{self.name}: initializer {value.name!r} is {value.dtype}"
                raise UserError(f"{kind}, which IR version {_MOST_IR} has not; put `dequantize` before")
        version, count = min(max(opset(model), _LEAST_OPSET), _MOST_OPSET), 0
        if version != opset(model):
            count = Convert(opset=version).run(model, context).rewrites
            infer_shapes(model)
        if model.ir_version > _MOST_IR:
            model.ir_version, count = _MOST_IR, max(count, 1)
        return count

    def _trainable(self, model: ir.Model, names: tuple[str, ...], context: Context) -> Trainable:
        infer_shapes(model)  # gradients flow by floats alone
        graph = model.graph
        made = {value.name: value for node in graph for value in node.outputs}
        ends = [made[name] for name in self.outputs if name in made] if self.outputs else list(graph.outputs)
        state, found = walls(graph, ends)
        weights: dict[str, str] = {}
        untrained: dict[str, str] = {}
        for name in names:
            value = graph.initializers.get(name)
            reason = "no output depends on it" if value is None else state.get(value, "no output depends on it")
            if reason:
                untrained[name] = reason
            else:
                weights[name] = name
        behind = set(untrained.values())
        for node, reason in found.items():
            if node_label(node) in behind:
                context.note(node, f"{reason}: weights before it are not trained")
        if not weights:
            context.note(None, "nothing to train: no weight of float32 reaches an output by nodes with gradients")
        live = [node for node in graph if node.op_type == "BatchNormalization"]
        statistics = dict.fromkeys(value.name or "" for node in live for value in node.inputs[3:5] if value is not None)
        spared = tuple(name for name in weights if len(graph.initializers[name].shape or ()) < 2)
        return Trainable(weights, spared, tuple(statistics), untrained)


def _fold_others(model: ir.Model, weights: Collection[ir.Value], context: Context) -> int:
    """Fold what depends on constants alone, such as bounds and pads, but not on what may be a weight, for its name."""
    inputs = list(model.graph.inputs)
    floats = [value for value in model.graph.initializers.values() if value.dtype == ir.DataType.FLOAT]
    several = [value for value in floats if value.const_value is not None and value.const_value.size > 1]
    model.graph.inputs.extend(dict.fromkeys([*weights, *several]))  # what a caller may feed is no constant
    try:
        return FoldConstants().run(model, context).rewrites
    finally:
        model.graph.inputs[:] = inputs
