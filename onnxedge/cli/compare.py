"""``onnxedge compare``: how a second model differs from a first."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxedge.cli.options import (
    given,
    input_shape_option,
    json_option,
    metric_option,
    model_argument,
    preprocess_option,
    read_input_shapes,
    seed_option,
    threads_option,
    verbose_option,
)
from onnxedge.errors import one_line, shortened
from onnxedge.report.text import plural

if TYPE_CHECKING:
    from rich.console import Console

    from onnxedge.comparison import Comparison

MAX_OPERATORS = 30  #: operators whose count changed that are listed


@click.command(short_help="Compare two models: structure, size, outputs, speed.")
@model_argument("first")
@model_argument("second")
@click.option("--data", "--eval", "data", metavar="DATA", help="Samples to compare on; synthetic ones otherwise.")
@preprocess_option
@metric_option
@seed_option
@threads_option
@input_shape_option
@click.option("--latency/--no-latency", default=True, help="Time both models in turns.")
@json_option
@verbose_option
def compare(
    first: Path,
    second: Path,
    data: str | None,
    preprocess: str | None,
    metric: str | None,
    seed: int | None,
    threads: int | None,
    input_shapes: tuple[str, ...],
    latency: bool,
    as_json: bool,
    verbose: bool,
) -> None:
    """Compare model SECOND with model FIRST: structure, size, outputs, accuracy and latency."""
    options = given({"data": data, "preprocess": preprocess, "metric": metric, "seed": seed, "threads": threads})
    shapes = read_input_shapes(input_shapes)

    from onnxedge.cli.console import Steps, output_console
    from onnxedge.comparison import compare as compare_models

    with Steps(verbose=verbose) as steps:
        steps.watch(f"comparing {second.name} with {first.name}")
        found = compare_models(first, second, input_shapes=shapes, latency=latency, progress=steps, **options)
    if as_json:
        from onnxedge.report.records import plain

        click.echo(json.dumps(plain(dataclasses.asdict(found)), indent=1))
        return
    _print(found, first, second, output_console(), every_row=verbose)


def _print(found: Comparison, first: Path, second: Path, console: Console, *, every_row: bool) -> None:
    from rich.text import Text

    from onnxedge.report.terminal import before_after_table, fidelity_rows, plain_table, size_rows, speed_row

    console.print(Text(f"{one_line(first.name)} -> {one_line(second.name)}", style="bold"), soft_wrap=True)
    rows = size_rows(found.before, found.after)
    if found.speed is not None:
        rows.append(speed_row(found.speed))
    if found.fidelity is not None:
        rows.extend(fidelity_rows(found.fidelity))
    console.print()
    console.print(before_after_table(rows, ("first", "second")))
    console.print()
    if found.fidelity is not None and not found.fidelity.labelled:
        console.print(Text("accuracy was not measured: no labelled samples (--data)", style="yellow"))
    for line in found.interface[:MAX_OPERATORS]:
        console.print(Text(f"interface: {shortened(line, 300)}", style="red"))
    if found.unmeasured:
        console.print(Text(f"not run side by side: {shortened(found.unmeasured, 300)}", style="yellow"))

    if found.fidelity is None or not found.fidelity.labelled or found.interface:
        console.print()
    names = {**found.operators_before, **found.operators_after}
    changes = [
        (name, found.operators_before.get(name, 0), found.operators_after.get(name, 0))
        for name in names
        if found.operators_before.get(name, 0) != found.operators_after.get(name, 0)
    ]
    if not changes:
        console.print(Text("the same operators, equally often"))
        return
    changes.sort(key=lambda change: (-abs(change[2] - change[1]), change[0]))
    table = plain_table("operator", ">first", ">second", ">change")
    for name, before, after in changes if every_row else changes[:MAX_OPERATORS]:
        table.add_row(shortened(name, 40), f"{before:,}", f"{after:,}", f"{after - before:+,}")
    console.print(table)
    if len(changes) > MAX_OPERATORS and not every_row:
        console.print(Text(f"... and {plural(len(changes) - MAX_OPERATORS, 'operator')} more (--verbose or --json)"))
