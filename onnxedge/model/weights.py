"""External weights on their way from file to file: what no pass edited is copied without being loaded."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import onnx_ir as ir

from onnxedge.model.edit import graphs_of
from onnxedge.model.spill import forget_pages

MIN_BYTES = 1024  #: smaller tensors stay in the model file: ONNX Runtime reads shapes and scales there
PAGE_BYTES = 4096  #: where larger tensors begin, so that runtimes can map them
_ALIGNED_BYTES = 16 * PAGE_BYTES  #: from here on; a gap is at most 6 % of the tensor behind it
_SMALL_ALIGNMENT = 64  #: widest vector register, bytes
_CHUNK_BYTES = 8 << 20


class WeightsError(OSError):
    """Say that a file of weights is not what it was when the model was loaded."""


def write_weights(model: ir.Model, file: Path, location: str, base_dir: Path) -> dict[int, ir.ExternalTensor]:
    """Write the large initializers of a model into one file, in order, the same bytes once.

    Args:
        model: not changed.
        file: where to; replaced.
        location: what the model calls that file.
        base_dir: folder that ``location`` is relative to.

    Returns:
        For each initializer's tensor, by ``id``, the one in the file.

    Raises:
        OSError: a file cannot be read or written.
    """
    placed: dict[int, ir.ExternalTensor] = {}
    regions: dict[tuple[str, int, int], int] = {}
    with file.open("wb") as out:
        for graph in graphs_of(model):
            for value in graph.initializers.values():
                tensor = value.const_value
                if tensor is None or tensor.dtype == ir.DataType.STRING or tensor.nbytes < MIN_BYTES:
                    continue
                if id(tensor) not in placed:
                    dims = [d for d in tensor.shape if isinstance(d, int)]
                    offset = _write(tensor, out, regions)
                    placed[id(tensor)] = ir.ExternalTensor(
                        location,
                        offset,
                        tensor.nbytes,
                        tensor.dtype,
                        shape=ir.Shape(dims),
                        name=value.name or "",
                        doc_string=tensor.doc_string,
                        metadata_props=dict(tensor.metadata_props),
                        base_dir=base_dir,
                    )
    return placed


def _write(tensor: ir.TensorProtocol, out: BinaryIO, regions: dict[tuple[str, int, int], int]) -> int:
    """Append a tensor's bytes and return where they begin."""
    key = None
    if isinstance(tensor, ir.ExternalTensor):
        key = (os.path.realpath(tensor.path), tensor.offset or 0, tensor.nbytes)
        if key in regions:
            return regions[key]
    alignment = PAGE_BYTES if tensor.nbytes >= _ALIGNED_BYTES else _SMALL_ALIGNMENT
    out.write(b"\0" * (-out.tell() % alignment))
    offset = out.tell()
    if key is not None:
        regions[key] = offset
        _copy(*key, out)
    else:
        data = tensor.tobytes()
        if len(data) != tensor.nbytes:
            raise WeightsError(f"tensor {tensor.name!r} has {len(data)} bytes, not {tensor.nbytes}")
        out.write(data)
        forget_pages(tensor)
    return offset


def _copy(path: str, offset: int, length: int, out: BinaryIO) -> None:
    """Append a part of a file to another, inside the kernel where it can."""
    out.flush()
    source = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    try:
        state = os.fstat(source)
        if not stat.S_ISREG(state.st_mode) or state.st_size < offset + length:
            raise WeightsError(f"{path}: is shorter than when the model was loaded")
        step: _Step = _kernel_copy if hasattr(os, "copy_file_range") else _plain_copy
        done = 0
        while done < length:
            count, step = _chunk(source, out, offset + done, min(_CHUNK_BYTES, length - done), step)
            if count == 0:
                raise WeightsError(f"{path}: ends before it should")
            done += count
    finally:
        os.close(source)
    out.seek(0, os.SEEK_END)


_Step = Callable[[int, int, int, int], int]


def _chunk(source: int, out: BinaryIO, offset: int, count: int, step: _Step) -> tuple[int, _Step]:
    """Copy at most ``count`` bytes; go over to plain reading where the kernel does not copy between file systems."""
    try:
        return step(source, out.fileno(), offset, count), step
    except OSError:
        if step is _plain_copy:
            raise
    return _plain_copy(source, out.fileno(), offset, count), _plain_copy


def _kernel_copy(source: int, target: int, offset: int, count: int) -> int:
    return os.copy_file_range(source, target, count, offset)


def _plain_copy(source: int, target: int, offset: int, count: int) -> int:
    view = memoryview(os.pread(source, count, offset))
    done = 0
    while done < len(view):
        done += os.write(target, view[done:])
    return done
