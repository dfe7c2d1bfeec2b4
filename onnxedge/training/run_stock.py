"""Engine ``ort`` in the worker's process: the installed ``onnxruntime`` runs a graph that holds gradients and steps.

What changes from batch to batch lies where the execution provider has it, twice: one is read, one is written.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

Engine: Any = importlib.import_module("run").Engine
Arrays = Mapping[str, "np.ndarray[Any, Any]"]
_CPU = "CPUExecutionProvider"
_DEVICES = {"CUDAExecutionProvider": "cuda", "ROCMExecutionProvider": "cuda", "DmlExecutionProvider": "dml"}
_SECOND_DECAY = 0.999


class Stock(Engine):  # type: ignore[misc]
    """Run ``step.onnx`` of a folder, and ``update.onnx`` where a step is of several batches."""

    def __init__(self, folder: str, job: Mapping[str, Any], optimizer: Any) -> None:
        super().__init__(optimizer)
        import onnxruntime

        self._runtime, self._job = onnxruntime, job
        with open(os.path.join(folder, "graphs.json"), encoding="utf-8") as file:
            self._graphs = json.load(file)
        self._device = _DEVICES.get(job["provider"], "cpu")
        self._step = self._session(os.path.join(folder, "step.onnx"))
        later = os.path.join(folder, "update.onnx")
        self._update = self._session(later) if self._graphs["sums"] else None
        self._read: dict[str, Any] = {}
        self._written: dict[str, Any] = {}
        with np.load(os.path.join(folder, "start.npz")) as start:
            for index, name in enumerate([*job["trained"], *job["statistics"]]):
                self._hold(name, start[f"p{index}"])
        for name, shape in self._graphs["state"].items():
            self._hold(name, np.zeros(shape, np.float32))
        self._zeros = {name: self._held(np.zeros(shape, np.float32)) for name, shape in self._sums()}
        self._loss = onnxruntime.OrtValue.ortvalue_from_shape_and_type([], np.float32, "cpu", 0)

    def _session(self, path: str) -> Any:
        options = self._runtime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self._job["threads"], 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 4
        options.enable_mem_pattern = False  # one block for all activations is nearly twice what is in use at a time
        names = list(dict.fromkeys([self._job["provider"], _CPU]))
        return self._runtime.InferenceSession(path, options, providers=names)

    def _hold(self, name: str, array: np.ndarray[Any, Any]) -> None:
        self._read[name], self._written[name] = self._held(array), self._held(array)

    def _held(self, array: np.ndarray[Any, Any]) -> Any:
        value = self._runtime.OrtValue.ortvalue_from_shape_and_type(array.shape, array.dtype, self._device, 0)
        value.update_inplace(np.ascontiguousarray(array))
        return value

    def _sums(self) -> list[tuple[str, list[int]]]:
        return [(name, self._graphs["state"][name]) for name in self._graphs["sums"]]

    def batch(self, feed: Arrays) -> float:
        """Run forwards and backwards; with the step where it is of one batch."""
        self._run(self._step, {**feed, **({} if self._update else self._schedule())})
        return float(self._loss.numpy())

    def update(self) -> None:
        """Make the step where it is of several batches."""
        if self._update is not None:
            self._run(self._update, self._schedule())
            for name, value in self._zeros.items():
                self._read[name], self._zeros[name] = value, self._read[name]
                self._zeros[name].update_inplace(np.zeros(self._graphs["state"][name], np.float32))

    def _schedule(self) -> dict[str, np.ndarray[Any, Any]]:
        rate = self.optimizer.rate(self.optimizer.step_count)
        self.optimizer.step_count += 1
        kept, correction = 1 - rate * self._job["weight_decay"], 1.0
        if self._job["optimizer"] == "adamw":
            rate /= 1 - self._job["momentum"] ** self.optimizer.step_count
            correction = 1 - _SECOND_DECAY**self.optimizer.step_count
        return {self._graphs["schedule"]: np.array([rate, kept, correction], np.float32)}

    def _run(self, session: Any, feed: Arrays) -> None:
        """Run a graph; what it writes is read from now on."""
        binding, replaces = session.io_binding(), self._graphs["replaces"]
        for port in session.get_inputs():
            if port.name in feed:
                binding.bind_cpu_input(port.name, np.ascontiguousarray(feed[port.name]))
            else:
                binding.bind_ortvalue_input(port.name, self._read[port.name])
        names = [port.name for port in session.get_outputs()]
        for name in names:
            value = self._loss if name == self._graphs["loss"] else self._written[replaces[name]]
            binding.bind_ortvalue_output(name, value)
        session.run_with_iobinding(binding)
        for name in names:
            if name != self._graphs["loss"]:
                place = replaces[name]
                self._read[place], self._written[place] = self._written[place], self._read[place]

    def values(self) -> dict[str, np.ndarray[Any, Any]]:
        """Return parameters and running statistics."""
        return {name: self._read[name].numpy() for name in (*self._job["trained"], *self._job["statistics"])}

    def moments(self) -> dict[str, np.ndarray[Any, Any]]:
        """Return first and second moments."""
        kinds = ("first", "second")
        return {
            f"{kind}.{name}": self._read[place].numpy()
            for name, places in self._graphs["moments"].items()
            for kind, place in zip(kinds, places, strict=False)
        }

    def put(self, values: Arrays, moments: Arrays) -> None:
        """Go on from a checkpoint."""
        for name, value in values.items():
            self._read[name].update_inplace(np.ascontiguousarray(value))
        for key, value in moments.items():
            kind, name = key.split(".", 1)
            place = self._graphs["moments"][name][("first", "second").index(kind)]
            self._read[place].update_inplace(np.ascontiguousarray(value))
