"""drop-zeros: 0.0 added before a sum."""

from __future__ import annotations

import pytest
from onnxedge_passes.fuse.drop_zeros import DropZeros

HEAD = "g (float[N, 2] x) => (float[N, 2] y) <float[1, 2] z = {0, 0}, float[2, 2] w = {1, 2, 3, 4}>"


@pytest.mark.parametrize("total", ["Add(x, z)", "Add(z, x)", "Sub(x, z)"])
def test_dropped_before_a_product(check, total: str) -> None:
    check(DropZeros(), f"{HEAD} {{ a = {total} y = MatMul(a, w) }}", f"{HEAD} {{ y = MatMul(x, w) }}")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("a = Add(x, z) b = Relu(a) y = Transpose<perm=[1, 0]>(b)", "b = Relu(x) y = Transpose<perm=[1, 0]>(b)"),
        ("m = MatMul(x, w) y = Add(m, z)", "y = MatMul(x, w)"),
    ],
    ids=["handed on to an output", "an output"],
)
def test_dropped_before_an_output(check, before: str, after: str) -> None:
    head = HEAD.replace("[N, 2] y", "[A, B] y")
    check(DropZeros(), f"{head} {{ {before} }}", f"{head} {{ {after} }}")


@pytest.mark.parametrize(
    "body",
    [
        "a = Add(x, z) y = Reciprocal(a)",
        "a = Add(x, z) b = Relu(a) y = Reciprocal(b)",
        "a = Add(x, z) y = acme.Foo(a)",
        "c = Constant<value = bool {1}>() a = If(c) <then_branch = t () => (float[N, 2] b) { b = Add(x, z) },"
        " else_branch = e () => (float[N, 2] d) { d = Relu(x) }> y = Reciprocal(a)",
    ],
)
def test_stays_before_what_tells_them_apart(check, body: str) -> None:
    assert len(check(DropZeros(), f"{HEAD} {{ {body} }}", runs="acme" not in body)) == 1


@pytest.mark.parametrize(
    "text",
    [
        f"{HEAD} {{ a = Sub(z, x) y = MatMul(a, w) }}",
        "g (float[N, 1] x) => (float[N, 2] y) <float[1, 2] z = {0, 0}> { a = Add(x, z) y = Softmax(a) }",
    ],
    ids=["a negation", "a broadcast"],
)
def test_stays(check, text: str) -> None:
    assert check(DropZeros(), text) == []
