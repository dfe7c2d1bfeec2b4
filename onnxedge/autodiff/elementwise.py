"""Gradients of operators that work element by element."""

from __future__ import annotations

import math

import numpy as np
import onnx

from onnxedge.autodiff.backward import Backward, Gradients, NoGradient, attribute, scalar


def binary(back: Backward, node: onnx.NodeProto, grads: Gradients) -> Gradients:
    """Differentiate a sum, difference, product or quotient by both operands."""
    dy, (a, b), out = str(grads[0]), node.input, back.shape(node.output[0])
    result: list[str | None] = [None, None]
    for index, (mine, other) in enumerate(((a, b), (b, a))):
        if not back.needs(node, index):
            continue
        match node.op_type, index:
            case ("Add", _) | ("Sub", 0):
                gradient = back.fit(dy, out, mine)
            case ("Sub", 1):
                gradient = back.make("Neg", back.fit(dy, out, mine))
            case ("Mul", _):
                gradient = back.fit(back.make("Mul", dy, other), out, mine)
            case ("Div", 0):
                gradient = back.fit(back.make("Div", dy, b), out, mine)
            case _:
                weighted = back.make("Div", back.make("Mul", dy, node.output[0]), b)
                gradient = back.make("Neg", back.fit(weighted, out, mine))
        result[index] = gradient
    return result


def several(back: Backward, node: onnx.NodeProto, grads: Gradients) -> Gradients:
    """Sum and Mean of many: each operand gets its part."""
    dy, out = str(grads[0]), back.shape(node.output[0])
    part = back.scale(dy, 1 / len(node.input)) if node.op_type == "Mean" else dy
    return [back.fit(part, out, name) if back.needs(node, i) else None for i, name in enumerate(node.input)]


def extreme(back: Backward, node: onnx.NodeProto, grads: Gradients) -> Gradients:
    """Min and Max: the gradient goes to the operands that are it, in equal parts."""
    y, out = node.output[0], back.shape(node.output[0])
    holds = [back.mask(back.make("Equal", name, y)) for name in node.input]
    many = holds[0]
    for mask in holds[1:]:
        many = back.make("Add", many, mask)
    part = back.make("Div", str(grads[0]), many)
    return [
        back.fit(back.make("Mul", part, mask), out, name) if back.needs(node, i) else None
        for i, (name, mask) in enumerate(zip(node.input, holds, strict=True))
    ]


def power(back: Backward, node: onnx.NodeProto, grads: Gradients) -> Gradients:
    """``e x^(e - 1)``, and ``x^e log x`` where x is above 0."""
    (x, e), y, out, dy = node.input, node.output[0], back.shape(node.output[0]), str(grads[0])
    kind = back.dtypes.get(e)
    if kind is not None and kind != np.float32 and e not in back.known:
        raise NoGradient("Pow with a computed exponent of another type than float32")
    result: list[str | None] = [None, None]
    exponent = back.known.get(e)
    if back.needs(node, 0):
        if exponent is None:
            lower = back.make("Mul", e, back.make("Pow", x, back.make("Sub", e, scalar(1))))
            slope = back.make("Where", back.make("Equal", e, scalar(0)), scalar(0), lower)
        elif exponent.size == 1:
            value = float(exponent.reshape(-1)[0])
            slope = {0.0: "", 1.0: "", 2.0: x}.get(value) or back.make("Pow", x, scalar(value - 1))
            slope = back.scale(slope, value) if value not in (0.0, 1.0) else ""
            if not slope:
                return [back.fit(back.scale(dy, value), out, x), None]
        else:
            lower = back.make("Pow", x, (exponent - 1).astype(np.float32))
            safe = back.make("Where", exponent == 0, scalar(0), lower)
            slope = back.make("Mul", safe, exponent.astype(np.float32))
        result[0] = back.fit(back.make("Mul", dy, slope), out, x)
    if back.needs(node, 1):
        above = back.make("Greater", x, scalar(0))
        log = back.make("Log", back.make("Where", above, x, scalar(1)))
        result[1] = back.fit(back.make("Mul", dy, back.make("Mul", y, log)), out, e)
    return result


def slope(back: Backward, node: onnx.NodeProto, grads: Gradients) -> Gradients:
    """Multiply by the derivative of a function."""
    return [back.make("Mul", str(grads[0]), _derivative(back, node))]


def _derivative(back: Backward, node: onnx.NodeProto) -> str:
    x, y, one = str(node.input[0]), str(node.output[0]), scalar(1)
    match node.op_type:
        case "Relu":  # what is not 0 is above
            return back.mask(back.make("Cast", y, to=onnx.TensorProto.BOOL))
        case "Abs":
            return back.make("Sign", x)
        case "Sigmoid":
            return back.make("Mul", y, back.make("Sub", one, y))
        case "Tanh":
            return back.make("Sub", one, back.make("Mul", y, y))
        case "Erf":
            bell = back.make("Exp", back.make("Neg", back.make("Mul", x, x)))
            return back.scale(bell, 2 / math.sqrt(math.pi))
        case "Sqrt":
            return back.make("Div", scalar(0.5), y)
        case "Exp":
            return y
        case "Log":
            return back.make("Reciprocal", x)
        case "Reciprocal":
            return back.make("Neg", back.make("Mul", y, y))
        case "Sin":
            return back.make("Cos", x)
        case "Cos":
            return back.make("Neg", back.make("Sin", x))
        case "LeakyRelu":
            low = scalar(attribute(node, "alpha", 0.01))
            return back.make("Where", back.make("Greater", x, scalar(0)), one, low)
        case "Clip":
            return back.mask(back.make("Equal", x, y))
        case "HardSigmoid":
            inside = back.make("Less", back.make("Abs", back.make("Sub", y, scalar(0.5))), scalar(0.5))
            return back.scale(back.mask(inside), attribute(node, "alpha", 0.2))
        case _:  # HardSwish: x times a ramp from -3 to 3
            ramp = back.make("Add", back.make("Div", x, scalar(3)), scalar(0.5))
            left = back.make("Where", back.make("Less", x, scalar(-3)), scalar(0), ramp)
            return back.make("Where", back.make("Greater", x, scalar(3)), one, left)


def gelu(back: Backward, node: onnx.NodeProto, grads: Gradients) -> Gradients:
    """``x Phi(x)``: the distribution plus x times its density, or the same of the approximation by tanh."""
    x, one, half = node.input[0], scalar(1), scalar(0.5)
    square = back.make("Mul", x, x)
    if attribute(node, "approximate", b"none") == b"tanh":
        factor, cubic = math.sqrt(2 / math.pi), 0.044715
        ramp = back.make("Add", back.scale(square, factor * cubic), scalar(factor))
        t = back.make("Tanh", back.make("Mul", x, ramp))
        steep = back.make("Add", back.scale(square, 3 * factor * cubic), scalar(factor))
        level = back.make("Mul", half, back.make("Add", one, t))
        density = back.make("Mul", back.make("Mul", half, steep), back.make("Sub", one, back.make("Mul", t, t)))
    else:
        level = back.make("Mul", half, back.make("Add", one, back.make("Erf", back.scale(x, 0.5**0.5))))
        density = back.scale(back.make("Exp", back.scale(square, -0.5)), 1 / math.sqrt(2 * math.pi))
    return [back.make("Mul", str(grads[0]), back.make("Add", level, back.make("Mul", x, density)))]


def negative(back: Backward, node: onnx.NodeProto, grads: Gradients) -> Gradients:
    """Turn the sign."""
    return [back.make("Neg", str(grads[0]))]


def where(back: Backward, node: onnx.NodeProto, grads: Gradients) -> Gradients:
    """Give each operand the gradient where it was taken."""
    condition, dy, out, zero = node.input[0], str(grads[0]), back.shape(node.output[0]), scalar(0)
    first = back.fit(back.make("Where", condition, dy, zero), out, node.input[1]) if back.needs(node, 1) else None
    second = back.fit(back.make("Where", condition, zero, dy), out, node.input[2]) if back.needs(node, 2) else None
    return [None, first, second]


def cast(back: Backward, node: onnx.NodeProto, grads: Gradients) -> Gradients:
    """Cast back, from one float to another; what comes from no float is steps."""
    kind = back.dtypes.get(node.input[0])
    if kind is None:
        raise NoGradient("Cast of an unknown type")
    if kind.kind != "f" and kind.name != "bfloat16":
        return [None]
    source = onnx.helper.np_dtype_to_tensor_dtype(kind)
    if attribute(node, "to", 0) == source:
        return [grads[0]]
    if attribute(node, "to", 0) not in _FLOATS:
        return [None]
    return [back.make("Cast", str(grads[0]), to=source)]


def straight_through(back: Backward, node: onnx.NodeProto, grads: Gradients) -> Gradients:
    """Pass the gradient as if nothing had been rounded (Bengio et al. 2013, arXiv:1308.3432, section 4)."""
    return [grads[0]]


_TYPES = onnx.TensorProto
_FLOATS = (_TYPES.FLOAT, _TYPES.FLOAT16, _TYPES.BFLOAT16, _TYPES.DOUBLE)
