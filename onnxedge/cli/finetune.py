"""``onnxedge finetune``: train a model on labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxedge.cli.options import model_argument
from onnxedge.cli.run import output_beside, read_settings, run_pipeline
from onnxedge.cli.training_options import files_of, pass_options, run_options, split_options


@click.command(short_help="Train a model on labels.")
@model_argument()
@run_options
@pass_options
def finetune(
    model: Path,
    recipe: Path | None,
    input_shapes: tuple[str, ...],
    more: tuple[str, ...],
    verbose: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Train MODEL on the labels of --train.

    The graph stays as it is, other weights come in. The epoch that does best on every second sample of --eval is taken,
    the others measure the result; a model that gets no better stays as it was. A run that was stopped goes on.
    """
    run, chosen = split_options(options, more)
    settings, overrides = read_settings(recipe, run, input_shapes)
    settings.setdefault("passes", "finetune")
    settings.setdefault("output", output_beside(model, "finetuned"))
    overrides["finetune"] = {**overrides.get("finetune", {}), **chosen}
    run_pipeline(model, settings, overrides, keep=files_of(recipe), quiet=quiet, verbose=verbose)
