"""``--explain``: what each rule of a pass did, and why it left the rest."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import pytest
from rich.console import Console
from samples import a_report, run

from onnxedge.passes import Note
from onnxedge.report.explanation import print_explanation
from onnxedge.report.records import Report


def explained(report: Report, name: str) -> str:
    out = io.StringIO()
    print_explanation(report, name, Console(file=out, width=100, markup=False, highlight=False))
    return out.getvalue()


def report_of(figures: dict[str, int], notes: tuple[Note, ...]) -> Report:
    report = a_report(notes)
    fuse = dataclasses.replace(report.passes[-1], rewrites=sum(figures.values()), figures=figures, status="applied")
    return dataclasses.replace(report, passes=(*report.passes[:-1], fuse))


def test_counts_and_reasons_by_rule() -> None:
    notes = (
        Note("fuse", "Mul 'a'", "GELU not fused: a value inside it has other readers", "fuse-gelu"),
        Note("fuse", "Mul 'b'", "GELU not fused: a value inside it has other readers", "fuse-gelu"),
        Note("fold", "Range 'r'", "not folded: too large", "fold-constants"),
    )
    text = explained(report_of({"fuse-gelu": 3, "fuse-mish": 0, "fold-pad": 2}, notes), "fuse")
    assert "fuse-gelu: 3 rewrites, 2 left alone" in text
    assert "2x GELU not fused: a value inside it has other readers" in text
    assert "Mul 'a', Mul 'b'" in text
    assert "fold-pad: 2 rewrites" in text
    assert "nothing like it in the graph: fuse-mish" in text
    assert "Range" not in text


def test_one_rule_alone_can_be_asked_for() -> None:
    notes = (Note("fuse", "Pad 'p'", "no", "fold-pad"),)
    text = explained(report_of({"fuse-gelu": 3, "fold-pad": 2}, notes), "fold-pad")
    assert "fold-pad: 2 rewrites, 1 left alone" in text
    assert "gelu" not in text


def test_many_nodes_are_cut_and_the_rest_is_counted() -> None:
    notes = tuple(Note("fuse", f"Mul 'n{i}'", "no", "fuse-gelu") for i in range(500))
    text = explained(report_of({"fuse-gelu": 0}, notes), "fuse")
    assert "... and 492 more (--report has all)" in text
    assert len(text.splitlines()) < 10


def test_a_pass_that_did_not_run_or_was_taken_back_is_said() -> None:
    assert "it did not run: the pipeline is prune,fuse" in explained(a_report(), "int8")
    assert "simplify was taken back: output 'y' is not bit-equal" in explained(a_report(), "simplify")


@pytest.mark.usefixtures("untimed")
def test_on_the_command_line(tmp_path: Path) -> None:
    model = Path(__file__).parent.parent / "fixtures" / "sequence_transformer.onnx"
    done = run("optimize", model, "-o", tmp_path / "o.onnx", "--explain", "fuse", "--explain", "fold")
    assert done.exit_code == 0
    assert "fuse-gelu: 2 rewrites" in done.stdout
    assert "fold-constants:" in done.stdout


def test_an_unknown_pass_is_said_before_any_work(tmp_path: Path) -> None:
    done = run("optimize", "absent.onnx", "-o", tmp_path / "o.onnx", "--explain", "fuze")
    assert done.exit_code == 2
    assert "fuze" in done.stderr
    assert "did you mean" in done.stderr
