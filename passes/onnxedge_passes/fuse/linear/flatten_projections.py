"""Products of more than two axes between Reshapes, as products of rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxedge.api import (
    Accuracy,
    Context,
    constant,
    constant_tensor,
    graph_of,
    insert_after,
    insert_before,
    is_standard,
    new_initializer,
    set_constant,
    sole_consumer,
    use_count,
)
from onnxedge_passes.cleanup.merge_views import MergeViews, view_target
from onnxedge_passes.cleanup.worklist import Outcome, Refused, Rule, input_at, node_before, node_opset, retire

_FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16)
_MANY_READERS = 64  #: of a value with more of them the products are not counted


@dataclass(frozen=True)
class Branch:
    """Hold a product, the bias behind it and the Reshapes that read their sum.

    Attributes:
        product: MatMul with a constant weight ``[K, N]``.
        total: the Add of a constant ``[N]``.
        bias: what is added.
        views: each Reshape behind with a shape that it can take from any view of the sum.
    """

    product: ir.Node
    total: ir.Node
    bias: ir.Value
    views: tuple[tuple[ir.Node, list[int]], ...]


@dataclass(frozen=True, kw_only=True)
class FlattenProjections(Rule):
    """Multiply rows, bias included, where the result is reshaped in any case.

    Before: ``q = Reshape(Add(MatMul(x, Wq), bq), s); k = Reshape(Add(MatMul(x, Wk), bk), s)`` with ``x: [B, T, K]``,
    ``Wq, Wk: [K, N]`` and ``bq, bk: [N]``
    After:  ``r = Reshape(x, [-1, K]); q = Reshape(Gemm(r, Wq, bq), s); k = Reshape(Gemm(r, Wk, bk), s)``

    Only where fewer nodes are left: several products of one value, or a value that another Reshape makes for them
    alone, which the first Reshape takes in. Comes after all fusions, which look for MatMul and Add. ONNX Runtime 1.31
    on the CPU does it to each product by itself, with two Reshapes for each, and takes 0.96 to 0.99 of the time so (1
    to 256 rows of 128 to 768 features); as many products become integer.
    Left alone: sums that anything else than a Reshape reads; a shape behind that is computed at run time or copies
    sizes that are not known; a bias that is no constant vector; ``K`` or ``N`` of 0.
    accuracy: rounding. Source: ONNX Gemm, opset 7.
    """

    name: ClassVar[str] = "flatten-projections"
    accuracy: ClassVar[Accuracy] = "rounding"
    roots: ClassVar[tuple[str, ...]] = ("MatMul",)

    def rewrite(self, node: ir.Node, context: Context) -> Outcome:
        """Find the other products of the same value and count the nodes."""
        source = node.inputs[0]
        if source is None or source.shape is None or len(source.shape) < 3 or node_opset(node) < 7:
            return None
        mine = _branch(node) if use_count(source) <= _MANY_READERS else None
        if mine is None:
            return None
        users = dict.fromkeys(use.node for use in source.uses() if use.node.graph is node.graph)
        found = [branch for user in users if (branch := mine if user is node else _branch(user)) is not None]
        fitting = [branch for branch in found if isinstance(branch, Branch)]
        if isinstance(mine, str):
            return Refused(mine) if _saved(node, len(found)) > 0 else None
        return _flatten(source, fitting, context) if _saved(node, len(fitting)) > 0 else None


def _branch(node: ir.Node) -> Branch | str | None:
    """Return a product with its bias and the Reshapes behind, or what keeps it from being one; None for others."""
    source, weight = node.inputs[0], constant_tensor(input_at(node, 1))
    if node.op_type != "MatMul" or not is_standard(node) or source is None or source.shape is None or weight is None:
        return None
    dims = tuple(weight.shape)
    if len(dims) != 2 or 0 in dims or source.shape[-1] != dims[0] or weight.dtype not in _FLOATS:
        return None
    found = next((pair for use in node.outputs[0].uses() if (pair := _added(use.node, node)) is not None), None)
    if found is None:
        return None
    total, bias = found
    readers = [use.node for use in total.outputs[0].uses()]
    views = [r for r in readers if r.op_type == "Reshape" and is_standard(r) and r.inputs[0] is total.outputs[0]]
    if not views:
        return None
    if sole_consumer(node.outputs[0]) is not total:
        return "rows not flattened: the product has other readers or is exported"
    tensor = constant_tensor(bias)
    if tensor is None or tuple(tensor.shape) != dims[1:]:
        return "rows not flattened: the bias is no constant vector with one number per column"
    if len(views) < len(readers) or total.outputs[0].is_graph_output() or any(v.graph is not node.graph for v in views):
        return "rows not flattened: others than Reshapes read the sum"
    targets = [view_target(view) for view in views]
    if any(target is None for target in targets):
        return "rows not flattened: a shape behind is computed at run time or copies sizes that are not known"
    return Branch(node, total, bias, tuple((v, t) for v, t in zip(views, targets, strict=True) if t is not None))


def _added(total: ir.Node, product: ir.Node) -> tuple[ir.Node, ir.Value] | None:
    """Return an Add in the same graph and what it adds to a product."""
    if total.op_type != "Add" or not is_standard(total) or total.graph is not product.graph:
        return None
    other = total.inputs[1] if total.inputs[0] is product.outputs[0] else total.inputs[0]
    return (total, other) if other is not None and other is not product.outputs[0] else None


def _saved(node: ir.Node, count: int) -> int:
    """Return how many nodes go where so many products of a value are flattened: the Adds, less the first Reshape."""
    maker, source = node_before(node, "Reshape"), node.inputs[0]
    taken_in = maker is not None and source is not None and use_count(source) == count and not source.is_graph_output()
    return count if taken_in else count - 1


def _flatten(source: ir.Value, branches: Sequence[Branch], context: Context) -> ir.Value:
    first, maker = branches[0].product, source.producer()
    graph, dims = graph_of(first), list(source.shape or ())
    label = f"{source.name}_rows"
    inputs = [source, new_initializer(graph, np.array([-1, dims[-1]], np.int64), f"{label}_shape")]
    if maker is not None and maker.graph is graph:
        rows = insert_after(maker, "Reshape", inputs, name=label)
    else:
        products = {branch.product for branch in branches}
        rows = insert_before(next(node for node in graph if node in products), "Reshape", inputs, name=label)
    sizes = [d for d in dims[:-1] if isinstance(d, int)]
    known = len(sizes) == len(dims) - 1 and not source.is_graph_output()  # whose declared shape is not to be believed
    lead = math.prod(sizes) if known else None
    rows.outputs[0].type, rows.outputs[0].shape = source.type, ir.Shape([lead, dims[-1]])
    for branch in branches:
        weight = branch.product.inputs[1]
        name = branch.product.name or branch.total.name
        gemm = insert_before(branch.total, "Gemm", [rows.outputs[0], weight, branch.bias], name=name)
        gemm.outputs[0].type = branch.total.outputs[0].type
        gemm.outputs[0].shape = ir.Shape([lead, *(weight.shape or ())[1:]]) if weight is not None else None
        for view, target in branch.views:
            view.replace_input_with(0, gemm.outputs[0])
            if (shape := constant(view.inputs[1])) is None or shape.tolist() != target:
                set_constant(view, 1, np.array(target, np.int64))
        retire(branch.total)
    merged = MergeViews().rewrite(rows, context)
    return merged if isinstance(merged, ir.Value) else rows.outputs[0]
