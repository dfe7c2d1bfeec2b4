"""If, Loop and Scan, nested, with captured values; local functions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx

from random_graphs.arithmetic import broadcast, operand
from random_graphs.graph import Graph, Value, fixed, is_small, onnx_type

_DEPTH = 2


def _depth(g: Graph) -> int:
    return 0 if g.outer is None else 1 + _depth(g.outer)


def _work(g: Graph, x: Value) -> Value:
    """Add some nodes on a value that keep its shape; captured values and weights take part."""
    for _ in range(g.r.randint(1, 3)):
        choice = g.r.random()
        if choice < 0.35 and x.is_float:
            x = g.add(g.r.choice(("Relu", "Neg", "Tanh", "Identity", "Abs")), [x], x.kind, x.shape)
            continue
        other = operand(g, x) if choice < 0.7 else g.pick(x.kind) or operand(g, x)
        if broadcast(x, other) == x.shape:
            x = g.add(g.r.choice(("Add", "Mul", "Sub")), [x, other], x.kind, x.shape)
    if _depth(g) < _DEPTH and g.r.random() < 0.2:
        return _if(g, x)
    return x if x in g.values else g.add("Identity", [x], x.kind, x.shape)


def _condition(g: Graph) -> Value:
    """Return a scalar bool: a constant, or computed from a size or from data."""
    choice = g.r.random()
    if choice < 0.45:
        return g.constant(np.asarray(g.r.random() < 0.5))
    x = g.pick(least=1)
    if x is None:
        return g.constant(np.asarray(True))
    size = g.add("Size", [x], "int64", [])
    if choice < 0.75:
        return g.add("Less", [size, g.constant(np.int64(g.r.choice((0, 30, 10**6))))], "bool", [])
    half = g.add("Div", [size, g.constant(np.int64(2))], "int64", [])
    return g.add("Greater", [half, g.constant(np.int64(20))], "bool", [])


def _if(g: Graph, x: Value) -> Value:
    condition = _condition(g)
    bodies = []
    for side in ("then", "else"):
        body = Graph(g.r, g.opset, g)
        bodies.append(body.body(g.name(side), [_work(body, x)]))
    return g.add("If", [condition], x.kind, x.shape, then_branch=bodies[0], else_branch=bodies[1])


def if_(g: Graph) -> Value | None:
    """Add an If whose branches work on one captured value."""
    x = g.pick("float32", "int64")
    return _if(g, x) if x is not None and _depth(g) < _DEPTH else None


def loop(g: Graph) -> Value | None:
    """Add a Loop of no, one or three trips, with a carried value and perhaps a scan output."""
    x = g.pick("float32", "int64")
    if x is None or _depth(g) >= _DEPTH:
        return None
    trips = g.r.choice((0, 1, 1, 3))
    count = g.constant(np.asarray(trips, np.int64))
    body = Graph(g.r, g.opset, g)
    step, go, carried = Value(g.name("i"), "int64", ()), Value(g.name("g"), "bool", ()), replace(x, name=g.name("v"))
    body.values += [step, replace(carried, made=True)]
    done = _work(body, carried)
    if x.kind == "int64" and g.r.random() < 0.5:
        done = body.add("Add", [done, step], "int64", x.shape)
    on = body.add("Identity", [go], "bool", [])
    scans = [body.add("Identity", [done], x.kind, x.shape)] if g.r.random() < 0.5 and _fits(x, 3) else []
    proto = body.body(g.name("body"), [on, done, *scans], [step, go, carried])
    condition = g.constant(np.asarray(True)) if g.r.random() < 0.6 else None
    result = Value(g.name(), x.kind, x.shape)
    stacked = [Value(g.name(), x.kind, (fixed(trips), *x.shape)) for _ in scans]
    g.node("Loop", [count, condition, x], [value.name for value in (result, *stacked)], body=proto)
    g.values += [result, *(value for value in stacked if trips)]
    return result


def _fits(x: Value, times: int) -> bool:
    return is_small([fixed(times), *x.shape])


def scan(g: Graph) -> Value | None:
    """Add a Scan along the first axis of a value, with a state of its rows' shape."""
    x = g.pick("float32", least=1)
    if x is None or _depth(g) >= _DEPTH or any(len(set(d)) > 1 for d in x.shape[1:]) or 0 in x.shape[0]:
        return None
    row = x.shape[1:]
    start = g.constant(g.array("float32", [d[0] for d in row]))
    body = Graph(g.r, g.opset, g)
    state, item = Value(g.name("s"), x.kind, row), Value(g.name("e"), x.kind, row)
    body.values += [state, item]
    after = body.add(g.r.choice(("Add", "Max", "Sub")), [state, item], x.kind, row)
    after = _work(body, after)
    out = body.add("Identity", [after], x.kind, row)
    proto = body.body(g.name("scan"), [after, out], [state, item])
    last, rows = Value(g.name(), x.kind, row), Value(g.name(), x.kind, x.shape)
    g.node("Scan", [start, x], [last.name, rows.name], body=proto, num_scan_inputs=1)
    g.values += [last, rows]
    return rows


def function(g: Graph) -> Value | None:
    """Add a local function of one float and an attribute, or call one that is there."""
    x = g.pick("float32")
    if x is None or g.opset.ir_version < 8 or g.version < 13:
        return None
    if not g.functions or g.r.random() < 0.5:
        g.functions.append(_function(g))
    chosen = g.r.choice(g.functions)
    attributes = {"slope": g.r.choice((0.0, 0.1, 1.0))} if chosen.attribute else {}
    return g.add(chosen.name, [x], x.kind, x.shape, domain="local", **attributes)


def _function(g: Graph) -> onnx.FunctionProto:
    inner = Graph(g.r, g.opset)
    inner._count = g._count
    x = Value("a", "float32", ())
    y = x
    for _ in range(g.r.randint(1, 3)):
        number = Value(g.name("c"), "float32", ())
        inner.nodes.append(
            onnx.helper.make_node("Constant", [], [number.name], value_float=g.r.choice((0.0, 1.0, 0.5)))
        )
        y = inner.add(g.r.choice(("Add", "Mul", "Sub")), [y, number], "float32", ())
        y = inner.add(g.r.choice(("Relu", "Sigmoid", "Identity", "Tanh")), [y], "float32", ())
    takes = g.r.random() < 0.5
    if takes:
        y = inner.add("LeakyRelu", [y], "float32", ())
        inner.nodes[-1].attribute.add(name="alpha", ref_attr_name="slope", type=onnx.AttributeProto.FLOAT)
    imports = [onnx.helper.make_opsetid("", g.version)]
    name = f"F{len(g.functions)}"
    return onnx.helper.make_function(
        "local", name, ["a"], [y.name], inner.nodes, imports, attributes=["slope"] if takes else []
    )


def typed_loop_of_shape(g: Graph) -> Value | None:
    """Add a Loop that runs as often as a value has rows."""
    x = g.pick("float32", least=1)
    if x is None or _depth(g) >= _DEPTH or min(x.shape[0]) < 1:
        return None
    shape = g.add("Shape", [x], "int64", [fixed(x.rank)])
    count = g.add("Gather", [shape, g.constant(np.int64(0))], "int64", [], axis=0)
    body = Graph(g.r, g.opset, g)
    step, go, total = (Value(g.name(s), k, ()) for s, k in (("i", "int64"), ("g", "bool"), ("t", "float32")))
    body.values += [step]
    on = body.add("Identity", [go], "bool", [])
    number = body.add("Cast", [step], "float32", [], to=onnx_type("float32"))
    done = body.add("Add", [total, number], "float32", [])
    proto = body.body(g.name("body"), [on, done], [step, go, total])
    start = g.constant(np.float32(g.r.choice((0.0, 1.5))))
    return g.add("Loop", [count, g.constant(np.asarray(True)), start], "float32", [], body=proto)


MAKERS = (if_, if_, loop, loop, scan, function, function, typed_loop_of_shape)
