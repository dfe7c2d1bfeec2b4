"""Regions on the clock: each one cut out of the model, in float and in integers, run in turns."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import onnx_ir as ir

from onnxedge.api import (
    CannotRun,
    Feed,
    Latency,
    Session,
    Unit,
    capture,
    constant_tensor,
    forked,
    latency_ratio,
    node_label,
    place,
)

from .sensitivity import regions

if TYPE_CHECKING:
    from .quantizer import Quantizer

#: A region is slower when its wall and CPU ratios are above this and the lower quartile above 1, twice: beyond what the
#: clock says differently from run to run, so that the same input gives the same bytes. Of 20 regions that the costs of
#: ort-cpu chose in 12 models, the slowest came to 1.04.
SLOWER = 1.10
_ROUNDS, _SECONDS = 24, 0.4  #: of timing one region
_AGAIN_ROUNDS, _AGAIN_SECONDS = 100, 1.5  #: of the second look that a verdict against a region needs
_ALL_SECONDS = 30.0  #: for all regions; those that come later are not timed


@dataclass(frozen=True)
class Region:
    """Say what a region takes, crossings paid.

    Attributes:
        units: its indices among the units placed.
        label: of its first kernel.
        nodes: how many nodes it has.
        gain_ns: predicted time that it saves; 0 where the target has no figures.
        latency: of integers against float, None where it was not timed.
    """

    units: tuple[int, ...]
    label: str
    nodes: int
    gain_ns: float
    latency: Latency | None

    @property
    def is_slower(self) -> bool:
        """Tell whether integers take longer than float by more than the clock's noise."""
        found = self.latency
        return found is not None and min(found.ratio, found.cpu_ratio) > SLOWER and found.low > 1.0

    def figures(self) -> dict[str, object]:
        """Return what is known, JSON-ready."""
        told: dict[str, object] = {"first": self.label, "nodes": self.nodes, "predicted_gain_ns": round(self.gain_ns)}
        if self.latency is not None:
            told["float_ns"] = round(self.latency.first_ms * 1e6)
            told["integer_ns"] = round(self.latency.second_ms * 1e6)
            told["ratio"] = round(self.latency.ratio, 3)
        return told


def timed_regions(quantizer: Quantizer, units: Sequence[Unit], feed: Feed | None) -> list[Region]:
    """Return the regions that hand integers to each other, equal ones timed once.

    Args:
        quantizer: calibrated.
        units: placed in its model.
        feed: a sample to time on, None for no timing.
    """
    parts = [tuple(part) for part in regions(units)]
    order = {node: position for position, node in enumerate(quantizer.model.graph)}
    cuts = [cut_out(quantizer.model, [units[i] for i in part], order) for part in parts]
    feeds = _feeds(quantizer, cuts, feed) if feed is not None else {}
    known: dict[str, tuple[float, Latency | None]] = {}
    found = []
    end = time.monotonic() + _ALL_SECONDS
    tracked = quantizer.context.progress.track(list(zip(parts, cuts, strict=True)), "int8: timing", len(parts))
    for part, cut in tracked:
        key = _key(cut, feeds)
        if key not in known:
            latency = _latency(quantizer, cut, feeds) if feeds and time.monotonic() < end else None
            known[key] = place(cut, quantizer.context.target).gain_ns, latency
        kernel = next((units[i] for i in part if units[i].role == "kernel"), units[part[0]])
        count = sum(len(units[i].nodes) for i in part)
        found.append(Region(part, node_label(kernel.node), count, *known[key]))
    return found


def cut_out(model: ir.Model, units: Sequence[Unit], order: Mapping[ir.Node, int]) -> ir.Model:
    """Return the nodes of some units as a model of their own, values under their names; weights are shared.

    Args:
        model: not changed.
        units: of it.
        order: position of each node in the graph.
    """
    inside = sorted({node for unit in units for node in unit.nodes}, key=order.__getitem__)
    made: dict[ir.Value, ir.Value] = {}
    inputs: list[ir.Value] = []
    constants: dict[str, ir.Value] = {}
    nodes: list[ir.Node] = []

    def taken(value: ir.Value | None) -> ir.Value | None:
        if value is None or value in made:
            return None if value is None else made[value]
        twin = ir.Value(name=value.name, type=value.type, shape=value.shape, const_value=constant_tensor(value))
        made[value] = twin
        if twin.const_value is None:
            inputs.append(twin)
        else:
            constants[value.name or ""] = twin
        return twin

    for node in inside:
        outputs = [ir.Value(name=v.name, type=v.type, shape=v.shape) for v in node.outputs]
        twin = ir.Node(
            node.domain,
            node.op_type,
            [taken(v) for v in node.inputs],
            node.attributes.values(),
            outputs=outputs,
            name=node.name,
        )
        made.update(zip(node.outputs, outputs, strict=True))
        nodes.append(twin)
    members = set(inside)
    ends = [v for node in inside for v in node.outputs if _leaves(v, members)]
    graph = ir.Graph(
        inputs,
        [made[v] for v in ends],
        nodes=nodes,
        initializers=list(constants.values()),
        opset_imports=dict(model.graph.opset_imports),
        name="region",
    )
    return ir.Model(graph, ir_version=model.ir_version)


def _leaves(value: ir.Value, inside: Collection[ir.Node]) -> bool:
    return value.is_graph_output() or any(use.node not in inside for use in value.uses())


def _feeds(quantizer: Quantizer, cuts: Sequence[ir.Model], feed: Feed) -> Feed:
    """Return the values that regions read, on one sample."""
    names = {value.name for cut in cuts for value in cut.graph.inputs}
    values = [*quantizer.model.graph.inputs, *(v for node in quantizer.model.graph for v in node.outputs)]
    wanted = [value for value in values if value.name in names]
    if not wanted:
        return {}
    try:
        arrays = next(iter(capture(quantizer.model, wanted, [feed], threads=quantizer.context.threads)))
    except CannotRun:
        return {}
    return {value.name or "": array for value, array in zip(wanted, arrays, strict=True)}


def _latency(quantizer: Quantizer, cut: ir.Model, feeds: Feed) -> Latency | None:
    """Return integers against float; None where one of them does not run."""
    target = quantizer.context.target
    assert target.quantization is not None
    all_of_it = replace(target, quantization=replace(target.quantization, costs={}, min_macs={}))
    quantized, _ = forked(cut)
    quantizer.emit_units(quantized, place(quantized, all_of_it).integer)
    feed = {value.name or "": feeds[value.name or ""] for value in cut.graph.inputs}
    try:
        first, second = (Session(m, threads=quantizer.context.threads) for m in (cut, quantized))
        found = latency_ratio(first, second, feed, rounds=_ROUNDS, seconds=_SECONDS)
        if found.ratio > SLOWER:
            again = latency_ratio(first, second, feed, rounds=_AGAIN_ROUNDS, seconds=_AGAIN_SECONDS)
            found = min(found, again, key=lambda latency: latency.ratio)
    except CannotRun:
        return None
    return found


def _key(cut: ir.Model, feeds: Feed) -> str:
    """Return a text that is the same for regions that run equally long: operators, attributes, shapes, wiring."""
    numbers: dict[ir.Value, int] = {}
    fed = {value for value in cut.graph.inputs if value.name in feeds}

    def told(value: ir.Value | None) -> str:
        if value is None:
            return "-"
        number = numbers.setdefault(value, len(numbers))
        if value in fed:
            return f"{number}:{feeds[value.name or ''].shape}"
        if value.const_value is not None:
            return f"{number}:constant {value.const_value.shape}"
        return str(number) if feeds else f"{number}:{value.shape}"

    lines = []
    for node in cut.graph:
        attributes = [f"{name}={a.value}" for name, a in sorted(node.attributes.items())]
        ends = [*map(told, node.inputs), ">", *map(told, node.outputs)]
        lines.append(f"{node.domain}:{node.op_type} {attributes} {ends}")
    return "\n".join([*lines, ",".join(str(numbers[v]) for v in cut.graph.outputs)])
