"""How near two models' outputs are, and how right each is: functions on arrays, a streaming comparison, own metrics."""

from __future__ import annotations

from onnxedge.metrics.comparison import Comparison, compare
from onnxedge.metrics.custom import Metric, load_metric
from onnxedge.metrics.distance import cosine, max_abs_diff, sqnr_db
from onnxedge.metrics.scores import (
    agreement,
    agrees,
    class_numbers,
    classification_output,
    hits,
    is_classification,
    rows_of_scores,
    top1,
    top5,
)

__all__ = [
    "Comparison",
    "Metric",
    "agreement",
    "agrees",
    "class_numbers",
    "classification_output",
    "compare",
    "cosine",
    "hits",
    "is_classification",
    "load_metric",
    "max_abs_diff",
    "rows_of_scores",
    "sqnr_db",
    "top1",
    "top5",
]
