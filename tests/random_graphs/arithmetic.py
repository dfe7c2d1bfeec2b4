"""Nodes that compute element by element, and reductions."""

from __future__ import annotations

import numpy as np

from random_graphs.graph import FLOATS, INTEGERS, Dim, Graph, Value, fixed, is_small

#: float operators of one input: since which opset, whether there is a kernel for double
UNARY = {
    "Relu": (9, True), "Neg": (9, True), "Abs": (9, True), "Exp": (9, True), "Tanh": (9, True), "Sigmoid": (9, True),
    "Erf": (9, False), "Softplus": (9, False), "Floor": (9, True), "Ceil": (9, True), "Round": (11, True),
    "Sign": (9, True), "Sin": (9, True), "Cos": (9, True), "Identity": (9, True), "Elu": (9, False), "Selu": (9, False),
    "LeakyRelu": (9, False), "HardSigmoid": (9, False), "HardSwish": (14, False), "Softsign": (9, False),
    "Mish": (18, False), "Gelu": (20, False), "ThresholdedRelu": (10, False), "Celu": (12, False),
    "Reciprocal": (9, True), "Sqrt": (9, True), "Atan": (9, False),
}  # fmt: skip
SCALARS = (0.0, -0.0, 1.0, -1.0, 0.5, 2.0, 3.0, 6.0, 1e-5, 1.702, 0.044715, 100.0)


def broadcast(left: Value, right: Value) -> tuple[Dim, ...] | None:
    """Return the shape of two values together, None where they do not fit."""
    rank = max(left.rank, right.rank)
    shape = []
    for mine, other in zip(
        (*[fixed(1)] * (rank - left.rank), *left.shape), (*[fixed(1)] * (rank - right.rank), *right.shape), strict=True
    ):
        if mine != other and fixed(1) not in (mine, other):
            return None
        shape.append(other if mine == fixed(1) else mine)
    return tuple(shape) if is_small(shape) else None


def unary(g: Graph) -> Value | None:
    """Add a function of one float."""
    x = g.pick(*FLOATS)
    if x is None:
        return None
    ops = [op for op, (since, wide) in UNARY.items() if g.version >= since and (wide or x.kind == "float32")]
    op = g.r.choice(ops)
    attributes = {"alpha": g.r.choice((None, 0.5, 1.0))} if op in ("LeakyRelu", "Elu", "ThresholdedRelu") else {}
    if op == "Gelu":
        attributes = {"approximate": g.r.choice((None, "tanh", "none"))}
    return g.add(op, [x], x.kind, x.shape, **attributes)


def of_integers(g: Graph) -> Value | None:
    """Add a function of one integer."""
    x = g.pick(*INTEGERS)
    if x is None:
        return None
    return g.add(g.r.choice(("Neg", "Abs", "Sign", "Identity")), [x], x.kind, x.shape)


def operand(g: Graph, x: Value) -> Value:
    """Return something to compute with: a number, a row along some axes, or the like of ``x``."""
    choice = g.r.random()
    if choice < 0.4:
        shape: list[int] = [] if g.r.random() < 0.7 else [1]
        number = g.r.choice(SCALARS) if x.is_float else g.r.choice((0, 1, -1, 2, 3, 2**31 - 1))
        return g.constant(np.full(shape, number), x.kind)
    sizes = [x.static(axis) or 1 for axis in range(x.rank)]
    sizes = [size if g.r.random() < 0.6 else 1 for size in sizes]
    return g.constant(g.array(x.kind, sizes[g.r.randint(0, x.rank) :]))


def binary(g: Graph) -> Value | None:
    """Add arithmetic of a value with a weight, or with another value."""
    x = g.pick(*FLOATS, *INTEGERS)
    if x is None:
        return None
    y = operand(g, x) if g.r.random() < 0.6 else g.pick(x.kind)
    assert y is not None
    shape = broadcast(x, y)
    if shape is None:
        return None
    op = g.r.choice(("Add", "Add", "Sub", "Mul", "Mul", "Min", "Max") + (("Div",) if x.is_float else ()))
    if op in ("Min", "Max") and ((g.version < 12 and not x.is_float) or (x.kind == "int32" and g.version < 12)):
        op = "Add"
    inputs = [x, y] if g.r.random() < 0.7 else [y, x]
    return g.add(op, inputs, x.kind, shape)


def divide_integers(g: Graph) -> Value | None:
    """Add a division of integers by a number that is neither 0 nor -1, which end the runtime."""
    x = g.pick(*INTEGERS)
    if x is None:
        return None
    y = g.constant(np.full([], g.r.choice((1, 2, 3, -2, 7))), x.kind)
    op = g.r.choice(("Div", "Mod")) if g.version >= 10 else "Div"
    return g.add(op, [x, y], x.kind, x.shape)


def power(g: Graph) -> Value | None:
    """Add a power, of a positive base where the exponent is broken."""
    x = g.pick("float32")
    if x is None:
        return None
    exponent = g.r.choice((2.0, 3.0, 1.0, 0.5, 0.0, -1.0))
    base = x if exponent in (2.0, 3.0, 1.0, 0.0) else g.add("Abs", [x], x.kind, x.shape)
    return g.add("Pow", [base, g.constant(np.full([], exponent, np.float32))], x.kind, x.shape)


def compare(g: Graph) -> Value | None:
    """Add a comparison with a weight or another value."""
    x = g.pick("float32", *INTEGERS)
    if x is None:
        return None
    y = operand(g, x) if g.r.random() < 0.6 else g.pick(x.kind)
    assert y is not None
    shape = broadcast(x, y)
    if shape is None:
        return None
    ops = ["Less", "Greater"] + (["Equal"] if not x.is_float or g.version >= 11 else [])
    ops += ["LessOrEqual", "GreaterOrEqual"] if g.version >= 12 else []
    return g.add(g.r.choice(ops), [x, y], "bool", shape)


def logic(g: Graph) -> Value | None:
    """Add logic on bools."""
    x = g.pick("bool")
    y = g.pick("bool")
    if x is None or y is None:
        return None
    shape = broadcast(x, y)
    if shape is None or g.r.random() < 0.3:
        return g.add("Not", [x], "bool", x.shape)
    return g.add(g.r.choice(("And", "Or", "Xor")), [x, y], "bool", shape)


def where(g: Graph) -> Value | None:
    """Add a choice between two values."""
    condition, x = g.pick("bool"), g.pick("float32", "int64")
    if condition is None or x is None:
        return None
    y = operand(g, x)
    first = broadcast(x, y)
    if first is None:
        return None
    shape = broadcast(Value("", "bool", first), condition)
    if shape is None:
        return None
    return g.add("Where", [condition, x, y], x.kind, shape)


def cast(g: Graph) -> Value | None:
    """Add a Cast; floats become integers only within their range."""
    x = g.pick()
    if x is None:
        return None
    kinds = [*FLOATS, *INTEGERS, "bool"] if g.r.random() < 0.7 else ["float32"]
    to = g.r.choice(kinds)
    if x.is_float and to in INTEGERS:
        if x.kind != "float32":
            return None
        x = clip(g, x, -100.0, 100.0)
        x = g.add("Floor", [x], x.kind, x.shape)
        nan = g.add("IsNaN", [x], "bool", x.shape)
        x = g.add("Where", [nan, g.constant(np.float32(0)), x], x.kind, x.shape)
    return g.add("Cast", [x], to, x.shape, to=_type(to))


def _type(kind: str) -> int:
    from random_graphs.graph import onnx_type

    return onnx_type(kind)


def clip(g: Graph, x: Value, low: float | None, high: float | None) -> Value:
    """Add a Clip in the form of the opset."""
    if g.version < 11:
        return g.add("Clip", [x], x.kind, x.shape, min=low, max=high)
    bounds = [g.constant(np.full([], bound), x.kind) if bound is not None else None for bound in (low, high)]
    while bounds and bounds[-1] is None:
        bounds.pop()
    return g.add("Clip", [x, *bounds], x.kind, x.shape)


def clipped(g: Graph) -> Value | None:
    """Add a Clip whose bounds may be missing."""
    x = g.pick("float32")
    if x is None:
        return None
    return clip(g, x, g.r.choice((None, 0.0, -1.0)), g.r.choice((None, 6.0, 1.0, 0.0)))


def softmax(g: Graph) -> Value | None:
    """Add a Softmax along the last or any axis."""
    x = g.pick("float32", "float64", least=1)
    if x is None:
        return None
    axis = g.r.choice((-1, x.rank - 1, g.r.randrange(x.rank)))
    if axis < 0 and g.version < 11:
        axis += x.rank
    return g.add(g.r.choice(("Softmax", "Softmax", "LogSoftmax")), [x], x.kind, x.shape, axis=axis)


def reduce(g: Graph) -> Value | None:
    """Add a reduction in the form of the opset."""
    x = g.pick("float32", "float32", "int64", "int32", least=1)
    if x is None:
        return None
    ops = ["ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin"]
    ops += ["ReduceSumSquare", "ReduceL1", "ReduceL2", "ReduceLogSumExp", "ReduceProd"] if x.is_float else []
    op = g.r.choice(ops)
    if (op == "ReduceMean" and x.kind == "int64") or (x.kind == "int32" and op != "ReduceSum"):
        op = "ReduceSum"
    axes = sorted(g.r.sample(range(x.rank), g.r.randint(1, x.rank)))
    return reduced(g, op, x, axes, keep=g.r.random() < 0.6)


def reduced(g: Graph, op: str, x: Value, axes: list[int], *, keep: bool = True) -> Value:
    """Add a reduction along some axes."""
    shape = [fixed(1) if i in axes else d for i, d in enumerate(x.shape) if keep or i not in axes]
    given = [a - x.rank if g.version >= 11 and g.r.random() < 0.5 else a for a in axes]
    if g.version >= (13 if op == "ReduceSum" else 18):
        if len(axes) == x.rank and g.r.random() < 0.5:
            return g.add(op, [x], x.kind, shape, keepdims=int(keep))
        return g.add(op, [x, g.ints(*given)], x.kind, shape, keepdims=int(keep))
    return g.add(op, [x], x.kind, shape, axes=given, keepdims=int(keep))


def arg(g: Graph) -> Value | None:
    """Add an ArgMax or ArgMin."""
    x = g.pick("float32", least=1)
    if x is None:
        return None
    axis = g.r.randrange(x.rank)
    shape = [fixed(1) if i == axis else d for i, d in enumerate(x.shape)]
    return g.add(g.r.choice(("ArgMax", "ArgMin")), [x], "int64", shape, axis=axis, keepdims=1)


def variadic(g: Graph) -> Value | None:
    """Add a Sum, Mean, Max or Min of one to three values."""
    x = g.pick("float32")
    if x is None:
        return None
    inputs = [x] + [operand(g, x) for _ in range(g.r.randint(0, 2))]
    shape = x.shape
    for value in inputs[1:]:
        joined = broadcast(Value("", x.kind, shape), value)
        if joined is None:
            return None
        shape = joined
    return g.add(g.r.choice(("Sum", "Mean", "Max", "Min")), inputs, x.kind, shape)


def dropout(g: Graph) -> Value | None:
    """Add a Dropout as it is at inference, its mask asked for or not."""
    x = g.pick("float32")
    if x is None:
        return None
    if g.version >= 12 and g.r.random() < 0.5:
        return g.add("Dropout", [x, g.constant(np.float32(0.3))], x.kind, x.shape, more=g.r.randint(0, 1))
    return g.add("Dropout", [x], x.kind, x.shape, more=g.r.randint(0, 1))


MAKERS = (
    unary, unary, of_integers, binary, binary, binary, divide_integers, power, compare, logic, where, cast, clipped,
    softmax, reduce, arg, variadic, dropout,
)  # fmt: skip
