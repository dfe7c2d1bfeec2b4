"""Training on labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import onnx_ir as ir

from onnxedge.api import Accuracy, Array, Augmentation, Context, Result, UserError
from onnxedge_passes.train.objective import Labels, Objective
from onnxedge_passes.train.session import Plan, train_model
from onnxedge_passes.train.training import Training


@dataclass(frozen=True, kw_only=True)
class Finetune(Training):
    """Train the model on the labels of ``--train``.

    Before: a model that lost accuracy, by pruning or 4-bit weights, or whose data has changed
    After:  the same graph with other weights

    Classes by cross-entropy, on the scores before a Softmax at the end; numbers by their squared error. A fork of the
    model is prepared (see `prepare-training`) and trained; the weights go back by name. BatchNormalization normalises
    by the batch meanwhile; where it was folded by an earlier pass it comes back for as long as that lasts. Behind each
    epoch the model is run as it is with the weights of that epoch, on samples that nothing is fitted to, and the best
    are taken: every second one of ``--eval``, or a part of ``--train``. A run that was stopped goes on where it was.
    Left alone: the model, where training makes it no better; weights before a node without a gradient, each such node
    is named; all types but float32.
    accuracy: lossy. Source: AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101).
    """

    name: ClassVar[str] = "finetune"
    accuracy: ClassVar[Accuracy] = "lossy"

    loss: Literal["auto", "classes", "values"] = "auto"  #: cross-entropy, squared error, or by the labels' type
    smoothing: float = 0.0  #: 0..1, share of the wanted probability that goes to all classes alike

    def requires(self, model: ir.Model, context: Context) -> None:
        """Check that there are labels, and the rest."""
        super().requires(model, context)
        if not 0 <= self.smoothing <= 1:
            raise UserError(f"{self.name}: smoothing={self.smoothing:g} is not within 0..1")
        data = self.data(context)
        if Augmentation.parse(self.augment).mixes:
            raise UserError(f"{self.name}: augment: mix needs a teacher that says what a blend is; `distill` has one")
        if not self.has_labels(model, data):
            raise UserError(f"{self.name}: needs labels, {data.source} has none; give an array `y`")

    def aims_elsewhere(self) -> bool:
        """Tell that labels are the aim."""
        return True

    def run(self, model: ir.Model, context: Context) -> Result:
        """Train on labels."""
        return train_model(model, context, self, Plan(objective=self._objective))

    def _objective(self, model: ir.Model, rows: Mapping[str, Array], labels: Labels) -> Objective:
        if not labels:
            raise UserError(f"{self.name}: some samples have no label; give one for each")
        return Objective(heads=self.heads(model, labels, kind=self.loss, smoothing=self.smoothing))
