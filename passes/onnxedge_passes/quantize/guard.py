"""As many parts changed as held-out samples bear."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import onnx_ir as ir

from onnxedge.api import Context, forked, refresh_scopes

from .fidelity import Fidelity, Reference

P = TypeVar("P")
Twins = dict[ir.Node, ir.Node]


def within(
    ranked: Sequence[P], reference: Reference, least_db: float, write: Callable[[ir.Model, Twins, Sequence[P]], object]
) -> tuple[list[P], Fidelity | None]:
    """Return the parts that can be changed, and how well the model answers with them.

    Args:
        ranked: parts, those that cost most first: 1 of them, then 2, 4, 8 more go until the answers are good enough.
        reference: the answers wanted.
        least_db: SQNR wanted.
        write: changes parts in a copy of the model; is given the copy and which of its nodes stands for which.
    """
    kept, back = list(ranked), 1
    if not reference.usable:
        return kept, None
    while True:
        copy, _ = forked(reference.model)
        refresh_scopes(copy)
        write(copy, dict(zip(reference.model.graph, copy.graph, strict=True)), kept)
        fidelity = reference.compare(copy)
        if fidelity.sqnr_db >= least_db or not kept:
            return kept, fidelity
        kept, back = kept[back:], 2 * back


def say_what_went(
    ranked: Sequence[P], kept: Sequence[P], least_db: float, context: Context, node_of: Callable[[P], ir.Node]
) -> None:
    """Note the parts that were put back."""
    reason = f"put back to float: held-out samples are answered with less than min_sqnr={least_db:g} dB"
    for part in ranked[: len(ranked) - len(kept)]:
        context.note(node_of(part), reason)
