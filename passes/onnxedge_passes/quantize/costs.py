"""Whether integer weights make a product faster, by the target's own figures."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from onnxedge.api import KernelCost, Quantization, batch_one_shape

from .layers import Layer


def pays(layer: Layer, rules: Quantization | None, kernel: str, *, boundary_ns: float = 0.0) -> bool:
    """Tell whether the products with a weight are faster on integers; where the target has no figures they are.

    Args:
        layer: no table.
        rules: the target's.
        kernel: row of its costs: ``MatMul`` for 8-bit integers, ``MatMulNBits`` for 4-bit weights.
        boundary_ns: what it takes to round one element of the data.
    """
    cost = rules.costs.get(kernel) if rules is not None else None
    if cost is None:
        return True
    n, k = layer.size
    gain = 0.0
    for node in layer.nodes:
        shape = batch_one_shape(node.outputs[0])
        rows = math.prod(shape[:-1]) if shape is not None else 1  # a row at least
        saved = _at(cost, cost.float_ns, rows) - _at(cost, cost.integer_ns, rows)
        gain += rows * k * n * saved - cost.integer_call_ns - rows * (n * cost.integer_output_ns + k * boundary_ns)
    return gain > 0


def _at(cost: KernelCost, side: Sequence[float], rows: int) -> float:
    return float(np.interp(math.log(max(rows, 1)), np.log(cost.at), side))
