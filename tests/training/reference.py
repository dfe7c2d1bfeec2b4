"""What losses are, in NumPy and float64: the reference that composed graphs are compared with."""

from __future__ import annotations

import numpy as np

from onnxedge.api import Array


def log_softmax(logits: Array, axis: int) -> Array:
    shifted = logits - logits.max(axis, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis, keepdims=True))


def soft(student: Array, teacher: Array, temperature: float, axis: int = -1) -> float:
    p, q = (log_softmax(logits.astype(np.float64) / temperature, axis) for logits in (teacher, student))
    return temperature**2 * float((np.exp(p) * (p - q)).sum(axis).mean())


def hard(student: Array, labels: Array, axis: int = -1, smoothing: float = 0.0) -> float:
    log = np.moveaxis(log_softmax(student.astype(np.float64), axis), axis, -1).reshape(-1, student.shape[axis])
    lost = []
    for row, label in zip(log, labels.reshape(-1), strict=True):
        if label >= 0:
            lost.append(-(1 - smoothing) * row[label] - smoothing * row.mean())
    return float(np.sum(lost)) / max(len(lost), 1)


def mean_square(student: Array, target: Array) -> float:
    return float(((student.astype(np.float64) - target) ** 2).mean())


def attention(student: Array, teacher: Array) -> float:
    def rows(feature: Array) -> Array:
        flat = (feature.astype(np.float64) ** 2).mean(1).reshape(len(feature), -1)
        return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)

    return float(((rows(student) - rows(teacher)) ** 2).mean())
