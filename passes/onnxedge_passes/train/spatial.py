"""Operators over space without a gradient, or with a wrong one, written in those that have a right one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxedge.api import constant, static_shape
from onnxedge_passes.cleanup.worklist import Refused
from onnxedge_passes.train.average_pool import average_pool
from onnxedge_passes.train.draft import Draft, Spelling
from onnxedge_passes.train.pointwise import first_along
from onnxedge_passes.train.resize import resize

_UNKNOWN_SIZE = Refused("has no gradient: the size of its input is not known; fix the model's input shapes")


def _transpose(draft: Draft) -> ir.Value | Refused | None:
    """Write the default order out: the gradient reads the attribute."""
    if "perm" in draft.node.attributes:
        return None
    if draft.dims is None:
        return Refused("has no gradient: the rank of its input is not known")
    return draft.put("Transpose", draft.x, perm=list(reversed(range(len(draft.dims)))))


def _slice(draft: Draft) -> ir.Value | Refused | None:
    """Take elements by their index where a Slice runs backwards."""
    starts, ends, axes, steps = (draft.input(index) for index in range(1, 5))
    given = constant(steps)
    if steps is None or (given is not None and (given > 0).all()):
        return None
    bounds, dims = [constant(value) for value in (starts, ends)], draft.dims
    named = constant(axes) if axes is not None else np.arange(len(dims or ()))
    if dims is None or given is None or named is None or any(bound is None for bound in bounds):
        return Refused("has no gradient: its bounds or the rank of its input are computed at run time")
    rows = [[int(n) for n in np.asarray(array).reshape(-1)] for array in (named, *bounds, given)]
    sizes = [dims[axis] for axis in rows[0]]
    if None in sizes:
        return _UNKNOWN_SIZE
    value = draft.x
    for (axis, start, end, step), size in zip(zip(*rows, strict=True), sizes, strict=True):
        taken = np.array(_taken(start, end, step, size or 0), np.int64)
        value = draft.put("Gather", value, taken, axis=axis)
    return value


def _taken(start: int, end: int, step: int, size: int) -> range:
    """Return the places that a Slice takes along an axis, bounds clamped as ONNX has them."""
    first, last = (bound + size if bound < 0 else bound for bound in (start, end))
    low, high = (0, size) if step > 0 else (-1, size - 1)
    return range(min(max(first, 0), high), min(max(last, low), high), step)


def _explicit_pads(draft: Draft) -> ir.Value | Refused | None:
    """Write ``auto_pad`` as pads: its gradient is silently wrong."""
    node, auto = draft.node, draft.node.attributes.get_string("auto_pad", "NOTSET")
    if "auto_pad" not in node.attributes:
        return None
    kernel = _kernel(draft)
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        if draft.dims is None or kernel is None:
            return _UNKNOWN_SIZE
        strides = node.attributes.get_ints("strides", [1] * len(kernel))
        if any(dilation != 1 for dilation in node.attributes.get_ints("dilations", ())):
            return Refused("has no gradient: ONNX Runtime runs no auto_pad with dilations")
        totals = []
        for size, window, stride in zip(draft.dims[2:], kernel, strides, strict=True):
            if size is None and stride != 1:
                return _UNKNOWN_SIZE
            totals.append(max((-(-size // stride) - 1) * stride + window - size, 0) if size else window - 1)
        pads = _halves(totals, upper=auto == "SAME_UPPER")
        if max(pads) >= min(kernel) and node.op_type != "Conv":
            return Refused("has no gradient: its padding is wider than its window")
        node.attributes["pads"] = ir.AttrInt64s("pads", pads)
    elif auto == "VALID":
        node.attributes.pop("pads", None)
    del node.attributes["auto_pad"]
    return node.outputs[0]


def _halves(totals: Sequence[int], *, upper: bool) -> list[int]:
    """Return begins and ends of pads; the larger half comes last for ``upper``."""
    small, large = [total // 2 for total in totals], [total - total // 2 for total in totals]
    return [*small, *large] if upper else [*large, *small]


def _kernel(draft: Draft) -> Sequence[int] | None:
    weight = static_shape(draft.input(1)) if draft.node.op_type.startswith("Conv") else None
    return weight[2:] if weight is not None else draft.node.attributes.get_ints("kernel_shape", None)


def _average_pool(draft: Draft) -> ir.Value | Refused | None:
    return _explicit_pads(draft) if "auto_pad" in draft.node.attributes else average_pool(draft)


def _global_max_pool(draft: Draft) -> ir.Value | Refused:
    dims = draft.dims
    if dims is None:
        return _UNKNOWN_SIZE
    sizes = [size for size in dims[2:] if size]
    if sizes and len(sizes) == len(dims) - 2:
        return draft.put("MaxPool", draft.x, kernel_shape=sizes)
    return first_along(draft, draft.x, list(range(2, len(dims))), largest=True)


def _depth_to_space(draft: Draft) -> ir.Value | Refused:
    dims, block = draft.dims, draft.node.attributes.get_int("blocksize", 0) or 0
    if dims is None or None in dims[1:] or block < 1:
        return _UNKNOWN_SIZE
    depth, height, width = (int(d or 0) for d in dims[1:])
    depth //= block * block
    if draft.node.attributes.get_string("mode", "DCR") == "DCR":
        apart, perm = [0, block, block, depth, height, width], [0, 3, 4, 1, 5, 2]
    else:
        apart, perm = [0, depth, block, block, height, width], [0, 1, 4, 2, 5, 3]
    return _rearranged(draft, apart, perm, [0, depth, height * block, width * block])


def _space_to_depth(draft: Draft) -> ir.Value | Refused:
    dims, block = draft.dims, draft.node.attributes.get_int("blocksize", 0) or 0
    if dims is None or None in dims[1:] or block < 1:
        return _UNKNOWN_SIZE
    depth, height, width = (int(d or 0) for d in dims[1:])
    height, width = height // block, width // block
    together = [0, depth * block * block, height, width]
    return _rearranged(draft, [0, depth, height, block, width, block], [0, 3, 5, 1, 2, 4], together)


def _rearranged(draft: Draft, apart: list[int], perm: list[int], together: list[int]) -> ir.Value:
    value = draft.put("Reshape", draft.x, np.array(apart, np.int64))
    return draft.put("Reshape", draft.put("Transpose", value, perm=perm), np.array(together, np.int64))


def _transposed_convolution(draft: Draft) -> ir.Value | Refused:
    """Put zeros between and around the elements, and convolve with the flipped weight.

    Source: Dumoulin and Visin 2016, arXiv:1603.07285, section 4.
    """
    node, weight, dims = draft.node, static_shape(draft.input(1)), draft.dims
    auto = node.attributes.get_string("auto_pad", "NOTSET")
    if weight is None or dims is None:
        return _UNKNOWN_SIZE
    if "output_shape" in node.attributes:
        return Refused("has no gradient with output_shape; give pads instead")
    rank, kernel = len(weight) - 2, weight[2:]
    strides = node.attributes.get_ints("strides", [1] * rank)
    dilations = node.attributes.get_ints("dilations", [1] * rank)
    more = node.attributes.get_ints("output_padding", [0] * rank)
    pads = list(node.attributes.get_ints("pads", [0] * (2 * rank)))
    reach = [(window - 1) * dilation for window, dilation in zip(kernel, dilations, strict=True)]
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        totals = [r + 1 + m - s for r, m, s in zip(reach, more, strides, strict=True)]
        if min(totals) < 0:
            return Refused("has no gradient with auto_pad and strides beyond the window; give pads instead")
        pads = _halves(totals, upper=auto == "SAME_UPPER")
    elif auto == "VALID":
        pads = [0] * (2 * rank)
    if max(strides) > 1 and None in dims[2:]:
        return _UNKNOWN_SIZE
    value = _spread(draft, [int(d or 0) for d in dims[2:]], strides) if max(strides) > 1 else draft.x
    before = [r - pad for r, pad in zip(reach, pads[:rank], strict=True)]
    after = [r - pad + m - s + 1 for r, pad, m, s in zip(reach, pads[rank:], more, strides, strict=True)]
    if any([*before, *after]):
        value = draft.put("Pad", value, np.array([0, 0, *before, 0, 0, *after], np.int64))
    group = node.attributes.get_int("group", 1) or 1
    bias = [draft.input(2)] if draft.input(2) is not None else []
    return draft.put("Conv", value, _flipped(draft, weight, group), *bias, dilations=list(dilations), group=group)


def _spread(draft: Draft, sizes: list[int], strides: Sequence[int]) -> ir.Value:
    """Put ``stride - 1`` zeros behind each element."""
    rank = len(sizes)
    apart = draft.put("Unsqueeze", draft.x, np.array([3 + 2 * axis for axis in range(rank)], np.int64))
    behind = [pad for stride in strides for pad in (0, stride - 1)]
    padded = draft.put("Pad", apart, np.array([0] * (2 + 2 * rank) + [0, 0, *behind], np.int64))
    wide = [size * stride for size, stride in zip(sizes, strides, strict=True)]
    return draft.put("Reshape", padded, np.array([0, 0, *wide], np.int64))


def _flipped(draft: Draft, shape: Sequence[int], group: int) -> ir.Value:
    """Return a weight [Ci, Co/G, *K] as [Co, Ci/G, *K], reversed along K; the weight itself stays what is trained."""
    (inputs, outputs, *kernel), value = shape, draft.input(1)
    rest = list(range(2, len(shape)))
    if group > 1:
        grouped = draft.put("Reshape", value, np.array([group, inputs // group, outputs, *kernel], np.int64))
        value = draft.put("Transpose", grouped, perm=[0, 2, 1, *(axis + 1 for axis in rest)])
        value = draft.put("Reshape", value, np.array([group * outputs, inputs // group, *kernel], np.int64))
    else:
        value = draft.put("Transpose", value, perm=[1, 0, *rest])
    for axis, size in zip(rest, kernel, strict=True):
        if size > 1:
            value = draft.put("Gather", value, np.arange(size - 1, -1, -1), axis=axis)
    return value


SPELLINGS: dict[str, Spelling] = {
    "Transpose": _transpose,
    "Slice": _slice,
    **dict.fromkeys(("Conv", "MaxPool"), _explicit_pads),
    "AveragePool": _average_pool,
    "GlobalMaxPool": _global_max_pool,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
    "ConvTranspose": _transposed_convolution,
    "Resize": resize,
}
