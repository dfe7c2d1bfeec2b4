"""Training drawn: the loss of each epoch, and what chose the weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from onnxedge.errors import one_line

STYLE = """
svg.curve { width: 100%; height: auto; max-width: 52rem; }
svg.curve text { font: 12px system-ui, sans-serif; fill: currentColor; }
svg.curve line { stroke: var(--line); } svg.curve polyline { fill: none; stroke-width: 2; }
.loss { stroke: #c86428; } .metric { stroke: #2868c8; } .best { fill: #2868c8; }
"""
_WIDTH, _HEIGHT, _TOP = 310, 180, 24
_SHARES = ("top1", "top5", "agreement")


def curve_html(curve: Mapping[str, Any]) -> Iterator[str]:
    """Yield a picture of a training: loss by epoch, and the metric by epoch with the epoch that was taken.

    Args:
        curve: ``losses`` of epochs 1, 2, ...; ``metric``, its ``values`` of epochs 0, 1, ... and ``best``, where one
            was measured.
    """
    losses = _finite(curve.get("losses", ()), 1)
    values = _finite(curve.get("values", ()), 0)
    name = str(curve.get("metric", ""))
    if name in _SHARES:
        values = [(epoch, 100 * value) for epoch, value in values]
        name += ", %"
    panels = [("loss", "loss", losses), (name, "metric", values)]
    shown = [panel for panel in panels if len(panel[2]) > 1]
    if not shown:
        return
    label = "loss and metric by epoch"
    yield f'<svg class="curve" viewBox="0 0 {400 * len(shown)} 250" role="img" aria-label="{label}">'
    for number, (title, style, points) in enumerate(shown):
        best = curve.get("best") if style == "metric" else None
        yield from _panel(title, style, points, 400 * number + 62, best)
    yield "</svg>"


def _finite(values: Sequence[Any], first: int) -> list[tuple[int, float]]:
    pairs = enumerate(values, first)
    return [(epoch, float(v)) for epoch, v in pairs if isinstance(v, int | float) and math.isfinite(v)]


def _panel(title: str, style: str, points: Sequence[tuple[int, float]], left: int, best: int | None) -> Iterator[str]:
    ticks = round_ticks([value for _, value in points])
    low, high = ticks[0], ticks[-1]
    first, last = points[0][0], points[-1][0]

    def across(epoch: float) -> str:
        return f"{left + _WIDTH * (epoch - first) / max(last - first, 1):.1f}"

    def down(value: float) -> str:
        return f"{_TOP + _HEIGHT * (high - value) / (high - low):.1f}"

    yield f'<text x="{left}" y="14">{escape(one_line(title))}</text>'
    for tick in ticks:
        yield f'<line x1="{left}" x2="{left + _WIDTH}" y1="{down(tick)}" y2="{down(tick)}"/>'
        yield f'<text x="{left - 6}" y="{down(tick)}" dy="4" text-anchor="end">{tick:g}</text>'
    for epoch in sorted({first, (first + last) // 2, last}):
        yield f'<text x="{across(epoch)}" y="{_TOP + _HEIGHT + 18}" text-anchor="middle">{epoch}</text>'
    yield f'<text x="{left + _WIDTH / 2:g}" y="{_TOP + _HEIGHT + 36}" text-anchor="middle">epoch</text>'
    path = " ".join(f"{across(epoch)},{down(value)}" for epoch, value in points)
    yield f'<polyline class="{style}" points="{path}"/>'
    for epoch, value in points:
        if epoch == best:
            yield f'<circle class="best" cx="{across(epoch)}" cy="{down(value)}" r="4"><title>taken</title></circle>'


def round_ticks(values: Sequence[float]) -> list[float]:
    """Return round numbers that hold all values, three to nine of them."""
    low, high = min(values), max(values)
    span = max(high - low, 1e-6, 1e-3 * max(abs(low), abs(high)))
    step = 10 ** math.floor(math.log10(span))
    step *= next(factor for factor in (0.2, 0.5, 1, 2) if span / (step * factor) <= 7)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 10) for number in range(first, max(last, first + 1) + 1)]
