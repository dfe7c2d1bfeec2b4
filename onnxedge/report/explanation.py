"""What one pass did by each of its rules, and why it left the rest: the answer to ``--explain``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from rich.console import Console
from rich.text import Text

from onnxedge.errors import one_line, shortened
from onnxedge.passes import Note
from onnxedge.report.records import PassRecord, Report
from onnxedge.report.text import plural

MAX_PLACES = 8  #: nodes that are named for one reason; the report has all of them


def print_explanation(report: Report, name: str, console: Console) -> None:
    """Print what a pass, or one rule of a pass, rewrote and refused, grouped by rule and reason.

    Args:
        report: of the run.
        name: of a pass in the pipeline, or of a rule that a pass applies under its own name.
        console: where to.
    """
    console.print()
    for line in _lines(report, name):
        console.print(line, soft_wrap=True)


def _lines(report: Report, name: str) -> Iterator[Text]:
    records = [record for record in report.passes if _concerns(record, name)]
    yield Text(f"{one_line(name)}: what it did, and why not more", style="bold")
    if not records:
        yield Text(f"  it did not run: the pipeline is {one_line(report.pipeline)}")
        return
    for record in records:
        if record.status == "rolled back":
            yield Text(f"  {one_line(record.text)} was taken back: {one_line(record.reason)}", style="red")
    counts = _counts(records, name)
    reasons = _reasons(report.notes, name)
    for rule in dict.fromkeys([*(r for r, count in counts.items() if count), *reasons]):
        yield from _rule(rule, counts.get(rule, 0), reasons.get(rule, {}))
    idle = [rule for rule, count in counts.items() if not count and rule not in reasons]
    if idle:
        yield Text(f"  nothing like it in the graph: {', '.join(map(one_line, idle))}", style="dim")


def _pass_of(record: PassRecord) -> str:
    return record.text.split("(", 1)[0]


def _concerns(record: PassRecord, name: str) -> bool:
    return name == _pass_of(record) or name in record.figures


def _counts(records: Sequence[PassRecord], name: str) -> dict[str, int]:
    """Return the rewrites by rule over all runs of the pass, zeros included; of a pass that is one, under its name."""
    counts: defaultdict[str, int] = defaultdict(int)
    for record in records:
        rules = {rule: n for rule, n in record.figures.items() if isinstance(n, int) and not isinstance(n, bool)}
        if _pass_of(record) != name:
            counts[name] += rules.get(name, 0)
        elif sum(rules.values()) == record.rewrites and rules:
            for rule, count in rules.items():
                counts[rule] += count
        else:
            counts[name] += record.rewrites
    return dict(counts)


def _reasons(notes: Sequence[Note], name: str) -> dict[str, dict[str, list[str]]]:
    """Return rule -> reason -> places of the notes that the pass, or the rule, made."""
    found: defaultdict[str, defaultdict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for note in notes:
        if name in (note.pass_name, note.rule):
            found[note.rule or note.pass_name][note.reason].append(note.where)
    return {rule: dict(reasons) for rule, reasons in found.items()}


def _rule(rule: str, count: int, reasons: Mapping[str, Sequence[str]]) -> Iterator[Text]:
    left = sum(map(len, reasons.values()))
    parts = [plural(count, "rewrite")] if count else []
    parts += [f"{left:,} left alone"] if left else []
    yield Text(f"  {one_line(rule)}: {', '.join(parts)}", style="bold")
    for reason, places in sorted(reasons.items(), key=lambda item: -len(item[1])):
        yield Text(f"    {len(places):,}x {shortened(reason, 200)}")
        named = [shortened(place, 60) for place in places if place][:MAX_PLACES]
        rest = f", ... and {len(places) - len(named):,} more (--report has all)" if len(places) > MAX_PLACES else ""
        if named:
            yield Text(f"        {', '.join(named)}{rest}", style="dim")
