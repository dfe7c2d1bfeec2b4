"""Random valid ONNX graphs, made value by value, and the property that ``fold`` and ``fuse`` hold on each.

python -m random_graphs --examples 5000        # in tests/: one graph for each seed, failures are shown
"""

from __future__ import annotations

from random_graphs.build import random_model
from random_graphs.law import Broken, Example, NotAccepted, check

__all__ = ["Broken", "Example", "NotAccepted", "check", "random_model"]
