"""The house keeps its order: imports run one way, and no built-in pass has a private road."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
COMPILER = ROOT / "onnxedge"
PASSES = ROOT / "passes" / "onnxedge_passes"

#: From the top down; a module imports its own layer and those below. A package stands for all that is in it.
LAYERS = (
    ("cli", "__main__"),
    ("search", "bisect"),
    ("comparison", "sensitivity"),
    ("resume",),
    ("driver", "recipe"),
    ("manager", "never_worse", "samples", "inspection", "channels", "documentation"),
    ("pipeline", "measure", "probe", "stage"),
    ("registry", "verify", "report", "bridges", "placement", "training"),
    ("passes", "parts", "importance"),
    ("data", "metrics"),
    ("operators", "target", "target_table", "targets", "runtime", "probe_child", "autodiff"),
    ("model",),
    ("errors",),
)
OPEN = {"__init__", "api"}  #: re-exports, made of all layers


def modules(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """Yield the dotted modules that a file imports anywhere, inside functions and under TYPE_CHECKING too."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                package = path.relative_to(ROOT).parts[: -node.level]
                yield ".".join((*package, *([node.module] if node.module else [])))
                continue
            assert node.module is not None
            if node.module == "onnxedge":
                yield from (f"onnxedge.{alias.name}" for alias in node.names)
            else:
                yield node.module


def top(module: str) -> str:
    """Return the part of the house that a module of onnxedge belongs to."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def layer(part: str) -> int:
    for height, names in enumerate(reversed(LAYERS)):
        if part in names:
            return height
    raise AssertionError(f"onnxedge.{part} is in no layer; give it one in LAYERS")


@pytest.mark.parametrize("path", modules(COMPILER), ids=lambda p: str(p.relative_to(COMPILER)))
def test_imports_run_one_way(path: Path) -> None:
    part = top(".".join(("onnxedge", *path.relative_to(COMPILER).with_suffix("").parts)))
    if part in OPEN:
        return
    for module in imports(path):
        below = top(module)
        if module.split(".")[0] != "onnxedge" or below.startswith("__") or below == part:
            continue
        assert below != "api", f"{part} imports the api: that is for users and passes"
        assert layer(below) <= layer(part), f"{part} imports {below}, which lies above it"


@pytest.mark.parametrize("path", modules(COMPILER), ids=lambda p: str(p.relative_to(COMPILER)))
def test_the_compiler_knows_no_pass(path: Path) -> None:
    assert not [module for module in imports(path) if module.split(".")[0] == "onnxedge_passes"]


@pytest.mark.parametrize("path", modules(PASSES), ids=lambda p: str(p.relative_to(PASSES)))
def test_passes_import_the_api_alone(path: Path) -> None:
    ours = {module for module in imports(path) if module.split(".")[0] == "onnxedge"}
    assert ours <= {"onnxedge.api"}


def test_every_layer_exists() -> None:
    later = {"search", "bisect"}
    parts = {p.stem for p in COMPILER.glob("*.py")} | {p.name for p in COMPILER.iterdir() if p.is_dir()}
    assert {name for names in LAYERS for name in names} - later <= parts
