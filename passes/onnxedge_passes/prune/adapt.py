"""What a movement operator has baked in about channels, and what it must say after a cut.

These are proposals: :class:`~onnxedge_passes.prune.cut.Cut` runs each on the labels and locks what does not come out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from onnxedge.api import Array, constant

if TYPE_CHECKING:
    from onnxedge_passes.prune.cut import Cut

Proposal = tuple[dict[int, Array], dict[str, Any]]  #: new operands by input, new attributes by name (None removes one)


def propose(cut: Cut, node: ir.Node) -> Proposal | None:
    """Return the new operands and attributes of a movement node; empty where nothing is baked in.

    None where no operands say it for every choice of channels, though they may for this one.
    """
    rule = _RULES.get(node.op_type)
    return rule(cut, node) if rule is not None else ({}, {})


def _reshape(cut: Cut, node: ir.Node) -> Proposal:
    """Change the entries that name a size that changes; 0 and -1 say it already.

    A shape put together at run time can be changed where it is constant.
    """
    shape = node.inputs[1]
    target = cut.computed(shape) if shape is not None else None
    before, after = cut.facts.shapes[node.outputs[0]], cut.shapes[node.outputs[0]]
    if shape is None or target is None or target.shape != (len(before),):
        return {}, {}
    changed = [a if t == b and a != b else t for t, b, a in zip(target.tolist(), before, after, strict=True)]
    held = {place for _, part, at in constant_parts(cut, shape) for place in range(at, at + part.size)}
    if changed == target.tolist() or any(
        c != t and i not in held for i, (c, t) in enumerate(zip(changed, target.tolist(), strict=True))
    ):
        return {}, {}
    return {1: np.array(changed, np.int64)}, {}


def constant_parts(cut: Cut, shape: ir.Value) -> list[tuple[int, Array, int]]:
    """Return what is constant of a shape: input of the Concat that makes it (0 where it is whole), array, place."""
    whole, maker = constant(shape), shape.producer()
    if whole is not None or maker is None or maker.op_type != "Concat":
        return [(0, whole, 0)] if whole is not None else []
    sizes = [cut.facts.shapes[part][0] if part is not None else 0 for part in maker.inputs]
    found = [(index, constant(part), sum(sizes[:index])) for index, part in enumerate(maker.inputs)]
    return [(index, array, at) for index, array, at in found if array is not None]


def _split(cut: Cut, node: ir.Node) -> Proposal:
    """Say the sizes of the parts, also where they were equal before."""
    axis = node.attributes.get_int("axis", 0) % max(len(cut.shapes[node.outputs[0]]), 1)
    sizes = [cut.shapes[value][axis] for value in node.outputs]
    if sizes == [cut.facts.shapes[value][axis] for value in node.outputs]:
        return {}, {}
    if cut.facts.opset < 13:
        return {}, {"split": sizes}
    if len(node.inputs) > 1 and node.inputs[1] is not None and constant(node.inputs[1]) is None:
        return {}, {}
    return {1: np.array(sizes, np.int64)}, ({"num_outputs": None} if "num_outputs" in node.attributes else {})


def _slice(cut: Cut, node: ir.Node) -> Proposal | None:
    """Move the ends of a slice along the cut axis to where the same channels stand; every second is none of them."""
    labels, data, given = cut.labels.get(node.inputs[0]), node.inputs[0], _slice_operands(cut, node)
    place = cut.axis_of(labels)
    if place is None or data is None or given is None:
        return {}, {}
    starts, ends, axes, steps = given
    size, kept = cut.facts.shapes[data][place], cut.kept(labels, place)
    new_starts, new_ends = starts.copy(), ends.copy()
    for k, (axis, step) in enumerate(zip(axes, steps, strict=True)):
        if axis % labels.ndim == place:
            if step != 1:
                return None
            first, last, _ = slice(int(starts[k]), int(ends[k]), 1).indices(size)
            new_starts[k], new_ends[k] = (np.searchsorted(kept, edge) for edge in (first, max(first, last)))
    if (new_starts == starts).all() and (new_ends == ends).all():
        return {}, {}
    if cut.facts.opset < 10:
        return {}, {"starts": new_starts.tolist(), "ends": new_ends.tolist()}
    return {1: new_starts, 2: new_ends}, {}


def _slice_operands(cut: Cut, node: ir.Node) -> tuple[Array, Array, list[int], list[int]] | None:
    if cut.facts.opset < 10:
        first, last = (np.array(node.attributes.get_ints(key, ()), np.int64) for key in ("starts", "ends"))
        return first, last, list(node.attributes.get_ints("axes", range(len(first)))), [1] * len(first)
    starts, ends, axes, steps = (_operand(node, index) for index in range(1, 5))
    if starts is None or ends is None:
        return None
    count = len(starts)
    along = list(range(count)) if axes is None else axes.tolist()
    return starts.copy(), ends.copy(), along, [1] * count if steps is None else steps.tolist()


def _gather(cut: Cut, node: ir.Node) -> Proposal | None:
    """Leave out the indices of channels that go, and renumber the others."""
    labels, data, indices = cut.labels.get(node.inputs[0]), node.inputs[0], _operand(node, 1)
    place = cut.axis_of(labels)
    if place is None or data is None or place != node.attributes.get_int("axis", 0) % labels.ndim:
        return {}, {}
    if indices is None or indices.ndim != 1:
        return None
    kept = cut.kept(labels, place)
    wanted = indices % cut.facts.shapes[data][place]
    return {1: np.searchsorted(kept, wanted[np.isin(wanted, kept)]).astype(indices.dtype)}, {}


def _pad(cut: Cut, node: ir.Node) -> Proposal | None:
    """Count what is left of the constants before and behind the data; mirrored channels do not stay the outermost."""
    labels, data, old = cut.labels.get(node.outputs[0]), node.inputs[0], cut.facts.opset < 11
    place, rank = cut.axis_of(labels), labels.ndim
    pads: Array | None = np.array(node.attributes.get_ints("pads", ()), np.int64) if old else _operand(node, 1)
    if place is None or pads is None or len(pads) != 2 * rank or data is None:
        return {}, {}
    if node.attributes.get_string("mode", "constant") != "constant":
        return None if pads[place] or pads[place + rank] else ({}, {})
    before, size, kept = int(pads[place]), cut.facts.shapes[data][place], cut.kept(labels, place)
    new = pads.copy()
    new[place], new[place + rank] = (kept < before).sum(), (kept >= before + size).sum()
    if (new == pads).all():
        return {}, {}
    return ({}, {"pads": new.tolist()}) if old else ({1: new}, {})


def _operand(node: ir.Node, index: int) -> Array | None:
    return constant(node.inputs[index]) if index < len(node.inputs) else None


_RULES: dict[str, Callable[[Cut, ir.Node], Proposal | None]] = {
    "Reshape": _reshape,
    "Expand": _reshape,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "Pad": _pad,
}
