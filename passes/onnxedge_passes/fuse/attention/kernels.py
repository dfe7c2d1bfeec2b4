"""Which attention kernel a target runs a block with, and the nodes that call it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxedge.api import Context, graph_of, insert_before, new_initializer
from onnxedge_passes.cleanup.worklist import Refused, node_opset
from onnxedge_passes.fuse.attention.axes import Axis, expanded, length
from onnxedge_passes.fuse.attention.causal import is_causal
from onnxedge_passes.fuse.attention.find import Found
from onnxedge_passes.fuse.attention.forms import End, Heads, View, end_of, heads_first, tokens_first
from onnxedge_passes.fuse.attention.lengths import lengths
from onnxedge_passes.fuse.attention.masks import Mask, Scaling, mask_of, scaling_of

_MICROSOFT = "com.microsoft"
_DEPTH = 8  #: what the features of a head are a multiple of, for GroupQueryAttention
_MANY_HEADS = 128  #: batch times heads from which MultiHeadAttention on the CPU loses to single operators


@dataclass(frozen=True)
class Plan:
    """Hold a call of a kernel.

    Attributes:
        op_type, domain: the kernel.
        inputs: how to see queries, keys and values.
        end: what the output stands for.
        flat: whether all are ``[B, T, H * D]``; else ``[B, H, T, D]``.
        outputs: how many outputs to name.
    """

    op_type: str
    domain: str
    inputs: tuple[View, View, View]
    end: End
    heads: Heads
    flat: bool
    outputs: int = 1


def plan(found: Found, heads: Heads, context: Context) -> Plan | Refused:
    """Choose the kernel, the best form first."""
    target, node = context.target, found.product
    standard = target.has_kernel("Attention", opset=node_opset(node))
    multi = target.has_kernel("MultiHeadAttention", _MICROSOFT)
    grouped = target.has_kernel("GroupQueryAttention", _MICROSOFT)
    if not (standard or multi or grouped):
        return Refused(f"attention not fused: target {target.name} has no kernel for it at this opset")
    if standard:
        views = _tokens_first(found, heads, heads.key)
        end = end_of(found.ends, [heads.batch, found.queries, (*heads.query, *expanded(found.width))], turned=True)
        if views is not None and end is not None and (heads.query or target.fused_attention == "always"):
            return Plan("Attention", "", views, end, heads, True)
        if target.fused_attention == "always":
            return _heads_first(found, heads)
        return Refused("attention not fused: the kernel is not faster where heads are not split and merged beside it")
    found_plan = _grouped(found, heads, context) if grouped else None
    if isinstance(found_plan, Plan) or not multi:
        return found_plan or Refused("attention not fused: GroupQueryAttention needs a causal mask")
    other = _multi(found, heads, context)
    return found_plan if isinstance(found_plan, Refused) and isinstance(other, Refused) else other


def _grouped(found: Found, heads: Heads, context: Context) -> Plan | Refused | None:
    """Choose GroupQueryAttention for a block that is causal, None for one that is not."""
    value, depth = found.product.inputs[1], length(found.depth)
    kernel = context.target.kernels.get(f"{_MICROSOFT}::GroupQueryAttention")
    if not is_causal(found) or value is None or value.dtype is None or not heads.query:
        return None
    if kernel is not None and kernel.dtypes and value.dtype.numpy().name not in kernel.dtypes:
        return None
    if depth is None or depth % _DEPTH or depth != length(found.width):
        return Refused(f"attention not fused: GroupQueryAttention needs heads of a multiple of {_DEPTH} features")
    if 0 in (length(heads.batch), length(found.queries)):
        return Refused("attention not fused: GroupQueryAttention takes no empty batch")
    views = _tokens_first(found, heads, heads.key)
    end = end_of(found.ends, [heads.batch, found.queries, (*heads.query, *expanded(found.width))], turned=True)
    if views is None or end is None:
        return Refused("attention not fused: GroupQueryAttention needs tokens before heads everywhere")
    return Plan("GroupQueryAttention", _MICROSOFT, views, end, heads, True, kernel.outputs if kernel is not None else 1)


def _multi(found: Found, heads: Heads, context: Context) -> Plan | Refused:
    end = end_of(found.ends, [heads.batch, found.queries, (*heads.query, *expanded(found.width))], turned=True)
    views = _tokens_first(found, heads, heads.query)
    value = found.product.inputs[1]
    if value is None or value.dtype != ir.DataType.FLOAT:
        return Refused("attention not fused: MultiHeadAttention is not used but for float32")
    reason = _slower(found, heads, context) if context.target.fused_attention != "always" else ""
    if not reason and views is None and context.target.fused_attention == "always":
        views = _heads_behind(found, heads)
    if not reason and (views is None or end is None):
        reason = "MultiHeadAttention needs tokens before heads, in queries and in the output"
    if reason or views is None or end is None:
        return Refused(f"attention not fused: {reason}")
    return Plan("MultiHeadAttention", _MICROSOFT, views, end, heads, True)


def _slower(found: Found, heads: Heads, context: Context) -> str:
    """Say why MultiHeadAttention is not faster than single operators, empty where it is."""
    batch = length(heads.batch)
    if not heads.query:
        return "the kernel is not faster where heads are not split and merged beside it"
    if any(step.masks for step in found.steps):
        return "MultiHeadAttention with a mask is not faster than single operators"
    if batch is not None and batch * heads.query_count >= _MANY_HEADS:
        return "MultiHeadAttention on many heads is not faster than single operators"
    return ""


def _heads_behind(found: Found, heads: Heads) -> tuple[View, View, View] | None:
    """Return queries with their heads behind the tokens, keys and values as they are, with heads first."""
    query = tokens_first(found.query.chain, heads.batch, found.queries, heads.query, found.depth)
    key = heads_first(found.key.chain, heads.batch, found.keys, heads.query, found.depth)
    value = heads_first(found.value.chain, heads.batch, found.keys, heads.query, found.width)
    features = length(found.depth)
    if query is None and features is not None:
        split = heads_first(found.query.chain, heads.batch, found.queries, heads.query, found.depth)
        if split is not None and not split.perm and not split.shape:
            query = View(split.value, (0, 2, 1, 3), (0, 0, heads.query_count * features))
    return (query, key, value) if query is not None and key is not None and value is not None else None


def _tokens_first(found: Found, heads: Heads, kept: Axis) -> tuple[View, View, View] | None:
    query = tokens_first(found.query.chain, heads.batch, found.queries, heads.query, found.depth, turned=True)
    key = tokens_first(found.key.chain, heads.batch, found.keys, kept, found.depth, turned=True)
    value = tokens_first(found.value.chain, heads.batch, found.keys, kept, found.width, turned=True)
    return (query, key, value) if query is not None and key is not None and value is not None else None


def _heads_first(found: Found, heads: Heads) -> Plan | Refused:
    query = heads_first(found.query.chain, heads.batch, found.queries, heads.query, found.depth)
    key = heads_first(found.key.chain, heads.batch, found.keys, heads.key, found.depth)
    value = heads_first(found.value.chain, heads.batch, found.keys, heads.key, found.width)
    end = end_of(found.ends, [heads.batch, heads.query, found.queries, found.width])
    if query is None or key is None or value is None or end is None:
        return Refused("attention not fused: how queries, keys or values are laid out is not known")
    return Plan("Attention", "", (query, key, value), end, heads, False)


def build(found: Found, plan: Plan, context: Context) -> ir.Value | Refused:
    """Put the call into the graph in place of the block, with nothing changed where that is refused."""
    node, heads = found.product, plan.heads
    scaling = scaling_of(found)
    if isinstance(scaling, Refused):
        return scaling
    if scaling.softcap and plan.op_type == "MultiHeadAttention":
        return Refused("attention not fused: MultiHeadAttention cannot cap the scores")
    mask = mask_of(found, heads, context, lowest_empties=plan.op_type == "Attention")
    if isinstance(mask, Refused):
        return mask
    views = [view.build(node, f"attention_{name}") for view, name in zip(plan.inputs, "qkv", strict=True)]
    inputs: list[ir.Value | None] = list(views)
    if mask.value is not None:
        inputs += [mask.value] if plan.op_type == "Attention" else [None, None, mask.value]
    if plan.op_type == "GroupQueryAttention":
        inputs += [None, None, *lengths(node, views[0], heads.batch, found.queries)]
    attributes = _attributes(plan, mask, scaling)
    if found.single and plan.op_type == "Attention":
        attributes["softmax_precision"] = int(ir.DataType.FLOAT)
    call = insert_before(
        node,
        plan.op_type,
        inputs,
        attributes=attributes,
        domain=plan.domain,
        name=node.name or "attention",
        outputs=plan.outputs,
        like=[plan.end.value],
    )
    output = call.outputs[0]
    if not plan.end.is_exported:
        output.shape = _shape(found, plan, views[0])
    if mask.empties and found.guarded and plan.op_type != "Attention":
        output = _without_nan(node, output)
    return plan.end.replace(node, output)


def _shape(found: Found, plan: Plan, query: ir.Value) -> ir.Shape:
    """Return the shape of a kernel's output, in the names of the query's dimensions, which the residual has, too."""
    heads, width = plan.heads, expanded(found.width)
    if plan.flat and query.shape is not None and len(query.shape) == 3:
        return ir.Shape([*list(query.shape)[:2], _size((*heads.query, *width))])
    axes = [heads.batch, found.queries, (*heads.query, *width)]
    if not plan.flat:
        axes = [heads.batch, heads.query, found.queries, width]
    return ir.Shape([_size(axis) for axis in axes])


def _size(axis: Axis) -> int | str | None:
    size = length(axis)
    factors = expanded(axis)
    if size is None and len(factors) == 1 and isinstance(factors[0].size, str):
        return factors[0].size
    return size


def _without_nan(node: ir.Node, output: ir.Value) -> ir.Value:
    """Give rows that are masked whole zeros, as the block did."""
    zero = new_initializer(graph_of(node), np.zeros((), np.float32), "attention_zero")
    check = insert_before(node, "IsNaN", [output])
    check.outputs[0].type, check.outputs[0].shape = ir.TensorType(ir.DataType.BOOL), output.shape
    return insert_before(node, "Where", [check.outputs[0], zero, output], like=[output]).outputs[0]


def _attributes(plan: Plan, mask: Mask, scaling: Scaling) -> dict[str, float | int]:
    attributes: dict[str, float | int] = {"scale": scaling.factor}
    if scaling.softcap:
        attributes["softcap"] = scaling.softcap
    counts = plan.heads.query_count, plan.heads.key_count
    if plan.op_type == "GroupQueryAttention":
        return {**attributes, "num_heads": counts[0], "kv_num_heads": counts[1]}
    if plan.op_type == "MultiHeadAttention":
        return {**attributes, "num_heads": counts[0], **({"unidirectional": 1} if mask.causal else {})}
    if plan.flat:
        attributes["q_num_heads"], attributes["kv_num_heads"] = counts
    return {**attributes, **({"is_causal": 1} if mask.causal else {})}
