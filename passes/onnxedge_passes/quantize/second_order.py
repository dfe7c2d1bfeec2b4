"""Columns rounded one after the other, each time mending the columns behind for what was lost.

Source: Frantar et al. 2022, arXiv:2210.17323 (GPTQ), section 3; Frantar and Alistarh 2022, arXiv:2208.11580.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.linalg import cholesky

from onnxedge.api import Array
from onnxedge_passes.prune.importance import inverse

Rounder = Callable[[int, Array], Array]  #: of a column of a block, counted in it, [..., N]: what its codes stand for
Begin = Callable[[int, Array], Rounder]  #: called at the first column of each block, with what the block is by then

_DAMPING = 0.01  #: share of the mean diagonal that is added to it


def damped(gram: Array) -> Array:
    """Return a Gram matrix [K, K] that can be inverted: inputs that are always zero count as if they were not."""
    diagonal = np.diag(gram)
    mean = float(diagonal.mean()) or 1.0
    return np.asarray(gram + np.diag(np.where(diagonal > 0, _DAMPING * mean, mean)))


def inverse_factor(gram: Array) -> Array:
    """Return the upper Cholesky factor [K, K] of a damped Gram matrix's inverse.

    Raises:
        np.linalg.LinAlgError: it has none.
    """
    return np.asarray(cholesky(inverse(damped(gram), np.zeros(len(gram))), lower=False))


def sweep(matrix: Array, factor: Array, size: int, begin: Begin) -> None:
    """Round matrices column by column, in blocks.

    Args:
        matrix: float64 [..., N, K]; changed as it goes.
        factor: [..., K, K], see :func:`inverse_factor`.
        size: columns of a block.
        begin: gives what rounds the columns of a block.
    """
    columns = matrix.shape[-1]
    for start in range(0, columns, size):
        stop = min(start + size, columns)
        rounder = begin(start, matrix[..., start:stop])
        errors = np.zeros((*matrix.shape[:-1], stop - start))
        for column in range(start, stop):
            lost = matrix[..., column] - rounder(column - start, matrix[..., column])
            error = lost / factor[..., column, column, None]
            matrix[..., column + 1 : stop] -= error[..., None] * factor[..., None, column, column + 1 : stop]
            errors[..., column - start] = error
        matrix[..., stop:] -= errors @ factor[..., start:stop, stop:]
