"""Which channels are worth scaling: parts of a graph with what was observed of them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxedge.api import Array, Quantization, Unit, constant

from ..calibration import Observed
from ..emission import Dialect, weight_axis
from ..grids import quantized_values
from .noise import Activation, Layer, Part, best_factors
from .slots import FIXED, Change, Slots

SWEEPS = 6  #: over all parts; one is enough where every weight has a scale per channel
LEAST_GAIN_DB = 3.0  #: of a part's own noise; what gains less is left alone
HEADROOM = 4.0  #: how far under a Clip's bound a channel must have stayed to be scaled


@dataclass(frozen=True, eq=False)
class Plan:
    """Hold factors for all slots, 1 where nothing is to be done.

    Attributes:
        slots: of the graph.
        factors: float64, one for each slot, at its root.
        gains: dB of noise that each part loses by prediction; parts are known by their first slot.
        parts: slots of each part.
        smooth: parts that begin at a normalization or a product by a constant per channel.
    """

    slots: Slots
    factors: Array
    gains: Mapping[int, float]
    parts: Mapping[int, Array]
    smooth: frozenset[int]

    def only(self, wanted: Collection[int]) -> Plan:
        """Return the plan with some of its parts."""
        parts = {key: slots for key, slots in self.parts.items() if key in wanted}
        factors = np.ones_like(self.factors)
        for slots in parts.values():
            factors[slots] = self.factors[slots]
        return Plan(self.slots, factors, {key: self.gains[key] for key in parts}, parts, self.smooth)

    def scaled(self) -> set[str]:
        """Return the names of values of which a channel is scaled."""
        roots, factors = self.slots.roots, self.factors
        return {v.name or "" for v, found in self.slots.of.items() if (factors[roots(found)] != 1.0).any()}

    def changed(self) -> list[tuple[Change, Array]]:
        """Return the constants that change, with what each is multiplied by."""
        found = []
        for change in self.slots.changes:
            makes, reads = self.slots.roots(change.makes), self.slots.roots(change.reads)
            factor = self.factors[makes] / self.factors[reads]
            if (factor != 1.0).any():
                found.append((change, factor))
        return found


def channel_axes(slots: Slots, units: Sequence[Unit], rules: Quantization) -> dict[str, int]:
    """Return the axis of channels of each value that is rounded and carries slots along one axis."""
    wanted = quantized_values(units, rules)
    axes: dict[str, int] = {}
    for value, found in slots.of.items():
        long = [axis for axis, size in enumerate(found.shape) if size > 1]
        size = value.shape[long[0]] if len(long) == 1 and value.shape is not None else None
        if (value.name or "") in wanted and isinstance(size, int):  # not one that each batch has another of
            axes[value.name or ""] = long[0]
    return axes


def make_plan(
    slots: Slots,
    units: Sequence[Unit],
    seen: Mapping[str, Observed],
    rules: Quantization,
    dialect: Dialect,
    kinds: Sequence[str],
) -> Plan:
    """Return the factors that leave the least noise, by what was observed; parts that gain little stay as they are.

    Args:
        slots: of the graph.
        units: that run in integers.
        seen: what was observed of each value, channels included.
        rules, dialect: of the target.
        kinds: ``smooth`` for what begins at a normalization, ``equalize`` for all else.
    """
    count = 1 + max((int(a.max(initial=0)) for a in _arrays(slots)), default=0)
    activations = _activations(slots, units, seen, rules)
    layers = _layers(slots, seen, rules, dialect)
    limits = _limits(slots, seen, activations)
    parts = {int(part.slots[0]): part for part in _parts(activations, layers, limits)}
    smooth = frozenset(_begin_at_scale(slots, parts))
    chosen = {k: p for k, p in parts.items() if ("smooth" if k in smooth else "equalize") in kinds}
    factors, gains = np.ones(count), dict.fromkeys(chosen, 0.0)
    several = any(layer.axis is None for layer in layers)
    for _ in range(SWEEPS if several else 1):
        for key, part in chosen.items():
            factors, gain = best_factors(part, factors)
            gains[key] += gain
    for key, gain in gains.items():
        if gain < LEAST_GAIN_DB:
            factors[chosen[key].slots] = 1.0
    kept = {key: gain for key, gain in gains.items() if gain >= LEAST_GAIN_DB}
    return Plan(slots, factors, kept, {key: chosen[key].slots for key in kept}, smooth)


def _arrays(slots: Slots) -> Iterator[Array]:
    yield from slots.of.values()
    for change in slots.changes:
        yield change.makes
        yield change.reads


def _activations(
    slots: Slots, units: Sequence[Unit], seen: Mapping[str, Observed], rules: Quantization
) -> list[Activation]:
    wanted = quantized_values(units, rules)
    found = []
    for value, array in slots.of.items():
        entry = seen.get(value.name or "")
        if (value.name or "") not in wanted or entry is None or entry.channels is None or not entry.finite:
            continue
        roots = slots.roots(array.reshape(-1))
        if roots.size != entry.channels.low.size or not roots.any():
            continue
        unique, inverse = np.unique(roots, return_inverse=True)
        low, high = np.zeros(unique.size), np.zeros(unique.size)
        np.minimum.at(low, inverse, entry.channels.low.astype(np.float64))
        np.maximum.at(high, inverse, entry.channels.high.astype(np.float64))
        found.append(Activation(unique, low, high, rules.activation_symmetric))
    return found


def _layers(slots: Slots, seen: Mapping[str, Observed], rules: Quantization, dialect: Dialect) -> list[Layer]:
    """Return the weights whose input was observed channel by channel."""
    found = []
    for change in slots.changes:
        if change.role != "weight":
            continue
        array, data = constant(change.node.inputs[change.index]), change.node.inputs[0]
        entry = seen.get((data.name or "") if data is not None else "")
        if array is None or entry is None or entry.channels is None or not entry.finite:
            continue
        power = _power(change.node, array.shape, entry.channels.square)
        if power is None or not np.isfinite(power).all() or not np.isfinite(array).all():
            continue
        kernel = tuple(range(2, array.ndim))
        axis = None if dialect == "per-tensor" else weight_axis(change.node, rules)
        shape = array.shape[:2]
        makes, reads = (_flat(slots.roots(a), shape) for a in (change.makes, change.reads))
        absolute = np.abs(array.astype(np.float64))
        largest, square = absolute.max(axis=kernel, initial=0.0), (absolute**2).sum(axis=kernel)
        taps = int(np.prod(array.shape[2:]))
        found.append(Layer(largest, square, taps, makes, reads, np.broadcast_to(power, shape), axis))
    return found


def _flat(slots: Array, shape: tuple[int, ...]) -> Array:
    """Return slots of a weight without its kernel's axes."""
    return np.broadcast_to(slots.reshape(slots.shape[:2]) if slots.ndim > 2 else slots, shape)


def _power(node: ir.Node, shape: tuple[int, ...], square: Array) -> Array | None:
    """Return the mean square of what each element [A, B] of a weight reads, from that of each input channel."""
    groups = node.attributes.get_int("group", 1) or 1
    if node.op_type == "Conv":
        if square.size != groups * shape[1]:
            return None
        return np.asarray(square.reshape(groups, shape[1]).repeat(shape[0] // groups, axis=0))
    turned = node.op_type == "Gemm" and node.attributes.get_int("transB", False)
    if square.size != shape[1 if turned else 0]:
        return None
    return np.asarray(square[None, :] if turned else square[:, None])


def _limits(slots: Slots, seen: Mapping[str, Observed], activations: Sequence[Activation]) -> dict[int, float]:
    """Return how far slots that run through a Clip to a finite bound may be scaled: not at all if it was near.

    A Clip's own bound is one for all channels. Beyond the calibration samples' values int8 saturates anyway; a scaled
    channel must have stayed under a quarter of the bound.
    """
    limits: dict[int, float] = {}
    for bound in slots.bounds:
        value = bound.node.outputs[0]
        roots = slots.roots(slots.of[value].reshape(-1))
        entry = seen.get(value.name or "")
        high = entry.channels.high if entry is not None and entry.channels is not None and entry.finite else None
        if high is None or high.size != roots.size:
            limits.update(dict.fromkeys((int(r) for r in roots), 1.0))
            continue
        for root, top in zip(roots, high, strict=True):
            limit = bound.high / (HEADROOM * max(float(top), 1e-30))
            limits[int(root)] = min(limits.get(int(root), np.inf), limit)
    return {slot: limit for slot, limit in limits.items() if slot != FIXED}


def _parts(activations: Sequence[Activation], layers: Sequence[Layer], limits: Mapping[int, float]) -> Iterator[Part]:
    """Put slots together that share a value which is rounded, or one weight that is rounded whole."""
    parent: dict[int, int] = {}

    def root(slot: int) -> int:
        while parent.setdefault(slot, slot) != slot:
            slot = parent[slot]
        return slot

    read = {int(s) for layer in layers for s in np.unique(layer.reads)}
    sets = [activation.slots[activation.slots != FIXED] for activation in activations]
    for members in sets:
        for slot in members[1:]:
            low, high = sorted((root(int(members[0])), root(int(slot))))
            parent[high] = low
    groups: dict[int, list[int]] = {}
    for slot in sorted(parent):
        groups.setdefault(root(slot), []).append(slot)
    for members in sets:
        if members.size == 1:
            groups.setdefault(root(int(members[0])), [int(members[0])])
    for group in groups.values():
        inside = np.array(sorted(group))
        own = set(group)
        if not own & read:
            continue
        yield Part(
            inside,
            [a for a in activations if own & {int(s) for s in a.slots}],
            [x for x in layers if np.isin(x.reads if x.axis is not None else (x.reads, x.makes), inside).any()],
            {slot: limit for slot, limit in limits.items() if slot in own},
        )


def _begin_at_scale(slots: Slots, parts: Mapping[int, Part]) -> Iterator[int]:
    made = [slots.roots(change.makes).reshape(-1) for change in slots.changes if change.role == "scale"]
    begin = {int(slot) for array in made for slot in array} - {FIXED}
    for key, part in parts.items():
        if begin & {int(slot) for slot in part.slots}:
            yield key
