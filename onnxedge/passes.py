"""What a pass is: its options, its promise, and the context that it runs in."""

from __future__ import annotations

import contextlib
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeVar

import numpy as np
import onnx_ir as ir

from onnxedge.errors import UserError
from onnxedge.model.graph import node_label
from onnxedge.model.skeleton import Skeleton

if TYPE_CHECKING:
    from onnxedge.data import Data
    from onnxedge.target import Target

Accuracy = Literal["exact", "rounding", "lossy"]
T = TypeVar("T")


@dataclass(frozen=True)
class Note:
    """Say why something was left alone, or what a user should know.

    Attributes:
        pass_name: the pass that speaks.
        where: node as Netron shows it, or the name of a value; empty for the whole model.
        reason: the reason, without the node's name, so that equal reasons can be counted together.
        rule: which part of a pass that is made of several speaks; empty where the pass is one.
    """

    pass_name: str
    where: str
    reason: str
    rule: str = ""


@dataclass(frozen=True)
class Result:
    """Tell what a pass did.

    Attributes:
        rewrites: number of rewrites; 0 says that the model is what it was.
        summary: one short line for the table, such as ``"widths 64 -> 48, 12 groups"``.
        figures: what the pass measured, JSON-ready, for the report.
    """

    rewrites: int = 0
    summary: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)


class Progress(Protocol):
    """Show how far a long step has come; the command line's draws bars, the default draws nothing."""

    def track(self, items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
        """Yield ``items`` one by one and show the count."""


class Silent:
    """Show no progress."""

    def track(self, items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
        """Yield ``items`` one by one."""
        del description, total
        yield from items


class Context:
    """Hold what a pass may use besides the model: target, data, seed, analyses, notes, progress.

    Attributes:
        target: the hardware and runtime that the model is made for.
        train: samples to train on, with labels where the user gave some; None without ``--train``.
        evaluation: samples to choose by, for passes that do, see :meth:`Pass.chooses_by_metric`; None where the user
            gave none to measure on. They are no part of those that the report is measured on, and nothing is fitted on
            them.
        metric: name of what their labels are scored with, as :func:`onnxedge.metrics.load_metric` takes it.
        seed: seed of all randomness.
        threads: threads that ONNX Runtime may use.
        progress: where long loops show how far they have come.
        unrunnable: why ONNX Runtime cannot run the model, empty where it can; then nothing can be calibrated.
        rule: which rule or step of the pass speaks, as :meth:`speaking` set it.
        notes: what passes said, in order.
    """

    def __init__(
        self,
        target: Target,
        calibration: Data | None,
        *,
        original: ir.Model | Skeleton,
        train: Data | None = None,
        evaluation: Data | None = None,
        metric: str = "top1",
        seed: int = 0,
        threads: int = 1,
        progress: Progress | None = None,
    ) -> None:
        self.target = target
        self._calibration = calibration
        self.train = train
        self.evaluation, self.metric = evaluation, metric
        self._original = original
        self.seed = seed
        self.threads = threads
        self.progress: Progress = progress or Silent()
        self.notes: list[Note] = []
        self.unrunnable = ""
        self.pass_name = ""
        self.rule = ""
        self._seen: set[Note] = set()
        self._analyses: dict[str, object] = {}

    @property
    def original(self) -> ir.Model:
        """Return the model as it was before the first pass, for lossy passes that compare with it; not to be edited."""
        if isinstance(self._original, Skeleton):
            self._original = self._original.revive()
        return self._original

    @property
    def calibration(self) -> Data:
        """Return samples as the model's inputs need them, the user's or synthesised ones; labels are not for passes.

        Raises:
            UserError: the model cannot be run here, so that there is nothing to calibrate with.
        """
        if self._calibration is None:
            raise UserError(f"the model cannot be calibrated: {self.unrunnable}")
        return self._calibration

    def rng(self) -> np.random.Generator:
        """Return a new generator, seeded by the run's seed and the pass's name: order of passes does not matter."""
        return np.random.default_rng([self.seed, zlib.crc32(self.pass_name.encode())])

    def note(self, where: ir.Node | ir.Value | str | None, reason: str) -> None:
        """Say why a node, a value or the whole model (None) was left alone; repeated notes are kept once."""
        if isinstance(where, ir.Node):
            place = node_label(where)
        elif isinstance(where, ir.Value):
            place = repr(where.name or "?")
        else:
            place = where or ""
        note = Note(self.pass_name, place, reason, self.rule)
        if note not in self._seen:
            self._seen.add(note)
            self.notes.append(note)

    @contextlib.contextmanager
    def speaking(self, rule: str) -> Iterator[None]:
        """Let the notes inside be those of one rule, or of one step, of the pass."""
        outer, self.rule = self.rule, rule
        try:
            yield
        finally:
            self.rule = outer

    def add_notes(self, notes: Iterable[Note]) -> None:
        """Take up notes that were said before and forgotten."""
        new = [note for note in dict.fromkeys(notes) if note not in self._seen]
        self.notes += new
        self._seen.update(new)

    def forget_notes(self, count: int) -> None:
        """Keep the first ``count`` notes: what came after them was said of a model that is given up."""
        del self.notes[count:]
        self._seen = set(self.notes)

    def analysis(self, key: str, compute: Callable[[], T]) -> T:
        """Return a cached analysis of the model, computed on first use; dropped when the next pass begins."""
        if key not in self._analyses:
            self._analyses[key] = compute()
        return self._analyses[key]  # type: ignore[return-value]

    def begin(self, pass_name: str) -> None:
        """Start a pass: its name stands in the notes and seeds its generator; what was cached is forgotten."""
        self.pass_name = pass_name
        self.rule = ""
        self._analyses.clear()


@dataclass(frozen=True, kw_only=True)
class Pass:
    """Rewrite a model in place. A pass is a frozen dataclass: its options are its fields, it has no other state.

    Class attributes:
        name: name in pipelines, lower case with ``-``.
        accuracy: promise that the manager holds the pass to. ``exact``: bit-equal outputs; ``rounding``: equal within
            the tolerance of float arithmetic done in another order; ``lossy``: measured and reported.
        needs_calibration: whether the pass reads the calibration samples.
        fixes_defaults: whether inputs that have a default may stop being inputs.
        sets_form: whether it is asked for the form that it gives (an opset, no functions), so that it is not taken back
            for being larger or slower.
        trains: whether it trains on samples that the user gives (``--train``).
        makes_student: whether it gives a model that is to be trained, so that its answers are not held against the
            original's, and those of the passes behind it against what training made of it.
    """

    name: ClassVar[str]
    accuracy: ClassVar[Accuracy] = "exact"
    needs_calibration: ClassVar[bool] = False
    fixes_defaults: ClassVar[bool] = False
    sets_form: ClassVar[bool] = False
    makes_student: ClassVar[bool] = False
    trains: ClassVar[bool] = False

    def requires(self, model: ir.Model, context: Context) -> None:
        """Check what the pass needs before any time is spent; all passes are asked before the first runs.

        Raises:
            UserError: the pass cannot run on this model, target or data; the message says what to do.
        """

    def shortened(self, share: float) -> Pass:
        """Return the pass with a share of the training, where it trains."""
        del share
        return self

    def in_turns_with(self, follower: Pass) -> Sequence[Pass]:
        """Return what stands for this pass and one that trains right behind it; empty where they run one by one."""
        del follower
        return ()

    def aims_elsewhere(self) -> bool:
        """Tell whether the pass, with its options, trains for other answers than the original's: labels, a teacher.

        Where samples have no labels its answers are not held against the original's, and those of the passes behind it
        against its own.
        """
        return False

    def chooses_by_metric(self) -> bool:
        """Tell whether the pass, with its options, chooses by a metric: it gets every second evaluation sample then."""
        return False

    def run(self, model: ir.Model, context: Context) -> Result:
        """Edit the model in place and say what was done; what was left alone is a note."""
        raise NotImplementedError(f"pass {type(self).__name__} has no run method")


def in_turns(steps: Iterable[Pass]) -> tuple[Pass, ...]:
    """Return a pipeline in which a pass and one that trains right behind it take turns, where the former says so."""
    made: list[Pass] = []
    for step in steps:
        turns = made[-1].in_turns_with(step) if made and step.trains else ()
        made[-1 if turns else len(made) :] = turns or (step,)
    return tuple(made)


def grouped_reasons(notes: Iterable[Note]) -> list[tuple[str, str, int, str]]:
    """Count notes by pass and reason: (pass, reason, count, first place), in order of first appearance."""
    counts: Counter[tuple[str, str]] = Counter()
    first: dict[tuple[str, str], str] = {}
    for note in notes:
        key = (note.pass_name, note.reason)
        counts[key] += 1
        first.setdefault(key, note.where)
    return [(name, reason, counts[name, reason], where) for (name, reason), where in first.items()]
