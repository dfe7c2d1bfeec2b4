"""BatchNormalization that was folded before training comes back for as long as it lasts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxedge.api import (
    Array,
    Context,
    Feed,
    capture,
    constant,
    insert_after,
    is_standard,
    move_uses,
    new_initializer,
    unique_name,
    use_count,
)

_EPSILON = 1e-5
_LEAST = 1e-12  #: of a variance that a scale is made of: a dead channel has none


@dataclass(frozen=True)
class Restored:
    """Name a normalization that was put behind a Conv.

    Attributes:
        weight, bias: of the Conv, in the model that is trained, too.
        scale, shift, mean, variance: of the normalization, in the graph that is trained alone.
    """

    weight: str
    bias: str
    scale: str
    shift: str
    mean: str
    variance: str


def normalized_outputs(original: ir.Model) -> set[str]:
    """Return the names of the values that a Conv of a model makes and a BatchNormalization reads."""
    found = set()
    for node in original.graph:
        source = node.inputs[0] if node.op_type == "BatchNormalization" and is_standard(node) else None
        producer = source.producer() if source is not None else None
        if producer is not None and producer.op_type == "Conv" and source is not None and source.name:
            found.add(source.name)
    return found


def restore_normalizations(
    graph: ir.Graph, model: ir.Model, names: Iterable[str], feeds: Sequence[Feed], context: Context
) -> list[Restored]:
    """Put a BatchNormalization behind Convs that it was folded into, that changes nothing at first.

    Its statistics are those of the Conv's output on samples; scale and shift undo what it does with them. It takes the
    output's name, so that losses find what they found.

    Args:
        graph: edited in place.
        model: the model that the graph belongs to.
        names: of the Convs' outputs.
        feeds: samples.
        context: for threads.
    """
    wanted = set(names)
    convs = [node for node in graph if node.op_type == "Conv" and is_standard(node) and _fits(node, wanted)]
    if not convs:
        return []
    statistics = _statistics(model, [conv.outputs[0] for conv in convs], feeds, context.threads)
    return [_restored(graph, conv, *moments) for conv, moments in zip(convs, statistics, strict=True)]


def _fits(conv: ir.Node, wanted: set[str]) -> bool:
    output = conv.outputs[0]
    if output.name not in wanted or output.is_graph_output() or len(conv.inputs) < 3:
        return False
    if any(use.node.op_type == "BatchNormalization" for use in output.uses()):
        return False
    parameters = [value for value in conv.inputs[1:3] if value is not None]
    arrays = [constant(value) for value in parameters]
    sole = len(parameters) == 2 and all(use_count(value) == 1 and value.name for value in parameters)
    return sole and all(array is not None and array.dtype == np.float32 for array in arrays)


def _statistics(
    model: ir.Model, values: Sequence[ir.Value], feeds: Sequence[Feed], threads: int
) -> list[tuple[Array, Array]]:
    """Return mean and variance of each value by channel, float64 [C] each."""
    sums = [(0, np.zeros(1), np.zeros(1)) for _ in values]
    for arrays in capture(model, values, feeds, threads=threads):
        for index, array in enumerate(arrays):
            rows = np.moveaxis(array, 1, -1).reshape(-1, array.shape[1]).astype(np.float64)
            count, first, second = sums[index]
            sums[index] = (count + len(rows), first + rows.sum(0), second + (rows * rows).sum(0))
    means = [(first / count, second / count) for count, first, second in sums]
    return [(mean, np.maximum(square - mean * mean, _LEAST)) for mean, square in means]


def _restored(graph: ir.Graph, conv: ir.Node, mean: Array, variance: Array) -> Restored:
    output = conv.outputs[0]
    name, arrays = (
        output.name or "",
        {"scale": np.sqrt(variance + _EPSILON), "shift": mean, "mean": mean, "var": variance},
    )
    made = [new_initializer(graph, array.astype(np.float32), f"{name}.{key}") for key, array in arrays.items()]
    node = insert_after(conv, "BatchNormalization", [output, *made], attributes={"epsilon": _EPSILON}, name=name)
    normalized = node.outputs[0]
    move_uses(output, normalized)
    node.replace_input_with(0, output)
    output.name = unique_name(graph, f"{name}.conv")
    normalized.name, normalized.type, normalized.shape = name, output.type, output.shape
    names = [value.name or "" for value in made]
    weight, bias = (value.name or "" for value in conv.inputs[1:3] if value is not None)
    return Restored(weight, bias, *names)


def folded(values: Mapping[str, Array], restored: Sequence[Restored], before: Mapping[str, Array]) -> dict[str, Array]:
    """Return trained values with the normalizations folded into their Convs again.

    Args:
        values: what was trained, with running statistics; empty where nothing was.
        restored: the normalizations.
        before: all that the entries name, as it was before training.
    """
    made = dict(values)
    for entry in restored if values else ():
        keys = (entry.scale, entry.shift, entry.mean, entry.variance)
        scale, shift, mean, variance = (made.pop(key, before[key]).astype(np.float64) for key in keys)
        weight, bias = (made.get(key, before[key]) for key in (entry.weight, entry.bias))
        factor = scale / np.sqrt(variance + _EPSILON)
        made[entry.weight] = (weight * factor.reshape(-1, *[1] * (weight.ndim - 1))).astype(np.float32)
        made[entry.bias] = ((bias - mean) * factor + shift).astype(np.float32)
    return made
