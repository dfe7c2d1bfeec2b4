"""Files: written whole or not at all, never over an input, and a folder for what is needed for a moment."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from onnxedge.errors import UserError, first_line


def data_file(path: Path) -> Path:
    """Return where the external weights of a model lie that is saved to ``path``."""
    return path.with_name(path.name + ".data")


def refuse_overwrite(path: Path, inputs: Iterable[Path]) -> None:
    """Refuse a path to write to that is no file, lies in no folder that can be written to, or is an input.

    Args:
        path: where something is to be written.
        inputs: files, under any name, and folders of files that must stay as they are.

    Raises:
        UserError: with the reason.
    """
    if path.is_dir():
        raise UserError(f"{path}: is a folder; name the output file")
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: is a device or a pipe, no file that could be replaced; name the output file")
    if not path.parent.is_dir():
        raise UserError(f"{path}: no such folder {str(path.parent)!r}")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise UserError(f"{path}: the folder {str(path.parent)!r} cannot be written to")
    if not path.exists():
        return
    for source in inputs:
        if source.exists() and (path.samefile(source) or (source.is_dir() and _lies_in(path, source))):
            raise UserError(f"{path}: is the input; the input is never overwritten, choose another output")


def _lies_in(path: Path, folder: Path) -> bool:
    return folder.resolve() in path.resolve().parents


def write_whole(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, as :func:`save` does.

    Raises:
        UserError: it cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(data)
        if path.exists():
            flush(partial)
        os.replace(partial, path)
    except OSError as err:
        raise UserError(f"{path}: cannot be written: {first_line(err)}") from err
    finally:
        remove(partial)


def flush(path: Path) -> None:
    """Wait until the disk has the bytes of a file."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def remove(file: Path) -> None:
    """Remove a file, if it is there and can be."""
    with contextlib.suppress(OSError):  # it may lie where nothing can be written; that was said before
        file.unlink()


def cache_folder() -> Path:
    """Return the folder for what may be kept between runs: ``$ONNXEDGE_CACHE``, or the user's cache folder."""
    if given := os.environ.get("ONNXEDGE_CACHE"):
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    return (Path(base) if base else Path.home() / ".cache") / "onnxedge"


@contextlib.contextmanager
def scratch_directory() -> Iterator[Path]:
    """Yield a folder that is gone afterwards; what killed runs left behind is removed when the next one starts."""
    root = Path(tempfile.gettempdir()) / f"onnxedge-{os.getuid() if hasattr(os, 'getuid') else 'user'}"
    root.mkdir(mode=0o700, exist_ok=True)
    for stale in root.iterdir():
        if not _is_running(stale.name.split("-")[0]):
            shutil.rmtree(stale, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=root))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _is_running(pid: str) -> bool:
    if not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
