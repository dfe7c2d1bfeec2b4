"""Run models in ONNX Runtime on made-up inputs, and tell outputs apart."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np

ROUNDING = {"float16": 1e-2, "float32": 1e-5, "float64": 1e-12}  #: of the largest element of an output
_TYPES = {
    "float": np.float32, "double": np.float64, "float16": np.float16, "int64": np.int64, "int32": np.int32,
    "int16": np.int16, "int8": np.int8, "uint8": np.uint8, "uint16": np.uint16, "uint32": np.uint32,
    "uint64": np.uint64, "bool": np.bool_, "string": np.object_,
}  # fmt: skip
Feed = dict[str, Any]


def session(model: Path | bytes) -> Any:
    """Return a session that runs the graph as it is written."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.disable_prepacking", "1")  # or constants would take other kernels
    source = str(model) if isinstance(model, Path) else model
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def feeds(runner: Any, sizes: tuple[int, ...] = (1, 2, 3)) -> list[Feed]:
    """Return one feed for each size that the free dimensions may have."""
    return [_feed(runner, size, np.random.default_rng(size)) for size in sizes]


def _feed(runner: Any, size: int, rng: np.random.Generator) -> Feed:
    feed: Feed = {}
    for spec in runner.get_inputs():
        dtype = np.dtype(_TYPES[spec.type.removeprefix("tensor(").rstrip(")")])
        shape = [d if isinstance(d, int) else size for d in spec.shape]
        if dtype == np.object_:
            feed[spec.name] = np.full(shape, "text", object)
        elif dtype.kind == "f":
            feed[spec.name] = np.asarray(rng.standard_normal(shape) * 2).astype(dtype)
        elif dtype.kind == "b":
            feed[spec.name] = np.asarray(rng.random(shape) > 0.5)
        else:
            feed[spec.name] = np.asarray(rng.integers(0, 4, shape)).astype(dtype)
    return feed


def within(runner: Any, feed: Feed, seconds: float) -> list[Any] | None:
    """Run a model, for some seconds at most; None where it fails or takes longer."""
    import onnxruntime as ort

    options = ort.RunOptions()
    timer = threading.Timer(seconds, lambda: setattr(options, "terminate", True))
    timer.daemon = True
    timer.start()
    try:
        outputs: list[Any] = runner.run(None, feed, options)
    except Exception:  # the runtime's exceptions share no base of their own
        return None
    finally:
        timer.cancel()
    return outputs


def difference(before: list[Any], after: list[Any] | None, *, exact: bool = False) -> str:
    """Return how outputs differ, beyond rounding unless ``exact``; an empty string where they are equal."""
    if after is None:
        return "the optimized model does not run"
    for index, (old, new) in enumerate(zip(before, after, strict=True)):
        told = _apart(old, new, exact)
        if told:
            return f"output {index}: {told}"
    return ""


def _apart(old: Any, new: Any, exact: bool) -> str:
    if isinstance(old, list):
        if not isinstance(new, list) or len(old) != len(new):
            return "another sequence"
        return next((told for a, b in zip(old, new, strict=True) if (told := _apart(a, b, exact))), "")
    if not isinstance(old, np.ndarray) or not isinstance(new, np.ndarray):
        return "" if type(old) is type(new) else "another type"
    if old.dtype != new.dtype or old.shape != new.shape:
        return f"{old.dtype}{list(old.shape)} became {new.dtype}{list(new.shape)}"
    if old.dtype.kind != "f" or exact:
        same = np.array_equal(old, new, equal_nan=old.dtype.kind == "f")
        signs = old.dtype.kind != "f" or np.array_equal(np.signbit(old[old == 0]), np.signbit(new[old == 0]))
        return "" if same and signs else "not bit-equal" if same else f"not equal{_by(old, new)}"
    finite = np.isfinite(old)
    if not np.array_equal(old[~finite], new[~finite], equal_nan=True) or not np.isfinite(new[finite]).all():
        return "other values are not finite"
    scale = float(np.abs(old[finite].astype(np.float64)).max(initial=1e-30))
    error = float(np.abs(old[finite].astype(np.float64) - new[finite]).max(initial=0.0))
    return f"differs by {error:.3g} at {scale:.3g}" if error > ROUNDING[str(old.dtype)] * scale else ""


def _by(old: np.ndarray, new: np.ndarray) -> str:
    if old.dtype.kind not in "fiu":
        return ""
    with np.errstate(all="ignore"):
        return f" by {np.nanmax(np.abs(old.astype(np.float64) - new), initial=0.0):.3g}"
