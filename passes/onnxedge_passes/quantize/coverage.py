"""Whether ONNX Runtime runs in integers what it was predicted to."""

from __future__ import annotations

import onnx_ir as ir

from onnxedge.api import CannotRun, Context, Coverage, Difference, Placement, first_line, read_back, weight_bytes

_LARGEST = 1 << 30  #: bytes of weights up to which the runtime's graph is written out and read


def confirm(model: ir.Model, placement: Placement, context: Context) -> dict[str, object]:
    """Note where ONNX Runtime's own optimized graph differs from the prediction, node by node, and count.

    Args:
        model: as it is emitted.
        placement: what was predicted for its nodes.
        context: for the target and notes.

    Returns:
        ``confirmed_nodes``: that run as predicted; ``merged_nodes``: that the runtime fused into others or removed;
        ``different_nodes``. Empty where the target's runtime is not here, and for models too large to write out.
    """
    target = context.target
    if placement.integer and target.missing_here:
        text = f"this processor has none of {', '.join(target.missing_here)}, which {target.name} is for"
        context.note(None, f"{text}: here products may saturate in 16 bits; --target ort-cpu-avx2 is right on both")
    coverage = _read(model, placement, context)
    if isinstance(coverage, str):
        context.note(None, f"not compared with the graph that ONNX Runtime runs: {coverage}")
    if not isinstance(coverage, Coverage):
        return {}
    for difference in coverage.differences:
        context.note(difference.node, str(difference))
    return {
        "confirmed_nodes": coverage.integer + coverage.floating,
        "merged_nodes": coverage.gone,
        "different_nodes": len(coverage.differences),
    }


def differences(model: ir.Model, placement: Placement, context: Context) -> tuple[Difference, ...]:
    """Return where ONNX Runtime does otherwise than predicted; none where it cannot be asked."""
    coverage = _read(model, placement, context)
    return coverage.differences if isinstance(coverage, Coverage) else ()


def _read(model: ir.Model, placement: Placement, context: Context) -> Coverage | str | None:
    """Return the comparison, why there is none, or None where there is nothing to compare."""
    if not context.target.runs_here or not (placement.integer or placement.reasons):
        return None
    if weight_bytes(model) > _LARGEST:
        return "the model is too large to write it out"
    try:
        return read_back(model, placement)
    except CannotRun as err:
        return first_line(err)
