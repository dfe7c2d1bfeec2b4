"""Data: samples that fit a model's inputs, in batches, re-iterable, never whole in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from onnxedge.data.arrays import Array, Held
from onnxedge.data.fit import Batching
from onnxedge.data.preprocess import Preprocess
from onnxedge.data.sources import Arrays, Source, open_source
from onnxedge.data.table import Batch, Table
from onnxedge.errors import UserError
from onnxedge.runtime import InputSpec


class Data:
    """Samples for a model: iterate over :meth:`batches` as often as needed, the order is always the same.

    Attributes:
        inputs: the inputs that the feeds fit.
        synthetic: whether the samples were synthesised, not given.
        preprocess: what is done to the raw samples.
    """

    def __init__(self, table: Table, rows: Array | None = None, *, synthetic: bool = False) -> None:
        self._table = table
        self._rows = rows  # numbers of the samples, None for all
        self.synthetic = synthetic
        self.inputs = table.inputs
        self.preprocess = table.preprocess

    @property
    def source(self) -> str:
        """What the samples come from, as messages name it."""
        return self._table.source.name

    @property
    def has_labels(self) -> bool:
        """Whether the samples have labels."""
        return self._table.has_labels

    @property
    def fixed_batch(self) -> int | None:
        """Batch that the model fixes, None where any will do."""
        return self._table.batching.fixed

    def __len__(self) -> int:
        return self._table.known(None) if self._rows is None else len(self._rows)

    def __repr__(self) -> str:
        kind = "synthetic " if self.synthetic else ""
        return f"<{kind}data {self._table.source.name!r} for {', '.join(f'{s.name}: {s}' for s in self.inputs)}>"

    @property
    def digest(self) -> str:
        """Hash of the samples, their order and the preprocessing, 16 hex digits; reads all of the data once."""
        rows = np.arange(len(self)) if self._rows is None else self._rows
        sha = hashlib.sha256(str(self.preprocess or "").encode())
        sha.update(rows.astype("<i8").tobytes())
        for chunk in dict.fromkeys(self._table.locate(int(row))[0] for row in rows):
            sha.update(self._table.digest(chunk))
        return sha.hexdigest()[:16]

    def batches(self, size: int = 32, limit: int | None = None) -> Iterator[Batch]:
        """Yield batches in order.

        Args:
            size: samples a batch; the batch that the model fixes wins. A batch ends early where the next sample has
                another shape.
            limit: stop after so many samples.

        Raises:
            UserError: a sample does not fit, or holds NaN or infinity.
        """
        fixed = self.fixed_batch
        for group in self._groups(max(1, fixed or size), limit):
            pending: list[Batch] = []
            for chunk, rows in self._runs(group):
                piece = self._table.piece(chunk, rows)
                if pending and not self._joins(pending[0], piece):
                    yield self._merged(pending, fixed)
                    pending = []
                pending.append(piece)
            yield self._merged(pending, fixed)

    def labels(self) -> Array | None:
        """Return the labels of all samples, [S, ...], None where some have none."""
        given = [batch.labels for batch in self.batches()]
        kept = [labels for labels in given if labels is not None]
        return np.concatenate(kept) if kept and len(kept) == len(given) else None

    def column(self, name: str) -> Array | None:
        """Return an array beside inputs and labels, [S, ...], None where it is not there, or not for every sample.

        Raises:
            UserError: it has not a row for each sample.
        """
        rows, parts = np.arange(len(self)) if self._rows is None else self._rows, list[Array]()
        for chunk, numbers in self._runs(rows):
            array = self._table.column(chunk, name)
            if array is None:
                return None
            parts.append(array[numbers])
        return np.concatenate(parts) if parts else None

    def feeds(self, size: int = 32, limit: int | None = None) -> Iterator[dict[str, Array]]:
        """Yield the feeds of :meth:`batches`."""
        for batch in self.batches(size, limit):
            yield batch.feed

    def slice(self, start: int, stop: int | None = None) -> Data:
        """Return samples ``start`` to ``stop`` as data of their own; the arrays are shared."""
        end = len(self) if stop is None else stop
        if self._rows is None:
            return self._with(np.arange(min(start, end), min(end, self._table.known(end))))
        return self._with(self._rows[start:end])

    def split(self, held_out: float = 0.25) -> tuple[Data, Data]:
        """Return (fit, held out): every so-many-th sample is held out, evenly spread, at least one in each part of two.

        Args:
            held_out: 0..1, share of the samples that is held out.
        """
        rows = np.arange(len(self)) if self._rows is None else self._rows
        out = np.floor((np.arange(len(rows)) + 1) * held_out + 1e-9) > np.floor(np.arange(len(rows)) * held_out + 1e-9)
        if len(rows) > 1 and 0 < held_out < 1:
            out[-1] = out[-1] or not out.any()
            out[0] = out[0] and not out.all()
        return self._with(rows[~out]), self._with(rows[out])

    def _with(self, rows: Array) -> Data:
        return Data(self._table, rows, synthetic=self.synthetic)

    def _groups(self, size: int, limit: int | None) -> Iterator[Array]:
        start = 0
        while limit is None or start < limit:
            end = start + size if limit is None else min(limit, start + size)
            if self._rows is None:
                group = np.arange(start, max(start, min(end, self._table.known(end))))
            else:
                group = self._rows[start:end]
            if not len(group):
                return
            yield group
            start = end

    def _runs(self, group: Array) -> Iterator[tuple[int, Array]]:
        """Split sample numbers where the chunk changes: (chunk, numbers inside it)."""
        places = [self._table.locate(int(row)) for row in group]
        start = 0
        for index in range(1, len(places) + 1):
            if index == len(places) or places[index][0] != places[start][0]:
                chunk, numbers = places[start][0], np.array([row for _, row in places[start:index]])
                parts = np.split(numbers, len(numbers)) if self._table.one_by_one(chunk) else [numbers]
                yield from ((chunk, part) for part in parts)
                start = index

    def _joins(self, first: Batch, piece: Batch) -> bool:
        """Tell whether two pieces can be one feed: equal shapes but for the batch, equal whole inputs."""
        for spec, axis in zip(self.inputs, self._table.batching.axes, strict=True):
            one, other = first.feed[spec.name], piece.feed[spec.name]
            if axis is None:
                if not np.array_equal(one, other):
                    return False
            elif np.delete(one.shape, axis).tolist() != np.delete(other.shape, axis).tolist():
                return False
        return True

    def _merged(self, pieces: list[Batch], fixed: int | None) -> Batch:
        count = sum(piece.count for piece in pieces)
        feed = {}
        for spec, axis in zip(self.inputs, self._table.batching.axes, strict=True):
            arrays = [piece.feed[spec.name] for piece in pieces]
            if axis is None:
                feed[spec.name] = arrays[0]
                continue
            if fixed is not None and count < fixed:
                last = np.take(arrays[-1], [-1], axis)
                arrays.append(np.repeat(last, fixed - count, axis))
            feed[spec.name] = np.ascontiguousarray(arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis))
        labels = [piece.labels for piece in pieces if piece.labels is not None]
        return Batch(feed, np.concatenate(labels) if len(labels) == len(pieces) else None, count)


def open_data(
    source: Any, inputs: Sequence[InputSpec], preprocess: Preprocess | str | None = None, *, batch: int | None = None
) -> Data:
    """Open what the user named as data for a model's inputs.

    Args:
        source: path of an ``.npz`` or ``.npy`` file, of a folder of such (one or more samples a file) or of images
            (sub-folders are classes), ``module:function`` (or ``file.py:function``) that gives dicts, arrays or
            (either, label); an ``onnxruntime.quantization.CalibrationDataReader``, a dict of arrays, an array, an
            iterable; or :class:`Data`, which is returned as it is.
        inputs: as the session or :func:`onnxedge.data.model_inputs` gives them.
        preprocess: what is done to the samples of one input; None or empty for nothing.
        batch: batch that feeds must have, where the shapes leave it open and the model does not.

    Raises:
        UserError: it cannot be read, is empty, or does not fit the inputs; one line with what to do.
    """
    if isinstance(preprocess, str):
        preprocess = Preprocess.parse(preprocess)
    if isinstance(source, Data):
        if [(s.name, s.dtype) for s in source.inputs] != [(s.name, s.dtype) for s in inputs]:
            raise UserError(f"data: was opened for another model's inputs: {source!r}")
        return source
    if not inputs:
        raise UserError("data: the model has no inputs, there is nothing to feed")
    gray = any(len(spec.shape) == 4 and 1 in spec.shape[1::2] and 3 not in spec.shape[1::2] for spec in inputs)
    if preprocess is not None and preprocess.color is not None:
        gray = False
    batching = Batching.of(inputs)
    if batch is not None and batching.fixed is None:
        batching = Batching(batching.axes, batch)
    return Data(Table(open_source(source, 1 if gray else 3), inputs, preprocess, batching))


def from_arrays(
    inputs: Sequence[InputSpec], arrays: Mapping[str, Array], labels: Array | None = None, *, synthetic: bool = False
) -> Data:
    """Make data of arrays in memory, samples along axis 0 (or as :func:`open_data` accepts them).

    Raises:
        UserError: they do not fit the inputs.
    """
    source = Arrays("data", {name: Held(np.asarray(array)) for name, array in arrays.items()}, labels)
    return Data(Table(source, inputs, None, Batching.of(inputs)), synthetic=synthetic)


def from_source(source: Source, inputs: Sequence[InputSpec], batching: Batching, *, synthetic: bool = False) -> Data:
    """Make data of a source of one's own, such as one that computes its samples."""
    return Data(Table(source, inputs, None, batching), synthetic=synthetic)
