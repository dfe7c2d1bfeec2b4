"""Run the model on standard input once, under limits. Started by ``probe.py`` in a process of its own.

Ends with 0 where the runtime survived, whatever it said of the inputs, with 3 where memory ran out, and with 4 where it
does not load the model; why is on standard output. A crash, and more processor time than was allowed, end the process
by a signal. Arguments: bytes of memory, seconds of processor time.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import Any

OUT_OF_MEMORY, REFUSED = 3, 4
_HUNGRY = ("bad_alloc", "bad allocation", "failed to allocate memory")
_TYPES = {"float": "float32", "double": "float64"}


def main(memory: int, seconds: float) -> int:
    """Run and return the exit code."""
    import numpy as np
    import onnxruntime as ort

    model = sys.stdin.buffer.read()
    _limit(memory, seconds)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    source = model if len(model) > 4096 or not os.path.isfile(model) else model.decode()
    session = None
    try:
        session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        session.run(None, {spec.name: _input(np, spec) for spec in session.get_inputs()})
    except Exception as err:  # the runtime's exceptions share no base of their own
        text = str(err)
        if isinstance(err, MemoryError) or any(words in text.lower() for words in _HUNGRY):
            return OUT_OF_MEMORY
        if session is None:
            sys.stdout.write(text)
            return REFUSED
    return 0


def _limit(memory: int, seconds: float) -> None:
    """Allow so many bytes more than are taken now, and so much processor time; never a core file."""
    with contextlib.suppress(ImportError, AttributeError, OSError, ValueError):  # not every system has these limits
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.setitimer(signal.ITIMER_PROF, seconds)
        with open("/proc/self/statm", "rb") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        if memory:
            resource.setrlimit(resource.RLIMIT_AS, (used + memory, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _input(np: Any, spec: Any) -> Any:
    """Return small numbers, none of them 0; a free dimension is 1."""
    kind = spec.type.removeprefix("tensor(").removesuffix(")")
    shape = [d if isinstance(d, int) else 1 for d in spec.shape]
    return np.full(shape, "1", object) if kind == "string" else np.ones(shape, _TYPES.get(kind, kind))


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), float(sys.argv[2])))
