"""Offsets of channels that never come near 0: where they are, what reads them, and how they move from bias to bias."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxedge.api import (
    Array,
    Unit,
    add_initializer,
    clip_bounds,
    constant,
    drop_if_unused,
    is_standard,
    sole_consumer,
    static_shape,
    unique_name,
)

from ..calibration import Observed
from ..grids import mean_shift
from .rescale import Place
from .slots import own_constant

LEAST_GAIN_DB = 2.0  #: by which the step of a value must shrink
SPARED = 0.5  #: share of the way from a channel's least value to its mean that is left above 0, for other samples
_POOLS = ("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Identity")


@dataclass(frozen=True, eq=False)
class Offset:
    """Say what is taken off a bias and given to others.

    Attributes:
        amount: float64 [C], 0 or more.
        maker: place of the bias that it is taken off.
        readers: operators with a weight, each with the place of its bias; the bias may be absent.
        values: names of what is smaller by ``amount`` in between.
    """

    amount: Array
    maker: Place
    readers: Sequence[tuple[ir.Node, Place]]
    values: frozenset[str]

    def weights(self) -> set[str]:
        """Return the names of the weights that read the values."""
        return {v.name or "" for node, _ in self.readers if (v := node.inputs[1]) is not None}

    def on_fork(self, twins: Mapping[ir.Node, ir.Node]) -> Offset:
        """Return the same of another model's nodes."""
        readers = [(twins[node], (twins[place[0]], place[1])) for node, place in self.readers]
        return Offset(self.amount, (twins[self.maker[0]], self.maker[1]), readers, self.values)


def find_offsets(units: Sequence[Unit], seen: Mapping[str, Observed]) -> Iterator[Offset | tuple[ir.Node, str]]:
    """Yield offsets that make the step of a value smaller, or a node and why it keeps the one that it has.

    Args:
        units: that run in integers.
        seen: what was observed of each value, channels included.
    """
    values = {v.name or "": v for unit in units for v in (*unit.input_values(), *unit.outputs)}
    for name, value in values.items():
        relu = value.producer()
        bound = _upper_bound(relu)
        amount = _amount(seen[name]) if bound and name in seen else None
        if relu is None or amount is None:
            continue
        found = _offset(relu, amount) if np.isinf(bound) else f"its {relu.op_type} has an upper bound"
        yield (relu, f"offset of its channels not absorbed: {found}") if isinstance(found, str) else found


def _upper_bound(node: ir.Node | None) -> float:
    """Return what a Relu, or a Clip at 0, lets through at most; 0 for any other operator."""
    if node is None or not is_standard(node) or node.op_type not in ("Relu", "Clip"):
        return 0.0
    bounds = clip_bounds(node) if node.op_type == "Clip" else (0.0, np.inf)
    return bounds[1] if bounds is not None and bounds[0] == 0.0 else 0.0


def _amount(entry: Observed) -> Array | None:
    """Return how much to take off each channel, no more than makes the range smaller; None where that is not worth it.

    A channel whose least value behind a Relu is above 0 has the same values before it.
    """
    channels, mean = entry.channels, entry.mean
    if channels is None or mean is None or not entry.finite or mean.shape != channels.low.shape:
        return None
    low, high = channels.low.astype(np.float64), channels.high.astype(np.float64)
    if not low.size or low[high.argmax()] <= 0.0:
        return None
    safe = np.clip(low - SPARED * np.maximum(mean - low, 0.0), 0.0, None)
    top = (high - safe).max()
    if top <= 0.0 or 20.0 * np.log10(high.max() / top) < LEAST_GAIN_DB:
        return None
    return np.asarray(np.clip(high - top, 0.0, safe))


def _offset(relu: ir.Node, amount: Array) -> Offset | str:
    """Return an offset that a Relu's channels have, or why it stays."""
    maker = _maker(relu, amount.size)
    if isinstance(maker, str):
        return maker
    node, place = maker
    readers: list[tuple[ir.Node, Place]] = []
    values: set[str] = set()
    rank = len(relu.outputs[0].shape) if relu.outputs[0].shape is not None else 0
    axis = 1 if "Conv" in node.op_type else rank - 1
    wrong = _follow(relu, relu.outputs[0], axis, amount.size, readers, values)
    return wrong or Offset(amount, place, readers, frozenset(values))


def _maker(relu: ir.Node, count: int) -> tuple[ir.Node, Place] | str:
    """Return the layer before a Relu, with the place of its bias [count], or why there is none."""
    value = relu.inputs[0]
    node = value.producer() if value is not None else None
    place: Place | None = None
    if node is None or value is None:
        return "no layer with a bias makes it"
    if sole_consumer(value) is not relu:
        return "what it reads has other readers"
    if is_standard(node) and node.op_type == "Add":
        index = 0 if own_constant(node.inputs[0]) else 1
        place, data = (node, index), node.inputs[1 - index]
        maker = data.producer() if data is not None else None
        if maker is None or maker.op_type != "MatMul" or not is_standard(maker):
            return "no layer makes it"
        node = maker
    elif is_standard(node) and node.op_type in ("Conv", "ConvTranspose", "Gemm"):
        place = (node, 2)
    if place is None:
        return "no layer with a bias makes it"
    if node.op_type == "Gemm" and node.attributes.get_float("beta", 1.0) != 1.0:
        return "its layer's bias is scaled"
    return (node, place) if _is_bias(place, count) else "its layer has no bias of its own"


def _is_bias(place: Place, count: int) -> bool:
    """Tell whether a place holds a constant [C], or a longer form of it, that nothing else reads."""
    node, index = place
    value = node.inputs[index] if index < len(node.inputs) else None
    array = constant(value) if own_constant(value) else None
    return array is not None and array.ndim > 0 and array.shape[-1] == array.size == count


def _follow(
    relu: ir.Node,
    value: ir.Value,
    axis: int,
    count: int,
    readers: list[tuple[ir.Node, Place]],
    values: set[str],
) -> str:
    """Collect what reads a value's channels; return why one cannot take up an offset, else an empty text."""
    values.add(value.name or "")
    if value.is_graph_output():
        return "it is an output of the model"
    for use in value.uses():
        node = use.node
        if node.graph is not relu.graph:
            return "it is read in a subgraph"
        if not is_standard(node) or use.idx:
            return f"{node.op_type} {node.name!r} reads it"
        if _hands_on(node, value, axis, count):
            if wrong := _follow(relu, node.outputs[0], axis, count, readers, values):
                return wrong
            continue
        reader = _reader(node, value, axis, count)
        if isinstance(reader, str):
            return f"{node.op_type} {node.name!r} {reader}"
        readers.append((node, reader))
    return "" if value.uses() else "nothing reads it"


def _hands_on(node: ir.Node, value: ir.Value, axis: int, count: int) -> bool:
    """Tell whether an operator's output has the same offset as what it reads, channel by channel."""
    if axis != 1 or any(v.uses() or v.is_graph_output() for v in node.outputs[1:]):
        return False
    if node.op_type == "AveragePool":
        return not node.attributes.get_int("count_include_pad", False)
    if node.op_type in ("Flatten", "Reshape"):
        before, after = (v.shape for v in (value, node.outputs[0]))
        if before is None or after is None or len(after) != 2 or len(before) < 2:
            return False
        return all(d == 1 for d in before[2:]) and before[1] == after[1] == count
    return node.op_type in _POOLS


def _reader(node: ir.Node, value: ir.Value, axis: int, count: int) -> Place | str:
    """Return where a layer that reads an offset has its bias, or why it cannot take it up."""
    weight = static_shape(node.inputs[1]) if len(node.inputs) > 1 else None
    array = constant(node.inputs[1]) if weight is not None and node.op_type in ("Conv", "Gemm", "MatMul") else None
    if array is None or array.dtype != np.float32:
        return "reads it"
    rank = len(value.shape) if value.shape is not None else 0
    if axis != (1 if node.op_type == "Conv" else rank - 1):
        return "reads it along another axis"
    if node.op_type == "Conv":
        groups = node.attributes.get_int("group", 1) or 1
        if array.shape[1] * groups != count:
            return "reads other channels"
        return _own_or_new((node, 2), len(array)) if is_unpadded(node, array.shape[2:]) else "pads it with zeros"
    if node.op_type == "Gemm":
        if any(node.attributes.get_float(name, 1.0) != 1.0 for name in ("alpha", "beta")):
            return "scales it"
        turned = node.attributes.get_int("transB", False)
        sizes = array.shape[::-1] if turned else array.shape
        if node.attributes.get_int("transA", False) or sizes[0] != count:
            return "reads it along another axis"
        return _own_or_new((node, 2), sizes[1])
    add = sole_consumer(node.outputs[0])
    if array.ndim != 2 or len(array) != count or add is None or not is_standard(add) or add.op_type != "Add":
        return "has no bias"
    place = (add, 1 if add.inputs[0] is node.outputs[0] else 0)
    return place if _is_bias(place, array.shape[1]) else "has no bias of its own"


def _own_or_new(place: Place, count: int) -> Place | str:
    """Return the place of a bias that is there and its layer's alone, or that is absent."""
    node, index = place
    if index >= len(node.inputs) or node.inputs[index] is None:
        return place
    return place if _is_bias(place, count) else "shares its bias"


def is_unpadded(node: ir.Node, kernel: Sequence[int]) -> bool:
    """Tell whether a Conv reads nothing but its input."""
    if node.attributes.get_string("auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER"):
        return all(size == 1 for size in kernel)
    return not any(node.attributes.get_ints("pads", []) or [])


def move(offsets: Iterable[Offset]) -> list[tuple[Place, Array | None]]:
    """Move offsets from bias to bias; return what was there, None for nothing, to be put back in reverse order.

    Source: Nagel et al. 2019, arXiv:1906.04721, section 4.1.3.
    """
    old = []
    for offset in offsets:
        old.append(_add(offset.maker, -offset.amount))
        for node, place in offset.readers:
            weight = constant(node.inputs[1])
            assert weight is not None
            old.append(_add(place, mean_shift(node, weight.astype(np.float64), offset.amount)))
    return old


def _add(place: Place, more: Array) -> tuple[Place, Array | None]:
    """Add to a bias; where it is absent, it becomes its layer's last input."""
    node, index = place
    value = node.inputs[index] if index < len(node.inputs) else None
    before = constant(value)
    if value is None or before is None:
        graph = node.graph
        assert isinstance(graph, ir.Graph)
        name = unique_name(graph, f"{node.outputs[0].name}_bias")
        new = ir.val(name, const_value=ir.tensor(more.astype(np.float32), name=name))
        if index >= len(node.inputs):
            node.resize_inputs(index + 1)
        node.replace_input_with(index, add_initializer(graph, new))
        return place, None
    total = (before.astype(np.float64) + more.reshape(before.shape)).astype(np.float32)
    value.const_value = ir.Tensor(np.ascontiguousarray(total), name=value.name)
    return place, before


def put_back(old: Iterable[tuple[Place, Array | None]]) -> None:
    """Write biases as they were, the last one changed first."""
    for (node, index), before in reversed(list(old)):
        value = node.inputs[index]
        assert value is not None
        if before is None:
            node.resize_inputs(index)
            drop_if_unused(value)
        else:
            value.const_value = ir.Tensor(np.ascontiguousarray(before), name=value.name)
