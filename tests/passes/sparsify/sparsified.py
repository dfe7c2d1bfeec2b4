"""What the tests of the pass share: small models, the pass with samples, and what its weights look like."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnxedge_passes.sparsify import Sparsify
from onnxedge_passes.sparsify.pattern import Pattern
from prune.topologies import ATTENTION, ATTENTION_WEIGHTS, RESIDUAL, RESIDUAL_WEIGHTS, build

from onnxedge.api import (
    Array,
    Context,
    Result,
    Session,
    constant,
    refresh_scopes,
    synthesise,
    to_proto,
    weight_axes,
)
from onnxedge.data import from_arrays
from onnxedge.target import load_packaged_target

HALF = Pattern(2, 4)
ALL = {"min_elements": 1}
ATTENTION_SHAPES = {"heads": [0, 0, 4, 4], "flat": [0, 0, 16]}


def residual() -> ir.Model:
    return build(RESIDUAL, RESIDUAL_WEIGHTS)


def attention() -> ir.Model:
    return build(ATTENTION, ATTENTION_WEIGHTS, ATTENTION_SHAPES)


def sparsify(
    model: ir.Model, samples: Array | None, /, target: str = "ort-cpu", **options: Any
) -> tuple[Result, list[str]]:
    """Run the pass, with synthesised samples where none are given; return its result and the reasons it gave."""
    inputs = Session(model).inputs
    data = from_arrays(inputs, {inputs[0].name: samples}) if samples is not None else synthesise(model, inputs, 16, 0)
    context = Context(load_packaged_target("onnxedge.targets", target), data, original=model.clone())
    context.begin("sparsify")
    refresh_scopes(model)
    step = Sparsify(**options)
    step.requires(model, context)
    result = step.run(model, context)
    onnx.checker.check_model(to_proto(model))
    return result, [note.reason for note in context.notes]


def weights(model: ir.Model) -> dict[str, Array]:
    """Return the constant weights of the contractions by the node's output, turned to [Ci, *K, Co]."""
    found = {}
    for node in model.graph:
        axes = weight_axes(node)
        weight = constant(node.inputs[axes.index]) if axes is not None else None
        if axes is not None and weight is not None:
            found[node.outputs[0].name or ""] = np.moveaxis(weight, (axes.input, axes.output), (0, -1))
    return found


def zeros(array: Array) -> float:
    return float(np.mean(array == 0))


def has_pattern(array: Array) -> bool:
    """Tell whether at most two of every four neighbours along the first axis are not zero."""
    return bool((np.count_nonzero(array.reshape(-1, 4, array[0].size), axis=1) <= 2).all())


def outputs(model: ir.Model, samples: Array) -> Array:
    return next(iter(Session(model).run({"x": samples}).values()))
