"""Which parts of a quantized model cost its accuracy: each is quantized alone and the outputs are compared."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

from onnxedge.api import Unit

Part = TypeVar("Part", bound=Hashable)


def regions(units: Sequence[Unit]) -> list[list[int]]:
    """Return the indices of units that hand integers to each other, region by region, in graph order."""
    parent = list(range(len(units)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    makers = {id(v): i for i, unit in enumerate(units) for v in unit.outputs}
    readers: dict[int, int] = {}
    for index, unit in enumerate(units):
        for value in unit.input_values():
            for other in (makers.get(id(value)), readers.setdefault(id(value), index)):
                if other is not None:
                    low, high = sorted((root(index), root(other)))
                    parent[high] = low
    groups: dict[int, list[int]] = {}
    for index in range(len(units)):
        groups.setdefault(root(index), []).append(index)
    return list(groups.values())


def fewest(count: int, works: Callable[[int], bool]) -> int:
    """Return how many parts are enough: 1, 2, 4.. are tried, then halves; 0 is too few, all of them are enough."""
    low, high = 0, 1
    while high < count and not works(high):
        low, high = high, 2 * high
    high = min(high, count)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if works(middle) else (middle, high)
    return high


def noisiest(
    parts: Sequence[Part], noise: Mapping[Part, float], keep: float, worth: Callable[[Part], float]
) -> list[tuple[Part, float]]:
    """Return parts to remove so that at most a share ``keep`` of the noise is left, those of least worth for it first.

    Noise powers of parts are taken to add up (rounding errors are nearly independent), up to a common factor.

    Args:
        parts: what can be removed.
        noise: noise power of each.
        keep: share of the parts' noise that may stay, below 1.
        worth: what a part is worth, positive.
    """
    order = sorted(range(len(parts)), key=lambda i: (-noise[parts[i]] / worth(parts[i]), i))
    left = total = sum(min(noise[part], 1e6) for part in parts)
    chosen: list[tuple[Part, float]] = []
    for index in order:
        if left <= keep * total:
            break
        chosen.append((parts[index], noise[parts[index]]))
        left -= min(noise[parts[index]], 1e6)
    return chosen
