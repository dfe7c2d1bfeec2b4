"""Find passes and targets by name, built-in and vendors' alike, through entry points."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from onnxedge.errors import UserError, did_you_mean, first_line
from onnxedge.importance import Score
from onnxedge.passes import Pass
from onnxedge.target import Target, load_packaged_target, load_target_file

PASSES = "onnxedge.passes"
TARGETS = "onnxedge.targets"
IMPORTANCE = "onnxedge.importance"


@dataclass(frozen=True)
class Entry:
    """Tell where a pass or target comes from.

    Attributes:
        name: name in pipelines or for ``--target``.
        distribution: the installed distribution that brings it, with its version.
        error: why it cannot be used, one line; empty when it can.
    """

    name: str
    distribution: str
    error: str = ""


_installed = functools.cache(entry_points)  #: those of all groups: each look reads a file of every distribution


@functools.cache
def _entry_points(group: str) -> dict[str, list[EntryPoint]]:
    found: dict[str, list[EntryPoint]] = {}
    for point in sorted(_installed().select(group=group), key=lambda p: (p.name, p.value)):
        same = found.setdefault(point.name, [])
        if all(other.value != point.value for other in same):
            same.append(point)
    return found


def pass_names() -> list[str]:
    """Return the names of all registered passes, usable or not."""
    return list(_entry_points(PASSES))


def find_pass(name: str) -> type[Pass]:
    """Return the class of a pass.

    Raises:
        UserError: no such pass, two distributions that claim the name, or a plugin that does not load.
    """
    point = _one(PASSES, "pass", name)
    try:
        cls = point.load()
    except Exception as err:  # a vendor's module may raise anything; it harms nothing until it is used
        raise UserError(
            f"pass {name!r} of {_origin(point)} does not load: {type(err).__name__}: {first_line(err)}"
        ) from err
    if not (isinstance(cls, type) and issubclass(cls, Pass)):
        raise UserError(
            f"pass {name!r} of {_origin(point)} does not load: {point.value} is no subclass of onnxedge.api.Pass"
        )
    if getattr(cls, "name", None) != name:
        raise UserError(
            f"pass {name!r} of {_origin(point)} does not load: its class calls itself {getattr(cls, 'name', None)!r}"
        )
    return cls


def find_target(name: str) -> Target:
    """Return a target by its name, or from a TOML file whose path is given.

    Raises:
        UserError: no such target, or a file that does not describe one.
    """
    if name.endswith(".toml"):
        return load_target_file(Path(name))
    point = _one(TARGETS, "target", name)
    try:
        return load_packaged_target(point.module, name)
    except UserError:
        raise
    except Exception as err:  # as above
        raise UserError(
            f"target {name!r} of {_origin(point)} does not load: {type(err).__name__}: {first_line(err)}"
        ) from err


def find_importance(name: str) -> Score:
    """Return how the channels of a group are ranked.

    Raises:
        UserError: no such importance, two distributions that claim the name, or a plugin that does not load.
    """
    point = _one(IMPORTANCE, "importance", name)
    try:
        score = point.load()
    except Exception as err:  # as above
        raise UserError(
            f"importance {name!r} of {_origin(point)} does not load: {type(err).__name__}: {first_line(err)}"
        ) from err
    if not callable(score):
        raise UserError(f"importance {name!r} of {_origin(point)} does not load: {point.value} is no function")
    return score  # type: ignore[no-any-return]


def importance_names() -> list[str]:
    """Return the names of all registered importances, usable or not."""
    return list(_entry_points(IMPORTANCE))


def list_passes() -> list[tuple[Entry, type[Pass] | None]]:
    """Return every registered pass with its class, or with the error that keeps it from loading."""
    listed: list[tuple[Entry, type[Pass] | None]] = []
    for name, points in _entry_points(PASSES).items():
        try:
            listed.append((Entry(name, _origin(points[0])), find_pass(name)))
        except UserError as err:
            listed.append((Entry(name, _origin(points[0]), str(err)), None))
    return listed


def list_targets() -> list[tuple[Entry, Target | None]]:
    """Return every registered target, or the error that keeps it from loading."""
    listed: list[tuple[Entry, Target | None]] = []
    for name, points in _entry_points(TARGETS).items():
        try:
            listed.append((Entry(name, _origin(points[0])), find_target(name)))
        except UserError as err:
            listed.append((Entry(name, _origin(points[0]), str(err)), None))
    return listed


def _one(group: str, kind: str, name: str) -> EntryPoint:
    points = _entry_points(group).get(name)
    if not points:
        known = _entry_points(group)
        listed = f"; 'onnxedge {group.split('.')[-1]}' lists what there is"
        hint = did_you_mean(name, known) or (f"; known are {', '.join(known)}" if group == IMPORTANCE else listed)
        raise UserError(f"no {kind} is called {name!r}{hint}")
    if len(points) > 1:
        raise UserError(f"{kind} {name!r} is claimed by {' and '.join(_origin(p) for p in points)}; uninstall one")
    return points[0]


def _origin(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist is not None else point.value
