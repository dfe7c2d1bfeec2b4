"""Try a removal before it is made: the masked model's answers, and the cut model's time on the clock."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from statistics import median

import numpy as np
import onnx_ir as ir

from onnxedge.api import (
    Array,
    CannotRun,
    Context,
    Feed,
    PassError,
    Session,
    constant,
    find_pass,
    forked,
    refresh_scopes,
)
from onnxedge_passes.prune.branches import close_branches
from onnxedge_passes.prune.compensation import Constants
from onnxedge_passes.prune.cut import Cut
from onnxedge_passes.prune.groups import Groups
from onnxedge_passes.prune.statistics import with_constants
from onnxedge_passes.prune.surgery import Remnant, apply, leave_bias

_TURNS, _LEAST_TURNS, _SECONDS = 1200, 12, 3.0  #: of one comparison on the clock
_FEW = 16  #: samples for the passes behind a cut
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

    def __init__(
        self,
        groups: Groups,
        remnants: Remnants,
        feed: Feed,
        context: Context,
        *,
        bare: bool = False,
        behind: Sequence[str] = (),
    ) -> None:
        """Load the whole model.

        Args:
            groups, remnants: of the model, which stays as it is.
            feed: one sample.
            context: for the threads, and what the passes behind need.
            bare: blocks that go whole leave no bias.
            behind: names of passes that are run on a cut model before it is timed.
        """
        self._bare, self._behind = bare, behind
        self._groups, self._remnants, self._feed, self._context = groups, remnants, feed, context
        whole, _ = forked(groups.labels.facts.model)
        close_branches(whole)
        self._whole = Session(whole, threads=context.threads)

    def ratio(self, removed: Array) -> float:
        """Return the time of the model without some units over that of the whole one.

        What the weights are does not matter, so nothing needs to be refitted.
        """
        groups, remnants = self._twin()
        carry_out(groups, remnants, removed, _zeros(groups, remnants, removed) if self._bare else {})
        model = groups.labels.facts.model
        close_branches(model)
        self._run_behind(model)
        try:
            cut = Session(model, threads=self._context.threads)
        except CannotRun as err:
            raise PassError("prune", f"the cut model does not load: {err}") from err
        return in_turns(self._whole, cut, self._feed, threads=self._context.threads)

    def _run_behind(self, model: ir.Model) -> None:
        context = self._context
        for name in self._behind:
            few = context.calibration.slice(0, _FEW)
            quiet = Context(context.target, few, original=model.clone(), seed=context.seed, threads=context.threads)
            quiet.begin(name)
            refresh_scopes(model)
            find_pass(name)().run(model, quiet)

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


def check(whole: ir.Model, cut: ir.Model, feed: Feed, threads: int) -> None:
    """Compare a cut model with the masked one, which must compute the same.

    Raises:
        PassError: an output differs.
    """
    wanted, found = (Session(model, threads=threads, level="disable").run(feed) for model in (whole, cut))
    for name, array in wanted.items():
        if array.dtype.kind != "f" or not array.size:
            continue
        scale = float(np.abs(array[np.isfinite(array)]).max(initial=0.0)) or 1.0
        if found[name].shape != array.shape or not np.allclose(
            found[name], array, rtol=1e-2, atol=1e-3 * scale, equal_nan=True
        ):
            raise PassError("prune", f"output {name!r} of the cut model differs from the masked model's")


def in_turns(first: Session, second: Session, feed: Feed, *, threads: int = 1) -> float:
    """Return the time of the second over that of the first, which run in turns, each first in every other turn.

    On one thread it is the median over the turns of the ratio of processor times. Beside two busy processes that
    differs from call to call by 0.7 % (standard deviation), where the faster quarter of the processor times differs by
    1.2 %, of the wall times by 1.8 %, and the median of the wall times by 3.5 %. On several threads, whose processor
    times say little, it is the faster quarter of the wall times.
    """
    clock = time.thread_time if threads == 1 else time.perf_counter
    times: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + _SECONDS
    while len(times[0]) < _LEAST_TURNS or (time.perf_counter() < end and len(times[0]) < _TURNS):
        pairs = list(zip((first, second), times, strict=True))
        for session, found in pairs if len(times[0]) % 2 else reversed(pairs):
            start = clock()
            session.run(feed)
            found.append(clock() - start)
    if threads == 1:
        return median(after / max(before, 1e-9) for before, after in zip(*times, strict=True))
    fast, faster = (sum(sorted(found)[: len(found) // 4]) for found in times)
    return faster / fast
