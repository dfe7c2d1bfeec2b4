"""What is the same for both engines of training: epochs, batches, checkpoints; NumPy alone, as the worker is."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

_SILENCE = 0.5  #: seconds between two lines that tell how far an epoch has come
Arrays = Mapping[str, "np.ndarray[Any, Any]"]


class Failed(Exception):
    """Say in one line why there is nothing to give back."""


class Engine:
    """Hold the values that are trained, and step them.

    Attributes:
        optimizer: counts the steps, and knows the rate of each.
    """

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer

    def batch(self, feed: Arrays) -> float:
        """Return the loss of a batch, and add its gradients to those since the last update."""
        raise NotImplementedError

    def update(self) -> None:
        """Make a step by the mean of the gradients."""
        raise NotImplementedError

    def values(self) -> dict[str, np.ndarray[Any, Any]]:
        """Return what is trained and the running statistics, by name."""
        raise NotImplementedError

    def moments(self) -> dict[str, np.ndarray[Any, Any]]:
        """Return what else a step depends on, as ``first.<name>`` and ``second.<name>``."""
        raise NotImplementedError

    def put(self, values: Arrays, moments: Arrays) -> None:
        """Go on from what :meth:`values` and :meth:`moments` gave."""
        raise NotImplementedError


class Run:
    """One training run.

    Args:
        folder: see :mod:`worker`.
        job: what the folder's ``job.json`` holds.
        engine: the engine.
    """

    def __init__(self, folder: str, job: Mapping[str, Any], engine: Engine) -> None:
        self._folder, self._job, self._engine = folder, job, engine
        self._inputs = read_inputs(folder, job)
        self._weights = np.load(os.path.join(folder, "weights.npy"))
        self._samples = len(next(iter(self._inputs.values())))
        self._batch = min(job["batch"], self._samples)
        self._per_epoch = max(self._samples // self._batch // job["accumulate"], 1)
        engine.optimizer.steps = max(job["epochs"] * self._per_epoch, 1)
        self._names = [*job["trained"], *job["statistics"]]
        self.epoch = 0
        self._losses: list[float] = []

    def train_all(self) -> None:
        """Train all epochs, or until the time is over or the parent ends it."""
        self._resume()
        began, limit = time.monotonic(), self._job["minutes"] * 60
        for epoch in range(self.epoch, self._job["epochs"]):
            if self._job["asks"] and not self._may_train(epoch):
                break
            if not self._train(epoch, began + limit if limit else None):
                break
            self._save("state.npz")
        self._save("trained.npz")
        say(kind="done", epochs=self.epoch, seconds=time.monotonic() - began)

    def _may_train(self, epoch: int) -> bool:
        """Ask the parent before an epoch: whether to go on, how many there will be; its inputs are read again."""
        say(kind="next", epoch=epoch)
        line = sys.stdin.readline()
        answer = json.loads(line) if line else {"epochs": 0}  # the parent is gone
        if answer["epochs"] <= epoch:
            return False
        self._engine.optimizer.steps = answer["epochs"] * self._per_epoch
        self._inputs = read_inputs(self._folder, self._job)
        return True

    def _train(self, epoch: int, deadline: float | None) -> bool:
        """Train an epoch and return True, or False where the time is over; what was learned till then stays."""
        order = np.random.default_rng([self._job["seed"], epoch]).permutation(self._samples)
        at, began, total, count = 0, time.monotonic(), 0.0, 0
        told = began
        for step in range(self._per_epoch):
            for _ in range(min(self._job["accumulate"], self._samples // self._batch)):
                rows = np.sort(order[at : at + self._batch])
                at += self._batch
                feed = {name: np.ascontiguousarray(array[rows]) for name, array in self._inputs.items()}
                loss = self._engine.batch({**feed, self._job["weights"]: self._terms()})
                if not np.isfinite(loss):
                    raise Failed(f"the loss is {loss} in epoch {epoch + 1}, step {step + 1}; try a smaller lr")
                total, count = total + loss, count + 1
            self._engine.update()
            if time.monotonic() - told > _SILENCE:
                told = time.monotonic()
                say(kind="step", epoch=epoch, step=step + 1, steps=self._per_epoch, loss=total / count)
            if deadline is not None and time.monotonic() > deadline:
                say(kind="late", epoch=epoch, step=step + 1)
                return False
        self.epoch = epoch + 1
        self._losses.append(total / count)
        seconds = time.monotonic() - began
        say(kind="epoch", epoch=self.epoch, loss=total / count, seconds=seconds, samples=count * self._batch)
        return True

    def _terms(self) -> np.ndarray[Any, Any]:
        """Return the weights of the loss's terms: in a line from the first step to the last."""
        first, last = self._weights
        done = self._engine.optimizer.step_count / max(self._engine.optimizer.steps - 1, 1)
        return np.asarray(first + np.float32(min(done, 1.0)) * (last - first))

    def _save(self, name: str) -> None:
        """Write parameters, and all else that a run goes on from, whole or not at all."""
        values = self._engine.values()
        arrays = {f"p{index}": values[key] for index, key in enumerate(self._names)}
        if name == "state.npz":
            moments = self._engine.moments()
            for index, key in enumerate(self._job["trained"]):
                for kind in ("first", "second"):
                    if f"{kind}.{key}" in moments:
                        arrays[f"{kind}{index}"] = moments[f"{kind}.{key}"]
        arrays["at"] = np.array([self.epoch, self._engine.optimizer.step_count])
        arrays["losses"] = np.array(self._losses)
        partial = os.path.join(self._folder, f".{name}")
        with open(partial, "wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        os.replace(partial, os.path.join(self._folder, name))

    def _resume(self) -> None:
        """Go on from where an earlier run of the same job came to."""
        path = os.path.join(self._folder, "state.npz")
        if not os.path.exists(path):
            return
        with np.load(path) as state:
            values = {key: state[f"p{index}"] for index, key in enumerate(self._names)}
            moments = {
                f"{kind}.{key}": state[f"{kind}{index}"]
                for index, key in enumerate(self._job["trained"])
                for kind in ("first", "second")
                if f"{kind}{index}" in state
            }
            self._engine.put(values, moments)
            self.epoch, self._engine.optimizer.step_count = (int(n) for n in state["at"])
            self._losses = state["losses"].tolist()
        say(kind="resumed", epoch=self.epoch)


def read_inputs(folder: str, job: Mapping[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """Return the inputs of an epoch, memory-mapped."""
    files = (os.path.join(folder, f"input.{index}.npy") for index in range(len(job["inputs"])))
    return {name: np.load(file, mmap_mode="r") for name, file in zip(job["inputs"], files, strict=True)}


def say(**line: Any) -> None:
    """Tell the parent something, as a line of JSON."""
    assert sys.__stdout__ is not None
    sys.__stdout__.write(json.dumps(line) + "\n")
    sys.__stdout__.flush()
