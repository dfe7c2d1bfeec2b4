"""A contraction as a least-squares problem ``y = M' [x; 1]`` over sampled positions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxedge.api import Array, constant, weight_axes
from onnxedge_passes.prune.groups import Groups
from onnxedge_passes.prune.labels import Reader

_CHUNK = 512  #: positions of one product
MAX_ROWS = 4609  #: a 3x3 convolution of 512 channels; the inverse of the Gram matrix takes seconds and 170 MB there


@dataclass(frozen=True, eq=False)
class Linear:
    """A contraction with what its refit needs.

    Attributes:
        reader: the contraction.
        data: its data input.
        output: its output, behind the constant Add that is a MatMul's bias.
        bias: node and input of the bias, None where there is no place for one.
        target: what the refit aims at: the residual sum that the output goes into, or the output itself.
        shortcut: the other addend of that sum.
        kernel: weights per input channel and output channel.
    """

    reader: Reader
    data: ir.Value
    output: ir.Value
    bias: tuple[ir.Node, int] | None
    target: ir.Value
    shortcut: ir.Value | None
    kernel: int

    @property
    def rows(self) -> int:
        """Number of regressors without the bias."""
        return len(self.reader.ends) * self.kernel


def linear_problem(groups: Groups, reader: Reader) -> Linear | None:
    """Return the least-squares view of a contraction, None for one that has none here.

    None for grouped and transposed convolutions, a weight that several nodes read, and more than ``MAX_ROWS`` rows.
    """
    node, shapes = reader.node, groups.labels.facts.shapes
    axes, data, output = weight_axes(node), node.inputs[0], node.outputs[0]
    if axes is None or data is None or axes.groups != 1 or node.op_type == "ConvTranspose":
        return None
    kernel = math.prod(shapes[reader.weight]) // (len(reader.begins) * len(reader.ends))
    weight = reader.weight.const_value
    if len(reader.weight.uses()) != 1 or len(reader.ends) * kernel > MAX_ROWS:
        return None
    if weight is None or weight.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE):
        return None
    if node.op_type == "Gemm" and (
        node.attributes.get_float("alpha", 1.0) != 1 or node.attributes.get_float("beta", 1.0) != 1
    ):
        return None
    bias, output = _bias_place(groups, reader, output)
    target, shortcut = _residual_sum(groups, output)
    return Linear(reader, data, output, bias, target, shortcut, kernel)


def _bias_place(groups: Groups, reader: Reader, output: ir.Value) -> tuple[tuple[ir.Node, int] | None, ir.Value]:
    node, size = reader.node, len(reader.begins)
    if node.op_type in ("Conv", "Gemm"):
        held = node.inputs[2] if len(node.inputs) > 2 else None
        shape = groups.labels.facts.shapes.get(held) if held is not None else (size,)
        fits = shape == (size,) and (held is None or constant(held) is not None)
        return ((node, 2) if fits else None), output
    readers = list(output.uses())
    if len(readers) != 1 or output.is_graph_output() or readers[0].node.op_type != "Add":
        return None, output
    add, index = readers[0].node, 1 - readers[0].idx
    held = add.inputs[index]
    if add.graph is not node.graph or held is None or constant(held) is None:
        return None, output
    if (
        groups.labels.facts.shapes[held] != (size,)
        or groups.labels.facts.shapes[output] != groups.labels.facts.shapes[add.outputs[0]]
    ):
        return None, output
    return (add, index), add.outputs[0]


def _residual_sum(groups: Groups, output: ir.Value) -> tuple[ir.Value, ir.Value | None]:
    shapes, readers = groups.labels.facts.shapes, list(output.uses())
    if len(readers) != 1 or output.is_graph_output() or readers[0].node.op_type != "Add":
        return output, None
    add = readers[0].node
    other = add.inputs[1 - readers[0].idx]
    if other is None or other is output or add.graph is not output.graph or constant(other) is not None:
        return output, None
    if shapes.get(other) != shapes[output]:
        return output, None
    return add.outputs[0], other


def weight_matrix(linear: Linear, weight: Array) -> Array:
    """Return a weight as float64 [rows, Co]: input channels outermost, then kernel positions."""
    axes = weight_axes(linear.reader.node)
    assert axes is not None
    moved = np.moveaxis(weight.astype(np.float64), axes.output, -1)  # [Ci, *K, Co]
    return moved.reshape(-1, moved.shape[-1])


def weight_array(linear: Linear, matrix: Array, like: Array) -> Array:
    """Return a matrix [rows, Co] in the weight's own order of axes and dtype."""
    axes = weight_axes(linear.reader.node)
    assert axes is not None
    moved = np.moveaxis(like, axes.output, -1).shape
    return np.ascontiguousarray(np.moveaxis(matrix.reshape(moved), -1, axes.output)).astype(like.dtype)


def bias_vector(linear: Linear) -> Array:
    """Return the bias as float64 [Co], zeros where there is none."""
    if linear.bias is None:
        return np.zeros(len(linear.reader.begins))
    node, index = linear.bias
    held = constant(node.inputs[index]) if index < len(node.inputs) else None
    return np.zeros(len(linear.reader.begins)) if held is None else held.astype(np.float64)


def position_count(linear: Linear, data: Array, output_shape: Sequence[int]) -> int:
    """Return the number of positions that a batch has: output pixels, or rows of a matrix."""
    if linear.reader.node.op_type == "Conv":
        return output_shape[0] * math.prod(output_shape[2:])
    return data.size // len(linear.reader.ends)


def sample_rows(linear: Linear, data: Array, output_shape: Sequence[int], positions: Array) -> Array:
    """Return the regressors float32 [P, rows] at flat positions of the output (see :func:`position_count`)."""
    weight = linear.reader.weight.const_value
    assert weight is not None
    return rows_at(linear.reader.node, tuple(weight.shape.numpy())[2:], data, output_shape, positions)


def rows_at(node: ir.Node, kernel: Sequence[int], data: Array, output_shape: Sequence[int], positions: Array) -> Array:
    """Return what a contraction reads for flat positions of its output, float32 [P, C * K], input channels outermost.

    Args:
        node: the contraction.
        kernel: of a convolution.
        data: its data input.
        output_shape: of its output.
        positions: see :func:`position_count`.
    """
    if node.op_type != "Conv":
        axes = weight_axes(node)
        moved = np.moveaxis(data, axes.data_axis if axes else -1, -1)
        return moved.reshape(-1, moved.shape[-1])[positions].astype(np.float32)
    spatial = tuple(output_shape[2:])
    strides, dilations, pads = _geometry(node, data.shape[2:], spatial, kernel)
    rank = len(spatial)
    padded = np.pad(data, [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)]) if any(pads) else data
    span = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))
    windows = np.lib.stride_tricks.sliding_window_view(padded, span, axis=tuple(range(2, 2 + rank)))
    steps: tuple[Any, ...] = (..., *(slice(None, None, d) for d in dilations))
    windows = windows[steps]
    image, *where = np.unravel_index(positions, (output_shape[0], *spatial))
    index: tuple[Any, ...] = (image, slice(None), *(w * s for w, s in zip(where, strides, strict=True)))
    return np.asarray(windows[index]).reshape(len(positions), -1).astype(np.float32)


def _geometry(
    node: ir.Node, source: Sequence[int], output: Sequence[int], kernel: Sequence[int]
) -> tuple[Sequence[int], Sequence[int], list[int]]:
    """Return strides, dilations and pads (begins, then ends) of a convolution, auto_pad worked out."""
    rank = len(kernel)
    strides = node.attributes.get_ints("strides", (1,) * rank)
    dilations = node.attributes.get_ints("dilations", (1,) * rank)
    mode = node.attributes.get_string("auto_pad", "NOTSET")
    if mode in ("NOTSET", None, ""):
        return strides, dilations, list(node.attributes.get_ints("pads", (0,) * (2 * rank)))
    if mode == "VALID":
        return strides, dilations, [0] * (2 * rank)
    total = [
        max((o - 1) * s + (k - 1) * d + 1 - i, 0)
        for o, s, k, d, i in zip(output, strides, kernel, dilations, source, strict=True)
    ]
    small, large = [t // 2 for t in total], [t - t // 2 for t in total]
    return strides, dilations, [*small, *large] if mode == "SAME_UPPER" else [*large, *small]


def sample_outputs(linear: Linear, output: Array, positions: Array) -> Array:
    """Return the outputs float32 [P, Co] at flat positions."""
    moved = np.moveaxis(output, 1, -1) if linear.reader.node.op_type == "Conv" else output
    return moved.reshape(-1, moved.shape[-1])[positions].astype(np.float32)


class Gram:
    """Sums of products of regressors, and of regressors with targets.

    Products and sums are float32, of some ten thousand positions at most: what is rounded is small beside what the
    ridge adds, and float64 would take twice the memory.

    Attributes:
        a: float64 [R, R], the last row and column for the constant 1 where there is a bias.
        b: float64 [R, Co], where there are targets with all rows or with none.
        count: positions summed.
        size: R.
    """

    def __init__(self, linear: Linear) -> None:
        self.with_bias = linear.bias is not None
        self.size = linear.rows + self.with_bias
        self._a = np.zeros((self.size, self.size), np.float32)
        self._b = np.zeros((self.size, len(linear.reader.begins)), np.float32)
        self._waiting: list[tuple[Array, Array | None]] = []
        self.count = 0
        self.target_sum = np.zeros(len(linear.reader.begins))
        self.target_squares = np.zeros(len(linear.reader.begins))

    @property
    def is_finite(self) -> bool:
        """Tell whether no sum met an infinity or NaN."""
        self._sum()
        return all(bool(np.isfinite(array).all()) for array in (self._a, self._b, self.target_squares))

    def add(self, rows: Array, targets: Array | None) -> None:
        """Add positions: regressors float32 [P, rows], targets float32 [P, Co]; products of chunks in float32."""
        self._waiting.append((rows, targets))
        self.count += len(rows)
        if sum(len(x) for x, _ in self._waiting) >= _CHUNK:
            self._sum()

    @property
    def a(self) -> Array:
        """Return the products of regressors."""
        self._sum()
        return self._a.astype(np.float64)

    def mean(self, rows: Array) -> Array:
        """Return float64 [r, r], the mean products of some regressors."""
        self._sum()
        return np.asarray(np.divide(self._a[np.ix_(rows, rows)], max(self.count, 1), dtype=np.float64))

    @property
    def b(self) -> Array:
        """Return the products of regressors with targets."""
        self._sum()
        return self._b.astype(np.float64)

    def _sum(self) -> None:
        """Add what waits: a product of few rows costs as much as one of many, since all of ``a`` is touched."""
        if not self._waiting:
            return
        rows = np.concatenate([x for x, _ in self._waiting])
        targets = [t for _, t in self._waiting if t is not None]
        self._waiting = []
        if self.with_bias:
            rows = np.concatenate([rows, np.ones((len(rows), 1), np.float32)], axis=1)
        both = np.concatenate(targets) if targets else None
        for start in range(0, len(rows), _CHUNK):
            x = rows[start : start + _CHUNK]
            self._a += x.T @ x
            if both is not None:
                self._b += x.T @ both[start : start + _CHUNK]

    def observe(self, targets: Array) -> None:
        """Add targets to the sums that their variance is taken from."""
        wide = targets.astype(np.float64)
        self.target_sum += wide.sum(axis=0)
        self.target_squares += (wide * wide).sum(axis=0)

    def target_variance(self) -> float:
        """Return the variance of the observed targets, summed over channels."""
        mean = self.target_sum / max(self.count, 1)
        return float(np.maximum(self.target_squares / max(self.count, 1) - mean * mean, 0).sum())

    def optimism(self) -> float:
        """Return by how much a fit on so few positions looks better than it is: ``(n + p) / (n - p)``.

        Source: the final prediction error of Akaike 1969, n positions and p regressors.
        """
        return (self.count + self.size) / max(self.count - self.size, 0.1 * self.count + 1e-9)

    def ridge(self, strength: float) -> Array:
        """Return the diagonal [R] to add to ``a / count``: more where positions are fewer than four a regressor."""
        self._sum()
        size = self.size - self.with_bias
        scale = float(self._a.diagonal()[:size].sum(dtype=np.float64)) / max(self.count * size, 1)
        scarcity = max(1.0, 4.0 * size / max(self.count, 1)) ** 2
        diagonal = np.full(self.size, strength * scarcity * scale + 1e-12)
        if self.with_bias:
            diagonal[-1] = 1e-9 * scale + 1e-12
        return diagonal
