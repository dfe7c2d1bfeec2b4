"""Rewrites of the float graph that leave what it computes and make it easier to round."""

from __future__ import annotations

from .absorb import Absorber
from .equalize import Equalizer

__all__ = ["Absorber", "Equalizer"]
