"""How much of each group goes: the cheapest set of widths that meets a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd
from typing import Literal

from onnxedge_passes.prune.groups import Group, Groups
from onnxedge_passes.prune.importance import Curve

Budget = Literal["macs", "params", "ratio"]


@dataclass(frozen=True)
class Plan:
    """Kept units of each free group, and the share of the budget's measure that is left of the whole model.

    Attributes:
        kept: number of units that stay, by group.
        share: 0..1, what is left.
    """

    kept: tuple[int, ...]
    share: float


class Measure:
    """Count what a budget counts for given numbers of kept units: contractions' MACs, weights, or channels."""

    def __init__(self, groups: Groups, budget: Budget) -> None:
        self.groups, self.budget = groups, budget
        self.full = tuple(len(group.units) for group in groups.free)
        self.touched: list[list[int]] = [[] for _ in groups.free]
        for number, cost in enumerate(groups.costs):
            for group in {g for width in (cost.output, cost.input) for g, _ in width.terms}:
                self.touched[group].append(number)
        self.total = self.at(self.full)

    def at(self, kept: Sequence[int]) -> float:
        """Return the measure."""
        if self.budget == "ratio":
            return float(sum(k * group.channels for k, group in zip(kept, self.groups.free, strict=True)))
        fixed = self.groups.other_macs if self.budget == "macs" else 0
        return fixed + sum(self._cost(number, kept) for number in range(len(self.groups.costs)))

    def saved(self, kept: Sequence[int], group: int, count: int) -> float:
        """Return how much less it is when ``group`` keeps ``count`` units."""
        if self.budget == "ratio":
            return float((kept[group] - count) * self.groups.free[group].channels)
        changed = [*kept[:group], count, *kept[group + 1 :]]
        return sum(self._cost(n, kept) - self._cost(n, changed) for n in self.touched[group])

    def neighbours(self, group: int) -> list[int]:
        """Return the groups whose savings depend on a group's width, itself included."""
        if self.budget == "ratio":
            return [group]
        costs = (self.groups.costs[number] for number in self.touched[group])
        return sorted({g for cost in costs for width in (cost.output, cost.input) for g, _ in width.terms} | {group})

    def _cost(self, number: int, kept: Sequence[int]) -> float:
        cost = self.groups.costs[number]
        size = cost.macs if self.budget == "macs" else cost.params
        return size * cost.output.at(kept) * cost.input.at(kept)


def widths(group: Group, multiple: int, *, may_vanish: bool, exact: bool = False) -> list[int]:
    """Return the numbers of units that a group may keep, falling, from all: channels in multiples, or none at all.

    A width of fewer than four multiples is cut in halves of the multiple, down to 4 channels: a step of a quarter of
    the width is the coarsest that keeps a choice. With ``exact`` the multiple holds as it is.
    """
    width = len(group.units) * group.channels
    while not exact and width < 4 * multiple and multiple % 2 == 0 and multiple > 4:
        multiple //= 2
    step = multiple // gcd(multiple, group.channels)
    below = range((len(group.units) - 1) // step * step, 0, -step)
    return [len(group.units), *below, *([0] if may_vanish else [])]


def allocate(measure: Measure, curves: Sequence[Curve], choices: Sequence[Sequence[int]], keep: float) -> Plan:
    """Choose widths so that at most ``keep`` of the measure is left and the summed error is small.

    From full widths, the step with the least error per saving (what is more than needed does not count) is taken until
    the budget is met; a step may skip widths where the curve is not convex. Then what the last step took too much is
    given back where it helps most.

    Args:
        measure: what the budget counts.
        curves: error by number of removed units, one per group.
        choices: allowed kept units, falling from all, one list per group.
        keep: share that may be left, 0..1.

    Returns:
        The plan; its share is above ``keep`` where the choices do not reach further.
    """
    kept = list(measure.full)
    left, goal = measure.total, keep * measure.total
    steps = [_steps(measure, curves[group], choices[group], kept, group) for group in range(len(kept))]
    while left > goal:
        found = (
            (error / min(saving, left - goal), g, count) for g, own in enumerate(steps) for error, count, saving in own
        )
        best = min(found, default=None)
        if best is None:
            break
        _, group, count = best
        left -= measure.saved(kept, group, count)
        kept[group] = count
        for other in measure.neighbours(group):
            steps[other] = _steps(measure, curves[other], choices[other], kept, other)
    while True:
        back = max(_returns(measure, curves, choices, kept, goal - measure.at(kept)), default=None)
        if back is None:
            break
        kept[back[1]] = back[2]
    return Plan(tuple(kept), measure.at(kept) / max(measure.total, 1e-30))


def _steps(
    measure: Measure, curve: Curve, allowed: Sequence[int], kept: list[int], group: int
) -> list[tuple[float, int, float]]:
    """Return (error, new count, saving) of the narrowings of a group that save anything."""
    size, found = measure.full[group], []
    for count in allowed:
        saving = measure.saved(kept, group, count) if count < kept[group] else 0.0
        if saving > 0:
            error = float(curve.error[size - count] - curve.error[size - kept[group]])
            found.append((max(error, 1e-12), count, saving))
    return found


def _returns(
    measure: Measure, curves: Sequence[Curve], choices: Sequence[Sequence[int]], kept: list[int], slack: float
) -> list[tuple[float, int, int]]:
    """Return (error regained, group, count) of the widenings that the slack pays for."""
    found = []
    for group, allowed in enumerate(choices):
        size = measure.full[group]
        for count in allowed:
            if count <= kept[group] or -measure.saved(kept, group, count) > slack:
                continue
            error = curves[group].error[size - kept[group]] - curves[group].error[size - count]
            if error > 0:
                found.append((float(error), -group, count))
    return [(error, -group, count) for error, group, count in found]
