"""Q/DQ nodes and integer weights put into a graph, with short names and shared scales."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import onnx_ir as ir

from onnxedge.api import (
    Array,
    Quantization,
    Unit,
    add_initializer,
    constant,
    drop_if_unused,
    opset,
    refresh_scopes,
    remove_node,
    replace_uses,
    unique_name,
)

from .rounding import LARGEST_BIAS, Grid, Weight, activation_grid, round_weight
from .wide import Grids

SHARED_BYTES = 4096  #: initializers up to this size are compared and shared
Dialect = Literal["standard", "contrib", "per-tensor"]
Use = tuple[ir.Node, int]  #: a node and the index of one of its inputs


class Emitter:
    """Put Q/DQ pairs and integer constants into the main graph of a model.

    Args:
        model: edited in place.
        rules: the target's.
        dialect: ``standard`` Q/DQ of opset 13 or later; ``contrib`` those of com.microsoft; ``per-tensor`` those of
            opset 10 to 12, which know no channels.
        chosen: roundings of weights, by name, that are better than to nearest.
    """

    def __init__(
        self, model: ir.Model, rules: Quantization, dialect: Dialect, chosen: Mapping[str, Weight] | None = None
    ) -> None:
        self.model, self.rules, self.dialect = model, rules, dialect
        self.chosen = chosen or {}
        self._domain = "com.microsoft" if dialect == "contrib" else ""
        self._shared: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}
        self._restored: dict[tuple[ir.Value, int | None, bytes], ir.Value] = {}
        refresh_scopes(model)

    def initializer(self, array: Array, wish: str) -> ir.Value:
        """Return an initializer with these bytes; equal small ones are one."""
        array = np.ascontiguousarray(array).reshape(np.shape(array))
        key = (array.dtype.str, array.shape, array.tobytes() if array.nbytes <= SHARED_BYTES else b"")
        if array.nbytes <= SHARED_BYTES and key in self._shared:
            return self._shared[key]
        value = ir.val(unique_name(self.model.graph, wish), const_value=ir.tensor(array))
        self._shared[key] = add_initializer(self.model.graph, value)
        return value

    def node(self, op: str, inputs: Sequence[ir.Value | None], wish: str, *, axis: int | None = None) -> ir.Node:
        """Create a node with a short name that is in no graph yet.

        The type of its output is left to shape inference, but in the runtime's own domain, which that does not know.
        """
        attributes = {} if axis is None else {"axis": axis}
        domain = self._domain_of(op, inputs)
        node = ir.node(op, inputs, attributes, domain=domain)
        node.name = node.outputs[0].name = unique_name(self.model.graph, wish)
        if domain:
            self.model.graph.opset_imports.setdefault(domain, 1)
            point = inputs[2] if len(inputs) > 2 else None
            dtype = ir.DataType.FLOAT if op == "DequantizeLinear" else point.dtype if point is not None else None
            source = inputs[0].shape if inputs[0] is not None else None
            if dtype is not None and source is not None:
                node.outputs[0].type, node.outputs[0].shape = ir.TensorType(dtype), ir.Shape(source.dims)
        return node

    def _domain_of(self, op: str, inputs: Sequence[ir.Value | None]) -> str:
        """Return the domain of a node: Q/DQ in 16 bits are in the runtime's own before opset 21."""
        if op not in ("QuantizeLinear", "DequantizeLinear"):
            return ""
        point = inputs[2] if len(inputs) > 2 else None
        is_wide = point is not None and point.dtype in (ir.DataType.UINT16, ir.DataType.INT16)
        return "com.microsoft" if is_wide and opset(self.model) < 21 else self._domain

    def grid_inputs(self, grid: Grid) -> list[ir.Value]:
        """Return initializers for an activation's scale and zero point."""
        return [
            self.initializer(np.array(grid.scale, np.float32), "s"),
            self.initializer(np.array(grid.zero_point, grid.dtype), "z"),
        ]

    def pair(self, value: ir.Value, grid: Grid, reads: Sequence[Use], *, takes_over: bool) -> ir.Value:
        """Put Q and DQ behind a value and return what the DQ gives.

        Args:
            value: float activation.
            grid: its scale and zero point.
            reads: uses that read the DQ.
            takes_over: every use reads the DQ, graph outputs too.
        """
        inputs = self.grid_inputs(grid)
        producer = value.producer()
        quantize = self.node("QuantizeLinear", [value, *inputs], "q")
        dequantize = self.node("DequantizeLinear", [quantize.outputs[0], *inputs], "d")
        new = [quantize, dequantize]
        uses = [(use.node, use.idx) for use in value.uses() if use.node not in new] if takes_over else list(reads)
        if producer is None:
            self._insert_first(new)
        else:
            self.model.graph.insert_after(producer, new)
        for node, index in uses:
            node.replace_input_with(index, dequantize.outputs[0])
        if takes_over and value.is_graph_output():
            replace_uses(value, dequantize.outputs[0])
            quantize.replace_input_with(0, value)
        return dequantize.outputs[0]

    def _insert_first(self, nodes: Sequence[ir.Node]) -> None:
        graph = self.model.graph
        if len(graph):
            graph.insert_before(graph[0], nodes)
        else:
            graph.extend(nodes)

    def on_integers(self, unit: Unit, grid: Grid) -> None:
        """Let an operator work on the integers between its input's Q and DQ instead of on floats."""
        node = unit.node
        dequantize = node.inputs[0].producer() if node.inputs[0] is not None else None
        assert dequantize is not None
        node.replace_input_with(0, dequantize.inputs[0])
        if not dequantize.outputs[0].uses() and not dequantize.outputs[0].is_graph_output():
            remove_node(dequantize)
        if node.op_type == "Pad" and node.attributes.get_string("mode", "constant") == "constant":
            if len(node.inputs) < 3:
                node.resize_inputs(3)
            old = node.inputs[2]
            node.replace_input_with(2, self.grid_inputs(grid)[1])
            if old is not None:
                drop_if_unused(old)
        value = unit.outputs[0]
        inner = node.outputs[0]
        floats = self.node("DequantizeLinear", [inner, *self.grid_inputs(grid)], "d")
        uses = [use for use in value.uses() if use.node is not floats]
        self.model.graph.insert_after(node, floats)
        for use in uses:
            use.node.replace_input_with(use.idx, floats.outputs[0])
        if value.is_graph_output():
            replace_uses(value, floats.outputs[0])
            floats.replace_input_with(0, value)
        inner.type = ir.TensorType(ir.DataType[grid.dtype.upper()])

    def constant_input(self, unit: Unit, index: int, *, wide: bool = False) -> None:
        """Quantize a constant operand like an activation: per tensor, over its own range."""
        old = unit.node.inputs[index]
        array = constant(old)
        assert array is not None
        assert old is not None
        low, high = float(array.min(initial=0.0)), float(array.max(initial=0.0))
        grid = activation_grid(low, high, self.rules, wide=wide)
        codes = self.initializer(grid.quantize(array), "c")
        node = self.node("DequantizeLinear", [codes, *self.grid_inputs(grid)], "d")
        self.model.graph.insert_before(unit.node, node)
        unit.node.replace_input_with(index, node.outputs[0])
        drop_if_unused(old)

    def weight(self, unit: Unit, grid: Grid, bias: Array | None) -> None:
        """Quantize a unit's weight and bias; a weight that several units share in one form is stored once.

        Args:
            unit: has a constant weight.
            grid: of its input.
            bias: float32 [C], the bias wanted, or None.
        """
        node, rules = unit.node, self.rules
        assert unit.weight is not None
        old = node.inputs[unit.weight]
        array = constant(old)
        assert array is not None
        assert old is not None
        weight = rounded(unit, array, grid, bias, rules, self.dialect).like(self.chosen.get(old.name or ""))
        key = (old, weight.axis, weight.scale.tobytes())  # held, not its id: it may be dropped here
        if key not in self._restored:
            inputs = [self.initializer(weight.codes, "w"), self.initializer(weight.scale, "s")]
            if node.op_type in rules.explicit_zero_point or self.dialect != "standard":
                inputs.append(self.initializer(np.zeros(weight.scale.shape, np.int8), "z"))
            restored = self.node("DequantizeLinear", inputs, "w", axis=weight.axis)
            self.model.graph.insert_before(self.model.graph[0], restored)
            self._restored[key] = restored.outputs[0]
        node.replace_input_with(unit.weight, self._restored[key])
        drop_if_unused(old)
        self._bias(unit, grid, weight, bias)

    def _bias(self, unit: Unit, grid: Grid, weight: Weight, bias: Array | None) -> None:
        if bias is None:
            return
        node, old = unit.nodes[0], unit.bias
        if self.rules.bias == "float":
            new = self.initializer(bias.astype(np.float32), "b")
        else:
            scale = (np.float32(grid.scale) * weight.scale).astype(np.float32)
            limit = float(2**31 - 1)
            codes = np.clip(np.rint(bias.astype(np.float64) / scale), -limit, limit).astype(np.int32)
            inputs = [self.initializer(codes, "b"), self.initializer(scale, "s")]
            if node.op_type in self.rules.explicit_zero_point or self.dialect != "standard":
                inputs.append(self.initializer(np.zeros(scale.shape, np.int32), "z"))
            axis = 0 if scale.ndim else None
            made = self.node("DequantizeLinear", inputs, "b", axis=axis)
            self.model.graph.insert_before(self.model.graph[0], made)
            new = made.outputs[0]
        add = next((n for n in unit.nodes[1:] if n.op_type == "Add"), None)
        if add is not None:
            add.replace_input_with(0 if add.inputs[0] is old else 1, new)
        else:
            if len(node.inputs) < 3:
                node.resize_inputs(3)
            node.replace_input_with(2, new)
        if old is not None:
            drop_if_unused(old)

    def restore_constant(self, value: ir.Value, codes: Array, scale: Array, axis: int, form: str) -> None:
        """Put integers and the nodes that make them float in the place of a float constant."""
        stored = self.initializer(codes, "w")
        if form == "dequantize":
            inputs = [stored, self.initializer(scale.reshape(-1), "s")]
            nodes = [self.node("DequantizeLinear", inputs, "w", axis=axis)]
        else:
            cast = ir.node("Cast", [stored], {"to": int(ir.DataType.FLOAT)})
            cast.name = cast.outputs[0].name = unique_name(self.model.graph, "f")
            factor = self.initializer(scale.astype(np.float32), "s")
            nodes = [cast, self.node("Mul", [cast.outputs[0], factor], "w")]
        self._insert_first(nodes)
        value.replace_all_uses_with(nodes[-1].outputs[0])
        drop_if_unused(value)


def rounded(unit: Unit, array: Array, grid: Grid, bias: Array | None, rules: Quantization, dialect: Dialect) -> Weight:
    """Return a unit's weight on its integer grid, coarse enough for its bias to fit into int32."""
    axis = None if dialect == "per-tensor" else weight_axis(unit.node, rules)
    least = None
    if bias is not None and rules.bias == "int32":
        least = np.abs(bias).astype(np.float32) / np.float32(grid.scale * LARGEST_BIAS)
        if axis is None or array.shape[axis] != least.size:
            least = least.max(initial=0.0).reshape(())
    return round_weight(array, axis, least_scale=least, limit=weight_limit(unit.node, array, rules))


def weight_limit(node: ir.Node, array: Array, rules: Quantization) -> int:
    """Return the largest magnitude that the integer weights of an operator may have on a target."""
    alone = node.op_type == "Conv" and array.shape[1] == 1 and node.attributes.get_int("group", 1) == len(array)
    default = rules.weight_limit.get(node.op_type, 127)
    return rules.weight_limit.get("DepthwiseConv", 127) if alone else default


def weight_axis(node: ir.Node, rules: Quantization) -> int | None:
    """Return the axis of a node's weight that has a scale of its own on a target, None for one scale."""
    axis = rules.per_channel.get(node.op_type)
    if axis is None or (node.op_type == "ConvTranspose" and node.attributes.get_int("group", 1) > 1):
        return None
    return 1 - axis if node.op_type == "Gemm" and node.attributes.get_int("transB", False) else axis


def emit(emitter: Emitter, units: Sequence[Unit], grids: Grids, biases: Mapping[ir.Node, Array | None]) -> None:
    """Put everything in for the units that run in integers; ``grids`` has one for each value that is quantized."""
    reads: dict[int, list[Use]] = {}
    converted: dict[int, list[Use]] = {}
    values: dict[int, ir.Value] = {}
    made: set[int] = set()
    inside: set[int] = set()
    for unit in units:
        for index in unit.reads:
            value = unit.node.inputs[index]
            assert value is not None
            values.setdefault(id(value), value)
            mine = reads if grids.is_main(unit, value.name or "") else converted
            mine.setdefault(id(value), []).append((unit.node, index))
        for value in unit.outputs:
            if (value.name or "") in grids:
                values.setdefault(id(value), value)
                made.add(id(value))
                if unit.role == "on-integers":
                    inside.add(id(value))
    named = {key: value.name or "" for key, value in values.items()}
    inputs = {unit.node: named[id(unit.input_values()[0])] for unit in units}
    outputs = {unit.node: [named.get(id(v), "") for v in unit.outputs] for unit in units}
    for key, value in values.items():
        if key not in inside:
            own = key in made and emitter.rules.output_scale == "own"
            after = emitter.pair(value, grids[named[key]], reads.get(key, []), takes_over=own)
            if key in converted:
                emitter.pair(after if own else value, grids.other[named[key]], converted[key], takes_over=False)
    for unit in units:
        if unit.role == "on-integers":
            emitter.on_integers(unit, grids[outputs[unit.node][0]])
        for index in unit.constants:
            emitter.constant_input(unit, index, wide=unit.node in grids.wide)
        if unit.weight is not None:
            emitter.weight(unit, grids.read(unit, inputs[unit.node]), biases.get(unit.node))
