"""Gradients of matrix products."""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from onnxedge.autodiff.backward import Backward, Gradients, attribute


def matmul(back: Backward, node: onnx.NodeProto, grads: Gradients) -> Gradients:
    """``dA = dY B'`` and ``dB = A' dY``, summed over the stacks that a matrix was repeated for."""
    dy, (a, b) = str(grads[0]), node.input
    first, second, out = back.shape(a), back.shape(b), list(back.shape(node.output[0]))
    if len(first) == 1:  # a row
        a, first = back.reshape(a, [1, *first]), (1, *first)
        out.insert(len(out) - (len(second) > 1), 1)
    if len(second) == 1:  # a column
        b, second = back.reshape(b, [*second, 1]), (*second, 1)
        out.append(1)
    if out != list(back.shape(node.output[0])):
        dy = back.reshape(dy, out)
    result: list[str | None] = [None, None]
    if back.needs(node, 0):
        gradient = back.make("MatMul", dy, _turned(back, b, len(second)))
        gradient = back.fit_to(gradient, (*out[:-1], first[-1]), first)
        result[0] = _like(back, gradient, first, node.input[0])
    if back.needs(node, 1):
        if len(second) == 2 and len(first) > 2:
            rows = back.make("Transpose", back.reshape(a, [-1, first[-1]]), perm=[1, 0])
            gradient = back.make("MatMul", rows, back.reshape(dy, [-1, out[-1]]))
        else:
            gradient = back.make("MatMul", _turned(back, a, len(first)), dy)
            gradient = back.fit_to(gradient, (*out[:-2], *second[-2:]), second)
        result[1] = _like(back, gradient, second, node.input[1])
    return result


def _like(back: Backward, gradient: str, shape: Sequence[int], name: str) -> str:
    return gradient if tuple(shape) == back.shape(name) else back.reshape(gradient, back.shape(name))


def _turned(back: Backward, value: str, rank: int) -> str:
    return back.make("Transpose", value, perm=[*range(rank - 2), rank - 1, rank - 2])


def gemm(back: Backward, node: onnx.NodeProto, grads: Gradients) -> Gradients:
    """Differentiate ``alpha A B + beta C``, either matrix turned or not."""
    dy, (a, b, *_) = str(grads[0]), node.input
    alpha, beta = (attribute(node, name, 1.0) for name in ("alpha", "beta"))
    left, right = (attribute(node, name, 0) for name in ("transA", "transB"))
    result: list[str | None] = [None, None, None]
    if back.needs(node, 0):
        operands = (b, dy, right, 1) if left else (dy, b, 0, 1 - right)
        result[0] = back.make("Gemm", *operands[:2], alpha=alpha, transA=operands[2], transB=operands[3])
    if back.needs(node, 1):
        operands = (dy, a, 1, left) if right else (a, dy, 1 - left, 0)
        result[1] = back.make("Gemm", *operands[:2], alpha=alpha, transA=operands[2], transB=operands[3])
    if back.needs(node, 2):
        result[2] = back.fit(back.scale(dy, beta), back.shape(node.output[0]), node.input[2])
    return result
