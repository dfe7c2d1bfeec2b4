"""Weights in 4 bits, blocks of them with a scale each."""

from __future__ import annotations

from .int4 import Int4

__all__ = ["Int4"]
