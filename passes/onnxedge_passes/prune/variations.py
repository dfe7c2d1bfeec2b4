"""The model with one group narrowed, or all of them: what ``onnxedge sensitivity`` measures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from scipy.linalg import cho_factor, cho_solve

from onnxedge.api import Array, Context, Part, UserError, constant, find_importance, forked
from onnxedge_passes.prune.allocation import widths
from onnxedge_passes.prune.branches import close_branches
from onnxedge_passes.prune.compensation import Constants, masked_constants
from onnxedge_passes.prune.importance import curves
from onnxedge_passes.prune.labels import Reader
from onnxedge_passes.prune.linear import Gram, Linear, bias_vector, weight_array, weight_matrix
from onnxedge_passes.prune.prune import analyse, prepare
from onnxedge_passes.prune.run import Pruning
from onnxedge_passes.prune.statistics import BY_WEIGHTS, Statistics
from onnxedge_passes.prune.stored import restore
from onnxedge_passes.prune.surgery import remnants
from onnxedge_passes.prune.taylor import find_slopes
from onnxedge_passes.prune.trial import carry_out

if TYPE_CHECKING:
    from onnxedge_passes.prune.prune import Prune


class Widths:
    """Cut groups to a share of their widths, chosen and rounded as the pass's options say.

    A group that is cut alone has its readers refitted to what they gave, from statistics that are taken once; the drift
    behind them is mended only where it is asked to be thorough. All groups at once are repaired as the pass does it.

    Attributes:
        parts: the groups that can be cut, in the graph's order.
        ratios: None, any share of the units can be kept.
    """

    ratios: tuple[float, ...] | None = None

    def __init__(self, options: Prune, model: ir.Model, context: Context, *, thorough: bool) -> None:
        """Find the groups and measure which of their units matter least.

        Raises:
            CannotRun: the runtime does not run the model.
            UserError: no group can be cut.
        """
        gammas = prepare(model, context, options.samples)
        self._options, self._context, self._model, self._thorough = options, context, model, thorough
        self._groups = groups = analyse(model, context)
        if not groups.free:
            raise UserError("prune: no channels of this model can be removed; onnxedge inspect --groups says why")
        self._pruning = Pruning(options, groups, gammas, context)
        self._statistics: Statistics | None = None
        if options.repair != "none" or options.importance not in BY_WEIGHTS:
            self._statistics = Statistics(groups, self._pruning.fit, context)
        score = None if options.importance == "obs" else find_importance(options.importance)
        slopes = find_slopes(options.importance, groups, self._pruning.fit, context)
        self._curves = curves(groups, score, self._statistics, gammas, options.ridge, slopes=slopes, seed=context.seed)
        self.parts = tuple(Part(group.name, len(group.units) * group.channels) for group in groups.free)

    def kept(self, part: int | None, ratio: float) -> int:
        """Return how many channels stay of a group, or of all."""
        counts = self._counts(part, ratio)
        groups = self._groups.free
        numbers = range(len(groups)) if part is None else (part,)
        return sum(counts[number] * groups[number].channels for number in numbers)

    def model(self, part: int | None, ratio: float) -> ir.Model:
        """Return a cut copy."""
        removed = np.zeros(len(self._groups.component), bool)
        for group, count, curve in zip(self._groups.free, self._counts(part, ratio), self._curves, strict=True):
            removed[group.units[curve.order[: len(group.units) - count]]] = True
        if self._options.repair == "none":
            constants = masked_constants(self._groups, removed)
        elif part is None or self._thorough:
            repaired = self._pruning.repair(removed)
            removed, constants = repaired.removed, repaired.constants
        else:
            constants = self._refitted(removed)
        copy, _ = forked(self._model)
        twin = dict(zip(self._model.graph, copy.graph, strict=True))
        groups = analyse(copy, self._context)
        moved = {(twin[node], index): array for (node, index), array in constants.items()}
        carry_out(groups, remnants(groups), removed, moved)
        restore(copy)
        close_branches(copy)
        return copy

    def _counts(self, part: int | None, ratio: float) -> list[int]:
        """Return the kept units of each group: the width nearest to the ratio that the target likes."""
        multiple, exact = self._options.multiple or self._context.target.channel_multiple, bool(self._options.multiple)
        counts = []
        for number, group in enumerate(self._groups.free):
            full = len(group.units)
            allowed = widths(group, multiple, may_vanish=False, exact=exact)
            is_cut = part is None or part == number
            counts.append(min(allowed, key=lambda count: abs(count - ratio * full)) if is_cut else full)
        return counts

    def _refitted(self, removed: Array) -> Constants:
        """Return the weights with zeros where channels are gone, the others refitted to the same outputs."""
        constants = masked_constants(self._groups, removed)
        assert self._statistics is not None
        for group in self._groups.free:
            if not removed[group.units].any():
                continue
            for reader in (end.reader for end in group.ends):
                gone = removed[self._groups.units_of(reader.ends)]
                gram = self._statistics.gram(reader, group)
                if gram is not None and not gone.all() and gram.is_finite:
                    constants |= self._least_squares(reader, gram, self._statistics.linear[reader], gone)
        return constants

    def _least_squares(self, reader: Reader, gram: Gram, linear: Linear, gone: Array) -> Constants:
        """Solve ``(A + R) M = A M_old + R M_old`` on the rows that stay, A the Gram matrix of all."""
        held = constant(reader.weight)
        assert held is not None
        old = weight_matrix(linear, held)
        if gram.with_bias:
            old = np.concatenate([old, bias_vector(linear)[None]])
        a, diagonal = gram.a / max(gram.count, 1), gram.ridge(self._options.ridge)
        stays = np.concatenate([np.repeat(~gone, linear.kernel), np.ones(int(gram.with_bias), bool)])
        keep = np.flatnonzero(stays)
        shifted = a[np.ix_(keep, keep)] + np.diag(diagonal[keep])
        fitted = np.zeros_like(old)
        fitted[keep] = cho_solve(cho_factor(shifted, lower=True), a[keep] @ old + diagonal[keep, None] * old[keep])
        found: Constants = {(reader.node, reader.axes.index): weight_array(linear, fitted[: linear.rows], held)}
        if gram.with_bias and linear.bias is not None:
            found[linear.bias] = fitted[-1].astype(held.dtype)
        return found
