"""Try a removal before it is made: the masked model's answers, and the cut model's time on the clock."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxedge.api import Array, CannotRun, Feed, PassError, Session, constant, forked
from onnxedge_passes.prune.compensation import Constants
from onnxedge_passes.prune.cut import Cut
from onnxedge_passes.prune.groups import Groups
from onnxedge_passes.prune.statistics import with_constants
from onnxedge_passes.prune.surgery import Remnant, apply, leave_bias

_TURNS, _LEAST_TURNS, _SECONDS = 600, 12, 3.0  #: of one comparison on the clock
Remnants = Sequence[Sequence[Remnant] | None]  #: by free group, see :func:`onnxedge_passes.prune.surgery.remnants`


def masked(model: ir.Model, constants: Constants) -> ir.Model:
    """Return a copy of a model with some constant inputs replaced."""
    return with_constants(model, constants)[0]


def carry_out(groups: Groups, remnants: Remnants, removed: Array, constants: Constants) -> int:
    """Cut a model; where a group goes as a whole its block's bias is left.

    Args:
        groups: of the model, which is edited.
        remnants: what is left of each group that goes whole.
        removed: bool [units], what goes.
        constants: weights and biases that replace the model's own, in their whole shapes.

    Returns:
        Number of constants and nodes changed.

    Raises:
        PassError: a node cannot follow.
    """
    cut = Cut(groups, removed)
    if cut.failures:
        raise PassError("prune", f"{cut.failures[0][2]}: {cut.failures[0][0].name}")
    left = [
        remnant
        for group, own in zip(groups.free, remnants, strict=True)
        if own is not None and removed[group.units].all()
        for remnant in own
    ]
    ranks = [len(groups.labels.facts.shapes[remnant.add.outputs[0]]) for remnant in left]
    rewrites = apply(cut, constants)
    for remnant, rank in zip(left, ranks, strict=True):
        leave_bias(remnant, rank)
    return rewrites


class Clock:
    """Time cut models in turns with the whole one."""

    def __init__(self, groups: Groups, remnants: Remnants, feed: Feed, threads: int, *, bare: bool = False) -> None:
        """Load the whole model.

        Args:
            groups, remnants: of the model, which stays as it is.
            feed: one sample.
            threads: for the runtime.
            bare: blocks that go whole leave no bias.
        """
        self._bare = bare
        self._groups, self._remnants, self._feed, self._threads = groups, remnants, feed, threads
        self._whole = Session(groups.labels.facts.model, threads=threads)

    def ratio(self, removed: Array) -> float:
        """Return the time of the model without some units over that of the whole one.

        What the weights are does not matter, so nothing needs to be refitted.
        """
        groups, remnants = self._twin()
        carry_out(groups, remnants, removed, _zeros(groups, remnants, removed) if self._bare else {})
        try:
            cut = Session(groups.labels.facts.model, threads=self._threads)
        except CannotRun as err:
            raise PassError("prune", f"the cut model does not load: {err}") from err
        return in_turns(self._whole, cut, self._feed, threads=self._threads)

    def _twin(self) -> tuple[Groups, Remnants]:
        """Return the groups of a copy of the model."""
        model = self._groups.labels.facts.model
        twin, _ = forked(model)
        memo: dict[int, object] = {id(model): twin}
        for mine, other in zip(model.graph.all_nodes(), twin.graph.all_nodes(), strict=True):
            memo[id(mine)] = other
            memo.update((id(a), b) for a, b in zip(mine.outputs, other.outputs, strict=True))
        for mine_value, value in zip(model.graph.inputs, twin.graph.inputs, strict=True):
            memo[id(mine_value)] = value
        for name, value in model.graph.initializers.items():
            memo[id(value)] = twin.graph.initializers[name]
        groups, remnants = copy.deepcopy((self._groups, self._remnants), memo)
        return groups, remnants


def _zeros(groups: Groups, remnants: Remnants, removed: Array) -> Constants:
    """Return the biases of the blocks that go whole as zeros."""
    found: Constants = {}
    for group, own in zip(groups.free, remnants, strict=True):
        for node, index in (remnant.bias for remnant in own or () if remnant.bias is not None):
            bias = constant(node.inputs[index]) if index < len(node.inputs) else None
            if bias is not None and removed[group.units].all():
                found[node, index] = np.zeros_like(bias)
    return found


def in_turns(first: Session, second: Session, feed: Feed, *, threads: int = 1) -> float:
    """Return the time of the second over that of the first: the faster quarter of each, run in turns.

    On one thread it is the time of the processor, which other processes on the machine hardly disturb.
    """
    clock = time.thread_time if threads == 1 else time.perf_counter
    times: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + _SECONDS
    while len(times[0]) < _LEAST_TURNS or (time.perf_counter() < end and len(times[0]) < _TURNS):
        for session, found in zip((first, second), times, strict=True):
            start = clock()
            session.run(feed)
            found.append(clock() - start)
    before, after = (sum(sorted(found)[: len(found) // 4]) for found in times)
    return after / before
