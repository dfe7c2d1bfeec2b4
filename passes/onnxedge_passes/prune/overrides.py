"""What a user says of single layers: groups that stay whole, and groups whose width is given."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from fractions import Fraction

from onnxedge.api import Context, UserError
from onnxedge_passes.prune.allocation import share_of
from onnxedge_passes.prune.groups import Group, Groups


def shares(texts: Sequence[str]) -> dict[str, float]:
    """Read ``pattern:share`` texts.

    Raises:
        UserError: no share above 0 and up to 1 behind the last colon.
    """
    found = {}
    for text in texts:
        pattern, colon, number = text.rpartition(":")
        try:
            share = float(Fraction(number.removesuffix("%"))) / (100 if number.endswith("%") else 1)
        except (ValueError, ZeroDivisionError, OverflowError):
            share = 0.0
        if not colon or not pattern or not 0 < share <= 1:
            raise UserError(
                f"prune: keep: {text!r} needs a pattern of names, a colon and a share, such as layer1*:0.75"
            )
        found[pattern] = share
    return found


def restricted(
    groups: Groups, choices: Sequence[list[int]], keep: Sequence[str], exclude: Sequence[str]
) -> list[list[int]]:
    """Return the widths that groups may have: one alone for those that ``keep`` or ``exclude`` names."""
    given = shares(keep)
    result = []
    for group, allowed in zip(groups.free, choices, strict=True):
        share = next((share for pattern, share in given.items() if _matches(group, pattern)), None)
        if any(_matches(group, pattern) for pattern in exclude):
            share = 1.0
        result.append(allowed if share is None else [share_of(allowed, share)])
    return result


def tell_unused(groups: Groups, patterns: Sequence[str], context: Context) -> None:
    """Note the patterns that name no group that could be cut."""
    for pattern in patterns:
        if not any(_matches(group, pattern) for group in groups.free):
            context.note(None, f"keep, exclude: {pattern!r} names no contraction whose channels can be removed")


def _matches(group: Group, pattern: str) -> bool:
    return any(fnmatchcase(reader.node.name or "", pattern) for reader in group.begins)
