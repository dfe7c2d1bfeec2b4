"""Reverse-mode differentiation of ONNX graphs into more ONNX nodes: training, reconstruction and importances use it."""

from __future__ import annotations

from onnxedge.autodiff.backward import OPSET, Backward, Gradients, NoGradient, attribute
from onnxedge.autodiff.values import Values, graph_values

__all__ = ["OPSET", "Backward", "Gradients", "NoGradient", "Values", "attribute", "graph_values"]
