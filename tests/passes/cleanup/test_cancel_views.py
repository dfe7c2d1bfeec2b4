"""cancel-views: elementwise operators between a view and the one that undoes it."""

from __future__ import annotations

import pytest
from onnxedge_passes.cleanup.cancel_views import CancelViews

HEAD = "g (float[N, 32] x) => (float[A, B] y)"
VIEWS = "int64[3] s = {-1, 8, 4}, int64[2] t = {-1, 32}"

CANCELLED = {
    "one operator": (
        f"{HEAD} <{VIEWS}> {{ a = Reshape(x, s) r = Relu(a) y = Reshape(r, t) }}",
        f"{HEAD} {{ y = Relu(x) }}",
    ),
    "a branch, a scalar and a scalar of too many axes": (
        f"{HEAD} <{VIEWS}, float h = {{0.5}}, float[1, 1, 1] q = {{2}}> {{ a = Reshape(x, s) b = Mul(a, h) c = Tanh(a)"
        " d = Add(c, q) e = Mul(b, d) y = Reshape(e, t) }",
        f"{HEAD} <float h = {{0.5}}, float q = {{2}}>"
        " { b = Mul(x, h) c = Tanh(x) d = Add(c, q) y = Mul(b, d) }",
    ),
    "a size that is left to the runtime": (
        "g (float[6, 4] x) => (float[A, B] y) <int64[3] s = {2, 3, 4}, int64[2] t = {-1, 4}>"
        " { a = Reshape(x, s) r = Relu(a) y = Reshape(r, t) }",
        "g (float[6, 4] x) => (float[A, B] y) { y = Relu(x) }",
    ),
    "a row of both shapes": (
        "g (float[6, 4] x) => (float[A, B] y) <int64[3] s = {2, 3, 4}, int64[2] t = {6, 4}, float[4] b = {1, 2, 3, 4}>"
        " { a = Reshape(x, s) c = Add(a, b) y = Reshape(c, t) }",
        "g (float[6, 4] x) => (float[A, B] y) <float[4] b = {1, 2, 3, 4}> { y = Add(x, b) }",
    ),
    "a bias between Squeeze and Unsqueeze": (
        "g (float[N, 2, 1, 4] x) => (float[A, B, C, D] y) <int64[1] k = {2}, float[2, 1] b = {1, 2}>"
        " { a = Squeeze(x, k) c = Add(a, b) y = Unsqueeze(c, k) }",
        "g (float[N, 2, 1, 4] x) => (float[A, B, C, D] y) <float[1, 2, 1, 1] b = {1, 2}> { y = Add(x, b) }",
    ),
    "a bias between Unsqueeze and Squeeze": (
        "g (float[N, 2, 4] x) => (float[A, B, C] y) <int64[1] k = {2}, float[2, 1, 1] b = {1, 2}>"
        " { a = Unsqueeze(x, k) c = Add(a, b) y = Squeeze(c, k) }",
        "g (float[N, 2, 4] x) => (float[A, B, C] y) <float[1, 2, 1] b = {1, 2}> { y = Add(x, b) }",
    ),
    "a residual, and two that restore the shape": (
        "g (float[N, 2, 1, 4] x, float[N, 2, 1, 4] z) => (float[A, B, C, D] y, float[E, F, G, H] v)"
        " <int64[1] k = {2}> { a = Squeeze(x, k) r = Relu(a) u = Unsqueeze(r, k) y = Exp(u)"
        " c = Squeeze(z, k) d = Add(c, r) v = Unsqueeze(d, k) }",
        "g (float[N, 2, 1, 4] x, float[N, 2, 1, 4] z) => (float[A, B, C, D] y, float[E, F, G, H] v)"
        " { r = Relu(x) y = Exp(r) v = Add(z, r) }",
    ),
}  # fmt: skip

KEPT = {
    "another shape": f"{HEAD} <int64[3] s = {{-1, 8, 4}}, int64[2] t = {{-1, 16}}>"
    " { a = Reshape(x, s) r = Relu(a) y = Reshape(r, t) }",
    "a row of one shape": f"{HEAD} <{VIEWS}, float[4] b = {{1, 2, 3, 4}}>"
    " { a = Reshape(x, s) c = Add(a, b) y = Reshape(c, t) }",
    "other readers": f"{HEAD.replace('y)', 'y, float[C, D, E] z)')} <{VIEWS}>"
    " { a = Reshape(x, s) r = Relu(a) z = Exp(r) y = Reshape(r, t) }",
    "two outputs": "g (float[N, 2, 1, 4] x) => (float[A, B, C, D] y, float[E, F, G, H] v) <int64[1] k = {2}>"
    " { a = Squeeze(x, k) r = Relu(a) y = Unsqueeze(r, k) v = Unsqueeze(r, k) }",
    "a constant that is broadcast along a new axis": "g (float[N, 2, 1, 4] x) => (float[A, B, C] y)"
    " <int64[1] k = {2}, float[1, 2, 3, 1] b = {1, 2, 3, 4, 5, 6}, int64[3] s = {0, 2, 12}>"
    " { a = Squeeze(x, k) u = Unsqueeze(a, k) c = Add(u, b) y = Reshape(c, s) }",
    "a softmax": f"{HEAD} <{VIEWS}> {{ a = Reshape(x, s) r = Softmax(a) y = Reshape(r, t) }}",
}  # fmt: skip


@pytest.mark.parametrize(("before", "after"), CANCELLED.values(), ids=CANCELLED)
def test_cancels(check, before: str, after: str) -> None:
    check(CancelViews(), before, after)


@pytest.mark.parametrize("text", KEPT.values(), ids=KEPT)
def test_stays(check, text: str) -> None:
    check(CancelViews(), text)
