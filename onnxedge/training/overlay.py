"""Where onnxruntime-training lies: a folder of its own, never in the environment of ``onnxruntime``."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from onnxedge.errors import UserError
from onnxedge.model.files import cache_folder, write_whole

PACKAGE, VERSION = "onnxruntime-training-cpu", "1.19.2"
_OLDEST, _NEWEST = (3, 10), (3, 12)  #: Python that the worker is written for, and that there are wheels for
_SECONDS = 600  #: for pip
_COMMAND = "onnxedge training install"


@dataclass(frozen=True)
class Environment:
    """Name the interpreter that a worker runs in, and the folder that it finds onnxruntime-training in, if any."""

    python: str
    overlay: Path | None


def overlay_home() -> Path:
    """Return the folder that holds overlays, and the record of the one that is used."""
    return cache_folder() / "training"


def find_environment() -> Environment | None:
    """Return what was installed last and is still there, or ``$ONNXEDGE_TRAINING``, a folder made by pip --target."""
    given = os.environ.get("ONNXEDGE_TRAINING")
    if given:
        folder = Path(given)
        return Environment(sys.executable, folder) if (folder / "onnxruntime").is_dir() else None
    try:
        record = json.loads((overlay_home() / "environment.json").read_text("utf-8"))
        found = Environment(str(record["python"]), Path(record["overlay"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    there = Path(found.python).is_file() and (Path(record["overlay"]) / "onnxruntime").is_dir()
    return found if there else None


def own_environment() -> Environment:
    """Return this interpreter, with what is installed beside it."""
    return Environment(sys.executable, None)


def environment() -> Environment:
    """Return where onnxruntime-training lies.

    Raises:
        UserError: nowhere; one line with the command that installs it.
    """
    found = find_environment()
    if found is None:
        where = os.environ.get("ONNXEDGE_TRAINING")
        lacks = f"$ONNXEDGE_TRAINING={where} holds no onnxruntime" if where else f"{PACKAGE} is not installed"
        raise UserError(f"ort-training: {lacks}; run `{_COMMAND}`")
    return found


def install(python: str = "") -> Environment:
    """Put onnxruntime-training into a folder of its own, by pip and without its dependencies.

    Args:
        python: interpreter whose pip is asked and that workers run in; it has numpy and onnx. This one where empty.

    Raises:
        UserError: there is no wheel for the interpreter, pip fails, or what it installed cannot be imported.
    """
    python = python or sys.executable
    version = _version(python)
    if not _OLDEST <= version <= _NEWEST:
        shown, oldest, newest = (".".join(map(str, v)) for v in (version, _OLDEST, _NEWEST))
        raise UserError(
            f"training install: {PACKAGE} {VERSION} cannot be used with Python {shown}; "
            f"name one of {oldest} to {newest} that has numpy and onnx: `{_COMMAND} --python PATH`"
        )
    home = overlay_home()
    folder, partial = home / f"{VERSION}-cp{version[0]}{version[1]}", home / ".partial"
    home.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        pip = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check"]
        _run([*pip, "--target", str(partial), f"{PACKAGE}=={VERSION}"], "pip", {})
        _run([python, "-c", _PROBE], "the worker", {"PYTHONPATH": str(partial)})
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    record = {"python": python, "overlay": str(folder)}
    write_whole(home / "environment.json", json.dumps(record).encode())
    return Environment(python, folder)


#: What a worker does first: import what it needs, with the two modules away that import PyTorch.
_PROBE = """
import sys, types
for name in ("optim", "amp"):
    sys.modules["onnxruntime.training." + name] = types.ModuleType(name)
import numpy, onnx, onnxruntime.training.artifacts, onnxruntime.training.api
"""


def _version(python: str) -> tuple[int, int]:
    if python == sys.executable:
        return sys.version_info[:2]
    said = _run([python, "-c", "import sys; print(*sys.version_info[:2])"], "it", {})
    major, minor = said.split()[-2:]
    return int(major), int(minor)


def _run(command: list[str], who: str, environment: dict[str, str]) -> str:
    """Run a command and return what it said.

    Raises:
        UserError: it is not there, takes too long, or fails; with its last line.
    """
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as err:
        raise UserError(f"training install: {command[0]} cannot be run: {err}") from err
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
        errors = [line for line in said if line.startswith("ERROR")] or said[-1:] or ["it said nothing"]
        raise UserError(f"training install: {who} failed: {errors[0].removeprefix('ERROR: ').strip()[:300]}")
    return done.stdout
