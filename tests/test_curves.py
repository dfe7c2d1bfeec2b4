"""The picture of a training in the report: its points, its best epoch, and nothing where there is nothing to draw."""

from __future__ import annotations

import dataclasses
import re

from samples import a_report

from onnxedge.report.curves import curve_html, round_ticks
from onnxedge.report.html import to_html


def points(svg: str, style: str) -> list[tuple[float, float]]:
    found = re.search(rf'class="{style}" points="([^"]*)"', svg)
    assert found is not None
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in found[1].split())]


def test_loss_and_metric_are_drawn() -> None:
    curve = {"losses": [3.0, 2.0, 1.0], "metric": "top1", "values": [0.5, 0.6, 0.9, 0.8], "best": 2}
    svg = "".join(curve_html(curve))
    loss, metric = points(svg, "loss"), points(svg, "metric")
    assert [len(loss), len(metric)] == [3, 4]
    assert loss[0][1] < loss[1][1] < loss[2][1], "down is larger"
    assert metric[2][1] == min(y for _, y in metric)
    assert f'cx="{metric[2][0]:.1f}" cy="{metric[2][1]:.1f}"' in svg
    assert "top1, %" in svg


def test_nothing_is_drawn_of_one_point_and_what_is_not_finite_is_left_out() -> None:
    assert list(curve_html({})) == []
    assert list(curve_html({"losses": [1.0]})) == []
    svg = "".join(curve_html({"losses": [2.0, float("nan"), 1.0], "metric": "-MSE", "values": [None, None]}))
    assert len(points(svg, "loss")) == 2
    assert "metric" not in re.findall(r'class="(\w+)" points', svg)


def test_names_are_escaped() -> None:
    svg = "".join(curve_html({"losses": [], "metric": "<b>", "values": [1.0, 2.0], "best": 0}))
    assert "<b>" not in svg
    assert "&lt;b&gt;" in svg


def test_ticks_hold_all_values() -> None:
    for values in ([1.0, 1.0], [0.0, 0.0], [-5.0, 3.0], [1e-9, 2e-9], [1e6, 1e6 + 1]):
        ticks = round_ticks(values)
        assert ticks[0] <= min(values)
        assert max(values) <= ticks[-1]
        assert 2 <= len(ticks) <= 10


def test_the_page_has_it() -> None:
    report = a_report()
    figures = {"curve": {"losses": [2.0, 1.0]}, "chosen_by": "9 samples of <e.npz>"}
    trained = dataclasses.replace(report.passes[0], text="distill(epochs=2)", figures=figures)
    page = to_html(dataclasses.replace(report, passes=(trained,), training="t.npz 0123 (5 samples)"))
    assert "<h2>Training: <code>distill(epochs=2)</code></h2>" in page
    assert "epoch chosen by 9 samples of &lt;e.npz&gt;" in page
    assert "t.npz 0123 (5 samples)" in page
    assert "<h2>Training" not in to_html(report)
