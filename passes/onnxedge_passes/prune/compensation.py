"""Mend what a cut breaks: refit every contraction behind it to the original model's outputs, in the graph's order."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from scipy.linalg.lapack import dposv

from onnxedge.api import Array, Context, Feed, constant
from onnxedge_passes.cleanup.control.splice import captured
from onnxedge_passes.prune.groups import Group, Groups
from onnxedge_passes.prune.importance import Surgeon, first_to_go, inverse, unit_rows
from onnxedge_passes.prune.labels import Reader
from onnxedge_passes.prune.linear import (
    Gram,
    Linear,
    bias_vector,
    linear_problem,
    position_count,
    sample_outputs,
    sample_rows,
    weight_array,
    weight_matrix,
)
from onnxedge_passes.prune.statistics import draw
from onnxedge_passes.prune.stream import Stream, held_by_stop

Constants = dict[tuple[ir.Node, int], Array]  #: constant inputs that replace a node's own
_STREAM_BYTES = 3 << 28  #: activations that both streams may hold


@dataclass(frozen=True, eq=False)
class Repaired:
    """What the cut model computes, in the shapes of the whole one.

    Attributes:
        removed: bool [units], what goes.
        constants: weights with zero rows where channels are gone, and the refitted weights and biases.
        refitted: number of contractions refitted.
    """

    removed: Array
    constants: Constants
    refitted: int


def masked_constants(groups: Groups, removed: Array) -> Constants:
    """Return the weights with zeros in the rows of removed channels: the same outputs as the cut model."""
    result: Constants = {}
    for reader in groups.labels.readers:
        gone = removed[groups.units_of(reader.ends)]
        axes, tensor = reader.axes, reader.weight.const_value
        if not gone.any() or tensor is None:
            continue
        weight = tensor.numpy().copy()
        np.moveaxis(weight, axes.input, 0)[gone] = 0
        result[reader.node, axes.index] = weight
    return result


def repair(
    groups: Groups,
    removed: Array,
    feeds: Sequence[Feed],
    context: Context,
    *,
    ridge: float,
    reselect: bool,
    bare: bool = False,
) -> Repaired:
    """Refit the contractions behind a cut by ridge regression, each on what the refitted ones before it give.

    The targets are the original model's outputs; where a contraction's output goes into a residual sum, the sum less
    what the shortcut now carries, so that the drift of the shortcut is mended too. Where the activations of all samples
    do not fit into memory at once, the layers there see fewer of them: as many positions, of fewer samples. Source:
    ridge form of He et al. 2017, arXiv:1707.06168, with residual targets of our own.

    Args:
        groups: of the model.
        removed: bool [units].
        feeds: calibration samples.
        context: for progress, seed and threads.
        ridge: strength of the pull to the old weights, relative to the mean square of the regressors.
        reselect: choose again which units of a group with a single reader go, with the drift seen.
        bare: a block that goes whole leaves no bias: what comes behind makes up for it.
    """
    model, removed = groups.labels.facts.model, removed.copy()
    constants = masked_constants(groups, removed)
    order = {reader: number for number, reader in enumerate(groups.labels.readers)}
    masks = _ancestors(model, order)
    views = {reader: linear_problem(groups, reader) for reader in order}
    changed = _changed(groups, order, masks, removed)
    work = [(reader, view) for reader in order if reader in changed and (view := views[reader]) is not None]
    waiting = {reader for reader, _ in work}
    streams = Pair(model, feeds, _feed_counts(groups, [linear for _, linear in work], feeds), context)
    for (node, index), array in constants.items():
        streams.cut.replace(node, index, array)
    for number, (reader, linear) in enumerate(context.progress.track(work, "prune: refit", len(work))):
        waiting.discard(reader)
        if bare and linear.bias is not None and removed[groups.units_of(reader.ends)].all():
            constants[linear.bias] = bias_vector(linear).astype(constants[reader.node, reader.axes.index].dtype) * 0
            streams.cut.replace(*linear.bias, constants[linear.bias])
            continue
        pending = sum(1 << order[other] for other in waiting)
        shortcut = linear.shortcut if linear.shortcut is None or not masks.get(linear.shortcut, 0) & pending else None
        use_sum = linear.shortcut is not None and shortcut is not None
        target = linear.target if use_sum else linear.output
        rng = np.random.default_rng([context.seed, 1 << 20, number])
        streams.hold(number)
        gram = _gram(linear, *streams.fetch(target, [linear.data, *([shortcut] if shortcut else [])]), rng)
        if not gram.is_finite:
            context.note(reader.node, "not refitted: its data is not finite on some samples")
            continue
        single = [g for g in groups.free if reselect and len(g.ends) == 1 and g.ends[0].reader is reader]
        try:
            weight, bias, removed = _solve(linear, gram, groups, removed, single, ridge)
        except np.linalg.LinAlgError:
            context.note(reader.node, "not refitted: the fit is singular; a larger ridge helps")
            continue
        axes = reader.axes
        constants[reader.node, axes.index] = weight
        if linear.bias is not None and bias is not None:
            constants[linear.bias] = bias
        for key in [(reader.node, axes.index), *([linear.bias] if linear.bias is not None else [])]:
            streams.cut.replace(*key, constants[key])
    return Repaired(removed, constants, len(work))


class Pair:
    """The original and the cut model, side by side through as many samples as fit into memory.

    Attributes:
        original, cut: where they are.
    """

    def __init__(self, model: ir.Model, feeds: Sequence[Feed], counts: Sequence[int], context: Context) -> None:
        """Begin with what the first stop allows.

        Args:
            model: both, until constants are replaced in ``cut``.
            feeds: all calibration samples.
            counts: of them, how many may be held at each stop.
            context: for the threads.
        """
        self._feeds, self._counts, self._count = feeds, counts, counts[0] if counts else len(feeds)
        held = feeds[: self._count]
        self.original, self.cut = (Stream(model, held, threads=context.threads) for _ in range(2))

    def hold(self, stop: int) -> None:
        """Drop samples where the next stop has room for fewer, and take up others where it has for many more."""
        before, count = self._count, self._counts[stop]
        if count > before and (count >= 1.5 * before or count == len(self._feeds)):
            more = self._feeds[before:count]
            self.original.join(more)
            self.cut.join(more)
            self._count = count
        elif count < before:
            self.original.keep(count)
            self.cut.keep(count)
            self._count = count

    def fetch(self, target: ir.Value, others: Sequence[ir.Value]) -> tuple[list[Array], list[list[Array]]]:
        """Return a value of the original, and some of the cut model, one array per sample."""
        return self.original.fetch([target])[0], self.cut.fetch(others)


def _feed_counts(groups: Groups, work: Sequence[Linear], feeds: Sequence[Feed]) -> list[int]:
    """Return how many feeds both streams may hold while each contraction is refitted."""
    facts = groups.labels.facts
    stops = {value for linear in work for value in (linear.data, linear.target)}
    held = held_by_stop(facts.model, facts.shapes, stops)
    inputs = [value for value in facts.model.graph.inputs if value.name in feeds[0]]
    one = sum(math.prod(facts.shapes[value]) for value in inputs)
    share = max(sum(array.size for array in feed.values()) for feed in feeds) / max(one, 1)
    most = [max(held.get(linear.data, 0), held.get(linear.target, 0)) for linear in work]
    return [min(len(feeds), max(1, int(_STREAM_BYTES / max(2 * share * size, 1)))) for size in most]


def _ancestors(model: ir.Model, order: Mapping[Reader, int]) -> dict[ir.Value, int]:
    """Return for each value the set (as bits) of contractions that it depends on."""
    number = {reader.node: n for reader, n in order.items()}
    masks: dict[ir.Value, int] = {}
    for node in model.graph:
        mask = 1 << number[node] if node in number else 0
        for value in (*node.inputs, *captured(node)):
            mask |= masks.get(value, 0) if value is not None else 0
        for value in node.outputs:
            masks[value] = mask
    return masks


def _changed(groups: Groups, order: Mapping[Reader, int], masks: Mapping[ir.Value, int], removed: Array) -> set[Reader]:
    """Return the contractions that lose rows or whose data has drifted."""
    found: set[Reader] = set()
    bits = 0
    for reader, number in order.items():
        data = reader.data
        if removed[groups.units_of(reader.ends)].any() or (data is not None and masks.get(data, 0) & bits):
            found.add(reader)
            bits |= 1 << number
    return found


def _gram(linear: Linear, targets: list[Array], arrays: list[list[Array]], rng: np.random.Generator) -> Gram:
    """Sum over the feeds: regressors from the cut model, targets from the original less the cut model's shortcut."""
    gram = Gram(linear)
    data = arrays[0]
    for k, target in enumerate(targets):
        positions = draw(rng, position_count(linear, data[k], target.shape), len(targets))
        wanted = sample_outputs(linear, target, positions)
        if len(arrays) > 1:
            wanted = wanted - sample_outputs(linear, arrays[1][k], positions)
        if not gram.with_bias:
            wanted = wanted - bias_of_output(linear).astype(np.float32)
        gram.add(sample_rows(linear, data[k], target.shape, positions), wanted)
    return gram


def bias_of_output(linear: Linear) -> Array:
    """Return what the contraction adds besides its product where the bias is not refitted."""
    node = linear.reader.node
    held = constant(node.inputs[2]) if node.op_type != "MatMul" and len(node.inputs) > 2 else None
    return np.zeros(1) if held is None else held.astype(np.float64).reshape(-1)


def _solve(
    linear: Linear, gram: Gram, groups: Groups, removed: Array, single: Sequence[Group], ridge: float
) -> tuple[Array, Array | None, Array]:
    """Return weight, bias and what is removed: ``(A + R)^-1 (B + R M_old)`` on the rows that stay."""
    tensor = linear.reader.weight.const_value
    assert tensor is not None
    old = weight_matrix(linear, tensor.numpy())
    if gram.with_bias:
        old = np.concatenate([old, bias_vector(linear)[None]])
    diagonal = gram.ridge(ridge)
    pull = gram.b / max(gram.count, 1) + diagonal[:, None] * old
    cut = [group for group in single if 0 < removed[group.units].sum() < len(group.units)]
    if cut:
        removed = _reselected(cut, linear, gram, diagonal, pull, groups, removed)
    keep = _rows_left(linear, gram, groups, removed)
    fitted = np.zeros_like(old)
    if len(keep):
        shifted = gram.mean(keep)
        shifted[np.diag_indices(len(keep))] += diagonal[keep]
        _, fitted[keep], failed = dposv(shifted.T, pull[keep], lower=True, overwrite_a=True)
        if failed:
            raise np.linalg.LinAlgError("not positive definite")
    weight = weight_array(linear, fitted[: linear.rows], tensor.numpy())
    return weight, fitted[-1].astype(weight.dtype) if gram.with_bias else None, removed


def _rows_left(linear: Linear, gram: Gram, groups: Groups, removed: Array) -> Array:
    """Return the regressors that stay, the constant 1 among them."""
    gone = np.repeat(removed[groups.units_of(linear.reader.ends)], linear.kernel)
    return np.flatnonzero(np.concatenate([~gone, np.ones(int(gram.with_bias), bool)]))


def _reselected(
    cut: Sequence[Group], linear: Linear, gram: Gram, diagonal: Array, pull: Array, groups: Groups, removed: Array
) -> Array:
    """Choose as many units of some groups anew, by their cost on the data as it has drifted.

    Args:
        cut: groups that this contraction alone reads.
        linear: the contraction.
        gram: of its inputs in the cut model.
        diagonal: [R], what is added to the mean of that.
        pull: [R, Co], the right side of the fit.
        groups: of the model.
        removed: bool [units], as it was chosen before.
    """
    whole, result = removed.copy(), removed.copy()
    for group in cut:
        whole[group.units] = False
    alive = _rows_left(linear, gram, groups, whole)
    h = inverse(gram.mean(alive), diagonal[alive])
    w = h @ pull[alive]
    for group in cut:
        surgeon = Surgeon(h, w, np.searchsorted(alive, unit_rows(group.ends[0], linear)))
        order = first_to_go(surgeon, len(group.units), int(removed[group.units].sum()))
        result[group.units] = False
        result[group.units[order]] = True
    return result
