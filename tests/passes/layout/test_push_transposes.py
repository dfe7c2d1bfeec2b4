"""push-transposes: islands in another layout go, Transposes only move where that saves some."""

from __future__ import annotations

import pytest
from conftest import apply, assert_same_outputs, canonical, parse
from onnxedge_passes.fuse.fuse import Fuse
from onnxedge_passes.layout.push_transposes import PushTransposes

HEAD = "g (float[N, 3, 8, 8] x) => (float[A, B, C, D] y)"
LAST, FIRST = "Transpose<perm=[0, 2, 3, 1]>", "Transpose<perm=[0, 3, 1, 2]>"

MOVED = {
    "elementwise": (
        f"{HEAD} <float[3] b = {{1, 2, 3}}> {{ t = {LAST}(x) a = Add(t, b) r = Relu(a) y = {FIRST}(r) }}",
        f"{HEAD} <float[1, 3, 1, 1] b = {{1, 2, 3}}> {{ a = Add(x, b) y = Relu(a) }}",
    ),
    "two branches that meet": (
        f"{HEAD} {{ t = {LAST}(x) r = Relu(t) s = Sigmoid(t) a = Mul(r, s) y = {FIRST}(a) }}",
        f"{HEAD} {{ r = Relu(x) s = Sigmoid(x) y = Mul(r, s) }}",
    ),
    "concat on the channel axis": (
        "g (float[N, 3, 8, 8] x, float[N, 2, 8, 8] z) => (float[A, B, C, D] y)"
        f" {{ t = {LAST}(x) u = {LAST}(z) c = Concat<axis=3>(t, u) y = {FIRST}(c) }}",
        "g (float[N, 3, 8, 8] x, float[N, 2, 8, 8] z) => (float[A, B, C, D] y) { y = Concat<axis=1>(x, z) }",
    ),
    "pad": (
        f"{HEAD} <int64[8] p = {{0, 1, 2, 0, 0, 3, 4, 0}}> {{ t = {LAST}(x) a = Pad(t, p) y = {FIRST}(a) }}",
        f"{HEAD} <int64[8] p = {{0, 0, 1, 2, 0, 0, 3, 4}}> {{ y = Pad(x, p) }}",
    ),
    "slice and reduction": (
        f"{HEAD} <int64[1] s = {{1}}, int64[1] e = {{3}}, int64[1] k = {{3}}> {{ t = {LAST}(x) a = Slice(t, s, e, k)"
        f" m = ReduceMax<axes=[1, 2]>(a) y = {FIRST}(m) }}",
        f"{HEAD} <int64[1] s = {{1}}, int64[1] e = {{3}}, int64[1] k = {{1}}> {{ a = Slice(x, s, e, k)"
        " y = ReduceMax<axes=[2, 3]>(a) }",
    ),
    "a reduction that drops axes takes the Transpose with it": (
        f"g (float[N, 3, 8, 8] x) => (float[A, B] y) {{ t = {LAST}(x) y = ReduceMean<axes=[1, 2], keepdims=0>(t) }}",
        "g (float[N, 3, 8, 8] x) => (float[A, B] y) { y = ReduceMean<axes=[2, 3], keepdims=0>(x) }",
    ),
    "softmax": (
        f"{HEAD} {{ t = {LAST}(x) a = Softmax<axis=-1>(t) y = {FIRST}(a) }}",
        f"{HEAD} {{ y = Softmax<axis=1>(x) }}",
    ),
    "a residual that stays in the other layout costs nothing more": (
        "g (float[N, 3, 8, 8] x, float[N, 8, 8, 3] z) => (float[A, B, C, D] y)"
        f" {{ t = {LAST}(x) r = Relu(t) s = Exp(r) a = Add(s, z) y = {FIRST}(a) }}",
        "g (float[N, 3, 8, 8] x, float[N, 8, 8, 3] z) => (float[A, B, C, D] y)"
        f" {{ u = {FIRST}(z) r = Relu(x) s = Exp(r) y = Add(s, u) }}",
    ),
}  # fmt: skip

KEPT = {
    "one Transpose": f"{HEAD} {{ t = {LAST}(x) y = Relu(t) }}",
    "an operator with a layout of its own": "g (float[N, 3, 8, 8] x) => (float[A, B] y) <int64[2] s = {0, -1}>"
    f" {{ t = {LAST}(x) y = Reshape(t, s) }}",
    "an operand that would have to be transposed": "g (float[N, 3, 8, 8] x, float[3] z) => (float[A, B, C, D] y)"
    f" {{ t = {LAST}(x) a = Add(t, z) y = {FIRST}(a) }}",
    "a value that is read in both orders, whichever it is in": "g (float[1, N, 8] x) => (float[A, B, C, D] y)"
    " <int64[4] s = {0, 0, 2, 4}> { r = Relu(x) t = Transpose<perm=[2, 1, 0]>(r) a = Add(r, t) b = Reshape(a, s)"
    " y = Transpose<perm=[0, 2, 1, 3]>(b) }",
    "such a value behind another Transpose": "g (float[1, N, 8] x) => (float[A, B, C] y)"
    " { u = Transpose<perm=[2, 1, 0]>(x) r = Relu(u) t = Transpose<perm=[2, 1, 0]>(r) y = Add(r, t) }",
    "another domain": f"{HEAD} {{ t = {LAST}(x) a = acme.F(t) y = {FIRST}(a) }}",
}  # fmt: skip


@pytest.mark.parametrize(("before", "after"), MOVED.values(), ids=MOVED)
def test_moves(check, before: str, after: str) -> None:
    check(PushTransposes(), before, after)


@pytest.mark.parametrize("text", KEPT.values(), ids=KEPT)
def test_stays(check, text: str) -> None:
    check(PushTransposes(), text, runs="acme" not in text)


def test_other_readers_get_one_transpose() -> None:
    text = f"{HEAD.replace('y)', 'y, float[E, F, G, H] z)')} {{ t = {LAST}(x) r = Relu(t) z = Exp(r) y = {FIRST}(r) }}"
    before, model = parse(text), parse(text)
    apply(PushTransposes(), model)
    assert sum("Transpose" in line for line in canonical(model)) == 1
    assert_same_outputs(before, model, exact=True)


def test_an_island_between_convolutions_goes() -> None:
    text = (
        "g (float[N, 8, 8, 3] x) => (float[A, B, C, D] y) <float[4, 3, 3, 3] w, float[4, 4, 3, 3] v, float[4] b>"
        f" {{ i = {FIRST}(x) c = Conv<pads=[1, 1, 1, 1]>(i, w) t = {LAST}(c) a = Add(t, b) r = Relu(a)"
        f" u = {FIRST}(r) d = Conv<pads=[1, 1, 1, 1]>(u, v) e = {LAST}(d) y = Add(e, r) }}"
    )
    import numpy as np

    from onnxedge.api import new_initializer

    models = [parse(text), parse(text)]
    for model in models:
        rng = np.random.default_rng(0)
        for node in model.graph:
            for index, value in enumerate(node.inputs):
                if value is not None and value.name in ("w", "v", "b"):
                    shape = {"w": (4, 3, 3, 3), "v": (4, 4, 3, 3), "b": (4,)}[value.name]
                    array = rng.standard_normal(shape).astype(np.float32)
                    node.replace_input_with(index, new_initializer(model.graph, array, f"{value.name}_set"))
        for name in ("w", "v", "b"):
            model.graph.initializers.pop(name, None)
    apply(Fuse(), models[1])
    assert sum("Transpose" in line for line in canonical(models[1])) == 2
    assert_same_outputs(models[0], models[1], exact=False)


def test_inside_a_subgraph(check) -> None:
    head = "g (bool c, float[2, 3, 4] x) => (float[A, B, C] y)"
    body = (
        "{{ y = If(c) <then_branch = t () => (float[D, E, F] a) {{ {0} }},"
        " else_branch = e () => (float[2, 3, 4] b) {{ b = Neg(x) }}> }}"
    )
    check(
        PushTransposes(),
        f"{head} {body.format('p = Transpose<perm=[2, 0, 1]>(x) r = Relu(p) a = Transpose<perm=[1, 2, 0]>(r)')}",
        f"{head} {body.format('a = Relu(x)')}",
    )
