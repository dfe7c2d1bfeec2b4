"""Floats of 16 bits: computed with where a target does, stored in where it does not."""

from __future__ import annotations

from .half import Bf16, Fp16

__all__ = ["Bf16", "Fp16"]
