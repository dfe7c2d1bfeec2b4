"""swap-where: choices by a negated condition."""

from __future__ import annotations

from onnxedge_passes.cleanup.swap_where import SwapWhere

HEAD = "g (bool[N, 4] c, float[N, 4] a, float[4] b) => (float[N, 4] y)"


def test_swaps_the_sides(check) -> None:
    check(SwapWhere(), f"{HEAD} {{ n = Not(c) y = Where(n, a, b) }}", f"{HEAD} {{ y = Where(c, b, a) }}")


def test_equal_sides(check) -> None:
    check(SwapWhere(), f"{HEAD} {{ n = Not(c) y = Where(n, a, a) }}", f"{HEAD} {{ y = Where(c, a, a) }}")


def test_a_negation_stays_for_others(check) -> None:
    head = HEAD.replace("float[N, 4] y", "float[N, 4] y, bool[N, 4] n")
    check(SwapWhere(), f"{head} {{ n = Not(c) y = Where(n, a, b) }}", f"{head} {{ n = Not(c) y = Where(c, b, a) }}")


def test_another_condition_stays(check) -> None:
    check(SwapWhere(), f"{HEAD} {{ n = Xor(c, c) y = Where(n, a, b) }}")
