"""Transposes moved along the graph until as few as possible are left."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from onnxedge.api import (
    Accuracy,
    Context,
    Pass,
    Result,
    constant,
    graph_of,
    graphs_of,
    insert_after,
    insert_before,
    is_standard,
    new_initializer,
    operator,
    replace_uses,
)
from onnxedge_passes.cleanup.worklist import attributes_of, insert_behind, retire
from onnxedge_passes.layout.cut import cheapest
from onnxedge_passes.layout.orders import Perm, agree, composed, inverse, is_single, is_sorted, rank
from onnxedge_passes.layout.region import Region, grow, perm_of
from onnxedge_passes.layout.regrouped import turned
from onnxedge_passes.layout.turned import Turned

_OBSTACLES: Mapping[str, str] = {
    "elementwise": "an operand of fewer axes is computed at run time",
    "movement": "it needs axes together that the Transpose moves apart, or its shape is computed at run time",
    "normalization": "the Transpose moves axes that it needs where they are",
    "reduction": "its axes are computed at run time",
    "softmax": "it goes over several axes, which the Transpose moves apart",
}  #: by kind of operator
_UNKNOWN = "what it does with its axes is not known"


@dataclass(frozen=True, kw_only=True)
class PushTransposes(Pass):
    """Write operators in the axis order around them where that saves Transposes, whole NHWC networks in NCHW.

    Before: ``y = Conv(Transpose<perm=[0, 3, 1, 2]>(Relu(Transpose<perm=[0, 2, 3, 1]>(Conv(x)) + b)))``, ``b: [C]``
    After:  ``y = Conv(Relu(Conv(x) + b'))``, ``b': [C, 1, 1]``

    For each region of operators that work in any order of the axes (elementwise ones, Concat, Split, Pad, Slice,
    Gather, Tile, Expand, Resize, reductions, softmaxes, TopK, CumSum, Squeeze, Unsqueeze, Shape, Reshapes that split or
    merge axes which stay together, normalizations and MatMul whose own axes stay), a minimum cut finds the part that is
    to work in the order of a Transpose next to it, so that the fewest elements are moved; applied where Transposes
    become cheaper and not more, or where sums and activations meet the convolution before them.
    Left alone: what lies behind an operator with an order of its own (Conv, pooling, LSTM), behind an unknown one, or
    in another graph; a softmax over several axes before opset 13 unless they stay last; Reshapes, axes and sizes
    computed at run time; operands of fewer axes that are not constant; opsets before 7.
    accuracy: rounding (a reduction adds in another order, vector units round some functions differently at the end of
    a row). Source: own; the idea is ONNX Runtime's ``onnx_transpose_optimization.cc``.
    """

    name: ClassVar[str] = "push-transposes"
    accuracy: ClassVar[Accuracy] = "rounding"

    def run(self, model: ir.Model, context: Context) -> Result:
        """Go through each graph until nothing becomes cheaper, and say what the Transposes left could not pass."""
        graphs = list(graphs_of(model))
        rewrites = sum(_push(graph) for graph in graphs)
        for transpose in (node for graph in graphs for node in graph if _moves_data(node)):
            for neighbour, before, after in _starts(transpose):
                reason = _OBSTACLES.get(operator(neighbour).kind) if is_standard(neighbour) else _UNKNOWN
                if reason is not None and turned(neighbour, before, after) is None:
                    context.note(neighbour, f"Transpose not moved past it: {reason}")
        return Result(rewrites=rewrites)


def _push(graph: ir.Graph) -> int:
    rewrites = 0
    tried: set[tuple[ir.Node, Perm]] = set()
    again, most = True, 64 + 4 * sum(perm_of(node) is not None for node in graph)
    while again:
        again = False
        for transpose in [node for node in graph if perm_of(node) is not None]:
            for start, before, after in list(_starts(transpose)) if transpose.graph is not None else ():
                known = (start, before or after or ())
                if transpose.graph is None or start.graph is not transpose.graph or known in tried:
                    continue
                region = grow(start, before, after)
                part = cheapest(region) if rewrites < most else set()
                tried.add(known)
                for node, made in region.nodes.items():
                    tried.update(((node, made.before), (node, made.after)))
                if part:
                    _apply(region, part)
                    rewrites += 1
                    again = True
                    tried.clear()
    return rewrites


def _moves_data(node: ir.Node) -> bool:
    """Tell whether a node is a Transpose that is no Reshape."""
    perm, data = perm_of(node), node.inputs[0] if node.inputs else None
    if perm is None or data is None:
        return False
    unknown = sum(not isinstance(size, int) for size in data.shape or ())
    return unknown > 1 or not agree(data, perm, range(len(perm)))


def _starts(transpose: ir.Node) -> Iterator[tuple[ir.Node, Perm | None, Perm | None]]:
    """Yield the neighbours of a Transpose with the order, before or behind, that would make it superfluous."""
    perm = perm_of(transpose)
    assert perm is not None
    for use in transpose.outputs[0].uses():
        if use.node.graph is transpose.graph and perm_of(use.node) is None:
            yield use.node, inverse(perm), None
    producer = transpose.inputs[0].producer() if transpose.inputs[0] is not None else None
    if producer is not None and producer.graph is transpose.graph and perm_of(producer) is None and producer.inputs:
        yield producer, None, perm


def _apply(region: Region, part: set[ir.Node]) -> None:
    """Turn nodes, and put Transposes where a value is read in the other order."""
    made: dict[ir.Value, ir.Value] = {}
    order = _in_topological_order([node for node in region.nodes if node in part])
    for node in order:
        _turn(node, region.nodes[node], made)
    for node in reversed(order):
        for value in node.outputs:
            if value in made:
                _hand_over(value, made[value], region.nodes[node].after, part)
    feeders = dict.fromkeys(value.producer() for node in order for value in node.inputs if value is not None)
    retire(*order)
    for feeder in feeders:
        if feeder is not None and feeder not in part:
            _skip(feeder)
            retire(feeder)


def _skip(transpose: ir.Node) -> None:
    """Let Transposes that are the only readers of another one do its work, too."""
    given = perm_of(transpose)
    source, value = (transpose.inputs[0], transpose.outputs[0]) if given is not None else (None, None)
    if given is None or source is None or value is None or value.is_graph_output():
        return
    perms = {use.node: perm_of(use.node) for use in value.uses() if use.node.graph is transpose.graph}
    if None in perms.values() or len(perms) != len(value.uses()):
        return
    for reader, perm in perms.items():
        merged = composed(given, perm or ())
        if is_sorted(merged) and replace_uses(reader.outputs[0], source):
            retire(reader)
        else:
            reader.replace_input_with(0, source)
            reader.attributes["perm"] = ir.AttrInt64s("perm", merged)


def _in_topological_order(nodes: list[ir.Node]) -> list[ir.Node]:
    """Return nodes so that each stands behind those that it reads."""
    inside = set(nodes)
    order: dict[ir.Node, None] = {}
    stack = [(node, False) for node in reversed(nodes)]
    while stack:
        node, done = stack.pop()
        if done:
            order[node] = None
        elif node not in order:
            stack.append((node, True))
            sources = [value.producer() for value in node.inputs if value is not None]
            stack.extend((source, False) for source in sources if source in inside and source not in order)
    return list(order)


def _turn(node: ir.Node, how: Turned, made: dict[ir.Value, ir.Value]) -> None:
    inputs = list(node.inputs)
    graph = graph_of(node)
    for index in how.data:
        value = node.inputs[index]
        if value is not None:
            inputs[index] = _in_order(value, how.before, node, made)
    for index, array in how.operands.items():
        inputs += [None] * (index + 1 - len(inputs))
        inputs[index] = new_initializer(graph, array, f"{node.outputs[0].name}_turned")
    attributes = {**attributes_of(node), **how.attributes}
    domain = "" if is_standard(node) else node.domain
    options: dict[str, Any] = {"attributes": attributes, "domain": domain, "name": node.name}
    new = insert_before(node, node.op_type, inputs, outputs=len(node.outputs), like=node.outputs, **options)
    new.metadata_props.update(node.metadata_props)
    for old, value in zip(node.outputs, new.outputs, strict=True):
        if not old.name:
            value.name = ""
            continue
        known = rank(old) == len(how.after)
        value.shape = ir.Shape([old.shape[axis] for axis in how.after]) if known else None  # type: ignore[index]
        made[old] = value if how.picks is None else _picked(new, how, old)


def _picked(node: ir.Node, how: Turned, like: ir.Value) -> ir.Value:
    """Put sizes that were read of turned data into the old order."""
    node.outputs[0].shape = ir.Shape([len(how.before)])
    places = new_initializer(graph_of(node), np.array(how.picks, np.int64), f"{like.name}_places")
    return insert_after(node, "Gather", [node.outputs[0], places], attributes={"axis": 0}, like=[like]).outputs[0]


def _in_order(value: ir.Value, order: Perm, reader: ir.Node, made: dict[ir.Value, ir.Value]) -> ir.Value:
    """Return a value with its axes in another order, transposed where nothing else gives it."""
    if value in made:
        return made[value]
    array = constant(value)
    if is_single(value):
        result = value
    elif array is not None:
        result = new_initializer(graph_of(reader), array.transpose(order), f"{value.name}_turned")
    else:
        given = perm_of(value.producer())
        source, perm = value, order
        if given is not None:
            source, perm = value.producer().inputs[0], composed(given, order)  # type: ignore[union-attr, assignment]
        if is_sorted(perm):
            return source
        twins = [use.node for use in source.uses() if perm_of(use.node) == perm and use.node.graph is reader.graph]
        result = _transposed(source, perm, reader, value)
        result.shape = ir.Shape([value.shape[axis] for axis in order]) if value.shape is not None else None
        for twin in twins:
            if replace_uses(twin.outputs[0], result):
                retire(twin)
    made[value] = result
    return result


def _transposed(value: ir.Value, perm: Perm, reader: ir.Node, like: ir.Value) -> ir.Value:
    """Put a Transpose right behind the producer of a value, first of all for one from outside the graph."""
    attributes = {"perm": list(perm)}
    return insert_behind(value, graph_of(reader), "Transpose", [value], attributes=attributes, like=[like]).outputs[0]


def _hand_over(old: ir.Value, new: ir.Value, order: Perm, part: set[ir.Node]) -> None:
    """Let the readers that were not turned read a turned value, Transposes of it included."""
    back = inverse(order)
    if (is_sorted(back) or is_single(old)) and replace_uses(old, new):
        return
    for use in list(old.uses()):
        given = perm_of(use.node)
        if given is None or use.node in part:
            continue
        perm = composed(back, given)
        if is_sorted(perm) and replace_uses(use.node.outputs[0], new):
            retire(use.node)
        else:
            use.node.replace_input_with(0, new)
            use.node.attributes["perm"] = ir.AttrInt64s("perm", perm)
    if old.is_graph_output() or any(use.node not in part for use in old.uses()):
        producer = new.producer()
        assert producer is not None
        restored = _transposed(new, back, producer, old)
        for use in list(old.uses()):
            if use.node not in part:
                use.node.replace_input_with(use.idx, restored)
        replace_uses(old, restored)
