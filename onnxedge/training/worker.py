"""The process of engine ``ort-training``: files in, files out, progress as lines of JSON on standard output.

It runs beside ``onnxruntime-training`` and not beside ``onnxruntime``, maybe in an older Python, and so imports nothing
of onnxedge but its neighbour :mod:`optimizers`. Its one argument is a folder:

- ``job.json``: see :class:`onnxedge.training.engine.Job`; ``model.onnx``: the composed graph, output 0 the loss;
- ``input.<index>.npy``: float or integer [S, ...], a row a sample, memory-mapped; ``weights.npy``: [epochs, terms];
- ``state.npz``: what a run that was stopped goes on from; written whole after each epoch;
- ``trained.npz``: the parameters and running statistics by index, at the end.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import types
from collections.abc import Mapping
from typing import Any

import numpy as np

_HERE = os.path.dirname(os.path.abspath(__file__))


def main(folder: str) -> None:
    """Train what lies in a folder."""
    with open(os.path.join(folder, "job.json"), encoding="utf-8") as file:
        job = json.load(file)
    module, parameters = _module(folder, job)
    _say(kind="ready")
    inputs = [np.load(os.path.join(folder, f"input.{i}.npy"), mmap_mode="r") for i in range(len(job["inputs"]))]
    weights = np.load(os.path.join(folder, "weights.npy"))
    run = _Run(folder, job, module, parameters, dict(zip(job["inputs"], inputs, strict=True)), weights)
    run.resume()
    began, limit = time.monotonic(), job["minutes"] * 60
    for epoch in range(run.epoch, job["epochs"]):
        if not run.train(epoch, began + limit if limit else None):
            break
        run.save("state.npz")
    run.save("trained.npz")
    _say(kind="done", epochs=run.epoch, seconds=time.monotonic() - began)


class _Run:
    """One training run."""

    def __init__(
        self,
        folder: str,
        job: Mapping[str, Any],
        module: Any,
        parameters: Any,
        inputs: Mapping[str, np.ndarray[Any, Any]],
        weights: np.ndarray[Any, Any],
    ) -> None:
        self._folder, self._job, self._module, self._parameters = folder, job, module, parameters
        self._inputs, self._weights = inputs, weights
        self._samples = len(next(iter(inputs.values())))
        self._batch = min(job["batch"], self._samples)
        self._per_epoch = max(self._samples // self._batch // job["accumulate"], 1)
        steps = job["epochs"] * self._per_epoch
        self._optimizer = importlib.import_module("optimizers").Optimizer(job, job["spared"], steps)
        self.epoch = 0
        self._losses: list[float] = []

    def train(self, epoch: int, deadline: float | None) -> bool:
        """Train an epoch and return True, or False where the time is over; what was learned till then stays."""
        order = np.random.default_rng([self._job["seed"], epoch]).permutation(self._samples)
        weights = self._weights[min(epoch, len(self._weights) - 1)]
        names, trained, at, began = self._module.input_names(), self._job["trained"], 0, time.monotonic()
        total, count, parts = 0.0, 0, self._job["accumulate"]
        self._module.train()
        for step in range(self._per_epoch):
            for _ in range(min(parts, self._samples // self._batch)):
                rows = np.sort(order[at : at + self._batch])
                at += self._batch
                feed = {name: np.ascontiguousarray(array[rows]) for name, array in self._inputs.items()}
                feed[self._job["weights"]] = weights
                outputs = self._module(*[feed[name] for name in names])
                loss = float(np.asarray(outputs[0] if isinstance(outputs, (tuple, list)) else outputs))
                if not np.isfinite(loss):
                    raise _Failed(f"the loss is {loss} in epoch {epoch + 1}, step {step + 1}; try a smaller lr")
                total, count = total + loss, count + 1
            self._step(trained, parts)
            if deadline is not None and time.monotonic() > deadline:
                _say(kind="late", epoch=epoch, step=step + 1)
                return False
        self.epoch = epoch + 1
        self._losses.append(total / count)
        seconds = time.monotonic() - began
        _say(kind="epoch", epoch=self.epoch, loss=total / count, seconds=seconds, samples=count * self._batch)
        return True

    def _step(self, trained: list[str], parts: int) -> None:
        values = {name: self._parameters[name].data for name in trained}
        gradients = {name: self._parameters[name].grad / np.float32(parts) for name in trained}
        for name, value in self._optimizer.step(values, gradients).items():
            self._parameters[name].data = value
        self._module.lazy_reset_grad()

    def save(self, name: str) -> None:
        """Write parameters, and all else that a run goes on from, whole or not at all."""
        kept = [*self._job["trained"], *self._job["statistics"]]
        arrays = {f"p{index}": self._parameters[key].data for index, key in enumerate(kept)}
        if name == "state.npz":
            for index, key in enumerate(self._job["trained"]):
                for moment in ("first", "second"):
                    if f"{moment}.{key}" in self._optimizer.state:
                        arrays[f"{moment}{index}"] = self._optimizer.state[f"{moment}.{key}"]
        arrays["at"] = np.array([self.epoch, self._optimizer.step_count])
        arrays["losses"] = np.array(self._losses)
        partial = os.path.join(self._folder, f".{name}")
        with open(partial, "wb") as file:
            np.savez(file, **arrays)
        os.replace(partial, os.path.join(self._folder, name))

    def resume(self) -> None:
        """Go on from where an earlier run of the same job came to."""
        path = os.path.join(self._folder, "state.npz")
        if not os.path.exists(path):
            return
        with np.load(path) as state:
            for index, key in enumerate([*self._job["trained"], *self._job["statistics"]]):
                self._parameters[key].data = state[f"p{index}"]
                for moment in ("first", "second"):
                    if f"{moment}{index}" in state:
                        self._optimizer.state[f"{moment}.{key}"] = state[f"{moment}{index}"]
            self.epoch, self._optimizer.step_count = (int(n) for n in state["at"])
            self._losses = state["losses"].tolist()
        _say(kind="resumed", epoch=self.epoch)


class _Failed(Exception):
    """Say in one line why there is nothing to give back."""


def _module(folder: str, job: Mapping[str, Any]) -> tuple[Any, Any]:
    """Differentiate the graph, and return what runs it and its parameters."""
    for name in ("optim", "amp"):  # both import PyTorch, and nothing here needs them
        sys.modules[f"onnxruntime.training.{name}"] = types.ModuleType(f"onnxruntime.training.{name}")
    import onnx
    import onnxruntime
    from onnxruntime.training import artifacts
    from onnxruntime.training.api import CheckpointState, Module

    vars(onnx)["IR_VERSION"] = min(onnx.IR_VERSION, 8)  # the runtime is older than the onnx beside it
    onnxruntime.set_default_logger_severity(4)
    made = os.path.join(folder, "artifacts")
    os.makedirs(made, exist_ok=True)
    artifacts.generate_artifacts(
        onnx.load(os.path.join(folder, "model.onnx")),
        requires_grad=job["trained"],
        frozen_params=job["statistics"],
        loss=None,
        optimizer=None,
        artifact_directory=made,
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = job["threads"], 1
    state = CheckpointState.load_checkpoint(os.path.join(made, "checkpoint"))
    files = [os.path.join(made, f"{name}_model.onnx") for name in ("training", "eval")]
    return Module(files[0], state, files[1], session_options=options), state.parameters


def _say(**line: Any) -> None:
    assert sys.__stdout__ is not None
    sys.__stdout__.write(json.dumps(line) + "\n")
    sys.__stdout__.flush()


if __name__ == "__main__":
    sys.path[0] = _HERE
    sys.stdout = sys.stderr  # what libraries print does not get between the lines
    try:
        main(sys.argv[1])
    except Exception as err:  # whatever it is goes to the parent as one line
        _say(kind="failed", reason=" ".join(str(err).split())[:500] or type(err).__name__, type=type(err).__name__)
        sys.exit(1)
