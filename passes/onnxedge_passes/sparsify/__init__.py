"""Zeros in weights whose shapes stay: anywhere, or so many of every few neighbours, as sparse kernels need them."""

from __future__ import annotations

from onnxedge_passes.sparsify.sparsify import Sparsify

__all__ = ["Sparsify"]
