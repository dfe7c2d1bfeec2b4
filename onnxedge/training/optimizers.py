"""Optimizers in NumPy, for every engine; runs in the worker's process too, so that it imports nothing else.

State is named arrays, so that a run that was stopped goes on bit by bit.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

Arrays = Mapping[str, "np.ndarray[Any, Any]"]


class Optimizer:
    """AdamW, or SGD with momentum; weight decay apart from the gradient, and not on names in ``spared``.

    Source: Loshchilov and Hutter 2019, arXiv:1711.05101, algorithms 1 and 2; warm-up and cosine: Loshchilov and Hutter
    2017, arXiv:1608.03983, equation 5, without restarts.

    Args:
        settings: as :class:`onnxedge.training.settings.Settings` has them, by name.
        spared: parameters without weight decay: norms and biases.
        steps: of the whole run.
    """

    def __init__(self, settings: Mapping[str, Any], spared: Collection[str], steps: int) -> None:
        self._settings, self._spared, self.steps = settings, frozenset(spared), max(steps, 1)
        self._moments = 2 if settings["optimizer"] == "adamw" else 1
        self.state: dict[str, np.ndarray[Any, Any]] = {}
        self.step_count = 0

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, from 0: up in a line, down to 0 as a cosine."""
        warm: int = round(self._settings["warmup"] * self.steps)
        most: float = self._settings["lr"]
        if step < warm:
            return most * (step + 1) / warm
        return most * (1 + math.cos(math.pi * (step - warm) / max(self.steps - warm, 1))) / 2

    def step(self, values: Arrays, gradients: Arrays) -> dict[str, np.ndarray[Any, Any]]:
        """Return new values for the given ones.

        Args:
            values: float32 arrays by name.
            gradients: of the same names and shapes.
        """
        limit = self._settings["clip"]
        if limit:
            norm = math.sqrt(sum(float(np.vdot(g, g)) for g in gradients.values()))
            if norm > limit:
                gradients = {name: g * np.float32(limit / norm) for name, g in gradients.items()}
        rate = self.rate(self.step_count)
        self.step_count += 1
        made = {}
        for name, value in values.items():
            decay = 0.0 if name in self._spared else self._settings["weight_decay"]
            moved = np.float32(1 - rate * decay) * value
            moved -= np.float32(rate) * self._direction(name, gradients[name])
            made[name] = moved
        return made

    def _direction(self, name: str, gradient: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        first = self.state.setdefault(f"first.{name}", np.zeros_like(gradient))
        if self._moments == 1:
            first *= np.float32(self._settings["momentum"])
            first += gradient
            return first
        second = self.state.setdefault(f"second.{name}", np.zeros_like(gradient))
        a, b = self._settings["momentum"], 0.999
        first *= np.float32(a)
        first += np.float32(1 - a) * gradient
        second *= np.float32(b)
        second += np.float32(1 - b) * gradient * gradient
        unbiased = np.sqrt(second / np.float32(1 - b**self.step_count)) + np.float32(1e-8)
        return np.asarray(first / np.float32(1 - a**self.step_count) / unbiased)
