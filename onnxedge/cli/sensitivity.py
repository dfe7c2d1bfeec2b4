"""``onnxedge sensitivity``: what each part of a model is worth, part by part."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxedge.cli.options import (
    calib_option,
    complete_pipeline,
    eval_option,
    file_path,
    given,
    input_shape_option,
    json_option,
    metric_option,
    model_argument,
    preprocess_option,
    read_input_shapes,
    read_share,
    seed_option,
    target_option,
    threads_option,
    verbose_option,
)
from onnxedge.errors import UserError, one_line, shortened
from onnxedge.report.text import plural, seconds_text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from onnxedge.report.sensitivity import Point, Sensitivity

MAX_PARTS = 40  #: lines of the table, the most sensitive parts first
_LEAST_NAME = 24  #: characters of a part's name
_SIZE = 10  #: characters of the width with its gap
_GAP = 3  #: characters between two columns


@click.command(short_help="Measure what each part of a model is worth: accuracy and latency against the share kept.")
@model_argument()
@click.option(
    "--passes",
    metavar="TEXT",
    shell_complete=complete_pipeline,
    help="What is tried part by part: prune or int8, behind other passes, such as 'fuse,int8'.  [default: prune]",
)
@calib_option
@eval_option
@preprocess_option
@target_option
@click.option("--ratios", metavar="LIST", help="Shares of a part that are kept.  [default: 0.75,0.5,0.25]")
@click.option(
    "--only", metavar="PATTERN", multiple=True, help="Only parts of that name, or with that in it: * and ? stand."
)
@click.option("--samples", type=click.IntRange(1), help="Samples that are compared on, at most.  [default: all]")
@metric_option
@seed_option
@threads_option
@input_shape_option
@click.option("--latency/--no-latency", default=None, help="Time each variation in turns with the original.")
@click.option("--thorough", is_flag=True, default=None, help="Mend each variation as the pass does; much slower.")
@click.option(
    "--plot",
    "plots",
    type=file_path,
    metavar="FILE",
    multiple=True,
    help="Draw it; FILE ends in .html or .png.",
)
@click.option("--csv", "csv_file", type=file_path, metavar="FILE", help="Write a line for each point.")
@json_option
@click.option(
    "--resume",
    type=file_path,
    metavar="FILE",
    help="Keep what is measured here, and go on from it.  [default: in the user's cache until the run is done]",
)
@verbose_option
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
def sensitivity(
    model: Path,
    ratios: str | None,
    input_shapes: tuple[str, ...],
    plots: tuple[Path, ...],
    csv_file: Path | None,
    as_json: bool,
    verbose: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Measure what each part of MODEL is worth, to decide what to prune and how far.

    Each channel group is narrowed alone to some shares of its width, then all groups at once; each time the accuracy
    (or, without labels, the error of the outputs) and the latency are compared with the original's. Each line is a
    group, each column a share that is kept: the channels that stay, the change of the metric, the latency. With int8,
    each kernel computes in integers alone.

    A run that was killed goes on where it was when it is started again. MODEL is not changed.

    \b
    Examples:
      onnxedge sensitivity model.onnx --calib calib.npz --eval test.npz --plot curves.html
      onnxedge sensitivity model.onnx --calib calib.npz --passes "prune(repair=none)" --ratios 0.5 --no-latency
      onnxedge sensitivity model.onnx --calib calib.npz --passes fuse,int8
      onnxedge sensitivity model.onnx --calib calib.npz --only "layer3*" --csv points.csv
    """
    settings = given(options) | {"input_shapes": read_input_shapes(input_shapes)}
    if ratios is not None:
        settings["ratios"] = [read_share(text, "--ratios") for text in ratios.split(",")]

    from onnxedge import sensitivity as measure
    from onnxedge.cli.console import Steps, output_console
    from onnxedge.report.charts import check_plots, draw

    data = [Path(options[key]) for key in ("calib", "eval") if options.get(key)]
    _check_files([*plots, *([csv_file] if csv_file else [])], [model, *data])
    check_plots(plots)
    with Steps(quiet=quiet, verbose=verbose) as steps:
        found = measure.sensitivity(model, progress=steps, watch=steps.watch, **settings)
    if csv_file is not None:
        _write(csv_file, found.to_csv())
    for file in plots:
        draw(found, file)
    if as_json:
        click.echo(found.to_json(), nl=False)
    elif not quiet:
        _print(found, output_console(), [*([csv_file] if csv_file else []), *plots], every_row=verbose)


def _check_files(written: Iterable[Path], inputs: Iterable[Path]) -> None:
    from onnxedge.model.files import refuse_overwrite

    taken: list[Path] = []
    for file in written:
        if file.resolve() in taken:
            raise UserError(f"{file}: is another file that this run writes; name a file of its own")
        taken.append(file.resolve())
        refuse_overwrite(file, inputs)


def _write(path: Path, text: str) -> None:
    from onnxedge.model.files import write_whole

    write_whole(path, text.encode("utf-8", "backslashreplace"))


def _print(found: Sensitivity, console: Console, files: Iterable[Path], *, every_row: bool) -> None:
    from rich.text import Text

    from onnxedge.report.sensitivity import base_text, hints, legend, most_sensitive, part_text, point_text, remarks

    def say(text: str, style: str = "") -> None:
        console.print(Text(one_line(text), style=style), soft_wrap=True)

    say(f"{Path(found.model).name} for {found.target}, {seconds_text(found.seconds)}", "bold")
    say(base_text(found))
    for line in found.unmeasured:
        say(shortened(line, 300), "yellow")
    say("")
    rows = found.rows()
    if not rows:
        say("nothing can be narrowed by so little: the target's widths allow none of these ratios")
        return
    every, single = [row for row in rows if row[0].part is None], most_sensitive(found)
    shown = single if every_row else single[:MAX_PARTS]
    for number, table in enumerate(_tables(found, [*every, *shown], console.width)):
        if number:
            say("")
        console.print(table)
    if len(shown) < len(single):
        say(f"... and {plural(len(single) - len(shown), 'part')} less sensitive (--verbose, --csv or --json)")
    say(f"{'channels kept, ' if any(found.ratios) else ''}{legend(found)}", "dim")
    for line in remarks(found):
        say(line, "dim")
    first, last = hints(found)
    for title, points in (("costs least", first), ("costs most", last)):
        if points:
            say("")
            say(title, "bold")
        for point in points:
            say(f"  {part_text(found, point, 60)} {point_text(found, point)}")
    notes = [note for note in found.notes if every_row or not note.where]
    for line in dict.fromkeys(": ".join(filter(None, (n.pass_name, n.where, n.reason))) for n in notes):
        say(shortened(line, 300), "yellow")
    for file in files:
        say(f"written: {file}")


def _tables(found: Sensitivity, rows: Sequence[list[Point]], width: int) -> Iterator[Table]:
    """Yield the table, as several with some of the ratios each where a line has no room for all."""
    from onnxedge.report.sensitivity import ratio_text

    columns: list[list[Text | str]] = []
    for ratio in found.ratios:
        cells = [{point.ratio: point for point in row}.get(ratio) for row in rows]
        columns.append([ratio_text(ratio), *("" if cell is None else _cell(found, cell) for cell in cells)])
    while columns:
        count = 1
        while count < len(columns) and _name_width(columns[: count + 1], width) >= _LEAST_NAME:
            count += 1
        yield _table(found, rows, columns[:count], max(_LEAST_NAME, _name_width(columns[:count], width)))
        columns = columns[count:]


def _name_width(columns: Sequence[Sequence[Text | str]], width: int) -> int:
    """Return the characters that a line leaves for the name beside the width and some columns."""
    return width - _SIZE - sum(_GAP + max(len(cell) for cell in column) for column in columns)


def _table(found: Sensitivity, rows: Sequence[list[Point]], columns: list[list[Text | str]], room: int) -> Table:
    from onnxedge.report.sensitivity import part_text
    from onnxedge.report.terminal import plain_table

    table = plain_table("part", ">width", *(f">{column[0]}" for column in columns))
    for number, row in enumerate(rows, 1):
        table.add_row(
            part_text(found, row[0], room),
            f"{row[0].size:,}",
            *(column[number] for column in columns),
            style="bold" if row[0].part is None else "",
        )
    return table


def _cell(found: Sensitivity, point: Point) -> Text:
    from rich.text import Text

    from onnxedge.report.sensitivity import is_harmless, loss_text

    style = "" if is_harmless(point) else "red" if point.loss > 0.05 else "yellow"
    parts = [(f"{point.kept:,}  " if point.ratio else "", "dim"), (loss_text(point), style)]
    if point.time is not None:
        parts.append((f"  x{point.time:.2f}", ""))
    return Text.assemble(*parts)
