"""``onnxedge distill``, ``finetune`` and ``compress``: what reaches the driver, recipes, and wrong input."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from samples import a_report, run

from onnxedge import driver
from onnxedge.cli.compress import RECIPE
from onnxedge.pipeline import parse_pipeline
from onnxedge.recipe import read_recipe
from onnxedge.registry import find_pass

FIXTURE = Path(__file__).parent.parent / "fixtures" / "digits_resnet.onnx"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, dict[str, Any]]]:
    """Return the calls of the driver, which is replaced by one that gives the report of :func:`a_report`."""
    seen: list[tuple[Path, dict[str, Any]]] = []

    def optimize(model: Path, **options: Any) -> Any:
        seen.append((model, {k: v for k, v in options.items() if k not in ("progress", "watch")}))
        parse_pipeline(options["passes"], find_pass, options["overrides"])
        return driver.Optimized(None, a_report(), options["output"])  # type: ignore[arg-type]

    monkeypatch.setattr(driver, "optimize", optimize)
    return seen


def test_distill(calls: list[tuple[Path, dict[str, Any]]]) -> None:
    text = (
        "distill s.onnx --teacher t.onnx --train a.npz --eval b.npz --preprocess scale=1/255 --epochs 5 --minutes 2.5 "
        "--lr 0.01 --batch 32 --temperature 2 --alpha 0.5 --feature a --feature b=c --augment flip --augment crop:4 "
        "--option weight_decay=0.1 --option optimizer=sgd --threads 2 --seed 3 --max-drop 1% --report r.html"
    )
    result = run(*text.split())
    assert result.exit_code == 0, result.output
    assert calls == [
        (
            Path("s.onnx"),
            {
                "passes": "distill",
                "train": "a.npz",
                "eval": "b.npz",
                "preprocess": "scale=1/255",
                "output": Path("s.distilled.onnx"),
                "report": Path("r.html"),
                "threads": 2,
                "seed": 3,
                "max_drop": 0.01,
                "keep": (Path("t.onnx"),),
                "overrides": {
                    "distill": {
                        "epochs": 5,
                        "minutes": 2.5,
                        "lr": 0.01,
                        "batch": 32,
                        "augment": ["flip", "crop:4"],
                        "temperature": 2.0,
                        "alpha": 0.5,
                        "features": ["a", "b=c"],
                        "weight_decay": "0.1",
                        "optimizer": "sgd",
                        "teacher": "t.onnx",
                    }
                },
            },
        )
    ]


def test_finetune(calls: list[tuple[Path, dict[str, Any]]]) -> None:
    result = run("finetune", "m.onnx", "--train", "a.npz", "--epochs", "2", "--option", "smoothing=0.1", "-o", "o.onnx")
    assert result.exit_code == 0, result.output
    settings = calls[0][1]
    assert (settings["passes"], settings["output"]) == ("finetune", Path("o.onnx"))
    assert settings["overrides"] == {"finetune": {"epochs": 2, "smoothing": "0.1"}}


def test_samples_to_train_on_are_called_data_too(calls: list[tuple[Path, dict[str, Any]]]) -> None:
    result = run("distill", "s.onnx", "--teacher", "t.onnx", "--data", "a.npz", "--option", "tasks=[a,b=1:0.5]")
    assert result.exit_code == 0, result.output
    assert calls[0][1]["train"] == "a.npz"
    assert calls[0][1]["overrides"]["distill"]["tasks"] == ["a", "b=1:0.5"]


def test_optimize_takes_samples_to_train_on(calls: list[tuple[Path, dict[str, Any]]]) -> None:
    assert run("optimize", "m.onnx", "--passes", "prune,distill", "--train", "a.npz").exit_code == 0
    assert calls[0][1]["train"] == "a.npz"


RECIPES = {
    "r.toml": 'teacher = "big.onnx"\ntrain = "t.npz"\neval = "mod:fn"\n[options.distill]\nepochs = 7\n'
    'augment = ["flip"]',
    "r.yaml": "train: t.npz\neval: mod:fn\noptions: {distill: {epochs: 7, augment: [flip]}}\nteacher: big.onnx",
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_of_distill(name: str, tmp_path: Path, calls: list[tuple[Path, dict[str, Any]]]) -> None:
    (tmp_path / name).write_text(RECIPES[name])
    result = run("distill", "s.onnx", "--recipe", tmp_path / name, "--epochs", "3")
    assert result.exit_code == 0, result.output
    settings = calls[0][1]
    assert settings["train"] == str(tmp_path / "t.npz")
    assert settings["eval"] == "mod:fn"
    assert settings["overrides"]["distill"] == {"epochs": 3, "augment": ["flip"], "teacher": str(tmp_path / "big.onnx")}
    assert settings["keep"] == (tmp_path / name, tmp_path / "big.onnx")


def test_compress_runs_the_recipe_that_comes_along(calls: list[tuple[Path, dict[str, Any]]]) -> None:
    result = run("compress", "m.onnx", "--train", "t.npz", "--calib", "c.npz", "--eval", "e.npz", "--epochs", "4")
    assert result.exit_code == 0, result.output
    settings = calls[0][1]
    packaged = read_recipe(RECIPE)
    assert settings["passes"] == packaged.settings["passes"] == "prune(macs=0.5,repair=block),distill,fuse,int8"
    assert settings["overrides"]["distill"] == {**packaged.overrides["distill"], "epochs": 4}
    assert settings["output"] == Path("m.compressed.onnx")
    assert settings["max_drop"] == 0.02
    assert run("compress", "m.onnx", "--train", "t.npz", "--macs", "0.3").exit_code == 0
    assert calls[1][1]["passes"] == "prune(macs=0.3,repair=block),distill,fuse,int8"


def test_compress_by_a_recipe_of_ones_own(tmp_path: Path, calls: list[tuple[Path, dict[str, Any]]]) -> None:
    (tmp_path / "r.toml").write_text('passes = "prune(macs=0.7),finetune"\ntrain = "t.npz"')
    assert run("compress", "m.onnx", "--recipe", tmp_path / "r.toml", "--lr", "0.1").exit_code == 0
    assert calls[0][1]["passes"] == "prune(macs=0.7),finetune"
    assert calls[0][1]["overrides"] == {"finetune": {"lr": 0.1}}


def test_the_recipe_can_be_shown() -> None:
    result = run("compress", "--show-recipe")
    assert (result.exit_code, result.stdout) == (0, RECIPE.read_text("utf-8"))


ABSENT = ["--train", "absent.npz"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["distill"], "missing argument 'STUDENT'"),
        (["distill", "s.onnx", "--train", "t.npz"], "distill: needs a teacher; give --teacher FILE"),
        (["distill", str(FIXTURE), "--teacher", "absent.onnx", *ABSENT], "absent.npz: no such file"),
        (["distill", str(FIXTURE), "--teacher", str(FIXTURE)], "distill: needs samples to train on; give --train DATA"),
        (
            ["distill", str(FIXTURE), "--teacher", "absent.onnx", "--train", "x.npz"],
            "teacher=absent.onnx: no such file",
        ),
        (["distill", "absent.onnx", "--teacher", "t.onnx", "--train", "x.npz"], "absent.onnx: no such file"),
        (["distill", "s.onnx", "--teacher", "t.onnx", "--option", "x"], "--option 'x': needs KEY=VALUE"),
        (["distill", "s.onnx", "--teacher", "t.onnx", "--option", "a=1", "--option", "a=2"], "'a' is given twice"),
        (["distill", str(FIXTURE), "--teacher", "t.onnx", "--option", "epoch=3"], "did you mean 'epochs'?"),
        (["distill", str(FIXTURE), "--teacher", "t.onnx", "--option", "optimizer=adam"], "did you mean 'adamw'?"),
        (["distill", "s.onnx", "--teacher", "t.onnx", "--alpha", "2"], "2.0 is not in the range"),
        (["distill", "s.onnx", "--teacher", "t.onnx", "--epochs", "0"], "0 is not in the range"),
        (["finetune", str(FIXTURE)], "finetune: needs samples to train on; give --train DATA"),
        (["finetune", str(FIXTURE), "--train", "x.npz"], "finetune: needs labels, x.npz has none; give an array `y`"),
        (["finetune", str(FIXTURE), "--train", "y.npz", "--augment", "flop"], "no step 'flop'; did you mean 'flip'?"),
        (
            ["finetune", str(FIXTURE), "--train", "y.npz", "--option", "engine=ort-training"],
            "run `onnxedge training install`",
        ),
        (["finetune", str(FIXTURE), "--train", "y.npz", "-o", "y.npz"], "the input is never overwritten"),
        (["compress"], "compress: needs a model"),
        (["compress", "m.onnx"], "compress: needs samples to train on; give --train DATA"),
        (["compress", "m.onnx", "--train", "t.npz", "--recipe", "r.toml"], "has no passes"),
        (["compress", "m.onnx", "--train", "t.npz", "--recipe", "f.toml", "--epochs", "2"], "no pass of 'fuse' trains"),
        (["compress", "m.onnx", "--train", "t.npz", "--recipe", "f.toml", "--macs", "0.5"], "takes --macs"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ONNXEDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ONNXEDGE_TRAINING", str(tmp_path))
    x = np.zeros((8, 1, 32, 32), np.uint8)
    np.savez("x.npz", x=x)
    np.savez("y.npz", x=x, y=np.arange(8))
    Path("r.toml").write_text("seed = 1\n")
    Path("f.toml").write_text('passes = "fuse"\n')
    if "t.onnx" in arguments and "absent.onnx" not in arguments:
        Path("t.onnx").write_bytes(FIXTURE.read_bytes())
    before = sorted(tmp_path.iterdir())
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    lines = result.stderr.splitlines()
    assert len(lines) == 1, lines
    assert message in lines[0]
    assert sorted(tmp_path.iterdir()) == before


def test_commands_have_help() -> None:
    for name in ("distill", "finetune", "compress"):
        result = run(name, "--help")
        assert result.exit_code == 0
        assert re.search(r"--train, --data DATA\s+Samples to train on", result.stdout)
        assert name in run("--help").stdout
