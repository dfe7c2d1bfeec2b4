"""What passes that train have in common: their options, and what they ask for before anything starts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import onnx_ir as ir

from onnxedge.api import (
    AUTO,
    Accuracy,
    Augmentation,
    Context,
    Data,
    Pass,
    Result,
    TrainingSettings,
    UserError,
    check_rows,
    choose_engine,
    forked,
    infer_shapes,
    refresh_scopes,
)
from onnxedge_passes.train.objective import Head, Labels, Weight, find_heads, float_outputs, read_labels, read_tasks
from onnxedge_passes.train.prepare_training import PrepareTraining

_FILLED = 200  #: epochs at most where the time decides


@dataclass(frozen=True, kw_only=True)
class Training(Pass):
    """Train the model's weights; the base of passes that do."""

    accuracy: ClassVar[Accuracy] = "lossy"
    trains: ClassVar[bool] = True

    usual_epochs: ClassVar[int] = 30

    epochs: int | None = None  #: times that all training samples are seen, at most; none for 30, with minutes for 200
    lr: float = 3e-4  #: highest learning rate; it rises at first and falls as a cosine
    batch: int = 64  #: samples a step
    minutes: float = 0.0  #: time that may be taken, the epochs are made to fit; 0 for any
    optimizer: Literal["adamw", "sgd"] = "adamw"  #: AdamW, or SGD with momentum
    momentum: float = 0.9  #: of SGD; the first moment's of AdamW
    weight_decay: float = 0.01  #: of weights, not of norms and biases
    warmup: float = 0.05  #: share of the steps in which the learning rate rises
    clip: float = 1.0  #: longest gradient, all weights together; 0 for any
    accumulate: int = 1  #: batches whose gradients make one step
    augment: tuple[str, ...] = (AUTO,)  #: auto, flip, crop:4, scale:0.1, noise:0.1, shift:0.1, mix:0.5, module:function
    views: int = 16  #: different views of the data that augmentation makes, in turns; 0 for a new one each epoch
    output: str = ""  #: name of the output that labels without a name are for; the first that they fit
    tasks: tuple[
        str, ...
    ] = ()  #: outputs that count, as `age`, `age=0.5` or `age=1:0.2` (first step:last); all for none
    freeze: tuple[str, ...] = ()  #: patterns of names of weights that stay as they are, such as `[stem*]`
    zeros: Literal["keep", "train"] = "keep"  #: of weights that are sparse, a tenth or more of them exactly 0
    batchnorm: Literal["live", "frozen"] = "live"  #: normalise by the batch while training, or by running statistics
    select: Literal["eval", "held-out", "last"] = "eval"  #: what chooses the epoch: --eval, part of --train, or nothing
    held_out: float = 0.1  #: 0..1, share of the training samples that chooses where --eval does not
    patience: int = 0  #: epochs without a better result after which training ends; 0 to go on
    engine: Literal["auto", "ort-training", "ort"] = "auto"  #: what computes gradients

    @property
    def most_epochs(self) -> int:
        """How many epochs there may be; with a time that is to be filled, more than usual."""
        if self.epochs is not None:
            return self.epochs
        return _FILLED if self.minutes else self.usual_epochs

    def settings(self, context: Context) -> TrainingSettings:
        """Return what the engine is told.

        Raises:
            UserError: an option is out of range.
        """
        return TrainingSettings(
            optimizer=self.optimizer,
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            warmup=self.warmup,
            clip=self.clip,
            epochs=self.most_epochs,
            batch=self.batch,
            accumulate=self.accumulate,
            seed=context.seed,
            threads=context.threads,
            minutes=self.minutes,
        )

    def requires(self, model: ir.Model, context: Context) -> None:
        """Check options, data and engine, and name the nodes that nothing can be trained before."""
        self.settings(context)
        self.weights_of_tasks(model)
        if not 0 < self.held_out < 1:
            raise UserError(f"{self.name}: held_out={self.held_out:g} is not a share above 0 and below 1")
        for option in ("views", "patience"):
            if getattr(self, option) < 0:
                raise UserError(f"{self.name}: {option}={getattr(self, option)} must be 0 or more")
        data = self.data(context)
        check_rows(data, self.name)
        Augmentation.parse(self.augment).check(data.inputs)
        choose_engine(self.engine)
        trial, _ = forked(model)
        refresh_scopes(trial)
        infer_shapes(trial)
        quiet = Context(context.target, None, original=trial, seed=context.seed, threads=context.threads)
        quiet.begin(self.name)
        PrepareTraining().prepare(trial, quiet)
        for note in quiet.notes:
            if "not trained" in note.reason or "nothing to train" in note.reason:
                context.note(note.where, note.reason)

    def data(self, context: Context) -> Data:
        """Return the samples to train on.

        Raises:
            UserError: there are none.
        """
        if context.train is None:
            raise UserError(f"{self.name}: needs samples to train on; give --train DATA")
        return context.train

    def has_labels(self, model: ir.Model, data: Data) -> bool:
        """Tell whether samples have labels, or an array with the name of an output."""
        return data.has_labels or bool(read_labels(data.slice(0, 1), [v.name for v in float_outputs(model)], None))

    def weights_of_tasks(self, model: ir.Model) -> dict[str, Weight]:
        """Return the weights of the outputs that count; empty for all."""
        return read_tasks(self.tasks, model, self.name)

    def heads(self, model: ir.Model, labels: Labels, **options: Any) -> list[Head]:
        """Return the outputs that are trained on labels; options as :func:`find_heads` takes them."""
        tasks = self.weights_of_tasks(model)
        return find_heads(model, labels, self.name, tasks=tasks, output=self.output, **options)

    def shortened(self, share: float) -> Pass:
        """Return the pass with a share of its epochs, one at least, and of its minutes."""
        return replace(self, epochs=max(1, round(share * self.most_epochs)), minutes=share * self.minutes)

    def chooses_by_metric(self) -> bool:
        """Tell whether --eval chooses the epoch: every second of its samples, the others measure the result."""
        return self.select == "eval"

    def run(self, model: ir.Model, context: Context) -> Result:
        """Train."""
        raise NotImplementedError
