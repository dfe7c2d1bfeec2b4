"""Which parts of a graph a target runs in integers: units by its rules, what they cost, and the cheapest choice."""

from __future__ import annotations

from onnxedge.placement.place import Placement, place, predict
from onnxedge.placement.units import Unit, clip_bounds

__all__ = ["Placement", "Unit", "clip_bounds", "place", "predict"]
