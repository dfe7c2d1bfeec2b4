"""What the user may name as data, each as a sequence of chunks: named arrays that hold one sample or many."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from onnxedge.data.arrays import Array, Held, ImageFile, Rows, Spool, open_npy, open_npz
from onnxedge.errors import UserError, did_you_mean, first_line

LABEL_NAMES = ("y", "labels", "label")
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".webp", ".tif", ".tiff", ".gif"})
_ENDLESS_BYTES = 1 << 36  #: a generator that gave this much, or so many items, is taken to never end
_ENDLESS_ITEMS = 100_000


@dataclass(frozen=True)
class Chunk:
    """Arrays that belong together.

    Attributes:
        where: file or source, for messages.
        arrays: by name; the empty name is an array that came without one.
        labels: labels that came beside the arrays, not among them.
        alone: True: each array is one sample; False: samples lie along an axis; None: the ranks tell.
        files: whose bytes stand for the content, where hashing them is cheaper than decoding them.
    """

    where: str
    arrays: Mapping[str, Rows]
    labels: Array | None = None
    alone: bool | None = None
    files: tuple[Path, ...] = ()


class Source(Protocol):
    """A sequence of chunks whose end may only be known when it is reached."""

    name: str

    @property
    def sample_count(self) -> int | None:
        """Number of chunks where each is known to be one sample, else None."""

    def chunk(self, index: int) -> Chunk | None:
        """Return a chunk, None behind the last."""


class Arrays:
    """One chunk: an npz or npy file, or arrays in memory."""

    sample_count = None

    def __init__(self, name: str, arrays: Mapping[str, Rows], labels: Array | None = None) -> None:
        self.name = name
        self._chunk = Chunk(name, arrays, labels, alone=False)

    def chunk(self, index: int) -> Chunk | None:
        """Return the one chunk."""
        return self._chunk if index == 0 else None


class ArrayFolder:
    """A folder of npz or npy files, sorted by name, each one sample or some."""

    sample_count = None

    def __init__(self, name: str, files: Sequence[Path]) -> None:
        self.name = name
        self._files = files

    def chunk(self, index: int) -> Chunk | None:
        """Open a file."""
        if index >= len(self._files):
            return None
        path = self._files[index]
        return Chunk(str(path), open_npz(path) if path.suffix == ".npz" else {"": open_npy(path)})


class ImageFolder:
    """A folder of images; sub-folders are classes, numbered in the order of their sorted names.

    Images are taken from the classes in turn, so that the first samples hold every class.
    """

    def __init__(self, name: str, classes: Sequence[Sequence[Path]], *, labelled: bool, channels: int) -> None:
        self.name = name
        self._labelled = labelled
        self._channels = channels
        turns = zip_longest(*([(path, label) for path in files] for label, files in enumerate(classes)))
        self._images = [image for turn in turns for image in turn if image is not None]

    @property
    def sample_count(self) -> int | None:
        """Number of images."""
        return len(self._images)

    def chunk(self, index: int) -> Chunk | None:
        """Open an image; it is decoded when it is read."""
        if index >= len(self._images):
            return None
        path, label = self._images[index]
        labels = np.array([label]) if self._labelled else None
        return Chunk(str(path), {"": ImageFile(path, self._channels)}, labels, alone=True, files=(path,))


class Stream:
    """What a generator or a ``CalibrationDataReader`` gives, written to a temporary file as it comes.

    Only what was asked for is drawn; it is drawn once, and read back from the file afterwards.
    """

    sample_count = None

    def __init__(self, name: str, items: Iterable[Any]) -> None:
        self.name = name
        self._items: Iterator[Any] = iter(items)
        self._chunks: list[Chunk] = []
        self._spool = Spool()

    def chunk(self, index: int) -> Chunk | None:
        """Draw up to a chunk, or read it back."""
        while len(self._chunks) <= index:
            where = f"{self.name}: item {len(self._chunks)}"
            try:
                item = next(self._items)
            except StopIteration:
                return None
            except UserError:
                raise
            except (Exception, SystemExit) as err:  # the user's code may raise anything, and end the process
                raise UserError(f"{where}: raised {type(err).__name__}: {first_line(err)}") from err
            self._chunks.append(self._stored(where, item))
            if self._spool.bytes > _ENDLESS_BYTES or index > _ENDLESS_ITEMS:
                much = f"{len(self._chunks):,} items, {self._spool.bytes / 1e9:.1f} GB,"
                raise UserError(f"{self.name}: gave {much} and does not end; let it end")
        return self._chunks[index]

    def _stored(self, where: str, item: Any) -> Chunk:
        labels = None
        if isinstance(item, tuple):
            if len(item) != 2:
                raise UserError(f"{where}: a tuple of {len(item)}; give a dict, an array, or (either, label)")
            item, labels = item[0], None if item[1] is None else np.asarray(item[1])
        arrays = item if isinstance(item, Mapping) else {"": item}
        return Chunk(where, {str(key): self._kept(as_array(value, where)) for key, value in arrays.items()}, labels)

    def _kept(self, array: Array) -> Rows:
        return Held(array) if array.dtype == object else self._spool.append(array)


def as_array(value: Any, where: str) -> Array:
    """Return a value as an array.

    Raises:
        UserError: it is none, such as a ragged list.
    """
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as err:
        raise UserError(f"{where}: not an array: {first_line(err)}") from err
    if array.dtype == object and not all(isinstance(v, str) for v in array.flat):
        kind = type(value).__name__
        raise UserError(f"{where}: gives {kind}, not an array; give a dict of arrays by input name, or an array")
    return array


def open_source(source: Any, channels: int) -> Source:
    """Find out what a source is.

    Args:
        source: path of an npz or npy file, of a folder of such or of images, ``module:function``, a
            ``CalibrationDataReader``, a dict of arrays, an array, or an iterable of any of these.
        channels: 1 reads images as gray, 3 as RGB.

    Raises:
        UserError: no such file, an unknown kind of file, or an empty folder.
    """
    if isinstance(source, str | os.PathLike):
        return _open_text(os.fspath(source), channels)
    return _open_object("data", source)


def _open_text(text: str, channels: int) -> Source:
    path = Path(text)
    if path.is_dir():
        return _open_folder(path, channels)
    if path.exists():
        if path.suffix == ".npz":
            return Arrays(text, open_npz(path))
        if path.suffix == ".npy":
            return Arrays(text, {"": open_npy(path)})
        raise UserError(f"{text}: not a kind of data that is read; give .npz, .npy, a folder, or module:function")
    if re.fullmatch(r".+:[A-Za-z_]\w*", text):
        return _open_function(text)
    siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    raise UserError(f"{text}: no such file or folder{did_you_mean(path.name, siblings)}")


def _open_folder(path: Path, channels: int) -> Source:
    files = _visible(path)
    arrays = [f for f in files if f.suffix in (".npz", ".npy")]
    images = [f for f in files if f.suffix.lower() in IMAGE_SUFFIXES]
    folders = [f for f in files if f.is_dir()]
    if arrays and images:
        raise UserError(f"{path}: holds both arrays ({arrays[0].name}) and images ({images[0].name}); keep them apart")
    if arrays:
        return ArrayFolder(str(path), arrays)
    if images:
        return ImageFolder(str(path), [images], labelled=False, channels=channels)
    classes = [[f for f in _visible(folder) if f.suffix.lower() in IMAGE_SUFFIXES] for folder in folders]
    if not any(classes):
        raise UserError(f"{path}: holds no .npz, no .npy and no images, neither do its sub-folders")
    return ImageFolder(str(path), classes, labelled=True, channels=channels)


def _visible(folder: Path) -> list[Path]:
    return sorted((p for p in folder.iterdir() if not p.name.startswith(".")), key=lambda p: p.name)


def _open_function(text: str) -> Source:
    """Import ``module:function`` (or ``file.py:function``), with the working folder on the import path, and call it."""
    module_name, _, function_name = text.rpartition(":")
    module = import_user_module(module_name, text)
    function = getattr(module, function_name, None)
    if function is None:
        names = [name for name in vars(module) if not name.startswith("_")]
        raise UserError(f"{text}: {module_name} has no {function_name!r}{did_you_mean(function_name, names)}")
    try:
        result = function() if callable(function) else function
    except (Exception, SystemExit) as err:  # the user's code may raise anything, and end the process
        raise UserError(f"{text}: raised {type(err).__name__}: {first_line(err)}") from err
    return _open_object(text, result)


def import_user_module(name: str, text: str) -> Any:
    """Import a module by name or by the path of its file; the working folder is put on the import path.

    Raises:
        UserError: there is none, or importing it fails.
    """
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        if name.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(name).stem, name)
            if spec is None or spec.loader is None or not Path(name).is_file():
                raise UserError(f"{text}: no such file {name!r}")
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return module
        return importlib.import_module(name)
    except UserError:
        raise
    except (Exception, SystemExit) as err:  # the user's code may raise anything, and end the process
        raise UserError(f"{text}: {name} cannot be imported: {type(err).__name__}: {first_line(err)}") from err


def _open_object(name: str, item: Any) -> Source:
    if callable(getattr(item, "get_next", None)):
        return Stream(name, iter(item.get_next, None))
    if isinstance(item, np.ndarray | Mapping):
        named = item if isinstance(item, Mapping) else {"": item}
        return Arrays(name, {str(k): Held(as_array(v, f"{name}: {str(k)!r}")) for k, v in named.items()})
    if isinstance(item, Iterable) and not isinstance(item, str | bytes):
        return Stream(name, item)
    raise UserError(f"{name}: a {type(item).__name__} is no data; give an iterable of dicts or arrays")
