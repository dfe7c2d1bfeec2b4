"""Kernels that round their data at run time, back to float: their data was float all along."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxedge.api import (
    Array,
    constant,
    graph_of,
    insert_before,
    is_standard,
    new_initializer,
    replace_uses,
    sole_consumer,
)

from .floats import Floats
from .steps import Step, step_of

_FLOAT_OPS = {"MatMulInteger": "MatMul", "ConvInteger": "Conv"}


def integer_product(node: ir.Node, floats: Floats) -> tuple[ir.Value, ir.Value] | str | None:
    """Return the end of a product of integers that is scaled to float, and the float that takes its place.

    Before: ``Mul(Cast(MatMulInteger(q, B, zero, zero_B)), Mul(scale, scale_B))``, q from a DynamicQuantizeLinear
    After:  ``MatMul(x, (B - zero_B) * scale_B)``

    Returns:
        The output of the last node and its replacement; a reason; None where the node is no such product.
    """
    if not is_standard(node) or node.op_type not in _FLOAT_OPS:
        return None
    cast = sole_consumer(node.outputs[0])
    if cast is None or cast.op_type != "Cast" or cast.attributes.get_int("to", 0) != ir.DataType.FLOAT:
        return "its sum of integers is not made float at once"
    scaled = sole_consumer(cast.outputs[0])
    if scaled is None or scaled.op_type != "Mul":
        return "its sum of integers is not scaled at once"
    factors = _factors(scaled.inputs[0] if scaled.inputs[1] is cast.outputs[0] else scaled.inputs[1])
    data, weight = (_operand(node, index, factors, floats) for index in (0, 1))
    if isinstance(data, str) or isinstance(weight, str):
        return data if isinstance(data, str) else str(weight)
    scale = _product(factors)
    if scale is None:
        return "what its sum of integers is scaled by is not its data's scale times constants"
    if isinstance(weight, ir.Value) and (scale != 1).any():
        return "it is scaled by another constant"
    if isinstance(weight, np.ndarray):
        weight = _scaled(node, weight, scale)
        if isinstance(weight, str):
            return weight
    made = [v if isinstance(v, ir.Value) else new_initializer(graph_of(node), v, "weight") for v in (data, weight)]
    new = insert_before(node, _FLOAT_OPS[node.op_type], made, attributes=dict(node.attributes), name=node.name)
    new.outputs[0].type, new.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), node.outputs[0].shape
    return scaled.outputs[0], new.outputs[0]


def _factors(value: ir.Value | None) -> list[ir.Value]:
    """Return what a value is the product of."""
    node = value.producer() if value is not None else None
    if node is not None and node.op_type == "Mul" and is_standard(node):
        return [factor for source in node.inputs for factor in _factors(source)]
    return [value] if value is not None else []


def _operand(node: ir.Node, index: int, factors: list[ir.Value], floats: Floats) -> ir.Value | Array | str:
    """Return an operand in float, and take its scale out of the factors; a constant's scale stays among them."""
    codes = node.inputs[index]
    zero = node.inputs[index + 2] if len(node.inputs) > index + 2 else None
    if codes is None:
        return "an operand is missing"
    array = constant(codes)
    if array is not None:
        points = constant(zero) if zero is not None else np.zeros(())
        if points is None:
            return "the zero point of its weight is computed at run time"
        if points.size > 1 and points.ndim == 1 and (node.op_type == "ConvInteger" or index == 0):
            points = points.reshape(-1, *[1] * (array.ndim - 1))  # of a weight's output channels, of the data's rows
        return np.asarray(array.astype(np.float32) - points.astype(np.float32))
    maker = codes.producer()
    if maker is None or not is_standard(maker):
        return "reads integers that come from outside of the graph"
    if maker.op_type == "DynamicQuantizeLinear" and zero is maker.outputs[2] and maker.outputs[1] in factors:
        factors.remove(maker.outputs[1])
        source = maker.inputs[0]
        return source if source is not None else "an operand is missing"
    for factor in factors:
        step = step_of(codes.dtype, factor, zero)
        if isinstance(step, Step) and step.axis is None:
            made = floats.of(codes, step)
            if isinstance(made, ir.Value):
                factors.remove(factor)
                return made
    return "the scale of its data is not among what its sum of integers is scaled by"


def _product(factors: list[ir.Value]) -> Array | None:
    """Return the product of constants, None where one is none."""
    arrays = [constant(factor) for factor in factors]
    product = np.ones((), np.float32)
    for array in arrays:
        if array is None:
            return None
        product = product * array.astype(np.float32)
    return np.asarray(product)


def _scaled(node: ir.Node, weight: Array, scale: Array) -> Array | str:
    """Return a weight with the constants taken in that its output was scaled by."""
    if scale.size == 1:
        return np.asarray(weight * scale.reshape(()))
    if node.op_type == "ConvInteger":
        channels = weight.shape[0]
        if scale.size == channels and scale.ndim >= weight.ndim - 1 and scale.shape[-(weight.ndim - 1)] == channels:
            return np.asarray(weight * scale.reshape(-1, *[1] * (weight.ndim - 1)))
    elif scale.shape[-1] == scale.size == weight.shape[-1]:
        return np.asarray(weight * scale.reshape(-1))
    return "its output is scaled along another axis than its channels"


def contrib(node: ir.Node) -> tuple[ir.Value, ir.Value] | str | None:
    """Return the output of one of ONNX Runtime's kernels that round their data, and the float in its place."""
    if node.domain != "com.microsoft":
        return None
    inputs = [*node.inputs, *[None] * (12 - len(node.inputs))]
    if node.op_type == "DynamicQuantizeMatMul":
        data, weight, bias = inputs[0], _weight(node, inputs[1], inputs[2], inputs[3]), inputs[4]
    elif node.op_type == "MatMulIntegerToFloat":
        maker = inputs[0].producer() if inputs[0] is not None else None
        if maker is None or maker.op_type != "DynamicQuantizeLinear" or inputs[2] is not maker.outputs[1]:
            return "its data is not rounded by a DynamicQuantizeLinear"
        data, weight, bias = maker.inputs[0], _weight(node, inputs[1], inputs[3], inputs[5]), inputs[6]
    elif node.op_type == "DynamicQuantizeLSTM":
        return _lstm(node, inputs)
    elif node.op_type == "GatherBlockQuantized":
        return _table(node, inputs)
    elif node.op_type == "MatMulNBits":
        data, weight, bias = inputs[0], _blocks(node, inputs), inputs[5]
    else:
        return None
    if isinstance(weight, str):
        return weight
    graph, name = graph_of(node), node.name
    new = insert_before(node, "MatMul", [data, new_initializer(graph, weight, "weight")], name=name, like=node.outputs)
    if bias is not None:
        new = insert_before(node, "Add", [new.outputs[0], bias], like=node.outputs)
    return node.outputs[0], new.outputs[0]


def _weight(node: ir.Node, codes: ir.Value | None, scale: ir.Value | None, zero: ir.Value | None) -> Array | str:
    """Return a constant weight [..., K, N] in float; several scales are those of its columns."""
    array = constant(codes)
    if codes is None or array is None:
        return "its weight is computed at run time or may be overridden"
    step = step_of(codes.dtype, scale, zero, axis=array.ndim - 1)
    if isinstance(step, str):
        return step
    return step.restored(array) if step.fits(array.shape) else "its scales do not fit its weight"


def _lstm(node: ir.Node, inputs: list[ir.Value | None]) -> tuple[ir.Value, ir.Value] | str:
    """Put an LSTM in the place of the runtime's own, whose weights lie the other way round."""
    new_inputs = inputs[:8]
    for index, at in ((1, 8), (2, 10)):
        array, scale = constant(inputs[index]), constant(inputs[at])
        zero = constant(inputs[at + 1]) if inputs[at + 1] is not None else np.zeros(())
        if array is None or scale is None or zero is None:
            return "a weight of it is computed at run time or may be overridden"
        apart = (-1, 1) if scale.ndim == 1 else (len(scale), 1, -1)  # one scale a direction, or one a column as well
        scale, zero = (
            a.reshape(*apart, *[1] * (3 - len(apart))) if a.size > 1 else a.reshape(()) for a in (scale, zero)
        )
        restored = (array.astype(np.float32) - zero.astype(np.float32)) * scale.astype(np.float32)
        turned = np.ascontiguousarray(restored.swapaxes(1, 2))
        new_inputs[index] = new_initializer(graph_of(node), turned, "weight")
    new = insert_before(
        node, "LSTM", new_inputs, attributes=dict(node.attributes), outputs=len(node.outputs), like=node.outputs
    )
    for old, value in zip(node.outputs[1:], new.outputs[1:], strict=True):
        if old.name:
            replace_uses(old, value)
        else:
            value.name = ""  # an output that nobody asks for
    return node.outputs[0], new.outputs[0]


def _blocks(node: ir.Node, inputs: list[ir.Value | None]) -> Array | str:
    """Return the float weight [K, N] of a MatMulNBits."""
    from onnxedge_passes.quantize.int4.pack import unpacked

    if inputs[4] is not None:
        return "its groups are reordered (g_idx)"
    arrays = [constant(inputs[index]) for index in (1, 2, 3)]
    if arrays[0] is None or arrays[1] is None or (inputs[3] is not None and arrays[2] is None):
        return "its weight is computed at run time or may be overridden"
    bits, size, k, n = (node.attributes.get_int(name, given) for name, given in _NBITS)
    if bits != 4 or (arrays[2] is not None and arrays[2].dtype != np.uint8):
        return f"its weight has {bits} bits, or zero points that are no integers"
    return unpacked(arrays[0], arrays[1], arrays[2], block=size or 0, rows=k or 0, columns=n or 0)


def _table(node: ir.Node, inputs: list[ir.Value | None]) -> tuple[ir.Value, ir.Value] | str:
    """Put a Gather from a float table in the place of one from a table of 4 bits that fill bytes."""
    from onnxedge_passes.quantize.int4.pack import unpacked

    codes, scale, zero = (constant(inputs[index]) for index in (0, 2, 3))
    if codes is None or scale is None or (inputs[3] is not None and zero is None):
        return "its table is computed at run time or may be overridden"
    bits, axis, along = (node.attributes.get_int(name, given) for name, given in _GATHER)
    if codes.dtype != np.uint8 or codes.ndim != 2 or bits != 4 or axis != 0 or along not in (1, -1):
        return "its table does not hold rows of 4 bits in bytes"
    rows, columns, block = len(codes), 2 * codes.shape[1], node.attributes.get_int("block_size", 128) or 128
    if columns % block:
        return "its rows are no whole blocks"
    table = unpacked(codes, scale, zero, block=block, rows=columns, columns=rows).T
    held = new_initializer(graph_of(node), np.ascontiguousarray(table), "table")
    new = insert_before(node, "Gather", [held, inputs[1]], name=node.name, like=node.outputs)
    return node.outputs[0], new.outputs[0]


_GATHER = (("bits", 4), ("gather_axis", 0), ("quantize_axis", 1))
_NBITS = (("bits", 4), ("block_size", 0), ("K", 0), ("N", 0))
