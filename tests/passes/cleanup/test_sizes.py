"""Dynamic shapes that are told to be equal, and integers that follow from them, in fold-constants."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import parse
from onnxedge_passes.cleanup.constants.fold_constants import FoldConstants

from onnxedge.api import Session

HEAD = "g (float[N, 12, 4] x) => (float[A, B, C] y)"
ONE = "int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}, int64[1] last = {-1}"

FOLDED = {
    "there and back by products": (
        f"{HEAD} <{ONE}, int64[1] d = {{12}}, int64[2] t = {{12, 4}}> {{ s = Shape(x) n = Slice(s, zero, one)"
        " m = Mul(n, d) k = Concat<axis=0>(m, two, two) r = Reshape(x, k) q = Relu(r) o = Shape(q)"
        " p = Slice(o, zero, one) u = Div(p, d) v = Concat<axis=0>(u, t) y = Reshape(q, v) }",
        "g (float[N, 12, 4] x) => (float[A, B, C] y) <int64[3] s = {-1, 2, 2}, int64[3] t = {-1, 12, 4}>"
        " { r = Reshape(x, s) q = Relu(r) y = Reshape(q, t) }",
    ),
    "a Reshape to its own shape": (
        f"{HEAD.replace('12', 'M')} {{ r = Relu(x) s = Shape(x) q = Reshape(r, s) y = Neg(q) }}",
        f"{HEAD.replace('12', 'M')} {{ r = Relu(x) y = Neg(r) }}",
    ),
    "torch's expand": (
        f"{HEAD.replace('12', 'M')} <int64[3] w = {{-1, -1, 4}}, int64 m = {{-1}}> {{ r = Relu(x) s = Shape(r)"
        " c = Equal(w, m) t = Where(c, s, w) e = Expand(r, t) y = Neg(e) }",
        f"{HEAD.replace('12', 'M')} {{ r = Relu(x) y = Neg(r) }}",
    ),
    "a Slice to the end": (
        f"{HEAD} <{ONE}> {{ s = Shape(x) n = Slice(s, zero, one) r = Slice(x, one, n, zero) y = Neg(r) }}",
        f"{HEAD} <{ONE}, int64[1] e = {{2147483647}}> {{ r = Slice(x, one, e, zero) y = Neg(r) }}",
    ),
    "what never is -1": (
        f"{HEAD} <{ONE}> {{ s = Shape(x) n = Slice(s, zero, one) c = Equal(n, last) k = Where(c, one, n)"
        " t = Concat<axis=0>(k, two, two, last) r = Reshape(x, t) y = ReduceSum<keepdims=0>(r, one) }",
        f"{HEAD} <{ONE}, int64[4] t = {{0, 2, 2, -1}}> {{ r = Reshape(x, t) y = ReduceSum<keepdims=0>(r, one) }}",
    ),
    "one size computed twice": (
        "g (float[N, 4] x) => (int64[1] y) <int64[1] zero = {0}, int64[1] one = {1}> { r = Relu(x) s = Shape(x)"
        " t = Shape(r) a = Slice(s, zero, one) b = Slice(t, zero, one) y = Add(a, b) }",
        "g (float[N, 4] x) => (int64[1] y) <int64[1] zero = {0}, int64[1] one = {1}> { s = Shape(x)"
        " a = Slice(s, zero, one) y = Add(a, a) }",
    ),
    "an Expand that broadcasting makes superfluous": (
        "g (float[N, 1] x, float[4] z) => (float[A, B] y) <int64[2] k = {1, 4}> { e = Expand(x, k) y = Add(e, z) }",
        "g (float[N, 1] x, float[4] z) => (float[A, B] y) { y = Add(x, z) }",
    ),
}  # fmt: skip

TABLE = f"float[8, 1] w = {{{', '.join(str(i) for i in range(8))}}}, {ONE}"
CUT = "s = Shape(x) n = Slice(s, zero, one) c = Slice(w, zero, n, zero) a = Add(x, c) k = Shape(a) y = Expand(x, k)"

KEPT = {
    "a table of one row, cut": f"g (float[N, 4] x) => (float[A, B] y) <{ONE}, float[1, 1] w = {{3}}> {{ {CUT} }}",
    "a table cut elsewhere": f"g (float[N, 4] x) => (float[A, B] y) <{TABLE}> {{ {CUT.replace('w, zero', 'w, one')} }}",
    "two inputs whose dimensions have one name": "g (float[N, M] x, float[N, M] z) => (float[A, B] y)"
    " { s = Shape(z) y = Reshape(x, s) }",
    "a size that may be 1": "g (float[N, 4] x) => (float[A, B] y, int64[1] k) <int64[1] one = {1}, int64[1] zero = {0}>"
    " { s = Shape(x) n = Slice(s, zero, one) c = Equal(n, one) k = Where(c, zero, n) y = Relu(x) }",
    "a size that may divide by 0": "g (float[N, 4] x) => (int64[1] y) <int64[1] one = {1}, int64[1] zero = {0}>"
    " { s = Shape(x) n = Slice(s, zero, one) y = Div(n, n) }",
    "an Expand that makes the result larger":
        "g (float[N, 1] x, float[1] z) => (float[A, B] y) <int64[2] k = {1, 4}> { e = Expand(x, k) y = Add(e, z) }",
    "two sizes that cannot be said": "g (float[N, M] x) => (float[A, B, C] y) <int64[1] one = {1}, int64[1] zero = {0},"
    " int64[1] two = {2}> { s = Shape(x) m = Slice(s, one, two) n = Slice(s, zero, one) "
    " t = Concat<axis=0>(m, n, one) y = Reshape(x, t) }",
}  # fmt: skip


@pytest.mark.parametrize(("before", "after"), FOLDED.values(), ids=FOLDED)
def test_folds(check, before: str, after: str) -> None:
    check(FoldConstants(), before, after)


@pytest.mark.parametrize("text", KEPT.values(), ids=KEPT)
def test_stays(check, text: str) -> None:
    check(FoldConstants(), text)


@pytest.mark.parametrize(
    ("inputs", "shape"),
    [
        ("float[N, M, 4] x", ["N", "M", 4]),
        ("float[N, M, 4] x, float[N, M] z", ["N", "M", 4]),  # equal or not, the sizes are those of x
        ("float[K, M, 4] x, float[N, M] z", ["K", "M", 4]),
    ],
)
def test_a_size_has_the_name_that_its_input_gives_it(rewritten, inputs: str, shape: list[int | str]) -> None:
    text = (
        f"g ({inputs}) => (float[A, B, C] y) <{ONE}, int64[1] f = {{4}}> {{ s = Shape(x) n = Slice(s, zero, one)"
        " m = Slice(s, one, two) t = Concat<axis=0>(n, m, f) h = Transpose<perm=[1, 0, 2]>(x) r = Reshape(h, t)"
        " y = Neg(r) }"
    )
    model, _ = rewritten(FoldConstants(), text, infer=False)
    found = next(node for node in model.graph if node.op_type == "Reshape").outputs[0].shape
    assert [d if isinstance(d, int) else d.value for d in found] == shape


def test_a_table_cut_to_the_size_that_it_is_added_to(applied) -> None:
    text = f"g (float[N, 4] x) => (float[A, B] y) <{TABLE}> {{ v = Relu(x) {CUT.replace('Expand(x', 'Expand(v')} }}"
    original, model = parse(text), parse(text)
    applied(FoldConstants(), model, "ort-cpu", infer=False)
    assert "Expand" not in [node.op_type for node in model.graph]
    first, second = Session(original, level="disable"), Session(model, level="disable")
    for rows in (0, 1, 2, 7, 8):
        x = np.arange(rows * 4, dtype=np.float32).reshape(rows, 4)
        np.testing.assert_array_equal(first.run({"x": x})["y"], second.run({"x": x})["y"])
