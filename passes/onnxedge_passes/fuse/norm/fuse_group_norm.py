"""GroupNormalization from the operators that exporters spell it in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxedge.api import (
    Accuracy,
    Array,
    Context,
    constant,
    graph_of,
    insert_before,
    is_standard,
    new_initializer,
    replace_uses,
    sole_consumer,
)
from onnxedge_passes.cleanup.worklist import (
    Outcome,
    Refused,
    Rule,
    input_at,
    is_exported_twice,
    node_before,
    node_opset,
    retire,
)
from onnxedge_passes.fuse.linear.affine import along

_NAME = "group normalization not fused"


@dataclass(frozen=True)
class Groups:
    """Hold a group normalization: what is normalized, into how many groups, and its parameters, float64 [C]."""

    source: ir.Value
    count: int
    last: ir.Node
    scale: Array
    shift: Array


@dataclass(frozen=True, kw_only=True)
class FuseGroupNorm(Rule):
    """Fuse InstanceNormalization between two Reshapes, and scale and shift behind them, into one operator.

    Before: ``r = InstanceNormalization(Reshape(x, [0, G, -1]), 1, 0); y = Reshape(r, shape of x) * gamma + beta``
    After:  ``y = GroupNormalization<num_groups=G>(x, gamma, beta)``

    What stands between the Reshapes may be raw operators first: ``fuse-instance-norm`` turns them into the operator.
    Left alone: opsets before 21, whose operator has one gamma for a whole group; ONNX Runtime on the CPU, which has no
    kernel and takes 323 us for the function body and 196 us for the nodes ([1, 64, 64, 64], 32 groups); inner values
    with other readers; an output that is exported twice; channels that are not known.
    accuracy: rounding. Source: Wu and He 2018, arXiv:1803.08494; ONNX GroupNormalization, opset 21.
    """

    name: ClassVar[str] = "fuse-group-norm"
    accuracy: ClassVar[Accuracy] = "rounding"
    roots: ClassVar[tuple[str, ...]] = ("InstanceNormalization",)

    def rewrite(self, node: ir.Node, context: Context) -> Outcome:
        """Look before and behind an instance normalization."""
        found = _groups(node)
        if found is None:
            return None
        if node_opset(node) < 21:
            return Refused(f"{_NAME}: the operator with one gamma a channel comes with opset 21")
        if context.target.runtime.startswith("onnxruntime"):
            return Refused(f"{_NAME}: the runtime is faster with the nodes")
        if is_exported_twice(found.last.outputs[0]):
            return Refused(f"{_NAME}: its output is exported twice")
        graph, label = graph_of(node), node.name or "group_norm"
        dtype = (found.source.dtype or ir.DataType.FLOAT).numpy()
        parameters = [
            new_initializer(graph, array.astype(dtype), f"{label}_{key}")
            for key, array in (("gamma", found.scale), ("beta", found.shift))
        ]
        fused = insert_before(
            found.last,
            "GroupNormalization",
            [found.source, *parameters],
            attributes={"num_groups": found.count, "epsilon": node.attributes.get_float("epsilon", 1e-5)},
            name=node.name,
            like=found.last.outputs,
        )
        replace_uses(found.last.outputs[0], fused.outputs[0])
        retire(found.last)
        return fused.outputs[0]


def _groups(node: ir.Node) -> Groups | None:
    """Return the group normalization around an instance normalization of rank 3, None where there is none."""
    before, after = node_before(node, "Reshape"), sole_consumer(node.outputs[0])
    if before is None or after is None or after.op_type != "Reshape":
        return None
    if not is_standard(after) or after.graph is not node.graph:
        return None
    source, inner, gamma, beta = before.inputs[0], node.inputs[0], constant(node.inputs[1]), constant(node.inputs[2])
    if source is None or inner is None or gamma is None or beta is None or (gamma != 1).any() or beta.any():
        return None
    channels = _channels(source, after.outputs[0])
    if channels is None or channels % gamma.size or not _splits(before, source, inner, gamma.size):
        return None
    last, scale = _constant_behind(after, "Mul", channels, np.ones(channels))
    last, shift = _constant_behind(last, "Add", channels, np.zeros(channels))
    return Groups(source, gamma.size, last, scale, shift)


def _channels(source: ir.Value, result: ir.Value) -> int | None:
    """Return the channels of an image that a Reshape gives back in its own shape."""
    if source.shape is None or result.shape is None or len(source.shape) < 3 or len(source.shape) != len(result.shape):
        return None
    if list(source.shape[1:]) != list(result.shape[1:]) or not all(isinstance(d, int) and d for d in source.shape[1:]):
        return None
    return int(source.shape[1])  # type: ignore[arg-type]


def _splits(reshape: ir.Node, source: ir.Value, inner: ir.Value, groups: int) -> bool:
    """Tell whether a Reshape keeps the batch and splits the rest into groups."""
    shape = constant(input_at(reshape, 1))
    if shape is not None and shape.tolist() == [0, groups, -1]:
        return not reshape.attributes.get_int("allowzero", 0)
    dims = list(inner.shape) if inner.shape is not None else []
    rest = int(np.prod([int(d) for d in source.shape[1:]]))  # type: ignore[index,arg-type]
    return len(dims) == 3 and dims[1] == groups and dims[2] == rest // groups


def _constant_behind(node: ir.Node, op_type: str, channels: int, neutral: Array) -> tuple[ir.Node, Array]:
    """Return the node behind that applies one constant a channel, and the constant; else the node itself."""
    value = node.outputs[0]
    after = sole_consumer(value)
    if after is None or after.op_type != op_type or not is_standard(after) or after.graph is not node.graph:
        return node, neutral
    operand = constant(after.inputs[1 if after.inputs[0] is value else 0])
    row = along(operand, 1, len(value.shape or ()), channels) if operand is not None else None
    return (after, row) if row is not None else (node, neutral)
