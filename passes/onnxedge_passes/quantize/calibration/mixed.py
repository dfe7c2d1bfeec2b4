"""For each activation the range whose rounding the layers that read it notice least."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxedge.api import (
    Array,
    Context,
    Feed,
    Quantization,
    Session,
    Unit,
    add_initializer,
    forked,
    refresh_scopes,
    unique_name,
)

from ..rounding import Grid, activation_grid
from .observed import Choice, Observed, Range

MIXED: Choice = ("mixed", 0.0)
SAMPLES = 64  #: held-out samples, at most; tails of fewer are cut off too boldly
BATCH = 4


def choose_mixed(
    model: ir.Model,
    values: Sequence[ir.Value],
    units: Sequence[Unit],
    seen: Mapping[str, Observed],
    feeds: Iterable[Feed],
    rules: Quantization,
    context: Context,
) -> None:
    """Add to some values' ranges the one, of those chosen already, that leaves their readers the most signal.

    A copy of the float model runs each reader once more for each range, on the value rounded to it; noise over signal
    is added up over the readers. Readers that only move values, and graph outputs, count as the value itself.

    Args:
        model: not changed.
        values: observed values; as many as fit into the budget of memory.
        units: what is to run in integers.
        seen: what was observed, with ranges; changed.
        feeds: samples that the ranges were not made from.
        rules: of the target.
        context: for the number of threads.

    Raises:
        CannotRun: the runtime refuses the copy.
    """
    probe = _Probe(model, values, units)
    candidates: dict[str, dict[Grid, Range]] = {}
    for value in values:
        name = value.name or ""
        grids = {activation_grid(*found, rules): found for found in reversed(seen[name].ranges.values())}
        candidates[name] = dict(reversed(grids.items()))  # of ranges that make one grid, the first
        if len(grids) > 1:
            probe.add(name, list(candidates[name]))
    noise = probe.noise(feeds, context.threads)
    for name, ranges in candidates.items():
        found = list(ranges.values())
        if found:
            seen[name].ranges[MIXED] = found[int(np.argmin(noise[name]))] if name in noise else found[0]


class _Probe:
    """A copy of the model whose outputs are the mean squared errors that rounding one value causes."""

    def __init__(self, model: ir.Model, values: Sequence[ir.Value], units: Sequence[Unit]) -> None:
        self.model, twins = forked(model, values)
        refresh_scopes(self.model)
        self.graph = self.model.graph
        self.graph.outputs.clear()
        self._twins = {value.name or "": twin for value, twin in zip(values, twins, strict=True)}
        copies = dict(zip(model.graph, self.graph, strict=True))
        self._readers: dict[str, list[list[ir.Node]]] = {name: [] for name in self._twins}
        self._moved: set[str] = {value.name or "" for value in values if value.is_graph_output()}
        for unit in units:
            for name in {value.name or "" for value in unit.input_values()} & self._readers.keys():
                if unit.role == "kernel":
                    self._readers[name].append([copies[node] for node in unit.nodes])
                else:
                    self._moved.add(name)
        self._errors: dict[str, list[tuple[str, list[str]]]] = {}  # value -> (signal, noise of each grid) of readers

    def add(self, name: str, grids: Sequence[Grid]) -> None:
        """Measure what a value's readers notice of each grid."""
        value = self._twins[name]
        rounded = [self._rounded(value, grid) for grid in grids]
        errors = self._errors.setdefault(name, [])
        for chain in self._readers[name]:
            true = chain[-1].outputs[0]
            outputs = [self._copied(chain, value, other) for other in rounded]
            errors.append((self._power(true), [self._power(self._difference(other, true)) for other in outputs]))
        if name in self._moved or not errors:
            errors.append((self._power(value), [self._power(self._difference(other, value)) for other in rounded]))

    def noise(self, feeds: Iterable[Feed], threads: int) -> dict[str, Array]:
        """Return noise over signal of each grid of each value, [grids], added up over its readers."""
        names = [output.name or "" for output in self.graph.outputs]
        if not names:
            return {}
        session = Session(self.model, threads=threads, level="disable")
        sums = dict.fromkeys(names, 0.0)
        for feed in feeds:
            for output, array in session.run(feed, names).items():
                sums[output] += float(array)
        found: dict[str, Array] = {}
        for name, readers in self._errors.items():
            ratios = [np.array([sums[n] for n in noise]) / max(sums[signal], 1e-30) for signal, noise in readers]
            found[name] = np.nan_to_num(np.sum(ratios, axis=0), nan=np.inf)
        return found

    def _rounded(self, value: ir.Value, grid: Grid) -> ir.Value:
        scale, zero_point = np.array(grid.scale, np.float32), np.array(grid.zero_point, grid.dtype)
        inputs = [self._constant(scale), self._constant(zero_point)]
        return self._node("DequantizeLinear", [self._node("QuantizeLinear", [value, *inputs]), *inputs])

    def _copied(self, chain: Sequence[ir.Node], value: ir.Value, other: ir.Value) -> ir.Value:
        """Return the output of a copy of some nodes that reads another value."""
        twins = {value: other}
        for node in chain:
            copy = ir.Node(
                node.domain,
                node.op_type,
                [twins.get(v, v) if v is not None else None for v in node.inputs],
                list(node.attributes.values()),
                num_outputs=len(node.outputs),
                name="",
            )
            for old, new in zip(node.outputs, copy.outputs, strict=True):
                new.name = unique_name(self.graph, "probe") if old.name else ""
            self.graph.append(copy)
            twins.update(zip(node.outputs, copy.outputs, strict=True))
        return twins[chain[-1].outputs[0]]

    def _difference(self, first: ir.Value, second: ir.Value) -> ir.Value:
        return self._node("Sub", [first, second])

    def _power(self, value: ir.Value) -> str:
        """Make the mean square of a value an output and return its name."""
        mean = self._node("ReduceMean", [self._node("Mul", [value, value])], keepdims=0)
        mean.type, mean.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([])
        self.graph.outputs.append(mean)
        return mean.name or ""

    def _node(self, op: str, inputs: Sequence[ir.Value | None], **attributes: int) -> ir.Value:
        node = ir.node(op, inputs, attributes)
        node.outputs[0].name = unique_name(self.graph, "probe")
        self.graph.append(node)
        return node.outputs[0]

    def _constant(self, array: Array) -> ir.Value:
        return add_initializer(self.graph, ir.val(unique_name(self.graph, "probe"), const_value=ir.tensor(array)))
