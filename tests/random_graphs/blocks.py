"""Functions that exporters spell out in raw operators, each with a chance of a near miss."""

from __future__ import annotations

import math

import numpy as np

from random_graphs.arithmetic import clip, reduced
from random_graphs.graph import Graph, Value, fixed, is_small
from random_graphs.movement import computed_reshape


class _Spelling:
    """Arithmetic on values of one dtype, operands in either order, constants of rank 0 or 1."""

    def __init__(self, g: Graph, x: Value) -> None:
        self.g, self.x = g, x

    def number(self, number: float) -> Value:
        """Add a constant; one in twenty is off, so that nothing may match."""
        off = number * 1.01 if self.g.r.random() < 0.05 else number
        return self.g.constant(np.full(self.g.r.choice(([], [], [1])), off), self.x.kind)

    def op(self, op: str, *inputs: Value | float) -> Value:
        """Add a node on values and numbers; operands of a commutative one come in either order."""
        given = [v if isinstance(v, Value) else self.number(v) for v in inputs]
        if op in ("Add", "Mul") and self.g.r.random() < 0.4:
            given.reverse()
        shape = max((v.shape for v in given), key=lambda s: (len(s), math.prod(d[1] for d in s)))
        return self.g.add(op, given, self.x.kind, shape)


def _start(g: Graph, *kinds: str, least: int = 0) -> tuple[_Spelling, Value] | None:
    x = g.pick(*(kinds or ("float32",)), least=least)
    return (_Spelling(g, x), x) if x is not None else None


def gelu(g: Graph) -> Value | None:
    """Spell out GELU by erf."""
    started = _start(g)
    if started is None:
        return None
    s, x = started
    inner = s.op("Div", x, math.sqrt(2)) if g.r.random() < 0.5 else s.op("Mul", x, math.sqrt(0.5))
    one = s.op("Add", s.op("Erf", inner), 1.0)
    if g.r.random() < 0.5:
        return s.op("Mul", s.op("Mul", x, one), 0.5)
    return s.op("Mul", x, s.op("Mul", one, 0.5))


def tanh_gelu(g: Graph) -> Value | None:
    """Spell out GELU by tanh."""
    started = _start(g)
    if started is None:
        return None
    s, x = started
    cube = s.op("Pow", x, 3.0) if g.r.random() < 0.5 else s.op("Mul", x, s.op("Mul", x, x))
    inner = s.op("Mul", s.op("Add", x, s.op("Mul", cube, 0.044715)), math.sqrt(2 / math.pi))
    return s.op("Mul", s.op("Mul", x, 0.5), s.op("Add", s.op("Tanh", inner), 1.0))


def silu(g: Graph) -> Value | None:
    """Spell out SiLU or QuickGelu."""
    started = _start(g)
    if started is None:
        return None
    s, x = started
    inner = s.op("Mul", x, 1.702) if g.r.random() < 0.4 else x
    return s.op("Mul", x, s.op("Sigmoid", inner))


def hard_swish(g: Graph) -> Value | None:
    """Spell out HardSwish or HardSigmoid by Clip."""
    started = _start(g)
    if started is None:
        return None
    s, x = started
    gate = s.op("Div", clip(g, s.op("Add", x, 3.0), 0.0, 6.0), 6.0)
    return s.op("Mul", x, gate) if g.r.random() < 0.7 else gate


def mish(g: Graph) -> Value | None:
    """Spell out Softplus and Mish."""
    started = _start(g)
    if started is None:
        return None
    s, x = started
    soft = s.op("Softplus", x) if g.r.random() < 0.5 else s.op("Log", s.op("Add", s.op("Exp", x), 1.0))
    return s.op("Mul", x, s.op("Tanh", soft))


def layer_norm(g: Graph) -> Value | None:
    """Spell out LayerNormalization, or RMSNormalization."""
    started = _start(g, "float32", "float32", "float64", least=2)
    if started is None:
        return None
    s, x = started
    axis, width = x.rank - 1, x.static(x.rank - 1)
    if width is None:
        return None
    rms = g.r.random() < 0.35
    centred = x if rms else s.op("Sub", x, reduced(g, "ReduceMean", x, [axis]))
    square = s.op("Pow", centred, 2.0) if g.r.random() < 0.6 else s.op("Mul", centred, centred)
    variance = s.op("Add", reduced(g, "ReduceMean", square, [axis]), 1e-5)
    root = s.op("Sqrt", variance)
    y = s.op("Div", centred, root) if g.r.random() < 0.6 else s.op("Mul", centred, s.op("Reciprocal", root))
    y = s.op("Mul", y, g.constant(g.array(x.kind, [width])))
    return y if rms else s.op("Add", y, g.constant(g.array(x.kind, [width])))


def softmax(g: Graph) -> Value | None:
    """Spell out Softmax along the last axis."""
    started = _start(g, least=1)
    if started is None:
        return None
    s, x = started
    axis = x.rank - 1
    y = s.op("Exp", s.op("Sub", x, reduced(g, "ReduceMax", x, [axis])))
    return s.op("Div", y, reduced(g, "ReduceSum", y, [axis]))


def attention(g: Graph) -> Value | None:
    """Spell out attention of two heads of four on [N, T, 8], with a mask or not."""
    fitting = [v for v in g.visible() if v.kind == "float32" and v.rank == 3 and v.static(2) == 8]
    if not fitting:
        return None
    x = fitting[-1]
    s = _Spelling(g, x)
    shape = g.ints(0, 0, 2, 4) if g.r.random() < 0.7 else g.ints(0, -1, 2, 4)
    heads = []
    for role in "qkv":
        y = g.add("MatMul", [x, g.constant(g.array("float32", [8, 8], 0.4))], "float32", x.shape)
        if g.r.random() < 0.7:
            y = s.op("Add", y, g.constant(g.array("float32", [8])))
        y = g.add("Reshape", [y, shape], "float32", [x.shape[0], x.shape[1], fixed(2), fixed(4)])
        perm = [0, 2, 3, 1] if role == "k" else [0, 2, 1, 3]
        heads.append(g.add("Transpose", [y], "float32", [y.shape[i] for i in perm], perm=perm))
    dims = [x.shape[0], fixed(2), x.shape[1], x.shape[1]]
    scores = g.add("MatMul", heads[:2], "float32", dims)
    scores = s.op("Div", scores, 2.0) if g.r.random() < 0.6 else s.op("Mul", scores, 0.5)
    if g.r.random() < 0.3:
        scores = g.add("Add", [scores, g.constant(g.array("float32", [1, 2, 1, 1]))], "float32", dims)
    axis = -1 if g.version >= 11 else 3
    scores = g.add("Softmax", [scores], "float32", dims, axis=axis)
    y = g.add("MatMul", [scores, heads[2]], "float32", heads[2].shape)
    y = g.add("Transpose", [y], "float32", [x.shape[0], x.shape[1], fixed(2), fixed(4)], perm=[0, 2, 1, 3])
    y = g.add("Reshape", [y, g.ints(0, 0, 8)], "float32", x.shape)
    return g.add("MatMul", [y, g.constant(g.array("float32", [8, 8], 0.4))], "float32", x.shape)


def shared_weight(g: Graph) -> Value | None:
    """Let two MatMuls read one weight, one of them turned round, as tied embeddings do."""
    x = g.pick("float32", least=2)
    width = x.static(x.rank - 1) if x is not None else None
    if x is None or width is None:
        return None
    weight = g.constant(g.array("float32", [width, 4], 0.4))
    y = g.add("MatMul", [x, weight], "float32", [*x.shape[:-1], fixed(4)])
    turned = g.add("Transpose", [weight], "float32", [fixed(4), fixed(width)], perm=[1, 0])
    z = g.add("MatMul", [y, turned], "float32", x.shape)
    return g.add("Add", [z, x], "float32", x.shape)


def constants(g: Graph) -> Value | None:
    """Compute something from constants alone, and use it."""
    x = g.pick("float32", "int64")
    if x is None:
        return None
    s = _Spelling(g, x)
    a = g.constant(g.array(x.kind, [1] * min(x.rank, 2)))
    for _ in range(g.r.randint(1, 3)):
        a = s.op(g.r.choice(("Add", "Mul", "Sub")), a, g.constant(g.array(x.kind, [])))
    return g.add("Mul", [x, a], x.kind, x.shape)


def turned_about(g: Graph) -> Value | None:
    """Put elementwise work and a reduction between Transposes, as a converter of NHWC does."""
    x = g.pick("float32", rank=4)
    if x is None:
        return None
    s = _Spelling(g, x)
    y = g.add("Transpose", [x], x.kind, [x.shape[i] for i in (0, 2, 3, 1)], perm=[0, 2, 3, 1])
    width = y.static(3)
    y = s.op("Add", y, g.constant(g.array("float32", [width or 1])))
    y = g.add(g.r.choice(("Relu", "Sigmoid", "Tanh")), [y], y.kind, y.shape)
    if g.r.random() < 0.3:
        return reduced(g, "ReduceMean", y, [1, 2], keep=g.r.random() < 0.5)
    if g.r.random() < 0.4 and is_small([*y.shape[:3], (1, 1, 1)]):
        y = g.add("Concat", [y, y], y.kind, [*y.shape[:3], tuple(2 * d for d in y.shape[3])], axis=3)  # type: ignore[list-item]
        if not is_small(y.shape):
            return y
    return g.add("Transpose", [y], y.kind, [y.shape[i] for i in (0, 3, 1, 2)], perm=[0, 3, 1, 2])


MAKERS = (
    gelu, tanh_gelu, silu, hard_swish, mish, layer_norm, layer_norm, softmax, attention, attention, shared_weight,
    constants, turned_about, computed_reshape,
)  # fmt: skip
