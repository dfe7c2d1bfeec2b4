"""Engines of training: a worker in a process of its own; files in, files out, progress over a pipe."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxedge.errors import UserError
from onnxedge.model.graph import Array
from onnxedge.model.io import save
from onnxedge.training.compose import Composed
from onnxedge.training.overlay import Environment, environment, find_environment, own_environment
from onnxedge.training.settings import Settings
from onnxedge.training.stock import write_step

_WORKER = Path(__file__).with_name("worker.py")
Listener = Callable[[Mapping[str, Any]], None]
Values = Mapping[str, Array]
#: Is told how many epochs are finished, and what came out of them; says how many there will be.
Between = Callable[[int, Values], int]


@dataclass(frozen=True)
class Trained:
    """Hold what came out of a run.

    Attributes:
        values: weights, adapters and running statistics by name, float32.
        losses: mean of each epoch that was finished.
        finished: whether all epochs were, and not the time over before.
    """

    values: Mapping[str, Array]
    losses: tuple[float, ...]
    finished: bool


def train(
    composed: Composed,
    data: Mapping[str, Array] | Callable[[int], Mapping[str, Array]],
    folder: Path,
    settings: Settings,
    *,
    weights: Sequence[str],
    statistics: Sequence[str] = (),
    spared: Sequence[str] = (),
    listener: Listener = lambda _: None,
    between: Between | None = None,
    identity: str = "",
    where: Environment | None = None,
    engine: str = "auto",
    provider: str = "CPUExecutionProvider",
) -> Trained:
    """Train a composed graph, and go on where an earlier run of the same job in the same folder was stopped.

    Args:
        composed: the graph; prepared for training.
        data: for each input but the terms' weights an array, a row a sample; all of one length. Or a function that
            gives them for an epoch, counted from 0, as many rows each time.
        folder: for the job's files, its checkpoints and what comes out; made where it is not there.
        settings: see :class:`Settings`.
        weights: initializers that are trained, beside the adapters.
        statistics: running statistics of BatchNormalization, which follow the batches.
        spared: weights without weight decay.
        listener: is told each line of progress: ``ready``, ``resumed``, ``next``, ``step``, ``epoch``, ``late``,
            ``done``.
        between: asked before each epoch; the worker waits. What it is told of the values is empty at the beginning.
        identity: what the data is, where it is a function: a job goes on only on the same.
        where: interpreter and overlay; what was installed for None.
        engine: which one; see :func:`choose_engine`.
        provider: execution provider of engine ``ort``.

    Raises:
        UserError: onnxruntime-training is not there, data that does not fit, or the worker fails, with its reason.
    """
    engine, where = ("ort-training", where) if where is not None else choose_engine(engine)
    trained = [*weights, *composed.adapters]
    if not trained:
        raise UserError(f"{engine}: nothing to train: no weight has a gradient; see the notes of prepare-training")
    unknown = [name for name in (*trained, *statistics) if name not in composed.model.graph.initializers]
    if unknown:
        raise UserError(f"{engine}: the graph has no initializer {unknown[0]!r}")
    given = data if callable(data) else lambda _: data
    arrays = _checked(composed, given(0)) if not callable(data) else {}
    folder.mkdir(parents=True, exist_ok=True)
    names = [*trained, *statistics]
    job = {
        **dataclasses.asdict(settings),
        "engine": engine,
        "provider": provider,
        "inputs": _input_names(composed),
        "weights": composed.weights,
        "trained": trained,
        "statistics": list(statistics),
        "spared": list(spared),
        "asks": between is not None or callable(data),
        "data": identity if callable(data) else "",
    }
    finished = _begin(folder, job, composed, arrays)
    desk = _Desk(folder, composed, given, names, settings.epochs, between)
    if callable(data):
        desk.put(finished)
    if engine == "ort":
        lists = {"inputs": job["inputs"], "trained": trained, "statistics": statistics, "spared": spared}
        write_step(folder, composed, settings, **lists)
    last: Mapping[str, Any] = {}
    for line in _lines(where, folder, desk):
        listener(line)
        last = line
    if last.get("kind") != "done":
        reason = last.get("reason") or "the worker died; is there enough memory?"
        raise UserError(f"{engine}: {reason}")
    values, losses = read_values(folder / "trained.npz", names)
    return Trained(values, losses, len(losses) == settings.epochs)


def choose_engine(engine: str = "auto") -> tuple[str, Environment]:
    """Return the name of an engine and where it runs; for ``auto`` onnxruntime-training where it is installed.

    Raises:
        UserError: it is not installed; one line with the command that installs it.
    """
    if engine == "auto":
        engine = "ort" if find_environment() is None else "ort-training"
    if engine not in ("ort", "ort-training"):
        raise UserError(f"training: engine={engine} is neither ort-training nor ort")
    return engine, environment() if engine == "ort-training" else own_environment()


def read_values(file: Path, names: Sequence[str]) -> tuple[dict[str, Array], tuple[float, ...]]:
    """Return what a worker wrote: parameters and statistics by name, and the mean loss of each epoch."""
    with np.load(file) as found:
        return {name: found[f"p{index}"] for index, name in enumerate(names)}, tuple(found["losses"].tolist())


class _Desk:
    """Answer what a worker asks between two epochs.

    Args:
        folder: of the job.
        composed: the graph.
        data: gives the arrays of an epoch.
        names: of parameters and statistics, in the worker's order.
        epochs: that there will be, as far as ``between`` does not say otherwise.
        between: see :func:`train`.
    """

    def __init__(
        self,
        folder: Path,
        composed: Composed,
        data: Callable[[int], Mapping[str, Array]],
        names: Sequence[str],
        epochs: int,
        between: Between | None,
    ) -> None:
        self._folder, self._composed, self._data, self._names = folder, composed, data, names
        self._epochs, self._between = epochs, between
        self._there: Mapping[str, Array] | None = None

    def put(self, epoch: int) -> None:
        """Write the arrays of an epoch, where they are not those that lie there."""
        arrays = self._data(epoch)
        if arrays is not self._there:
            _write(self._folder, _checked(self._composed, arrays))
            self._there = arrays

    def answer(self, epoch: int) -> str:
        """Return the line that a worker gets before an epoch."""
        epochs = self._epochs
        if self._between is not None:
            state = self._folder / "state.npz"
            epochs = self._between(epoch, read_values(state, self._names)[0] if epoch else {})
        if epoch < epochs:
            self.put(epoch)
        return json.dumps({"epochs": epochs}) + "\n"


def _input_names(composed: Composed) -> list[str]:
    graph = composed.model.graph
    return [v.name or "" for v in graph.inputs if v.name != composed.weights and not v.is_initializer()]


def _checked(composed: Composed, data: Mapping[str, Array]) -> dict[str, Array]:
    """Return the arrays of the graph's inputs, in their order."""
    names = _input_names(composed)
    missing = [name for name in names if name not in data]
    if missing:
        raise UserError(f"ort-training: no data for input {missing[0]!r}")
    lengths = {name: len(data[name]) for name in names}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise UserError(f"ort-training: the inputs have different numbers of samples, or none: {lengths}")
    return {name: data[name] for name in names}


def _write(folder: Path, arrays: Mapping[str, Array]) -> list[str]:
    """Write a job's inputs, each whole: the worker may have the ones before open."""
    files = [f"input.{index}.npy" for index in range(len(arrays))]
    for name, array in zip(files, arrays.values(), strict=True):
        partial = folder / f".{name}"
        with partial.open("wb") as file:
            np.save(file, array)
        os.replace(partial, folder / name)
    return files


def _begin(folder: Path, job: Mapping[str, Any], composed: Composed, arrays: Mapping[str, Array]) -> int:
    """Write the job's files; what an earlier run left goes away unless it was of the same job.

    Returns:
        Epochs that an earlier run finished.
    """
    save(composed.model, folder / "model.onnx")
    np.save(folder / "weights.npy", composed.schedule)
    files = ["model.onnx", *_write(folder, arrays), "weights.npy"]
    text = json.dumps({**job, "content": [_digest(folder / name) for name in files]}, indent=1)
    file, state = folder / "job.json", folder / "state.npz"
    if not file.is_file() or file.read_text("utf-8") != text:
        state.unlink(missing_ok=True)
    (folder / "trained.npz").unlink(missing_ok=True)
    file.write_text(text, "utf-8")
    if not state.is_file():
        return 0
    with np.load(state) as found:
        return int(found["at"][0])


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _lines(where: Environment, folder: Path, desk: _Desk) -> Iterator[Mapping[str, Any]]:
    """Run a worker, answer what it asks, and yield what it says; it ends with this process, however that ends."""
    variables = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    if where.overlay is not None:
        variables["PYTHONPATH"] = str(where.overlay)
    with (folder / "worker.log").open("wb") as log:
        worker = subprocess.Popen(
            [where.python, str(_WORKER), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=variables,
            text=True,
        )
        assert worker.stdout is not None
        assert worker.stdin is not None
        try:
            for text in worker.stdout:
                line = json.loads(text)
                yield line
                if line["kind"] == "next":
                    worker.stdin.write(desk.answer(line["epoch"]))
                    worker.stdin.flush()
        finally:
            worker.kill()
            worker.wait()
            worker.stdout.close()
            with contextlib.suppress(OSError):  # it may have died before it read what was written
                worker.stdin.close()
