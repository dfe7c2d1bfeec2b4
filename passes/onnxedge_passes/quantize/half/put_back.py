"""Nodes put back to float32 until held-out samples are answered well enough."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnxedge.api import forked, operator, refresh_scopes
from onnxedge_passes.quantize.fidelity import Fidelity, Reference
from onnxedge_passes.quantize.sensitivity import noisiest

from .choose import Choice
from .rewrite import emulate

_ROUNDS = 4  #: times that parts are put back before everything is
_PARTS = 16  #: that are measured alone in one round
_RESERVE_DB = 0.5


def put_back(choice: Choice, reference: Reference, half: ir.DataType, least_db: float) -> Fidelity | None:
    """Put the parts of the graph back that alone cost most for the products in them; all where that is not enough.

    Args:
        choice: edited in place.
        reference: the answers wanted.
        half: FLOAT16 or BFLOAT16.
        least_db: SQNR wanted.

    Returns:
        How well the model answers, None where that cannot be told.
    """
    if not reference.usable:
        return None
    fidelity = _answers(list(choice.ports), choice, reference, half)
    for number in range(_ROUNDS + 1):
        if fidelity.sqnr_db >= least_db or not choice.ports:
            break
        parts = _parts(list(choice.ports)) if number < _ROUNDS else [tuple(choice.ports)]
        noise = {part: _answers(part, choice, reference, half).noise for part in parts}
        keep = 10.0 ** ((fidelity.sqnr_db - least_db - _RESERVE_DB) / 10.0)
        reason = f"held-out samples are answered with {fidelity.sqnr_db:.0f} dB, under min_sqnr={least_db:g}"
        for part, _ in noisiest(parts, noise, keep, _worth):
            for node in part:
                choice.keep_out(node, reason)
        choice.drop_regions()
        fidelity = _answers(list(choice.ports), choice, reference, half)
    return fidelity


def _parts(nodes: Sequence[ir.Node]) -> list[tuple[ir.Node, ...]]:
    """Return nodes in runs of the graph's order."""
    size = -(-len(nodes) // _PARTS)
    return [tuple(nodes[start : start + size]) for start in range(0, len(nodes), size)]


def _worth(part: Sequence[ir.Node]) -> float:
    return 1.0 + sum(operator(node).kind == "contraction" for node in part)


def _answers(nodes: Sequence[ir.Node], choice: Choice, reference: Reference, half: ir.DataType) -> Fidelity:
    """Return how well the model answers with some nodes in 16 bits."""
    copy, _ = forked(reference.model)
    refresh_scopes(copy)
    twins = dict(zip(reference.model.graph, copy.graph, strict=True))
    emulate(copy, {twins[node]: choice.ports[node] for node in nodes}, half)
    return reference.compare(copy)
