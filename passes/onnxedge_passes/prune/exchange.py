"""Search for the widths of least error that meet a budget: what ``allocate`` does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxedge_passes.prune.allocation import Measure
    from onnxedge_passes.prune.importance import Curve

_PRICES = 16  #: bisections of the price of the measure
_SWEEPS = 20  #: times that each group looks for its best width at one price, at most
_SHARED = 2.0  #: a channel that several contractions read costs more than the sum of its curve: their errors meet again
_LOOKS = 30_000  #: savings that the exchanges may ask for: seconds


class Task:
    """What is to be allocated: a width for each group, such that the measure is ``goal`` at most."""

    def __init__(
        self, measure: Measure, curves: Sequence[Curve], choices: Sequence[Sequence[int]], goal: float
    ) -> None:
        self.measure, self.choices, self.goal = measure, choices, goal
        factors = [_SHARED if count > 1 else 1.0 for count in measure.readers]
        self._errors = [(factor * curve.error).tolist() for factor, curve in zip(factors, curves, strict=True)]
        self.looks = 0

    def lost(self, group: int, count: int) -> float:
        """Return the error of a group that keeps ``count`` units."""
        return float(self._errors[group][self.measure.full[group] - count])

    def error(self, kept: Sequence[int]) -> float:
        """Return the error of all groups."""
        return sum(self.lost(group, count) for group, count in enumerate(kept))

    def excess(self, kept: Sequence[int]) -> float:
        """Return by how much the budget is missed."""
        return max(self.measure.at(kept) - self.goal, 0.0)

    def narrowings(self, kept: Sequence[int], group: int) -> list[tuple[float, int, float]]:
        """Return (error, new count, saving) of the narrowings of a group that save anything."""
        found, now = [], self.lost(group, kept[group])
        for count in self.choices[group]:
            if count < kept[group] and (saving := self._saved(kept, group, count)) > 0:
                found.append((max(self.lost(group, count) - now, 1e-12), count, saving))
        return found

    def widenings(self, kept: Sequence[int], group: int, room: float) -> list[tuple[float, int, float]]:
        """Return (error regained, new count, cost) of the widenings of a group that there is room for."""
        found, now = [], self.lost(group, kept[group])
        for count in reversed(self.choices[group]):
            if count <= kept[group]:
                continue
            cost = -self._saved(kept, group, count)
            if cost > room:
                break
            if now > self.lost(group, count):
                found.append((now - self.lost(group, count), count, cost))
        return found

    def _saved(self, kept: Sequence[int], group: int, count: int) -> float:
        self.looks += 1
        return self.measure.saved(kept, group, count)


def narrowed(task: Task, kept: Sequence[int], fixed: int | None = None) -> list[int]:
    """Take the step with the least error per saving until the budget is met; what is saved beyond it does not count.

    A step may skip widths where the curve is not convex. The group ``fixed`` keeps its width.
    """
    kept = list(kept)
    over = task.measure.at(kept) - task.goal
    groups = [group for group in range(len(kept)) if group != fixed]
    steps = {group: task.narrowings(kept, group) for group in groups} if over > 0 else {}
    while over > 0:
        found = ((error / min(saving, over), g, count) for g, own in steps.items() for error, count, saving in own)
        best = min(found, default=None)
        if best is None:
            break
        _, group, count = best
        over -= task.measure.saved(kept, group, count)
        kept[group] = count
        steps.update(
            (other, task.narrowings(kept, other)) for other in task.measure.neighbours(group) if other != fixed
        )
    return kept


def widened(task: Task, kept: Sequence[int], fixed: int | None = None) -> list[int]:
    """Spend what the budget leaves over where it regains most per cost. The group ``fixed`` keeps its width."""
    kept = list(kept)
    room = task.goal - task.measure.at(kept)
    groups = [group for group in range(len(kept)) if group != fixed]
    steps = {group: task.widenings(kept, group, room) for group in groups} if room > 0 else {}
    while room > 0:
        found = (
            (gain / max(cost, 1e-12 * task.goal), -g, count)
            for g, own in steps.items()
            for gain, count, cost in own
            if cost <= room
        )
        best = max(found, default=None)
        if best is None:
            break
        group, count = -best[1], best[2]
        room += task.measure.saved(kept, group, count)
        kept[group] = count
        near = task.measure.neighbours(group)
        steps.update((other, task.widenings(kept, other, room)) for other in near if other != fixed)
    return kept


def priced(task: Task) -> list[int]:
    """Return the widths of least error plus price times measure, at the least price that meets the budget."""
    measure = task.measure
    kept = best = [allowed[0] for allowed in task.choices]
    last = [allowed[-1] for allowed in task.choices]
    low, high = 0.0, 4 * (task.error(last) + 1e-12) / max(measure.total - task.goal, 1e-9 * measure.total, 1e-30)
    for _ in range(_PRICES):
        price = (low + high) / 2
        kept = _settled(task, kept, price)
        if task.excess(kept) > 0:
            low = price
        else:
            best, high = kept, price
    return best


def _settled(task: Task, kept: Sequence[int], price: float) -> list[int]:
    """Let each group in turn take its best width at a price until none moves."""
    kept = list(kept)
    waiting = dict.fromkeys(range(len(kept)))
    for _ in range(_SWEEPS * len(kept)):
        if not waiting:
            break
        group = next(iter(waiting))
        del waiting[group]
        saved = {count: task.measure.saved(kept, group, count) for count in task.choices[group]}
        best = min(task.choices[group], key=lambda count: (task.lost(group, count) - price * saved[count], -count))
        if best != kept[group]:
            kept[group] = best
            waiting.update((other, None) for other in task.measure.neighbours(group) if other != group)
    return kept


def exchanged(task: Task, kept: Sequence[int]) -> list[int]:
    """Give one group another width and the others what is best then, as long as that lessens the error."""
    kept = widened(task, kept)
    if task.excess(kept) > 0:
        return kept
    error, begun, is_better = task.error(kept), task.looks, True
    while is_better:
        is_better = False
        for group, allowed in enumerate(task.choices):
            for count in sorted(allowed, key=lambda count: abs(count - kept[group])):
                if task.looks - begun > _LOOKS:
                    return kept
                if count == kept[group]:
                    continue
                tried = narrowed(task, [*kept[:group], count, *kept[group + 1 :]], group)
                if task.excess(tried) > 0:
                    continue
                tried = widened(task, tried, group)
                if task.error(tried) < (1 - 1e-6) * error:
                    kept, error, is_better = tried, task.error(tried), True
    return kept
