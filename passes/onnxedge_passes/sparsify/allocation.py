"""How many weights of each layer go."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxedge_passes.sparsify.layers import Layer
from onnxedge_passes.sparsify.pattern import largest


def alike(layers: Sequence[Layer], ratio: float) -> dict[Layer, int]:
    """Return how many weights go where each layer loses the same share."""
    return {layer: round(ratio * layer.size) for layer in layers}


def by_rank(layers: Sequence[Layer], ratio: float) -> dict[Layer, int]:
    """Return how many weights of each layer go where the share of all is given.

    Those go whose square is the least share of the squares in their layer that are not smaller, so that no layer loses
    its largest ones. Source: Lee et al. 2021, arXiv:2010.07611, section 3.
    """
    if not layers:
        return {}
    shares = []
    for layer in layers:
        squares = np.sort(np.square(layer.matrix()), axis=None)
        shares.append(squares / np.maximum(np.cumsum(squares[::-1])[::-1], 1e-300))
    keep = largest(np.concatenate(shares), round(ratio * sum(layer.size for layer in layers)))
    parts = np.split(keep, np.cumsum([layer.size for layer in layers])[:-1])
    return {layer: int(np.count_nonzero(~part)) for layer, part in zip(layers, parts, strict=True)}
