"""Show a report in a terminal: one table before and after, one of the passes, what was left alone, the verdict.

What is printed does not grow with the number of nodes: reasons are counted, and the longest list has a limit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from onnxedge.errors import one_line, shortened
from onnxedge.passes import grouped_reasons
from onnxedge.report.records import Fidelity, Measure, PassRecord, Report, Speed
from onnxedge.report.text import (
    bytes_text,
    change_text,
    count_text,
    milliseconds_text,
    percent_text,
    plural,
    seconds_text,
)

MAX_REASONS = 12  #: lines of what was left alone
MAX_PASSES = 40  #: passes in the table; a longer pipeline is in the report file


@dataclass(frozen=True)
class Row:
    """Hold one line of the before-and-after table; texts are ready to print."""

    what: str
    before: str
    after: str
    change: str = ""


def print_report(report: Report, console: Console, *, every_note: bool = False) -> None:
    """Print what a run did and measured.

    Args:
        report: of the run.
        console: where to.
        every_note: print all notes with their nodes, not only the counted reasons.
    """
    title = f"{_name(report.input)} for {one_line(report.target)}, {seconds_text(report.seconds)}"
    console.print(Text(title, style="bold"), soft_wrap=True)
    console.print()
    console.print(before_after_table(rows(report)))
    console.print()
    lines = list(unmeasured(report))
    for line in lines:
        console.print(Text(line, style="yellow"))
    if lines:
        console.print()
    console.print(_pass_table(report))
    if len(report.passes) > MAX_PASSES:
        rest = plural(len(report.passes) - MAX_PASSES, "pass")
        console.print(Text(f"... and {rest} more; all are in the report (--report)"))
    if report.notes:
        console.print()
        _print_notes(report, console, every_note)
    console.print()
    console.print(Text(one_line(report.verdict), style="bold"))
    if report.output:
        console.print(Text(f"written: {one_line(report.output)}"), soft_wrap=True)


def rows(report: Report) -> list[Row]:
    """Return the lines of the before-and-after table of a run."""
    lines = size_rows(report.before, report.after)
    if report.speed is not None:
        lines.append(speed_row(report.speed))
    if report.fidelity is not None:
        lines.extend(fidelity_rows(report.fidelity))
    return lines


def size_rows(before: Measure, after: Measure) -> list[Row]:
    """Return the lines for file size, nodes, parameters and multiply-accumulates."""
    figures: list[tuple[str, Callable[[float], str], int, int]] = [
        ("file size", bytes_text, before.file_bytes, after.file_bytes),
        ("nodes", str, before.nodes, after.nodes),
        ("parameters", count_text, before.parameters, after.parameters),
    ]
    if before.macs and after.macs is not None:
        figures.append(("MACs", count_text, before.macs, after.macs))
    return [Row(name, text(old), text(new), change_text(old, new)) for name, text, old, new in figures]


def speed_row(speed: Speed) -> Row:
    """Return the line for the latency: medians, and the ratio with its quartiles."""
    return Row(
        "latency",
        milliseconds_text(speed.before_ms),
        milliseconds_text(speed.after_ms),
        f"x {speed.ratio:.2f}, quartiles {speed.low:.2f} to {speed.high:.2f}, CPU time x {speed.cpu_ratio:.2f}; "
        f"{plural(speed.rounds, 'round')}, {plural(speed.threads, 'thread')}",
    )


def fidelity_rows(fidelity: Fidelity) -> list[Row]:
    """Return the lines for accuracy on labels, or agreement and numeric difference where there are none."""
    lines = []
    samples = plural(fidelity.samples, "synthetic sample" if fidelity.data == "synthetic" else "sample")
    if fidelity.labelled and fidelity.before is not None and fidelity.after is not None:
        error = "" if fidelity.standard_error is None else f" ± {100 * fidelity.standard_error:.2f}"
        change = f"{100 * (fidelity.after - fidelity.before):+.2f}{error} points; {samples}"
        name, before, after = fidelity.metric or "accuracy", fidelity.before, fidelity.after
        lines.append(Row(one_line(name), percent_text(before, 2), percent_text(after, 2), change))
    if fidelity.agreement is not None:
        lines.append(Row("agreement", "", percent_text(fidelity.agreement, 2), f"same answer as before; {samples}"))
    numbers = difference_text(fidelity.sqnr_db, fidelity.max_abs_diff)
    if numbers:
        lines.append(Row("outputs", "", *numbers))
    return lines


def difference_text(sqnr_db: float | None, max_abs_diff: float | None) -> tuple[str, str] | None:
    """Return the distance of outputs as (figure, explanation), None where it was not measured."""
    if max_abs_diff == 0:
        return "equal", "every bit of every output"
    if sqnr_db is None or sqnr_db - sqnr_db != 0:
        return None if max_abs_diff is None else (f"{max_abs_diff:.2g}", "largest difference")
    return f"{sqnr_db:.1f} dB", "SQNR" + ("" if max_abs_diff is None else f"; largest difference {max_abs_diff:.2g}")


def unmeasured(report: Report) -> Iterator[str]:
    """Yield what was not measured and why; that accuracy was not is always said."""
    fidelity = report.fidelity
    if fidelity is None:
        yield "accuracy was not measured"
    elif not fidelity.labelled:
        kind = "held-out synthetic inputs" if fidelity.data == "synthetic" else f"samples of {_name(fidelity.data)}"
        outputs = f"the outputs were compared with the original's on {fidelity.samples:,} {kind}"
        yield f"accuracy was not measured: no labelled --eval data; {outputs}"
    for line in report.unmeasured:
        if not line.startswith("accuracy"):
            yield shortened(line, 300)


def before_after_table(lines: Iterable[Row], names: tuple[str, str] = ("before", "after")) -> Table:
    """Return the before-and-after table; ``names`` are the headers of the two models."""
    table = plain_table("", f">{names[0]}", f">{names[1]}", "change")
    for line in lines:
        table.add_row(line.what, line.before, Text(line.after, style="bold"), line.change)
    return table


def _pass_table(report: Report) -> Table:
    table = plain_table(">#", "pass, what it did, what was found", ">time", ">size", ">MACs")
    for number, record in enumerate(report.passes[:MAX_PASSES], 1):
        after = record.after
        table.add_row(
            str(number),
            Text("\n").join(_lines_of(record)),
            seconds_text(record.seconds),
            "" if after is None else bytes_text(after.file_bytes),
            "" if after is None or not after.macs else count_text(after.macs),
        )
    return table


def _lines_of(record: PassRecord) -> Iterator[Text]:
    """Yield what stands in the cell of a pass: its text, its status and what it did, what the verification found."""
    yield Text(shortened(record.text, 160), style="bold")
    did = record.reason or record.summary or (plural(record.rewrites, "rewrite") if record.status == "applied" else "")
    style = "red" if record.status == "rolled back" else "dim" if record.status == "no change" else ""
    yield Text(f"{record.status}{': ' if did else ''}{shortened(did, 200)}", style=style)
    found = verification_text(record)
    if found:
        yield Text(found, style="dim")


def verification_text(record: PassRecord) -> str:
    """Return what the verification of a pass found, in words."""
    if record.status != "applied":
        return ""
    if record.verified == "off":
        return "not verified: --verify off"
    if record.verified == "structure":
        return f"valid model; outputs not compared ({record.accuracy})"
    fidelity = record.fidelity
    if fidelity is not None and fidelity.labelled and fidelity.after is not None:
        figure = f"{one_line(fidelity.metric or 'accuracy')} {percent_text(fidelity.after, 2)}"
        return f"{figure} on {plural(fidelity.samples, 'sample')}"
    if record.max_abs_diff == 0:
        return "outputs bit-equal"
    parts = []
    if fidelity is not None and fidelity.agreement is not None:
        parts.append(f"agreement {percent_text(fidelity.agreement)}")
    sqnr = record.sqnr_db if fidelity is None else fidelity.sqnr_db
    if sqnr is not None and sqnr - sqnr == 0:
        parts.append(f"SQNR {sqnr:.1f} dB")
    elif record.max_abs_diff is not None:
        parts.append(f"largest difference {record.max_abs_diff:.2g}")
    return ", ".join(parts)


def _print_notes(report: Report, console: Console, every_note: bool) -> None:
    console.print(Text("left alone, and why", style="bold"))
    if every_note:
        for note in report.notes:
            text = ": ".join(filter(None, (note.pass_name, note.where, note.reason)))
            console.print(Text(f"  {one_line(text)}"), soft_wrap=True)
        return
    groups = sorted(grouped_reasons(report.notes), key=lambda group: -group[2])
    table = Table(box=None, show_header=False, padding=(0, 1), pad_edge=False)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True, style="bold", max_width=20)
    table.add_column(overflow="fold")
    for name, reason, count, where in groups[:MAX_REASONS]:
        place = ""
        if where:
            place = f" ({'first: ' if count > 1 else ''}{shortened(where, 50)})"
        table.add_row(f"{count:,}x", one_line(name), shortened(reason, 200) + place)
    console.print(table)
    if len(groups) > MAX_REASONS:
        rest = len(groups) - MAX_REASONS
        console.print(Text(f"  ... and {plural(rest, 'reason')} more; all are in the report (--report)"))


def plain_table(*headers: str) -> Table:
    """Return an empty table; a header that begins with ``>`` makes a column of figures, which never wraps."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1), pad_edge=False, header_style="")
    for header in headers:
        figures = header.startswith(">")
        table.add_column(header.lstrip(">"), justify="right" if figures else "left", no_wrap=figures, overflow="fold")
    return table


def _name(path: str) -> str:
    return one_line(path.replace("\\", "/").rsplit("/", 1)[-1]) or "model in memory"
