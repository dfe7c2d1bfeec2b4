"""The samples of a run: the user's or synthesised ones, and whether the runtime can run the model on them at all."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxedge import runtime
from onnxedge.data import Data, Preprocess, open_data, synthesise
from onnxedge.errors import UserError
from onnxedge.measure import verification_feeds
from onnxedge.model.edit import graphs_of, node_label, static_shape
from onnxedge.operators import operator
from onnxedge.runtime import CannotRun, Feed, InputSpec, Session, flattened, model_inputs
from onnxedge.verify import infer_shapes

HELD_OUT = 0.25  #: share of the calibration samples that measures agreement when there is no evaluation data
SYNTHETIC_SAMPLES = 96  #: samples made from the model's own statistics when the user gives none
MEMORY_BYTES = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4 if hasattr(os, "sysconf") else 8 << 30


@dataclass(frozen=True)
class Samples:
    """Hold the samples of a run: to calibrate on, to compare on, and why there are none."""

    calibration: Data | None
    comparison: Data | None
    feeds: Sequence[Feed]
    unrunnable: str = ""


def open_samples(
    model: ir.Model,
    calib: Any,
    evaluation: Any,
    preprocess: Preprocess | None,
    shapes: Mapping[str, Sequence[int]] | None,
    seed: int,
) -> Samples:
    """Open the user's samples, or synthesise some; find out whether the runtime runs the model at all."""
    specs = fixed_inputs(model_inputs(model), shapes)
    given = open_data(calib, specs, preprocess) if calib is not None else None
    compared = open_data(evaluation, specs, preprocess) if evaluation is not None else None
    feeds: Sequence[Feed] = ()
    try:
        check_memory(model)
        Session(model)
        if not specs:
            feeds = ({},)
            check_runs(model, feeds)
            raise CannotRun("the model has no inputs, so that there are no samples")
        if given is None:
            made = synthesise(model, specs, count=SYNTHETIC_SAMPLES, seed=seed, shapes=shapes)
            calibration, held_out = made.split(HELD_OUT)
            check_runs(model, held_out.feeds(1) if compared is None else ())
        elif compared is None and len(given) > 1:
            calibration, held_out = given.split(HELD_OUT)
        else:
            calibration, held_out = given, given
        feeds = verification_feeds(calibration)
        check_runs(model, feeds)
        check_repeats(model, feeds[0])
    except CannotRun as err:
        return Samples(given, compared, feeds if not specs else (), str(err))
    return Samples(calibration, compared if compared is not None else held_out, feeds)


def check_runs(model: ir.Model, feeds: Iterable[Feed]) -> None:
    """Run a model as it is written.

    Raises:
        CannotRun: it fails, or a run takes longer than anybody would wait for the many that measuring takes.
    """
    session = Session(model, level="disable")
    for feed in feeds:
        check_memory(model, feed)
        session.run(feed, limit_seconds=runtime.RUN_LIMIT_SECONDS)


def check_repeats(model: ir.Model, feed: Feed) -> None:
    """Run a model twice on one feed.

    Raises:
        CannotRun: the outputs differ, so that nothing can be compared; names the first operator that may be why.
    """
    session = Session(model, level="disable")
    first, second = flattened(session.run(feed)), flattened(session.run(feed))
    if all(np.array_equal(a, second[name], equal_nan=a.dtype.kind in "fc") for name, a in first.items()):
        return
    nodes = (node for graph in graphs_of(model) for node in graph)
    source = next((node for node in nodes if operator(node).random or node.op_type == "Dropout"), None)
    because = "" if source is None else f", because of {node_label(source)}"
    raise CannotRun(f"its outputs change from run to run{because}")


def check_memory(model: ir.Model, feed: Feed | None = None) -> None:
    """Refuse to run a model with a value that does not fit into the machine's memory.

    Args:
        model: not changed.
        feed: its inputs; without, each free dimension of an input is taken to be 1, the least that it can be.

    Raises:
        CannotRun: with the value and its size.
    """
    shaped = model.clone()
    for value in shaped.graph.inputs:
        if value.shape is not None and not value.is_initializer():
            fed = (feed or {}).get(value.name or "")
            sizes = (1,) * len(value.shape) if fed is None else fed.shape
            pairs = zip(value.shape, sizes, strict=False)
            value.shape = ir.Shape(dim if isinstance(dim, int) else size for dim, size in pairs)
    infer_shapes(shaped)
    for graph in shaped.graphs():
        for node in graph:
            for value in node.outputs:
                shape = static_shape(value)
                if shape is not None and value.dtype is not None and value.dtype != ir.DataType.STRING:
                    size = math.prod(shape) * value.dtype.bitwidth // 8
                    if size > MEMORY_BYTES:
                        raise CannotRun(f"{node_label(node)} makes a value of {size / 1e9:.1f} GB, {shape}")


def fixed_inputs(specs: tuple[InputSpec, ...], shapes: Mapping[str, Sequence[int]] | None) -> tuple[InputSpec, ...]:
    """Check shapes that a user gave against the model's inputs and return the inputs with those sizes.

    Raises:
        UserError: no such input, another rank, or a size other than a fixed dimension's.
    """
    by_name = {spec.name: spec for spec in specs}
    for name, shape in (shapes or {}).items():
        spec = by_name.get(name)
        if spec is None:
            raise UserError(f"input shape: no input is called {name!r}; the model has {', '.join(by_name)}")
        fits = len(shape) == len(spec.shape) and all(
            not isinstance(d, int) or d == s for d, s in zip(spec.shape, shape, strict=True)
        )
        if not fits or any(s < 1 for s in shape):
            raise UserError(f"input shape: input {name!r} needs {spec}, {list(shape)} came")
        width = np.dtype(spec.dtype).itemsize if spec.dtype in np.sctypeDict else 1
        if math.prod(shape) * width > MEMORY_BYTES:
            raise UserError(f"input shape: input {name!r}: {list(shape)} does not fit into this machine's memory")
        by_name[name] = replace(spec, shape=tuple(shape))
    return tuple(by_name.values())
