"""What an importance sees of channels; vendors bring theirs by the entry points ``onnxedge.importance``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from onnxedge.model.graph import Array


@dataclass(frozen=True, eq=False)
class Units:
    """Describe a channel group for ranking; the first axis of all arrays is the unit, ``U`` of them.

    Attributes:
        makes: float64 [U, n], the weights that make each unit, one array per contraction.
        reads: float64 [U, r, n], the weights that read each unit's ``r`` channels, one array per contraction.
        squares: float64 [U, r], mean square of those channels over the calibration samples, one array as for ``reads``.
        gammas: float64 [U, c], scales of the BatchNormalization that came behind, one array per contraction that had
            one; those are folded into ``makes``.
        rng: seeded.
        slopes: float64 [U, S], how the loss of each of S samples changes with each unit, to first order: what the unit
            carries times the loss's gradient, summed; for importance ``taylor``, else None.
    """

    makes: tuple[Array, ...]
    reads: tuple[Array, ...]
    squares: tuple[Array, ...]
    gammas: tuple[Array, ...]
    rng: np.random.Generator
    slopes: Array | None = None


Score = Callable[[Units], Array]  #: float64 [U], 0 or more: how much is lost with each unit; only ratios matter
