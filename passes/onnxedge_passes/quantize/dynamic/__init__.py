"""Integer products whose data is rounded at run time: no ranges are needed."""

from __future__ import annotations

from .dynamic import quantize_dynamic

__all__ = ["quantize_dynamic"]
