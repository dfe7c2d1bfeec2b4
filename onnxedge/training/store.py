"""What training keeps on disk between runs, in the cache folder: runs that were stopped, what teachers said."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir

from onnxedge.model.files import cache_folder, scratch_directory
from onnxedge.model.graph import graphs_of
from onnxedge.model.skeleton import Skeleton

CHECKPOINT = "state.npz"  #: what a worker writes behind each epoch
RUNS_BYTES = 4 << 30  #: of runs that were stopped; the oldest go
TEACHERS_BYTES = 4 << 30  #: of what teachers said; the oldest go


def digest_of(model: ir.Model, *more: object) -> str:
    """Return a hash of what a model computes, its weights and whatever else is given, 24 hex digits.

    Types and shapes of values inside, documentation and metadata do not count.
    """
    proto = Skeleton(model).proto()
    sha = hashlib.sha256(repr(more).encode())
    for item in (*proto.opset_import, *proto.graph.node, *proto.functions):
        sha.update(item.SerializeToString(deterministic=True))
    for graph in graphs_of(model):
        sha.update(repr(([v.name for v in graph.inputs], [v.name for v in graph.outputs])).encode())
        for name, value in graph.initializers.items():
            tensor = value.const_value
            if tensor is None:
                continue
            sha.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
            sha.update(
                repr(tensor.numpy().tolist()).encode() if tensor.dtype == ir.DataType.STRING else tensor.tobytes()
            )
    return sha.hexdigest()[:24]


@contextlib.contextmanager
def run_folder(key: str) -> Iterator[Path]:
    """Yield the folder of a run, which the same run finds again where it was stopped behind an epoch.

    It is gone when all went well, or where there is nothing to go on from. Another one, that is gone in any case, where
    the same run goes on in another process or the cache cannot be written.
    """
    folder = cache_folder() / "training" / "runs" / key
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT)
    except OSError:
        with scratch_directory() as other:
            yield other
        return
    try:
        if not _locked(lock):
            with scratch_directory() as other:
                yield other
            return
        os.utime(folder)
        _bound(folder.parent, RUNS_BYTES, folder)
        yield folder
        shutil.rmtree(folder, ignore_errors=True)
    except BaseException:
        if not (folder / CHECKPOINT).exists():  # nothing to go on from
            shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        os.close(lock)


def _locked(lock: int) -> bool:
    """Lock a file until it is closed, or this process ends; False where another process has."""
    try:
        import fcntl
    except ImportError:  # no such locks here; two equal runs at once are rare
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def teacher_folder(key: str) -> Path | None:
    """Return the folder for what a teacher said, made where it is not there; None where nothing can be kept."""
    folder = cache_folder() / "training" / "teachers" / key
    try:
        folder.mkdir(parents=True, exist_ok=True)
        os.utime(folder)
    except OSError:
        return None
    _bound(folder.parent, TEACHERS_BYTES, folder)
    return folder


def _bound(home: Path, most: int, kept: Path) -> None:
    """Remove the folders that were used longest ago, until what is left fits; not the one that is in use."""
    others = sorted((f for f in home.iterdir() if f.is_dir() and f != kept), key=lambda f: f.stat().st_mtime)
    sizes = {folder: _size(folder) for folder in (*others, kept)}
    total = sum(sizes.values())
    for folder in others:
        if total <= most:
            return
        if _is_idle(folder):
            shutil.rmtree(folder, ignore_errors=True)
            total -= sizes[folder]


def _is_idle(folder: Path) -> bool:
    if not (folder / "lock").exists():
        return True
    lock = os.open(folder / "lock", os.O_RDWR)
    try:
        return _locked(lock)
    finally:
        os.close(lock)


def _size(folder: Path) -> int:
    total = 0
    for file in folder.rglob("*"):
        with contextlib.suppress(OSError):  # another process may tidy up, too
            total += file.stat().st_size
    return total
