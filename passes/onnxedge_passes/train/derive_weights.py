"""Weights drawn anew, as for a network that is to be trained from the beginning."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir

from onnxedge.api import Array, Context, constant, is_standard, operator, static_shape, subgraphs, weight_axes
from onnxedge_passes.train.signal import signal_nodes
from onnxedge_passes.train.weights import find_weights, put_weights

_RECTIFIERS = (
    "Relu", "LeakyRelu", "PRelu", "ThresholdedRelu", "Clip", "HardSwish", "Swish", "Mish", "Gelu", "Elu", "Selu",
    "Celu", "Softplus",
)  # fmt: skip
_THROUGH = ("BatchNormalization", "Add")  #: between a layer and its activation
_NORMS = ("BatchNormalization", "LayerNormalization", "GroupNormalization", "InstanceNormalization", "RMSNormalization")
_RECURRENT = ("LSTM", "GRU", "RNN")
_VIEWS = ("Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten")
_TABLE_DEVIATION = 0.02  #: of embeddings and positions, as in Devlin et al. 2019
_SLOPE = 0.25  #: of PRelu


def draw_weights(model: ir.Model, context: Context, seed: int) -> int:
    """Draw the weights of the main graph anew, in place, and return how many.

    Weights of layers are normal: of variance ``2 / fan_in`` where a rectifier comes next (He et al. 2015,
    arXiv:1502.01852, section 2.2), else ``2 / (fan_in + fan_out)`` (Glorot and Bengio 2010, equation 12); recurrent
    ones are uniform within ``1 / sqrt(hidden)``. Biases are 0, scales of normalizations 1, running means 0 and
    variances 1, embeddings and positions normal with deviation 0.02. Transforms of a signal stay: see
    :func:`signal_nodes`.
    """
    rng, signal = np.random.default_rng(seed), signal_nodes(model.graph)
    drawn: dict[str, Array] = {}
    for name, value in find_weights(model.graph).items():
        shape = static_shape(value)
        reader = next(_readers(value), None)
        if reader is not None and reader[0] in signal:
            context.note(reader[0], "keeps the teacher's values: it transforms the signal that a logarithm is taken of")
            continue
        array = None if reader is None or shape is None else _drawn(*reader, shape, rng)
        if array is None:
            context.note(value, "keeps the teacher's values: how to draw it is not known")
        else:
            drawn[name] = array
    for node in model.graph:
        if node.op_type == "BatchNormalization" and is_standard(node):
            drawn |= _statistics(node, context)
    _tell_kept(model, drawn, context)
    put_weights(model, drawn)
    return len(drawn)


def _readers(value: ir.Value) -> Iterator[tuple[ir.Node, int, tuple[int, ...] | None]]:
    """Yield who reads a constant, by which input and in which shape, views in between."""
    for use in value.uses():
        if is_standard(use.node) and use.node.op_type in _VIEWS and use.idx == 0:
            yield from _readers(use.node.outputs[0])
        else:
            yield use.node, use.idx, static_shape(value)


def _drawn(
    node: ir.Node, index: int, seen: tuple[int, ...] | None, shape: tuple[int, ...], rng: np.random.Generator
) -> Array | None:
    """Return new values for a constant of some shape, None where its part is not known."""
    axes = weight_axes(node)
    if axes is not None and index == axes.index and seen is not None and len(seen) >= 2:
        return _normal(rng, shape, _deviation(node, seen))
    if node.op_type in _RECURRENT and is_standard(node):
        bound = 1 / math.sqrt(max(node.attributes.get_int("hidden_size", 1) or 1, 1))
        weight = rng.uniform(-bound, bound, shape).astype(np.float32)
        return weight if index in (1, 2) else np.zeros(shape, np.float32)
    if not is_standard(node):
        return None
    if node.op_type in _NORMS and index in (1, 2):
        return np.full(shape, float(index == 1), np.float32)
    if node.op_type == "PRelu":
        return np.full(shape, _SLOPE, np.float32)
    if node.op_type == "Gather" and index == 0:
        return _normal(rng, shape, _TABLE_DEVIATION)
    is_vector = sum(size > 1 for size in shape) <= 1
    if index == operator(node).bias or (node.op_type in ("Add", "Sub") and is_vector):
        return np.zeros(shape, np.float32)
    if node.op_type == "MatMul" and seen is not None and len(seen) >= 2:
        inner, outer = (seen[-2], seen[-1]) if index == 1 else (seen[-1], seen[-2])
        return _normal(rng, shape, math.sqrt(2 / (inner + outer)))
    if node.op_type in ("Add", "Concat", "Expand"):  # positions, class tokens
        return _normal(rng, shape, _TABLE_DEVIATION)
    return None


def _deviation(node: ir.Node, shape: tuple[int, ...]) -> float:
    """Return the standard deviation of a layer's weights, of the shape that the layer reads."""
    axes = weight_axes(node)
    assert axes is not None
    kernel = math.prod(shape[2:]) if "Conv" in node.op_type else 1
    inner, outer = shape[axes.input] * kernel, shape[axes.output] * kernel
    if node.op_type == "Conv":
        outer //= max(axes.groups, 1)
    elif node.op_type == "ConvTranspose":
        strides = math.prod([int(stride) for stride in node.attributes.get_ints("strides", ())])
        inner = max(inner // max(axes.groups, 1) // strides, 1)
    return math.sqrt(2 / inner) if _rectified(node) else math.sqrt(2 / (inner + max(outer, 1)))


def _rectified(node: ir.Node) -> bool:
    """Tell whether a rectifier, or what weighs a value by its own sigmoid, reads a layer next."""
    values = [node.outputs[0]]
    for _ in range(3):
        readers = [use.node for value in values for use in value.uses()]
        kinds = {reader.op_type for reader in readers}
        if not kinds.isdisjoint(_RECTIFIERS) or ({"Mul"} & kinds and {"Sigmoid", "HardSigmoid", "Erf"} & kinds):
            return True
        values = [reader.outputs[0] for reader in readers if reader.op_type in _THROUGH]
    return False


def _normal(rng: np.random.Generator, shape: tuple[int, ...], deviation: float) -> Array:
    return np.asarray(rng.standard_normal(shape) * deviation, np.float32)


def _statistics(node: ir.Node, context: Context) -> dict[str, Array]:
    found: dict[str, Array] = {}
    for index, number in ((3, 0.0), (4, 1.0)):
        value = node.inputs[index] if len(node.inputs) > index else None
        array = constant(value)
        if value is None or not value.name or array is None or array.dtype != np.float32:
            context.note(node, "its running statistics are no constants of float32: they stay")
            return {}
        found[value.name] = np.full(array.shape, number, np.float32)
    return found


def _tell_kept(model: ir.Model, drawn: Mapping[str, Array], context: Context) -> None:
    """Note the weights that are not drawn."""
    for node in model.graph:
        kept = [value for value in node.inputs if value is not None and _root(value).name not in drawn]
        if operator(node).kind not in ("contraction", "attention", "recurrent"):
            continue
        for value in kept:
            array = constant(value)
            if value.is_initializer() and value.is_graph_input():
                reason = "a caller may override them; put `freeze-initializers` first"
            elif array is None or array.ndim < 2 or array.dtype.kind != "f":
                continue
            elif array.dtype != np.float32:
                reason = f"they are {array.dtype}; put `fp32` before"
            else:
                reason = "how to draw them is not known"
            context.note(node, f"weights of it keep the teacher's values: {reason}")
    for node in model.graph:
        if any(True for _ in subgraphs(node)) or (node.domain, node.op_type, node.overload) in model.functions:
            context.note(node, "weights inside of it keep the teacher's values")


def _root(value: ir.Value) -> ir.Value:
    """Return the constant that a view shows, or the value itself."""
    node = value.producer()
    while node is not None and is_standard(node) and node.op_type in _VIEWS and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    return value
