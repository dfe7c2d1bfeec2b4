"""Preprocessing, declared once as text and applied alike to image folders and arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Any, Literal

import numpy as np

from onnxedge.errors import UserError, did_you_mean

Array = np.ndarray[Any, Any]
Layout = Literal["NCHW", "NHWC"]

_CHANNEL_COUNTS = (1, 3, 4)
_DTYPES = ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16")


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """Turn raw samples into what a model's input takes.

    The steps, always in this order, each only where it is given:

    1. ``color``: ``rgb`` (gray becomes three equal channels, alpha is dropped), ``bgr`` (the same, reversed) or
       ``gray`` (ITU-R 601 luma, one channel). Data counts as RGB.
    2. ``resize``: bilinear with antialiasing (Pillow); one number scales the shorter side to it, ``HxW`` both sides.
    3. ``crop``: the centre, one number or ``HxW``.
    4. ``scale``: multiply. 5. ``mean``, ``std``: subtract, divide; one number or one per channel. In float32.
    6. ``layout``: what the *model* takes. Data is taken as channels last unless its shape says channels first.
    7. ``dtype``: the last cast; to integers with rounding and saturation.

    An image is a sample [H, W, C], [C, H, W] or [H, W]; ``scale``, ``mean`` and ``std`` work on any sample.
    In a model with several inputs they apply to ``input``, else to the first image-like one, else to the first.
    """

    color: str | None = None  #: rgb, bgr or gray
    resize: tuple[int, ...] | None = None  #: (shorter side,) or (height, width), pixels
    crop: tuple[int, ...] | None = None  #: (side,) or (height, width), pixels
    scale: float | None = None  #: factor on the raw values, such as 1/255
    mean: tuple[float, ...] | None = None  #: subtracted after ``scale``, one number or one per channel
    std: tuple[float, ...] | None = None  #: divided by after ``mean``, one number or one per channel
    layout: Layout | None = None  #: what the model takes
    dtype: str | None = None  #: numpy name of the last cast
    input: str | None = None  #: name of the model's input that this is for

    def __post_init__(self) -> None:
        for key in ("resize", "crop"):
            size = getattr(self, key)
            if size is not None and (len(size) not in (1, 2) or min(size) < 1):
                raise _error(f"{key}: needs one size or HxW, each at least 1, got {size}")
        if self.std is not None and 0.0 in self.std:
            raise _error("std: must not be 0")
        if self.mean and self.std and len(self.mean) != len(self.std) and 1 not in (len(self.mean), len(self.std)):
            raise _error(f"mean has {len(self.mean)} numbers, std has {len(self.std)}; give one, or one per channel")
        for key, known in _CHOICES.items():
            value = getattr(self, key)
            if value is not None and value not in known:
                raise _error(f"{key}={value}: not known{did_you_mean(value, known)} (known: {', '.join(known)})")

    @classmethod
    def parse(cls, text: str) -> Preprocess:
        """Read ``resize=256,crop=224,scale=1/255,mean=0.485:0.456:0.406,layout=NCHW``.

        Lists are written with ``:``, or with ``,`` as in ``mean=0.485,0.456,0.406``.

        Raises:
            UserError: an unknown or repeated key, or a value that does not fit its key.
        """
        given: dict[str, str] = {}
        key = ""
        for part in (piece.strip() for piece in text.split(",")):
            if not part:
                continue
            if "=" not in part:
                if key not in ("mean", "std"):
                    raise _error(f"{part!r}: needs KEY=VALUE{did_you_mean(part, _PARSERS)}")
                given[key] += ":" + part
                continue
            key, value = (side.strip() for side in part.split("=", 1))
            if key not in _PARSERS:
                raise _error(f"{key}: no such key{did_you_mean(key, _PARSERS)} (known: {', '.join(_PARSERS)})")
            if key in given:
                raise _error(f"{key}: given twice")
            if not value:
                raise _error(f"{key}: has no value")
            given[key] = value
        return cls(**{key: _PARSERS[key](key, value) for key, value in given.items()})

    def __str__(self) -> str:
        return ",".join(f"{key}={_text(value)}" for key, value in self._given())

    def _given(self) -> Iterator[tuple[str, Any]]:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None:
                yield field.name, value

    @property
    def is_geometric(self) -> bool:
        """Whether samples must be images: a step moves pixels or channels."""
        return any(part is not None for part in (self.color, self.resize, self.crop, self.layout))

    @property
    def is_arithmetic(self) -> bool:
        """Whether a step computes, so that the result is float32."""
        return any(part is not None for part in (self.scale, self.mean, self.std))

    def shape(self, sample: tuple[int, ...], wanted: tuple[int | str | None, ...]) -> tuple[int, ...] | None:
        """Return the shape of a preprocessed sample, None where the sample is no image and would have to be one.

        Args:
            sample: shape of the raw sample, without the batch axis.
            wanted: what the model takes, without the batch axis; decides where a shape alone leaves the layout open.
        """
        if not self.is_geometric:
            return sample
        if len(sample) == 2:
            sample = (*sample, 1)
        if len(sample) != 3 or 0 in sample:
            return None
        channels_first = self._channels_first(sample, wanted)
        height, width, channels = (*sample[1:], sample[0]) if channels_first else sample
        height, width = self._cropped(*self._resized(height, width))
        if self.color is not None:
            channels = 1 if self.color == "gray" else 3
        first = channels_first if self.layout is None else self.layout == "NCHW"
        return (channels, height, width) if first else (height, width, channels)

    def apply(self, batch: Array, wanted: tuple[int | str | None, ...]) -> Array:
        """Return preprocessed samples; ``batch``: raw [N, ...], ``wanted``: as in :meth:`shape`.

        Raises:
            UserError: a sample is too small to crop, or has not as many channels as ``mean`` or ``std``.
        """
        if not self.is_geometric:
            return self._cast(self._compute(batch, self._channel_axis(batch.shape[1:])))
        if batch.ndim == 3:
            batch = batch[..., None]
        channels_first = self._channels_first(batch.shape[1:], wanted)
        pixels = np.moveaxis(batch, 1, -1) if channels_first else batch
        if self.color is not None:
            pixels = _recolor(pixels, self.color)
        pixels = self._crop(self._resize(pixels))
        pixels = self._cast(self._compute(pixels, -1))
        first = channels_first if self.layout is None else self.layout == "NCHW"
        return np.ascontiguousarray(np.moveaxis(pixels, -1, 1) if first else pixels)

    def _channels_first(self, sample: tuple[int, ...], wanted: tuple[int | str | None, ...]) -> bool:
        first, last = sample[0] in _CHANNEL_COUNTS, sample[-1] in _CHANNEL_COUNTS
        if first != last:
            return first
        if self.layout == "NCHW" and self.resize is None and self.crop is None:
            pairs = zip(wanted, sample, strict=False)
            return len(wanted) == 3 and all(w == s or not isinstance(w, int) for w, s in pairs)
        return False

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        if self.resize is None:
            return height, width
        if len(self.resize) == 2:
            return self.resize[0], self.resize[1]
        side = self.resize[0]  # the longer side as torchvision rounds it: down
        if height <= width:
            return side, max(1, side * width // height)
        return max(1, side * height // width), side

    def _cropped(self, height: int, width: int) -> tuple[int, int]:
        if self.crop is None:
            return height, width
        wanted = (self.crop[0], self.crop[-1])
        if wanted[0] > height or wanted[1] > width:
            raise _error(f"crop={_text(self.crop)}: the image is {height}x{width} there; give resize first")
        return wanted

    def _resize(self, pixels: Array) -> Array:
        height, width = self._resized(*pixels.shape[1:3])
        if (height, width) == pixels.shape[1:3]:
            return pixels
        return np.stack([_resize_image(image, height, width) for image in pixels])

    def _crop(self, pixels: Array) -> Array:
        height, width = self._cropped(*pixels.shape[1:3])
        top, left = round((pixels.shape[1] - height) / 2), round((pixels.shape[2] - width) / 2)
        return pixels[:, top : top + height, left : left + width]

    def _channel_axis(self, sample: tuple[int, ...]) -> int:
        """Return the axis, counted from the end, along which ``mean`` and ``std`` lie where no layout is given."""
        count = max(len(self.mean or ()), len(self.std or ()))
        return -3 if len(sample) == 3 and sample[-1] != count and sample[0] == count else -1

    def _compute(self, batch: Array, channel_axis: int) -> Array:
        if not self.is_arithmetic:
            return batch
        result = batch.astype(np.float32)
        if self.scale is not None:
            result *= np.float32(self.scale)
        if self.mean is not None:
            result -= _per_channel("mean", self.mean, result, channel_axis)
        if self.std is not None:
            result /= _per_channel("std", self.std, result, channel_axis)
        return result

    def _cast(self, batch: Array) -> Array:
        if self.dtype is None or batch.dtype == self.dtype:
            return batch
        dtype = np.dtype(self.dtype)
        if dtype.kind in "iu":
            if batch.dtype.kind == "f" and not np.isfinite(batch).all():
                raise _error(f"dtype={self.dtype}: the data holds NaN or infinity, which no integer is")
            limits = np.iinfo(dtype)
            exact = batch.astype(np.int64 if batch.dtype.kind in "biu" else np.float64)
            return np.clip(np.rint(exact), limits.min, limits.max).astype(dtype)
        return batch.astype(dtype)


def _per_channel(key: str, numbers: tuple[float, ...], batch: Array, channel_axis: int) -> Array:
    values = np.asarray(numbers, np.float32)
    if len(values) == 1:
        return values
    if batch.ndim + channel_axis < 1 or batch.shape[channel_axis] != len(values):
        raise _error(f"{key}: has {len(values)} numbers, the sample {list(batch.shape[1:])} has not as many channels")
    return values.reshape(-1, *[1] * (-channel_axis - 1))


def _recolor(pixels: Array, color: str) -> Array:
    """Convert pixels [N, H, W, C]; C of 1 is gray, 3 RGB, 4 RGBA."""
    channels = pixels.shape[-1]
    if channels not in _CHANNEL_COUNTS:
        raise _error(f"color={color}: the sample {list(pixels.shape[1:])} has {channels} channels, not 1, 3 or 4")
    if channels == 4:
        pixels = pixels[..., :3]
    if color == "gray":
        if channels == 1:
            return pixels
        if pixels.dtype == np.uint8:  # as Pillow computes mode L
            luma = pixels.astype(np.int32) @ np.array([19595, 38470, 7471], np.int32)
            return ((luma + 0x8000) >> 16).astype(np.uint8)[..., None]
        return (pixels.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32))[..., None]
    if channels == 1:
        return np.repeat(pixels, 3, axis=-1)
    return pixels[..., ::-1] if color == "bgr" else pixels


def _resize_image(image: Array, height: int, width: int) -> Array:
    """Resize one image [H, W, C], bilinear with antialiasing; uint8 stays uint8, all else becomes float32."""
    from PIL import Image

    size, bilinear = (width, height), Image.Resampling.BILINEAR
    if image.dtype == np.uint8 and image.shape[-1] == 3:
        return np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize(size, bilinear))
    if image.dtype != np.uint8:
        image = image.astype(np.float32)
    planes = (np.ascontiguousarray(image[..., c]) for c in range(image.shape[-1]))
    return np.stack([np.asarray(Image.fromarray(plane).resize(size, bilinear)) for plane in planes], axis=-1)


def _error(message: str) -> UserError:
    return UserError(f"preprocess: {message}")


def _number(key: str, text: str) -> float:
    numerator, slash, denominator = text.partition("/")
    try:
        value = float(numerator) / float(denominator) if slash else float(numerator)
    except (ValueError, ZeroDivisionError):
        value = float("nan")
    if not np.isfinite(value):
        raise _error(f"{key}={text}: is not a number such as 0.5 or 1/255")
    return value


def _numbers(key: str, text: str) -> tuple[float, ...]:
    return tuple(_number(key, part.strip()) for part in text.split(":"))


def _size(key: str, text: str) -> tuple[int, ...]:
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.strip().isdecimal() for part in parts):
        raise _error(f"{key}={text}: needs a size in pixels such as 224, or HxW such as 240x320")
    return tuple(int(part) for part in parts)


def _word(key: str, text: str) -> str:
    return {"layout": text.upper(), "color": text.lower(), "dtype": text.lower()}.get(key, text)


_CHOICES: dict[str, tuple[str, ...]] = {
    "color": ("rgb", "bgr", "gray"),
    "layout": ("NCHW", "NHWC"),
    "dtype": _DTYPES,
}
_PARSERS: dict[str, Callable[[str, str], Any]] = {
    "color": _word,
    "resize": _size,
    "crop": _size,
    "scale": _number,
    "mean": _numbers,
    "std": _numbers,
    "layout": _word,
    "dtype": _word,
    "input": _word,
}


def _text(value: object) -> str:
    if isinstance(value, tuple):
        joint = "x" if all(isinstance(v, int) for v in value) else ":"
        return joint.join(_text(v) for v in value)
    return _number_text(value) if isinstance(value, float) else str(value)


def _number_text(value: float) -> str:
    """Return the shortest text that reads back as the same float: ``0.485``, ``1/255``."""
    text = f"{value:g}" if float(f"{value:g}") == value else repr(value)
    fraction = Fraction(value).limit_denominator(100_000)
    if len(text) > 8 and fraction.numerator and float(fraction.numerator) / float(fraction.denominator) == value:
        return f"{fraction.numerator}/{fraction.denominator}"
    return text
