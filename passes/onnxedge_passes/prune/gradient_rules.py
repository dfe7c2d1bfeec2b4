"""The gradient of each operator: what its output's gradient becomes on the way to its inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper

from onnxedge.api import Array
from onnxedge_passes.prune.gradient import Backward, Gradients, NoGradient

Rule = Callable[[Backward, onnx.NodeProto, Gradients], Gradients]


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    """Return an attribute's value."""
    found = next((a for a in node.attribute if a.name == name), None)
    return default if found is None else helper.get_attribute_value(found)


def _scalar(value: float) -> Array:
    return np.array(value, np.float32)


def _binary(back: Backward, node: onnx.NodeProto, grads: Gradients) -> Gradients:
    dy, (a, b), out = str(grads[0]), node.input, back.shape(node.output[0])
    result: list[str | None] = [None, None]
    for index, (mine, other) in enumerate(((a, b), (b, a))):
        if not back.needs(node, index):
            continue
        match node.op_type, index:
            case ("Add", _) | ("Sub", 0):
                gradient = dy
            case ("Sub", 1):
                gradient = back.make("Neg", dy)
            case ("Mul", _):
                gradient = back.make("Mul", dy, other)
            case ("Div", 0):
                gradient = back.make("Div", dy, b)
            case _:
                gradient = back.make("Neg", back.make("Div", back.make("Mul", dy, node.output[0]), b))
        result[index] = back.fit(gradient, out, mine)
    return result


def _power(back: Backward, node: onnx.NodeProto, grads: Gradients) -> Gradients:
    exponent = back.known.get(node.input[1])
    if exponent is None or exponent.size != 1 or back.needs(node, 1):
        raise NoGradient("Pow with an exponent that varies")
    power = float(exponent.reshape(-1)[0])
    slope = back.make("Mul", back.make("Pow", node.input[0], _scalar(power - 1)), _scalar(power))
    return [back.make("Mul", str(grads[0]), slope)]


def _slope(back: Backward, node: onnx.NodeProto, grads: Gradients) -> Gradients:
    """Multiply by the derivative of an elementwise function."""
    x, y, one = node.input[0], node.output[0], _scalar(1)
    match node.op_type:
        case "Relu":
            slope = back.make("Sign", y)
        case "Sigmoid":
            slope = back.make("Mul", y, back.make("Sub", one, y))
        case "Tanh":
            slope = back.make("Sub", one, back.make("Mul", y, y))
        case "Erf":
            bell = back.make("Exp", back.make("Neg", back.make("Mul", x, x)))
            slope = back.make("Mul", bell, _scalar(2 / math.sqrt(math.pi)))
        case "Sqrt":
            slope = back.make("Div", _scalar(0.5), y)
        case "Exp":
            slope = y
        case "Reciprocal":
            slope = back.make("Neg", back.make("Mul", y, y))
        case "LeakyRelu":
            low = _scalar(attribute(node, "alpha", 0.01))
            slope = back.make("Where", back.make("Greater", x, _scalar(0)), one, low)
        case "HardSigmoid":
            inside = back.make("Less", back.make("Abs", back.make("Sub", y, _scalar(0.5))), _scalar(0.5))
            slope = back.make("Where", inside, _scalar(attribute(node, "alpha", 0.2)), _scalar(0))
        case _:  # HardSwish: x times a ramp from -3 to 3
            ramp = back.make("Add", back.make("Div", x, _scalar(3)), _scalar(0.5))
            left = back.make("Where", back.make("Less", x, _scalar(-3)), _scalar(0), ramp)
            slope = back.make("Where", back.make("Greater", x, _scalar(3)), one, left)
    return [back.make("Mul", str(grads[0]), slope)]


def _clip(back: Backward, node: onnx.NodeProto, grads: Gradients) -> Gradients:
    same = back.make("Cast", back.make("Equal", node.input[0], node.output[0]), to=onnx.TensorProto.FLOAT)
    return [back.make("Mul", str(grads[0]), same)]


def _softmax(back: Backward, node: onnx.NodeProto, grads: Gradients) -> Gradients:
    y = node.output[0]
    axis = attribute(node, "axis", -1) % len(back.shape(y))
    weighted = back.make("Mul", str(grads[0]), y)
    return [back.make("Sub", weighted, back.make("Mul", y, back.total(weighted, [axis])))]


def _layer_normalization(back: Backward, node: onnx.NodeProto, grads: Gradients) -> Gradients:
    """``s (g - mean(g) - z mean(g z))`` with ``g = dy scale``, z the normalised input, s one over its deviation."""
    if back.needs(node, 1) or back.needs(node, 2):
        raise NoGradient("the parameters of LayerNormalization")
    x, rank = node.input[0], len(back.shape(node.input[0]))
    axes = list(range(attribute(node, "axis", -1) % rank, rank))
    count = math.prod(back.shape(x)[axis] for axis in axes)

    def mean(value: str) -> str:
        return back.make("Mul", back.total(value, axes), _scalar(1 / count))

    centred = back.make("Sub", x, mean(x))
    variance = back.make("Add", mean(back.make("Mul", centred, centred)), _scalar(attribute(node, "epsilon", 1e-5)))
    scale = back.make("Reciprocal", back.make("Sqrt", variance))
    z, g = back.make("Mul", centred, scale), back.make("Mul", str(grads[0]), node.input[1])
    slope = back.make("Sub", back.make("Sub", g, mean(g)), back.make("Mul", z, mean(back.make("Mul", g, z))))
    return [back.make("Mul", scale, slope)]


def _where(back: Backward, node: onnx.NodeProto, grads: Gradients) -> Gradients:
    condition, dy, out, zero = node.input[0], str(grads[0]), back.shape(node.output[0]), _scalar(0)
    first = back.fit(back.make("Where", condition, dy, zero), out, node.input[1]) if back.needs(node, 1) else None
    second = back.fit(back.make("Where", condition, zero, dy), out, node.input[2]) if back.needs(node, 2) else None
    return [None, first, second]


def _expand(back: Backward, node: onnx.NodeProto, grads: Gradients) -> Gradients:
    return [back.fit(str(grads[0]), back.shape(node.output[0]), node.input[0])]


def _reduce(back: Backward, node: onnx.NodeProto, grads: Gradients) -> Gradients:
    shape, out = back.shape(node.input[0]), back.shape(node.output[0])
    rank = len(shape)
    if node.op_type == "GlobalAveragePool":
        axes = list(range(2, rank))
    else:
        given = back.known.get(node.input[1]) if len(node.input) > 1 and node.input[1] else None
        found = attribute(node, "axes", None) if given is None else given.reshape(-1).tolist()
        if found is None and len(node.input) > 1 and node.input[1]:
            raise NoGradient(f"{node.op_type} over axes computed at run time")
        if not found and attribute(node, "noop_with_empty_axes", 0):
            return [grads[0]]
        axes = sorted({axis % rank for axis in found}) if found else list(range(rank))
    kept = [1 if axis in axes else size for axis, size in enumerate(shape)]
    dy = back.reshape(str(grads[0]), kept) if tuple(kept) != out else str(grads[0])
    if node.op_type != "ReduceSum":
        dy = back.make("Mul", dy, _scalar(1 / max(math.prod(shape[axis] for axis in axes), 1)))
    return [back.make("Expand", dy, np.array(shape, np.int64))]


def _move(back: Backward, node: onnx.NodeProto, grads: Gradients) -> Gradients:
    """Put the gradient back into the shape of the input."""
    return [back.reshape(str(grads[0]), back.shape(node.input[0]))]


def _transpose(back: Backward, node: onnx.NodeProto, grads: Gradients) -> Gradients:
    rank = len(back.shape(node.input[0]))
    perm = attribute(node, "perm", list(reversed(range(rank))))
    return [back.make("Transpose", str(grads[0]), perm=np.argsort(perm).tolist())]


def _concat(back: Backward, node: onnx.NodeProto, grads: Gradients) -> Gradients:
    axis, result, start = attribute(node, "axis", 0), list[str | None](), 0
    for index, name in enumerate(node.input):
        stop = start + back.shape(name)[axis]
        wanted = back.needs(node, index)
        result.append(back.slices(str(grads[0]), [axis], [start], [stop], [1]) if wanted else None)
        start = stop
    return result


def _split(back: Backward, node: onnx.NodeProto, grads: Gradients) -> Gradients:
    parts = [
        np.zeros(back.shape(name), np.float32) if gradient is None else gradient
        for name, gradient in zip(node.output, grads, strict=True)
    ]
    return [back.make("Concat", *parts, axis=attribute(node, "axis", 0))]


def _slice(back: Backward, node: onnx.NodeProto, grads: Gradients) -> Gradients:
    """Put zeros around the gradient, and between its elements where there are steps."""
    operands = [back.known.get(name) for name in node.input[1:] if name]
    if any(array is None for array in operands):
        raise NoGradient("Slice with bounds computed at run time")
    given = [np.asarray(array).reshape(-1).tolist() for array in operands]
    shape, spread = back.shape(node.input[0]), list(back.shape(node.output[0]))
    axes = given[2] if len(given) > 2 else list(range(len(given[0])))
    steps = given[3] if len(given) > 3 else [1] * len(axes)
    rank, dy, before = len(shape), str(grads[0]), [0] * len(shape)
    for axis, start, step in zip((a % rank for a in axes), given[0], steps, strict=True):
        if step < 1:
            raise NoGradient("Slice that runs backwards")
        before[axis] = min(max(start + shape[axis] if start < 0 else start, 0), shape[axis])
        if step > 1:
            apart = back.reshape(dy, [*spread[: axis + 1], 1, *spread[axis + 1 :]])
            pads = [0] * (2 * rank + 2)
            pads[rank + 1 + axis + 1] = step - 1
            spread[axis] *= step
            dy = back.reshape(back.make("Pad", apart, np.array(pads, np.int64)), spread)
    # a last step may reach past the end: its zeros are cut off by a negative pad
    after = [size - b - o for size, b, o in zip(shape, before, spread, strict=True)]
    return [back.make("Pad", dy, np.array(before + after, np.int64))]


def _pad(back: Backward, node: onnx.NodeProto, grads: Gradients) -> Gradients:
    pads = back.known.get(node.input[1])
    if pads is None or attribute(node, "mode", b"constant") != b"constant" or len(node.input) > 3 or (pads < 0).any():
        raise NoGradient("Pad other than with a constant")
    shape = back.shape(node.input[0])
    begins = pads[: len(shape)].tolist()
    ends = [begin + size for begin, size in zip(begins, shape, strict=True)]
    return [back.slices(str(grads[0]), range(len(shape)), begins, ends, [1] * len(shape))]


def _matmul(back: Backward, node: onnx.NodeProto, grads: Gradients) -> Gradients:
    dy, (a, b), out = str(grads[0]), node.input, back.shape(node.output[0])
    first, second = back.shape(a), back.shape(b)
    if len(first) < 2 or len(second) < 2:
        raise NoGradient("MatMul of a vector")
    result: list[str | None] = [None, None]
    if back.needs(node, 0):
        gradient = back.make("MatMul", dy, _swapped(back, b, len(second)))
        result[0] = back.fit(gradient, (*out[:-1], first[-1]), a)
    if back.needs(node, 1) and len(second) == 2:
        rows = back.make("Transpose", back.reshape(a, [-1, first[-1]]), perm=[1, 0])
        result[1] = back.make("MatMul", rows, back.reshape(dy, [-1, out[-1]]))
    elif back.needs(node, 1):
        gradient = back.make("MatMul", _swapped(back, a, len(first)), dy)
        result[1] = back.fit(gradient, (*out[:-2], *second[-2:]), b)
    return result


def _swapped(back: Backward, value: str, rank: int) -> str:
    return back.make("Transpose", value, perm=[*range(rank - 2), rank - 1, rank - 2])


def _gemm(back: Backward, node: onnx.NodeProto, grads: Gradients) -> Gradients:
    if any(attribute(node, name, 1.0) != 1 for name in ("alpha", "beta")) or attribute(node, "transA", 0):
        raise NoGradient("Gemm with factors or transA")
    dy, turned, (x, w, *_) = str(grads[0]), attribute(node, "transB", 0), node.input
    result: list[str | None] = [None, None, None]
    if back.needs(node, 0):
        result[0] = back.make("Gemm", dy, w, transB=1 - turned)
    if back.needs(node, 1):
        result[1] = back.make("Gemm", *((dy, x) if turned else (x, dy)), transA=1)
    if back.needs(node, 2):
        result[2] = back.fit(dy, back.shape(node.output[0]), node.input[2])
    return result


def _convolution(back: Backward, node: onnx.NodeProto, grads: Gradients) -> Gradients:
    """Data: a transposed convolution. Weight: a product of the output's gradient with shifted copies of the input."""
    dy, (x, w, *_) = str(grads[0]), node.input
    shape, out, weight = back.shape(x), back.shape(node.output[0]), back.shape(w)
    rank, groups = len(shape) - 2, attribute(node, "group", 1)
    if attribute(node, "auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        raise NoGradient("Conv with auto_pad")
    kernel, pads = weight[2:], attribute(node, "pads", [0] * (2 * rank))
    strides, dilations = (attribute(node, name, [1] * rank) for name in ("strides", "dilations"))
    result: list[str | None] = [None, None, None]
    if back.needs(node, 0):
        reached = [
            s * (o - 1) + (k - 1) * d + 1 - b - e
            for s, o, k, d, b, e in zip(strides, out[2:], kernel, dilations, pads[:rank], pads[rank:], strict=True)
        ]
        more = [size - r for size, r in zip(shape[2:], reached, strict=True)]
        places = {"strides": strides, "dilations": dilations, "pads": pads, "output_padding": more}
        result[0] = back.make("ConvTranspose", dy, w, group=groups, **places)
    if back.needs(node, 1):
        result[1] = _weight_gradient(back, x, dy, (shape, out, weight), (groups, strides, dilations, pads))
    if back.needs(node, 2):
        result[2] = back.total(dy, [0, *range(2, rank + 2)], keep=False)
    return result


def _weight_gradient(
    back: Backward,
    x: str,
    dy: str,
    sizes: Sequence[tuple[int, ...]],
    geometry: tuple[int, list[int], list[int], list[int]],
) -> str:
    (n, ci, *_), (_, co, *space), weight = sizes
    groups, strides, dilations, pads = geometry
    kernel, rank, area = weight[2:], len(space), math.prod(space)
    if any(pads):
        x = back.make("Pad", x, np.array([0, 0, *pads[:rank], 0, 0, *pads[rank:]], np.int64))
    shifted = []
    for offset in np.ndindex(*kernel):
        starts = [o * d for o, d in zip(offset, dilations, strict=True)]
        ends = [start + (size - 1) * s + 1 for start, size, s in zip(starts, space, strides, strict=True)]
        shifted.append(back.slices(x, range(2, rank + 2), starts, ends, strides))
    taps = len(shifted)
    columns = back.make("Concat", *shifted, axis=1) if taps > 1 else shifted[0]
    if groups == 1:
        rows = back.make("Transpose", back.reshape(dy, [n, co, area]), perm=[0, 2, 1])
        product = back.make("MatMul", back.reshape(columns, [n, taps * ci, area]), rows)
        moved = back.make("Transpose", back.total(product, [0], keep=False), perm=[1, 0])  # [Co, K * Ci]
        return back.reshape(back.make("Transpose", back.reshape(moved, [co, taps, ci]), perm=[0, 2, 1]), weight)
    outer = co // groups
    rows = back.make("Transpose", back.reshape(dy, [n, 1, groups, outer, area]), perm=[0, 1, 2, 4, 3])
    product = back.make("MatMul", back.reshape(columns, [n, taps, groups, ci // groups, area]), rows)
    moved = back.make("Transpose", back.total(product, [0], keep=False), perm=[1, 3, 2, 0])  # [G, Co/G, Ci/G, K]
    return back.reshape(moved, weight)


def _average_pool(back: Backward, node: onnx.NodeProto, grads: Gradients) -> Gradients:
    shape, out = back.shape(node.input[0]), back.shape(node.output[0])
    rank, kernel = len(shape) - 2, attribute(node, "kernel_shape", [])
    pads, strides = attribute(node, "pads", [0] * (2 * rank)), attribute(node, "strides", [1] * rank)
    plain = attribute(node, "auto_pad", b"NOTSET") == b"NOTSET" and not attribute(node, "ceil_mode", 0)
    if not plain or (any(pads) and not attribute(node, "count_include_pad", 0)) or attribute(node, "dilations", None):
        raise NoGradient("AveragePool that counts its padding, or rounds up")
    weight = np.full((shape[1], 1, *kernel), 1 / math.prod(kernel), np.float32)
    more = [
        size - (s * (o - 1) + k - b - e)
        for size, s, o, k, b, e in zip(shape[2:], strides, out[2:], kernel, pads[:rank], pads[rank:], strict=True)
    ]
    places = {"strides": strides, "pads": pads, "output_padding": more}
    return [back.make("ConvTranspose", str(grads[0]), weight, group=shape[1], **places)]


_SLOPES = ("Relu", "Sigmoid", "Tanh", "Erf", "Sqrt", "Exp", "Reciprocal", "LeakyRelu", "HardSigmoid", "HardSwish")
_MOVES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout")
RULES: dict[str, Rule] = {
    **dict.fromkeys(("Add", "Sub", "Mul", "Div"), _binary),
    **dict.fromkeys(_SLOPES, _slope),
    **dict.fromkeys(_MOVES, _move),
    **dict.fromkeys(("ReduceMean", "ReduceSum", "GlobalAveragePool"), _reduce),
    "Neg": lambda back, _, grads: [back.make("Neg", str(grads[0]))],
    "Pow": _power,
    "Clip": _clip,
    "Softmax": _softmax,
    "LayerNormalization": _layer_normalization,
    "Where": _where,
    "Expand": _expand,
    "Transpose": _transpose,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Pad": _pad,
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Conv": _convolution,
    "AveragePool": _average_pool,
}
