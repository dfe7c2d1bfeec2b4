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
from onnxedge.data import Data, Preprocess, open_data, size_trouble, synthesise
from onnxedge.errors import UserError
from onnxedge.measure import verification_feeds
from onnxedge.model.check import MAX_RANK
from onnxedge.model.copy import copied
from onnxedge.model.graph import graphs_of, node_label, static_shape
from onnxedge.model.io import runnable
from onnxedge.model.serialize import weight_bytes
from onnxedge.model.skeleton import Skeleton
from onnxedge.operators import operator
from onnxedge.probe import check_survives
from onnxedge.runtime import CannotRun, Feed, InputSpec, Session, flattened, model_inputs
from onnxedge.verify import Array, Outputs, infer_shapes

HELD_OUT = 0.25  #: share of the calibration samples that measures agreement when there is no evaluation data
CHOICE = 0.5  #: share of the evaluation samples that is still compared on where a pass chooses by the others
TRAIN_HELD_OUT = 0.1  #: share of the training samples that passes may hold out by default, which calibrate nothing
TRAIN_CALIBRATION = 512  #: training samples that calibrate where the user gives no others
SYNTHETIC_SAMPLES = 96  #: samples made from the model's own statistics when the user gives none
MEMORY_BYTES = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4 if hasattr(os, "sysconf") else 8 << 30


#: What running a model may take where no pass needs it to run, bytes: a clean-up of a large model stays small.
RUN_MEMORY_BYTES = min(8 << 30, 2 * MEMORY_BYTES)
#: How often a model's weights are in memory while two models are compared, each as it is written and optimized.
COPIES = 4
#: A graph of more nodes is not run: ONNX Runtime's optimizer takes time that grows with their square on some.
RUN_NODES = 25_000
#: Nor one of more inputs or outputs: each run takes a fraction of a second then, and loading one minutes.
RUN_ENDS = 2_000
#: Nor one of more initializers: to load it takes time that grows with their square, seconds at this many.
RUN_WEIGHTS = 8_000


@dataclass(frozen=True)
class Samples:
    """Hold the samples of a run.

    Attributes:
        calibration: to fit on.
        comparison: to compare on.
        feeds: some to verify with.
        unrunnable: why there are none, or why the model is not run on them.
        reference: what the model gives for ``feeds`` as it is written.
        session: a session on the model, with the runtime's own optimizations.
        choice: evaluation samples that passes choose by, which are not among those to compare on.
    """

    calibration: Data | None = None
    comparison: Data | None = None
    feeds: Sequence[Feed] = ()
    unrunnable: str = ""
    reference: Outputs | None = None
    session: Session | None = None
    choice: Data | None = None

    def parted(self) -> Samples:
        """Take every second sample that was to compare on for passes to choose by."""
        if self.comparison is None or len(self.comparison) < 2:
            return self
        choice, comparison = self.comparison.split(CHOICE)
        return replace(self, choice=choice, comparison=comparison)


def open_samples(
    skeleton: Skeleton,
    shaped: ir.Model,
    calib: Any,
    evaluation: Any,
    preprocess: Preprocess | None,
    shapes: Mapping[str, Sequence[int]] | None,
    seed: int,
    *,
    threads: int = 1,
    memory: int | None = None,
    compares: bool = True,
) -> Samples:
    """Open the user's samples, or synthesise some; find out whether the runtime runs the model at all.

    Args:
        skeleton: of the model as it is written.
        shaped: the model with shapes inferred; not changed.
        calib, evaluation, preprocess, shapes, seed: as the user gave them.
        threads: of the session.
        memory: bytes that running the model and those made from it may take; None to run any.
        compares: whether other models will be run on the samples to compare on; else the model is not tried on them.
    """
    specs = fixed_inputs(model_inputs(shaped), shapes)
    given = open_data(calib, specs, preprocess) if calib is not None else None
    compared = open_data(evaluation, specs, preprocess) if evaluation is not None else None
    try:
        check_size(shaped, memory)
        model = skeleton.revive()
        fitted = check_memory(model, shaped=shaped)
        check_survives(model, fitted, memory if memory != RUN_MEMORY_BYTES else None)
        with runnable(model) as source:
            session = Session(source, threads=threads)
            trial = _Trial(model, shaped, Session(source, level="disable"))
        if not specs:
            reference = trial.outputs([{}])
            trial.check_repeats({}, reference[0])
            reason = "the model has no inputs, so that there are no samples"
            return Samples(given, compared, ({},), reason, reference)
        if given is None:
            made = synthesise(model, specs, SYNTHETIC_SAMPLES, seed, shapes=shapes, session=trial.session)
            calibration, held_out = made.split(HELD_OUT)
            if compares and compared is None:
                trial.outputs(held_out.feeds(1))
        elif compared is None and len(given) > 1:
            calibration, held_out = given.split(HELD_OUT)
        else:
            calibration, held_out = given, given
        feeds = verification_feeds(calibration)
        reference = trial.outputs(feeds)
        trial.check_repeats(feeds[0], reference[0])
        for feed in feeds:  # as users run it: the runtime's optimizations believe declared inner shapes that are wrong
            session.run(feed)
    except CannotRun as err:
        for data in (given, compared):
            trouble = size_trouble(shaped, data) if data is not None else None
            if trouble is not None:
                raise UserError(trouble) from err
        return Samples(given, compared, unrunnable=str(err))
    return Samples(calibration, compared if compared is not None else held_out, feeds, "", reference, session)


def open_training(
    train: Any, calib: Any, model: ir.Model, preprocess: Preprocess | None, shapes: Mapping[str, Sequence[int]] | None
) -> tuple[Data | None, Any]:
    """Open the user's training samples; some of them calibrate where the user gives no others.

    Args:
        train, calib, preprocess, shapes: as the user gave them.
        model: the model with shapes inferred.

    Returns:
        What to train on, None where nothing is given, and what to calibrate on.
    """
    if train is None:
        return None, calib
    data = open_data(train, fixed_inputs(model_inputs(model), shapes), preprocess)
    return data, data.split(TRAIN_HELD_OUT)[0].slice(0, TRAIN_CALIBRATION) if calib is None else calib


class _Trial:
    """Run a model as it is written."""

    def __init__(self, model: ir.Model, shaped: ir.Model | None, session: Session) -> None:
        self.model, self.shaped, self.session = model, shaped, session
        self.fitting: set[tuple[tuple[str, tuple[int, ...]], ...]] = set()

    def outputs(self, feeds: Iterable[Feed]) -> list[dict[str, Array]]:
        """Return the outputs for each feed.

        Raises:
            CannotRun: it fails, or a run takes longer than anybody would wait for the many that measuring takes.
        """
        made = []
        for feed in feeds:
            shapes = tuple(sorted((name, array.shape) for name, array in feed.items()))
            if shapes not in self.fitting:
                check_memory(self.model, feed, self.shaped)
                self.fitting.add(shapes)
            made.append(flattened(self.session.run(feed, limit_seconds=runtime.RUN_LIMIT_SECONDS)))
        return made

    def check_repeats(self, feed: Feed, first: Mapping[str, Array]) -> None:
        """Run once more.

        Raises:
            CannotRun: the outputs differ, so that nothing can be compared; names the first operator that may be why.
        """
        second = flattened(self.session.run(feed))
        if all(np.array_equal(a, second[name], equal_nan=a.dtype.kind in "fc") for name, a in first.items()):
            return
        nodes = (node for graph in graphs_of(self.model) for node in graph)
        source = next((node for node in nodes if operator(node).random or node.op_type == "Dropout"), None)
        because = "" if source is None else f", because of {node_label(source)}"
        raise CannotRun(f"its outputs change from run to run{because}")


def check_size(model: ir.Model, memory: int | None) -> None:
    """Refuse to run a model that takes too much memory, or on which the runtime takes too long.

    Raises:
        CannotRun: with the sizes, and what to do.
    """
    need = COPIES * weight_bytes(model)
    if memory is not None and need > memory:
        raise CannotRun(
            f"running and comparing it takes about {need / 2**30:.0f} GiB, {memory / 2**30:.1f} GiB are allowed; "
            f"--memory {math.ceil(need / 2**30)}GiB has it run"
        )
    inputs = [value for value in model.graph.inputs if not value.is_initializer()]
    for kind, values in (("inputs", inputs), ("outputs", list(model.graph.outputs))):
        if len(values) > RUN_ENDS:
            raise CannotRun(f"it has {len(values)} {kind}; ONNX Runtime takes minutes where there are over {RUN_ENDS}")
    rank = max((len(value.shape) for value in inputs if value.shape is not None), default=0)
    if rank > MAX_RANK:
        raise CannotRun(f"an input has {rank} dimensions; samples have up to {MAX_RANK}")
    graphs = list(graphs_of(model))
    weights = sum(len(graph.initializers) for graph in graphs)
    if weights > RUN_WEIGHTS:
        raise CannotRun(f"it has {weights} initializers; ONNX Runtime takes long to load over {RUN_WEIGHTS}")
    nodes = sum(len(graph) for graph in graphs)
    if nodes > RUN_NODES:
        raise CannotRun(f"it has {nodes} nodes; ONNX Runtime takes minutes to optimize over {RUN_NODES}")


def check_memory(model: ir.Model, feed: Feed | None = None, shaped: ir.Model | None = None) -> ir.Model:
    """Refuse to run a model with a value that does not fit into the machine's memory.

    Args:
        model: not changed.
        feed: its inputs; without, each free dimension of an input is taken to be 1, the least that it can be.
        shaped: the model with shapes inferred, where the caller has it.

    Returns:
        The model with shapes inferred, its inputs of no free dimensions.

    Raises:
        CannotRun: with the value and its size.
    """
    fed = [value for value in model.graph.inputs if not value.is_initializer()]
    if shaped is None or any(value.shape is None or not value.shape.is_static() for value in fed):
        shaped = copied(model)
        _fix_inputs(shaped, feed or {})
        infer_shapes(shaped)
    for graph in shaped.graphs():
        for node in graph:
            for value in node.outputs:
                shape = static_shape(value)
                if shape is not None and value.dtype is not None and value.dtype != ir.DataType.STRING:
                    size = math.prod(shape) * value.dtype.bitwidth // 8
                    if size > MEMORY_BYTES:
                        raise CannotRun(f"{node_label(node)} makes a value of {size / 1e9:.1f} GB, {shape}")
    return shaped


def _fix_inputs(model: ir.Model, feed: Feed) -> None:
    for value in model.graph.inputs:
        if value.shape is not None and not value.is_initializer():
            fed = feed.get(value.name or "")
            sizes = (1,) * len(value.shape) if fed is None else fed.shape
            pairs = zip(value.shape, sizes, strict=False)
            value.shape = ir.Shape(dim if isinstance(dim, int) else size for dim, size in pairs)


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
