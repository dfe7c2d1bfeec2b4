"""What is chosen with data once ranges are: how weights are rounded, and biases."""

from __future__ import annotations

from .choose import Refined, Rounding, refine

__all__ = ["Refined", "Rounding", "refine"]
