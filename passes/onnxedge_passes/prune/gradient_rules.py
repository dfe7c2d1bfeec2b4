"""The gradient of each operator: what its output's gradient becomes on the way to its inputs."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx

from onnxedge.api import Array
from onnxedge_passes.prune.gradient import Backward, Gradients, NoGradient, attribute
from onnxedge_passes.prune.gradient_windows import average_pool, convolution, max_pool, transposed_convolution

Rule = Callable[[Backward, onnx.NodeProto, Gradients], Gradients]
_PLACES = 1 << 22  #: elements of the matrix that stands for a Gather, at most


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
        case "Log":
            slope = back.make("Reciprocal", x)
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


def _gelu(back: Backward, node: onnx.NodeProto, grads: Gradients) -> Gradients:
    """``x Phi(x)``: the distribution plus x times its density, or the same of the approximation by tanh."""
    x, one, half = node.input[0], _scalar(1), _scalar(0.5)
    square = back.make("Mul", x, x)
    if attribute(node, "approximate", b"none") == b"tanh":
        factor, cubic = math.sqrt(2 / math.pi), 0.044715
        ramp = back.make("Add", back.make("Mul", square, _scalar(factor * cubic)), _scalar(factor))
        t = back.make("Tanh", back.make("Mul", x, ramp))
        steep = back.make("Add", back.make("Mul", square, _scalar(3 * factor * cubic)), _scalar(factor))
        level = back.make("Mul", half, back.make("Add", one, t))
        density = back.make("Mul", back.make("Mul", half, steep), back.make("Sub", one, back.make("Mul", t, t)))
    else:
        level = back.make("Mul", half, back.make("Add", one, back.make("Erf", back.make("Mul", x, _scalar(0.5**0.5)))))
        bell = back.make("Exp", back.make("Mul", square, _scalar(-0.5)))
        density = back.make("Mul", bell, _scalar(1 / math.sqrt(2 * math.pi)))
    return [back.make("Mul", str(grads[0]), back.make("Add", level, back.make("Mul", x, density)))]


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


def _gather(back: Backward, node: onnx.NodeProto, grads: Gradients) -> Gradients:
    """Sum what was taken from each place, as a product with a matrix of zeros and ones."""
    indices = back.known.get(node.input[1])
    if indices is None:
        raise NoGradient("Gather at places computed at run time")
    shape, out = back.shape(node.input[0]), back.shape(node.output[0])
    axis, count = attribute(node, "axis", 0) % len(shape), indices.size
    if shape[axis] * count > _PLACES:
        raise NoGradient("Gather of very many")
    taken = np.zeros((shape[axis], count), np.float32)
    taken[indices.reshape(-1), np.arange(count)] = 1
    rows, columns = math.prod(shape[:axis]), math.prod(out[axis + indices.ndim :])
    gradient = back.make("MatMul", taken, back.reshape(str(grads[0]), [rows, count, columns]))
    return [back.reshape(gradient, shape)]


def _cast(back: Backward, node: onnx.NodeProto, grads: Gradients) -> Gradients:
    kind = back.dtypes.get(node.input[0])
    if kind is not None and kind.kind != "f":
        return [None]  # steps
    if kind != np.float32 or attribute(node, "to", 0) != onnx.TensorProto.FLOAT:
        raise NoGradient("Cast to or from another float than float32")
    return [grads[0]]


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


_SLOPES = ("Relu", "Sigmoid", "Tanh", "Erf", "Sqrt", "Exp", "Log", "Reciprocal", "LeakyRelu")
_RAMPS = ("HardSigmoid", "HardSwish")
_MOVES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout")
RULES: dict[str, Rule] = {
    **dict.fromkeys(("Add", "Sub", "Mul", "Div"), _binary),
    **dict.fromkeys((*_SLOPES, *_RAMPS), _slope),
    **dict.fromkeys(_MOVES, _move),
    **dict.fromkeys(("ReduceMean", "ReduceSum", "GlobalAveragePool"), _reduce),
    "Neg": lambda back, _, grads: [back.make("Neg", str(grads[0]))],
    "Pow": _power,
    "Gelu": _gelu,
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
    "Gather": _gather,
    "Cast": _cast,
    "Conv": convolution,
    "ConvTranspose": transposed_convolution,
    "AveragePool": average_pool,
    "MaxPool": max_pool,
}
