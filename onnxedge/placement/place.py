"""Which parts of a graph a target runs in integers: what its rules allow, and of that what pays.

A *unit* is what one kernel computes: an operator with the bias Add and the activation that the kernel absorbs. Every
unit may run in integers or in float; each has a cost, and so has every value that crosses from one to the other. The
cheapest choice for the whole graph is a minimum cut (Boykov and Kolmogorov 2004, on energies with two labels).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxedge.model.graph import constant_tensor, is_constant, is_standard, node_label, sole_consumer
from onnxedge.operators import ShapeOf, batch_one_shape, macs
from onnxedge.placement.costs import Costs
from onnxedge.placement.units import Unit, find_units
from onnxedge.target import Quantization, Target


@dataclass(frozen=True)
class Placement:
    """Say what runs in integers.

    Attributes:
        integer: units that do, in graph order.
        reasons: why each other node that computes on floats does not.
        savings_ns: predicted time that each unit of ``integer`` saves, without the crossings; 0 where nobody measured.
        gain_ns: predicted time that all of them save, crossings paid; 0 where nobody measured.
    """

    integer: tuple[Unit, ...]
    reasons: Mapping[ir.Node, str]
    savings_ns: tuple[float, ...] = ()
    gain_ns: float = 0.0


def predict(model: ir.Model, target: Target) -> dict[str, str]:
    """Return for every computing node of the main graph ``integer``, or ``float: reason``, by its label."""
    placement = place(model, target)
    answer = {node_label(node): "integer" for unit in placement.integer for node in unit.nodes}
    answer.update((node_label(node), f"float: {reason}") for node, reason in placement.reasons.items())
    return answer


def place(
    model: ir.Model,
    target: Target,
    *,
    keep_float: Mapping[ir.Node, str] | None = None,
    shape_of: ShapeOf = batch_one_shape,
) -> Placement:
    """Decide what runs in integers, by the target's rules and costs alone: no timing, the same answer each time.

    Args:
        model: with shapes inferred; not changed.
        target: has integer rules.
        keep_float: nodes that must stay float, with the reason.
        shape_of: gives shapes, batch 1.
    """
    rules = target.quantization
    if rules is None:
        return Placement((), {})
    units, reasons = find_units(model, target)
    kept: dict[int, str] = {}
    for index, unit in enumerate(units):
        reason = next((r for node in unit.nodes if (r := (keep_float or {}).get(node)) is not None), None)
        if reason is not None:
            kept[index] = reason
    if not rules.costs:
        integer, savings, gain = _heavy_enough(units, rules, shape_of, kept, reasons), [0.0] * len(units), 0.0
    else:
        integer, savings, gain = _cheapest(units, rules, shape_of, kept, reasons)
    for index, unit in enumerate(units):
        if index in kept:
            reasons[unit.node] = kept[index]
        elif index not in integer and unit.role == "kernel":
            reasons[unit.node] = f"{unit.node.op_type}: the integer kernel does not pay here on {target.name}"
    chosen = [i for i in sorted(integer) if i not in kept]
    for index in chosen:
        for node in _epilogue(units[index], rules):
            reasons.pop(node, None)
    return Placement(tuple(units[i] for i in chosen), reasons, tuple(savings[i] for i in chosen), gain)


def _epilogue(unit: Unit, rules: Quantization) -> Iterator[ir.Node]:
    """Yield the float nodes behind a unit that its kernel computes, too."""
    after = sole_consumer(unit.nodes[-1].outputs[0])
    while unit.role == "kernel" and after is not None and is_standard(after) and after.op_type in rules.epilogue:
        yield after
        after = sole_consumer(after.outputs[0])


def _heavy_enough(
    units: Sequence[Unit], rules: Quantization, shape_of: ShapeOf, kept: Collection[int], refused: Collection[ir.Node]
) -> set[int]:
    """Return the units with at least the multiply-accumulates that a target asks for; unknown counts are enough."""
    least = [rules.min_macs.get(unit.node.op_type, 0) for unit in units]
    counts = [macs(unit.node, shape_of) for unit in units]
    heavy = {i for i, (count, floor) in enumerate(zip(counts, least, strict=True)) if count is None or count >= floor}
    forced = dict.fromkeys(kept, False)
    while True:
        integer = {i for i in range(len(units)) if forced.get(i, i in heavy)}
        if not _keep_apart(units, integer, rules, forced, refused):
            return integer


def _cheapest(
    units: Sequence[Unit], rules: Quantization, shape_of: ShapeOf, kept: Collection[int], refused: Collection[ir.Node]
) -> tuple[set[int], list[float], float]:
    """Return the cheapest units to run in integers, the time that each unit saves, and the time that all save."""
    costs = Costs(units, rules, shape_of)
    priced = [costs.unit(unit) for unit in units]
    forced = dict.fromkeys(kept, False)
    while True:
        integer, spent = _minimum_cut(units, priced, rules, costs, forced)
        if not _keep_apart(units, integer, rules, forced, refused):
            savings = [float_ns - integer_ns for float_ns, integer_ns in priced]
            return integer, savings, sum(float_ns for float_ns, _ in priced) - spent


def _keep_apart(
    units: Sequence[Unit],
    integer: Collection[int],
    rules: Quantization,
    forced: dict[int, bool],
    refused: Collection[ir.Node],
) -> bool:
    """Force a side on units where the runtime would run a float one in integers by itself; False where it does not.

    Such a unit becomes integer; if it must stay float, those beside it do, too, whose Q or DQ the runtime would take.
    So do those beside nodes that are no units, such as a Conv whose weight a caller may override.
    """
    between = [i for node in refused for i in _behind(node, units, integer, rules)]
    forced.update(dict.fromkeys(between, False))
    wrong = _taken_over(units, integer, rules)
    for index, beside in wrong:
        if forced.get(index) is False:
            forced.update(dict.fromkeys(beside, False))
        else:
            forced[index] = True
    return bool(wrong or between)


def _behind(node: ir.Node, units: Sequence[Unit], integer: Collection[int], rules: Quantization) -> list[int]:
    """Return the integer units behind a node that is no unit, where the runtime would quantize it and its constant."""
    if node.op_type not in rules.quantized_by_runtime or not is_standard(node):
        return []
    operands = [v for v in node.inputs if v is not None]
    made = {id(v) for i in integer for v in units[i].outputs}
    if not any(v.is_initializer() or is_constant(v) for v in operands) or not any(id(v) in made for v in operands):
        return []
    results = [node.outputs[0]]
    after = sole_consumer(node.outputs[0])
    if after is not None and after.op_type in rules.float_before_output:
        results.append(after.outputs[0])
    return [i for i in integer if any(v is result for v in units[i].input_values() for result in results)]


def _minimum_cut(
    units: Sequence[Unit],
    priced: Sequence[tuple[float, float]],
    rules: Quantization,
    costs: Costs,
    forced: Mapping[int, bool],
) -> tuple[set[int], float]:
    """Return the units on the integer side of the cheapest cut, and its cost; ``forced`` puts units on a side."""
    import networkx as nx

    graph = nx.DiGraph()
    integer, real = -1, -2
    graph.add_nodes_from((integer, real))
    makers = {id(v): i for i, unit in enumerate(units) for v in unit.outputs}
    owner = {node: i for i, unit in enumerate(units) for node in unit.nodes}
    for index, (float_ns, integer_ns) in enumerate(priced):
        side = forced.get(index)
        graph.add_edge(integer, index, capacity=math.inf if side is True else round(float_ns))
        graph.add_edge(index, real, capacity=math.inf if side is False else round(integer_ns * rules.margin))
    crossing: dict[int, ir.Value] = {}
    for unit in units:
        crossing.update((id(v), v) for v in (*unit.input_values(), *unit.outputs))
    next_node = len(units)
    for key, value in crossing.items():
        price = round(costs.crossing(value) * rules.margin)
        maker = makers.get(key)
        quantized = any(_quantizes(use.node, rules) for use in value.uses())  # by the model itself
        uses = [(owner.get(use.node), use.node, use.idx) for use in value.uses() if not _quantizes(use.node, rules)]
        readers = [i if _reads(units, i, node, position) else None for i, node, position in uses]
        first = integer if maker is None and _is_dequantized(value, rules) else maker
        source = real if first is None else first
        graph.add_edge(next_node, source, capacity=price)  # quantized once if any reader is integer, the maker not
        for reader in readers:
            if reader is not None:
                graph.add_edge(reader, next_node)
        if quantized and maker is not None:
            graph.add_edge(integer, next_node)
        next_node += 1
        free = maker is not None and not units[maker].needs_output and None in readers and len(set(readers)) == 1
        if first is None or free or (maker is not None and not units[maker].needs_output and not readers):
            continue
        graph.add_edge(first, next_node, capacity=price)  # dequantized once if any reader is float, the maker not
        for reader in readers:
            graph.add_edge(next_node, real if reader is None else reader)
        if value.is_graph_output():
            graph.add_edge(next_node, real)
        next_node += 1
    spent, (inside, _) = nx.minimum_cut(graph, integer, real)
    return {i for i in inside if 0 <= i < len(units)}, float(spent)


def _quantizes(node: ir.Node, rules: Quantization) -> bool:
    """Tell whether a node of the model makes integers of the target's kind, with one scale, of floats."""
    dtype = node.outputs[0].dtype
    return (
        node.op_type == "QuantizeLinear" and _one_scale(node) and dtype is not None and _name(dtype) == rules.activation
    )


def _is_dequantized(value: ir.Value, rules: Quantization) -> bool:
    """Tell whether a node of the model makes a value of integers of the target's kind that are no constant."""
    node = value.producer()
    if node is None or node.op_type != "DequantizeLinear" or not _one_scale(node) or is_constant(node.inputs[0]):
        return False
    dtype = node.inputs[0].dtype if node.inputs[0] is not None else None
    return dtype is not None and _name(dtype) == rules.activation


def _name(dtype: ir.DataType) -> str:
    return dtype.name.lower()


def _one_scale(node: ir.Node) -> bool:
    scale = constant_tensor(node.inputs[1])
    return scale is not None and scale.size == 1


def _reads(units: Sequence[Unit], index: int | None, node: ir.Node, position: int) -> bool:
    return index is not None and node is units[index].node and position in units[index].reads


def _taken_over(units: Sequence[Unit], integer: Collection[int], rules: Quantization) -> list[tuple[int, list[int]]]:
    """Return float units that the runtime would run in integers, each with the integer units that let it.

    These are operators between a DQ and a Q that it quantizes by itself, and all others whose operands are DQs and that
    have a Q behind, or need none.
    """
    if not rules.quantized_by_runtime:
        return []
    read = {id(v) for i in integer for v in units[i].input_values()}
    made = {id(v): i for i in integer for v in units[i].outputs}
    quantized = {key: i for key, i in made.items() if units[i].needs_output or units[i].role != "kernel" or key in read}
    wrong = []
    for index, unit in enumerate(units):
        if index in integer or len(unit.outputs) != 1:
            continue
        with_bias = unit.node.op_type == "MatMul" and unit.bias is not None  # the runtime makes a Gemm of it
        affected = "Gemm" if with_bias else unit.node.op_type
        data, result = unit.input_values(), unit.outputs[0]
        alone = unit.role == "kernel" and unit.weight is None and not unit.constants
        complete = alone and all(id(v) in quantized for v in data)
        if id(result) in read and (complete or (affected in rules.quantized_by_runtime and id(data[0]) in made)):
            wrong.append((index, [i for i in integer if any(v is result for v in units[i].input_values())]))
        elif complete and not unit.needs_output:
            wrong.append((index, [quantized[id(data[-1])]]))
    return wrong
