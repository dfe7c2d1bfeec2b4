"""Augmentation: other views of the samples, which an epoch is trained on in their place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxedge.data.sources import import_user_module
from onnxedge.errors import UserError, did_you_mean, first_line
from onnxedge.metrics import agrees, classification_output
from onnxedge.model.graph import Array
from onnxedge.runtime import InputSpec

Rng = np.random.Generator
Change = Callable[[Array, float, Rng], Array]
_CHUNK = 256  #: samples that are changed at a time
AUTO = "auto"  #: stands for the usual steps that change no answer, see :func:`try_steps`
SAFE = 0.9  #: share of samples whose class must stay with a step
_LEAST_SIDE, _LEAST_LENGTH = 16, 256  #: of images and series that have usual steps
_ASKED = 128  #: samples that tell whether a step is safe
_SHOWN = (
    "auto, flip, crop:PIXELS, scale:SHARE, noise:SHARE, shift:SHARE, mix:SHARE, module:function or file.py:function"
)


@dataclass(frozen=True)
class _BuiltIn:
    """A change of the input that is augmented.

    Attributes:
        change: takes samples [n, ...], the amount and a generator.
        most: largest amount; the least is above 0. None where it takes none.
        rank: of the input, batch counted; 0 for any.
    """

    change: Change
    most: float | None
    rank: int = 0


@dataclass(frozen=True)
class Augmentation:
    """Change samples at random, one step behind the other.

    Attributes:
        steps: texts, see :meth:`parse`; none changes nothing.
    """

    steps: tuple[str, ...]
    _functions: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def parse(cls, steps: Sequence[str]) -> Augmentation:
        """Read steps such as ``flip``, ``crop:4`` and ``mine.py:function``.

        ``flip``: every second image is mirrored, left and right. ``crop:N``: N pixels of zeros all around, and a window
        of the image's size out of that. ``scale:s``: times 1 - s to 1 + s. ``noise:s``: normal noise of s times the
        sample's deviation. ``shift:s``: moved along the longest axis by up to s of it, zeros move in. ``mix:s``: a
        share s of the samples is blended with another one each; a teacher says what that is. A function is called with
        a dict of arrays [n, ...] by input name and a generator, and returns such a dict.

        Source of ``mix``: Zhang et al. 2018, arXiv:1710.09412, section 2; Beyer et al. 2022, arXiv:2106.05237.

        ``auto`` is left out: what stands for it depends on the samples.

        Raises:
            UserError: there is no such step, or its amount is out of range; a function cannot be imported.
        """
        functions = []
        steps = [text for text in steps if text != AUTO]
        for text in steps:
            name, colon, amount = text.partition(":")
            if name in _BUILT_IN:
                _amount(text, name, amount if colon else None)
            elif colon:
                functions.append((text, _function(text)))
            else:
                raise UserError(f"augment: no step {text!r}{did_you_mean(name, _BUILT_IN)}; there are {_SHOWN}")
        return cls(tuple(steps), tuple(functions))

    def check(self, inputs: Sequence[InputSpec]) -> None:
        """Refuse steps that none of the inputs is for.

        Raises:
            UserError: with the step.
        """
        target = _target(inputs)
        for text in self.steps:
            step = _BUILT_IN.get(text.partition(":")[0])
            if step is not None and target is None:
                raise UserError(f"augment: {text}: no input of the model is float32 with a shape")
            if step is not None and target is not None and step.rank and len(target.shape) != step.rank:
                raise UserError(f"augment: {text} is for images, input {target.name!r} is {target}")
            if step is _BUILT_IN["mix"] and len(inputs) > 1:
                raise UserError(f"augment: {text} is for models of one input, this one has {len(inputs)}")

    def apply(
        self,
        arrays: Mapping[str, Array],
        inputs: Sequence[InputSpec],
        seed: Sequence[int],
        folder: Path | None = None,
    ) -> dict[str, Array]:
        """Return another view of samples; without steps the arrays are shared.

        Args:
            arrays: by input name, [S, ...].
            inputs: of the model.
            seed: the same seed gives the same view.
            folder: for the arrays, memory-mapped; None to make them in memory.

        Raises:
            UserError: a function raises, or gives arrays of another kind.
        """
        if not self.steps:
            return dict(arrays)
        made: dict[str, Array] = {}
        count = len(next(iter(arrays.values())))
        for start in range(0, count, _CHUNK):
            chunk = {name: np.asarray(array[start : start + _CHUNK]) for name, array in arrays.items()}
            chunk = self._changed(chunk, inputs, [*seed, start])
            for name, array in chunk.items():
                if name not in made:
                    made[name] = _empty(arrays[name], folder, len(made))
                made[name][start : start + _CHUNK] = array
        return made

    @property
    def mixes(self) -> bool:
        """Whether samples are blended, so that their labels do not hold."""
        return any(text.partition(":")[0] == "mix" for text in self.steps)

    def relabel(self, labels: Array, seed: Sequence[int]) -> Array:
        """Return the labels of a view: of blended samples numbers blended alike, and no classes (-1).

        Args:
            labels: class numbers or numbers, [S, ...].
            seed: of the view.
        """
        if not self.mixes:
            return labels
        made = labels.copy()
        for index, text in enumerate(self.steps):
            name, _, amount = text.partition(":")
            for start in range(0, len(labels), _CHUNK) if name == "mix" else ():
                part, rng = made[start : start + _CHUNK], np.random.default_rng([*seed, start, index])
                if part.dtype.kind == "f":
                    part[:] = _mix(part, float(amount), rng)
                else:
                    part[_draw_shares(part, float(amount), rng)[1].reshape(-1) < 1] = -1
        return made

    def _changed(self, chunk: dict[str, Array], inputs: Sequence[InputSpec], seed: Sequence[int]) -> dict[str, Array]:
        functions, target = dict(self._functions), _target(inputs)
        for index, text in enumerate(self.steps):
            name, _, amount = text.partition(":")
            rng = np.random.default_rng([*seed, index])
            if text in functions:
                chunk = _called(text, functions[text], chunk, rng)
            elif target is not None:
                changed = _BUILT_IN[name].change(chunk[target.name], float(amount or 0), rng)
                chunk = {**chunk, target.name: changed.astype(np.float32, copy=False)}
        return chunk


def try_steps(
    answers: Callable[[Mapping[str, Array]], Mapping[str, Array]],
    arrays: Mapping[str, Array],
    inputs: Sequence[InputSpec],
) -> dict[str, float]:
    """Return the share of samples, 0..1, whose class stays with each usual step.

    For images from 16 pixels on those are ``flip`` and a ``crop`` of an eighth, for series from 256 values on ``shift``
    by a tenth; none where no output is class scores.

    Args:
        answers: gives the outputs of a model that is good, by name, for a batch.
        arrays: samples by input name, [S, ...].
        inputs: of the model.
    """
    asked = {name: np.asarray(array[:_ASKED]) for name, array in arrays.items()}
    wanted = answers(asked)
    scores = classification_output(wanted)
    if scores is None:
        return {}
    views = {text: Augmentation.parse([text]).apply(asked, inputs, (0,)) for text in _usual(inputs)}
    return {text: float(agrees(wanted[scores], answers(view)[scores]).mean()) for text, view in views.items()}


def _usual(inputs: Sequence[InputSpec]) -> list[str]:
    """Return the steps that are tried for the input that is augmented."""
    target = _target(inputs)
    sizes = [size for size in target.shape[1:] if isinstance(size, int)] if target is not None else []
    if target is None or len(sizes) != len(target.shape) - 1:
        return []
    if len(sizes) == 3:
        width = _width_axis([0, *sizes])
        side = min(sizes[width - 2 : width])
        return ["flip", f"crop:{side // 8}"] if side >= _LEAST_SIDE else []
    return ["shift:0.1"] if max(sizes) >= _LEAST_LENGTH and len(sizes) < 3 else []


def _empty(like: Array, folder: Path | None, index: int) -> Array:
    if folder is None:
        return np.empty(like.shape, like.dtype)
    file = folder / f"view.{index}.npy"
    file.unlink(missing_ok=True)  # the view before it may still be open
    return np.lib.format.open_memmap(file, mode="w+", dtype=like.dtype, shape=like.shape)


def _target(inputs: Sequence[InputSpec]) -> InputSpec | None:
    """Return the input that is augmented: the first image, else the first of float32 with a shape."""
    floats = [spec for spec in inputs if spec.dtype == "float32" and len(spec.shape) > 1]
    return next((spec for spec in floats if len(spec.shape) == 4), floats[0] if floats else None)


def _amount(text: str, name: str, amount: str | None) -> None:
    most = _BUILT_IN[name].most
    if most is None:
        if amount is not None:
            raise UserError(f"augment: {text}: {name} takes no amount")
        return
    try:
        number = float(amount or "")
    except ValueError:
        raise UserError(f"augment: {text}: needs an amount, such as {name}:{'4' if most > 1 else '0.1'}") from None
    if not 0 < number <= most or (most > 1 and number != int(number)):
        kind = "a whole number" if most > 1 else "a number"
        raise UserError(f"augment: {text}: {kind} above 0 and up to {most:g} is needed")


def _function(text: str) -> Any:
    module_name, _, name = text.rpartition(":")
    module = import_user_module(module_name, f"augment {text!r}")
    function = getattr(module, name, None)
    if not callable(function):
        known = [key for key, item in vars(module).items() if callable(item) and not key.startswith("_")]
        raise UserError(f"augment {text!r}: {module_name} has no function {name!r}{did_you_mean(name, known)}")
    return function


def _called(text: str, function: Any, chunk: dict[str, Array], rng: Rng) -> dict[str, Array]:
    try:
        given = function({name: array.copy() for name, array in chunk.items()}, rng)
    except Exception as err:  # the user's code may raise anything
        raise UserError(f"augment {text!r}: raised {type(err).__name__}: {first_line(err)}") from err
    if not isinstance(given, Mapping) or set(given) != set(chunk):
        raise UserError(f"augment {text!r}: must return a dict with the arrays {', '.join(chunk)}")
    made = {}
    for name, array in chunk.items():
        other = np.asarray(given[name])
        if other.shape != array.shape or other.dtype.kind != array.dtype.kind:
            shown = f"{other.dtype}{list(other.shape)}"
            raise UserError(f"augment {text!r}: gave {name!r} as {shown}, needs {array.dtype}{list(array.shape)}")
        if array.dtype.kind == "f" and not np.isfinite(other).all():
            raise UserError(f"augment {text!r}: gave {name!r} with NaN or infinity")
        made[name] = other.astype(array.dtype, copy=False)
    return made


def _width_axis(shape: Sequence[int]) -> int:
    """Return the axis of the width of images [n, C, H, W] or [n, H, W, C]."""
    return 2 if shape[3] in (1, 3, 4) and shape[1] not in (1, 3, 4) else 3


def _flip(array: Array, amount: float, rng: Rng) -> Array:
    del amount
    mirrored = rng.random(len(array)) < 0.5
    made = array.copy()
    made[mirrored] = np.flip(array[mirrored], _width_axis(array.shape))
    return made


def _crop(array: Array, amount: float, rng: Rng) -> Array:
    edge, width = int(amount), _width_axis(array.shape)
    pads = [(edge, edge) if axis in (width - 1, width) else (0, 0) for axis in range(4)]
    padded, size = np.pad(array, pads), array.shape[width - 1 : width + 1]
    made = np.empty_like(array)
    for row, (y, x) in enumerate(rng.integers(0, 2 * edge + 1, (len(array), 2))):
        window = (slice(y, y + size[0]), slice(x, x + size[1]))
        made[row] = padded[(row, slice(None), *window) if width == 3 else (row, *window)]
    return made


def _draw_shares(array: Array, amount: float, rng: Rng) -> tuple[Array, Array]:
    """Return which sample is blended into each, and the share, of the array's rank, that is left of it; 1 for most."""
    order, share = rng.permutation(len(array)), rng.random(len(array))
    share[rng.random(len(array)) >= amount] = 1
    return order, share.astype(np.float32).reshape(-1, *[1] * (array.ndim - 1))


def _mix(array: Array, amount: float, rng: Rng) -> Array:
    order, share = _draw_shares(array, amount, rng)
    return np.asarray(share * array + (1 - share) * array[order])


def _scale(array: Array, amount: float, rng: Rng) -> Array:
    factors = 1 + amount * (2 * rng.random(len(array)) - 1)
    return np.asarray(array * factors.reshape(-1, *[1] * (array.ndim - 1)))


def _noise(array: Array, amount: float, rng: Rng) -> Array:
    spread = amount * array.std(axis=tuple(range(1, array.ndim)), keepdims=True)
    return np.asarray(array + spread * rng.standard_normal(array.shape, dtype=np.float32))


def _shift(array: Array, amount: float, rng: Rng) -> Array:
    axis = 1 + int(np.argmax(array.shape[1:]))
    size = array.shape[axis]
    most, made = int(amount * size), np.zeros_like(array)
    for row, step in enumerate(rng.integers(-most, most + 1, len(array))):
        source, there = np.moveaxis(array[row], axis - 1, 0), np.moveaxis(made[row], axis - 1, 0)
        there[max(step, 0) : size + min(step, 0)] = source[max(-step, 0) : size - max(step, 0)]
    return made


_BUILT_IN = {
    "flip": _BuiltIn(_flip, None, 4),
    "crop": _BuiltIn(_crop, 1024, 4),
    "scale": _BuiltIn(_scale, 1.0),
    "noise": _BuiltIn(_noise, 1.0),
    "shift": _BuiltIn(_shift, 1.0),
    "mix": _BuiltIn(_mix, 1.0),
}
