"""shape-of-source: shapes read past what keeps or permutes them."""

from __future__ import annotations

import pytest
from onnxedge_passes.cleanup.shape_of_source import ShapeOfSource

HEAD = "g (float[N, 2, M] x) => (int64[A] y)"

READ = {
    "a Cast": ("a = Cast<to=7>(x) y = Shape(a)", "y = Shape(x)"),
    "a chain": ("a = Cast<to=7>(x) b = Abs(a) y = Shape(b)", "y = Shape(x)"),
    "part of the shape": ("a = Softmax<axis=1>(x) y = Shape<start=1, end=2>(a)", "y = Shape<start=1, end=2>(x)"),
    "a clip": ("l = Constant<value_float=0.0>() a = Clip(x, l) y = Shape(a)", "y = Shape(x)"),
}
TURNED = {
    "all of it": ("", "int64[3] i = {2, 0, 1}"),
    "from the second": ("<start=1>", "int64[2] i = {0, 1}"),
    "but the last": ("<end=-1>", "int64[2] i = {2, 0}"),
    "beyond the end": ("<start=2, end=9>", "int64[1] i = {1}"),
}
KEPT = {
    "a sum may broadcast": "g (float[N, 2] x, float[N, 2] z) => (int64[2] y) { a = Add(x, z) y = Shape(a) }",
    "a Transpose that others read": "g (float[N, 2] x) => (int64[2] y, float[2, N] z)"
    " { a = Transpose<perm=[1, 0]>(x) y = Shape(a) z = Relu(a) }",
    "an unknown operator": "g (float[N, 2] x) => (int64[2] y) { a = acme.Cast(x) y = Shape(a) }",
    "a second output": "g (float[N, 4] x) => (int64[2] y, float[N, 4] z) { z, m = Dropout(x) y = Shape(m) }",
}


@pytest.mark.parametrize(("before", "after"), READ.values(), ids=READ)
def test_reads_the_source(check, before: str, after: str) -> None:
    check(ShapeOfSource(), f"{HEAD} {{ {before} }}", f"{HEAD} {{ {after} }}")


@pytest.mark.parametrize(("part", "indices"), TURNED.values(), ids=TURNED)
def test_permutes_the_shape(check, part: str, indices: str) -> None:
    before = f"{HEAD} {{ a = Transpose<perm=[2, 0, 1]>(x) y = Shape{part}(a) }}"
    check(ShapeOfSource(), before, f"{HEAD} <{indices}> {{ s = Shape(x) y = Gather<axis=0>(s, i) }}")


@pytest.mark.parametrize("text", KEPT.values(), ids=KEPT)
def test_stays(check, text: str) -> None:
    check(ShapeOfSource(), text, runs="acme" not in text)
