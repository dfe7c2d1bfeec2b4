"""The report in the terminal and as a page: what it says, that it fits, that names do no harm."""

from __future__ import annotations

import dataclasses
import io
from html.parser import HTMLParser
from typing import Any

import pytest
from rich.console import Console
from samples import a_report

from onnxedge.passes import Note
from onnxedge.report.html import to_html
from onnxedge.report.records import Report
from onnxedge.report.terminal import print_report


def printed(report: Report, width: int = 80, **options: Any) -> str:
    out = io.StringIO()
    print_report(report, Console(file=out, width=width, markup=False, highlight=False, emoji=False), **options)
    return out.getvalue()


def test_what_the_table_says() -> None:
    lines = printed(a_report(labelled=True), 120).splitlines()
    text = "\n".join(" ".join(line.split()) for line in lines)
    for expected in (
        "file size 289 kB 46.0 kB -84.1 %",
        "parameters 70.2 k 50.2 k -28.5 %",
        "MACs 4.10 M 2.00 M -51.2 %",
        "latency 0.182 ms 0.091 ms x 0.50, quartiles 0.48 to 0.53, CPU time x 0.51; 60 rounds, 1 thread",
        "top1 97.42 % 97.31 % -0.11 ± 0.20 points; 597 samples",
        "agreement 99.10 % same answer as before; 597 samples",
        "1 prune(macs=0.5) 3.2 s 46.0 kB 2.00 M",
        "applied: widths 64 -> 48",
        "top1 97.31 % on 597 samples",
        "rolled back: output 'y' is not bit-equal",
        "outputs bit-equal",
        "no change",
        "16% of the bytes, 0.50 of the latency",
        "written: net/digits.optimized.onnx",
    ):
        assert expected in text
    assert "accuracy was not measured" not in text


def test_that_accuracy_was_not_measured_is_said() -> None:
    text = " ".join(printed(a_report()).split())
    assert "accuracy was not measured: no labelled --eval data" in text
    assert "the outputs were compared with the original's on 24 held-out synthetic inputs" in text
    assert "accuracy: no labelled data" not in text


@pytest.mark.parametrize("width", [80, 120])
def test_tables_fit(width: int) -> None:
    notes = tuple(
        Note("int8", f"Conv 'layer{i}.{'x' * 60}'", "width is locked: " + "because of it " * 9) for i in range(30)
    )
    for line in printed(a_report(notes), width).splitlines():
        assert len(line) <= width


def test_what_is_printed_does_not_grow_with_the_nodes() -> None:
    few = printed(a_report(tuple(Note("int8", f"Conv 'n{i}'", "too small") for i in range(2))))
    many = printed(a_report(tuple(Note("int8", f"Conv 'n{i}'", "too small") for i in range(5000))))
    assert len(many.splitlines()) == len(few.splitlines())
    assert "5,000x  int8  too small (first: Conv 'n0')" in many
    distinct = printed(a_report(tuple(Note("int8", f"Conv 'n{i}'", f"reason {i}") for i in range(5000))))
    assert "... and 4,988 reasons more; all are in the report (--report)" in distinct
    assert len(distinct.splitlines()) < 60
    assert len(printed(a_report((Note("a", "n1", "r"), Note("a", "n2", "r"))), every_note=True).splitlines()) > 0


def test_names_cannot_write_to_the_terminal() -> None:
    report = a_report((Note("int8", "Conv 'a\x1b[2J\n[red]b'", "bad\x07"),))
    report = dataclasses.replace(report, output="out\x1b[31m.onnx")
    text = printed(report)
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "[red]b" in text


class Reader(HTMLParser):
    """Read a page and count what is open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_page_is_whole_and_escapes_names() -> None:
    notes = tuple(Note("int8", f"Conv '<script>{i}'", "<b>&too small") for i in range(300))
    page = to_html(a_report((*notes, Note("fuse", "", "nothing to do")), labelled=True))
    reader = Reader(page)
    assert not reader.open
    text = " ".join(reader.words)
    for expected in (
        "97.31 %",
        "widths 64 -> 48",
        "rolled back: output 'y'",
        "Conv '<script>0'",
        "and 100 more",
        "prune,fuse",
    ):
        assert expected in text
    assert "<script" not in page
    assert "http" not in page
