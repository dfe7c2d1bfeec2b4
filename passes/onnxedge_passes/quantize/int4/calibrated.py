"""Rounding that looks at the data: what an error of a weight does to the layer's output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from onnxedge.api import Array
from onnxedge_passes.quantize.second_order import Rounder, inverse_factor, sweep

from .blocks import Blocks, codes_of, grid, nearest

_POWERS = np.arange(0.0, 1.0, 0.1)  #: of the data's size that are tried as scales; 0 scales nothing
LEAST_GAIN = 0.05  #: share of the error that scales must save
LEAST_GAIN_OF_A_MUL = 0.3  #: where they take a node more


def output_error(matrix: Array, blocks: Blocks, gram: Array) -> float:
    """Return the mean squared error of a layer's outputs, summed over them: ``tr(E A E')``.

    Args:
        matrix: [N, K].
        blocks: its codes.
        gram: [K, K], mean products of the layer's inputs.
    """
    error = matrix - blocks.restored()
    return float(np.einsum("nk,nk->", error @ gram, error))


def second_order(matrix: Array, gram: Array, size: int, *, symmetric: bool) -> Blocks:
    """Round a matrix [N, K] column by column, each time mending the columns behind for what was lost.

    Source: Frantar et al. 2022, arXiv:2210.17323 (GPTQ), section 3, with the grid of a block chosen as the block is
    reached, and the natural order of columns.

    Args:
        matrix: floats.
        gram: [K, K], mean products of the layer's inputs.
        size: elements of a block.
        symmetric: zero points in the middle.
    """
    columns = matrix.shape[1]
    upper = inverse_factor(gram)
    importance = 1.0 / np.square(np.diag(upper))  # what an error of a column costs when the columns behind mend it
    scales: list[Array] = []
    zeros: list[Array] = []
    codes: list[Array] = []

    def begin(start: int, part: Array) -> Rounder:
        counts = importance[start : start + part.shape[1]]
        counts = (counts / counts.mean()).astype(np.float32)
        scale, zero = grid(part.astype(np.float32), symmetric=symmetric, weight=counts)
        made = np.full((len(part), size), zero[:, None], np.uint8)
        scales.append(scale)
        zeros.append(zero)
        codes.append(made)

        def rounded(at: int, column: Array) -> Array:
            made[:, at] = codes_of(column[:, None].astype(np.float32), scale, zero)[:, 0]
            return np.asarray((made[:, at].astype(np.float64) - zero) * scale)

        return rounded

    sweep(np.where(np.diag(gram) > 0, matrix, 0.0).astype(np.float64), upper, size, begin)
    return Blocks(np.stack(codes, axis=1), np.stack(scales, axis=1), np.stack(zeros, axis=1), columns)


def activation_aware(matrices: Sequence[Array], gram: Array, size: int, *, symmetric: bool) -> list[Blocks]:
    """Round matrices [N, K] that read the same data, with columns scaled up whose data is large.

    Source: Lin et al. 2023, arXiv:2306.00978 (AWQ), section 3.2, with the size of the data as its root mean square and
    the error of the outputs taken from the Gram matrix.

    Args:
        matrices: floats.
        gram: [K, K], mean products of the data.
        size: elements of a block.
        symmetric: zero points in the middle.
    """
    square = np.maximum(np.diag(gram), 1e-12 * max(float(np.diag(gram).max()), 1e-30))
    best: list[Blocks] = []
    least = first = np.inf
    for power in _POWERS:
        factor = square ** (power / 2)
        factor = factor / np.sqrt(factor.max() * factor.min())
        scaled = [matrix * factor for matrix in matrices]
        rounded = [nearest(m, size, symmetric=symmetric, weight=square / factor**2) for m in scaled]
        given = None if power == 0 else factor
        tried = [replace(blocks, data_scale=given) for blocks in rounded]
        error = sum(output_error(m, blocks, gram) for m, blocks in zip(matrices, tried, strict=True))
        if power == 0:
            first = error
        if error < least and (power == 0 or error < (1 - LEAST_GAIN) * first):
            best, least = tried, error
    return best


def scaled_second_order(
    matrices: Sequence[Array], gram: Array, size: int, *, symmetric: bool, least_gain: float
) -> list[Blocks]:
    """Round matrices [N, K] that read the same data by second order, on scales for the data where these save error.

    Args:
        matrices: floats.
        gram: [K, K], mean products of the data.
        size: elements of a block.
        symmetric: zero points in the middle.
        least_gain: share of the error that the scales must save.
    """
    plain = [second_order(matrix, gram, size, symmetric=symmetric) for matrix in matrices]
    factor = activation_aware(matrices, gram, size, symmetric=symmetric)[0].data_scale
    if factor is None:
        return plain
    around = gram / np.outer(factor, factor)
    both = [
        replace(second_order(matrix * factor, around, size, symmetric=symmetric), data_scale=factor)
        for matrix in matrices
    ]
    errors = [
        sum(output_error(matrix, blocks, gram) for matrix, blocks in zip(matrices, made, strict=True))
        for made in (plain, both)
    ]
    return both if errors[1] < (1 - least_gain) * errors[0] else plain
