"""ONNX Runtime in a process of its own: a crash, a hang or a hunger for memory there does no harm here."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from onnxedge.api import Array, CannotRun

_CHILD = Path(__file__).with_name("evaluate_child.py")
_START_SECONDS = 60.0  #: for the process to import what it needs
_PATIENCE_SECONDS = 20.0  #: lost to crashes and endless runs, after which no more is tried
_MAX_DEATHS = 16


class Isolated:
    """Run models in another process, which is started at the first run and again when it died.

    The process ends with this object. It shares nothing with the caller but two pipes, and imports neither the main
    script nor onnxedge, so that it can be started from a script, a test, a thread or a notebook alike.

    Args:
        memory_bytes: what a run may take beyond the process itself and the arrays that it is given.
        seconds: how long a run may last.
    """

    def __init__(self, memory_bytes: int, seconds: float) -> None:
        self._memory, self._seconds = memory_bytes, seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._lost_seconds = 0.0
        self._deaths = 0

    def run(self, model: bytes, feed: Mapping[str, Array]) -> list[Array]:
        """Return the outputs of a model, in its order.

        Raises:
            CannotRun: the runtime refuses the model, crashes on it, or takes too much memory or time.
        """
        with self._lock:
            if self._deaths >= _MAX_DEATHS or self._lost_seconds > _PATIENCE_SECONDS:
                raise CannotRun("the runtime crashed or took too long too often in this model; no more is tried")
            begin = time.monotonic()
            try:
                return self._exchange(self._started(), model, feed)
            except _Died as err:
                self._deaths += 1
                self._lost_seconds += time.monotonic() - begin
                raise CannotRun(str(err)) from None

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            if not sys.executable:
                raise CannotRun("there is no Python to compute it in a process of its own")
            try:
                process = subprocess.Popen(
                    [sys.executable, "-P", str(_CHILD)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                )
            except OSError as err:
                raise CannotRun(f"no process could be started to compute it in: {err}") from err
            weakref.finalize(self, _stop, process)
            self._process = process
            with _deadline(process, _START_SECONDS):
                _send(process, {"path": [entry for entry in sys.path if isinstance(entry, str)]}, [])
                _receive(process)
        return self._process

    def _exchange(self, process: subprocess.Popen[bytes], model: bytes, feed: Mapping[str, Array]) -> list[Array]:
        arrays = [np.ascontiguousarray(array).reshape(array.shape) for array in feed.values()]
        needed = self._memory + 4 * (len(model) + sum(array.nbytes for array in arrays))
        described = [[name, str(a.dtype), list(a.shape)] for name, a in zip(feed, arrays, strict=True)]
        with _deadline(process, self._seconds) as expired:
            try:
                header = {"model": len(model), "memory": needed, "seconds": self._seconds, "arrays": described}
                _send(process, header, [model, *(_bytes_of(array) for array in arrays)])
                reply = _receive(process)
            except _Died:
                if expired.is_set():
                    raise _Died(f"it takes over {self._seconds:g} s") from None
                raise
        if "error" in reply:
            text = str(reply["error"])
            hungry = any(word in text for word in ("out of memory", "bad_alloc", "bad allocation", "allocate memory"))
            raise CannotRun(f"it takes over {self._memory >> 20} MiB of memory" if hungry else text)
        assert process.stdout is not None
        return [_read_array(process.stdout, dtype, shape) for dtype, shape in reply["arrays"]]


class _Died(Exception):
    """Say how the process ended."""


class _deadline:
    """Kill a process that is not done in time; as a context, gives the event that tells so."""

    def __init__(self, process: subprocess.Popen[bytes], seconds: float) -> None:
        self._process, self._expired = process, threading.Event()
        self._timer = threading.Timer(seconds, self._kill)
        self._timer.daemon = True

    def _kill(self) -> None:
        self._expired.set()
        self._process.kill()

    def __enter__(self) -> threading.Event:
        self._timer.start()
        return self._expired

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a process and close its pipes."""
    process.kill()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            try:
                pipe.close()
            except OSError:
                continue  # what was still to be written found nobody
    process.wait()


def _send(process: subprocess.Popen[bytes], header: dict[str, Any], parts: list[Any]) -> None:
    assert process.stdin is not None
    text = json.dumps(header).encode()
    try:
        process.stdin.write(len(text).to_bytes(4, "little") + text)
        for part in parts:
            process.stdin.write(part)
        process.stdin.flush()
    except (OSError, ValueError) as err:
        raise _Died(_end_of(process)) from err


def _receive(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    assert process.stdout is not None
    length = process.stdout.read(4)
    text = process.stdout.read(int.from_bytes(length, "little")) if len(length) == 4 else b""
    if not text:
        raise _Died(_end_of(process))
    header: dict[str, Any] = json.loads(text)
    return header


def _end_of(process: subprocess.Popen[bytes]) -> str:
    try:
        code = process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        code = process.wait()
    names = {-number.value: number.name for number in signal.Signals}
    return f"the runtime crashes on it ({names.get(code, f'exit code {code}')})"


def _bytes_of(array: Array) -> Any:
    return array.reshape(-1).view(np.uint8).data if array.size else b""


def _read_array(stream: IO[bytes], dtype: str, shape: list[int]) -> Array:
    kind = np.dtype(dtype)
    data = stream.read(math.prod(shape) * kind.itemsize)
    if len(data) != math.prod(shape) * kind.itemsize:
        raise _Died("the runtime crashes on it")
    return np.frombuffer(data, kind).reshape(shape)
