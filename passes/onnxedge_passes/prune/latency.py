"""What widths cost on the clock: a table of layers timed in ONNX Runtime, kept on disk."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxedge.api import Array, CannotRun, Context, Feed, KernelTime, cache_folder, kernel_times
from onnxedge_passes.prune.costs import Width
from onnxedge_passes.prune.groups import Groups
from onnxedge_passes.prune.layers import Branches, Layer, Point, branch_of, layers

_LEVELS = (1.0, 0.75, 0.5, 0.25, 0.0)  #: shares of the widths that are timed; in between is interpolated
_WEIGHT_BYTES = 48 << 20  #: weights of one small model
_TRUSTED = 4.0  #: a contraction that takes so many times as long inside of the model is not the one meant
_REST = 0.04  #: share of the time that no width changes, at least: a run begins and ends
_ROUNDS = 100  #: runs of a small model; the faster quarter counts
_LEAST_SECONDS, _MOST_SECONDS = 0.3, 1.0  #: that they may take
_MOVES = ("ReorderInput", "ReorderOutput")  #: a change of layout that a chain of layers does not have


@dataclass(frozen=True, eq=False)
class Grid:
    """Times of a layer at some widths of its two axes, and between them.

    Attributes:
        inner, outer: rising widths of the input and the output axis of the weight.
        times: float64 [inner, outer].
    """

    inner: Array
    outer: Array
    times: Array

    def at(self, inner: int, outer: int) -> float:
        """Return the time."""
        rows = [np.interp(outer, self.outer, row) for row in self.times]
        return float(np.interp(inner, self.inner, rows))

    def scaled(self, factor: float) -> Grid:
        """Return times that are all so many times as long."""
        return Grid(self.inner, self.outer, self.times * factor)


class Timed:
    """Know the time of each contraction at any widths, and that of all the rest, in one unit.

    Attributes:
        grids: by number of the contraction in ``groups.costs``.
        rest: what the model takes besides.
        timed: layers timed now; the others were known.
        guessed: contractions whose time is taken to go with their multiply-accumulates.
    """

    def __init__(
        self, groups: Groups, choices: Sequence[Sequence[int]], feed: Feed, context: Context, seconds: float
    ) -> None:
        """Time what is not in the table.

        Args:
            groups: of the model.
            choices: units that each free group may keep.
            feed: one sample.
            context: for the threads and the progress.
            seconds: when to stop timing layers.
        """
        self._groups, self._context = groups, context
        self.timed = self.guessed = 0
        model = groups.labels.facts.model
        found = layers(groups)
        reference = self._reference(model)
        self.grids = self._grids(found, choices, time.monotonic() + seconds, reference)
        self._full = [len(group.units) for group in groups.free]
        kernels = kernel_times(model, feed, threads=context.threads, rounds=_ROUNDS)
        whole = sum(kernel.us for kernel in kernels)
        self._guess(whole)
        self._place(found, kernels)
        self._parts = sum(self.at(number, *self._ends(number)) for number in self.grids)
        self._scale(min(1.0, (1 - _REST) * whole / max(self._parts, 1e-9)))
        self.rest = whole - self._parts

    def at(self, number: int, inner: int, outer: int) -> float:
        """Return the time of a contraction and of what goes with it, for lengths of its axes; 0 where one is 0."""
        if not inner or not outer:
            return 0.0
        return self.grids[number].at(inner, outer) + self._beside.get(number, 0.0) * outer / self._ends(number)[1]

    def _ends(self, number: int) -> tuple[int, int]:
        """Return the whole lengths of a contraction's axes."""
        cost = self._groups.costs[number]
        return cost.input.at(self._full), cost.output.at(self._full)

    def _place(self, found: Sequence[Layer | None], kernels: Sequence[KernelTime]) -> None:
        """Find each contraction among the nodes that the runtime runs: it takes the time that it takes there.

        The nodes up to the next one (changes of layout, sums that were not fused) go with it, by its output's width.
        """
        names: dict[str, int] = {}
        for number, layer in enumerate(found):
            for node in (layer.reader.node, *layer.followers) if layer is not None else ():
                names.update(dict.fromkeys([name for name in (node.name, node.outputs[0].name) if name], number))
        own: dict[int, float] = {}
        self._beside: dict[int, float] = {}
        last: int | None = None
        for kernel in kernels:
            meant = names.get(kernel.name.removesuffix("_nchwc"))
            place = own if meant is not None and meant not in own else self._beside
            last = meant if meant is not None else last
            if last is not None:
                place[last] = place.get(last, 0.0) + kernel.us
        for number, us in own.items():
            alone = self.grids[number].at(*self._ends(number))
            scale = us / max(alone, 1e-9)
            if 1 / _TRUSTED < scale < _TRUSTED:
                self.grids[number] = self.grids[number].scaled(scale)

    def _scale(self, factor: float) -> None:
        self.grids = {number: grid.scaled(factor) for number, grid in self.grids.items()}
        self._beside = {number: us * factor for number, us in self._beside.items()}
        self._parts *= factor

    def _reference(self, model: ir.Model) -> float:
        small, feed = _branches(model).model()
        return max(
            k.us
            for k in kernel_times(small, feed, threads=self._context.threads, rounds=_ROUNDS)
            if branch_of(k.name) == -1
        )

    def _grids(
        self, found: Sequence[Layer | None], choices: Sequence[Sequence[int]], end: float, reference: float
    ) -> dict[int, Grid]:
        """Return the grids that are known or can be timed until ``end``, those of the most work first."""
        costs, model = self._groups.costs, self._groups.labels.facts.model
        wanted: dict[str, tuple[Layer, set[Point]]] = {}
        work: dict[str, float] = {}
        axes: dict[int, tuple[list[int], list[int]]] = {}
        for number, layer in enumerate(found):
            if layer is None:
                continue
            axes[number] = (levels(costs[number].input, choices), levels(costs[number].output, choices))
            points = {(i, o) for i in axes[number][0] for o in axes[number][1]}
            wanted.setdefault(layer.key, (layer, set()))[1].update(points)
            work[layer.key] = work.get(layer.key, 0.0) + costs[number].macs * layer.width
        table = Table(self._context.threads)
        order = sorted(wanted, key=lambda key: -work[key])
        for place, key in enumerate(self._context.progress.track(order, "prune: timing layers", len(order))):
            layer, points = wanted[key]
            missing = sorted(points - set(table.known(key)))
            if missing and (left := end - time.monotonic()) > 0:
                seconds = min(max(left / (len(order) - place), _LEAST_SECONDS), _MOST_SECONDS)
                with contextlib.suppress(CannotRun):
                    table.add(key, _time(model, layer, missing, self._context.threads, seconds))
                    self.timed += len(missing)
                    table.save()  # what is timed stays, also when the run is stopped
        grids = {}
        for number, layer in enumerate(found):
            known = table.known(layer.key) if layer is not None else {}
            inner, outer = axes.get(number, ([], []))
            if known and all((i, o) in known for i in inner for o in outer):
                times = np.array([[known[i, o] for o in outer] for i in inner]) * reference
                grids[number] = Grid(np.array(inner), np.array(outer), times)
        return grids

    def _guess(self, whole: float) -> None:
        """Take the time of what is not timed to go with its multiply-accumulates."""
        ends = {number: self._ends(number) for number in range(len(self._groups.costs))}
        size = {number: self._groups.costs[number].macs * inner * outer for number, (inner, outer) in ends.items()}
        missing = [number for number in size if number not in self.grids]
        done = sum(size[number] for number in self.grids)
        known = sum(grid.at(*ends[number]) for number, grid in self.grids.items())
        speed = known / done if done else 0.9 * whole / max(sum(size.values()), 1)
        self.guessed = len(missing)
        for number in missing:
            corners = np.outer([0.0, 1.0], [0.0, 1.0]) * size[number] * speed
            self.grids[number] = Grid(np.array([0, ends[number][0]]), np.array([0, ends[number][1]]), corners)


def levels(width: Width, choices: Sequence[Sequence[int]]) -> list[int]:
    """Return the lengths of an axis that are timed, rising: those of the choices next to each of ``_LEVELS``."""
    found = set()
    for level in _LEVELS:
        kept = [min((c for c in own if c), key=lambda c: abs(c - level * max(own))) if own else 0 for own in choices]
        found.add(width.at(kept))
    return sorted(length for length in found if length)


def _branches(model: ir.Model) -> Branches:
    return Branches(dict(model.graph.opset_imports), model.ir_version)


def _time(model: ir.Model, layer: Layer, points: Sequence[Point], threads: int, seconds: float) -> dict[Point, float]:
    """Time a layer at some widths, in turns, as multiples of the reference's time in the same turns."""
    found: dict[Point, float] = {}
    waiting = list(points)
    while waiting:
        branches = _branches(model)
        taken: list[Point] = []
        while waiting and (not taken or branches.bytes < _WEIGHT_BYTES):
            branches.add(len(taken), layer, waiting[-1])
            taken.append(waiting.pop())
        small, feed = branches.model()
        sums: dict[int, float] = {}
        for kernel in kernel_times(small, feed, threads=threads, rounds=_ROUNDS, seconds=seconds):
            number = branch_of(kernel.name)
            if number is not None and kernel.op_type not in _MOVES:
                sums[number] = sums.get(number, 0.0) + kernel.us
        for number, point in enumerate(taken):
            if number in sums:
                found[point] = sums[number] / max(sums.get(-1, 0.0), 1e-3)
    return found


class Table:
    """Times of layers by their key and widths, in a file of the user's cache for this processor and runtime."""

    def __init__(self, threads: int) -> None:
        import onnxruntime

        name = f"{_processor()}-ort-{onnxruntime.__version__}-threads-{threads}.json"
        self._path = cache_folder() / "latency" / "".join(c if c.isalnum() or c in "-." else "-" for c in name)
        self._times: dict[str, dict[str, float]] = {}
        with contextlib.suppress(OSError, ValueError):
            read = json.loads(self._path.read_text("utf-8"))
            if isinstance(read, dict):
                self._times = read

    def known(self, key: str) -> Mapping[Point, float]:
        """Return the times of a layer."""
        found = self._times.get(key, {})
        with contextlib.suppress(AttributeError, ValueError, TypeError):  # a file that somebody else wrote
            return {
                (int(i), int(o)): float(us) for (i, o), us in ((k.split("x"), us) for k, us in found.items()) if us > 0
            }
        return {}

    def add(self, key: str, times: Mapping[Point, float]) -> None:
        """Add times of a layer."""
        self._times[key] = {f"{i}x{o}": round(us, 5) for (i, o), us in (dict(self.known(key)) | dict(times)).items()}

    def save(self) -> None:
        """Write the file; a cache that cannot be written is done without."""
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            partial = self._path.with_suffix(f".{os.getpid()}")
            partial.write_text(json.dumps(self._times), "utf-8")
            os.replace(partial, self._path)


@cache
def _processor() -> str:
    """Name the processor and the widest vectors that it has: kernels are chosen by them."""
    facts: dict[str, str] = {}
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = facts.get("flags", "").split()
    widest = next((flag for flag in ("avx512f", "avx2", "avx") if flag in flags), "")
    return f"{facts.get('model name') or platform.processor() or platform.machine()} {widest}".strip()
