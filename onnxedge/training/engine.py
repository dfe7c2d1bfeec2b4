"""Engine ``ort-training``: a worker in a process of its own; files in, files out, progress over a pipe."""

from __future__ import annotations

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
from onnxedge.training.overlay import Environment, environment
from onnxedge.training.settings import Settings

_WORKER = Path(__file__).with_name("worker.py")
Listener = Callable[[Mapping[str, Any]], None]


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
    data: Mapping[str, Array],
    folder: Path,
    settings: Settings,
    *,
    weights: Sequence[str],
    statistics: Sequence[str] = (),
    spared: Sequence[str] = (),
    terms: Array | None = None,
    listener: Listener = lambda _: None,
    where: Environment | None = None,
) -> Trained:
    """Train a composed graph, and go on where an earlier run of the same job in the same folder was stopped.

    Args:
        composed: the graph; prepared for training.
        data: for each input but the terms' weights an array, a row a sample; all of one length.
        folder: for the job's files, its checkpoints and what comes out; made where it is not there.
        settings: see :class:`Settings`.
        weights: initializers that are trained, beside the adapters.
        statistics: running statistics of BatchNormalization, which follow the batches.
        spared: weights without weight decay.
        terms: weights of the loss's terms, float32 [terms] or [epochs, terms]; the initial ones for None.
        listener: is told each line of progress: ``ready``, ``resumed``, ``epoch``, ``late``, ``done``.
        where: interpreter and overlay; what was installed for None.

    Raises:
        UserError: onnxruntime-training is not there, data that does not fit, or the worker fails, with its reason.
    """
    where = where or environment()
    trained = [*weights, *composed.adapters]
    if not trained:
        raise UserError("ort-training: nothing to train: no weight has a gradient; see the notes of prepare-training")
    unknown = [name for name in (*trained, *statistics) if name not in composed.model.graph.initializers]
    if unknown:
        raise UserError(f"ort-training: the graph has no initializer {unknown[0]!r}")
    arrays = _checked(composed, data)
    folder.mkdir(parents=True, exist_ok=True)
    job = {
        **dataclasses.asdict(settings),
        "inputs": list(arrays),
        "weights": composed.weights,
        "trained": trained,
        "statistics": list(statistics),
        "spared": list(spared),
    }
    _begin(folder, job, composed, arrays, _rows(composed, terms))
    last: Mapping[str, Any] = {}
    for line in _lines(where, folder):
        listener(line)
        last = line
    if last.get("kind") != "done":
        reason = last.get("reason") or "the worker died; is there enough memory?"
        raise UserError(f"ort-training: {reason}")
    with np.load(folder / "trained.npz") as found:
        values = {name: found[f"p{index}"] for index, name in enumerate([*trained, *statistics])}
        losses = tuple(found["losses"].tolist())
    return Trained(values, losses, len(losses) == settings.epochs)


def _checked(composed: Composed, data: Mapping[str, Array]) -> dict[str, Array]:
    """Return the arrays of the graph's inputs, in their order."""
    graph = composed.model.graph
    names = [v.name or "" for v in graph.inputs if v.name != composed.weights and not v.is_initializer()]
    missing = [name for name in names if name not in data]
    if missing:
        raise UserError(f"ort-training: no data for input {missing[0]!r}")
    lengths = {name: len(data[name]) for name in names}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise UserError(f"ort-training: the inputs have different numbers of samples, or none: {lengths}")
    return {name: data[name] for name in names}


def _rows(composed: Composed, terms: Array | None) -> Array:
    rows = np.atleast_2d(np.asarray(composed.initial if terms is None else terms, np.float32))
    if rows.ndim != 2 or rows.shape[1] != len(composed.initial) or not np.isfinite(rows).all():
        raise UserError(f"ort-training: the loss has {len(composed.initial)} terms, their weights are {rows.shape}")
    return rows


def _begin(folder: Path, job: Mapping[str, Any], composed: Composed, arrays: Mapping[str, Array], rows: Array) -> None:
    """Write the job's files; what an earlier run left goes away unless it was of the same job."""
    save(composed.model, folder / "model.onnx")
    for index, array in enumerate(arrays.values()):
        np.save(folder / f"input.{index}.npy", array)
    np.save(folder / "weights.npy", rows)
    files = ["model.onnx", *(f"input.{index}.npy" for index in range(len(arrays))), "weights.npy"]
    text = json.dumps({**job, "content": [_digest(folder / name) for name in files]}, indent=1)
    file, state = folder / "job.json", folder / "state.npz"
    if not file.is_file() or file.read_text("utf-8") != text:
        state.unlink(missing_ok=True)
    (folder / "trained.npz").unlink(missing_ok=True)
    file.write_text(text, "utf-8")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _lines(where: Environment, folder: Path) -> Iterator[Mapping[str, Any]]:
    """Run a worker, and yield what it says; it ends with this process, however that ends."""
    variables = {**os.environ, "PYTHONPATH": str(where.overlay), "PYTHONDONTWRITEBYTECODE": "1"}
    with (folder / "worker.log").open("wb") as log:
        worker = subprocess.Popen(
            [where.python, str(_WORKER), str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            env=variables,
            text=True,
        )
        assert worker.stdout is not None
        try:
            for line in worker.stdout:
                yield json.loads(line)
        finally:
            worker.kill()
            worker.wait()
            worker.stdout.close()
