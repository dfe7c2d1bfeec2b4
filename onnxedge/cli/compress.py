"""``onnxedge compress``: prune, distill, fuse and quantize in one step, from a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxedge.cli.options import file_path
from onnxedge.cli.run import output_beside, read_settings, run_pipeline
from onnxedge.cli.training_options import files_of, pass_options, run_options, split_options
from onnxedge.errors import UserError

RECIPE = Path(__file__).parent.parent / "recipes" / "compress.toml"  #: that comes with onnxedge


@click.command(short_help="Prune, distill, fuse and quantize a model in one step.")
@click.argument("model", type=file_path, required=False)
@run_options
@pass_options
@click.option("--macs", type=click.FloatRange(0, 1, min_open=True), help="Share of the MACs that prune keeps.")
@click.option("--show-recipe", is_flag=True, help="Print the recipe that comes with onnxedge, and end.")
def compress(
    model: Path | None,
    recipe: Path | None,
    input_shapes: tuple[str, ...],
    more: tuple[str, ...],
    macs: float | None,
    show_recipe: bool,
    verbose: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Make MODEL small in one step: prune to half of the MACs, distill from the model itself, fuse, quantize to int8.

    What is done stands in a recipe (--show-recipe); one of your own (--recipe) takes its place. --epochs, --lr and the
    like are for the pass that trains.
    """
    if show_recipe:
        click.echo(RECIPE.read_text("utf-8"), nl=False)
        return
    if model is None:
        raise UserError("compress: needs a model; see onnxedge compress --help")
    run, chosen = split_options(options, more)
    settings, overrides = read_settings(recipe or RECIPE, run, input_shapes)
    if "passes" not in settings:
        raise UserError(f"recipe {recipe}: has no passes; onnxedge compress --show-recipe prints one")
    if "train" not in settings:
        raise UserError("compress: needs samples to train on; give --train DATA")
    if macs is not None:
        settings["passes"], overrides = _pruned_to(settings["passes"], overrides, macs)
    if chosen:
        for name in _training_passes(settings["passes"]):
            overrides[name] = {**overrides.get(name, {}), **chosen}
    settings.setdefault("output", output_beside(model, "compressed"))
    run_pipeline(model, settings, overrides, keep=files_of(recipe), quiet=quiet, verbose=verbose)


def _training_passes(passes: str) -> list[str]:
    """Return the passes of a pipeline that train.

    Raises:
        UserError: there is none.
    """
    from onnxedge.pipeline import parse_pipeline
    from onnxedge.registry import find_pass

    found = [step.name for step in parse_pipeline(passes, find_pass) if step.trains]
    if not found:
        raise UserError(f"compress: no pass of {passes!r} trains; leave --epochs, --lr and the like out")
    return found


def _pruned_to(passes: str, overrides: dict[str, Any], macs: float) -> tuple[str, dict[str, Any]]:
    """Return a pipeline in which prune keeps another share of the MACs.

    Raises:
        UserError: it does not prune.
    """
    from dataclasses import replace

    from onnxedge.pipeline import format_pipeline, option_types, parse_pipeline
    from onnxedge.registry import find_pass

    steps = parse_pipeline(passes, find_pass)
    if not any("macs" in option_types(type(step)) for step in steps):
        raise UserError(f"compress: no pass of {passes!r} takes --macs")
    given: dict[str, Any] = {"macs": macs}
    made = [replace(step, **given) if "macs" in option_types(type(step)) else step for step in steps]
    return format_pipeline(made), overrides
