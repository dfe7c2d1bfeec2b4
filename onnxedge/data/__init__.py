"""Calibration and evaluation data: what the user names in, batches that fit the model's inputs out."""

from __future__ import annotations

from onnxedge.data.dataset import Data, from_arrays, open_data
from onnxedge.data.doubt import data_doubts, size_trouble
from onnxedge.data.fit import Batching
from onnxedge.data.preprocess import Preprocess
from onnxedge.data.synthetic import synthesise
from onnxedge.data.table import Batch
from onnxedge.runtime import model_inputs

__all__ = [
    "Batch",
    "Batching",
    "Data",
    "Preprocess",
    "data_doubts",
    "from_arrays",
    "model_inputs",
    "open_data",
    "size_trouble",
    "synthesise",
]
