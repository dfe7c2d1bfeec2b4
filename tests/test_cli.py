"""The command line: answers at once, one line an error, every command runs."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import onnx
import pytest
from click.testing import Result
from samples import run

from onnxedge import driver
from onnxedge.cli.console import Steps
from onnxedge.cli.options import complete_pipeline
from onnxedge.errors import PassError, UserError

HEAVY = ("numpy", "onnx", "onnx_ir", "onnxruntime", "rich", "onnxedge.passes", "onnxedge.registry")


def error_line(result: Result, code: int) -> str:
    """Return the only line of standard error of a run that failed as it should."""
    assert result.exit_code == code, result.output
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    assert result.stdout == ""
    return lines[0]


@pytest.mark.parametrize(
    "arguments",
    [("--help",), ("--version",), ("optimize", "--help"), ("sensitivity", "--help"), ("passes", "show", "--help")],
)
def test_help_imports_nothing_heavy(arguments: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "onnxedge", *arguments], capture_output=True, text=True, check=True
    )
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "click" in imported
    assert not imported & set(HEAVY)
    assert done.stdout


def test_completion_imports_nothing_heavy() -> None:
    script = (
        "import sys; from onnxedge.cli.options import complete_pipeline, complete_names;"
        "print([i.value for i in complete_names('onnxedge.targets', 'ort')]);"
        f"print(sorted(set({HEAVY!r}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["['ort-cpu', 'ort-cpu-avx2', 'ort-cuda']", "[]"]


def test_the_shell_completes_commands_and_targets() -> None:
    environment = {
        **os.environ,
        "_ONNXEDGE_COMPLETE": "bash_complete",
        "COMP_WORDS": "onnxedge insp",
        "COMP_CWORD": "1",
    }
    done = subprocess.run([sys.executable, "-m", "onnxedge"], capture_output=True, text=True, env=environment)
    assert done.stdout.split() == ["plain,inspect"]
    environment |= {"COMP_WORDS": "onnxedge inspect --target ort", "COMP_CWORD": "3"}
    done = subprocess.run([sys.executable, "-m", "onnxedge"], capture_output=True, text=True, env=environment)
    assert done.stdout.split() == ["plain,ort-cpu", "plain,ort-cpu-avx2", "plain,ort-cuda"]


def test_completion_of_a_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "onnxedge.cli.options.complete_names", lambda group, start: [click.shell_completion.CompletionItem(start + "x")]
    )
    complete: Callable[[Any, Any, str], list[Any]] = complete_pipeline
    assert [item.value for item in complete(None, None, "prune(macs=0.5),fu")] == ["prune(macs=0.5),fux"]
    assert complete(None, None, "prune(ma") == []


def test_every_command_has_help() -> None:
    result = run("--help")
    assert result.exit_code == 0
    for name in ("optimize", "inspect", "compare", "passes", "targets", "_ONNXEDGE_COMPLETE"):
        assert name in result.stdout
    assert "..." not in result.stdout.split("Commands:")[1].split("Examples:")[0], "a short help is cut"
    for name in ("optimize", "inspect", "compare", "passes", "targets"):
        assert run(name, "--help").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["optimise", "m.onnx"], "no such command 'optimise'"),
        (["optimize"], "missing argument 'MODEL'; see onnxedge optimize --help"),
        (["optimize", "m.onnx", "--pases", "fuse"], "no such option '--pases'"),
        (["optimize", "m.onnx", "--verify", "all"], "'all' is not one of 'off', 'structure', 'numeric'"),
        (["optimize", "m.onnx", "--threads", "0"], "0 is not in the range"),
        (["optimize", "m.onnx", "--seed", "one"], "'one' is not a valid integer"),
        (["optimize", "m.onnx", "--passes"], "requires an argument"),
        (["optimize", "a.onnx", "b.onnx"], "unexpected extra argument"),
        (["optimize", "m.onnx", "--max-drop", "2"], "--max-drop: '2' is not between 0 and 100 %"),
        (["optimize", "m.onnx", "--input-shape", "1x3"], "needs NAME:DIMxDIM"),
        (["optimize", "m.onnx", "--recipe", "r.txt"], "needs .toml, .yaml or .yml"),
        (["inspect", "absent.onnx"], "absent.onnx: no such file"),
        (["inspect", "absent.onnx", "--target", "ort-cqu"], "did you mean 'ort-cpu'?"),
        (["compare", "absent.onnx", "other.onnx"], "absent.onnx: no such file"),
        (["passes", "show", "nothing-like-it-at-all"], "no pass is called 'nothing-like-it-at-all'"),
        (["targets", "show", "absent.toml"], "cannot be read"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in error_line(run(*arguments), 2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("raised", "code", "line"),
    [
        (UserError("x.onnx: tensor 'a\nb\x1b[31m': broken"), 2, "error: x.onnx: tensor 'a\\nb\\x1b[31m': broken"),
        (
            PassError("fuse", "output 'y' is not bit-equal", Path("r")),
            1,
            "error: fuse: output 'y' is not bit-equal; reproducer in r",
        ),
        (
            MemoryError(),
            1,
            "error: out of memory; a smaller model, fewer samples or a machine with more memory is needed",
        ),
        (KeyError("k"), 1, "error: internal: KeyError: 'k'; run with --verbose for the traceback"),
    ],
)
def test_what_is_raised_becomes_one_line(
    raised: Exception, code: int, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise raised

    monkeypatch.setattr(driver, "optimize", fail)
    assert error_line(run("optimize", "m.onnx"), code) == line


def test_verbose_shows_the_traceback_of_a_fault_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise ValueError("inner")

    monkeypatch.setattr(driver, "optimize", fail)
    result = run("optimize", "m.onnx", "-v")
    assert result.exit_code == 1
    assert "Traceback (most recent call last)" in result.stderr
    assert result.stderr.splitlines()[-1] == "error: internal: ValueError: inner"


def test_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(driver, "optimize", interrupt)
    result = run("optimize", "m.onnx")
    assert result.exit_code == 130
    assert result.stderr.strip() == "interrupted"


def test_a_closed_pipe_is_no_error() -> None:
    done = subprocess.run(
        f"{sys.executable} -m onnxedge targets show ort-cpu | true", shell=True, capture_output=True, text=True
    )
    assert done.stderr == ""


def test_the_caret_is_for_people_alone(fixtures: Path) -> None:
    result = run("optimize", fixtures / "digits_resnet.onnx", "--passes", "nosuchpass(", "-o", "x.onnx")
    assert "column" in error_line(result, 2)


def test_progress_passes_everything_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    with Steps(delay=0.0) as steps:
        assert steps._timer is not None
        steps._timer.join()
        steps.watch("a step")
        assert list(steps.track(iter(range(5)), "counting")) == [0, 1, 2, 3, 4]
        for item in steps.track(range(5), "left early"):
            if item == 2:
                break


def test_lists() -> None:
    result = run("targets")
    assert result.exit_code == 0
    assert "ort-cpu" in result.stdout
    assert "onnxedge" in result.stdout
    result = run("passes")
    assert result.exit_code == 0
    assert "what it does" in result.stdout


def test_a_target_shows_its_rules(tmp_path: Path) -> None:
    (tmp_path / "chip.toml").write_text(
        'name = "chip"\n[quantization]\ninteger = ["Conv"]\nper_channel = { Conv = 0 }\n'
    )
    result = run("targets", "show", tmp_path / "chip.toml")
    assert result.exit_code == 0
    text = " ".join(result.stdout.split())
    assert "name chip" in text
    assert "integer Conv" in text
    assert "per_channel Conv 0" in text


@pytest.mark.parametrize(
    "arguments", [[], ["--target", "ort-cpu"], ["--input-shape", "image:2x1x32x32"], ["--verbose"]]
)
def test_inspect(arguments: list[str], fixtures: Path) -> None:
    model = onnx.load(fixtures / "digits_resnet.onnx")
    name = model.graph.input[0].name
    arguments = [a.replace("image:", f"{name}:") for a in arguments]
    result = run("inspect", fixtures / "digits_resnet.onnx", *arguments)
    assert result.exit_code == 0, result.output
    for word in ("opset", "input", "output", "parameters", "MACs", "activations", "Conv"):
        assert word in result.stdout


def test_inspect_as_json(fixtures: Path) -> None:
    result = run("inspect", fixtures / "digits_resnet.onnx", "--json")
    assert json.loads(result.stdout)["size"]["nodes"] > 0


def test_compare_a_model_with_itself(fixtures: Path) -> None:
    path = fixtures / "digits_resnet.onnx"
    result = run("compare", path, path, "--no-latency")
    assert result.exit_code == 0, result.output
    assert "the same operators, equally often" in result.stdout
    assert "every bit of every output" in result.stdout
    found = json.loads(run("compare", path, path, "--json", "--no-latency").stdout)
    assert found["interface"] == []
    assert found["speed"] is None


def test_compare_models_of_other_interfaces(fixtures: Path) -> None:
    result = run("compare", fixtures / "digits_resnet.onnx", fixtures / "detector.onnx", "--no-latency")
    assert result.exit_code == 0, result.output
    assert "interface:" in result.stdout
    assert "not run side by side" in result.stdout


def test_optimize_end_to_end(fixtures: Path, tmp_path: Path) -> None:
    output, report = tmp_path / "out.onnx", tmp_path / "report.json"
    result = run("optimize", fixtures / "digits_resnet.onnx", "-o", output, "--report", report)
    assert result.exit_code == 0, result.output
    onnx.checker.check_model(output)
    assert "accuracy was not measured" in result.stdout
    assert f"written: {output}" in result.stdout
    assert json.loads(report.read_text())["output"] == str(output)
    assert {path.name for path in tmp_path.iterdir()} == {"out.onnx", "report.json"}


def test_a_caller_that_goes_on_keeps_its_garbage_collection() -> None:
    """What is frozen for the end of a process would pile up in one that calls the command line again and again."""
    before = gc.get_freeze_count()
    assert run("passes", "show", "fold").exit_code == 0
    assert gc.get_freeze_count() == before
