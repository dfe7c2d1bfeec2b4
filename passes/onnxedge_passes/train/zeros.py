"""Zeros that `sparsify` made, and that training leaves where they are."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from onnxedge.api import Array, constant, new_initializer, new_node

_LEAST = 0.1  #: share of a weight that is exactly 0 where that is no chance


def sparse_weights(graph: ir.Graph, names: Iterable[str]) -> dict[str, Array]:
    """Return where the sparse ones among some weights are not 0, as float32 of 0 and 1, by name.

    Sparse is a weight of two axes or more of which a tenth is exactly 0; one that is 0 everywhere is yet to be learned.
    """
    found: dict[str, Array] = {}
    for name in names:
        array = constant(graph.initializers[name])
        if array is None or array.ndim < 2:
            continue
        kept = array != 0
        if kept.any() and kept.mean() <= 1 - _LEAST:
            found[name] = kept.astype(np.float32)
    return found


def hold_zeros(graph: ir.Graph, masks: dict[str, Array]) -> None:
    """Multiply weights with their masks wherever they are read, so that what is 0 has no gradient."""
    first = next(iter(graph))
    for name, mask in masks.items():
        weight = graph.initializers[name]
        uses = list(weight.uses())
        held = new_node(graph, "Mul", [weight, new_initializer(graph, mask, f"{name}.kept")], name=f"{name}.sparse")
        graph.insert_before(first, held)
        held.outputs[0].type, held.outputs[0].shape = weight.type, weight.shape
        for node, index in uses:
            node.replace_input_with(index, held.outputs[0])
