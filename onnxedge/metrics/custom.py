"""Metrics by name: the built-in ones, and a user's own function."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from onnxedge.errors import UserError, did_you_mean, first_line
from onnxedge.metrics.distance import Array
from onnxedge.metrics.scores import classification_output, hits, mean


@runtime_checkable
class Metric(Protocol):
    """A measure of quality over all samples; higher is better. mAP and its like come in this way."""

    def __call__(self, outputs: dict[str, Array], labels: Array, /) -> float:
        """Return the measure; outputs [N, ...] by name, labels [N, ...], both of all samples."""


def load_metric(text: str) -> Metric | None:
    """Return the metric that a text names: ``top1``, ``top5``, ``module:function`` or ``file.py:function``.

    ``none`` gives None: nothing is measured but agreement.

    Raises:
        UserError: there is none such.
    """
    if text in _BUILT_IN:
        return _BUILT_IN[text]
    module_name, colon, function_name = text.rpartition(":")
    if not colon or not module_name:
        known = ", ".join(_BUILT_IN)
        raise UserError(f"metric {text!r}: not known{did_you_mean(text, _BUILT_IN)} (known: {known}, module:function)")
    from onnxedge.data.sources import import_user_module

    module = import_user_module(module_name, f"metric {text!r}")
    function = getattr(module, function_name, None)
    if not callable(function):
        names = [name for name, item in vars(module).items() if callable(item) and not name.startswith("_")]
        what = "has no such function" if function is None else "is not callable"
        raise UserError(f"metric {text!r}: {what}{did_you_mean(function_name, names)}")
    return _Own(text, function)


@dataclass(frozen=True)
class _OfScores:
    """A built-in metric on the output that looks like class scores."""

    name: str
    k: int

    def __call__(self, outputs: dict[str, Array], labels: Array, /) -> float:
        scores = classification_output(outputs)
        if scores is None:
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in outputs.items())
            raise UserError(f"metric {self.name}: no output is class scores [N, K] ({shapes}); choose another metric")
        return mean(hits(outputs[scores], labels, self.k))


@dataclass(frozen=True)
class _Own:
    """A user's metric, checked."""

    name: str
    function: Any

    def __call__(self, outputs: dict[str, Array], labels: Array, /) -> float:
        try:
            value = float(self.function(outputs, labels))
        except Exception as err:  # the user's code may raise anything
            raise UserError(f"metric {self.name!r}: raised {type(err).__name__}: {first_line(err)}") from err
        if math.isnan(value):
            raise UserError(f"metric {self.name!r}: gave NaN")
        return value


_BUILT_IN: dict[str, Metric | None] = {"top1": _OfScores("top1", 1), "top5": _OfScores("top5", 5), "none": None}
