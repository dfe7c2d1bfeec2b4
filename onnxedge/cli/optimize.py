"""``onnxedge optimize``: run a pipeline of passes over a model and show what came out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxedge.cli.options import (
    calib_option,
    complete_pass,
    complete_pipeline,
    eval_option,
    file_path,
    given,
    input_shape_option,
    metric_option,
    model_argument,
    preprocess_option,
    seed_option,
    target_option,
    threads_option,
    train_option,
    verbose_option,
)
from onnxedge.cli.run import output_beside, read_settings, run_pipeline
from onnxedge.errors import UserError

DEFAULT_PASSES = "fold,fuse"  #: exact up to float rounding: needs no data, loses no accuracy


@click.command(short_help="Run a pipeline of passes over a model and measure the result.")
@model_argument()
@click.option(
    "--passes",
    metavar="TEXT",
    shell_complete=complete_pipeline,
    help="Pipeline, such as 'prune(macs=0.5),fuse,int8'; onnxedge passes lists what there is.  "
    f"[default: {DEFAULT_PASSES}, which keep the accuracy]",
)
@click.option("--recipe", type=file_path, metavar="FILE", help="TOML or YAML with all of this; the command line wins.")
@target_option
@calib_option
@eval_option
@train_option
@preprocess_option
@click.option(
    "--ranges",
    multiple=True,
    type=click.Path(),
    metavar="FILE",
    help="Ranges of activations for passes that read them, JSON or a calibration cache of TensorRT; files are merged.",
)
@click.option(
    "-o",
    "--output",
    type=file_path,
    metavar="FILE",
    help="Where to write.  [default: MODEL.optimized.onnx beside the input]",
)
@click.option(
    "--report",
    type=file_path,
    metavar="FILE",
    help="Write all that was done as JSON, or as a page when FILE ends in .html.",
)
@click.option(
    "--verify",
    type=click.Choice(["off", "structure", "numeric"]),
    help="What is checked behind each pass.  [default: numeric]",
)
@click.option(
    "--measure/--no-measure",
    default=None,
    help="Compare latency and answers with the original's and take back what made it worse.  [default: measure]",
)
@click.option(
    "--memory",
    metavar="SIZE",
    help="What running the model may take, such as 16GiB; a larger one is only checked.  [default: 8GiB]",
)
@click.option(
    "--strict", is_flag=True, default=None, help="A pass that breaks its promise ends the run; else it is rolled back."
)
@click.option("--dump-dir", type=file_path, metavar="DIR", help="Keep the model behind each pass.")
@seed_option
@threads_option
@input_shape_option
@metric_option
@click.option("--max-drop", metavar="SHARE", help="Accuracy that may be lost, such as 2%.  [default: 2%]")
@click.option(
    "--explain",
    metavar="PASS",
    multiple=True,
    shell_complete=complete_pass,
    help="Print what each rule of a pass did, and why not more, with the nodes; once a pass.",
)
@verbose_option
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
def optimize(
    model: Path,
    recipe: Path | None,
    ranges: tuple[str, ...],
    input_shapes: tuple[str, ...],
    explain: tuple[str, ...],
    verbose: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Make MODEL smaller and faster by a pipeline of passes, and measure what came out.

    The input is never overwritten. Where a pass makes the model worse, the better model is written and the report
    says so.
    """
    settings, overrides = read_settings(recipe, given(options), input_shapes)
    settings.setdefault("passes", DEFAULT_PASSES)
    settings.setdefault("output", default_output(model))

    from onnxedge.registry import find_pass

    for name in explain:
        find_pass(name)
    if ranges:
        overrides = _with_ranges(settings["passes"], overrides, ranges)

    keep = (*((recipe,) if recipe is not None else ()), *map(Path, ranges))
    run_pipeline(model, settings, overrides, keep=keep, explain=explain, quiet=quiet, verbose=verbose)


def default_output(model: Path) -> Path:
    """Return the path of the output where the user names none: ``MODEL.optimized.onnx`` beside the input."""
    return output_beside(model, "optimized")


def _with_ranges(passes: str, overrides: dict[str, Any], files: tuple[str, ...]) -> dict[str, Any]:
    """Give the passes of a pipeline that have an option ``ranges`` these files.

    Raises:
        UserError: none has.
    """
    from onnxedge.pipeline import option_types, parse_pipeline
    from onnxedge.registry import find_pass

    steps = parse_pipeline(passes, find_pass, overrides)
    takers = {step.name for step in steps if "ranges" in option_types(type(step))}
    if not takers:
        raise UserError(f"--ranges: no pass of {passes!r} reads ranges")
    return {**overrides, **{name: {**overrides.get(name, {}), "ranges": list(files)} for name in takers}}
