"""What sizes show to be needless: Expands before what broadcasts, views of the same shape, integers known already."""

from __future__ import annotations

from collections.abc import Hashable

import onnx_ir as ir

from onnxedge.api import is_standard
from onnxedge_passes.cleanup.constants.knowledge import Knowledge
from onnxedge_passes.cleanup.shapes.size_rules import broadcast
from onnxedge_passes.cleanup.shapes.sizes import Sizes
from onnxedge_passes.cleanup.shapes.symbolic import Expr
from onnxedge_passes.cleanup.worklist import input_at, node_opset, retire

#: Operators that give the same bits whether an operand is expanded or broadcast.
_BROADCASTING = frozenset(
    {"Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Mul", "Or", "Sub"}
    | {"Where", "Xor"}
)


def skip_expands(node: ir.Node, sizes: Sizes) -> int:
    """Let an operator that broadcasts read what was expanded for it, where its result keeps its shape; count them."""
    skipped = 0
    for index, value in enumerate(node.inputs) if node.op_type in _BROADCASTING else ():
        expand = value.producer() if value is not None else None
        if expand is None or expand.op_type != "Expand" or not is_standard(expand) or expand.inputs[0] is None:
            continue
        result = sizes.of(node.outputs[0]) if node_opset(node) >= 7 else None
        if result is None:
            break
        rows = [sizes.of(v) for i, v in enumerate(node.inputs) if v is not None and i != index]
        rows.append(sizes.of(expand.inputs[0]))
        known = [row for row in rows if row is not None]
        if expand.graph is node.graph and len(known) == len(rows) and broadcast(known, node.outputs[0]) == result:
            node.replace_input_with(index, expand.inputs[0])
            retire(expand)
            skipped += 1
    return skipped


def is_same_view(node: ir.Node, known: Knowledge) -> bool:
    """Tell whether a node that keeps the order of the elements keeps the shape too, dynamic dimensions included."""
    if node.op_type not in ("Reshape", "Expand", "Flatten", "Tile", "Slice") or node.inputs[0] is None:
        return False
    row = known.sizes.of(node.outputs[0])
    if row is None or row != known.sizes.of(node.inputs[0]):
        return False
    if node.op_type != "Slice" or input_at(node, 4) is None:
        return True
    steps = known.elements_of(node.inputs[4])  # type: ignore[arg-type]
    return steps is not None and all(isinstance(step, int) and step > 0 for step in steps.ravel())


def twin_of(value: ir.Value, known: Knowledge, computed: dict[Hashable, ir.Value]) -> ir.Value | None:
    """Return a value of the same graph that has the same integers, which depend on sizes; None for the first of them.

    Args:
        value: whose elements are known.
        known: says which, and of what type.
        computed: integers, and the first value that has them; is added to.
    """
    kind, array, node = known.types.of(value), known.elements[value], value.producer()
    assert kind is not None
    assert node is not None
    if not any(isinstance(item, Expr) for item in array.ravel()):
        return None
    key = kind.elem_type, array.shape, tuple(array.ravel().tolist())
    twin = computed.get(key)
    producer = twin.producer() if twin is not None else None
    if producer is None or producer.graph is not node.graph:
        computed[key] = value
        return None
    return twin
