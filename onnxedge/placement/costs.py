"""What units cost in float and in integers, from a target's measured table."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxedge.operators import ShapeOf, macs
from onnxedge.placement.units import WEIGHTED, Unit
from onnxedge.target import KernelCost, Quantization

_MEASURED_TAPS = 9  #: costs of Conv by channels were measured with kernels of 3x3; larger ones sum over as much more


@dataclass(frozen=True)
class _Work:
    """Hold how much a unit has to do: cost table key, amount and width."""

    key: str
    amount: float
    width: int


def _work(unit: Unit, shape_of: ShapeOf, before: Callable[[Unit], bool]) -> _Work | None:
    node = unit.node
    out = shape_of(node.outputs[0])
    data = shape_of(node.inputs[unit.reads[0]])
    if out is None or data is None:
        if unit.weight is not None and "Conv" not in node.op_type and (weight := shape_of(node.inputs[1])) is not None:
            return _Work(node.op_type, math.prod(weight), 1)  # a row at least
        return None
    size = math.prod(out)
    if node.op_type in WEIGHTED:
        amount, other = macs(node, shape_of), shape_of(node.inputs[1])
        if amount is None or other is None:
            return None
        if "Conv" not in node.op_type:
            rows = math.prod(out[:-1]) if unit.weight is not None else out[-2] if len(out) > 1 else 1
            return _Work(node.op_type, amount, rows)
        groups = node.attributes.get_int("group", 1)
        if groups > 1 and other[1] == 1 and node.op_type == "Conv":
            return _Work("DepthwiseConv", amount, other[0])
        depth = math.prod(other[1:]) // _MEASURED_TAPS if node.op_type == "Conv" else 0
        return _Work(node.op_type, amount, max(1, min(max(data[1] // groups, depth), out[1] // groups)))
    if node.op_type in ("MaxPool", "AveragePool"):
        window = math.prod(int(size) for size in node.attributes.get_ints("kernel_shape") or (1,))
        alone = node.op_type == "MaxPool" and not before(unit)
        return _Work("MaxPool alone" if alone else node.op_type, size * window, 1)
    if node.op_type in ("GlobalAveragePool", "ReduceMax", "ReduceMin"):
        return _Work(node.op_type, math.prod(data), 1)
    return _Work(node.op_type, size, 1)


def interpolate(cost: KernelCost, values: Sequence[float], width: int) -> float:
    """Return nanoseconds per unit of work at a width, linear in log(width), constant outside of the measured widths."""
    at = cost.at
    if width <= at[0]:
        return values[0]
    for low, high, first, second in zip(at, at[1:], values, values[1:], strict=False):
        if width <= high:
            share = math.log(width / low) / math.log(high / low)
            return first + share * (second - first)
    return values[-1]


UNKNOWN_NS = (20_000.0, 10_000.0)  #: float and integer cost of a weighted operator whose shapes nobody knows


class Costs:
    """Answer what units and crossings cost, in nanoseconds."""

    def __init__(self, units: Sequence[Unit], rules: Quantization, shape_of: ShapeOf) -> None:
        self.rules, self.shape_of = rules, shape_of
        self._makers = {id(v): unit for unit in units for v in unit.outputs}
        self._readers: dict[int, list[Unit]] = {}
        for unit in units:
            for value in unit.input_values():
                self._readers.setdefault(id(value), []).append(unit)

    def unit(self, unit: Unit) -> tuple[float, float]:
        """Return what a unit costs in float and in integers."""
        work = _work(unit, self.shape_of, self._after_conv)
        if work is None:
            return UNKNOWN_NS if unit.weight is not None else (0.0, 0.0)
        cost = self.rules.costs.get(work.key)
        if cost is None:
            return 0.0, 0.0
        integer_ns = work.amount * interpolate(cost, cost.integer_ns, work.width) + cost.integer_call_ns
        integer_ns += cost.integer_output_ns * math.prod(self.shape_of(unit.node.outputs[0]) or ())
        return work.amount * interpolate(cost, cost.float_ns, work.width), integer_ns

    def crossing(self, value: ir.Value) -> float:
        """Return what it costs to quantize or dequantize a value once."""
        shape = self.shape_of(value)
        if shape is None:
            return self.rules.node_ns
        moved = self._moved(value, math.prod(shape)) if len(shape) in (4, 5) else 0
        return self.rules.node_ns + self.rules.boundary_ns * math.prod(shape) + self.rules.relayout_ns * moved

    def _moved(self, value: ir.Value, size: int) -> int:
        """Return how many elements change their layout where a value enters integers.

        A value that a convolution and the Add of its block both read keeps its layout through the Add, and so on from
        block to block: each is entered and left by a Transpose (read from ONNX Runtime's optimized graphs).
        """
        moved, seen = size, {id(value)}
        while True:
            readers = self._readers.get(id(value), [])
            joins = [unit for unit in readers if len(unit.reads) > 1]
            if not joins or not any("Conv" in unit.node.op_type for unit in readers):
                return moved
            moved += 2 * size
            value = joins[0].outputs[0]
            if id(value) in seen:
                return moved
            seen.add(id(value))

    def _after_conv(self, unit: Unit) -> bool:
        """Tell whether a convolution comes before a unit, through units only: its layout is the convolution's then."""
        seen = 0
        current: Unit | None = unit
        while current is not None and seen < 32:
            if current.node.op_type == "Conv":
                return True
            values = current.input_values()
            current = self._makers.get(id(values[0])) if values else None
            seen += 1
        return False
