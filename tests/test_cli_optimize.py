"""``onnxedge optimize``: what the options and the recipe say is what the driver gets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from samples import a_report, run

from onnxedge import driver
from onnxedge.cli.optimize import default_output
from onnxedge.cli.options import read_input_shapes, read_share
from onnxedge.errors import UserError


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, dict[str, Any]]]:
    """Return the calls of the driver, which is replaced by one that gives the report of :func:`a_report`."""
    seen: list[tuple[Path, dict[str, Any]]] = []

    def optimize(model: Path, **options: Any) -> Any:
        seen.append((model, {k: v for k, v in options.items() if k not in ("progress", "watch")}))
        options["watch"]("1/1 fuse")
        assert list(options["progress"].track([1, 2], "counting")) == [1, 2]
        return driver.Optimized(None, a_report(), options["output"])  # type: ignore[arg-type]

    monkeypatch.setattr(driver, "optimize", optimize)
    return seen


def test_defaults_are_the_drivers(calls: list[tuple[Path, dict[str, Any]]]) -> None:
    assert run("optimize", "net/model.onnx").exit_code == 0
    options = {"passes": "fold,fuse", "output": Path("net/model.optimized.onnx"), "overrides": {}, "keep": ()}
    assert calls == [(Path("net/model.onnx"), options)]


@pytest.mark.parametrize(
    ("model", "output"),
    [("a/b.onnx", "a/b.optimized.onnx"), ("b", "b.optimized.onnx"), ("v1.2.onnx", "v1.2.optimized.onnx")],
)
def test_default_output(model: str, output: str) -> None:
    assert default_output(Path(model)) == Path(output)


def test_all_options_reach_the_driver(calls: list[tuple[Path, dict[str, Any]]]) -> None:
    text = (
        "--passes prune,int8 --target tensorrt --calib c.npz --eval mod:fn --preprocess scale=1/255 -o out.onnx "
        "--verify off --strict --dump-dir d --seed 7 --threads 2 --input-shape in:0:1x3 --input-shape b:4 "
        "--max-drop 1.5% --metric top5 -q"
    )
    result = run("optimize", "m.onnx", "--report", "r.json", *text.split())
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")
    assert calls[0][1] == {
        "passes": "prune,int8",
        "target": "tensorrt",
        "calib": "c.npz",
        "eval": "mod:fn",
        "preprocess": "scale=1/255",
        "output": Path("out.onnx"),
        "report": Path("r.json"),
        "verify": "off",
        "strict": True,
        "dump_dir": Path("d"),
        "seed": 7,
        "threads": 2,
        "input_shapes": {"in:0": (1, 3), "b": (4,)},
        "max_drop": 0.015,
        "metric": "top5",
        "overrides": {},
        "keep": (),
    }


TOML = """
passes = ["prune(macs=0.5)", "int8"]
target = "chips/mine.toml"
calib = "data/c.npz"
eval = "package.module:function"
output = "small.onnx"
seed = 3
strict = true
max_drop = "1%"
input_shapes = { x = [1, 3] }

[options.int8]
skip = ["head/*", 3, true]
percentile = 99.9
"""
YAML = """
passes: [prune(macs=0.5), int8]
target: chips/mine.toml
calib: data/c.npz
eval: package.module:function
output: small.onnx
seed: 3
strict: true
max_drop: 1%
input_shapes: {x: [1, 3]}
options:
  int8: {skip: [head/*, 3, true], percentile: 99.9}
"""


@pytest.mark.parametrize(("name", "text"), [("recipe.toml", TOML), ("recipe.yaml", YAML)])
def test_a_recipe(name: str, text: str, tmp_path: Path, calls: list[tuple[Path, dict[str, Any]]]) -> None:
    (tmp_path / name).write_text(text)
    result = run("optimize", "m.onnx", "--recipe", tmp_path / name, "--seed", "4", "-o", "mine.onnx")
    assert result.exit_code == 0, result.output
    assert calls[0][1] == {
        "passes": "prune(macs=0.5),int8",
        "target": str(tmp_path / "chips/mine.toml"),
        "calib": str(tmp_path / "data/c.npz"),
        "eval": "package.module:function",
        "output": Path("mine.onnx"),
        "seed": 4,
        "strict": True,
        "max_drop": 0.01,
        "input_shapes": {"x": (1, 3)},
        "overrides": {"int8": {"skip": ["head/*", "3", "true"], "percentile": 99.9}},
        "keep": (tmp_path / name,),
    }


@pytest.mark.parametrize("text", ["x", "x:", ":1x2", "x:1x-2", "x:1xx2", "x:0", "x:1,2", "x:1x²", "x:99999999999"])
def test_input_shapes_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match="needs NAME:DIMxDIM"):
        read_input_shapes([text])


def test_an_input_shape_twice() -> None:
    with pytest.raises(UserError, match="'x' is given twice"):
        read_input_shapes(["x:1x2", "x:2x2"])


@pytest.mark.parametrize(("text", "share"), [("2%", 0.02), ("0.5", 0.5), ("100 %", 1.0), ("0", 0.0), (" 1e-2 ", 0.01)])
def test_shares(text: str, share: float) -> None:
    assert read_share(text, "--max-drop") == share


@pytest.mark.parametrize("text", ["", "%", "two", "nan", "inf", "-1%", "101%", "2"])
def test_shares_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match="--max-drop"):
        read_share(text, "--max-drop")


def test_piped_output_is_plain(calls: list[tuple[Path, dict[str, Any]]]) -> None:
    result = run("optimize", "m.onnx")
    assert "\x1b" not in result.output
    assert result.stderr == ""
    assert "written: net/digits.optimized.onnx" in result.stdout


def test_verbose_tells_every_step(calls: list[tuple[Path, dict[str, Any]]]) -> None:
    assert "1/1 fuse" in run("optimize", "m.onnx", "--verbose").stderr
