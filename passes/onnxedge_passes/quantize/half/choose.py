"""Which nodes compute in 16 bits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import numpy as np
import onnx_ir as ir

from onnxedge.api import Context, Feed, constant, operator, opset

from .kernels import Ports, ports_of
from .measure import Loss, losses

_MARGIN = 4.0  #: how far inside of the range values must stay on samples
_PAYING = ("contraction", "attention", "recurrent")


@dataclass
class Choice:
    """Hold what was chosen.

    Attributes:
        ports: nodes that compute in 16 bits, in the graph's order.
        reasons: why the others do not; empty for what has nothing to do with float32.
        losses: of the nodes that were measured.
    """

    ports: dict[ir.Node, Ports]
    reasons: dict[ir.Node, str]
    losses: dict[ir.Node, Loss] = field(default_factory=dict)

    def keep_out(self, node: ir.Node, reason: str) -> None:
        """Let a node stay float32."""
        del self.ports[node]
        self.reasons[node] = reason

    def keep_exact(self, node: ir.Node, reason: str) -> None:
        """Let a node stay float32 together with what it reads: that is where it may not be rounded."""
        where = self.ports[node]
        self.keep_out(node, reason)
        stack = [value for i, value in enumerate(node.inputs) if value is not None and i in where.inputs]
        while stack:
            maker = stack.pop().producer()
            if maker is None or maker not in self.ports:
                continue
            self.keep_out(maker, f"{node.op_type} reads what it makes, and {reason}")
            if operator(maker).kind == "movement":  # it would only move what is rounded already
                stack += [value for value in maker.inputs if value is not None]

    def drop_regions(self) -> None:
        """Let regions without a product stay float32: their Casts cost more than they gain."""
        for region in regions(list(self.ports)):
            if not any(operator(node).kind in _PAYING or node.op_type == "MatMulNBits" for node in region):
                for node in region:
                    self.keep_out(node, "nothing around it that 16 bits make faster would pay for the casts")


def choose(
    model: ir.Model, feeds: Iterable[Feed], half: ir.DataType, context: Context, *, least_db: float, skip: Sequence[str]
) -> Choice:
    """Return which nodes of the main graph compute in 16 bits.

    Raises:
        CannotRun: the runtime does not run the model.
    """
    choice = Choice({}, {})
    for node in model.graph:
        if node.op_type == "Constant":
            continue
        if any(fnmatchcase(node.name or "", pattern) for pattern in skip):
            choice.reasons[node] = "as asked by skip"
            continue
        found = ports_of(node, context.target, opset(model), half)
        if isinstance(found, Ports):
            choice.ports[node] = found
        else:
            choice.reasons[node] = found
    choice.losses = losses(model, choice.ports, feeds, half, threads=context.threads)
    limit = (65504.0 if half == ir.DataType.FLOAT16 else 3e38) / _MARGIN
    for node, loss in choice.losses.items():
        if node not in choice.ports:
            continue
        reason = _constants(node, choice.ports[node], _MARGIN * limit) or _range_refusal(loss, limit)
        if reason:
            choice.keep_out(node, reason)
        elif not loss.finite:
            choice.keep_exact(node, "of rounded inputs it makes infinities or NaN")
        elif loss.share > 10 ** (-least_db / 10):
            left = "nothing right" if not np.isfinite(loss.share) else f"{-10 * np.log10(loss.share):.0f} dB"
            choice.keep_exact(node, f"rounding leaves {left}")
    choice.drop_regions()
    return choice


def _range_refusal(loss: Loss, limit: float) -> str:
    if loss.largest > limit:
        return f"its values reach {loss.largest:.3g}, too near the end of the range"
    return ""


def _constants(node: ir.Node, ports: Ports, limit: float) -> str:
    """Return why a node's constants do not fit, empty where they do."""
    for index in ports.inputs:
        array = constant(node.inputs[index])
        if array is not None and array.size:
            finite = np.abs(array[np.isfinite(array)])
            if finite.max(initial=0.0) > limit:
                return f"a constant of it is {finite.max():.3g}, beyond the range"
    return ""


def regions(nodes: Sequence[ir.Node]) -> list[list[ir.Node]]:
    """Return the nodes in groups that hang together by the values between them."""
    inside, seen, found = set(nodes), set[ir.Node](), []
    for start in nodes:
        if start in seen:
            continue
        region, stack = [], [start]
        seen.add(start)
        while stack:
            node = stack.pop()
            region.append(node)
            around = [v.producer() for v in node.inputs if v is not None]
            around += [use.node for value in node.outputs for use in value.uses()]
            new = dict.fromkeys(
                other for other in around if other is not None and other in inside and other not in seen
            )
            seen.update(new)
            stack.extend(new)
        found.append(region)
    return found
