"""Quantization that a model brings along."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxedge.api import (
    Context,
    Quantization,
    Unit,
    constant,
    drop_if_unused,
    forked,
    infer_shapes,
    is_constant,
    new_initializer,
    refresh_scopes,
    remove_node,
    replace_uses,
    sole_consumer,
)

from .dequantize import Dequantize
from .rounding import Grid, aligned

QUANTIZED = ("QuantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger")


def is_quantized(model: ir.Model) -> bool:
    """Tell whether activations of the main graph are quantized already."""
    return any(node.op_type in QUANTIZED for node in model.graph)


def make_float(model: ir.Model, context: Context) -> int:
    """Take the quantization out of a model and count the rewrites; 0 where some of it would stay, with the reason.

    A lower end of 0 stays as Relu: the rest of a range was chosen, and is chosen anew.
    """
    step = Dequantize(saturation="zero")
    trial, _ = forked(model)
    refresh_scopes(trial)
    quiet = Context(context.target, None, original=trial)
    step.run(trial, quiet)
    if is_quantized(trial):
        for note in quiet.notes:
            context.note(note.where or None, f"not made float: {note.reason}")
        return 0
    refresh_scopes(model)
    count = step.run(model, context).rewrites
    infer_shapes(model)
    return count


def fold_constants(model: ir.Model, context: Context) -> int:
    """Turn weights behind a DequantizeLinear into float constants and count them: runtimes may run it each time."""
    count = 0
    for node in list(model.graph):
        if node.op_type != "DequantizeLinear" or node.outputs[0].is_graph_output():
            continue
        array = restored(node)
        if array is None:
            continue
        old = node.outputs[0]
        name = old.name or "weight"
        new = new_initializer(model.graph, array, name)
        old.replace_all_uses_with(new)
        remove_node(node)
        drop_if_unused(old)
        context.note(new, "stood behind a DequantizeLinear that the runtime does not fold: quantized anew")
        count += 1
    return count


def restored(node: ir.Node) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]] | None:
    """Return the float32 constant that a DequantizeLinear makes, None where an input is no constant or in blocks."""
    codes, scale = constant(node.inputs[0]), constant(node.inputs[1])
    zero = constant(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else np.zeros(())
    if codes is None or scale is None or zero is None or node.attributes.get_int("block_size", False):
        return None
    if codes.dtype.kind not in "iu" or scale.dtype != np.float32:
        return None
    axis = None if scale.size == 1 else node.attributes.get_int("axis", 1) % codes.ndim
    if axis is None:
        scale, zero = scale.reshape(()), zero.reshape(())
    centred = codes.astype(np.int32) - aligned(np.asarray(zero, np.int32), codes.ndim, axis if np.ndim(zero) else None)
    return (centred.astype(np.float32) * aligned(scale, codes.ndim, axis)).astype(np.float32)


@dataclass(frozen=True)
class Existing:
    """Hold what a model brings along that new integers must fit to.

    Attributes:
        grids: scale and zero point of values that the model quantizes, or makes of integers, by name.
        nodes: positions of nodes that compute on integers already.
    """

    grids: Mapping[str, Grid]
    nodes: frozenset[int]

    @classmethod
    def of(cls, model: ir.Model, rules: Quantization) -> Existing:
        """Read a model."""
        grids: dict[str, Grid] = {}
        done: set[ir.Node] = set()
        for node in model.graph:
            if node.op_type == "QuantizeLinear" and node.inputs[0] is not None:
                maker = node.inputs[0].producer()
                grid = _grid(node, rules)
                if grid is not None and (maker is None or maker.op_type not in rules.fixed):
                    grids.setdefault(node.inputs[0].name or "", grid)
            elif node.op_type == "DequantizeLinear" and not is_constant(node.inputs[0]):
                grid = _grid(node, rules)
                if grid is not None:
                    grids[node.outputs[0].name or ""] = grid
            else:
                done.update(_on_integers(node, rules))
        return cls(grids, frozenset(i for i, node in enumerate(model.graph) if node in done))

    def torn(self, units: Sequence[Unit]) -> list[Unit]:
        """Return units that move integers unchanged from one of the grids to another: they have to stay float."""
        wrong: list[Unit] = []
        known = dict(self.grids)
        for unit in units:
            if unit.role == "kernel":
                continue
            names = [value.name or "" for value in (*unit.input_values(), *unit.outputs)]
            found = {known[name] for name in names if name in known}
            if len(found) > 1:
                wrong.append(unit)
            else:
                known.update((name, grid) for grid in found for name in names)
        return wrong


def _grid(node: ir.Node, rules: Quantization) -> Grid | None:
    """Return the grid of a Q or DQ of the target's kind; None of others, and where a scale is no constant."""
    scale, zero = constant(node.inputs[1]), constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if scale is None or scale.size != 1 or zero is None or zero.size != 1 or zero.dtype.name != rules.activation:
        return None
    return Grid(float(scale.reshape(())), int(zero.reshape(())), rules.activation)


def _on_integers(node: ir.Node, rules: Quantization) -> list[ir.Node]:
    """Return a node between DequantizeLinear and QuantizeLinear on all sides, and the activation that it absorbs."""
    floats = [v for v in node.inputs if v is not None and v.dtype == ir.DataType.FLOAT and not is_constant(v)]
    made = [maker.op_type if (maker := value.producer()) is not None else "" for value in floats]
    operands = node.inputs[:2] if node.op_type in rules.integer else ()
    if not made or set(made) != {"DequantizeLinear"} or any(is_constant(value) for value in operands):
        return []
    if node.op_type in rules.integer and node.op_type not in rules.quantize_output and len(floats) > 1:
        return [node]  # the runtime needs no Q behind it
    nodes = [node]
    while (after := sole_consumer(nodes[-1].outputs[0])) is not None and after.op_type in rules.float_before_output:
        nodes.append(after)
    readers = {use.node.op_type for value in nodes[-1].outputs for use in value.uses()}
    return nodes if readers == {"QuantizeLinear"} else []


def merge_pairs(model: ir.Model) -> None:
    """Take out a Q behind a DQ of the same scale and zero point: it gives the integers that the DQ read."""
    for node in list(model.graph):
        maker = node.inputs[0].producer() if node.op_type == "QuantizeLinear" and node.inputs[0] is not None else None
        if maker is None or maker.op_type != "DequantizeLinear" or not _alike(maker, node):
            continue
        codes = maker.inputs[0]
        if codes is None or not replace_uses(node.outputs[0], codes):
            continue
        _drop(node)
        for other in [use.node for use in codes.uses() if use.node is not maker]:
            same = other.op_type == "DequantizeLinear" and _alike(maker, other)
            if same and replace_uses(other.outputs[0], maker.outputs[0]):
                _drop(other)
        if not maker.outputs[0].uses() and not maker.outputs[0].is_graph_output():
            _drop(maker)


def _drop(node: ir.Node) -> None:
    inputs = [value for value in node.inputs if value is not None]
    remove_node(node)
    for value in inputs:
        drop_if_unused(value)


def _alike(first: ir.Node, other: ir.Node) -> bool:
    """Tell whether two nodes have one scale and one zero point, the same."""
    if first.domain != other.domain or len(first.inputs) < 3 or len(other.inputs) < 3:
        return False
    for index in (1, 2):
        a, b = constant(first.inputs[index]), constant(other.inputs[index])
        if a is None or b is None or a.size != 1 or b.size != 1 or a.dtype != b.dtype or a.item() != b.item():
            return False
    return True
