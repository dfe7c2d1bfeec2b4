"""Ranges of activations: observed on samples, chosen by a method, saved, read and merged."""

from __future__ import annotations

from .calibrate import AUTO, calibrate, save
from .files import read_ranges
from .observed import Choice, Method, Observed

__all__ = ["AUTO", "Choice", "Method", "Observed", "calibrate", "read_ranges", "save"]
