"""Orders of axes: how they compose, and how they follow axes through an operator that splits, merges or drops some."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

Perm = tuple[int, ...]

Blocks = Sequence[tuple[tuple[int, ...], tuple[int, ...]]]
"""Runs of input axes and the runs of output axes that hold the same elements; axes in none of them hold one element
each, or are new, or gone."""


def inverse(perm: Sequence[int]) -> Perm:
    """Return the permutation that undoes another one."""
    return tuple(int(axis) for axis in np.argsort(perm))


def composed(first: Sequence[int], second: Sequence[int]) -> Perm:
    """Return the one permutation that stands for two Transposes in a row."""
    return tuple(first[axis] for axis in second)


def is_sorted(perm: Sequence[int]) -> bool:
    """Tell whether a permutation changes nothing."""
    return all(axis == place for place, axis in enumerate(perm))


def flipped(blocks: Blocks) -> Blocks:
    """Return the blocks as seen from the outputs."""
    return [(theirs, mine) for mine, theirs in blocks]


def carried(order: Sequence[int], blocks: Blocks, rank: int) -> Perm | None:
    """Return the order of the axes behind an operator for that before it, None where a block is torn apart.

    Axes that come from no block keep their places.

    Args:
        order: of the axes before.
        blocks: which axes belong together.
        rank: number of axes behind.
    """
    starts = {mine[0]: (mine, theirs) for mine, theirs in blocks}
    owned = {axis for mine, _ in blocks for axis in mine}
    left = [axis for axis in order if axis in owned]
    found: list[int] = []
    while left:
        mine, theirs = starts.get(left[0], ((), ()))
        if not mine or tuple(left[: len(mine)]) != mine:
            return None
        found += theirs
        left = left[len(mine) :]
    rest, inside = iter(found), set(found)
    return tuple(next(rest) if axis in inside else axis for axis in range(rank))


def rank(value: ir.Value | None) -> int | None:
    """Return the number of axes of a value, None where it is not known."""
    return len(value.shape) if value is not None and value.shape is not None else None


def sizes(value: ir.Value | None) -> list[int | None] | None:
    """Return the sizes of a value, None for one not known; a declared shape of an output is not to be believed."""
    if value is None or value.shape is None:
        return None
    trusted = not value.is_graph_output()
    return [size if trusted and isinstance(size, int) else None for size in value.shape]


def is_single(value: ir.Value) -> bool:
    """Tell whether a value has one element, so that every order of its axes is the same."""
    known = sizes(value)
    return known is not None and all(size == 1 for size in known)


def agree(value: ir.Value, one: Sequence[int], other: Sequence[int]) -> bool:
    """Tell whether two orders of a value's axes differ in the places of axes of size 1 alone, so that one is a view.

    This tells what is cheap, not what is right: a declared shape is believed.
    """
    ones = {axis for axis, size in enumerate(value.shape or ()) if size == 1}
    return [axis for axis in one if axis not in ones] == [axis for axis in other if axis not in ones]
