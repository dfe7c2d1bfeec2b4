"""What the contractions cost, as functions of how many units each group keeps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from onnxedge.api import Array, macs

if TYPE_CHECKING:
    from onnxedge_passes.prune.groups import Groups


@dataclass(frozen=True)
class Width:
    """Say how long an axis is for given numbers of kept units: ``fixed + sum(multiplicity * kept[group])``."""

    fixed: int
    terms: tuple[tuple[int, int], ...] = ()

    def at(self, kept: Sequence[int]) -> int:
        """Return the length."""
        return self.fixed + sum(count * kept[group] for group, count in self.terms)


@dataclass(frozen=True, eq=False)
class Cost:
    """One weight: multiply-accumulates and weights per unit of ``output * input``."""

    node: ir.Node
    macs: float
    params: float
    output: Width
    input: Width


def contraction_costs(groups: Groups) -> tuple[list[Cost], int]:
    """Return the cost of every weight that can be cut, and the multiply-accumulates of the other contractions."""
    readers, shapes = groups.labels.readers, groups.labels.facts.shapes
    group_of = np.full(len(groups.component), -1)
    for number, group in enumerate(groups.free):
        group_of[group.units] = number

    def shape_of(value: ir.Value | None) -> tuple[int, ...] | None:
        return shapes.get(value) if value is not None else None

    def width(labels: Array) -> Width:
        numbers, counts = np.unique(group_of[groups.units_of(labels)], return_counts=True)
        of = [(int(g), int(n) // len(groups.free[g].units)) for g, n in zip(numbers, counts, strict=True) if g >= 0]
        return Width(len(labels) - sum(count * len(groups.free[g].units) for g, count in of), tuple(of))

    elements = [int(np.prod(shapes[reader.weight])) for reader in readers]
    held: dict[ir.Node, int] = {}  # elements of all weights of a node: a recurrent one has two
    for reader, size in zip(readers, elements, strict=True):
        held[reader.node] = held.get(reader.node, 0) + size
    costs = []
    for reader, size in zip(readers, elements, strict=True):
        pairs = len(reader.begins) * len(reader.ends)
        rows = math.prod(shapes[reader.data][:-1]) if reader.data is not None else 0
        work = (macs(reader.node, shape_of) or rows * size) * size / max(held[reader.node], 1)
        costs.append(Cost(reader.node, work / pairs, size / pairs, width(reader.begins), width(reader.ends)))
    return costs, sum(macs(node, shape_of) or 0 for node in groups.labels.facts.model.graph if node not in held)
