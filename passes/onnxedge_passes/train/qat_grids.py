"""Which tensors are trained on a grid, and on which: those that `int8` or `int4` would round, as they would."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import numpy as np
import onnx_ir as ir

from onnxedge.api import (
    Array,
    Context,
    Data,
    Quantization,
    Unit,
    constant,
    constant_tensor,
    forked,
    is_constant,
    opset,
    weight_axes,
)
from onnxedge_passes.quantize.costs import pays
from onnxedge_passes.quantize.emission import rounded
from onnxedge_passes.quantize.fidelity import Reference
from onnxedge_passes.quantize.grids import grids_of
from onnxedge_passes.quantize.int4.blocks import Blocks, grid, nearest
from onnxedge_passes.quantize.int4.fit import fit
from onnxedge_passes.quantize.int4.int4 import Int4
from onnxedge_passes.quantize.layers import Layer, find_layers, four_bit_form
from onnxedge_passes.quantize.quantizer import Quantizer, Settings
from onnxedge_passes.quantize.refine.covariance import by_covariance
from onnxedge_passes.quantize.refine.layers import Layer as Channels
from onnxedge_passes.quantize.rounding import Grid, Weight, aligned
from onnxedge_passes.train.fake_quantization import ActivationGrid, Steps, WeightGrid
from onnxedge_passes.train.signal import signal_nodes
from onnxedge_passes.train.weights import put_weights

_MIDDLE = 8  #: code of 0 in 4 bits where the grid is symmetric
_ROUNDED_BY_SAMPLES = ("Conv", "Gemm", "MatMul")
_BATCH, _HELD_OUT = 16, 64  #: samples that tell which rounding is better
_WORK = 1e12  #: multiply-accumulates that rounding by samples may take; the cheapest layers come first


@dataclass(frozen=True)
class Grids:
    """Hold the grids of a model.

    Attributes:
        weights: in the graph's order.
        activations: in the graph's order.
    """

    weights: tuple[WeightGrid, ...] = ()
    activations: tuple[ActivationGrid, ...] = ()


def eight_bit_grids(model: ir.Model, context: Context, samples: int) -> Grids:
    """Return what `int8` would compute with in integers on the target, with ranges of the calibration samples.

    Args:
        model: names and shapes there; not changed.
        context: with a target that has integer rules, and samples.
        samples: that are observed, at most.
    """
    rules = context.target.quantization
    if rules is None:
        context.note(None, f"no activations on a grid: target {context.target.name} has no integer rules")
        return Grids()
    quantizer = Quantizer(Settings(stored=False, samples=samples), model, context)
    units = quantizer.calibrated().integer
    if not units:
        return Grids()
    grids = grids_of(units, quantizer.seen, quantizer.method, rules)
    weights: dict[str, WeightGrid] = {}
    for unit, value in _weights(units, context):
        array, bias = constant(value), constant(unit.bias)
        assert array is not None
        flat = None if bias is None else bias.reshape(-1).astype(np.float32)
        data = grids[unit.input_values()[0].name or ""]
        weight = rounded(unit, array, data, flat, rules, quantizer.dialect or "standard")
        scale = aligned(weight.scale, array.ndim, weight.axis)
        steps = Steps(scale, None, float(-weight.limit), float(weight.limit))
        weights.setdefault(value.name or "", WeightGrid(value.name or "", steps))
    return Grids(tuple(weights.values()), tuple(_activations(units, grids, rules)))


def _weights(units: Sequence[Unit], context: Context) -> Iterator[tuple[Unit, ir.Value]]:
    """Yield the units with a weight that nobody reads in another way."""
    places = {(unit.node, unit.weight) for unit in units}
    for unit in units:
        value = unit.node.inputs[unit.weight] if unit.weight is not None else None
        if value is None or not value.name:
            continue
        if not value.is_graph_output() and all((use.node, use.idx) in places for use in value.uses()):
            yield unit, value
        else:
            context.note(unit.node, "its weight is not trained on a grid: it is read in another way, too")


class _ByName(Protocol):
    """Hold grids by the name of a value."""

    def __contains__(self, name: object) -> bool: ...

    def __getitem__(self, name: str) -> Grid: ...


def _activations(units: Sequence[Unit], grids: _ByName, rules: Quantization) -> Iterator[ActivationGrid]:
    """Yield the grids of the values that get a QuantizeLinear: see :func:`onnxedge_passes.quantize.emission.emit`."""
    made = {v: unit for unit in units for v in unit.outputs if (v.name or "") in grids}
    readers: dict[ir.Value, list[str]] = {}
    for unit in units:
        for value in unit.input_values():
            readers.setdefault(value, []).append(unit.node.outputs[0].name or "")
    for value in dict.fromkeys([*readers, *made]):
        maker = made.get(value)
        if maker is not None and maker.role == "on-integers":
            continue
        own = maker is not None and rules.output_scale == "own"
        yield ActivationGrid(value.name or "", _steps(grids[value.name or ""]), None if own else tuple(readers[value]))


def _steps(found: Grid) -> Steps:
    info = np.iinfo(found.dtype)
    low, high = float(info.min - found.zero_point), float(info.max - found.zero_point)
    return Steps(np.array(found.scale, np.float32), None, low, high)


def four_bit_grids(model: ir.Model, context: Context, *, block: int, least: int, samples: int) -> Grids:
    """Return what `int4` would store by blocks on the target, and all other weights with a scale a channel.

    Training begins with weights that are rounded as well as can be without it: so that the errors of a layer's inputs
    cancel in its outputs, where there are samples and held-out ones are answered better with it.

    Args:
        model: names and shapes there; not changed.
        context: for the target, samples and notes.
        block: elements of a block.
        least: elements under which other weights stay as they are.
        samples: that are looked at, at most.
    """
    rules = context.target.quantization
    symmetric = rules is not None and rules.activation_symmetric
    quiet = Context(context.target, None, original=context.original, seed=context.seed, threads=context.threads)
    least_stored = Int4().min_elements
    form = partial(four_bit_form, context.target, opset(model))
    layers = find_layers(model, quiet, least=least_stored, skip=(), form=form, block=block)
    stored = [layer for layer in layers if layer.form != "matmul-nbits" or pays(layer, rules, "MatMulNBits")]
    taken = {layer.value for layer in stored}
    channels = list(_channel_grids(model, taken, least, context))
    if channels:
        text = "weights get a scale an output channel: `int4` does not store them here (operator, size, opset, target)"
        context.note(None, f"{len(channels)} {text}")
    plain = (nearest(layer.matrix, block, symmetric=symmetric) for layer in stored)
    near = [*(_block_grid(layer, blocks, block) for layer, blocks in zip(stored, plain, strict=True)), *channels]
    data = context.calibration.slice(0, samples)
    if data.synthetic:
        return Grids(tuple(near))
    seen, held = data.split(0.25) if len(data) >= 8 else (data, data)
    made = fit(model, stored, seen, quiet, method="gptq", block=block, symmetric=symmetric)
    blocks = [_block_grid(layer, made[layer].blocks, block) for layer in stored]
    return Grids(_better(model, near, [*blocks, *_started(model, channels, seen, quiet)], held, quiet))


def _better(
    model: ir.Model, near: Sequence[WeightGrid], seen: Sequence[WeightGrid], held: Data, context: Context
) -> tuple[WeightGrid, ...]:
    """Return those grids of two with which the model, rounded, answers held-out samples more as it did."""
    reference = Reference(model, list(held.feeds(_BATCH, limit=_HELD_OUT)), context)
    constants, noise = named_constants(model), []
    for grids in (near, seen):
        copy, _ = forked(model)
        arrays = {found.name: _start(found, constants[found.name]) for found in grids}
        put_weights(copy, {found.name: settled(found, found.rounded(arrays[found.name])) for found in grids})
        noise.append(reference.compare(copy).noise)
    return tuple(seen if noise[1] < noise[0] else near)


def _start(found: WeightGrid, value: ir.Value) -> Array:
    array = constant(value) if found.start is None else found.start
    assert array is not None
    return array


def _block_grid(layer: Layer, blocks: Blocks, block: int) -> WeightGrid:
    steps = Steps(blocks.scale[..., None], blocks.zero[..., None].astype(np.float32), 0.0, 15.0)
    start = np.ascontiguousarray(blocks.restored() if layer.transposed else blocks.restored().T)
    return WeightGrid(layer.value.name or "", steps, block=block, transposed=layer.transposed, start=start)


def _started(model: ir.Model, grids: Sequence[WeightGrid], data: Data, context: Context) -> list[WeightGrid]:
    """Return the grids of channels with weights rounded by the covariance of their layers' inputs."""
    layers, held = list[Channels](), named_constants(model)
    for found in grids:
        value = held[found.name]
        nodes, array = tuple(use.node for use in value.uses()), constant(value)
        assert array is not None
        if array.dtype != np.float32 or any(node.op_type not in _ROUNDED_BY_SAMPLES for node in nodes):
            continue
        shape = found.steps.scale.shape
        axis = next((axis for axis, size in enumerate(shape) if size > 1), 0)
        limit = int(found.steps.high)
        codes = np.clip(found.steps.codes(array), -limit, limit).astype(np.int8)
        layers.append(Channels(value, nodes, Weight(codes, found.steps.scale.reshape(-1), axis, limit), centred=False))
    made = by_covariance(model, layers, data, context, limit=len(data), work=_WORK)
    return [replace(g, start=made[g.name].restored()) if g.name in made else g for g in grids]


def _channel_grids(model: ir.Model, taken: set[ir.Value], least: int, context: Context) -> Iterator[WeightGrid]:
    found: dict[ir.Value, tuple[ir.Node, int]] = {}
    signal = signal_nodes(model.graph)
    for node in (node for node in model.graph if node not in signal):
        axes = weight_axes(node)
        value = node.inputs[axes.index] if axes is not None else None
        tensor = constant_tensor(value)
        if axes is None or value is None or tensor is None or value in taken or value in found or not value.name:
            continue
        if tensor.dtype != ir.DataType.FLOAT or len(tensor.shape) < 2 or tensor.size < least:
            continue
        if node.op_type == "MatMul" and (len(tensor.shape) != 2 or is_constant(node.inputs[0])):
            continue
        elsewhere = any(use.node.graph is not model.graph for use in value.uses()) or value.is_graph_output()
        if elsewhere or any(_axis(use.node, use.idx) != axes.output for use in value.uses()):
            context.note(node, "its weight is not trained on a grid: it is read in another way, too")
            continue
        found[value] = (node, axes.output)
    for value, (_, axis) in found.items():
        array = constant(value)
        if array is not None and np.isfinite(array).all():
            yield channel_grid(value.name or "", array, axis)


def _axis(node: ir.Node, index: int) -> int | None:
    axes = weight_axes(node)
    return axes.output if axes is not None and axes.index == index else None


def channel_grid(name: str, array: Array, axis: int) -> WeightGrid:
    """Return the symmetric 4-bit grid of a weight with a scale of least squared error for each channel."""
    rows = np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)
    scale, _ = grid(rows, symmetric=True)
    return WeightGrid(name, Steps(aligned(scale, array.ndim, axis), None, float(-_MIDDLE), float(_MIDDLE - 1)))


def named_constants(model: ir.Model) -> dict[str, ir.Value]:
    """Return initializers and outputs of Constant nodes of the main graph by name."""
    nodes = [node.outputs[0] for node in model.graph if node.op_type == "Constant"]
    return {value.name: value for value in (*nodes, *model.graph.initializers.values()) if value.name}


def settled(found: WeightGrid, weight: Array, *, rounds: int = 4) -> Array:
    """Return a weight on its grid so that `int8` or `int4` finds the same grid in it.

    They read the grid of a channel or a block off its least and largest element. Where these are not the ends of the
    grid that was trained, they are made so. A channel of 4 bits is as it is: nothing reads it back.
    """
    if not found.block:
        return weight if found.steps.high < _MIDDLE else _filled(found, weight)
    symmetric = found.steps.zero is not None and bool((found.steps.zero == _MIDDLE).all())
    matrix = weight if found.transposed else weight.T
    for _ in range(rounds):
        other = nearest(matrix, found.block, symmetric=symmetric, search=False).restored()
        if np.allclose(other, matrix, rtol=1e-5, atol=1e-8):
            break
        matrix = other
    return np.ascontiguousarray(matrix if found.transposed else matrix.T)


def _filled(found: WeightGrid, weight: Array) -> Array:
    """Return a weight whose largest code in each channel is the largest that there is."""
    axes = tuple(
        axis for axis in range(weight.ndim) if found.steps.scale.ndim == 0 or found.steps.scale.shape[axis] == 1
    )
    top = np.abs(weight).max(axis=axes, keepdims=True) / np.float32(found.steps.high)
    scale = np.where(top > np.finfo(np.float32).tiny, top, np.float32(1)).astype(np.float32)
    return replace(found.steps, scale=scale)(weight)
