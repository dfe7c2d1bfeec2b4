"""Resize as a Gather along each axis, or as a product with a matrix."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

from onnxedge.api import Array, CannotRun, Session, constant
from onnxedge_passes.cleanup.worklist import Refused, node_opset
from onnxedge_passes.train.draft import Draft

_ELEMENTS = 1 << 22  #: of the largest matrix
_KEPT = (
    "mode", "nearest_mode", "coordinate_transformation_mode", "cubic_coeff_a", "exclude_outside", "antialias",
)  # fmt: skip


def resize(draft: Draft) -> ir.Value | Refused:
    """Resize axis by axis: every mode is linear in the data, and its matrix is what ONNX Runtime makes of unit vectors.

    ``nearest`` takes elements by their index; the others multiply by the matrix, along the last two axes alone.
    """
    node, dims = draft.node, draft.dims
    outer = None if dims is None or node.outputs[0].shape is None else list(node.outputs[0].shape)
    if dims is None or outer is None or None in dims[2:] or not all(isinstance(d, int) for d in outer[2:]):
        return Refused("has no gradient: its sizes are not known; fix the model's input shapes")
    rank, attributes = len(dims), node.attributes
    if attributes.get_string("keep_aspect_ratio_policy", "stretch") != "stretch":
        return Refused("has no gradient where it keeps the aspect ratio")
    if attributes.get_string("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        return Refused("has no gradient where it crops")
    wanted = _wanted(draft, rank)
    if wanted is None:
        return Refused("has no gradient: its scales are computed at run time")
    if any(not _keeps(wanted, axis, dims[axis]) for axis in (0, 1) if axis < rank):
        return Refused("has no gradient: it resizes batch or channels")
    nearest, value = attributes.get_string("mode", "nearest") == "nearest", draft.x
    matrices: dict[int, Array] = {}
    for axis in range(2, rank):
        size = int(dims[axis] or 0)
        if _keeps(wanted, axis, size):
            continue
        if not nearest and axis < rank - 2:
            return Refused("has no gradient: it interpolates along an axis before the last two")
        matrix = _matrix(node, size, wanted, axis)
        if matrix is None or len(matrix) != outer[axis]:
            return Refused("has no gradient: it is too large, or ONNX Runtime does not run it")
        matrices[axis] = matrix
    for axis, matrix in matrices.items():
        if nearest:
            value = draft.put("Gather", value, matrix.argmax(1), axis=axis)
        elif axis == rank - 1:
            value = draft.put("MatMul", value, np.ascontiguousarray(matrix.T))
        else:
            value = draft.put("MatMul", matrix, value)
    return value if matrices else draft.put("Identity", value)


def _wanted(draft: Draft, rank: int) -> tuple[str, dict[int, float]] | None:
    """Return whether scales or sizes are given, and which, by axis; None where that is computed at run time."""
    attributes = draft.node.attributes
    axes = [axis % rank for axis in attributes.get_ints("axes", range(rank))]
    for kind, index in (("scales", 2), ("sizes", 3)):
        value = draft.input(index)
        array = constant(value)
        if value is not None and array is None:
            return None
        if array is not None and array.size:
            return kind, dict(zip(axes, array.reshape(-1).tolist(), strict=False))
    return None


def _keeps(wanted: tuple[str, dict[int, float]], axis: int, size: int | None) -> bool:
    """Tell whether an axis stays as it is."""
    kind, given = wanted
    return axis not in given or given[axis] == (1 if kind == "scales" else size)


def _matrix(node: ir.Node, size: int, wanted: tuple[str, dict[int, float]], axis: int) -> Array | None:
    """Return float32 [to, from]: what the node makes of each unit vector along an axis."""
    kind, given = wanted
    long = size * given[axis] if kind == "scales" else given[axis]
    if max(size, long) * size > _ELEMENTS:
        return None
    if kind == "scales":
        operand, inputs = np.array([1, 1, given[axis], 1], np.float32), ["x", "", "o"]
    else:
        operand, inputs = np.array([size, 1, int(given[axis]), 1], np.int64), ["x", "", "", "o"]
    operands = [onnx.numpy_helper.from_array(operand, "o")]
    options = {name: node.attributes[name].value for name in _KEPT if name in node.attributes}
    made = onnx.helper.make_node("Resize", inputs, ["y"], **options)
    infos = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None] * 4) for name in "xy"]
    graph = onnx.helper.make_graph([made], "resize", infos[:1], infos[1:], operands)
    version = [onnx.helper.make_opsetid("", node_opset(node))]
    model = onnx.helper.make_model(graph, opset_imports=version, ir_version=8)
    unit = np.eye(size, dtype=np.float32).reshape(size, 1, size, 1)
    try:
        found = Session(model, level="disable").run({"x": unit})["y"]
    except CannotRun:
        return None
    return np.ascontiguousarray(found[:, 0, :, 0].T)
