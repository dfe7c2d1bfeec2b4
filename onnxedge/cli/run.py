"""What the commands that run a pipeline have in common."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from onnxedge.cli.options import read_input_shapes, read_share, read_size
from onnxedge.errors import UserError

output_option = click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE")
Overrides = dict[str, dict[str, Any]]


def output_beside(model: Path, what: str) -> Path:
    """Return the path of the output where the user names none: ``MODEL.what.onnx`` beside the input."""
    return model.with_name(f"{model.stem or 'model'}.{what}.onnx")


def read_settings(
    recipe: Path | None, options: Mapping[str, Any], input_shapes: Iterable[str]
) -> tuple[dict[str, Any], Overrides]:
    """Return the arguments of the run and the recipe's pass options; what the command line gives wins.

    Raises:
        UserError: the recipe cannot be read, or a text is no share, size or shape.
    """
    settings, overrides = dict(options), Overrides()
    if recipe is not None:
        from onnxedge.recipe import read_recipe

        read = read_recipe(recipe)
        settings = {**read.settings, **options}
        overrides = {name: dict(table) for name, table in read.overrides.items()}
    shapes = tuple(input_shapes)
    if shapes:
        settings["input_shapes"] = read_input_shapes(shapes)
    if "max_drop" in settings:
        settings["max_drop"] = read_share(settings["max_drop"], "--max-drop")
    if "memory" in settings:
        settings["memory"] = read_size(settings["memory"], "--memory")
    return settings, overrides


def read_options(texts: Sequence[str]) -> dict[str, Any]:
    """Return the options of a pass out of texts such as ``weight_decay=0.1`` or ``features=[a,b]``.

    Raises:
        UserError: a text of another form, or one option twice.
    """
    found: dict[str, Any] = {}
    for text in texts:
        key, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not key or not value:
            raise UserError(f"--option {text!r}: needs KEY=VALUE, such as weight_decay=0.1")
        if key in found:
            raise UserError(f"--option: {key!r} is given twice")
        listed = value.startswith("[") and value.endswith("]")
        found[key] = [item.strip() for item in value[1:-1].split(",") if item.strip()] if listed else value
    return found


def run_pipeline(
    model: Path,
    settings: Mapping[str, Any],
    overrides: Overrides,
    *,
    keep: Iterable[Path] = (),
    explain: Sequence[str] = (),
    quiet: bool,
    verbose: bool,
) -> None:
    """Run a pipeline and print what came out.

    Args:
        model: the file.
        settings: arguments of :func:`onnxedge.driver.optimize`.
        overrides: pass name -> options.
        keep: more files that nothing may be written over.
        explain: passes whose rules are told one by one.
        quiet: print nothing but errors.
        verbose: tell every step and every note.
    """
    from onnxedge import driver
    from onnxedge.cli.console import Steps, output_console

    with Steps(quiet=quiet, verbose=verbose) as steps:
        result = driver.optimize(
            model, overrides=overrides, keep=tuple(keep), progress=steps, watch=steps.watch, **settings
        )
    if quiet:
        return
    from onnxedge.report.explanation import print_explanation
    from onnxedge.report.terminal import print_report

    console = output_console()
    print_report(result.report, console, every_note=verbose)
    for name in explain:
        print_explanation(result.report, name, console)
