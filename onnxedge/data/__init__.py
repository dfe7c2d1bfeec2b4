"""Calibration and evaluation data: what the user names in, batches that fit the model's inputs out."""

from __future__ import annotations

from onnxedge.data.dataset import Data, from_arrays, open_data
from onnxedge.data.doubt import preprocessing_doubt
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
    "from_arrays",
    "model_inputs",
    "open_data",
    "preprocessing_doubt",
    "synthesise",
]
