"""Activations in 16 bits where a target has kernels for them: which values that makes wide, and their grids."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from onnxedge.api import Quantization, Unit, opset

from .rounding import Grid


@dataclass(frozen=True)
class Grids:
    """Hold the grids of quantized values, by name.

    Attributes:
        main: of what a value's maker gives, or of all that reads it.
        other: of values that are read in the other width, too.
        wide: operators of units whose activations have 16 bits.
    """

    main: Mapping[str, Grid]
    other: Mapping[str, Grid] = field(default_factory=dict)
    wide: Collection[ir.Node] = ()

    def __contains__(self, name: object) -> bool:
        return name in self.main

    def __getitem__(self, name: str) -> Grid:
        return self.main[name]

    def is_main(self, unit: Unit, name: str) -> bool:
        """Tell whether a unit reads a value in the width that it is made in."""
        return self.main[name].bits == (16 if unit.node in self.wide else 8)

    def read(self, unit: Unit, name: str) -> Grid:
        """Return the grid on which a unit reads a value."""
        return self.main[name] if self.is_main(unit, name) else self.other[name]


def can_widen(model: ir.Model, rules: Quantization) -> bool:
    """Tell whether a model of this opset can hold 16-bit Q/DQ for a target."""
    version = opset(model)
    return bool(rules.wide) and (version >= 21 or bool(rules.contrib_opset and version >= rules.contrib_opset))


def widened(
    units: Sequence[Unit], asked: Collection[ir.Node], group: Mapping[str, str], rules: Quantization
) -> tuple[set[ir.Node], set[str]]:
    """Return the operators of units that compute on 16 bits, and the names of values that have 16.

    What moves values has the width of what it reads. Values that share a scale share a width: where they would not,
    the units around them stay in 8 bits.

    Args:
        units: in the graph's order.
        asked: operators of units that should.
        group: name of each quantized value -> that of the one whose scale it shares.
        rules: of the target.
    """
    chosen = {unit.node for unit in units if unit.node in asked and unit.node.op_type in rules.wide}
    while True:
        wide, values = _spread(units, chosen, rules)
        widths: dict[str, set[bool]] = {}
        for name, root in group.items():
            widths.setdefault(root, set()).add(name in values)
        mixed = {name for name, root in group.items() if len(widths[root]) > 1}
        wrong = {unit.node for unit in units if mixed.intersection(_names(unit))} & chosen
        if not wrong:
            return wide, {name for name in values if name not in mixed}
        chosen -= wrong


def _names(unit: Unit) -> list[str]:
    return [value.name or "" for value in (*unit.input_values(), *unit.outputs)]


def _spread(units: Sequence[Unit], chosen: Collection[ir.Node], rules: Quantization) -> tuple[set[ir.Node], set[str]]:
    """Return all units and values that are wide when some units are."""
    own = rules.output_scale == "own"
    makers = {value.name or "": unit for unit in units for value in unit.outputs} if own else {}
    readers: dict[str, list[Unit]] = {}
    for unit in units:
        for value in unit.input_values():
            readers.setdefault(value.name or "", []).append(unit)
    kernels = {name: [unit for unit in found if unit.role == "kernel"] for name, found in readers.items()}
    entering = [name for name, found in kernels.items() if name not in makers and found]
    values = {name for name in entering if all(unit.node in chosen for unit in kernels[name])}
    wide = set(chosen)
    for unit in units:
        if unit.role != "kernel" and all(value.name in values for value in unit.input_values()):
            wide.add(unit.node)
        if own and unit.node in wide:
            values.update(value.name or "" for value in unit.outputs)
    return wide, values


def fixed_grid(scale: float, zero_point: int, rules: Quantization, *, wide: bool) -> Grid:
    """Return the grid that a kernel's output is fixed to, in 8 bits or the one 256 times as fine in 16."""
    if not wide or not rules.wide_activation:
        return Grid(scale, zero_point, rules.activation)
    steps = zero_point - (0 if rules.activation == "uint8" else -128)
    least = 0 if rules.wide_activation == "uint16" else -32768
    return Grid(scale / 256, least + 256 * steps, rules.wide_activation)
