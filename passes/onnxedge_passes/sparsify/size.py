"""What zeros save: bytes once compressed, never time where the runtime has no kernels for them."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from onnxedge.api import Array, Context, node_label
from onnxedge_passes.prune.compensation import Constants
from onnxedge_passes.sparsify.layers import Layer
from onnxedge_passes.sparsify.pattern import Pattern


def sizes(layers: Mapping[Layer, Any], constants: Constants, pattern: Pattern | None) -> dict[str, Any]:
    """Return how many zeros there are, and the bytes of the weights: plain, deflated, and packed without zeros."""
    before = [layer.array for layer in layers]
    after = [constants[layer.nodes[0], layer.axes.index] for layer in layers]
    zeros = [array.size - int(np.count_nonzero(array)) for array in after]
    return {
        "elements": sum(array.size for array in after),
        "zeros": sum(zeros),
        "weight_bytes": sum(array.nbytes for array in after),
        "deflated_bytes_before": sum(_deflated(array) for array in before),
        "deflated_bytes_after": sum(_deflated(array) for array in after),
        "packed_bytes": sum(_packed(array, pattern) for array in after),
        "layers": [
            {"layer": node_label(layer.nodes[0]), "elements": layer.size, "zeros": count}
            for layer, count in zip(layers, zeros, strict=True)
        ],
    }


def _deflated(array: Array) -> int:
    return len(zlib.compress(np.ascontiguousarray(array).tobytes(), 6))


def _packed(array: Array, pattern: Pattern | None) -> int:
    """Return the bytes of the weights that stay and of where they stand: a bit a weight, or an index in its set."""
    if pattern is None:
        return int(np.count_nonzero(array)) * array.itemsize + -(-array.size // 8)
    kept = array.size * pattern.kept // pattern.of
    return kept * array.itemsize + -(-kept * (pattern.of - 1).bit_length() // 8)


def speak_of_speed(pattern: Pattern | None, figures: Mapping[str, Any], context: Context) -> None:
    """Say whether the zeros make anything faster, and what they save."""
    target = context.target
    small = (
        f"the weights take {figures['weight_bytes']} bytes as they are, "
        f"{figures['deflated_bytes_before']} -> {figures['deflated_bytes_after']} deflated, "
        f"{figures['packed_bytes']} packed"
    )
    if pattern is not None and str(pattern) in target.sparse:
        context.note(None, f"target {target.name} has kernels for {pattern} once its sparsity flag is set; {small}")
        return
    known = f", only for pattern={' or '.join(target.sparse)}" if target.sparse else ""
    context.note(None, f"not faster: target {target.name} has no kernels for such zeros{known}; {small}")
