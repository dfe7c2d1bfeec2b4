"""Class scores: which output they are, who is right, who agrees."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from onnxedge.errors import UserError
from onnxedge.metrics.distance import same_shape

Array = np.ndarray[Any, Any]
Outputs = Mapping[str, Array]


def rows_of_scores(output: Array) -> Array:
    """Return an output as scores [N, K]: axes of one element behind the batch are dropped ([N, K, 1, 1], [N, 1, K])."""
    return output.reshape(len(output), -1) if output.ndim > 2 and output[:1].size == max(output.shape[1:]) else output


def is_classification(output: Array) -> bool:
    """Tell whether an output looks like class scores: numbers [N, K], K of 2 or more, but for axes of one element."""
    if output.ndim < 2 or output.dtype.kind not in "fiu":
        return False
    scores = rows_of_scores(output)
    return scores.ndim == 2 and scores.shape[1] >= 2


def classification_output(outputs: Outputs) -> str | None:
    """Return the name of the first output that looks like class scores, None where none does."""
    return next((name for name, array in outputs.items() if is_classification(array)), None)


def hits(output: Array, labels: Array, k: int = 1) -> Array:
    """Return bool [N]: whether the label is among the ``k`` largest scores of its row.

    Of equal scores the lower class counts as the larger one. A row with a score that is not finite is no hit.

    Args:
        output: scores [N, K] (or [N, K, 1, 1]).
        labels: class numbers [N], or one-hot [N, K].

    Raises:
        UserError: the output is no class scores, or the labels are no classes of it.
    """
    if not is_classification(output):
        raise UserError(f"metric: the output {list(output.shape)} is no class scores [N, K]; choose another metric")
    scores = rows_of_scores(output)
    classes = class_numbers(labels, scores.shape[1])
    if len(classes) != len(scores):
        raise UserError(f"metric: {len(classes)} labels for {len(scores)} rows of scores")
    own = np.take_along_axis(scores, classes[:, None], axis=1)
    earlier = np.arange(scores.shape[1]) < classes[:, None]
    rank = ((scores > own) | ((scores == own) & earlier)).sum(axis=1)
    good: Array = (rank < k) & np.isfinite(_finite_kind(scores)).all(axis=1)
    return good


def class_numbers(labels: Array, class_count: int) -> Array:
    """Return labels as int64 [N]; one-hot rows become the number of their class.

    Raises:
        UserError: a label is no whole number in 0..class_count-1.
    """
    labels = np.asarray(labels)
    if labels.ndim > 1 and labels[0].size == 1:
        labels = labels.reshape(len(labels))
    elif labels.ndim == 2 and labels.shape[1] == class_count:
        labels = labels.argmax(axis=1)
    if labels.ndim != 1 or labels.dtype.kind not in "biuf":
        raise UserError(f"metric: labels {labels.dtype}{list(labels.shape)} are no class numbers; give your own metric")
    classes: Array = labels.astype(np.int64)
    bad = np.atleast_1d((classes != labels) | (classes < 0) | (classes >= class_count))
    if bad.any():
        raise UserError(f"metric: label {labels[bad][0]} is no class of 0..{class_count - 1}")
    return np.asarray(classes)


def top1(output: Array, labels: Array) -> float:
    """Return the share of rows whose largest score is at the label, 0..1; NaN of no rows."""
    return mean(hits(output, labels, 1))


def top5(output: Array, labels: Array) -> float:
    """Return the share of rows whose label is among the five largest scores, 0..1; NaN of no rows."""
    return mean(hits(output, labels, 5))


def agrees(reference: Array, other: Array) -> Array:
    """Return bool [N]: whether the largest score of each row is at the same class; never in a row not finite."""
    first, second = rows_of_scores(reference), rows_of_scores(other)
    same_shape(first, second)
    same = first.argmax(axis=1) == second.argmax(axis=1)
    finite = np.isfinite(_finite_kind(first)).all(axis=1) & np.isfinite(_finite_kind(second)).all(axis=1)
    return np.asarray(same & finite)


def agreement(reference: Array, other: Array) -> float:
    """Return the share of rows of scores [N, K] whose largest is at the same class, 0..1; NaN of no rows."""
    return mean(agrees(reference, other))


def mean(flags: Array) -> float:
    """Return the share of flags that are set, NaN of none."""
    return float(flags.mean()) if len(flags) else math.nan


def _finite_kind(array: Array) -> Array:
    return array if array.dtype.kind == "f" else np.zeros_like(array, np.float32)
