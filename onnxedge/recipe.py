"""Recipe files: a run of ``optimize`` as TOML or YAML, with options per pass.

::

    passes = "prune(macs=0.5),fuse,int8"    # or a list of texts
    calib = "calib.npz"                     # paths are relative to the recipe's folder
    train = "train.npz"                     # for passes that train; teacher = "big.onnx" for distill
    max_drop = "1%"

    [options.int8]                          # options of a pass; those written in ``passes`` win
    skip = ["head/*"]
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnxedge.errors import UserError, did_you_mean, first_line

SIZE_LIMIT_BYTES = 1 << 20  #: a recipe is written by hand; what is larger is another file

_FUNCTION = re.compile(r"[A-Za-z_]\w+(\.\w+)*:[A-Za-z_]\w*")  #: ``module:function``, no path


@dataclass(frozen=True)
class Recipe:
    """Hold what a recipe file says.

    Attributes:
        settings: arguments of :func:`onnxedge.driver.optimize` by name; only what the file gives.
        overrides: pass name -> option -> value.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def read_recipe(path: Path) -> Recipe:
    """Read a recipe.

    Raises:
        UserError: no such file, neither TOML nor YAML, an unknown key, or a value of the wrong type.
    """
    table = _table(path)
    settings: dict[str, Any] = {}
    overrides: dict[str, dict[str, Any]] = {}
    teacher = ""
    for key, value in table.items():
        if key == "options":
            overrides = _overrides(value, path)
        elif key == "teacher":
            teacher = str(_path(value, f"recipe {path}: {key}", path.parent))
        elif key in _READERS:
            settings[key] = _READERS[key](value, f"recipe {path}: {key}", path.parent)
        else:
            known = (*_READERS, "teacher", "options")
            hint = did_you_mean(key, known) or f"; known are {', '.join(known)}"
            raise UserError(f"recipe {path}: unknown key {key!r}{hint}")
    if teacher:
        overrides["distill"] = {**overrides.get("distill", {}), "teacher": teacher}
    return Recipe(settings, overrides)


def _table(path: Path) -> Mapping[str, Any]:
    suffix = path.suffix.lower()
    if suffix not in (".toml", ".yaml", ".yml"):
        raise UserError(f"recipe {path}: ends in {suffix or 'no suffix'}; needs .toml, .yaml or .yml")
    try:
        if path.is_file() and path.stat().st_size > SIZE_LIMIT_BYTES:
            raise UserError(f"recipe {path}: has {path.stat().st_size} bytes; a recipe has at most {SIZE_LIMIT_BYTES}")
        text = path.read_text("utf-8")
    except FileNotFoundError as err:
        raise UserError(f"recipe {path}: no such file") from err
    except (OSError, UnicodeDecodeError) as err:
        raise UserError(f"recipe {path}: cannot be read: {first_line(err)}") from err
    table = _toml(text, path) if suffix == ".toml" else _yaml(text, path)
    if not isinstance(table, dict):
        raise UserError(f"recipe {path}: needs keys with values, such as 'passes: fuse,int8'")
    return {str(key): value for key, value in table.items()}


def _toml(text: str, path: Path) -> Any:
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as err:
        raise UserError(f"recipe {path}: not valid TOML: {first_line(err)}") from err


def _yaml(text: str, path: Path) -> Any:
    import yaml

    try:
        return yaml.safe_load(text) or {}
    except (yaml.YAMLError, ValueError, RecursionError) as err:  # ValueError: a date that does not exist
        raise UserError(f"recipe {path}: not valid YAML: {first_line(err)}") from err


def _overrides(value: Any, path: Path) -> dict[str, dict[str, Any]]:
    if not isinstance(value, dict) or not all(isinstance(table, dict) for table in value.values()):
        raise UserError(f"recipe {path}: options: needs one table a pass, such as [options.int8]")
    return {str(name): {str(key): _option(item) for key, item in table.items()} for name, table in value.items()}


def _option(value: Any) -> Any:
    """Return an option as the pipeline reads it: the items of a list as they would be written in a pipeline text."""
    if not isinstance(value, list):
        return value
    return [_option(v) if isinstance(v, list) else str(v).lower() if isinstance(v, bool) else str(v) for v in value]


def _text(value: Any, where: str, folder: Path) -> str:
    del folder
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where}: {value!r} is no text")
    return value


def _passes(value: Any, where: str, folder: Path) -> str:
    if isinstance(value, list) and value:
        return ",".join(_text(item, where, folder) for item in value)
    return _text(value, where, folder)


def _number(least: int) -> Callable[[Any, str, Path], int]:
    def read(value: Any, where: str, folder: Path) -> int:
        del folder
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**63:
            raise UserError(f"{where}: {value!r} is no whole number of at least {least}")
        return value

    return read


def _yes_no(value: Any, where: str, folder: Path) -> bool:
    del folder
    if not isinstance(value, bool):
        raise UserError(f"{where}: {value!r} is neither true nor false")
    return value


def _verify(value: Any, where: str, folder: Path) -> str:
    del folder
    if value is False:
        return "off"  # YAML reads the bare word so
    if value not in ("off", "structure", "numeric"):
        raise UserError(f"{where}: {value!r} is none of off, structure, numeric")
    return str(value)


def _share(value: Any, where: str, folder: Path) -> str | float:
    del folder
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UserError(f"{where}: {value!r} is no share, such as 0.02 or '2%'")
    return value


def _size(value: Any, where: str, folder: Path) -> str | int:
    del folder
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise UserError(f"{where}: {value!r} is no size, such as '16GiB'")
    return value


def _path(value: Any, where: str, folder: Path) -> Path:
    return folder / _text(value, where, folder)


def _source(value: Any, where: str, folder: Path) -> str:
    """Return a data source: a ``module:function`` as it is, a path from the recipe's folder."""
    text = _text(value, where, folder)
    return text if _FUNCTION.fullmatch(text) else str(folder / text)


def _target(value: Any, where: str, folder: Path) -> str:
    text = _text(value, where, folder)
    return str(folder / text) if text.endswith(".toml") else text


def _input_shapes(value: Any, where: str, folder: Path) -> dict[str, tuple[int, ...]]:
    if not isinstance(value, dict) or not all(isinstance(dims, list) for dims in value.values()):
        raise UserError(f"{where}: needs a table of shapes, such as input = [1, 3, 224, 224]")
    read = _number(1)
    return {str(name): tuple(read(dim, f"{where}: {name}", folder) for dim in dims) for name, dims in value.items()}


_READERS: Mapping[str, Callable[[Any, str, Path], Any]] = {
    "passes": _passes,
    "target": _target,
    "calib": _source,
    "eval": _source,
    "train": _source,
    "preprocess": _text,
    "output": _path,
    "report": _path,
    "seed": _number(0),
    "threads": _number(1),
    "verify": _verify,
    "measure": _yes_no,
    "memory": _size,
    "strict": _yes_no,
    "max_drop": _share,
    "metric": _text,
    "input_shapes": _input_shapes,
}
