"""How ONNX Runtime lays out 4-bit weights."""

from __future__ import annotations

import numpy as np

from onnxedge.api import Array

from .blocks import MIDDLE, Blocks


def halves(codes: Array) -> Array:
    """Pack pairs of 4-bit codes along the last axis into bytes, the first into the low half; an odd end is padded."""
    if codes.shape[-1] % 2:
        codes = np.concatenate([codes, np.zeros((*codes.shape[:-1], 1), codes.dtype)], axis=-1)
    return np.asarray(codes[..., ::2] | (codes[..., 1::2] << 4), np.uint8)


def whole(packed: Array, count: int) -> Array:
    """Return ``count`` codes along the last axis of packed pairs."""
    pairs = np.stack([packed & 15, packed >> 4], axis=-1)
    return pairs.reshape(*packed.shape[:-1], -1)[..., :count]


def for_matmul(blocks: Blocks) -> tuple[Array, Array, Array | None]:
    """Return the weight [N, B, b/2], scales [N, B] and zero points [N, ceil(B/2)] of a MatMulNBits.

    A symmetric weight needs no zero points.
    """
    zero = None if blocks.symmetric else halves(blocks.zero)
    return halves(blocks.codes), blocks.scale, zero


def for_gather(blocks: Blocks) -> tuple[Array, Array, Array | None]:
    """Return the table [V, D/2], scales [V, B] and zero points [V, ceil(B/2)] of a GatherBlockQuantized."""
    codes = blocks.codes.reshape(len(blocks.codes), -1)[:, : blocks.columns]
    zero = None if blocks.symmetric else halves(blocks.zero)
    return halves(codes), blocks.scale, zero


def unpacked(weight: Array, scale: Array, zero: Array | None, *, block: int, rows: int, columns: int) -> Array:
    """Return the float weight [K, N] of a MatMulNBits.

    Args:
        weight, scale, zero: its inputs, 4 bits each code.
        block: elements of a block.
        rows, columns: K and N.
    """
    count = -(-rows // block)
    codes = whole(weight.reshape(columns, count, -1), block)
    points = np.full((columns, count), MIDDLE, np.uint8)
    if zero is not None:
        points = whole(zero.reshape(columns, -1), count)
    blocks = Blocks(codes, scale.reshape(columns, count).astype(np.float32), points, rows)
    return np.ascontiguousarray(blocks.restored().T).astype(scale.dtype)
