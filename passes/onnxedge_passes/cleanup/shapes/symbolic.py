"""Integers that are known only when the model runs, as polynomials over the sizes that its inputs may have.

Two expressions are equal where their normal forms are; whatever no normal form is known for (a quotient that does not
come out even, a maximum) becomes a symbol named by what it is computed from, so that computing it twice gives one
symbol. Source: own.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable
from dataclasses import dataclass, field

_MOST_TERMS = 24  #: a polynomial with more terms becomes a symbol of its own
_DEEPEST = 16  #: symbols named by symbols inside each other; above, one is only equal to itself


@dataclass(frozen=True)
class Symbol:
    """Name a number by what it is: a dimension's name, an axis of a value, or an operation on expressions."""

    key: Hashable
    at_least: int | None = 0  #: a lower bound; sizes are not negative
    depth: int = field(default=0, compare=False)  #: symbols inside each other in the key


Monomial = frozenset[tuple[Symbol, int]]  #: product of symbols to a power; empty for the constant term


@dataclass(frozen=True)
class Expr:
    """Hold a polynomial with integer coefficients that is no plain number."""

    terms: frozenset[tuple[Monomial, int]]

    def key(self) -> Hashable:
        """Return what names the symbol that this is, None where it is more than one."""
        for monomial, factor in self.terms:
            for base, power in monomial:
                if len(self.terms) == len(monomial) == factor == power == 1:
                    return base.key
        return None


Item = int | Expr  #: an integer that the graph computes; booleans count as 0 and 1


def symbol(key: Hashable, at_least: int | None = 0) -> Expr:
    """Return an expression that is one symbol."""
    depth = _depth(key)
    made = Symbol(key, at_least, depth) if depth <= _DEEPEST else Symbol(object(), at_least)
    return Expr(frozenset({(frozenset({(made, 1)}), 1)}))


def _depth(key: Hashable) -> int:
    if isinstance(key, Expr):
        return 1 + max((base.depth for monomial, _ in key.terms for base, _ in monomial), default=0)
    return max((_depth(part) for part in key), default=0) if isinstance(key, tuple | frozenset) else 0


def _terms(item: Item) -> dict[Monomial, int]:
    if isinstance(item, Expr):
        return dict(item.terms)
    return {frozenset(): int(item)} if item else {}


def _item(terms: dict[Monomial, int]) -> Item:
    kept = {monomial: factor for monomial, factor in terms.items() if factor}
    if not kept or (len(kept) == 1 and frozenset() in kept):
        return kept.get(frozenset(), 0)
    made = Expr(frozenset(kept.items()))
    return made if len(kept) <= _MOST_TERMS else symbol(("sum", made), lower_bound(made))


def add(left: Item, right: Item) -> Item:
    """Add two items."""
    terms = _terms(left)
    for monomial, factor in _terms(right).items():
        terms[monomial] = terms.get(monomial, 0) + factor
    return _item(terms)


def negate(item: Item) -> Item:
    """Change the sign of an item."""
    return _item({monomial: -factor for monomial, factor in _terms(item).items()})


def subtract(left: Item, right: Item) -> Item:
    """Subtract the second item from the first."""
    return add(left, negate(right))


def multiply(left: Item, right: Item) -> Item:
    """Multiply two items."""
    terms: dict[Monomial, int] = {}
    for mine, factor in _terms(left).items():
        for other, other_factor in _terms(right).items():
            powers = dict(mine)
            for base, power in other:
                powers[base] = powers.get(base, 0) + power
            monomial = frozenset(powers.items())
            terms[monomial] = terms.get(monomial, 0) + factor * other_factor
    return _item(terms)


def product(items: list[Item]) -> Item:
    """Multiply items; 1 for none."""
    result: Item = 1
    for item in items:
        result = multiply(result, item)
    return result


def divide(left: Item, right: Item) -> Item:
    """Divide as integers do in ONNX Runtime, towards zero.

    Raises:
        ZeroDivisionError: the divisor is, or may be, zero.
    """
    if isinstance(left, int) and isinstance(right, int):
        quotient = abs(left) // abs(right)
        return quotient if (left < 0) == (right < 0) else -quotient
    exact = exact_quotient(left, right)
    if exact is not None:
        return exact
    low = lower_bound(left)
    may_be_negative = low is None or low < 0 or (lower_bound(right) or 0) <= 0
    return symbol(("divide", left, right), None if may_be_negative else 0)


def exact_quotient(left: Item, right: Item) -> Item | None:
    """Return the quotient where each term is a multiple of a divisor with one term, which is no zero when it runs."""
    divisor = _terms(right)
    if len(divisor) != 1:
        return 1 if left == right and (lower_bound(right) or 0) > 0 else None
    ((monomial, factor),) = divisor.items()
    if any(base.at_least is None or base.at_least < 1 for base, _ in monomial):
        return None  # a size of 0 is for the runtime to complain about
    terms: dict[Monomial, int] = {}
    for mine, mine_factor in _terms(left).items():
        powers = dict(mine)
        for base, power in monomial:
            powers[base] = powers.get(base, 0) - power
        if mine_factor % factor or min(powers.values(), default=0) < 0:
            return None
        terms[frozenset((base, power) for base, power in powers.items() if power)] = mine_factor // factor
    return _item(terms)


def lower_bound(item: Item) -> int | None:
    """Return a number that the item is never below, None where none is known."""
    total = 0
    for monomial, factor in _terms(item).items():
        low = 1
        for base, power in monomial:
            if base.at_least is None or base.at_least < 0:
                return None
            low *= base.at_least**power
        if monomial and factor < 0:
            return None
        total += factor * low
    return total


def is_equal(left: Item, right: Item) -> bool | None:
    """Tell whether two items are equal whatever the sizes are; None where it depends on them."""
    if left == right:
        return True
    difference = subtract(left, right)
    for side in (difference, negate(difference)):
        low = lower_bound(side)
        if low is not None and low > 0:
            return False
    return None


def is_less(left: Item, right: Item) -> bool | None:
    """Tell whether the first item is below the second whatever the sizes are; None where it depends on them."""
    above, below = lower_bound(subtract(right, left)), lower_bound(subtract(left, right))
    if above is not None and above > 0:
        return True
    return False if below is not None and below >= 0 else None


def modulo(left: Item, right: Item) -> Item:
    """Return the remainder with the divisor's sign, as ONNX's Mod gives it for integers.

    Raises:
        ZeroDivisionError: the divisor is zero.
    """
    if isinstance(left, int) and isinstance(right, int):
        return left % right
    if exact_quotient(left, right) is not None:
        return 0
    return symbol(("modulo", left, right), 0 if (lower_bound(right) or 0) > 0 else None)


def larger(left: Item, right: Item) -> Item:
    """Return the larger of two items."""
    less = is_less(left, right)
    if less is not None:
        return right if less else left
    bounds = [low for low in (lower_bound(left), lower_bound(right)) if low is not None]
    return symbol(("larger", frozenset((left, right))), max(bounds, default=None))


def smaller(left: Item, right: Item) -> Item:
    """Return the smaller of two items."""
    less = is_less(left, right)
    if less is not None:
        return left if less else right
    low = (lower_bound(left), lower_bound(right))
    return symbol(("smaller", frozenset((left, right))), min(low) if None not in low else None)  # type: ignore[type-var]


def broadcast(items: Collection[Item]) -> Item | None:
    """Return the size that several, none of them the number 1, have wherever they can be broadcast, None if unknown.

    Of ``n`` and ``smaller(n, 1024)`` one can be 1 only where both are, so that they are equal or the runtime refuses.
    """
    rest = [item for item in items if not any(_is_bounded(item, other) for other in items)]
    return 1 if not items else rest[0] if len(rest) == 1 else None


def _is_bounded(item: Item, other: Item) -> bool:
    """Tell whether an item is the smaller one of another item and a number above 1."""
    match item.key() if isinstance(item, Expr) else None:
        case ("smaller", frozenset(pair)) if other in pair:
            return all(isinstance(left, int) and left > 1 for left in pair - {other})
    return False
