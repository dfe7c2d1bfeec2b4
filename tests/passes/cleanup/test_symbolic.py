"""Expressions in sizes: one normal form, and no division by what may be 0."""

from __future__ import annotations

from onnxedge_passes.cleanup.shapes.symbolic import (
    add,
    divide,
    is_equal,
    is_less,
    larger,
    lower_bound,
    modulo,
    multiply,
    negate,
    smaller,
    subtract,
    symbol,
)

N, M = symbol("N"), symbol("M")


def test_sums_and_products_have_one_form() -> None:
    assert subtract(add(N, 1), 1) == N
    assert divide(multiply(N, 12), 12) == N
    assert multiply(add(N, M), 2) == add(multiply(2, M), multiply(N, 2))
    assert multiply(N, M) == multiply(M, N)
    assert subtract(N, N) == 0
    assert add(N, negate(N)) == 0


def test_quotients_that_do_not_come_out_even_are_one_symbol() -> None:
    assert divide(add(N, 5), 12) == divide(add(5, N), 12)
    assert divide(add(N, 5), 12) != divide(add(N, 6), 12)
    assert divide(-7, 2) == -3
    assert modulo(multiply(N, 6), 3) == 0
    assert modulo(N, 2) == modulo(N, 2)


def test_a_size_may_be_zero() -> None:
    assert divide(N, N) != 1
    assert divide(multiply(N, M), M) != N
    assert is_equal(N, 0) is None


def test_comparisons() -> None:
    assert is_equal(N, -1) is False
    assert is_equal(N, M) is None
    assert is_equal(add(N, 1), 0) is False
    assert is_less(N, add(N, 1)) is True
    assert is_less(add(N, M), N) is False
    assert is_less(N, M) is None
    assert larger(N, 0) == N
    assert smaller(N, add(N, 2)) == N
    assert larger(N, M) == larger(M, N)
    assert lower_bound(add(multiply(N, 3), 2)) == 2
    assert lower_bound(subtract(N, M)) is None
