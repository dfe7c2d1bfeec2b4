"""Weights out of memory: edited ones of a large model go to a file at once, and read ones give their pages back."""

from __future__ import annotations

import mmap
import tempfile
from typing import Any

import numpy as np
import onnx_ir as ir

SPILLS_FROM_BYTES = 256 << 20  #: weights in files of their own, from which on a model counts as large
MIN_BYTES = 1 << 20  #: smaller arrays stay in memory


def spilled(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return an array of the same content that is mapped from a temporary file, which goes with the array.

    Where there is no room for a file the array itself is returned.
    """
    if array.nbytes < MIN_BYTES:
        return array
    try:
        with tempfile.TemporaryFile(prefix="onnxedge-") as file:
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            file.flush()
            return np.memmap(file, array.dtype, "r", shape=array.shape)
    except OSError:
        return array


def forget_pages(tensor: ir.TensorProtocol | None) -> None:
    """Let the system take back the memory of a tensor that is mapped from a file; reading it again maps it again."""
    mapped: Any = None
    if isinstance(tensor, ir.ExternalTensor):
        mapped = tensor.raw
    elif isinstance(tensor, ir.Tensor):
        mapped = getattr(tensor.raw, "_mmap", None)
    if isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)
