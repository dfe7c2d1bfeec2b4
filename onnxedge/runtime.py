"""ONNX Runtime: sessions on models in memory, streamed capture of inner values, interleaved timing."""

from __future__ import annotations

import contextlib
import json
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as ir

from onnxedge.errors import UserError, first_line
from onnxedge.model.edit import forked
from onnxedge.model.files import scratch_directory
from onnxedge.model.io import runnable

Array = np.ndarray[Any, Any]
Feed = Mapping[str, Array]
RUN_LIMIT_SECONDS = 30.0  #: a model that takes longer for a sample or three is neither run nor measured
LOAD_LIMIT_SECONDS = 60.0  #: for ONNX Runtime to make a session; its optimizer may need the square of the nodes
Level = Literal["disable", "basic", "extended", "all"]

_NUMPY_TYPES = {
    "tensor(float)": "float32", "tensor(double)": "float64", "tensor(float16)": "float16",
    "tensor(int8)": "int8", "tensor(int16)": "int16", "tensor(int32)": "int32", "tensor(int64)": "int64",
    "tensor(uint8)": "uint8", "tensor(uint16)": "uint16", "tensor(uint32)": "uint32", "tensor(uint64)": "uint64",
    "tensor(bool)": "bool", "tensor(string)": "object",
}  # fmt: skip


class CannotRun(UserError):
    """Say that ONNX Runtime does not run a model here: a missing kernel, a broken graph, or no memory."""


class TooLong(CannotRun):
    """Say that a model runs, or is made ready to run, for longer than anybody would wait."""


@dataclass(frozen=True)
class InputSpec:
    """Describe a model input: name, numpy dtype name, dimensions (int, symbol, or None where unknown)."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...]

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join('?' if d is None else str(d) for d in self.shape)}]"


class Session:
    """Run a model in ONNX Runtime on the CPU.

    Args:
        model: a graph, a protobuf, or the path or the bytes of a file.
        threads: intra-operator threads; threads never spin, so that two sessions can be timed in turns.
        level: graph optimization of the runtime; ``disable`` runs the graph as it is written.
        dump: file for the graph as the runtime optimized it.
        profile: folder for a profile, see :func:`kernel_times`.

    Raises:
        CannotRun: the runtime refuses the model; the message has its reason on one line.
    """

    def __init__(
        self,
        model: ir.Model | onnx.ModelProto | Path | bytes,
        *,
        threads: int = 1,
        level: Level = "all",
        dump: Path | None = None,
        profile: Path | None = None,
    ) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        levels = ort.GraphOptimizationLevel
        options.graph_optimization_level = {
            "disable": levels.ORT_DISABLE_ALL,
            "basic": levels.ORT_ENABLE_BASIC,
            "extended": levels.ORT_ENABLE_EXTENDED,
            "all": levels.ORT_ENABLE_ALL,
        }[level]
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if level == "disable":  # else a weight that becomes constant is multiplied by another kernel, with other bits
            options.add_session_config_entry("session.disable_prepacking", "1")
        if dump is not None:
            options.optimized_model_filepath = str(dump)
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile / "profile")
        late = threading.Event()
        try:
            with runnable(model) as source, _alarm(LOAD_LIMIT_SECONDS, options.set_load_cancellation_flag, late):
                self._session = ort.InferenceSession(
                    source if isinstance(source, bytes) else str(source), options, providers=["CPUExecutionProvider"]
                )
        except Exception as err:  # the runtime's exceptions share no base of their own
            if late.is_set():
                raise TooLong(f"ONNX Runtime takes over {LOAD_LIMIT_SECONDS:g} s to load the model") from err
            raise CannotRun(f"ONNX Runtime does not load the model: {first_line(err)}") from err
        self.inputs = tuple(
            InputSpec(i.name, _NUMPY_TYPES.get(i.type, i.type), tuple(d if d != "" else None for d in i.shape))
            for i in self._session.get_inputs()
        )
        self.output_names = tuple(o.name for o in self._session.get_outputs())

    def run(
        self, feed: Feed, outputs: Sequence[str] | None = None, *, limit_seconds: float | None = None
    ) -> dict[str, Array]:
        """Return the outputs by name, in the model's order; all of them, or those asked for.

        Args:
            feed: arrays by input name.
            outputs: names of the outputs that are wanted, None for all.
            limit_seconds: when to give up; the runtime looks between two nodes, in the bodies of loops too.

        Raises:
            CannotRun: the runtime fails on this feed, or takes longer than the limit.
        """
        names = list(outputs if outputs is not None else self.output_names)
        fed = {spec.name: feed[spec.name] for spec in self.inputs if spec.name in feed}
        try:
            if limit_seconds is None:
                arrays = self._session.run(names, fed)
            else:
                arrays = self._run_within(limit_seconds, names, fed)
        except CannotRun:
            raise
        except Exception as err:  # as above
            raise CannotRun(f"ONNX Runtime does not run the model: {first_line(err)}") from err
        return dict(zip(names, arrays, strict=True))

    def _run_within(self, seconds: float, names: Sequence[str], feed: Feed) -> list[Array]:
        import onnxruntime as ort

        options = ort.RunOptions()
        late = threading.Event()
        try:
            with _alarm(seconds, lambda _: setattr(options, "terminate", True), late):
                arrays: list[Array] = self._session.run(names, feed, options)
        except Exception as err:  # as above
            if late.is_set():
                raise TooLong(f"one run of the model takes over {seconds:g} s") from err
            raise
        return arrays

    def end_profile(self) -> Path:
        """Close the profile that was asked for and return its file."""
        return Path(self._session.end_profiling())


@contextlib.contextmanager
def _alarm(seconds: float, stop: Callable[[bool], object], late: threading.Event) -> Iterator[None]:
    """Set an event and call ``stop`` from another thread when the context lasts for longer."""

    def ring() -> None:
        late.set()
        stop(True)

    timer = threading.Timer(seconds, ring)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def flattened(outputs: Mapping[str, Any]) -> dict[str, Array]:
    """Return outputs as arrays alone: the items of sequences and maps stand under names as ``y[0]`` or ``y[cat]``."""
    flat: dict[str, Array] = {}
    for name, value in outputs.items():
        if isinstance(value, list):
            flat |= flattened({f"{name}[{index}]": item for index, item in enumerate(value)})
        elif isinstance(value, dict):
            flat |= flattened({f"{name}[{key}]": item for key, item in value.items()})
        elif value is not None:
            flat[name] = np.asarray(value)
    return flat


def capture(
    model: ir.Model, values: Sequence[ir.Value], feeds: Iterable[Feed], *, threads: int = 1
) -> Iterator[list[Array]]:
    """Yield the arrays of inner values of the main graph for each feed, in the order of ``values``.

    Nothing is kept between feeds: memory holds one feed's arrays. The model is not changed. The graph runs as it is
    written (no fusions), so that every value exists.
    """
    probe, probed = forked(model, values)
    wanted = {value.name for value in probed}
    existing = {output.name for output in probe.graph.outputs}
    for value in probed:
        if value.name not in existing:
            existing.add(value.name)
            probe.graph.outputs.append(value)
    session = Session(probe, threads=threads, level="disable")
    names = [value.name or "" for value in probed]
    for feed in feeds:
        arrays = session.run(feed, sorted(n for n in wanted if n))
        captured = [arrays[name] for name in names]
        del arrays
        yield captured
        del captured  # or it would lie in memory beside the next feed's


def optimized_graph(model: ir.Model | onnx.ModelProto | Path, *, threads: int = 1) -> onnx.ModelProto:
    """Return the graph that ONNX Runtime really runs, after its own optimizations at level ``all``."""
    with scratch_directory() as folder:
        dump = folder / "optimized.onnx"
        Session(model, threads=threads, dump=dump)
        return onnx.load(dump)


@dataclass(frozen=True)
class Latency:
    """Hold an interleaved comparison of two models.

    Attributes:
        ratio: median over rounds of (second / first); below 1 the second is faster.
        low, high: quartiles of the ratio.
        cpu_ratio: the same ratio in CPU time of this process, which other processes on the machine disturb less.
        first_ms, second_ms: median milliseconds of one run.
        rounds: number of rounds.
    """

    ratio: float
    low: float
    high: float
    cpu_ratio: float
    first_ms: float
    second_ms: float
    rounds: int


def latency_ratio(
    first: Session, second: Session, feed: Feed, *, rounds: int = 60, seconds: float = 6.0, warmup: int = 3
) -> Latency:
    """Time two sessions in turns on one feed; the order alternates so that neither keeps the warmer cache.

    A short model is run several times a round, so that a round lasts at least about a millisecond.
    """
    sessions = (first, second)
    for _ in range(warmup):
        for session in sessions:
            session.run(feed)
    repeat = max(1, min(50, int(2e-3 / max(_seconds(first, feed, 1)[0], 1e-6))))
    times: tuple[list[float], list[float]] = ([], [])
    cpu: tuple[list[float], list[float]] = ([], [])
    start = time.perf_counter()
    for index in range(rounds):
        for side in (0, 1) if index % 2 == 0 else (1, 0):
            wall, busy = _seconds(sessions[side], feed, repeat)
            times[side].append(wall / repeat)
            cpu[side].append(busy / repeat)
        if index >= 4 and time.perf_counter() - start > seconds:
            break
    ratios = sorted(b / a for a, b in zip(*times, strict=True))
    count = len(ratios)
    return Latency(
        ratio=statistics.median(ratios),
        low=ratios[count // 4],
        high=ratios[(3 * count) // 4],
        cpu_ratio=statistics.median(b / max(a, 1e-9) for a, b in zip(*cpu, strict=True)),
        first_ms=statistics.median(times[0]) * 1e3,
        second_ms=statistics.median(times[1]) * 1e3,
        rounds=count,
    )


def _seconds(session: Session, feed: Feed, repeat: int) -> tuple[float, float]:
    """Return wall and CPU seconds of some runs."""
    start, busy = time.perf_counter(), time.process_time()
    for _ in range(repeat):
        session.run(feed)
    return time.perf_counter() - start, time.process_time() - busy


@dataclass(frozen=True)
class KernelTime:
    """Say how long a node of the graph takes as the runtime optimized it.

    Attributes:
        name: of the node; the runtime calls a fused one after a node or a value that it stands for.
        op_type: its operator.
        us: microseconds a run, mean of the faster quarter of the runs.
    """

    name: str
    op_type: str
    us: float


def kernel_times(
    model: ir.Model | onnx.ModelProto | Path, feed: Feed, *, threads: int = 1, rounds: int = 40, seconds: float = 1.0
) -> list[KernelTime]:
    """Return what each node takes in the graph that ONNX Runtime really runs, in its order.

    The nodes are timed in turns, one run after the other, until the rounds or the seconds are over.

    Raises:
        CannotRun: the runtime refuses the model or the feed.
    """
    with scratch_directory() as folder:
        session = Session(model, threads=threads, profile=folder)
        start = time.perf_counter()
        for index in range(rounds + 2):
            session.run(feed, limit_seconds=RUN_LIMIT_SECONDS)
            if index >= 4 and time.perf_counter() - start > seconds:
                break
        events = json.loads(session.end_profile().read_text("utf-8"))
    times: dict[tuple[str, str], list[float]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            key = (event["name"].removesuffix("_kernel_time"), event["args"].get("op_name", ""))
            times.setdefault(key, []).append(float(event["dur"]))
    fast = {key: sorted(found[1:])[: max(1, len(found) // 4)] for key, found in times.items()}
    return [KernelTime(*key, statistics.fmean(best)) for key, best in fast.items() if best]


def model_inputs(model: ir.Model) -> tuple[InputSpec, ...]:
    """Return the inputs that a caller must feed: graph inputs without an initializer of their own.

    As :attr:`Session.inputs`, from the graph alone, for models too that ONNX Runtime does not load.
    """
    specs = []
    for value in model.graph.inputs:
        if value.is_initializer():
            continue
        dims = () if value.shape is None else tuple(d if isinstance(d, int) else d.value for d in value.shape)
        dtype = value.dtype
        if dtype is None or not isinstance(value.type, ir.TensorType):
            name = str(value.type)
        else:
            name = "object" if dtype == ir.DataType.STRING else dtype.numpy().name
        specs.append(InputSpec(value.name or "", name, dims))
    return tuple(specs)
