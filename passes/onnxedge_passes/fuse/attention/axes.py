"""Where the axes of a value come from, through Reshape, Transpose and their like, with symbolic dimensions.

An axis is a run of *factors*: ``[B, T, H * D]`` reshaped to ``[B, T, H, D]`` shows that its last axis is the factors
``H`` and ``D``. Views are followed against the direction of the graph, or along it; a factor that turns out to be
several ones is split in place, so that all axes noted before see it. Dimensions of 1 have no factors. Source: own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxedge.api import constant, is_standard
from onnxedge_passes.cleanup.worklist import input_at, node_opset
from onnxedge_passes.fuse.attention.shapes import Size, is_named, sizes


@dataclass(eq=False)
class Factor:
    """Be a part of an axis.

    Attributes:
        size: int, or what stands for it.
        parts: the factors that it turned out to consist of.
        chosen: the one position that is looked at, None for all.
    """

    size: Size
    parts: list[Factor] = field(default_factory=list)
    chosen: int | None = None


Axis = tuple[Factor, ...]


def expanded(axis: Iterable[Factor]) -> Axis:
    """Return an axis with each factor replaced by its parts."""
    out: list[Factor] = []
    for factor in axis:
        out += expanded(factor.parts) if factor.parts else (factor,)
    return tuple(out)


def flat(axes: Iterable[Axis]) -> Axis:
    """Return the factors of all axes, outermost first."""
    return tuple(factor for axis in axes for factor in expanded(axis))


def length(axis: Iterable[Factor]) -> int | None:
    """Return the size of an axis, None where a factor's is not known."""
    total = 1
    for factor in expanded(axis):
        if not isinstance(factor.size, int):
            return None
        total *= factor.size
    return total


def fresh(value: ir.Value) -> list[Axis] | None:
    """Return new axes for a value, one factor each, None where its rank is not known."""
    dims = sizes(value)
    return [() if d == 1 else (Factor(d),) for d in dims] if dims is not None else None


def regroup(factors: Sequence[Factor], dims: Sequence[Size]) -> list[Axis] | None:
    """Return the axes of sizes ``dims`` that the same factors make in the same order, None where that is not known.

    What fits is taken from both ends; one unknown dimension, or one factor, in between takes the rest.
    """
    left, right = list(factors), list(dims)
    front: list[Axis] = []
    back: list[Axis] = []
    for end, out in ((0, front), (-1, back)):
        while right:
            axis = _take(left, right[end], end)
            if axis is None:
                break
            out.append(axis)
            right.pop(end)
    if len(right) == 1 and left:
        if not _solve(left, right[0]):
            return None
        front.append(tuple(left))
    elif right and len(left) == 1:
        left[0].parts = [Factor(size) for size in right if size != 1]
        parts = iter(left[0].parts)
        front += [() if size == 1 else (next(parts),) for size in right]
    elif right or left:
        return None
    return front + back[::-1]


def _solve(left: Sequence[Factor], size: Size) -> bool:
    """Learn the one unknown factor from the size of all; False where the two contradict each other."""
    unknown = [factor for factor in left if not isinstance(factor.size, int)]
    if not unknown and isinstance(size, int):
        return length(left) == size
    if len(unknown) == 1 and (len(left) == 1 or isinstance(size, int)):
        known = math.prod(factor.size for factor in left if isinstance(factor.size, int))
        if isinstance(size, int) and size % max(known, 1):
            return False
        if not isinstance(size, int) and is_named(size) and is_named(unknown[0].size) and unknown[0].size != size:
            return False
        if isinstance(size, int) or is_named(size) or not is_named(unknown[0].size):
            unknown[0].size = size // known if isinstance(size, int) else size
    return True


def learn(axis: Iterable[Factor], size: Size) -> None:
    """Take over the size of an axis where it says more than what is known."""
    factors = expanded(axis)
    if len(factors) != 1 or size == 1:
        return
    rank = [2 if isinstance(s, int) else 1 if is_named(s) else 0 for s in (factors[0].size, size)]
    if rank[1] > rank[0] or (rank == [0, 0] and not isinstance(size, tuple)):
        factors[0].size = size


def _take(left: list[Factor], size: Size, end: int) -> Axis | None:
    """Take factors that make up ``size`` from one end of a list, None with nothing changed where none do."""
    if size == 1:
        return ()
    if not left:
        return None
    if not isinstance(size, int) or size <= 0:
        return (left.pop(end),) if left[end].size == size else None
    order = left if end == 0 else left[::-1]
    taken, rest = 0, size
    while rest > 1 and taken < len(order):
        have = order[taken].size
        if not isinstance(have, int) or have <= 0:
            return None
        if rest % have:
            break
        rest //= have
        taken += 1
    if rest > 1:
        have = order[taken].size if taken < len(order) else None
        if not isinstance(have, int) or have % rest:
            return None
        pair = [Factor(rest), Factor(have // rest)]
        order[taken].parts = pair if end == 0 else pair[::-1]
        order[taken : taken + 1] = pair
        taken += 1
    axis, remaining = order[:taken], order[taken:]
    left[:] = remaining if end == 0 else remaining[::-1]
    return tuple(axis if end == 0 else axis[::-1])


def backward(node: ir.Node, axes: Sequence[Axis]) -> list[Axis] | None:
    """Return the axes of a view's input from those of its output, None where the node is none or it is not known."""
    source = node.inputs[0] if node.inputs else None
    rule = _BACKWARD.get(node.op_type) if is_standard(node) else None
    return rule(node, source, axes) if rule is not None and source is not None else None


def forward(node: ir.Node, axes: Sequence[Axis]) -> list[Axis] | None:
    """Return the axes of a view's output from those of its input, None where the node is none or it is not known."""
    if not is_standard(node):
        return None
    if node.op_type == "Identity":
        return list(axes)
    if node.op_type == "Transpose":
        perm = _perm(node, len(axes))
        return [axes[axis] for axis in perm] if len(perm) == len(axes) else None
    if node.op_type not in ("Reshape", "Flatten", "Squeeze", "Unsqueeze"):
        return None
    dims = sizes(node.outputs[0])
    return regroup(flat(axes), dims) if dims is not None else None


def _perm(node: ir.Node, rank: int) -> list[int]:
    return [int(axis) for axis in node.attributes.get_ints("perm", range(rank)[::-1])]


def _untransposed(node: ir.Node, source: ir.Value, axes: Sequence[Axis]) -> list[Axis] | None:
    perm = _perm(node, len(axes))
    return [axes[perm.index(axis)] for axis in range(len(perm))] if len(perm) == len(axes) else None


def _regrouped(node: ir.Node, source: ir.Value, axes: Sequence[Axis]) -> list[Axis] | None:
    dims = sizes(source)
    return regroup(flat(axes), dims) if dims is not None else None


def _same(node: ir.Node, source: ir.Value, axes: Sequence[Axis]) -> list[Axis] | None:
    return list(axes)


def _unexpanded(node: ir.Node, source: ir.Value, axes: Sequence[Axis]) -> list[Axis] | None:
    """Give what an Expand repeats no factors in its input."""
    dims = sizes(source)
    if dims is None or len(dims) > len(axes):
        return None
    out: list[Axis] = []
    for axis, size in zip(axes[len(axes) - len(dims) :], dims, strict=True):
        factors = expanded(axis)
        if size == 1:
            out.append(())
        elif (len(factors) == 1 and factors[0].size == size) or length(factors) == size:
            out.append(axis)
        else:
            return None
    return out


def _untiled(node: ir.Node, source: ir.Value, axes: Sequence[Axis]) -> list[Axis] | None:
    """Give what a Tile repeats no factors in its input; only what has one element may be repeated."""
    dims, repeats = sizes(source), constant(input_at(node, 1))
    if dims is None or repeats is None or not len(dims) == len(axes) == repeats.size:
        return None
    if any(count != 1 and size != 1 for count, size in zip(repeats, dims, strict=True)):
        return None
    return [() if size == 1 else axis for axis, size in zip(axes, dims, strict=True)]


def _repeated(node: ir.Node, source: ir.Value, axes: Sequence[Axis]) -> list[Axis] | None:
    """Take apart what a Gather makes of each position several times over, one after the other."""
    dims, index = sizes(source), constant(input_at(node, 1))
    if dims is None or index is None or index.ndim != 1 or len(dims) != len(axes):
        return None
    axis = node.attributes.get_int("axis", 0) % len(dims)
    count = dims[axis]
    if not isinstance(count, int) or count < 1 or index.size % count or not index.size:
        return None
    times = index.size // count
    if (index != np.arange(index.size) // times).any():
        return None
    parts = regroup(expanded(axes[axis]), [count, times])
    return [*axes[:axis], parts[0], *axes[axis + 1 :]] if parts is not None else None


def chosen(node: ir.Node, value: ir.Value, axes: Sequence[Axis]) -> list[Axis] | None:
    """Return the axes of what a Gather or Split takes one position of, None where it is not just one."""
    source = node.inputs[0]
    dims = sizes(source) if source is not None else None
    if dims is None or not dims or not is_standard(node):
        return None
    axis = node.attributes.get_int("axis", 0) % len(dims)
    count, kept = dims[axis], list(axes)
    if node.op_type == "Gather":
        index = constant(input_at(node, 1))
        if index is None or index.size != 1 or index.ndim > 1:
            return None
        position = int(index.item())
        if index.ndim == 0:
            kept.insert(axis, ())
    elif node.op_type == "Split":
        position = next(i for i, output in enumerate(node.outputs) if output is value)
        if count != len(node.outputs) or not all((sizes(v) or [None] * len(dims))[axis] == 1 for v in node.outputs):
            return None
    else:
        return None
    if not isinstance(count, int) or not -count <= position < count or len(kept) != len(dims):
        return None
    kept[axis] = (Factor(count, chosen=position % count),)
    return kept


def _inactive(node: ir.Node, source: ir.Value, axes: Sequence[Axis]) -> list[Axis] | None:
    """Pass a Dropout that does nothing at inference."""
    ratio, training = constant(input_at(node, 1)), input_at(node, 2)
    is_off = training is None or ((flag := constant(training)) is not None and not flag.any())
    return list(axes) if node_opset(node) >= 7 and (is_off or (ratio is not None and not ratio.any())) else None


_BACKWARD: dict[str, Callable[[ir.Node, ir.Value, Sequence[Axis]], list[Axis] | None]] = {
    "Transpose": _untransposed,
    "Reshape": _regrouped,
    "Flatten": _regrouped,
    "Squeeze": _regrouped,
    "Unsqueeze": _regrouped,
    "Identity": _same,
    "Expand": _unexpanded,
    "Tile": _untiled,
    "Gather": _repeated,
    "Dropout": _inactive,
}
