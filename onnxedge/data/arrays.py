"""Arrays that are read in parts: in memory, memory-mapped in npy and npz files, decoded from images, spooled."""

from __future__ import annotations

import math
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import IO, Any, Literal, Protocol

import numpy as np

from onnxedge.errors import UserError, first_line

Array = np.ndarray[Any, Any]

_BLOCK_BYTES = 1 << 22
_HELD_BYTES = 1 << 28  #: a compressed array above this is unpacked into a temporary file, not into memory


class Rows(Protocol):
    """An array whose parts are read on demand; ``shape`` and ``dtype`` cost no data."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Dimensions of the whole array."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of its elements."""

    def array(self) -> Array:
        """Return the array, memory-mapped where it can be; what is indexed is what is read."""


class Held:
    """An array in memory, or memory-mapped."""

    def __init__(self, array: Array) -> None:
        self._array = array

    @property
    def shape(self) -> tuple[int, ...]:
        """Dimensions of the whole array."""
        shape: tuple[int, ...] = self._array.shape
        return shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of its elements."""
        dtype: np.dtype[Any] = self._array.dtype
        return dtype

    def array(self) -> Array:
        """Return the array."""
        return self._array


class PackedMember:
    """A compressed member of an npz file: its header is read at once, its bytes when they are asked for, once."""

    def __init__(self, path: Path, member: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.path, self.member, self.shape, self.dtype = path, member, shape, dtype
        self._array: Array | None = None

    def array(self) -> Array:
        """Return the array, in memory or, a large one, mapped from an unnamed temporary file."""
        if self._array is None:
            try:
                with zipfile.ZipFile(self.path) as archive, archive.open(self.member) as file:
                    self._array = self._unpack(file)
            except (OSError, ValueError, EOFError, zipfile.BadZipFile) as err:
                raise UserError(f"{self.path}: array {_stem(self.member)!r} cannot be read: {first_line(err)}") from err
        return self._array

    def _unpack(self, file: IO[bytes]) -> Array:
        if _byte_count(self.shape, self.dtype) <= _HELD_BYTES:
            array: Array = np.lib.format.read_array(file, allow_pickle=False)
            return array
        with tempfile.TemporaryFile(prefix="onnxedge-") as spool:
            shutil.copyfileobj(file, spool, _BLOCK_BYTES)
            spool.seek(0)
            shape, order, dtype = _read_header(spool)
            return np.memmap(spool, dtype, "r", spool.tell(), shape, order)


class Mapped:
    """An array that lies as it is in a file; mapped anew for each reading, so that pages do not pile up in memory."""

    def __init__(
        self, path: Path, offset: int, shape: tuple[int, ...], order: Literal["C", "F"], dtype: np.dtype[Any]
    ) -> None:
        self.path, self.offset, self.shape, self.order, self.dtype = path, offset, shape, order, dtype
        have, end = path.stat().st_size, offset + _byte_count(shape, dtype)
        if have < end:
            raise ValueError(f"cut short: it has {have} bytes, the array ends at {end}")

    def array(self) -> Array:
        """Map the array."""
        if 0 in self.shape:
            return np.empty(self.shape, self.dtype)
        return np.memmap(self.path, self.dtype, "r", self.offset, self.shape, self.order)


def open_npy(path: Path) -> Rows:
    """Open an npy file, memory-mapped.

    Raises:
        UserError: not an npy file, cut short, or of Python objects.
    """
    try:
        with path.open("rb") as file:
            shape, order, dtype = _read_header(file)
            return Mapped(path, file.tell(), shape, order, dtype)
    except (OSError, ValueError, EOFError) as err:
        raise UserError(f"{path}: not a readable npy file: {first_line(err)}") from err


def open_npz(path: Path) -> dict[str, Rows]:
    """Open an npz file: stored members are memory-mapped where they lie, compressed ones are read when asked for.

    Raises:
        UserError: not an npz file, cut short, or with an array of Python objects.
    """
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            members = [info for info in archive.infolist() if info.filename.endswith(".npy")]
            arrays = {_stem(info.filename): _open_member(path, file, archive, info) for info in members}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as err:
        raise UserError(f"{path}: not a readable npz file: {first_line(err)}") from err
    if not arrays:
        raise UserError(f"{path}: holds no arrays")
    return arrays


def _open_member(path: Path, file: IO[bytes], archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Rows:
    with archive.open(info) as member:
        shape, order, dtype = _read_header(member)
        header_bytes = member.tell()
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        end = header_bytes + _byte_count(shape, dtype)
        if info.file_size < end:
            raise ValueError(f"cut short: {info.filename} has {info.file_size} bytes, the array ends at {end}")
        return PackedMember(path, info.filename, shape, dtype)
    file.seek(info.header_offset)
    local = file.read(30)  # PKWARE APPNOTE 4.3.7: name and extra field lengths stand at bytes 26 and 28
    offset = info.header_offset + 30 + int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")
    return Mapped(path, offset + header_bytes, shape, order, dtype)


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], Literal["C", "F"], np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("an array holds Python objects (pickle), which are not read")
    if any(d < 0 for d in shape):
        raise ValueError(f"an array has a negative dimension: {shape}")
    return shape, "F" if fortran else "C", dtype


def _byte_count(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    return dtype.itemsize * math.prod(shape)


def _stem(member: str) -> str:
    return member.removesuffix(".npy")


class ImageFile:
    """An image as uint8 [H, W, C], decoded when it is asked for; gray where ``channels`` is 1, else RGB."""

    dtype: np.dtype[Any] = np.dtype(np.uint8)

    def __init__(self, path: Path, channels: int) -> None:
        from PIL import Image, UnidentifiedImageError

        self.path, self.channels = path, channels
        try:
            with Image.open(path) as image:  # reads the header only
                self.shape: tuple[int, ...] = (image.height, image.width, channels)
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as err:
            raise UserError(f"{path}: not a readable image: {first_line(err)}") from err

    def array(self) -> Array:
        """Return the decoded pixels."""
        from PIL import Image

        try:
            with Image.open(self.path) as image:
                pixels = np.asarray(image.convert("L" if self.channels == 1 else "RGB"))
        except (OSError, SyntaxError, Image.DecompressionBombError) as err:  # Pillow: SyntaxError for broken PNG chunks
            raise UserError(f"{self.path}: image cannot be decoded: {first_line(err)}") from err
        return pixels.reshape(self.shape)


class Spool:
    """Arrays written one behind the other into an unnamed temporary file and read back by position."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="onnxedge-")  # noqa: SIM115, lives as long as the spool
        self.bytes = 0

    def append(self, array: Array) -> Spooled:
        """Write an array and return where it lies."""
        data = np.ascontiguousarray(array)
        where = Spooled(self, self.bytes, array.shape, array.dtype)
        self._file.seek(self.bytes)
        self._file.write(data.data if data.nbytes else b"")
        self.bytes += data.nbytes
        return where

    def read(self, offset: int, count: int) -> bytes:
        """Return ``count`` bytes from ``offset``."""
        self._file.seek(offset)
        return self._file.read(count)


class Spooled:
    """An array that lies in a :class:`Spool`."""

    def __init__(self, spool: Spool, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._spool, self._offset, self.shape, self.dtype = spool, offset, shape, dtype

    def array(self) -> Array:
        """Read the array back."""
        count = _byte_count(self.shape, self.dtype)
        return np.frombuffer(self._spool.read(self._offset, count), self.dtype).reshape(self.shape)


def take(array: Array, rows: Array, axis: int = 0) -> Array:
    """Return the given rows; a run of neighbours is sliced, so that only it is read from a memory-mapped file."""
    first, last = int(rows[0]), int(rows[-1])
    if last - first + 1 == len(rows) and (len(rows) == 1 or bool((np.diff(rows) == 1).all())):
        return array[(slice(None),) * axis + (slice(first, last + 1),)]
    return np.take(array, rows, axis=axis)
