"""Samples as arrays on disk, a row a sample, as training reads them in any order."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from onnxedge.data import Batching, Data
from onnxedge.errors import UserError
from onnxedge.model.graph import Array

_BATCH = 64


def check_rows(data: Data, who: str) -> None:
    """Refuse data whose samples do not lie along axis 0 of every input.

    Raises:
        UserError: with the input.
    """
    for spec, axis in zip(data.inputs, Batching.of(data.inputs).axes, strict=True):
        if axis != 0:
            raise UserError(f"{who}: input {spec.name!r} is {spec}; training needs samples along axis 0 of each input")


def store_rows(data: Data, folder: Path) -> tuple[dict[str, Array], Array | None]:
    """Write samples, and return them memory-mapped, by input name, [S, ...]; and their labels, None where some lack.

    Raises:
        UserError: the samples differ in shape, or cannot be read.
    """
    count, start = len(data), 0
    made: dict[str, Array] = {}
    labels: list[Array] = []
    for batch in data.batches(_BATCH):
        for index, spec in enumerate(data.inputs):
            array = batch.feed[spec.name][: batch.count]
            if spec.name not in made:
                shape = (count, *array.shape[1:])
                file = folder / f"rows.{index}.npy"
                made[spec.name] = np.lib.format.open_memmap(file, mode="w+", dtype=array.dtype, shape=shape)
            kept = made[spec.name]
            if array.shape[1:] != kept.shape[1:]:
                shapes = f"{list(kept.shape[1:])} and {list(array.shape[1:])}"
                raise UserError(f"{data.source}: samples of different shapes, {shapes}; training needs one shape")
            kept[start : start + batch.count] = array
        if batch.labels is not None:
            labels.append(batch.labels)
        start += batch.count
    for array in made.values():
        if isinstance(array, np.memmap):
            array.flush()
    whole = sum(map(len, labels)) == count
    return made, np.concatenate(labels) if whole and labels else None
