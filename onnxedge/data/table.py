"""Samples of a source, numbered through its chunks: names, labels, counts, content hashes."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxedge.data.arrays import Array, Held, Rows
from onnxedge.data.fit import Batching, Column, fit_column, preprocessed_input
from onnxedge.data.preprocess import Preprocess
from onnxedge.data.sources import LABEL_NAMES, Chunk, Source
from onnxedge.errors import UserError, did_you_mean
from onnxedge.runtime import InputSpec

_ALIASES = ("x", "images", "image", "data", "input", "inputs", "audio")
_HASH_BYTES = 1 << 22  #: hashed at a time


@dataclass(frozen=True)
class Batch:
    """Hold one feed of a model.

    Attributes:
        feed: arrays by input name, as the model takes them.
        labels: [count, ...] labels of the real samples, None where there are none.
        count: number of real samples, the first ones; the rest repeats the last, to fill a batch that the model fixes.
    """

    feed: dict[str, Array]
    labels: Array | None
    count: int


@dataclass(frozen=True)
class Fitted:
    """A chunk seen as samples: a column for each input, in order."""

    chunk: Chunk
    columns: tuple[Column, ...]
    labels: Array | None
    count: int
    used: tuple[tuple[str, Rows], ...]


class Table:
    """All samples of a source, numbered through its chunks; knows as much of its length as was asked for."""

    def __init__(
        self, source: Source, inputs: Sequence[InputSpec], preprocess: Preprocess | None, batching: Batching
    ) -> None:
        self.source, self.inputs, self.preprocess, self.batching = source, tuple(inputs), preprocess, batching
        self._target = preprocessed_input(inputs, preprocess)
        self._starts = [0]  # number of the first sample of each chunk, then the number behind the last
        self._ended = False
        self._last: tuple[int, Fitted] | None = None
        self._digests: dict[int, bytes] = {}
        first = self.fitted(0)  # what does not fit at all is said at once
        if first is None:
            raise UserError(f"{source.name}: no samples")
        self.has_labels = first.labels is not None

    def known(self, rows: int | None) -> int:
        """Read on until ``rows`` samples are known (None: all), and return how many are."""
        whole = self.source.sample_count
        if whole is not None:
            return whole
        while not self._ended and (rows is None or self._starts[-1] < rows):
            fitted = self.fitted(len(self._starts) - 1)
            if fitted is None:
                self._ended = True
                break
            self._starts.append(self._starts[-1] + fitted.count)
        return self._starts[-1]

    def locate(self, row: int) -> tuple[int, int]:
        """Return the chunk of a sample and its number inside it."""
        if self.source.sample_count is not None:
            return row, 0
        chunk = int(np.searchsorted(self._starts, row, side="right")) - 1
        return chunk, row - self._starts[chunk]

    def fitted(self, index: int) -> Fitted | None:
        """Return a chunk seen as samples, None behind the last."""
        if self._last is not None and self._last[0] == index:
            return self._last[1]
        chunk = self.source.chunk(index)
        if chunk is None:
            return None
        fitted = self._fit(chunk)
        self._last = (index, fitted)
        return fitted

    def _fit(self, chunk: Chunk) -> Fitted:
        used = match_names(chunk, self.inputs)
        columns = tuple(
            fit_column(rows, spec, axis, self._preprocess_of(spec), where=chunk.where, alone=chunk.alone)
            for rows, spec, axis in zip(used, self.inputs, self.batching.axes, strict=True)
        )
        counts = {column.spec.name: column.count for column in columns if column.count is not None}
        count = max(counts.values(), default=1)
        for name, other in counts.items():
            if other not in (count, 1):
                longest = next(n for n, c in counts.items() if c == count)
                raise UserError(f"{chunk.where}: input {name!r} has {other} samples, {longest!r} has {count}")
        if count == 0 or 0 in counts.values():
            raise UserError(f"{chunk.where}: no samples")
        pairs = tuple((spec.name, rows) for spec, rows in zip(self.inputs, used, strict=True))
        return Fitted(chunk, columns, find_labels(chunk, self.inputs, count), count, pairs)

    def _preprocess_of(self, spec: InputSpec) -> Preprocess | None:
        return self.preprocess if spec.name == self._target else None

    def one_by_one(self, index: int) -> bool:
        """Tell whether an input that is fed whole differs from sample to sample of a chunk."""
        fitted = self.fitted(index)
        return fitted is not None and any(c.axis is None and (c.count or 0) > 1 for c in fitted.columns)

    def piece(self, index: int, rows: Array) -> Batch:
        """Return some samples of one chunk."""
        fitted = self.fitted(index)
        assert fitted is not None  # the chunk was counted before
        feed = {}
        for column in fitted.columns:
            if column.count == 1 < fitted.count or column.count is None:
                array = column.read(np.zeros(1, np.int64))
                feed[column.spec.name] = array if column.axis is None else np.repeat(array, len(rows), column.axis)
            else:
                feed[column.spec.name] = column.read(rows)
        return Batch(feed, None if fitted.labels is None else fitted.labels[rows], len(rows))

    def column(self, index: int, name: str) -> Array | None:
        """Return an array of a chunk that is no input and no label, [count, ...], None where there is none of numbers.

        Raises:
            UserError: it has not a row for each sample.
        """
        fitted = self.fitted(index)
        assert fitted is not None
        rows = fitted.chunk.arrays.get(name) if name not in LABEL_NAMES else None
        if rows is None or rows.dtype.kind not in "biuf" or any(rows is taken for _, taken in fitted.used):
            return None
        return _as_labels(fitted.chunk, name, rows.array(), fitted.count)

    def digest(self, index: int) -> bytes:
        """Return the hash of a chunk's content: its arrays and labels, or the bytes of its files."""
        if index not in self._digests:
            fitted = self.fitted(index)
            assert fitted is not None
            sha = hashlib.sha256()
            for path in fitted.chunk.files:
                with path.open("rb") as file:
                    sha.update(hashlib.file_digest(file, "sha256").digest())
            labels = () if fitted.labels is None else (("", Held(fitted.labels)),)
            for name, rows in (*(fitted.used if not fitted.chunk.files else ()), *labels):
                _hash_array(sha, name, rows.array())
            self._digests[index] = sha.digest()
        return self._digests[index]


def _hash_array(sha: Any, name: str, array: Array) -> None:
    sha.update(f"{name}\0{array.dtype.str}{array.shape}".encode())
    if array.ndim == 0 or array.dtype == object:
        sha.update(repr(array.tolist()).encode())
        return
    step = max(1, _HASH_BYTES // max(1, array.dtype.itemsize * math.prod(array.shape[1:])))
    for start in range(0, len(array), step):
        sha.update(np.ascontiguousarray(array[start : start + step]).tobytes())


def match_names(chunk: Chunk, inputs: Sequence[InputSpec]) -> list[Rows]:
    """Return the array of each input: by its name; for the only input also by a usual name, or the only array.

    Raises:
        UserError: an input has no array.
    """
    arrays = chunk.arrays
    others = {name: rows for name, rows in arrays.items() if name not in LABEL_NAMES}
    if len(inputs) == 1 and inputs[0].name not in arrays:
        alias = next((name for name in _ALIASES if name in others), None)
        if alias is not None:
            return [others[alias]]
        if len(others) == 1:
            return [next(iter(others.values()))]
    missing = [spec for spec in inputs if spec.name not in arrays]
    if missing:
        have = ", ".join(repr(n) for n in arrays if n) or ("an array without a name" if arrays else "nothing")
        wish = f"input {missing[0].name!r} ({missing[0]})"
        hint = did_you_mean(missing[0].name, others)
        raise UserError(f"{chunk.where}: {wish} is not in the data, which has {have}{hint}")
    return [arrays[spec.name] for spec in inputs]


def find_labels(chunk: Chunk, inputs: Sequence[InputSpec], count: int) -> Array | None:
    """Return the labels [count, ...] of a chunk, None where it has none; an array of class names is no label.

    Raises:
        UserError: there are not as many labels as samples.
    """
    names = {spec.name for spec in inputs}
    found = [] if chunk.labels is None else [("label", chunk.labels)]
    for name in LABEL_NAMES:
        if name in chunk.arrays and name not in names and chunk.arrays[name].dtype.kind in "biuf":
            found.append((name, chunk.arrays[name].array()))
    if not found:
        return None
    return _as_labels(chunk, *found[0], count)


def _as_labels(chunk: Chunk, name: str, labels: Array, count: int) -> Array:
    if count == 1 and (labels.ndim == 0 or (chunk.alone is not False and len(labels) != 1)):
        labels = labels[None]
    if labels.ndim == 0 or len(labels) != count:
        have = 1 if labels.ndim == 0 else len(labels)
        raise UserError(f"{chunk.where}: {have} labels in {name!r} for {count} samples; there must be one for each")
    return labels
