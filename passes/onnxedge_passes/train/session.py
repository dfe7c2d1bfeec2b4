"""One training of a model: a fork of it is prepared and trained, and the best weights are put back by name."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxedge.api import (
    AUTO,
    SAFE,
    Array,
    Augmentation,
    CannotRun,
    Choice,
    Context,
    Data,
    Feed,
    HardLabels,
    History,
    Loop,
    Loss,
    Result,
    ScoredTask,
    Teacher,
    TrainingSamples,
    TrainingScore,
    UserError,
    compose,
    constant,
    digest_of,
    forked,
    infer_shapes,
    model_inputs,
    refresh_scopes,
    run_folder,
    store_rows,
    train_loop,
    try_steps,
)
from onnxedge_passes.train.batch import fixed_batch, free_batch
from onnxedge_passes.train.normalize import Restored, folded, normalized_outputs, restore_normalizations
from onnxedge_passes.train.objective import LABELS, Head, Kind, Labels, Objective, label_head, read_labels
from onnxedge_passes.train.prepare_training import PrepareTraining, Trainable
from onnxedge_passes.train.signal import signal_constants
from onnxedge_passes.train.training import Training
from onnxedge_passes.train.weights import put_weights
from onnxedge_passes.train.zeros import hold_zeros, sparse_weights

_STATISTICS = 512  #: samples that normalizations that come back get their statistics from
_FEW = 8  #: samples in a batch below which statistics of the batch are none
#: Changes the prepared fork before the loss is put behind it (fake quantization), and says what is trained then.
Change = Callable[[ir.Model, Trainable], Trainable]
#: Puts trained values into a copy of the model, or into the model itself; returns how many differ.
Put = Callable[[ir.Model, Mapping[str, Array]], int]
#: Says what a model is trained for, once samples and labels are known.
Aim = Callable[[ir.Model, Mapping[str, Array], Labels], Objective]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Say what a training differs in.

    Attributes:
        objective: gives the losses for the model with shapes inferred, some rows of samples, and the labels.
        teacher: where losses look up a teacher's values; None without one.
        change: of the prepared fork.
        put: of the values; ``put_weights`` for None. Running statistics come with the weights, adapters do not.
        like: what identifies the run beside the model, the data and the options.
        verb: for messages, such as "distilled".
    """

    objective: Aim
    teacher: ir.Model | None = None
    change: Change | None = None
    put: Put | None = None
    like: str = ""
    verb: str = "trained"


def train_model(model: ir.Model, context: Context, options: Training, plan: Plan) -> Result:
    """Train a model in place; it stays what it was where training makes it no better.

    Args:
        model: edited: other values in its constants, nothing else (but for what ``plan.put`` does).
        context: with the samples to train on and to choose by.
        options: of the pass.
        plan: what is trained for.
    """
    return _Training(model, context, options, plan).run()


class _Training:
    """One training of one model."""

    def __init__(self, model: ir.Model, context: Context, options: Training, plan: Plan) -> None:
        self.model, self.context, self.options, self.plan = model, context, options, plan
        self.settings = options.settings(context)
        self.data, self.held, self.chooser = self._parts()
        self.restored: list[Restored] = []
        self.kept: dict[str, Array] = {}
        self.put: Put = plan.put or put_weights

    def _parts(self) -> tuple[Data, Data | None, str]:
        """Return the samples to train on, those that choose the epoch, and what those are."""
        options, context = self.options, self.context
        data = options.data(context)
        if options.select == "last":
            return data, None, "nothing: the last epoch is taken"
        if options.select == "eval" and context.evaluation is not None:
            given = context.evaluation
            return data, given, f"{len(given)} samples of {_short(given.source)} that do not measure the result"
        if len(data) < 2:
            return data, None, "nothing: there is one sample"
        fit, held = data.split(options.held_out)
        return fit, held, f"{len(held)} samples of {_short(data.source)} that are not trained on"

    def run(self) -> Result:
        """Train, choose, put back."""
        context = self.context
        fork, _ = forked(self.model)
        refresh_scopes(fork)
        infer_shapes(fork)
        chooses = (self.held.digest if self.held is not None else "", context.metric)
        trains = (self.data.digest, self.settings.seed, self.settings.threads)
        outputs = [value.name for value in fork.graph.outputs]
        columns = read_labels(self.data, outputs, None)
        named = [(name, hashlib.sha256(array.tobytes()).hexdigest()) for name, array in columns.items()]
        key = digest_of(self.model, self.options, self.plan.like, named, *trains, *chooses)
        with run_folder(key) as folder:
            arrays, labels = store_rows(self.data, folder)
            frozen = self._free_batch(fork, arrays)
            objective = self.plan.objective(fork, arrays, columns if labels is None else {"": labels, **columns})
            if not objective.losses:
                return Result()
            if not frozen:
                self._restore(fork, arrays)
            trainable = self._prepare(fork, objective.losses, frozen)
            if not trainable.weights:
                context.note(None, f"left alone: nothing can be {self.plan.verb}")
                return Result(figures={"weights": 0})
            return self._train(fork, objective, trainable, arrays, folder)

    def _free_batch(self, fork: ir.Model, arrays: Mapping[str, Array]) -> bool:
        """Free the batch; return whether statistics of batches are to be frozen."""
        if free_batch(fork, arrays, self.context.threads):
            return self.options.batchnorm == "frozen"
        size = fixed_batch(fork) or 1
        many = max(1, round(self.settings.batch * self.settings.accumulate / size))
        self.settings = replace(self.settings, batch=size, accumulate=many)
        self.context.note(None, f"the model fixes a batch of {size}: {many} of them make a step")
        return self.options.batchnorm == "frozen" or size < _FEW

    def _restore(self, fork: ir.Model, arrays: Mapping[str, Array]) -> None:
        """Let normalizations that the model began with, and that were folded since, be there while it is trained."""
        teacher = self.plan.teacher
        names = normalized_outputs(self.context.original) | (
            normalized_outputs(teacher) if teacher is not None else set()
        )
        feeds = _feeds(arrays, _STATISTICS)
        self.restored = restore_normalizations(fork.graph, fork, names, feeds, self.context)
        if self.restored:
            self.context.note(
                None, f"{len(self.restored)} BatchNormalizations that were folded normalise again while it is trained"
            )

    def _prepare(self, fork: ir.Model, losses: Sequence[Loss], frozen: bool) -> Trainable:
        refresh_scopes(fork)
        infer_shapes(fork)
        outputs = tuple(dict.fromkeys(loss.output for loss in losses))
        prepare = PrepareTraining(batchnorm="frozen" if frozen else "live", outputs=outputs)
        prepare.requires(fork, self.context)
        signal = signal_constants(fork.graph)
        trainable = prepare.prepare(fork, self.context)[1]
        idle = {entry.bias for entry in self.restored}  # what comes next takes any shift away
        weights = {name: own for name, own in trainable.weights.items() if name not in idle and own not in signal}
        weights = self._unfrozen(weights)
        fixed = [own for own in trainable.weights.values() if own in signal]
        if fixed:
            self.context.note(fixed[0], f"{len(fixed)} constants that take a spectrum of the input are not trained")
        spared = tuple(name for name in trainable.spared if name in weights)
        trainable = replace(trainable, weights=weights, spared=spared)
        masks = sparse_weights(fork.graph, weights) if self.options.zeros == "keep" else {}
        self.kept = {weights[name]: mask for name, mask in masks.items()}
        if masks:
            self.context.note(next(iter(self.kept)), f"the zeros of {len(masks)} sparse weights stay (zeros=keep)")
        if self.plan.change is not None:
            trainable = self.plan.change(fork, trainable)
        hold_zeros(fork.graph, masks)
        return trainable

    def _unfrozen(self, weights: Mapping[str, str]) -> dict[str, str]:
        """Return the weights that the user does not want to stay as they are."""
        for pattern in self.options.freeze:
            if not any(fnmatchcase(own, pattern) for own in weights.values()):
                self.context.note(None, f"freeze: no weight is called {pattern!r}")
        return {n: own for n, own in weights.items() if not any(fnmatchcase(own, p) for p in self.options.freeze)}

    def _train(
        self,
        fork: ir.Model,
        objective: Objective,
        trainable: Trainable,
        arrays: Mapping[str, Array],
        folder: Path,
    ) -> Result:
        context, options = self.context, self.options
        composed = compose(fork, objective.losses, teacher=self.plan.teacher, seed=self.settings.seed)
        teacher = None
        if composed.teachers and self.plan.teacher is not None:
            teacher = Teacher(
                self.plan.teacher,
                list(composed.teachers),
                list(arrays),
                threads=context.threads,
                progress=context.progress,
            )
        columns = {head.column: head.labels for head in objective.heads if head.column in composed.columns}
        samples = TrainingSamples(
            self.data.inputs,
            arrays,
            columns,
            self.data.digest,
            self._augmentation(arrays),
            options.views,
            self.settings.seed,
        )
        self._before = {name: _held(fork, name) for entry in self.restored for name in astuple(entry)}
        choice = self._choice(fork, objective.heads)
        loop = Loop(patience=options.patience, evaluate=self._scored(choice, trainable) if choice is not None else None)
        values, history = train_loop(
            composed,
            samples,
            teacher,
            folder,
            self.settings,
            loop,
            weights=list(trainable.weights),
            statistics=list(trainable.statistics),
            spared=list(trainable.spared),
            initial={},
            progress=context.progress,
            engine=options.engine,
        )
        return self._finish(self._own(values, trainable), history, trainable)

    def _augmentation(self, arrays: Mapping[str, Array]) -> Augmentation:
        """Return the steps; for ``auto`` those that change no answer of the teacher, or of the model that was first."""
        steps = list(self.options.augment)
        if AUTO not in steps:
            return Augmentation.parse(steps)
        model = self.plan.teacher if self.plan.teacher is not None else self.context.original
        names = [value.name or "" for value in model.graph.outputs]
        tried: dict[str, float] = {}
        try:
            teacher = Teacher(model, names, list(arrays), threads=self.context.threads)
            tried = try_steps(teacher.answers, arrays, self.data.inputs)
        except (UserError, CannotRun) as err:  # other inputs, or an output without a row for each sample
            self.context.note(None, f"augment=auto: nothing, for the original cannot be asked: {err}")
        for text, share in tried.items():
            verdict = "taken" if share >= SAFE else "left out"
            self.context.note(None, f"augment=auto: {text} {verdict}: {100 * share:.0f} % of samples keep their class")
        at, taken = steps.index(AUTO), [text for text, share in tried.items() if share >= SAFE]
        return Augmentation.parse([*steps[:at], *taken, *steps[at + 1 :]])

    def _choice(self, fork: ir.Model, heads: Sequence[Head]) -> Choice | None:
        if self.held is None:
            return None
        teacher = self.plan.teacher
        reference = _reference(teacher, self.model, self.context.threads) if teacher is not None else None
        choice = Choice(
            self.held,
            metric=self.context.metric,
            reference=reference,
            threads=self.context.threads,
            tasks=self._tasks(fork, heads, self.held),
        )
        if choice.is_possible:
            return choice
        self.chooser = "nothing: no labels, no teacher; the last epoch is taken"
        return None

    def _tasks(self, fork: ir.Model, heads: Sequence[Head], held: Data) -> list[ScoredTask]:
        """Return how the outputs that have labels are scored; none for classes that the metric scores."""
        if len(heads) == 1 and heads[0].column == LABELS and isinstance(heads[0].loss, HardLabels):
            return []
        tasks: list[ScoredTask] = []
        for head in heads:
            labels = held.column(head.output) if head.column != LABELS else held.labels()
            if labels is None:
                self.context.note(head.output, f"does not count where the epoch is chosen: {held.source} has no labels")
                continue
            kind: Kind = "classes" if isinstance(head.loss, HardLabels) else "values"
            own = label_head(fork, labels, self.options.name, output=head.output, kind=kind)
            tasks.append(ScoredTask(head.output, own.labels, own.axis if kind == "classes" else None))
        return tasks

    def _scored(self, choice: Choice, trainable: Trainable) -> Callable[[Mapping[str, Array]], TrainingScore]:
        def score(values: Mapping[str, Array]) -> TrainingScore:
            copy, _ = forked(self.model)
            self.put(copy, self._own(values, trainable))  # of no values, too: it may round those that are there
            return choice.score(copy)

        return score

    def _own(self, values: Mapping[str, Array], trainable: Trainable) -> dict[str, Array]:
        """Return trained values by the names of the model: no adapters, normalizations folded."""
        if not values:
            return {}
        made = folded(values, self.restored, self._before)
        known = {**trainable.weights, **{name: name for name in trainable.statistics}}
        inside = {name for entry in self.restored for name in astuple(entry)[2:]}
        extra = {name: name for entry in self.restored for name in (entry.weight, entry.bias)}
        known = {name: own for name, own in {**known, **extra}.items() if name not in inside}
        own = {known[name]: array for name, array in made.items() if name in known}
        return {name: array * self.kept[name] if name in self.kept else array for name, array in own.items()}

    def _finish(self, values: Mapping[str, Array], history: History, trainable: Trainable) -> Result:
        figures = self._figures(history, trainable)
        before, best = history.before, history.best_score
        if not values:
            shown = "" if before is None else f": {before.text()} before"
            top = max(history.scores, key=lambda score: (score.value, score.second), default=None)
            shown += "" if top is None else f", {top.text()} at best after"
            self.context.note(None, f"left alone: training made it no better{shown}, on {self.chooser}")
            return Result(figures=figures)
        changed = self.put(self.model, values)
        epochs = len(history.losses)
        summary = f"{epochs} epochs"
        if before is not None and best is not None:
            summary += f", epoch {history.best} taken: {before.text()} -> {best.text()} on {self.chooser}"
        if not history.finished and self.options.epochs is not None:
            summary += f"; the time was over after {epochs} of {self.settings.epochs} epochs"
        return Result(rewrites=changed, summary=summary, figures=figures)

    def _figures(self, history: History, trainable: Trainable) -> dict[str, Any]:
        curve: dict[str, Any] = {"losses": [float(loss) for loss in history.losses]}
        if history.before is not None:
            name = history.before.name
            curve |= {
                "metric": name,
                "values": [s.value for s in (history.before, *history.scores)],
                "best": history.best,
            }
        return {
            "weights": len(trainable.weights),
            "untrained": len(trainable.untrained),
            "samples": len(self.data),
            "chosen_by": self.chooser,
            "epochs": len(history.losses),
            "epochs_resumed": history.resumed,
            "normalizations_restored": len(self.restored),
            "training_seconds": round(history.seconds, 1),
            "curve": curve,
        }


def _feeds(arrays: Mapping[str, Array], count: int, batch: int = 32) -> list[Feed]:
    rows = min(count, len(next(iter(arrays.values()))))
    return [
        {name: np.asarray(array[i : min(i + batch, rows)]) for name, array in arrays.items()}
        for i in range(0, rows, batch)
    ]


def _held(model: ir.Model, name: str) -> Array:
    value = model.graph.initializers[name]
    array = constant(value)
    assert array is not None
    return array


def _reference(teacher: ir.Model, student: ir.Model, threads: int) -> Callable[[Feed], Mapping[str, Array]] | None:
    """Return what runs a teacher on feeds of a student; None where its outputs are no match."""
    inputs = [spec.name for spec in model_inputs(student)]
    names, theirs = ([value.name or "" for value in model.graph.outputs] for model in (student, teacher))
    if len(theirs) != len(names) or len(model_inputs(teacher)) != len(inputs):
        return None
    values = names if set(theirs) == set(names) else theirs
    asked = Teacher(teacher, values, inputs, threads=threads)

    def run(feed: Feed) -> Mapping[str, Array]:
        return dict(zip(names, asked.answers(feed).values(), strict=True))

    return run


def _short(source: str) -> str:
    return Path(source).name if source else "the data"
