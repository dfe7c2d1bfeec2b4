"""Where zeros may stand: N of every M neighbours along the input channels stay, or a share of a weight goes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxedge.api import Array

_LARGEST = 64


@dataclass(frozen=True)
class Pattern:
    """At most ``kept`` of every ``of`` consecutive weights along the input channels are not zero.

    For a Conv that is so at each position of the kernel. Source: Mishra et al. 2021, arXiv:2104.08378, section 3.
    """

    kept: int
    of: int
    syntax: ClassVar[str] = "N:M"

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """Read ``2:4``.

        Raises:
            ValueError: it is not N:M with 1 <= N < M <= 64.
        """
        found = re.fullmatch(r"(\d{1,3}):(\d{1,3})", text.strip())
        if found is None:
            raise ValueError(f"{text!r} is not N:M, how many of how many stay, such as 2:4 (in YAML with quotes)")
        kept, of = int(found[1]), int(found[2])
        if not 1 <= kept < of <= _LARGEST:
            raise ValueError(f"{text!r} keeps {kept} of {of}; needs 1 <= N < M <= {_LARGEST}")
        return cls(kept, of)

    def __str__(self) -> str:
        return f"{self.kept}:{self.of}"

    def order(self, rows: int, kernel: int) -> Array:
        """Return the rows (input channel outermost) so that those of one set of ``of`` stand side by side."""
        return np.arange(rows).reshape(-1, kernel).T.reshape(-1)

    def holds(self, matrix: Array, kernel: int) -> bool:
        """Tell whether a weight [rows, Co] has the pattern."""
        return bool((np.count_nonzero(self._sets(matrix, kernel), axis=1) <= self.kept).all())

    def largest(self, scores: Array, kernel: int) -> Array:
        """Return bool [rows, Co]: the ``kept`` of each set whose scores [rows, Co] are the largest."""
        sets = self._sets(scores, kernel)
        keep = np.zeros(sets.shape, bool)
        np.put_along_axis(keep, np.argsort(-sets, axis=1, kind="stable")[:, : self.kept], True, axis=1)
        return keep.reshape(scores.shape)

    def _sets(self, matrix: Array, kernel: int) -> Array:
        """Return a view [sets, of, kernel * Co] of a matrix."""
        return matrix.reshape(-1, self.of, kernel * matrix.shape[1])


def largest(scores: Array, zeros: int) -> Array:
    """Return bool, the shape of ``scores``: all but the ``zeros`` smallest, the first of equal ones going first."""
    keep = np.ones(scores.size, bool)
    keep[np.argsort(scores, axis=None, kind="stable")[:zeros]] = False
    return keep.reshape(scores.shape)
