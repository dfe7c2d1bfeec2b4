"""Sensitivity drawn: as one HTML page that needs nothing else, or as a PNG by matplotlib where it is installed."""

from __future__ import annotations

import importlib.util
import io
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from onnxedge.errors import UserError, one_line
from onnxedge.model.files import write_whole
from onnxedge.report.html import STYLE
from onnxedge.report.sensitivity import (
    Point,
    Sensitivity,
    base_text,
    hints,
    is_harmless,
    legend,
    loss_text,
    most_sensitive,
    part_text,
    point_text,
    ratio_text,
    remarks,
)

_STYLE = """
svg { width: 100%; height: auto; } svg text { font: 12px system-ui, sans-serif; fill: currentColor; }
.axis { stroke: var(--line); } polyline { fill: none; } .part { stroke: var(--soft); opacity: .4; }
.whole { stroke-width: 2.5; } .value { stroke: #2868c8; } .time { stroke: #c86428; }
td.cell { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
"""
_MAX_DB = 60.0  #: outputs closer than this are drawn as equal
_PARTS = 40  #: parts in a picture, the most sensitive ones
_COLUMNS = 6  #: columns of cells that have room for two figures on one line
_WORST = 0.1  #: loss (of the metric, or noise over signal) at which a cell has its full colour


def check_plots(files: Iterable[Path]) -> None:
    """Refuse files that cannot be drawn, before any minute is spent.

    Raises:
        UserError: a name that says no format, or a PNG where matplotlib is not installed.
    """
    for file in files:
        if file.suffix.lower() not in (".html", ".htm", ".png"):
            raise UserError(f"--plot {file}: ends in none of .html, .png")
        if file.suffix.lower() == ".png" and importlib.util.find_spec("matplotlib") is None:
            raise UserError(f"--plot {file}: needs matplotlib: pip install 'onnxedge[plot]', or name a file.html")


def draw(found: Sensitivity, path: Path) -> None:
    """Write a page or a picture, as the name ends."""
    if path.suffix.lower() == ".png":
        write_whole(path, to_png(found))
    else:
        write_whole(path, to_html(found).encode("utf-8", "backslashreplace"))


def to_html(found: Sensitivity) -> str:
    """Return a page: the curves over all parts, every point in a table of colours, and how to repeat the run."""
    return "\n".join(_page(found)) + "\n"


def _page(found: Sensitivity) -> Iterator[str]:
    title = _text(Path(found.model).name or "model in memory")
    yield '<!doctype html><html lang="en"><head><meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>onnxedge sensitivity: {title}</title><style>{STYLE}{_STYLE}</style></head><body>"
    yield f"<h1>{title}: sensitivity for {_text(found.target)}</h1>"
    yield f'<p class="verdict">{_text(base_text(found))}</p>'
    yield from (f'<p class="soft">{_text(line)}</p>' for line in (*found.unmeasured, *remarks(found)))
    first, last = hints(found)
    for heading, points in (("Costs least", first), ("Costs most", last)):
        if points:
            yield f"<h2>{heading}</h2><ul>"
            yield from (
                f"<li><code>{_text(part_text(found, p))}</code> {_text(point_text(found, p))}</li>" for p in points
            )
            yield "</ul>"
    if any(found.ratios):
        yield "<h2>Against the share that is kept</h2>"
        yield from _svg(found)
    if found.points:
        yield "<h2>Part by part</h2>"
        yield f'<p class="soft">{_text(legend(found))}</p>'
        yield from _cells(found)
    yield "<h2>The run</h2><table>"
    for name, text in _facts(found):
        yield f"<tr><td>{name}</td><td>{_text(text)}</td></tr>"
    yield "</table></body></html>"


def _cells(found: Sensitivity) -> Iterator[str]:
    ratios = found.ratios
    yield '<div class="scroll"><table><tr><th>part</th><th class="number">width</th>'
    yield "".join(f'<th class="number">{ratio_text(ratio)}</th>' for ratio in ratios) + "</tr>"
    for row in found.rows():
        cells = {point.ratio: point for point in row}
        name = _text(part_text(found, row[0]))
        yield f"<tr><td>{f'<b>{name}</b>' if row[0].part is None else f'<code>{name}</code>'}</td>"
        yield f'<td class="number">{row[0].size:,}</td>'
        yield "".join(_cell(found, cells.get(ratio)) for ratio in ratios) + "</tr>"
    yield "</table></div>"


def _cell(found: Sensitivity, point: Point | None) -> str:
    if point is None:
        return "<td></td>"
    share = 0 if is_harmless(point) else round(10 + 60 * min(1.0, point.loss / _WORST))
    style = f' style="background: color-mix(in srgb, #d03020 {share}%, transparent)"' if share else ""
    time = f" <span class=soft>x{point.time:.2f}</span>" if point.time is not None else ""
    return f'<td class="cell"{style} title="{_text(point_text(found, point))}">{loss_text(point)}{time}</td>'


@dataclass(frozen=True)
class _Panel:
    """Say what a chart shows: a figure of each point over the share kept; ``base`` is the original's, if it has one.

    Parts that are changed whole have no share.
    """

    name: str
    style: str
    colour: str
    base: float | None
    figure: Callable[[Point], float | None]

    def lines(self, found: Sensitivity) -> list[tuple[Point, list[tuple[float, float]]]]:
        """Return the curve of each part with its first point, all parts at once last, so that it lies on top."""
        lines: list[tuple[Point, list[tuple[float, float]]]] = []
        for row in reversed(found.rows()):
            figures = [(point.kept / point.size, self.figure(point)) for point in row if point.ratio]
            curve = [(x, y) for x, y in figures if y is not None]
            if curve:
                lines.append((row[0], [*([(1.0, self.base)] if self.base is not None else []), *curve]))
        return lines


def _panels(found: Sensitivity) -> list[_Panel]:
    if found.baseline.value is not None:
        panel = _Panel(
            f"{found.metric}, %",
            "value",
            "#2868c8",
            100 * found.baseline.value,
            lambda point: None if point.value is None else 100 * point.value,
        )
    else:
        name = "signal to error of the outputs, dB"
        panel = _Panel(name, "value", "#2868c8", None, lambda point: min(_MAX_DB, point.sqnr_db or _MAX_DB))
    timed = _Panel("latency over the original's", "time", "#c86428", 1.0, lambda point: point.time)
    return [panel, timed] if any(point.time is not None for point in found.points) else [panel]


def _ticks(values: Iterable[float]) -> list[float]:
    """Return round numbers that hold all values, four to nine of them."""
    found = list(values)
    low, high = min(found), max(found)
    span = max(high - low, 1e-3)
    step = 10 ** math.floor(math.log10(span))
    step *= next(factor for factor in (0.2, 0.5, 1, 2) if span / (step * factor) <= 7)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 10) for number in range(first, max(last, first + 1) + 1)]


def _least_share(found: Sensitivity) -> float:
    """Return where the axis of the share kept begins: 0, a quarter, a half or three quarters."""
    return min(0.75, math.floor(4 * min(point.kept / point.size for point in found.points if point.ratio)) / 4)


def _svg(found: Sensitivity) -> Iterator[str]:
    """Yield charts: x the share of the channels kept, y what is left of the metric (or decibels), and the latency."""
    panels = _panels(found)
    width = 380 * len(panels)
    yield f'<svg viewBox="0 0 {width} 270" style="max-width: {1.3 * width:g}px" role="img" aria-label="curves">'
    for number, panel in enumerate(panels):
        yield from _chart(panel, found, 380 * number + 48)
    yield '</svg><p class="soft">Thick: all parts at once. Thin: each part alone.</p>'


def _chart(panel: _Panel, found: Sensitivity, left: int) -> Iterator[str]:
    lines = panel.lines(found)
    ticks = _ticks(y for _, curve in lines for _, y in curve)
    top, width, height, low, high = 24, 310, 200, ticks[0], ticks[-1]
    least = _least_share(found)

    def across(x: float) -> str:
        return f"{left + width * (x - least) / (1 - least):.1f}"

    def down(y: float) -> str:
        return f"{top + height * (high - y) / (high - low):.1f}"

    yield f'<text x="{left}" y="14">{_text(panel.name)}</text>'
    for tick in ticks:
        yield f'<line class="axis" x1="{left}" x2="{left + width}" y1="{down(tick)}" y2="{down(tick)}"/>'
        yield f'<text x="{left - 6}" y="{down(tick)}" dy="4" text-anchor="end">{tick:g}</text>'
    for x in (x for x in (0.0, 0.25, 0.5, 0.75, 1.0) if x >= least):
        yield f'<text x="{across(x)}" y="{top + height + 18}" text-anchor="middle">{x:g}</text>'
    yield f'<text x="{left + width / 2:g}" y="{top + height + 36}" text-anchor="middle">share kept</text>'
    for first, curve in lines:
        points = " ".join(f"{across(x)},{down(y)}" for x, y in curve)
        style = f"whole {panel.style}" if first.part is None else "part"
        yield f'<polyline class="{style}" points="{points}"><title>{_text(first.name)}</title></polyline>'


def _facts(found: Sensitivity) -> Iterator[tuple[str, str]]:
    facts = {
        "passes": found.pipeline,
        "seed": str(found.seed),
        "threads": str(found.threads),
        "calibration": found.calibration,
        "evaluation": found.evaluation,
        "preprocess": found.preprocess,
        "versions": ", ".join(f"{name} {number}" for name, number in found.versions.items()),
    }
    yield from ((name, text) for name, text in facts.items() if text)


def to_png(found: Sensitivity) -> bytes:
    """Return a picture: the curves on the left, the parts as coloured cells on the right, the most sensitive first."""
    from matplotlib.figure import Figure

    panels = _panels(found) if any(found.ratios) else []
    every, single = [row for row in found.rows() if row[0].part is None], most_sensitive(found)[:_PARTS]
    rows = [*every, *single]
    figure = Figure(figsize=(13, max(6.0, 2.0 + 0.3 * len(rows))), layout="constrained")
    grid = figure.add_gridspec(max(len(panels), 1), 2 if panels else 1, width_ratios=(1, 1.3) if panels else (1,))
    for number, panel in enumerate(panels):
        axes = figure.add_subplot(grid[number, 0])
        for first, curve in panel.lines(found):
            whole = first.part is None
            colour, width, alpha = (panel.colour, 2.5, 1.0) if whole else ("gray", 1.0, 0.5)
            x, y = zip(*curve, strict=True)
            label = "all parts at once" if whole else None
            axes.plot(x, y, color=colour, linewidth=width, alpha=alpha, marker="o", markersize=2 * width, label=label)
        axes.set(
            xlabel="share kept (thin: each part alone)", ylabel=panel.name, xlim=(_least_share(found) - 0.02, 1.02)
        )
        axes.grid(alpha=0.3)
        if any(point.part is None and point.ratio for point in found.points):
            axes.legend(loc="best")
    if rows:
        _draw_cells(figure.add_subplot(grid[:, -1]), found, rows)
    figure.suptitle(f"{Path(found.model).name}, {base_text(found)}", fontsize=10)
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()


def _draw_cells(axes: Any, found: Sensitivity, rows: Sequence[Sequence[Point]]) -> None:
    """Draw a row of cells for each part, a column for each ratio, the colour by what is lost."""
    ratios = found.ratios
    places = {ratio: column for column, ratio in enumerate(ratios)}
    losses = [[math.nan] * len(ratios) for _ in rows]
    size, gap = (8, "  ") if len(ratios) <= _COLUMNS else (7, "\n")
    for line, row in enumerate(rows):
        for point in row:
            losses[line][places[point.ratio]] = 0.0 if is_harmless(point) else min(1.0, point.loss / _WORST)
            text = loss_text(point) + (f"{gap}x{point.time:.2f}" if point.time is not None else "")
            axes.text(places[point.ratio], line, text, ha="center", va="center", fontsize=size)
    axes.imshow(losses, cmap="Reds", vmin=0, vmax=1.6, aspect="auto")
    heads = [ratio_text(ratio).replace(" ", "\n", 1) for ratio in ratios]
    axes.set_xticks(range(len(ratios)), heads, fontsize=8)
    axes.set_yticks(range(len(rows)), [part_text(found, row[0], 44) for row in rows], fontsize=8)
    axes.set_title(legend(found), fontsize=9)


def _text(text: str) -> str:
    return escape(one_line(text))
