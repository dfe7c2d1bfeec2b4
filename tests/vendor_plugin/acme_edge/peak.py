"""An importance of a vendor's own: how large the largest weight is that reads a channel."""

from __future__ import annotations

import numpy as np

from onnxedge.api import Array, Units


def peak(units: Units) -> Array:
    """Square of the largest weight that reads a unit."""
    return np.asarray(sum(np.square(weights).max(axis=(1, 2)) for weights in units.reads))
