"""What a teacher says of samples: computed by inference, once where it can be kept."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxedge.errors import UserError, did_you_mean
from onnxedge.model.edit import forked
from onnxedge.model.graph import Array
from onnxedge.model.names import refresh_scopes
from onnxedge.passes import Progress, Silent
from onnxedge.runtime import Session, model_inputs
from onnxedge.training.store import digest_of, teacher_folder
from onnxedge.verify import infer_shapes

_BATCH = 64


class Teacher:
    """Run a teacher on samples.

    Args:
        model: not changed.
        values: names of values that are wanted, outputs or inside.
        inputs: of the student: the teacher is fed the same arrays, in order where its inputs have other names.
        threads: of ONNX Runtime.

    Raises:
        UserError: the teacher takes other inputs, or has no such value.
    """

    def __init__(
        self,
        model: ir.Model,
        values: Sequence[str],
        inputs: Sequence[str],
        *,
        threads: int,
        progress: Progress | None = None,
    ) -> None:
        self.values, self._progress = tuple(values), progress or Silent()
        self.digest = digest_of(model, self.values)
        copy, _ = forked(model)
        refresh_scopes(copy)
        infer_shapes(copy)
        specs = model_inputs(copy)
        names = [spec.name for spec in specs]
        if len(names) != len(inputs):
            raise UserError(f"teacher: takes {len(names)} inputs, the student {len(inputs)}")
        self._names = matched_inputs(inputs, names)
        first = [spec.shape[0] if spec.shape else None for spec in specs]
        self._fixed = next((size for size in first if isinstance(size, int)), None)
        known = {v.name: v for node in copy.graph for v in node.outputs if v.name}
        outputs = {value.name for value in copy.graph.outputs}
        for name in self.values:
            if name not in known and name not in outputs:
                raise UserError(f"teacher: has no value {name!r}{did_you_mean(name, known)}")
            if name not in outputs:
                copy.graph.outputs.append(known[name])
        self._session = Session(copy, threads=threads)

    def says(self, arrays: Mapping[str, Array], identity: str, scratch: Path) -> dict[str, Array]:
        """Return the wanted values for samples, memory-mapped, [S, ...] by name.

        Args:
            arrays: the student's inputs, [S, ...].
            identity: what the samples are; it is kept under that. Empty to keep nothing.
            scratch: folder for what is not kept.
        """
        folder = teacher_folder(f"{self.digest}-{identity}") if identity else None
        files = [(folder or scratch) / f"teacher.{index}.npy" for index in range(len(self.values))]
        if folder is None or not all(file.is_file() for file in files):
            self._write(arrays, files)
        return {name: np.load(file, mmap_mode="r") for name, file in zip(self.values, files, strict=True)}

    def answers(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Return the wanted values for a batch of the student's inputs, whatever batch the teacher fixes."""
        rows = len(next(iter(feed.values())))
        step, parts = self._fixed or rows, list[dict[str, Array]]()
        for start in range(0, rows, step):
            part = {name: _padded(feed[own][start : start + step], self._fixed) for own, name in self._names.items()}
            parts.append(self._session.run(part, self.values))
        for name, array in parts[0].items():
            if not array.ndim or len(array) < min(step, rows):
                raise UserError(f"teacher: value {name!r} has no row for each sample")
        return {name: np.concatenate([part[name] for part in parts])[:rows] for name in self.values}

    def _write(self, arrays: Mapping[str, Array], files: Sequence[Path]) -> None:
        count, step = len(next(iter(arrays.values()))), self._fixed or _BATCH
        partial = [file.with_name(f".{file.name}.{os.getpid()}") for file in files]
        made: list[Array] = []
        starts = self._progress.track(range(0, count, step), "teacher", -(-count // step))
        for start in starts:
            rows = min(step, count - start)
            said = self.answers({name: array[start : start + rows] for name, array in arrays.items()})
            for index, array in enumerate(said.values()):
                if start == 0:
                    shape = (count, *array.shape[1:])
                    made.append(np.lib.format.open_memmap(partial[index], mode="w+", dtype=array.dtype, shape=shape))
                made[index][start : start + rows] = array
        for array, file, final in zip(made, partial, files, strict=True):
            if isinstance(array, np.memmap):
                array.flush()
            os.replace(file, final)


def matched_inputs(ours: Sequence[str], theirs: Sequence[str]) -> dict[str, str]:
    """Return the teacher's input for each of the student's: that of its name, in order where the names differ."""
    return {name: name for name in ours} if set(ours) == set(theirs) else dict(zip(ours, theirs, strict=False))


def _padded(rows: Array, count: int | None) -> Array:
    """Return as many rows as a fixed batch has, the last one again and again."""
    rows = np.ascontiguousarray(rows)
    if count is None or len(rows) == count:
        return rows
    return np.concatenate([rows, np.repeat(rows[-1:], count - len(rows), 0)])
