"""Training on what a teacher says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import onnx_ir as ir

from onnxedge.api import (
    Accuracy,
    Array,
    Context,
    Data,
    Loss,
    Result,
    Teacher,
    UserError,
    digest_of,
    forked,
    infer_shapes,
    load,
    matched_inputs,
    model_inputs,
    refresh_scopes,
)
from onnxedge_passes.train.objective import Labels, Objective, feature_losses, teacher_losses
from onnxedge_passes.train.session import Plan, train_model
from onnxedge_passes.train.training import Training

_LOOK = 16  #: samples that tell what a teacher's outputs are like


@dataclass(frozen=True, kw_only=True)
class Distill(Training):
    """Train the model to answer as a teacher does.

    Before: a model that was pruned, or derived from the teacher, or is another one of the same outputs
    After:  the same graph with other weights

    The loss is ``alpha`` times the divergence of the class probabilities at a temperature, times its square, and
    ``1 - alpha`` times the cross-entropy with the labels of ``--train``, where there are some; without labels the
    teacher alone counts. Outputs that are no class scores are compared by their squared error, in units of the
    teacher's variance. ``features`` adds values inside. What the teacher says is computed once for each view of the
    data and kept on disk (``$ONNXEDGE_CACHE``, 4 GiB at most). The teacher is the model that the pipeline began with,
    unless a file is named. The rest is as for `finetune`: BatchNormalization, the best epoch, runs that were stopped.
    Without ``--train`` the calibration samples are trained on.
    Left alone: the model, where training makes it no better, or where it is its own teacher; weights before a node
    without a gradient, each such node is named; all types but float32.
    accuracy: lossy. Source: Hinton et al. 2015, arXiv:1503.02531; features: Romero et al. 2015, arXiv:1412.6550,
    Zagoruyko and Komodakis 2017, arXiv:1612.03928; consistent views: Beyer et al. 2022, arXiv:2106.05237.
    """

    name: ClassVar[str] = "distill"
    accuracy: ClassVar[Accuracy] = "lossy"
    needs_calibration: ClassVar[bool] = True

    teacher: str = ""  #: file of the teacher; the model that the pipeline began with for none
    temperature: float = 4.0  #: of the class probabilities
    alpha: float = 0.9  #: 0..1, weight of the teacher; the rest is that of the labels
    alpha_end: float | None = None  #: 0..1, what alpha comes to by the last step, in a line; none to stay
    features: tuple[str, ...] = ()  #: values inside that are compared, too, as `name` or `student=teacher`
    feature_loss: Literal["l2", "attention"] = "l2"  #: how; l2 has an adapter where the widths differ
    feature_weight: float = 1.0  #: of all features together

    def requires(self, model: ir.Model, context: Context) -> None:
        """Check options, data, teacher and engine."""
        super().requires(model, context)
        for option in ("alpha", "alpha_end"):
            share = getattr(self, option)
            if share is not None and not 0 <= share <= 1:
                raise UserError(f"{self.name}: {option}={share:g} is not within 0..1")
        if not 0 < self.temperature <= 1e3:
            raise UserError(f"{self.name}: temperature={self.temperature:g} is not above 0 and up to 1000")
        teaches = self.alpha or self.alpha_end or self.features
        if not teaches and not self.has_labels(model, self.data(context)):
            raise UserError(f"{self.name}: alpha=0 needs labels, {self.data(context).source} has none")
        if self.teacher:
            self._check_teacher(model, self._load())

    def _load(self) -> ir.Model:
        if not Path(self.teacher).is_file():
            raise UserError(f"{self.name}: teacher={self.teacher}: no such file")
        return load(self.teacher)

    def _check_teacher(self, model: ir.Model, teacher: ir.Model) -> None:
        ours, theirs = model_inputs(model), model_inputs(teacher)
        names = matched_inputs([spec.name for spec in ours], [spec.name for spec in theirs])
        specs = {spec.name: spec for spec in theirs}
        fits = len(ours) == len(theirs) and all(
            a.dtype == b.dtype and len(a.shape) == len(b.shape) and _agree(a.shape[1:], b.shape[1:])
            for a, b in ((spec, specs[names[spec.name]]) for spec in ours)
        )
        if not fits:
            shown = [", ".join(f"{spec.name} {spec}" for spec in side) for side in (theirs, ours)]
            raise UserError(f"{self.name}: teacher {self.teacher} takes {shown[0]}; the student takes {shown[1]}")

    def data(self, context: Context) -> Data:
        """Return the samples to train on: ``--train``, or those to calibrate on.

        Raises:
            UserError: there are none but synthesised ones.
        """
        if context.train is not None:
            return context.train
        if context.unrunnable or context.calibration.synthetic:
            raise UserError(f"{self.name}: needs samples to train on; give --train DATA (or --calib)")
        return context.calibration

    def aims_elsewhere(self) -> bool:
        """Tell whether another teacher than the model that the pipeline began with is the aim."""
        return bool(self.teacher)

    def run(self, model: ir.Model, context: Context) -> Result:
        """Train on what the teacher says."""
        if context.train is None:
            context.note(None, "trained on the calibration samples: no --train")
        if self.teacher:
            teacher = self._load()
            self._check_teacher(model, teacher)
        else:
            teacher = context.original
        if digest_of(teacher) == digest_of(model):
            context.note(None, "left alone: it is its own teacher; prune before, or name another one")
            return Result()
        teacher, _ = forked(teacher)
        refresh_scopes(teacher)
        infer_shapes(teacher)
        task = Distillation(self, teacher, context)
        plan = Plan(objective=task.objective, teacher=teacher, like=digest_of(teacher), verb="distilled")
        return train_model(model, context, self, plan)


@dataclass(frozen=True)
class Distillation:
    """Find the losses."""

    options: Distill
    teacher: ir.Model
    context: Context

    def objective(self, model: ir.Model, rows: Mapping[str, Array], labels: Labels) -> Objective:
        """Return the losses for a model, for some rows of samples and their labels."""
        options, others = self.options, list[Loss]()
        soft = (options.alpha, options.alpha if options.alpha_end is None else options.alpha_end)
        if not labels and soft != (1.0, 1.0):
            self.context.note(None, "no labels: the teacher alone counts (alpha=1)")
            soft = (1.0, 1.0)
        hard = (1 - soft[0], 1 - soft[1])
        if any(soft):
            said, tasks = self._said(rows), options.weights_of_tasks(model)
            how: dict[str, Any] = {"temperature": options.temperature, "weight": soft, "who": options.name}
            others += teacher_losses(model, self.teacher, said, tasks=tasks, **how)
        others += feature_losses(options.features, options.feature_loss, options.feature_weight)
        heads = options.heads(model, labels, weight=hard) if any(hard) else []
        return Objective(heads=heads, others=others)

    def _said(self, rows: Mapping[str, Array]) -> dict[str, Array]:
        """Return what the teacher gives for a few samples, by output."""
        values = [value.name or "" for value in self.teacher.graph.outputs]
        teacher = Teacher(self.teacher, values, list(rows), threads=self.context.threads)
        return teacher.answers({name: array[:_LOOK] for name, array in rows.items()})


def _agree(ours: Sequence[int | str | None], theirs: Sequence[int | str | None]) -> bool:
    return all(not isinstance(a, int) or not isinstance(b, int) or a == b for a, b in zip(ours, theirs, strict=True))
