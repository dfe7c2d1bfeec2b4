"""Structured pruning on any topology: groups, importance, allocation, repair, surgery."""

from __future__ import annotations

from onnxedge_passes.prune.prune import Prune

__all__ = ["Prune"]
