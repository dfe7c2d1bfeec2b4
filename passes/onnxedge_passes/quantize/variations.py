"""The model with one integer kernel, or all of them: what ``onnxedge sensitivity`` measures."""

from __future__ import annotations

import onnx_ir as ir

from onnxedge.api import Context, Part, UserError, forked, node_label

from .existing import is_quantized
from .names import name_values
from .quantizer import Quantizer, Settings


class Kernels:
    """Quantize kernels alone, on ranges that are observed once; nothing is put back to float.

    Attributes:
        parts: what the target would run in integers, in the graph's order; each is one node that stays float or not.
        ratios: 0 alone: nothing of a part stays float.
    """

    ratios: tuple[float, ...] | None = (0.0,)

    def __init__(self, settings: Settings, model: ir.Model, context: Context) -> None:
        """Place and calibrate.

        Raises:
            UserError: nothing of the model becomes integer.
        """
        if is_quantized(model):
            raise UserError("int8: the model has quantized activations already")
        name_values(model)
        self._quantizer = Quantizer(settings, model, context)
        placement = self._quantizer.calibrated()
        positions = {node: position for position, node in enumerate(model.graph)}
        kernels = [unit.node for unit in placement.integer if unit.role == "kernel"]
        if not kernels:
            raise UserError("int8: the target runs nothing of this model in integers; onnxedge inspect says why")
        self._kernels = [positions[node] for node in kernels]
        self.parts = tuple(Part(node_label(node), 1) for node in kernels)

    def kept(self, part: int | None, ratio: float) -> int:
        """Return how many kernels stay float: none."""
        del part, ratio
        return 0

    def model(self, part: int | None, ratio: float) -> ir.Model:
        """Return a copy in which one kernel, or all, compute in integers."""
        del ratio
        others = [] if part is None else [p for n, p in enumerate(self._kernels) if n != part]
        copy, _ = forked(self._quantizer.model)
        self._quantizer.write(copy, keep_float=others)
        return copy
