"""A report as one HTML page that needs nothing else: no scripts, no fonts, no network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from html import escape

from onnxedge.errors import one_line
from onnxedge.passes import Note, grouped_reasons
from onnxedge.report.curves import STYLE as CURVE_STYLE
from onnxedge.report.curves import curve_html
from onnxedge.report.records import PassRecord, Report
from onnxedge.report.terminal import rows, unmeasured, verification_text
from onnxedge.report.text import bytes_text, count_text, plural, seconds_text

MAX_PLACES = 200  #: nodes listed under one reason; the JSON report has all

STYLE = """
:root { color-scheme: light dark; --line: light-dark(#d0d4da, #3a3f47); --soft: light-dark(#5a6270, #9aa3b2);
        --bad: light-dark(#b3261e, #ff8a80); --shade: light-dark(#f5f6f8, #22262c); }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; overflow-wrap: anywhere; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.verdict { background: var(--shade); border-left: 4px solid var(--soft); padding: .6rem 1rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; } .number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
code { font: 13px ui-monospace, monospace; overflow-wrap: anywhere; } .soft { color: var(--soft); }
.bad { color: var(--bad); } details { padding: .2rem 0; } summary { cursor: pointer; } li { overflow-wrap: anywhere; }
"""


def to_html(report: Report) -> str:
    """Return the report as a page: what the terminal shows, every note with its node, and how to repeat the run."""
    return "\n".join(_page(report)) + "\n"


def _page(report: Report) -> Iterator[str]:
    title = _text(report.input or "model in memory")
    yield '<!doctype html><html lang="en"><head><meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>onnxedge: {title}</title><style>{STYLE}{CURVE_STYLE}</style></head><body>"
    yield f"<h1>{title} for {_text(report.target)}</h1>"
    yield f'<p class="verdict">{_text(report.verdict)}</p>'
    yield from _table(
        ("", "#before", "#after", "change"), ([r.what, r.before, r.after, r.change] for r in rows(report))
    )
    yield from (f'<p class="soft">{_text(line)}</p>' for line in unmeasured(report))
    yield "<h2>Passes</h2>"
    yield from _passes(report.passes)
    yield from _curves(report.passes)
    if report.notes:
        yield "<h2>Left alone, and why</h2>"
        yield from _notes(report.notes)
    yield "<h2>The run</h2>"
    yield from _table(("", ""), _facts(report))
    yield "</body></html>"


def _passes(records: Iterable[PassRecord]) -> Iterator[str]:
    yield '<div class="scroll"><table><tr><th>pass</th><th>what it did</th>'
    yield '<th class="number">time</th><th class="number">size</th><th class="number">MACs</th></tr>'
    for record in records:
        after = record.after
        did = record.reason or record.summary or (plural(record.rewrites, "rewrite") if record.rewrites else "")
        style = ' class="bad"' if record.status == "rolled back" else ""
        found = verification_text(record)
        yield f"<tr><td><code>{_text(record.text)}</code><br><span class=soft>{record.accuracy}</span></td>"
        yield f"<td><span{style}>{record.status}{': ' if did else ''}{_text(did)}</span>"
        yield f"<br><span class=soft>{_text(found)}</span></td>" if found else "</td>"
        figures = (
            seconds_text(record.seconds),
            "" if after is None else bytes_text(after.file_bytes),
            "" if after is None or not after.macs else count_text(after.macs),
        )
        yield "".join(f'<td class="number">{figure}</td>' for figure in figures) + "</tr>"
    yield "</table></div>"


def _curves(records: Iterable[PassRecord]) -> Iterator[str]:
    for record in records:
        drawn = list(curve_html(record.figures.get("curve", {})))
        if drawn:
            chosen = record.figures.get("chosen_by", "")
            yield f"<h2>Training: <code>{_text(record.text)}</code></h2>"
            yield from drawn
            yield f'<p class="soft">{_text(f"epoch chosen by {chosen}")}</p>' if chosen else ""


def _notes(notes: tuple[Note, ...]) -> Iterator[str]:
    places: dict[tuple[str, str], list[str]] = {}
    for note in notes:
        if note.where:
            places.setdefault((note.pass_name, note.reason), []).append(note.where)
    for name, reason, count, _ in sorted(grouped_reasons(notes), key=lambda group: -group[2]):
        where = places.get((name, reason), [])
        line = f"{count:,} × <b>{_text(name)}</b>: {_text(reason)}"
        if not where:
            yield f"<p>{line}</p>"
            continue
        items = "".join(f"<li><code>{_text(place)}</code></li>" for place in where[:MAX_PLACES])
        rest = f"<li>and {len(where) - MAX_PLACES:,} more</li>" if len(where) > MAX_PLACES else ""
        yield f"<details><summary>{line}</summary><ul>{items}{rest}</ul></details>"


def _facts(report: Report) -> Iterator[list[str]]:
    """Yield what repeats the run."""
    facts = {
        "pipeline": report.pipeline,
        "output": report.output,
        "seed": str(report.seed),
        "threads": str(report.threads),
        "training": report.training,
        "calibration": report.calibration,
        "evaluation": report.evaluation,
        "preprocess": report.preprocess,
        "versions": ", ".join(f"{name} {number}" for name, number in report.versions.items()),
        "time": seconds_text(report.seconds),
    }
    yield from ([name, text] for name, text in facts.items() if text)


def _table(headers: tuple[str, ...], lines: Iterable[list[str]]) -> Iterator[str]:
    """Yield a table; a header that begins with ``#`` makes a column of figures."""
    styles = [' class="number"' if header.startswith("#") else "" for header in headers]
    yield '<div class="scroll"><table>'
    if any(headers):
        yield _row("th", styles, (header.lstrip("#") for header in headers))
    for line in lines:
        yield _row("td", styles, line)
    yield "</table></div>"


def _row(tag: str, styles: Iterable[str], cells: Iterable[str]) -> str:
    inner = "".join(f"<{tag}{style}>{_text(cell)}</{tag}>" for style, cell in zip(styles, cells, strict=True))
    return f"<tr>{inner}</tr>"


def _text(text: str) -> str:
    return escape(one_line(text))
