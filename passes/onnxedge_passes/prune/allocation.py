"""How much of each group goes: the cheapest set of widths that meets a budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import gcd
from typing import TYPE_CHECKING, Literal

from onnxedge_passes.prune.costs import Width
from onnxedge_passes.prune.exchange import Task, exchanged, narrowed, priced
from onnxedge_passes.prune.groups import Group, Groups
from onnxedge_passes.prune.importance import Curve

if TYPE_CHECKING:
    from onnxedge_passes.prune.latency import Timed

Budget = Literal["macs", "params", "bytes", "ratio", "latency"]
BUDGETS: tuple[Budget, ...] = ("macs", "params", "bytes", "ratio", "latency")
Price = Callable[[int, int], float]  #: what a contraction, or a vector, costs for lengths of its two axes


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
    """Count what a budget counts for given numbers of kept units: MACs, weights, bytes, channels, or time.

    Attributes:
        full: units of each group.
        readers: contractions that read each group.
        total: the measure of the whole model.
    """

    def __init__(self, groups: Groups, budget: Budget, timed: Timed | None = None) -> None:
        """Say what is counted; ``latency`` needs the times."""
        self.budget = budget
        self.full = tuple(len(group.units) for group in groups.free)
        self.readers = tuple(len(group.ends) for group in groups.free)
        self._terms, self._fixed = _terms(groups, budget, timed)
        self._memo: list[dict[tuple[int, int], float]] = [{} for _ in self._terms]
        self._touched: list[set[int]] = [set() for _ in groups.free]
        for number, (output, inner, _) in enumerate(self._terms):
            for group, _ in (*output.terms, *inner.terms):
                self._touched[group].add(number)
        self._falls = _falls(groups)
        for group, fallen in self._falls.items():
            self._touched[group] |= {number for other in fallen for number in self._touched[other]}
        self.total = self.at(self.full)

    def at(self, kept: Sequence[int]) -> float:
        """Return the measure."""
        left = self._left(kept)
        return self._fixed + sum(self._price(number, left) for number in range(len(self._terms)))

    def saved(self, kept: Sequence[int], group: int, count: int) -> float:
        """Return how much less it is when ``group`` keeps ``count`` units."""
        before, after = self._left(kept), self._left([*kept[:group], count, *kept[group + 1 :]])
        return sum(self._price(n, before) - self._price(n, after) for n in self._touched[group])

    def neighbours(self, group: int) -> list[int]:
        """Return the groups whose savings depend on a group's width, itself included."""
        terms = (self._terms[number] for number in self._touched[group])
        return sorted({g for output, inner, _ in terms for g, _ in (*output.terms, *inner.terms)} | {group})

    def _left(self, kept: Sequence[int]) -> Sequence[int]:
        """Return the units that are left once what fed only vanished groups has gone with them."""
        gone = {other for group, fallen in self._falls.items() if not kept[group] for other in fallen}
        return [0 if group in gone else count for group, count in enumerate(kept)] if gone else kept

    def _price(self, number: int, kept: Sequence[int]) -> float:
        output, inner, price = self._terms[number]
        lengths = (inner.at(kept), output.at(kept))
        found = self._memo[number].get(lengths)
        if found is None:
            found = self._memo[number][lengths] = price(*lengths)
        return found


def _terms(groups: Groups, budget: Budget, timed: Timed | None) -> tuple[list[tuple[Width, Width, Price]], float]:
    """Return what a measure is the sum of: output axis, input axis, and the price of their lengths; and the rest."""
    if budget == "ratio":
        widths_of = [Width(0, ((number, group.channels),)) for number, group in enumerate(groups.free)]
        return [(width, Width(1), _product(1.0)) for width in widths_of], 0.0
    if budget == "bytes":
        return _byte_terms(groups)
    if budget == "latency":
        assert timed is not None
        return [(c.output, c.input, partial(timed.at, n)) for n, c in enumerate(groups.costs)], timed.rest
    sizes = [(cost, cost.macs if budget == "macs" else cost.params) for cost in groups.costs]
    fixed = groups.other_macs if budget == "macs" else 0
    return [(cost.output, cost.input, _product(size)) for cost, size in sizes], float(fixed)


def _product(size: float) -> Price:
    return lambda inner, output: size * inner * output


def _byte_terms(groups: Groups) -> tuple[list[tuple[Width, Width, Price]], float]:
    """Count each weight once, though several nodes read it; biases and other vectors stay as they are."""
    terms, seen = [], set()
    fixed = sum(
        value.const_value.nbytes
        for value in groups.labels.facts.model.graph.initializers.values()
        if value.const_value is not None and value.dtype != 8  # strings have no size
    )
    weights = {reader.node: reader.weight for reader in groups.labels.readers}
    for cost in groups.costs:
        weight = weights.get(cost.node)
        if weight is None or weight in seen or weight.const_value is None:
            continue
        seen.add(weight)
        terms.append((cost.output, cost.input, _product(cost.params * weight.const_value.dtype.itemsize)))
        fixed -= weight.const_value.nbytes
    return terms, float(max(fixed, 0))


def _falls(groups: Groups) -> dict[int, list[int]]:
    """Return by group those that feed only contractions which make it: they are not needed without it."""
    owner = {unit: number for number, group in enumerate(groups.free) for unit in group.units.tolist()}
    made: list[set[int]] = []
    for group in groups.free:
        found: set[int] = set()
        for end in group.ends:
            found.update(owner.get(unit, -1) for unit in set(groups.units_of(end.reader.begins).tolist()))
        made.append(found)
    falls: dict[int, list[int]] = {}
    for number, makes in enumerate(made):
        for later in makes if len(makes) == 1 and number not in makes and -1 not in makes else ():
            falls.setdefault(later, []).append(number)
    return falls


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


def share_of(choices: Sequence[int], share: float) -> int:
    """Return the least of some widths, falling from all, that is not below a share of all."""
    return min(count for count in choices if count and count >= share * choices[0] - 1e-9)


def allocate(measure: Measure, curves: Sequence[Curve], choices: Sequence[Sequence[int]], keep: float) -> Plan:
    """Choose widths so that at most ``keep`` of the measure is left and the summed error is small.

    Two starts are bettered by exchanges: one by steps of least error per saving, and one at a price of the measure
    that is bisected until the budget is met.

    Args:
        measure: what the budget counts.
        curves: error by number of removed units, one per group.
        choices: allowed kept units, falling from the most, one list per group.
        keep: share that may be left, 0..1.

    Returns:
        The plan; its share is above ``keep`` where the choices do not reach further.
    """
    task = Task(measure, curves, choices, keep * measure.total)
    starts = narrowed(task, [allowed[0] for allowed in choices]), priced(task)
    kept = min((exchanged(task, start) for start in starts), key=lambda kept: (task.excess(kept), task.error(kept)))
    return Plan(tuple(kept), measure.at(kept) / max(measure.total, 1e-30))
