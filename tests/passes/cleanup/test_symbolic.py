"""Expressions in sizes: one normal form, and no division by what may be 0."""

from __future__ import annotations

from onnxedge_passes.cleanup.shapes.symbolic import (
    add,
    broadcast,
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


def test_what_can_be_broadcast_with_its_bound_is_equal_to_it() -> None:
    assert broadcast({N, smaller(N, 1024)}) == N
    assert broadcast({smaller(N, 8), smaller(N, 1024), N}) == N
    assert broadcast({N}) == N
    assert broadcast(set()) == 1
    assert broadcast({N, smaller(N, 1)}) is None  # which is 1 for any N
    assert broadcast({N, smaller(N, M)}) is None  # the same where M is 1
    assert broadcast({N, larger(N, 1024)}) is None  # the same where N is 1
    assert broadcast({1024, smaller(N, 1024)}) is None
    assert broadcast({M, N, smaller(N, 1024)}) is None


def test_deep_expressions_are_equal_to_themselves_alone() -> None:
    deep, twin = N, N
    for number in range(2000):
        assert (deep == twin) is (number <= 16)
        deep, twin = (smaller(item, 5000 - number) for item in (deep, twin))
    assert deep == deep
    assert deep != twin
