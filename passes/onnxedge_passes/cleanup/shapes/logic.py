"""Comparisons of integers that are known as numbers or expressions, and choices between them; booleans are 0 and 1."""

from __future__ import annotations

from onnxedge_passes.cleanup.shapes.symbolic import (
    Expr,
    Item,
    is_equal,
    is_less,
    lower_bound,
    multiply,
    subtract,
    symbol,
)


def equal(left: Item, right: Item, *, opposite: bool = False) -> Item:
    """Tell whether two items are equal, or the opposite."""
    return _truth(is_equal(left, right), opposite, "equal", left, right)


def less(left: Item, right: Item, *, opposite: bool = False) -> Item:
    """Tell whether the first item is below the second, or the opposite."""
    return _truth(is_less(left, right), opposite, "less", left, right)


def both(left: Item, right: Item) -> Item:
    """Tell whether two conditions hold."""
    return 0 if 0 in (left, right) else multiply(left, right) if left != right else left


def either(left: Item, right: Item) -> Item:
    """Tell whether one of two conditions holds."""
    return negation(both(negation(left), negation(right)))


def negation(item: Item) -> Item:
    """Tell whether a condition does not hold."""
    return subtract(1, item)


def choice(condition: Item, left: Item, right: Item) -> Item:
    """Return the first of two items where a condition holds, else the second."""
    if left == right:
        return left
    if isinstance(condition, Expr):
        low = (lower_bound(left), lower_bound(right))
        return symbol(("where", condition, left, right), min(low) if None not in low else None)  # type: ignore[type-var]
    return left if condition else right


def absolute(item: Item) -> Item:
    """Return an item without its sign."""
    low = lower_bound(item)
    if low is not None and low >= 0:
        return item
    return abs(item) if isinstance(item, int) else symbol(("absolute", item))


def _truth(answer: bool | None, opposite: bool, kind: str, *items: Item) -> Item:
    """Return 0 or 1, or a symbol for what depends on sizes."""
    return symbol((kind, opposite, items)) if answer is None else int(answer != opposite)
