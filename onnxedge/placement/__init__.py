"""Which parts of a graph a target runs in integers: units by its rules, what they cost, and the cheapest choice."""

from __future__ import annotations

from onnxedge.placement.costs import Costs
from onnxedge.placement.coverage import Coverage, Difference, integer_nodes, read_back
from onnxedge.placement.place import Placement, place, predict
from onnxedge.placement.units import Unit, clip_bounds

__all__ = [
    "Costs",
    "Coverage",
    "Difference",
    "Placement",
    "Unit",
    "clip_bounds",
    "integer_nodes",
    "place",
    "predict",
    "read_back",
]
