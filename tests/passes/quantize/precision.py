"""What the tests of the passes on precision share: a pass with samples, and how far outputs are apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxedge.api import Array, Context, Pass, Result, Session, refresh_scopes, synthesise, to_proto
from onnxedge.data import from_arrays
from onnxedge.target import load_packaged_target
from onnxedge.verify import infer_shapes


def apply(
    step: Pass, model: ir.Model, samples: dict[str, Array] | None = None, target: str = "ort-cpu"
) -> tuple[Result, str]:
    """Run a pass in place, as the manager does; return its result and the notes, a line each."""
    inputs = Session(model).inputs
    data = from_arrays(inputs, samples) if samples is not None else synthesise(model, inputs, 16, 0)
    context = Context(load_packaged_target("onnxedge.targets", target), data, original=model.clone())
    infer_shapes(model)
    refresh_scopes(model)
    context.begin(step.name)
    step.requires(model, context)
    result = step.run(model, context)
    onnx.checker.check_model(to_proto(model))
    return result, "\n".join(f"{note.where}: {note.reason}" for note in context.notes)


def outputs(model: Any, feed: dict[str, Array]) -> list[Array]:
    """Return what a model gives as it is written."""
    return list(Session(model, level="disable").run(feed).values())


def sqnr(first: Array, other: Array) -> float:
    """Return dB."""
    noise = float(np.square(first.astype(np.float64) - other).mean())
    return float(10 * np.log10(max(float(first.astype(np.float64).var()), 1e-30) / max(noise, 1e-30)))


def kinds(model: ir.Model) -> list[str]:
    """Return the operators of the main graph but for Constant."""
    return [node.op_type for node in model.graph if node.op_type != "Constant"]


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)
