"""Compare two models: structure, size, numbers, accuracy, latency."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnxedge.data import Preprocess, open_data, synthesise
from onnxedge.driver import Source, load_model
from onnxedge.measure import Judge, measure_size
from onnxedge.model.graph import graphs_of
from onnxedge.passes import Progress, Silent
from onnxedge.report.records import Fidelity, Measure, Speed
from onnxedge.runtime import CannotRun, model_inputs
from onnxedge.samples import check_memory, fixed_inputs


@dataclass(frozen=True)
class Comparison:
    """Hold how a second model differs from a first.

    Attributes:
        before, after: sizes of the first and of the second.
        operators_before, operators_after: operator -> number of nodes, all graphs counted.
        interface: differences of inputs and outputs, one line each; empty where they are the same.
        fidelity, speed: of the second against the first; None where they cannot be run side by side.
        unmeasured: why not.
    """

    before: Measure
    after: Measure
    operators_before: Mapping[str, int]
    operators_after: Mapping[str, int]
    interface: tuple[str, ...]
    fidelity: Fidelity | None
    speed: Speed | None
    unmeasured: str = ""


def compare(
    first: Source,
    second: Source,
    *,
    data: Any = None,
    preprocess: str | None = None,
    seed: int = 0,
    threads: int = 1,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    latency: bool = True,
    metric: str = "top1",
    progress: Progress | None = None,
) -> Comparison:
    """Compare two models on samples, the user's or synthesised ones.

    Args:
        first, second: paths, protobufs or ``onnx_ir`` models.
        data: samples in any form that ``optimize`` takes; with labels the metric of both is measured.
        preprocess: how samples become inputs.
        seed: of synthesised samples.
        threads: of ONNX Runtime.
        input_shapes: sizes for free dimensions.
        latency: time both in turns.
        metric: as for ``optimize``.

    Raises:
        UserError: a model or the data cannot be read.
    """
    preprocessing = Preprocess.parse(preprocess) if preprocess else None
    models = load_model(first), load_model(second)
    before, after = (
        measure_size(model, Path(source) if isinstance(source, str | Path) else None)
        for model, source in zip(models, (first, second), strict=True)
    )
    interface = _interface(*models)
    fidelity, speed, unmeasured = None, None, ""
    try:
        if interface:
            raise CannotRun("inputs or outputs differ")
        for model in models:
            check_memory(model)
        specs = fixed_inputs(model_inputs(models[0]), input_shapes)
        samples = (
            open_data(data, specs, preprocessing)
            if data is not None
            else synthesise(models[0], specs, count=32, seed=seed, shapes=input_shapes)
        )
        judge = Judge(
            models[0],
            samples,
            metric=metric,
            threads=threads,
            max_drop=1.0,
            timed=latency,
            progress=progress or Silent(),
        )
        fidelity, speed = judge.fidelity(models[1]), judge.speed(models[1])
    except CannotRun as err:
        unmeasured = str(err)
    return Comparison(
        before, after, _operators(models[0]), _operators(models[1]), interface, fidelity, speed, unmeasured
    )


def _operators(model: ir.Model) -> dict[str, int]:
    counts = Counter(
        f"{node.domain}::{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
        for graph in graphs_of(model)
        for node in graph
    )
    return dict(sorted(counts.items()))


def _interface(first: ir.Model, second: ir.Model) -> tuple[str, ...]:
    lines = []
    for kind, ours, theirs in (
        ("input", model_inputs(first), model_inputs(second)),
        ("output", _output_types(first), _output_types(second)),
    ):
        for a, b in zip(ours, theirs, strict=False):
            if str(a) != str(b) or _name(a) != _name(b):
                lines.append(f"{kind} {_name(a)!r} {a} became {_name(b)!r} {b}")
        if len(ours) != len(theirs):
            lines.append(f"{len(ours)} {kind}s became {len(theirs)}")
    return tuple(lines)


@dataclass(frozen=True)
class _Output:
    name: str
    type: str

    def __str__(self) -> str:
        return self.type


def _output_types(model: ir.Model) -> tuple[_Output, ...]:
    return tuple(_Output(v.name or "", str(v.dtype)) for v in model.graph.outputs)


def _name(item: Any) -> str:
    return str(item.name)
