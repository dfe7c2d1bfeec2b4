"""Removal of quantization: integers and their kernels back to float."""

from __future__ import annotations

from .dequantize import Dequantize

__all__ = ["Dequantize"]
