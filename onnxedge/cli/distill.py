"""``onnxedge distill``: train a student to answer as its teacher does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxedge.cli.options import file_path, model_argument
from onnxedge.cli.run import output_beside, read_settings, run_pipeline
from onnxedge.cli.training_options import files_of, pass_options, run_options, split_options
from onnxedge.errors import UserError


@click.command(short_help="Train a student to answer as its teacher does.")
@model_argument("student")
@click.option("--teacher", type=file_path, metavar="FILE", help="Model that is learned from; of the same outputs.")
@run_options
@pass_options
@click.option("--temperature", type=click.FloatRange(0, min_open=True), help="Of class probabilities.  [default: 4]")
@click.option("--alpha", type=click.FloatRange(0, 1), help="Weight of the teacher against the labels.  [default: 0.9]")
@click.option(
    "--feature", "features", multiple=True, metavar="VALUE", help="A value inside to compare, NAME or STUDENT=TEACHER."
)
def distill(
    student: Path,
    teacher: Path | None,
    recipe: Path | None,
    input_shapes: tuple[str, ...],
    temperature: float | None,
    alpha: float | None,
    features: tuple[str, ...],
    more: tuple[str, ...],
    verbose: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Train STUDENT on what a teacher says of the samples of --train, and on their labels, where there are some.

    The graph stays as it is, other weights come in. The epoch that does best on every second sample of --eval is taken,
    the others measure the result; a student that gets no better stays as it was. A run that was stopped goes on.
    """
    run, chosen = split_options(options, more)
    own = {"temperature": temperature, "alpha": alpha, "features": list(features) or None}
    chosen |= {key: value for key, value in own.items() if value is not None}
    settings, overrides = read_settings(recipe, run, input_shapes)
    settings.setdefault("passes", "distill")
    settings.setdefault("output", output_beside(student, "distilled"))
    overrides["distill"] = {**overrides.get("distill", {}), **chosen}
    if teacher is not None:
        overrides["distill"]["teacher"] = str(teacher)
    named = overrides["distill"].get("teacher")
    if not named:
        raise UserError("distill: needs a teacher; give --teacher FILE")
    run_pipeline(student, settings, overrides, keep=files_of(recipe, Path(named)), quiet=quiet, verbose=verbose)
