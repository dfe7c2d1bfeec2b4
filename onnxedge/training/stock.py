"""What engine ``ort`` lays into a job's folder before its worker begins."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import onnx

from onnxedge.errors import UserError
from onnxedge.model.graph import Array
from onnxedge.model.serialize import to_proto
from onnxedge.training.compose import Composed
from onnxedge.training.settings import Settings
from onnxedge.training.step import build_step


def write_step(
    folder: Path,
    composed: Composed,
    settings: Settings,
    *,
    inputs: Sequence[str],
    trained: Sequence[str],
    statistics: Sequence[str],
    spared: Collection[str],
) -> None:
    """Write the graphs, the values that they begin with, and what takes the place of what.

    Args:
        folder: of the job; the inputs of its first epoch are there.
        composed: the graph.
        settings: of the run.
        inputs: names of the inputs, in the order of their files.
        trained, statistics, spared: see :func:`onnxedge.training.engine.train`.

    Raises:
        UserError: an operator on the way from a weight to the loss has no gradient.
    """
    data = {name: np.load(folder / f"input.{index}.npy", mmap_mode="r") for index, name in enumerate(inputs)}
    feed = {name: np.ascontiguousarray(array[: settings.batch]) for name, array in data.items()}
    feed[composed.weights] = composed.schedule[0]
    step = build_step(
        to_proto(composed.model), feed, trained=trained, statistics=statistics, spared=spared, settings=settings
    )
    onnx.save(step.model, folder / "step.onnx")
    if step.update is not None:
        onnx.save(step.update, folder / "update.onnx")
    start = {f"p{index}": _value(composed, name) for index, name in enumerate([*trained, *statistics])}
    np.savez(folder / "start.npz", **start)  # type: ignore[arg-type]
    graphs = {
        "loss": step.loss,
        "schedule": step.schedule,
        "replaces": dict(step.replaces),
        "state": {name: list(shape) for name, shape in step.state.items()},
        "moments": {name: list(places) for name, places in step.moments.items()},
        "sums": list(step.sums),
    }
    (folder / "graphs.json").write_text(json.dumps(graphs, indent=1), "utf-8")


def _value(composed: Composed, name: str) -> Array:
    tensor = composed.model.graph.initializers[name].const_value
    if tensor is None:
        raise UserError(f"ort: initializer {name!r} has no value")
    return tensor.numpy()
