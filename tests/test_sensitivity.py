"""``onnxedge sensitivity``: the table, CSV, JSON and plots, resuming after a kill, and bad input."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from samples import run

from onnxedge import sensitivity as module
from onnxedge.report.charts import to_html, to_png
from onnxedge.report.sensitivity import Baseline, Point, Sensitivity, hints, loss_text, remarks
from onnxedge.resume import State

QUICK = ("--passes", "prune(samples=32,repair=none,importance=l2)", "--samples", "64", "--ratios", "0.5,0.25")

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("ONNXEDGE_CACHE", str(folder))
    return folder


def digits(fixtures: Path, *arguments: str | Path, labels: bool = True) -> Result:
    data = ["--calib", str(fixtures / "digits_calib.npz")]
    data += ["--eval", str(fixtures / "digits_eval.npz")] if labels else []
    return run("sensitivity", fixtures / "digits_resnet.onnx", *data, *QUICK, *arguments)


def a_point(part: int | None, ratio: float, drop: float | None, **more: Any) -> Point:
    name = "all 2 parts" if part is None else f"Conv 'c{part}/Conv'"
    figures: dict[str, Any] = {"kept": round(8 * ratio), "size": 8, "macs": round(1000 * ratio), "parameters": 10}
    figures |= {"file_bytes": 99, "value": None if drop is None else 0.9 - drop, "drop": drop, "sqnr_db": 30 * ratio}
    figures |= {"standard_error": None if drop is None else 0.01, "agreement": 0.95}
    return Point("prune", part, name, ratio, **(figures | more))


def a_sensitivity(*points: Point, labelled: bool = True) -> Sensitivity:
    return Sensitivity(
        model="net/m.onnx",
        pipeline="prune",
        target="ort-cpu",
        seed=0,
        threads=1,
        preprocess="",
        calibration="c.npz",
        evaluation="e.npz",
        samples=64,
        metric="top1" if labelled else "",
        thorough=False,
        baseline=Baseline(0.9 if labelled else None, 1000, 20, 100),
        points=points,
        unmeasured=(),
        notes=(),
        versions={},
        seconds=1.0,
    )


LABELLED = a_sensitivity(
    a_point(None, 0.75, 0.02),
    a_point(None, 0.5, 0.3, latency=0.5, latency_low=0.4, latency_high=0.9, latency_cpu=0.55),
    a_point(0, 0.75, 0.001, latency=0.9, latency_low=0.88, latency_high=0.92, latency_cpu=0.91),
    a_point(0, 0.5, 0.005),
    a_point(1, 0.75, 0.05),
    a_point(1, 0.5, 0.2),
)


def test_the_table_shows_parts_and_ratios(fixtures: Path) -> None:
    result = digits(fixtures, "--no-latency")
    assert result.exit_code == 0, result.output
    text = result.stdout
    assert "original: top1" in text
    assert "on 64 samples" in text
    for word in ("keeps 50 %", "keeps 25 %", "all 6 parts", "Conv '/layer1/conv1", "change of top1 in points"):
        assert word in text
    assert "latency: not timed (--no-latency)" in text


@pytest.mark.parametrize("width", [40, 80, 100, 240])
def test_a_narrow_terminal_cuts_no_figure(width: int) -> None:
    """Ratios that have no room beside the others stand below them."""
    from rich.console import Console

    from onnxedge.cli.sensitivity import _tables

    console = Console(width=width, file=io.StringIO())
    for table in _tables(MANY, MANY.rows(), width):
        console.print(table)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for ratio in range(9, 0, -1):
        assert text.count(f"keeps {10 * ratio} %") == 1
    assert text.count("-10.00") == len(MANY.points)
    assert max(len(line) for line in text.splitlines()) <= max(width, 60)


def test_csv_and_json_have_every_point(fixtures: Path, tmp_path: Path) -> None:
    result = digits(fixtures, "--only", "layer[12]/conv1", "--csv", tmp_path / "p.csv", "--json", labels=False)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert set(found) == {field.name for field in dataclasses.fields(Sensitivity)}
    assert set(found["points"][0]) == {field.name for field in dataclasses.fields(Point)}
    assert [(p["part"], p["ratio"], p["kept"], p["size"]) for p in found["points"]] == [
        (1, 0.5, 16, 32),
        (1, 0.25, 8, 32),
        (3, 0.5, 16, 32),
        (3, 0.25, 8, 32),
    ]
    assert found["metric"] == ""
    assert all(
        p["value"] is None and p["latency"] > 0 and p["macs"] < found["baseline"]["macs"] for p in found["points"]
    )
    rows = list(csv.DictReader(io.StringIO((tmp_path / "p.csv").read_text("utf-8"))))
    assert [float(row["sqnr_db"]) for row in rows] == [p["sqnr_db"] for p in found["points"]]
    assert {row["value"] for row in rows} == {""}


def test_kernels_in_integers(fixtures: Path) -> None:
    """Passes before the one that is tried are run; a kernel alone strays less than all of them."""
    options = ("--passes", "fuse,int8(samples=16,method=minmax)", "--no-latency", "--json")
    found = json.loads(digits(fixtures, *options, labels=False).stdout)
    every, *single = found["points"]
    assert (every["part"], every["ratio"], every["kept"], every["size"]) == (None, 0.0, 0, len(single))
    assert len(single) > 5
    assert all(point["sqnr_db"] > every["sqnr_db"] for point in single)
    assert all(point["file_bytes"] > every["file_bytes"] for point in single)


def test_without_samples_it_says_so(fixtures: Path) -> None:
    result = run("sensitivity", fixtures / "digits_resnet.onnx", *QUICK, "--only", "layer3/conv1", "--no-latency")
    assert result.exit_code == 0, result.output
    assert "synthetic samples" in result.stdout
    assert "SQNR" in result.stdout


@pytest.mark.parametrize("named", [True, False])
def test_a_killed_run_goes_on(
    fixtures: Path, tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch, named: bool
) -> None:
    """The third point fails; the run after it measures that one and those behind it alone."""
    real, calls = module._Bench._measure, []

    def counted(stop: int) -> Callable[..., Point]:
        def measure(*arguments: Any) -> Point:
            calls.append(arguments)
            if len(calls) == stop:
                raise KeyboardInterrupt
            return real(*arguments)

        return measure

    options = ("--only", "conv1", "--no-latency", *(("--resume", tmp_path / "s.jsonl") if named else ()))
    monkeypatch.setattr(module._Bench, "_measure", counted(3))
    assert digits(fixtures, *options).exit_code == 130
    state = tmp_path / "s.jsonl" if named else next((own_cache / "sensitivity").iterdir())
    assert len(state.read_text().splitlines()) == 3
    with state.open("a") as file:
        file.write('\n{"key": "cut sho')

    calls.clear()
    monkeypatch.setattr(module._Bench, "_measure", counted(-1))
    resumed = digits(fixtures, *options, "--json")
    assert resumed.exit_code == 0, resumed.output
    points = json.loads(resumed.stdout)["points"]
    assert len(calls) == len(points) - 2
    assert state.exists() == named

    monkeypatch.setattr(module._Bench, "_measure", real)
    whole = json.loads(digits(fixtures, "--only", "conv1", "--no-latency", "--json").stdout)
    assert whole["points"] == points


def test_a_state_of_another_run_is_refused(tmp_path: Path) -> None:
    state = State.open(tmp_path / "s.jsonl", "one")
    state.add("k", a_point(0, 0.5, 0.1))
    assert State.open(tmp_path / "s.jsonl", "one").points == state.points
    with pytest.raises(module.UserError, match="is the state of another model, of other samples"):
        State.open(tmp_path / "s.jsonl", "two")


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ONNXEDGE_CACHE", str(tmp_path / "file"))
    state = State.open(None, "one")
    state.add("k", a_point(0, 0.5, 0.1))
    assert state.path is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.onnx"], "absent.onnx: no such file"),
        (["m.onnx", "--ratios", "1.5"], "--ratios: '1.5' is not between 0 and 100 %"),
        (["m.onnx", "--ratios", "1"], "ratio 1 is not above 0 and below 1"),
        (["m.onnx", "--ratios", "0.5,50%"], "a ratio is given twice"),
        (["m.onnx", "--passes", "fold"], "none of 'fold' can be tried part by part"),
        (["m.onnx", "--passes", "prune(nothing=1)"], "nothing"),
        (["m.onnx", "--only", "nowhere", "--no-latency"], "no part of prune is called like 'nowhere'"),
        (["m.onnx", "--plot", "p.jpg"], "--plot p.jpg: ends in none of .html, .png"),
        (["m.onnx", "--plot", "none/p.html"], "no such folder"),
        (["m.onnx", "--csv", "m.onnx"], "is the input"),
        (["m.onnx", "--csv", "p.html", "--plot", "p.html"], "is another file that this run writes"),
        (["m.onnx", "--calib", "absent.npz"], "absent.npz"),
        (["m.onnx", "--metric", "top2"], "metric 'top2': not known"),
        (["m.onnx", "--samples", "0"], "0 is not in the range"),
        (["m.onnx", "--resume", "m.onnx"], "is no state of onnxedge sensitivity"),
        (["m.onnx", "--resume", "none/s.jsonl"], "none/s.jsonl: no such folder 'none'"),
        (["m.onnx", "--resume", "."], "is a folder; name the output file"),
        (["m.onnx", "--passes", "prune,prune(samples=64)"], "prune is named twice"),
        (["m.onnx", "--only", ""], "a pattern of names of parts is empty"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], message: str, fixtures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m.onnx").write_bytes((fixtures / "digits_resnet.onnx").read_bytes())
    monkeypatch.chdir(tmp_path)
    result = run("sensitivity", *arguments)
    assert result.exit_code == 2, result.output
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert message in result.stderr
    assert result.stdout == ""
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]


def test_a_png_without_matplotlib(fixtures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = digits(fixtures, "--plot", tmp_path / "p.png")
    assert result.exit_code == 2
    assert "needs matplotlib: pip install 'onnxedge[plot]', or name a file.html" in result.stderr


def test_hints() -> None:
    first, whole = hints(LABELLED)
    assert [(point.part, point.ratio) for point in first] == [(0, 0.5)]
    assert [(point.part, point.ratio) for point in whole] == [(1, 0.75)]


def test_disturbed_timings_show_cpu_time() -> None:
    disturbed, calm = LABELLED.points[1], LABELLED.points[2]
    assert (disturbed.time, calm.time) == (0.55, 0.9)
    assert any("1 of 6 timings were disturbed" in line for line in remarks(LABELLED))
    assert loss_text(a_point(0, 0.5, 0.0)) == loss_text(a_point(0, 0.5, 1e-9)) == "0.00"
    assert loss_text(a_point(0, 0.5, None, sqnr_db=None)) == "equal"


@pytest.mark.parametrize("labelled", [True, False])
def test_the_page_needs_nothing_else(labelled: bool) -> None:
    points = LABELLED.points if labelled else tuple(a_point(n, r, None) for n in (None, 0) for r in (0.5, 0.25))
    points = (dataclasses.replace(points[0], name="<script>alert(1)</script>"), *points[1:])
    page = to_html(a_sensitivity(*points, labelled=labelled))
    for word in ("<script", "http://", "https://", "src=", "@import", "url("):
        assert word not in page
    assert page.count("<polyline") == (5 if labelled else 2)
    assert "&lt;script&gt;" in page
    assert "NaN" not in page


def test_the_page_of_no_points() -> None:
    assert "<svg" not in to_html(a_sensitivity())


def whole(part: int | None, drop: float) -> Point:
    """Return a point of a pass that changes parts whole."""
    return dataclasses.replace(a_point(part, 0.0, drop), pass_name="int8")


WHOLE = a_sensitivity(whole(None, 0.1), whole(0, 0.02), whole(1, 0.0))
BOTH = a_sensitivity(*LABELLED.points, *WHOLE.points)
MANY = a_sensitivity(*(a_point(part, ratio / 10, 0.1) for part in (None, *range(50)) for ratio in range(9, 0, -1)))


def test_the_page_of_parts_that_are_changed_whole() -> None:
    """They have no share that is kept; beside others each row names its pass."""
    page = to_html(WHOLE)
    assert "<svg" not in page
    assert "changed whole" in page
    assert "int8: " not in page
    page = to_html(BOTH)
    assert page.count("<polyline") == 5
    for text in ("prune: all 2 parts", "int8: all 2 parts", "int8: Conv &#x27;c0/Conv&#x27;"):
        assert text in page


def test_the_picture() -> None:
    pytest.importorskip("matplotlib")
    for found in (LABELLED, WHOLE, BOTH, MANY, a_sensitivity(a_point(0, 0.5, None), labelled=False), a_sensitivity()):
        assert to_png(found).startswith(b"\x89PNG")
    assert "matplotlib.pyplot" not in sys.modules
