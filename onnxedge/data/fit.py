"""How raw arrays become feeds: batch axes of a model's inputs, shapes, casts, and what to say where one fails."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxedge.data.arrays import Array, Rows, take
from onnxedge.data.preprocess import Preprocess
from onnxedge.errors import UserError
from onnxedge.runtime import InputSpec

Dims = tuple[int | str | None, ...]

_BATCH = re.compile(r"(?i)n|b|bs|batch.*")


@dataclass(frozen=True)
class Batching:
    """Say where samples lie in each input of a model.

    Attributes:
        axes: batch axis of each input; None where the input has none and is fed whole.
        fixed: batch that the model's shapes fix, None where any will do.
    """

    axes: tuple[int | None, ...]
    fixed: int | None

    @classmethod
    def of(cls, inputs: Sequence[InputSpec]) -> Batching:
        """Read the batch axes off the shapes.

        A symbol (or unknown dimension) on axis 0 is the batch, unless a later one is named as a batch is; where
        another input has the same symbol further back, as recurrent states do, its batch lies there. With fixed
        shapes only, axis 0 of the inputs of rank 2 and more is the batch where they agree; an input of rank 1 alone
        and an image without a batch axis are fed whole.
        """
        dynamic = [spec.shape[0] for spec in inputs if spec.shape and not isinstance(spec.shape[0], int)]
        if dynamic:
            symbols = {d for d in dynamic if isinstance(d, str)}
            places = {d for spec in inputs for d in _batch_places(spec.shape) if isinstance(d, str)}
            symbols = {d for d in places if _BATCH.fullmatch(d)} or symbols
            return cls(tuple(_dynamic_axis(spec.shape, symbols) for spec in inputs), None)
        leading = Counter(int(s.shape[0] or 0) for s in inputs if len(s.shape) > 1 and not _is_bare_image(s.shape))
        if not leading:
            return cls((None,) * len(inputs), 1)
        batch = 1 if 1 in leading else leading.most_common(1)[0][0]
        axes = tuple(0 if s.shape and s.shape[0] == batch and not _is_bare_image(s.shape) else None for s in inputs)
        return cls(axes, batch)


def _batch_places(shape: Dims) -> Dims:
    """Return the dimensions that may be a batch by their name: of images, [N, C, H, W], only a free first one."""
    return shape[:1] if len(shape) == 4 and not isinstance(shape[0], int) else shape


def _dynamic_axis(shape: Dims, symbols: set[str]) -> int | None:
    named = next((axis for axis, dim in enumerate(shape) if isinstance(dim, str) and dim in symbols), None)
    if named is None and shape and not isinstance(shape[0], int):
        return 0
    return named


def _is_bare_image(shape: Dims) -> bool:
    """Tell whether fixed dimensions look like one image, [C, H, W] or [H, W, C], with no batch axis."""
    if len(shape) != 3 or not all(isinstance(d, int) for d in shape):
        return False
    dims = [int(d or 0) for d in shape]
    return (dims[0] in (3, 4) and min(dims[1:]) >= 16) or (dims[2] in (1, 3, 4) and min(dims[:2]) >= 16)


def preprocessed_input(inputs: Sequence[InputSpec], preprocess: Preprocess | None) -> str | None:
    """Return the name of the input that preprocessing is for.

    Raises:
        UserError: ``input=`` names none of the model's inputs.
    """
    if preprocess is None:
        return None
    names = [spec.name for spec in inputs]
    if preprocess.input is not None:
        if preprocess.input not in names:
            known = ", ".join(names)
            raise UserError(f"preprocess: input={preprocess.input}: the model has no such input (inputs: {known})")
        return preprocess.input
    images = [spec.name for spec in inputs if len(spec.shape) == 4]
    return next(iter(images or [spec.name for spec in inputs if spec.shape] or names), None)


@dataclass(frozen=True)
class Column:
    """The samples of one input.

    Attributes:
        spec: the input.
        axis: its batch axis, None where it is fed whole.
        count: number of samples, None for one array that serves all of them.
        read: takes sample numbers and returns what is fed for them.
    """

    spec: InputSpec
    axis: int | None
    count: int | None
    read: Callable[[Array], Array]


@dataclass(frozen=True)
class _Form:
    """One way to see samples in an array: raw shape of a sample, their count, and how to take some ([n, *sample])."""

    sample: tuple[int, ...]
    count: int | None
    pick: Callable[[Array, Array], Array]


def fit_column(
    rows: Rows, spec: InputSpec, axis: int | None, preprocess: Preprocess | None, *, where: str, alone: bool | None
) -> Column:
    """See the samples of an input in an array.

    Args:
        rows: the raw array.
        spec: the input.
        axis: its batch axis.
        preprocess: what is done to the samples, None for nothing.
        where: file or source, for messages.
        alone: True: the array is one sample; False: samples lie along an axis; None: its rank tells.

    Raises:
        UserError: it does not fit; says what is needed, what came, and where possible what to do.
    """
    check_dtype(rows.dtype, spec, preprocess, where)
    wanted: Dims = spec.shape if axis is None else spec.shape[:axis] + spec.shape[axis + 1 :]
    for form in _forms(rows.shape, spec.shape, axis, alone):
        shape = preprocess.shape(form.sample, wanted) if preprocess is not None else form.sample
        if shape is not None and _fits(shape, wanted):
            return Column(spec, axis, form.count, _reader(rows, form, spec, axis, wanted, preprocess, where))
    came = f"{rows.dtype}[{','.join(map(str, rows.shape))}]"
    done = f" (with preprocess {preprocess})" if preprocess is not None and str(preprocess) else ""
    hint = _shape_hint(rows.shape, wanted, axis, preprocess, alone)
    raise UserError(f"{where}: input {spec.name!r}: needs {spec}, got {came}{done}{hint}")


def _forms(shape: tuple[int, ...], wanted: Dims, axis: int | None, alone: bool | None) -> Iterator[_Form]:
    one = _Form(shape, 1, lambda array, rows: array[None])
    if axis is None:
        yield _Form(shape, None, lambda array, rows: array[None])
        if math.prod(shape) == 1 and not wanted:
            yield _Form((), None, lambda array, rows: array.reshape(1))
        if shape and alone is not True:
            yield _Form(shape[1:], shape[0], take)
        return
    item_rank = len(wanted) - 1
    if alone is True or (alone is None and len(shape) <= item_rank):
        yield one
        if alone is True:
            return
    if axis > 0 and len(shape) == len(wanted):
        count = shape[axis]
        along = (*shape[:axis], *shape[axis + 1 :])
        yield _Form(along, count, lambda array, rows: np.moveaxis(take(array, rows, axis), axis, 0))
    if shape:
        yield _Form(shape[1:], shape[0], take)
    inner = 1 + axis  # axis of the batch inside a row that holds a whole feed
    if len(shape) == len(wanted) + 1 and axis == 0:
        flat = (shape[0] * shape[1], *shape[2:])
        yield _Form(shape[2:], flat[0], lambda array, rows: take(array.reshape(flat), rows))
    elif len(shape) == len(wanted) + 1 and shape[inner] == 1:
        sample = (*shape[1:inner], *shape[inner + 1 :])
        yield _Form(sample, shape[0], lambda array, rows: take(array, rows).squeeze(inner))


def _fits(shape: tuple[int, ...], wanted: Dims) -> bool:
    if len(shape) != len(wanted):
        return False
    return all(not isinstance(w, int) or s == w for s, w in zip(shape, wanted, strict=True))


def _reader(
    rows: Rows, form: _Form, spec: InputSpec, axis: int | None, wanted: Dims, preprocess: Preprocess | None, where: str
) -> Callable[[Array], Array]:
    def read(numbers: Array) -> Array:
        raw = form.pick(rows.array(), numbers)
        if preprocess is not None:
            raw = preprocess.apply(raw, wanted)
        batch: Array = cast(raw, spec, where, numbers)
        if axis is None:
            return np.asarray(batch[0])
        return batch if axis == 0 else np.moveaxis(batch, 0, axis)

    return read


def check_dtype(came: np.dtype[Any], spec: InputSpec, preprocess: Preprocess | None, where: str) -> None:
    """Refuse a type of data that an input cannot take: floats for integers, numbers for strings, and the reverse.

    Raises:
        UserError: says what is needed, what came, and what to do.
    """
    try:
        wanted = np.dtype(spec.dtype)
    except TypeError:
        raise UserError(f"{where}: input {spec.name!r}: {spec.dtype} inputs cannot be given as arrays") from None
    before = came
    if preprocess is not None:
        came = np.dtype(preprocess.dtype or ("float32" if preprocess.is_arithmetic else came))
    text = "OSU"
    if came.kind in "biuf" and wanted.kind in "biuf":
        if came.kind != "f" or wanted.kind == "f":
            return
        hint = f"give integers, or add dtype={spec.dtype} to --preprocess to round"
        if preprocess is not None and preprocess.is_arithmetic and before.kind != "f":
            hint = "leave scale, mean and std out of --preprocess"
    elif (came.kind in text) == (wanted.kind in text) and came.kind in text:
        return
    else:
        hint = f"give an array of {spec.dtype}"
    raise UserError(f"{where}: input {spec.name!r}: needs {spec.dtype}, got {came}; {hint}")


def cast(batch: Array, spec: InputSpec, where: str, numbers: Array) -> Array:
    """Return a batch [n, ...] in the input's type, values as they are.

    Raises:
        UserError: a value is NaN or infinite, or the type cannot hold it; names the first such sample.
    """
    if spec.dtype == "object":
        return batch.astype(object)
    wanted = np.dtype(spec.dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        result = batch.astype(wanted, copy=False)
    if wanted.kind == "f":
        good = np.isfinite(result)
        trouble = "NaN or infinity"
        if batch.dtype.kind == "f" and not good.all() and np.isfinite(batch).all():
            trouble = f"a value that {spec.dtype} cannot hold"
    elif result.dtype == batch.dtype:
        return result
    else:
        good = result == batch
        trouble = f"a value that {spec.dtype} cannot hold"
    if not good.all():
        row = int(np.argmin(good.reshape(len(good), -1).all(axis=1)))
        number = int(numbers[row]) if row < len(numbers) else row
        raise UserError(f"{where}: input {spec.name!r}: sample {number} holds {trouble}")
    return result


def _shape_hint(
    shape: tuple[int, ...], wanted: Dims, axis: int | None, preprocess: Preprocess | None, alone: bool | None
) -> str:
    samples = shape if alone is True or axis is None else shape[1:]
    done = preprocess.shape(samples, wanted) if preprocess is not None else samples
    layout = preprocess is not None and preprocess.layout is not None
    hint = ""
    if done is None:
        hint = f"--preprocess works on images, a sample of {list(samples)} is none"
    elif len(done) == 3 and len(wanted) == 3 and not layout and _fits((done[2], *done[:2]), wanted):
        hint = "looks like NHWC; add layout=NCHW to --preprocess"
    elif len(done) == 3 and len(wanted) == 3 and not layout and _fits((*done[1:], done[0]), wanted):
        hint = "looks like NCHW; add layout=NHWC to --preprocess"
    elif alone is not True and axis is not None and _fits(shape, wanted):
        hint = "one sample without the axis of samples; give [1,...]"
    elif len(done) == 2 and len(wanted) == 3 and (_fits((1, *done), wanted) or _fits((*done, 1), wanted)):
        hint = f"no channel axis; add layout={'NCHW' if wanted[0] == 1 else 'NHWC'} to --preprocess"
    elif len(done) == len(wanted) == 3:
        hint = _size_hint(done, wanted, layout)
    elif all(isinstance(w, int) for w in wanted) and math.prod(samples) == math.prod(int(w or 0) for w in wanted):
        hint = f"the same number of elements; reshape each sample to [{','.join(map(str, wanted))}]"
    return f"; {hint}" if hint else ""


def _size_hint(shape: tuple[int, ...], wanted: Dims, layout: bool) -> str:
    """Say which size and layout would make an image fit."""
    first = isinstance(wanted[0], int) and wanted[0] in (1, 3, 4)
    height, width = wanted[1:] if first else wanted[:2]
    channels, came = (wanted[0] if first else wanted[2]), (shape[0] if shape[0] in (1, 3, 4) else shape[2])
    if isinstance(channels, int) and channels != came:
        return f"needs {channels} channels, has {came}; add color={'gray' if channels == 1 else 'rgb'} to --preprocess"
    size = f"resize={height}x{width}" if isinstance(height, int) and isinstance(width, int) else ""
    order = "" if layout or (shape[0] in (1, 3, 4)) == first else f"layout={'NCHW' if first else 'NHWC'}"
    parts = ",".join(part for part in (size, order) if part)
    return f"add {parts} to --preprocess" if parts else ""
