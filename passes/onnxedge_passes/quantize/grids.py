"""Scales and biases of units from what was observed of their activations."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxedge.api import Array, Quantization, Unit, clip_bounds, constant, is_standard

from .calibration import Choice, Observed
from .emission import Dialect, rounded
from .rounding import Grid, Weight, activation_grid, bounded_grid
from .wide import Grids, fixed_grid, widened


def grids_of(
    units: Sequence[Unit],
    seen: Mapping[str, Observed],
    method: Choice,
    rules: Quantization,
    existing: Mapping[str, Grid] | None = None,
    wide: Collection[ir.Node] = (),
) -> Grids:
    """Return a grid for each value that is quantized, by name; values that must share one do.

    Args:
        units: that run in integers.
        seen: by name of value.
        method: that chooses ranges.
        rules: of the target.
        existing: grids that values have in the model already, which win.
        wide: operators of units that should compute on 16 bits, see :func:`.wide.widened`.
    """
    quantized = quantized_values(units, rules)
    group = _shared_scales(units, quantized, rules)
    members: dict[str, list[str]] = {}
    for name in quantized:
        members.setdefault(group[name], []).append(name)
    made = {v.name or "": unit for unit in units for v in unit.outputs if unit.role == "kernel"}
    free = [unit for unit in units if not (existing and any(v.name in existing for v in unit.input_values()))]
    nodes, values = widened(units, {unit.node for unit in free} & set(wide), group, rules) if wide else (set(), set())
    grids: dict[str, Grid] = {}
    others: dict[str, Grid] = {}
    for names in members.values():
        own = next((existing[name] for name in names if name in existing), None) if existing else None
        if own is not None:
            grids.update(dict.fromkeys(names, own))
            continue
        ranges = [seen[name].ranges[method] for name in names]
        low, high = min(r[0] for r in ranges), max(r[1] for r in ranges)
        is_wide = names[0] in values
        grid = activation_grid(low, high, rules, wide=is_wide)
        others.update(dict.fromkeys(names, activation_grid(low, high, rules, wide=not is_wide)) if nodes else {})
        for unit in (made[name] for name in names if name in made):
            if unit.node.op_type in rules.fixed:
                grid = fixed_grid(*rules.fixed[unit.node.op_type], rules, wide=is_wide)
            elif unit.activation is not None and (bounds := clip_bounds(unit.activation)) is not None:
                limits = bounds if unit.activation.op_type == "Clip" else (0.0, np.inf)
                grid = bounded_grid(low, high, limits, rules, wide=is_wide)
        grids.update(dict.fromkeys(names, grid))
    return Grids(grids, others, nodes)


def biases_of(
    units: Sequence[Unit],
    grids: Grids,
    seen: Mapping[str, Observed],
    rules: Quantization,
    dialect: Dialect,
    *,
    correct: bool,
    chosen: Mapping[str, Weight] | None = None,
    shifts: Mapping[str, Array] | None = None,
) -> dict[ir.Node, Array | None]:
    """Return the bias of each weighted unit, float32 [Co]; ``correct`` takes out the rounding's mean shift.

    Args:
        units: of one model.
        grids, seen: by name of value.
        rules, dialect: say how weights are rounded.
        correct: take out the mean shift of rounded weights.
        chosen: roundings of weights, by name, that are better than to nearest.
        shifts: float32 [Co], what else is taken off, by name of what a unit's operator computes.
    """
    biases: dict[ir.Node, Array | None] = {}
    for unit in units:
        array = constant(unit.node.inputs[unit.weight]) if unit.weight is not None else None
        if array is None:
            continue
        bias = constant(unit.bias)
        bias = None if bias is None else bias.reshape(-1).astype(np.float32)
        taken = (shifts or {}).get(unit.node.outputs[0].name or "")
        bias = bias - taken if bias is not None and taken is not None and taken.shape == bias.shape else bias
        biases[unit.node] = bias
        data = unit.input_values()[0].name or ""
        mean = seen[data].mean
        if bias is None or mean is None or not correct:
            continue
        weight = rounded(unit, array, grids.read(unit, data), bias, rules, dialect)
        value = unit.node.inputs[unit.weight or 0]
        weight = weight.like((chosen or {}).get(value.name or "" if value is not None else ""))
        biases[unit.node] = bias - mean_shift(unit.node, weight.restored() - array, mean)
    return biases


def channel_axes(units: Sequence[Unit]) -> dict[str, int]:
    """Return the channel axis of each activation that a weighted unit reads."""
    return {
        unit.input_values()[0].name or "": 1 if "Conv" in unit.node.op_type else -1
        for unit in units
        if unit.weight is not None
    }


def quantized_values(units: Sequence[Unit], rules: Quantization) -> dict[str, None]:
    """Return the names of values that get a Q, in graph order."""
    read = {v.name or "" for unit in units for v in unit.input_values()}
    names: dict[str, None] = {}
    for unit in units:
        names.update(dict.fromkeys(v.name or "" for v in unit.input_values()))
        if rules.output_scale == "own":
            always = unit.needs_output or unit.role != "kernel"
            names.update((v.name or "", None) for v in unit.outputs if always or (v.name or "") in read)
    return names


def _shared_scales(units: Sequence[Unit], quantized: Mapping[str, None], rules: Quantization) -> dict[str, str]:
    """Return for each quantized value the representative of the values that share its scale."""
    parent = {name: name for name in quantized}

    def root(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    def join(names: Sequence[str]) -> None:
        known = [name for name in names if name in parent]
        for name in known[1:]:
            parent[root(name)] = root(known[0])

    for unit in units:
        if unit.role != "kernel":
            join([v.name or "" for v in (*unit.input_values(), *unit.outputs)])
    makers = {node for unit in units for v in unit.input_values() if (node := v.producer()) is not None}
    for node in makers:
        if is_standard(node) and node.op_type in rules.equal_scales:
            join([v.name or "" for v in (node.outputs[0], *node.inputs) if v is not None])
    return {name: root(name) for name in quantized}


def mean_shift(node: ir.Node, error: Array, mean: Array) -> Array:
    """Return the mean error of each output channel: the weight's error times the mean of its input channels.

    The border of a padded convolution is counted as if it were inside.
    """
    if node.op_type == "ConvTranspose":
        return np.zeros(1, np.float32)
    if node.op_type == "Conv":
        groups = node.attributes.get_int("group", 1) or 1
        per_input = error.reshape(error.shape[0], error.shape[1], -1).sum(axis=2)  # [Co, Ci/G]
        inputs = mean.reshape(groups, -1).repeat(error.shape[0] // groups, axis=0)  # [Co, Ci/G]
        return np.asarray((per_input * inputs).sum(axis=1), np.float32)
    if node.op_type == "Gemm" and node.attributes.get_int("transB", False):
        error = error.T
    return np.asarray(mean @ error, np.float32)
