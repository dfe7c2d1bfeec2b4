"""The text of a target file put over that of the target that it is based on."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from importlib import resources
from typing import Any

from onnxedge.errors import UserError, did_you_mean, first_line

BUILT_IN = "onnxedge.targets"  #: package of the target files that come with onnxedge


def read_table(source: str, text: str, package: str, above: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return what TOML text says, put over what its base says.

    Args:
        source: where the text comes from.
        text: TOML.
        package: where bases are looked for first.
        above: bases on the way here.

    Raises:
        UserError: no TOML, or no such base.
    """
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as err:
        raise UserError(f"target {source}: not valid TOML: {first_line(err)}") from err
    base = table.pop("base", None)
    if base is None:
        return table
    if not isinstance(base, str):
        raise UserError(f"target {source}: base: {base!r} is not of type str")
    if base in above:
        raise UserError(f"target {source}: base: {' -> '.join((*above, base))} goes round in a circle")
    for place in dict.fromkeys((package, BUILT_IN)):
        file = resources.files(place) / f"{base}.toml"
        if file.is_file():
            below = read_table(f"{place}/{base}.toml", file.read_text("utf-8"), place, (*above, base))
            return _merged(below, table)
    names = [file.name.removesuffix(".toml") for file in resources.files(BUILT_IN).iterdir()]
    raise UserError(f"target {source}: base: there is no target file {base!r}{did_you_mean(base, names)}")


def _merged(below: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return one table put over another, key by key at every depth."""
    merged = dict(below)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged
