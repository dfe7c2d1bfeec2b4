"""Mend what a cut breaks: refit every contraction behind it to the original model's outputs, in the graph's order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from scipy.linalg import cho_factor, cho_solve

from onnxedge.api import Array, Context, Feed, constant
from onnxedge_passes.prune.groups import Group, Groups
from onnxedge_passes.prune.importance import Surgeon, brain_surgeon_on, inverse
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
from onnxedge_passes.prune.stream import Stream

Constants = dict[tuple[ir.Node, int], Array]  #: constant inputs that replace a node's own


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
    what the shortcut now carries, so that the drift of the shortcut is mended too. Source: ridge form of
    He et al. 2017, arXiv:1707.06168, with residual targets of our own.

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
    original, cut = (Stream(model, feeds, threads=context.threads) for _ in range(2))
    for (node, index), array in constants.items():
        cut.replace(node, index, array)
    waiting = {reader for reader in changed if views[reader] is not None}
    work = [reader for reader in order if reader in waiting]
    for number, reader in enumerate(context.progress.track(work, "prune: refit", len(work))):
        linear = views[reader]
        waiting.discard(reader)
        if linear is None:
            continue
        if bare and linear.bias is not None and removed[groups.units_of(reader.ends)].all():
            constants[linear.bias] = bias_vector(linear).astype(constants[reader.node, reader.axes.index].dtype) * 0
            cut.replace(*linear.bias, constants[linear.bias])
            continue
        pending = sum(1 << order[other] for other in waiting)
        shortcut = linear.shortcut if linear.shortcut is None or not masks.get(linear.shortcut, 0) & pending else None
        use_sum = linear.shortcut is not None and shortcut is not None
        target = linear.target if use_sum else linear.output
        rng = np.random.default_rng([context.seed, 1 << 20, number])
        gram = _gram(
            linear, original.fetch([target])[0], cut.fetch([linear.data, *([shortcut] if shortcut else [])]), rng
        )
        if not gram.is_finite:
            context.note(reader.node, "not refitted: its data is not finite on some samples")
            continue
        single = [g for g in groups.free if reselect and len(g.ends) == 1 and g.ends[0].reader is reader]
        weight, bias, removed = _solve(linear, gram, groups, removed, single, ridge)
        axes = reader.axes
        constants[reader.node, axes.index] = weight
        if linear.bias is not None and bias is not None:
            constants[linear.bias] = bias
        for key in [(reader.node, axes.index), *([linear.bias] if linear.bias is not None else [])]:
            cut.replace(*key, constants[key])
    return Repaired(removed, constants, len(work))


def _ancestors(model: ir.Model, order: Mapping[Reader, int]) -> dict[ir.Value, int]:
    """Return for each value the set (as bits) of contractions that it depends on."""
    number = {reader.node: n for reader, n in order.items()}
    masks: dict[ir.Value, int] = {}
    for node in model.graph:
        mask = 1 << number[node] if node in number else 0
        for value in node.inputs:
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
    a, b = gram.a / max(gram.count, 1), gram.b / max(gram.count, 1)
    diagonal = gram.ridge(ridge)
    if any(removed[group.units].any() and not removed[group.units].all() for group in single):
        h = inverse(a, diagonal)
        w = h @ (b + diagonal[:, None] * old)
        for group in single:
            removed = _reselected(group, linear, Surgeon(h, w), removed)
    gone = np.repeat(removed[groups.units_of(linear.reader.ends)], linear.kernel)
    keep = np.flatnonzero(np.concatenate([~gone, np.ones(int(gram.with_bias), bool)]))
    fitted = np.zeros_like(old)
    if len(keep):
        shifted = a[np.ix_(keep, keep)] + np.diag(diagonal[keep])
        fitted[keep] = cho_solve(cho_factor(shifted, lower=True), b[keep] + diagonal[keep, None] * old[keep])
    weight = weight_array(linear, fitted[: linear.rows], tensor.numpy())
    return weight, fitted[-1].astype(weight.dtype) if gram.with_bias else None, removed


def _reselected(group: Group, linear: Linear, surgeon: Surgeon, removed: Array) -> Array:
    """Choose as many units of a group anew, by their cost on the data as it has drifted."""
    count = int(removed[group.units].sum())
    if count in (0, len(group.units)):
        return removed
    order = brain_surgeon_on(group, group.ends[0], linear, surgeon, count)
    result = removed.copy()
    result[group.units] = False
    result[group.units[order]] = True
    return result
