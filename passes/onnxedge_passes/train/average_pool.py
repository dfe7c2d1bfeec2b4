"""AveragePool as a mean or a convolution: its own gradient reads memory that it did not write, or crashes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxedge.api import Array, CannotRun, Session
from onnxedge_passes.cleanup.worklist import Refused, node_opset
from onnxedge_passes.train.draft import Draft

_UNKNOWN_SIZE = Refused("has no gradient: the size of its input is not known; fix the model's input shapes")


def average_pool(draft: Draft) -> ir.Value | Refused:
    """Take the mean of everything, of blocks, or of windows by a convolution for each channel.

    Where windows reach over the border, what the convolution gives is multiplied by what AveragePool makes of ones
    over what the convolution makes of them.
    """
    node, dims, attributes = draft.node, draft.dims, draft.node.attributes
    kernel = list(attributes.get_ints("kernel_shape", ()))
    rank = len(kernel)
    if dims is None or len(dims) != rank + 2:
        return _UNKNOWN_SIZE
    strides = list(attributes.get_ints("strides", [1] * rank))
    pads = list(attributes.get_ints("pads", [0] * (2 * rank)))
    dilations = list(attributes.get_ints("dilations", [1] * rank))
    sizes = [size for size in dims[2:] if size is not None]
    known, plain = len(sizes) == rank, not any(pads) and max(dilations) == 1
    if known and plain and sizes == kernel:
        return draft.put("GlobalAveragePool", draft.x)
    if known and plain and strides == kernel and not any(n % k for n, k in zip(sizes, kernel, strict=True)):
        apart = [part for n, k in zip(sizes, kernel, strict=True) for part in (n // k, k)]
        value = draft.mean(draft.put("Reshape", draft.x, np.array([0, 0, *apart])), range(3, 2 * rank + 2, 2))
        return draft.put("Squeeze", value, np.arange(3, 2 * rank + 2, 2))
    ceil = attributes.get_int("ceil_mode", 0) != 0
    corrected = ceil or (any(pads) and attributes.get_int("count_include_pad", 0) == 0)
    if dims[1] is None or (corrected and not known):
        return _UNKNOWN_SIZE
    correction = None
    if corrected:
        ones = _of_ones(node, node.op_type, sizes, {name: a.value for name, a in attributes.items()})
        if ones is None:
            return Refused("has no gradient: ONNX Runtime does not run it")
        pads = _reaching(pads, ones.shape[2:], sizes, strides, kernel, dilations)
        options = {"pads": pads, "strides": strides, "dilations": dilations}
        counted = _of_ones(node, "Conv", sizes, options, np.full((1, 1, *kernel), 1 / math.prod(kernel), np.float32))
        if counted is None or counted.shape != ones.shape or counted.min() <= 0:
            return Refused("has no gradient: a window of it lies outside")
        correction = ones / counted
    weight = np.full((dims[1], 1, *kernel), 1 / math.prod(kernel), np.float32)
    value = draft.put("Conv", draft.x, weight, group=dims[1], strides=strides, pads=pads, dilations=dilations)
    return value if correction is None else draft.put("Mul", value, correction)


def _reaching(pads: Sequence[int], outer: Sequence[int], sizes: Sequence[int], *geometry: Sequence[int]) -> list[int]:
    """Return pads with which a convolution gives ``outer`` elements."""
    rank = len(sizes)
    begins, ends = list(pads[:rank]), []
    for axis, (stride, window, dilation) in enumerate(zip(*geometry, strict=True)):
        spread = (window - 1) * dilation + 1
        ends.append((outer[axis] - 1) * stride + spread - sizes[axis] - begins[axis])
    return [*begins, *(max(end, pad) for end, pad in zip(ends, pads[rank:], strict=True))]


def _of_ones(
    node: ir.Node, op_type: str, sizes: Sequence[int], attributes: dict[str, Any], weight: Array | None = None
) -> Array | None:
    """Return float32 [1, 1, ...]: what an operator makes of an image of ones, None where it does not run."""
    held = [] if weight is None else [onnx.numpy_helper.from_array(weight, "w")]
    made = onnx.helper.make_node(op_type, ["x", *(tensor.name for tensor in held)], ["y"], **attributes)
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 1, *sizes])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [None] * (2 + len(sizes)))
    graph = onnx.helper.make_graph([made], "ones", [x], [y], held)
    imports = [onnx.helper.make_opsetid("", node_opset(node))]
    try:
        session = Session(onnx.helper.make_model(graph, opset_imports=imports, ir_version=8), level="disable")
        return session.run({"x": np.ones((1, 1, *sizes), np.float32)})["y"]
    except CannotRun:
        return None
