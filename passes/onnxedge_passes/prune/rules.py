"""Where labels go: one rule for each kind of operator that moves them, joins them or ties them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import onnx_ir as ir

from onnxedge.api import Array, Operator, constant_tensor, is_standard, operator, subgraphs
from onnxedge_passes.prune import contraction
from onnxedge_passes.prune.branches import choices
from onnxedge_passes.prune.facts import Facts
from onnxedge_passes.prune.labels import FIXED, FREE, Labels, Operand, compress, line

_SAMPLERS = frozenset({"GridSample", "RoiAlign", "MaxRoiPool"})
_OF_DATA = frozenset({"movement", "spatial", "normalization", "softmax", "reduction", "quantization"})
_BY_AXIS = frozenset({"LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"})


def propagate(facts: Facts, columns: frozenset[ir.Node] = frozenset()) -> Labels:
    """Walk the main graph; grouped convolutions in ``columns`` are cut inside their groups, others by whole groups."""
    labels = Labels(facts, columns)
    seen = {facts.model.graph, *(graph for node in facts.model.graph if choices(node) for graph in subgraphs(node))}
    for node in facts.model.graph:
        known = all(value in facts.shapes for value in node.outputs if value.name)
        entry = Operator("spatial") if is_standard(node) and node.op_type in _SAMPLERS else operator(node)
        _RULES.get(entry.kind if known else "unknown", Labels.wall)(labels, node)
        if entry.kind in _OF_DATA and entry.data is not None:
            others = (value for index, value in enumerate(node.inputs) if index not in entry.data)
            labels.lock(node, f"{node.op_type} depends on data", *map(labels.get, others))
        if any(v not in labels.of and (v.uses() or v.is_graph_output()) for v in node.outputs[1:]):
            labels.wall(node, "has another output that is read")
        for value in node.outputs:
            found = compress(labels.get(value))
            if found.size == 1 or found.ndim != labels.facts.rank(value):
                labels.lock(value, "a single channel is cut out", found)
                found = np.zeros([1] * labels.facts.rank(value), np.int32)
            labels.of[value] = found
            if any(use.node.graph not in seen for use in value.uses()):
                labels.lock(value, "read inside a subgraph", found)
    for value in facts.model.graph.outputs:
        labels.lock(value, "reaches a graph output", labels.get(value))
    return labels


def _elementwise(labels: Labels, node: ir.Node) -> None:
    rank, claims = labels.facts.rank(node.outputs[0]), []
    constants = [index for index, value in enumerate(node.inputs) if constant_tensor(value) is not None]
    for index, value in enumerate(node.inputs[:1] if node.op_type == "CastLike" else node.inputs):
        if value is not None and index not in constants:
            claims.append(labels.aligned(value, rank))
    if claims:
        joint = compress(labels.combine(node, claims, "meets channels that are fixed"))
        labels.of[node.outputs[0]] = joint
        labels.operands += [Operand(node, index, joint) for index in constants]


def _movement(labels: Labels, node: ir.Node) -> None:
    """Run the operator on the labels."""
    every = operator(node).data is None
    sources, operands = (list(node.inputs), []) if every else ([node.inputs[0]], list(node.inputs[1:]))
    if all(labels.get(value).max(initial=FIXED) <= FIXED for value in sources):
        return
    shapes = [labels.facts.shapes[value] for value in sources if value is not None]
    held = [labels.get(value) for value in sources]
    axis = node.attributes.get_int("axis", 1) % held[0].ndim if every else 0
    constants = [index for index, value in enumerate(sources) if constant_tensor(value) is not None]
    among = any(array.shape[axis] > 1 for array in held) if every else False
    for index in constants:  # data among channels has numbers of its own, data beside them goes with them
        free = np.full([1] * held[index].ndim, FREE, np.int32)
        held[index] = _numbered(labels, np.repeat(free, shapes[index][axis], axis)) if among else free
    computed = [None if value is None else labels.facts.computed(value) for value in operands]
    if any(v is not None and array is None for v, array in zip(operands, computed, strict=True)):
        labels.lock(node, f"{node.op_type} depends on data", *held)
        return
    results = labels.run_movement(node, shapes, held, computed)
    if results is None:
        labels.wall(node)
        return
    for value, result in zip(node.outputs, results, strict=False):
        found = compress(result.astype(np.int32))
        if node.op_type == "DepthToSpace":  # the channels that become the pixels of one go together
            found = labels.tie(node, found, (2, 3), "DepthToSpace over the channels")
        labels.of[value] = _numbered(labels, found)
    for index in constants:
        labels.operands.append(Operand(node, index, held[index]))
        labels.operands.append(Operand(node, index, labels.of[node.outputs[0]], skip_axis=axis))


def _numbered(labels: Labels, array: Array) -> Array:
    """Give constant data that stands among channels numbers of its own."""
    free = array == FREE
    if not free.any():
        return array
    result = array.copy()
    result[free] = labels.numbers(int(free.sum()))
    return result


def _through(labels: Labels, node: ir.Node, axes: Iterable[int]) -> Array:
    """Tie what an operator sees at once, along some axes; the others pass. Returns what passes."""
    held = labels.get(node.inputs[0])
    found = labels.tie(node, held, sorted({axis % held.ndim for axis in axes}), f"{node.op_type} over the channels")
    labels.of[node.outputs[0]] = found
    return found


def _parameters(labels: Labels, node: ir.Node, aligned: Array) -> None:
    """Note the parameters that are cut with the channels that they are aligned with."""
    if aligned.size == 1:
        return
    for index in (i for i in operator(node).parameters if i < len(node.inputs) and node.inputs[i] is not None):
        if constant_tensor(node.inputs[index]) is None:
            labels.lock(node, "a parameter per channel is computed at run time", aligned)
        labels.operands.append(Operand(node, index, aligned))


def _spatial(labels: Labels, node: ir.Node) -> None:
    shapes = labels.facts.shapes
    before, after = shapes.get(node.inputs[0], ()) if node.inputs[0] is not None else (), shapes[node.outputs[0]]
    _through(labels, node, [a for a, size in enumerate(before) if a > 1 or after[a] != size])


def _normalization(labels: Labels, node: ir.Node) -> None:
    rank, attributes = labels.facts.rank(node.inputs[0]), node.attributes
    if node.op_type in _BY_AXIS:
        _parameters(labels, node, _through(labels, node, range(attributes.get_int("axis", -1) % rank, rank)))
    elif operator(node).parameters:
        found = _through(labels, node, [axis for axis in range(rank) if axis != 1])
        if node.op_type == "GroupNormalization":
            found = _by_groups(labels, node, found)
        _parameters(labels, node, line(found, 1) if found.size > 1 else found)
    elif node.op_type == "MeanVarianceNormalization":
        _through(labels, node, attributes.get_ints("axes", (0, 2, 3)))
    else:
        _through(labels, node, [attributes.get_int("axis", -1)] if node.op_type == "LpNormalization" else range(rank))


def _by_groups(labels: Labels, node: ir.Node, found: Array) -> Array:
    """Tie the channels of a group; returns labels along the parameters, one per channel or (before opset 21) group."""
    groups = node.attributes.get_int("num_groups", 1)
    rows = line(found, 1, labels.facts.shapes[node.outputs[0]][1]).reshape(groups, -1)
    units = labels.tie(node, rows, [1], "GroupNormalization over the channels")
    labels.counts.append((node, "num_groups", units))
    scale = node.inputs[1]
    per_group = scale is not None and labels.facts.shapes.get(scale) == (groups,)
    return (units if per_group else rows).reshape(1, -1)


def _softmax(labels: Labels, node: ir.Node) -> None:
    flat = labels.facts.opset < 13 and node.op_type in ("Softmax", "LogSoftmax", "Hardmax")
    rank = labels.facts.rank(node.inputs[0])
    axes = _axes(labels, node, [node.attributes.get_int("axis", 1 if flat else -1)])
    _through(labels, node, range(axes[0] % rank, rank) if flat else axes)


def _reduction(labels: Labels, node: ir.Node) -> None:
    rank, arg = labels.facts.rank(node.inputs[0]), node.op_type in ("ArgMax", "ArgMin")
    axes = _axes(labels, node, [node.attributes.get_int("axis", 0)] if arg else node.attributes.get_ints("axes", ()))
    every: int = 1 - node.attributes.get_int("noop_with_empty_axes", 0)
    axes = axes or range(rank * every)
    units = _through(labels, node, axes)
    if not node.attributes.get_int("keepdims", 1):
        labels.of[node.outputs[0]] = units.squeeze(tuple({a % rank for a in axes}))


def _axes(labels: Labels, node: ir.Node, default: Sequence[int]) -> Sequence[int]:
    """Return the axes that input 1 names, all where it is computed at run time, the default where there is none."""
    value = node.inputs[1] if len(node.inputs) > 1 else None
    found = labels.facts.computed(value) if value is not None else np.array(default, np.int64)
    return range(labels.facts.rank(node.inputs[0])) if found is None else [int(a) for a in found.reshape(-1)]


def _quantization(labels: Labels, node: ir.Node) -> None:
    scale = constant_tensor(node.inputs[1]) if len(node.inputs) > 1 else None
    blocks: int = node.attributes.get_int("block_size", 0)
    if scale is None or blocks:
        labels.wall(node, "whose scale is computed at run time or for blocks")
        return
    found = _through(labels, node, ())
    if scale.size > 1:
        _parameters(labels, node, line(found, node.attributes.get_int("axis", 1)) if found.size > 1 else found)


def _control(labels: Labels, node: ir.Node) -> None:
    """Make one channel of what the branches of an If give; those that compute were moved out of it before."""
    labels.wall(node)
    for value, sources in zip(node.outputs, choices(node), strict=False):
        first, second = (labels.get(source) for source in sources)
        if len({first.shape, second.shape, (1,) * first.ndim, (1,) * second.ndim}) > 2:
            labels.lock(node, "its branches give other shapes", first, second)
        else:
            labels.of[value] = labels.join(first, second, node)


_RULES: dict[str, Callable[[Labels, ir.Node], None]] = {
    "elementwise": _elementwise,
    "movement": _movement,
    "spatial": _spatial,
    "normalization": _normalization,
    "softmax": _softmax,
    "reduction": _reduction,
    "quantization": _quantization,
    "contraction": contraction.propagate,
    "recurrent": contraction.recurrent,
    "attention": contraction.attention,
    "control": _control,
    "shape": lambda labels, node: None,  # nothing comes out: sizes are no channels
    "source": Labels.wall,
}
