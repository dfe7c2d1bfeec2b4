"""Scales and zero points that a model holds, read as one thing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxedge.api import Array, constant, constant_tensor

_INTEGERS = ("INT4", "UINT4", "INT8", "UINT8", "INT16", "UINT16", "INT32")


@dataclass(frozen=True, eq=False)
class Step:
    """Hold a constant scale and zero point.

    Attributes:
        scale: float [], [C] or with one number a block along ``axis``.
        zero: int32, shape of the scale.
        axis: of the scales, None for one scale.
        block: elements of a block along ``axis``, 0 for none.
        low, high: range of the integers.
        dtype: of the integers.
    """

    scale: Array
    zero: Array
    axis: int | None
    block: int
    low: int
    high: int
    dtype: np.dtype[Any]

    @property
    def key(self) -> tuple[object, ...]:
        """Return what two equal steps have in common."""
        scale = (self.scale.dtype.name, self.scale.shape, self.scale.tobytes())
        return (*scale, self.zero.tobytes(), self.axis, self.block, self.low, self.high)

    @property
    def bounds(self) -> tuple[float, float]:
        """Return the least and the largest float of a step that has one scale."""
        scale, zero = float(self.scale), int(self.zero)
        return (self.low - zero) * scale, (self.high - zero) * scale

    def restored(self, codes: Array) -> Array:
        """Return the floats that integers stand for, of the scale's dtype, computed as the operator does."""
        scale, zero = self._like(codes.shape)
        centred = codes.astype(np.int64) - zero
        return np.asarray(centred.astype(np.float32) * scale.astype(np.float32)).astype(self.scale.dtype)

    def rounded(self, array: Array) -> Array:
        """Return the integers that floats are rounded to, int64."""
        scale, zero = self._like(array.shape)
        codes = np.rint(array.astype(np.float32) / scale.astype(np.float32)) + zero
        return np.asarray(np.clip(codes, self.low, self.high), np.int64)

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Tell whether an array of this shape has a scale for each element."""
        try:
            scale, _ = self._like(shape)
        except (ValueError, IndexError):
            return False
        return scale.ndim <= len(shape) and all(
            a in (1, b) for a, b in zip(scale.shape[::-1], shape[::-1], strict=False)
        )

    def _like(self, shape: tuple[int, ...]) -> tuple[Array, Array]:
        """Return scale and zero point in forms that broadcast to a shape."""
        if self.axis is None:
            return self.scale, self.zero
        if self.block:
            size = shape[self.axis]
            repeated = (np.repeat(a, self.block, axis=self.axis) for a in (self.scale, self.zero))
            scale, zero = (np.take(a, np.arange(size), axis=self.axis) for a in repeated)
            return scale, zero
        aligned = [-1 if i == self.axis else 1 for i in range(len(shape))]
        return self.scale.reshape(aligned), self.zero.reshape(aligned)


def step_of(
    dtype: ir.DataType | None, scale: ir.Value | None, zero: ir.Value | None, *, axis: int | None = None, block: int = 0
) -> Step | str:
    """Return a scale and zero point, or why there is none.

    Args:
        dtype: of the integers, where there is no zero point that says it.
        scale, zero: inputs of a node; a missing zero point is 0.
        axis: that several scales lie along, not negative.
        block: as the operators' ``block_size``.
    """
    held = constant_tensor(zero)
    dtype = held.dtype if held is not None else dtype
    if dtype is None or dtype.name not in _INTEGERS:
        return f"its integers are {dtype.name.lower() if dtype is not None else 'of an unknown type'}"
    tensor, array = constant_tensor(scale), constant(scale)
    if tensor is None or array is None:
        return "its scale is computed at run time or may be overridden"
    if tensor.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
        return f"its scale is {tensor.dtype.name.lower()}"
    if not (np.isfinite(array).all() and (array > 0).all()):
        return "its scale is not a finite number above 0"
    points = constant(zero) if zero is not None else np.zeros(array.shape)
    if points is None:
        return "its zero point is computed at run time or may be overridden"
    points = np.asarray(points).astype(np.int64)
    if array.size == 1 and points.size == 1:
        array, points, axis, block = array.reshape(()), points.reshape(()), None, 0
    elif axis is None:
        return "it has several scales and no axis for them"
    elif points.shape != array.shape:
        points = np.broadcast_to(points, array.shape) if points.size == 1 else points
        if points.shape != array.shape:
            return "its scale and its zero point differ in shape"
    bits, signed = dtype.bitwidth, dtype.name.startswith("INT")
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    return Step(np.asarray(array), points, axis, block, low, high, dtype.numpy())


def node_step(node: ir.Node, codes: ir.Value | None) -> Step | str:
    """Return the scale and zero point of a QuantizeLinear or DequantizeLinear, or why there is none."""
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    dtype = codes.dtype if codes is not None else None
    if zero is None and node.op_type == "QuantizeLinear":
        named = node.attributes.get_int("output_dtype", 0)
        dtype = ir.DataType(named) if named else dtype or ir.DataType.UINT8
    scale = node.inputs[1]
    source = codes if codes is not None and codes.shape is not None else node.inputs[0]
    rank = len(source.shape) if source is not None and source.shape is not None else None
    axis: int | None = node.attributes.get_int("axis", 1)
    if axis is not None and axis < 0:
        axis = axis + rank if rank is not None else None
    return step_of(dtype, scale, zero, axis=axis, block=node.attributes.get_int("block_size", 0) or 0)
