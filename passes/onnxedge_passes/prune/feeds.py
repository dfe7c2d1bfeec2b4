"""Calibration samples that are read each time they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import overload

from onnxedge.api import Batch, Data, Feed


class Feeds(Sequence[Feed]):
    """Batches of samples as a sequence; none of them stays in memory."""

    def __init__(self, data: Data, size: int) -> None:
        """Read all samples once, to learn where batches end.

        Args:
            data: the samples.
            size: of a batch, at most; that which the model fixes wins.
        """
        self._size = size
        stops = accumulate((batch.count for batch in data.batches(size)), initial=0)
        self._parts = [data.slice(start, stop) for start, stop in pairwise(stops)]

    def __len__(self) -> int:
        return len(self._parts)

    def batch(self, index: int) -> Batch:
        """Return a batch with its labels and how many of its samples are real."""
        return next(self._parts[index].batches(self._size))

    @overload
    def __getitem__(self, index: int) -> Feed: ...

    @overload
    def __getitem__(self, index: slice) -> list[Feed]: ...

    def __getitem__(self, index: int | slice) -> Feed | list[Feed]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        return next(self._parts[index].feeds(self._size))
