"""External weights on their way from file to file: what no pass edited is copied without being loaded."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx_ir as ir

from onnxedge.model.graph import graphs_of
from onnxedge.model.spill import forget_pages

MIN_BYTES = 1024  #: smaller tensors stay in the model file: ONNX Runtime reads shapes and scales there
PAGE_BYTES = 4096  #: where larger tensors begin, so that runtimes can map them
_ALIGNED_BYTES = 16 * PAGE_BYTES  #: from here on; a gap is at most 6 % of the tensor behind it
_SMALL_ALIGNMENT = 64  #: widest vector register, bytes
_CHUNK_BYTES = 8 << 20


@contextlib.contextmanager
def standing_in(
    graphs: Iterable[ir.Graph], choose: Callable[[ir.Value, ir.TensorProtocol], ir.TensorProtocol]
) -> Iterator[None]:
    """Put other tensors in place of those of initializers while the context lasts.

    Args:
        graphs: whose initializers.
        choose: gives what stands in for an initializer's tensor; the tensor itself where it stays.
    """
    kept: list[tuple[ir.Value, ir.TensorProtocol]] = []
    try:
        for graph in graphs:
            for value in graph.initializers.values():
                tensor = value.const_value
                if tensor is not None and (other := choose(value, tensor)) is not tensor:
                    kept.append((value, tensor))
                    value.const_value = other
        yield
    finally:
        for value, tensor in kept:
            value.const_value = tensor


def in_memory(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """Return a tensor whose bytes are in memory: itself, but where it lies in a file."""
    if not isinstance(tensor, ir.ExternalTensor):
        return tensor
    return ir.Tensor(
        np.array(tensor.numpy()),
        dtype=tensor.dtype,
        name=tensor.name,
        doc_string=tensor.doc_string,
        metadata_props=dict(tensor.metadata_props),
    )


def at_hand(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """Return a tensor whose array is made already, where it is small: onnx_ir's reads the protobuf at each question."""
    if not isinstance(tensor, ir.serde.TensorProtoTensor) or tensor.dtype == ir.DataType.STRING:
        return tensor
    if tensor.nbytes > MIN_BYTES:
        return tensor
    return ir.Tensor(
        tensor.numpy(),
        dtype=tensor.dtype,
        name=tensor.name,
        doc_string=tensor.doc_string,
        metadata_props=dict(tensor.metadata_props),
    )


def in_file(tensor: ir.TensorProtocol, location: str, offset: int | None = None) -> ir.ExternalTensor:
    """Return a tensor like another one that lies in a file."""
    return ir.ExternalTensor(
        location,
        offset,
        None if offset is None else tensor.nbytes,
        tensor.dtype,
        shape=ir.Shape(d for d in tensor.shape if isinstance(d, int)),
        name=tensor.name or "",
        doc_string=tensor.doc_string,
        metadata_props=dict(tensor.metadata_props),
    )


class WeightsError(OSError):
    """Say that a file of weights is not what it was when the model was loaded."""


def write_weights(model: ir.Model, file: Path, location: str) -> dict[int, ir.ExternalTensor]:
    """Write the large initializers of a model into one file, in order, the same bytes once.

    Args:
        model: not changed.
        file: where to; replaced.
        location: what the model calls that file.

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
                    placed[id(tensor)] = in_file(tensor, location, _write(tensor, out, regions))
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
        out.write(content_of(tensor))
        forget_pages(tensor)
    return offset


def content_of(tensor: ir.TensorProtocol) -> bytes | memoryview:
    """Return the bytes of a tensor as they stand in a file, a view of them where they lie in memory so.

    Raises:
        WeightsError: it has not the bytes that its shape needs.
    """
    array = tensor.raw if isinstance(tensor, ir.Tensor) else None
    data: bytes | memoryview
    if (
        isinstance(array, np.ndarray)
        and array.flags.c_contiguous
        and tensor.dtype.bitwidth >= 8
        and sys.byteorder == "little"
        and array.dtype.isnative
    ):
        data = array.reshape(-1).view(np.uint8).data
    else:
        data = tensor.tobytes()
    if len(data) != tensor.nbytes:
        raise WeightsError(f"tensor {tensor.name!r} has {len(data)} bytes, not {tensor.nbytes}")
    return data


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
