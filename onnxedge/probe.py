"""Whether ONNX Runtime survives a model: what may crash, run for ever or eat all memory first runs elsewhere."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxedge.errors import shortened
from onnxedge.model.graph import constant, graphs_of, is_standard, node_label, static_shape
from onnxedge.model.io import runnable
from onnxedge.model.serialize import weight_bytes
from onnxedge.operators import macs, operator
from onnxedge.probe_child import OUT_OF_MEMORY, REFUSED
from onnxedge.runtime import RUN_LIMIT_SECONDS, CannotRun, TooLong

MEMORY_BYTES = 512 << 20  #: that a model may take beyond four times its weights, where the caller sets no limit
LARGE_BYTES = 128 << 20  #: a value of more may not be the only one
SECONDS = 2.0  #: of processor time beyond that for multiply-accumulates, at a billion of them in 0.1 s
_MACS_A_SECOND = 1e10
_TAME = frozenset(
    {"elementwise", "movement", "contraction", "spatial", "normalization", "reduction", "softmax", "recurrent",
     "quantization", "shape"}
)  # fmt: skip
_TAME_OPERATORS = frozenset({"Constant", "ConstantOfShape", "If"})  #: of other kinds
_START_SECONDS = 60.0

_CHILD = Path(__file__).with_name("probe_child.py")


def check_survives(model: ir.Model, shaped: ir.Model, memory: int | None = None) -> None:
    """Run a model once in a process of its own if it holds anything that is not known to do no harm.

    Args:
        model: not changed.
        shaped: the same with sizes for its inputs, and with shapes inferred.
        memory: bytes that it may take; None for a limit by the bytes of its weights.

    Raises:
        CannotRun: the runtime crashes on it, or it takes too much memory.
        TooLong: it takes too much time.
    """
    hazard = next(_hazards(shaped), None)
    work = sum(macs(node) or 0 for graph in graphs_of(shaped) for node in graph)
    seconds = SECONDS + work / _MACS_A_SECOND
    if seconds > RUN_LIMIT_SECONDS:
        raise TooLong(f"one run of the model takes {work / 1e9:.0f} billion multiply-accumulates")
    if hazard is None:
        return
    limit = 4 * weight_bytes(model) + MEMORY_BYTES if memory is None else memory
    code, said = _run(model, limit, seconds)
    if code == REFUSED:
        raise CannotRun(f"ONNX Runtime does not load the model: {shortened(said, 300)}")
    if code == OUT_OF_MEMORY:
        raise CannotRun(f"it takes over {limit >> 20} MiB of memory, perhaps because of {hazard}")
    if code == -getattr(signal, "SIGPROF", 0):
        raise TooLong(f"one run of the model takes over {seconds:.0f} s, perhaps because of {hazard}")
    if code:
        raise CannotRun(f"ONNX Runtime crashes on it ({_signal(code)}), perhaps because of {hazard}")


def _run(model: ir.Model, memory: int, seconds: float) -> tuple[int, str]:
    with runnable(model) as source:
        try:
            done = subprocess.run(
                [sys.executable, "-P", str(_CHILD), str(memory), str(seconds)],
                input=source if isinstance(source, bytes) else str(source).encode(),
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                timeout=_START_SECONDS + 10 * seconds,
                check=False,
            )
        except subprocess.TimeoutExpired as err:
            raise TooLong(f"one run of the model takes over {seconds:.0f} s") from err
        except OSError as err:
            raise CannotRun(f"no process could be started to try it in: {err}") from err
    return done.returncode, " ".join(done.stdout.decode("utf-8", "replace").split())


def _signal(code: int) -> str:
    names = {-number.value: number.name for number in signal.Signals}
    return names.get(code, f"exit code {code}")


def _hazards(shaped: ir.Model) -> Iterator[str]:
    """Yield the nodes that may crash the runtime, run for ever, or make values of any size."""
    for graph in shaped.graphs():
        for node in graph:
            if not is_tame(node) or any(not _is_bounded(value) for value in node.outputs):
                yield node_label(node)


def is_tame(node: ir.Node) -> bool:
    """Tell whether a node is known neither to crash the runtime nor to run for ever, whatever it is given."""
    if node.op_type in ("Div", "Mod") and is_standard(node):
        return _divides_safely(node)
    if node.op_type == "Einsum" and len(node.inputs) > 2:
        return False
    return operator(node).kind in _TAME or (is_standard(node) and node.op_type in _TAME_OPERATORS)


def _divides_safely(node: ir.Node) -> bool:
    """Tell whether no integer is divided by 0 or -1: the smallest one by -1 ends the process."""
    value = node.inputs[1] if len(node.inputs) > 1 else None
    if value is None or (value.dtype is not None and value.dtype.is_floating_point()):
        return True
    divisor = constant(value)
    return divisor is not None and not bool(np.isin(divisor, (0, -1)).any())


def _is_bounded(value: ir.Value) -> bool:
    """Tell whether a value has a known size that is not large; strings have none."""
    if not value.name:
        return True
    shape = static_shape(value)
    if shape is None or value.dtype is None or value.dtype == ir.DataType.STRING:
        return False
    return math.prod(shape) * value.dtype.bitwidth // 8 <= LARGE_BYTES
