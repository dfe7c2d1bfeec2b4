"""Networks with random weights, exported from PyTorch, to compare optimizers on; only making them needs torch."""

from __future__ import annotations

from networks.catalogue import NETWORKS, Export, exported, find

__all__ = ["NETWORKS", "Export", "exported", "find"]
