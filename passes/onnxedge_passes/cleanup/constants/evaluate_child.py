"""Run small models on arrays in a process of its own, under a memory limit. Started by ``isolated.py``, never imported.

Frames on standard input and output: four bytes of length, a JSON header, then the raw bytes that the header counts.
Nothing of onnxedge is imported here, so that the process is there at once and nothing else can break in it.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from typing import Any, BinaryIO


def main() -> None:
    """Answer requests until the other side closes."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)  # what native code prints must not get into the frames
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    first = _header(requests)
    assert first is not None
    sys.path[:] = first["path"]
    import onnxruntime as ort

    ort.set_default_logger_severity(4)
    _write(replies, {"ready": True}, [])
    while (header := _header(requests)) is not None:
        model = requests.read(header["model"])
        feed = {name: _array(requests, dtype, shape) for name, dtype, shape in header["arrays"]}
        _limit(header["memory"], header["seconds"])
        try:
            arrays = _run(model, feed)
        except MemoryError:
            _write(replies, {"error": "out of memory"}, [])
        except Exception as err:  # the runtime's exceptions share no base of their own
            _write(replies, {"error": " ".join(str(err).split())[:500]}, [])
        else:
            made = [[str(array.dtype), list(array.shape)] for array in arrays]
            _write(replies, {"arrays": made}, [array.tobytes() for array in arrays])
            del arrays


def _run(model: bytes, feed: dict[str, Any]) -> list[Any]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.disable_prepacking", "1")  # as ``Session`` at level ``disable``
    options.enable_cpu_mem_arena = False  # what one request took is given back before the next
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    arrays: list[Any] = session.run(None, feed)
    return arrays


def _limit(memory: int, seconds: float) -> None:
    """Allow so many bytes and seconds more than the process took so far, where the system can; never a core file.

    The other side watches the clock; the limit of CPU time is for when it was killed.
    """
    with contextlib.suppress(ImportError, OSError, ValueError):  # no such limits on Windows, a mere wish on macOS
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        spent = int(sum(os.times()[:2]) + 2 * seconds) + 2
        resource.setrlimit(resource.RLIMIT_CPU, (spent if hard < 0 else min(spent, hard), hard))
        with open("/proc/self/statm", "rb") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (used + memory if hard < 0 else min(used + memory, hard), hard))


def _header(stream: BinaryIO) -> Any:
    length = stream.read(4)
    return json.loads(stream.read(int.from_bytes(length, "little"))) if len(length) == 4 else None


def _array(stream: BinaryIO, dtype: str, shape: list[int]) -> Any:
    import numpy as np

    kind = np.dtype(dtype)
    return np.frombuffer(stream.read(math.prod(shape) * kind.itemsize), kind).reshape(shape)


def _write(stream: BinaryIO, header: dict[str, Any], parts: list[Any]) -> None:
    text = json.dumps(header).encode()
    stream.write(len(text).to_bytes(4, "little") + text)
    for part in parts:
        stream.write(part)
    stream.flush()


if __name__ == "__main__":
    main()
