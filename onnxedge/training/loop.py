"""The loop around an engine: data and teacher of each epoch, the best checkpoint, when to stop, what is shown."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from onnxedge.model.files import write_whole
from onnxedge.model.graph import Array
from onnxedge.passes import Progress
from onnxedge.runtime import InputSpec
from onnxedge.training.augment import Augmentation
from onnxedge.training.choice import Score
from onnxedge.training.compose import Composed
from onnxedge.training.engine import Trained, Values, train
from onnxedge.training.settings import Settings
from onnxedge.training.teacher import Teacher


@dataclass(frozen=True)
class Samples:
    """Hold what is trained on.

    Attributes:
        inputs: of the model.
        arrays: by input name, [S, ...].
        columns: labels and targets by name, [S, ...].
        identity: hash of the samples.
        augmentation: gives the views.
        views: number of different views, which epochs take in turns; 0 for another one each epoch. What the teacher
            says of a view is computed once.
        seed: of the views.
    """

    inputs: Sequence[InputSpec]
    arrays: Mapping[str, Array]
    columns: Mapping[str, Array]
    identity: str
    augmentation: Augmentation
    views: int
    seed: int

    def number(self, epoch: int) -> int:
        """Return the number of the view of an epoch."""
        return 0 if not self.augmentation.steps else epoch % self.views if self.views else epoch

    def labels(self, column: str, number: int) -> Array:
        """Return the labels of a view."""
        return self.augmentation.relabel(self.columns[column], (self.seed, number))

    def view(self, number: int, folder: Path | None = None) -> tuple[Mapping[str, Array], str]:
        """Return the arrays of a view, in a folder where one is given, and what they are: hash and number."""
        if not self.augmentation.steps:
            return self.arrays, self.identity
        steps = "+".join(self.augmentation.steps)
        name = f"{self.identity}-{_hash(steps)}-{self.seed}-{number}"
        return self.augmentation.apply(self.arrays, self.inputs, (self.seed, number), folder), name


@dataclass(frozen=True, kw_only=True)
class Loop:
    """Say how checkpoints are chosen and when training ends.

    Attributes:
        patience: epochs without a better score after which training ends; 0 to go on.
        evaluate: gives the score of weights; None where the last ones are taken.
        label: what stands before the progress.
    """

    patience: int = 0
    evaluate: Callable[[Values], Score] | None = None
    label: str = "training"


@dataclass
class History:
    """Hold what happened, for the report and for going on.

    Attributes:
        before: score of the weights that training began with.
        scores: of each epoch that is finished.
        best: epoch whose weights are the best, 0 for those before.
        losses: mean of each epoch.
        seconds: that this run took, loading and scoring included.
        resumed: epochs that an earlier run finished.
        planned: epochs that there were to be.
        finished: False where the time was over first.
    """

    before: Score | None = None
    scores: list[Score] = field(default_factory=list)
    best: int = 0
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    resumed: int = 0
    planned: int = 0
    finished: bool = True

    def is_best(self, score: Score) -> bool:
        """Tell whether the next epoch's weights are to be taken before all others.

        Of epochs that are within a standard error of the best one, the one nearest to the teacher is taken, without a
        teacher the last of equal ones. Source: the one-standard-error rule, Breiman et al. 1984, section 3.4.3.
        """
        best = self.best_score
        if self.before is not None and not score.improves_on(self.before):
            return False
        if not self.best or best is None:
            return True
        if score.second == best.second:
            return not best.beats(score)
        least = max(other.value for other in (*self.scores, score)) - score.error
        return score.value >= least and (score.second > best.second or best.value < least)

    @property
    def best_score(self) -> Score | None:
        """Return the score of the weights that are given back, None where nothing is scored."""
        return self.scores[self.best - 1] if 0 < self.best <= len(self.scores) else self.before


def train_loop(
    composed: Composed,
    samples: Samples,
    teacher: Teacher | None,
    folder: Path,
    settings: Settings,
    loop: Loop,
    *,
    weights: Sequence[str],
    statistics: Sequence[str],
    spared: Sequence[str],
    initial: Values,
    progress: Progress,
    engine: str = "auto",
) -> tuple[Values, History]:
    """Train, and return the best weights, with adapters and statistics, and what happened.

    Args:
        composed: student and loss.
        samples: what is trained on.
        teacher: gives what the graph reads of one; None where it reads nothing.
        folder: of the run; one that was stopped goes on there.
        settings: of the engine.
        loop: of this.
        weights, statistics, spared: as :func:`onnxedge.training.engine.train` takes them.
        initial: what ``evaluate`` gets for the weights before training.
        progress: shows how far an epoch has come.
        engine: which one.
    """
    run = _Run(composed, samples, teacher, folder, settings, loop, initial, progress)
    plain = not samples.augmentation.steps
    done = train(
        composed,
        run.data,
        folder,
        settings,
        weights=weights,
        statistics=statistics,
        spared=spared,
        listener=run.listen,
        between=run.between,
        identity=f"{samples.identity} {samples.augmentation.steps} {samples.views} {samples.seed} {plain}",
        engine=engine,
    )
    return run.finish(done)


class _Run:
    """One run: what it was asked, what it saw."""

    def __init__(
        self,
        composed: Composed,
        samples: Samples,
        teacher: Teacher | None,
        folder: Path,
        settings: Settings,
        loop: Loop,
        initial: Values,
        progress: Progress,
    ) -> None:
        self._composed, self._samples, self._teacher = composed, samples, teacher
        self._folder, self._settings, self._loop, self._initial = folder, settings, loop, initial
        self._progress = _Ticks(progress)
        self._view: tuple[int, Mapping[str, Array]] | None = None
        self._began = time.monotonic()
        self._first: tuple[int, float] | None = None  # epoch and time at which this run began to train
        self.history = History(planned=settings.epochs)

    def data(self, epoch: int) -> Mapping[str, Array]:
        """Return the arrays of an epoch: samples, labels, and what the teacher says of them."""
        number = self._samples.number(epoch)
        if self._view is None or self._view[0] != number:
            arrays, identity = self._samples.view(number, self._folder)
            made = dict(arrays)
            for column, name in self._composed.columns.items():
                made[name] = self._samples.labels(column, number)
            if self._teacher is not None and self._composed.teachers:
                kept = identity if self._samples.views or not self._samples.augmentation.steps else ""
                said = self._teacher.says(arrays, kept, self._folder)
                for value, name in self._composed.teachers.items():
                    made[name] = said[value]
            self._view = (number, made)
        return self._view[1]

    def listen(self, line: Mapping[str, Any]) -> None:
        """Take what the worker says."""
        kind = line["kind"]
        if kind == "resumed":
            self.history.resumed = line["epoch"]
        elif kind == "step":
            self._progress.show(line["step"], line["steps"], self._told(line["epoch"], line["loss"]))
        elif kind in ("epoch", "late"):
            self._progress.end()
        if kind == "late":
            self.history.finished = False

    def _told(self, epoch: int, loss: float) -> str:
        best = self.history.best_score
        shown = f", {best.text()}" if best is not None else ""
        return f"epoch {epoch + 1}/{self.history.planned}: loss {loss:.3g}{shown}"

    def between(self, epoch: int, values: Values) -> int:
        """Score what an epoch made, keep it where it is the best, and say how many epochs there will be."""
        if self._first is None:
            self._load(epoch)
        if len(self.history.scores) < epoch:
            self._score(epoch, values)
        self._save()
        now = time.monotonic()
        if self._first is None:
            self._first = (epoch, now)
        self.history.planned = self._planned(epoch, now)
        patience = self._loop.patience
        if patience and self._loop.evaluate is not None and epoch - self.history.best >= patience:
            return epoch
        return self.history.planned

    def _planned(self, epoch: int, now: float) -> int:
        """Return how many epochs the time allows, at the pace so far: then the learning rate ends where they do."""
        most, limit = self._settings.epochs, self._settings.minutes * 60
        assert self._first is not None
        done = epoch - self._first[0]
        if not limit or not done:
            return most
        pace = (now - self._first[1]) / done
        left = limit - (now - self._began)
        fits = epoch + math.floor(left / pace)
        if fits < most:
            self.history.finished = False
        return min(most, max(fits, epoch))

    def _score(self, epoch: int, values: Values) -> None:
        if self._loop.evaluate is None:
            return
        score = self._loop.evaluate(values)
        if self.history.is_best(score):
            self.history.best = epoch
            names = list(values)
            with (self._folder / ".best.npz").open("wb") as file:
                np.savez(file, allow_pickle=False, **{f"p{index}": values[name] for index, name in enumerate(names)})
            (self._folder / ".best.npz").replace(self._folder / "best.npz")
        self.history.scores.append(score)

    def _load(self, epoch: int) -> None:
        """Take up what an earlier run wrote down, or score the weights before training."""
        try:
            found = json.loads((self._folder / "loop.json").read_text("utf-8")) if epoch else {}
            self.history.before = Score(**found["before"]) if found.get("before") else None
            self.history.scores = [Score(**score) for score in found.get("scores", ())][:epoch]
            self.history.best = min(int(found.get("best", 0)), epoch)
        except (OSError, ValueError, TypeError, KeyError):
            self.history = History(planned=self._settings.epochs, resumed=self.history.resumed)
        if self._loop.evaluate is not None and self.history.before is None:
            self.history.before = self._loop.evaluate(self._initial)
        while self._loop.evaluate is not None and len(self.history.scores) < epoch - 1:  # never scored: as before
            assert self.history.before is not None
            self.history.scores.append(self.history.before)

    def _save(self) -> None:
        history = self.history
        written = {
            "before": asdict(history.before) if history.before is not None else None,
            "scores": [asdict(score) for score in history.scores],
            "best": history.best,
        }
        write_whole(self._folder / "loop.json", json.dumps(written).encode())

    def finish(self, done: Trained) -> tuple[Values, History]:
        """Score what came last, where it was not, and return the best."""
        self._progress.end()
        history, names = self.history, list(done.values)
        history.losses = list(done.losses)
        if self._loop.evaluate is not None and (len(history.scores) < len(done.losses) or self._is_late(done)):
            self._score(len(history.scores) + 1, done.values)
        history.seconds = time.monotonic() - self._began
        if self._loop.evaluate is None:
            history.best = len(done.losses)
            return done.values, history
        if not history.best:
            return self._initial, history
        with np.load(self._folder / "best.npz") as found:
            return {name: found[f"p{index}"] for index, name in enumerate(names)}, history

    def _is_late(self, done: Trained) -> bool:
        """Tell whether part of an epoch came behind the last one that was finished."""
        return not self.history.finished and len(self.history.scores) == len(done.losses) < self.history.planned


class _Ticks:
    """Drive a bar by hand."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._bar: Iterator[int] | None = None
        self._at = 0

    def show(self, at: int, total: int, text: str) -> None:
        """Move the bar."""
        if self._bar is None:
            self._bar, self._at = iter(self._progress.track(range(total), text, total)), 0
        while self._at < at:
            next(self._bar, None)
            self._at += 1

    def end(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            for _ in self._bar:
                pass
        self._bar = None


def _hash(text: str) -> str:
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()[:8]
