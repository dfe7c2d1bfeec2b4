"""Quantization: 8-bit integers for what a target computes and stores."""

from __future__ import annotations

from .int8 import Int8

__all__ = ["Int8"]
