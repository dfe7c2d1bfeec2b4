"""Options that the commands that train share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from onnxedge.cli.options import (
    calib_option,
    eval_option,
    file_path,
    input_shape_option,
    metric_option,
    preprocess_option,
    seed_option,
    target_option,
    threads_option,
    train_option,
    verbose_option,
)
from onnxedge.cli.run import read_options

F = TypeVar("F", bound=Callable[..., Any])

_NAMED = ("epochs", "lr", "batch", "minutes", "augment")  #: options of a pass that trains with a flag of their own

_OF_THE_RUN = (
    click.option(
        "--recipe", type=file_path, metavar="FILE", help="TOML or YAML with all of this; the command line wins."
    ),
    train_option,
    eval_option,
    calib_option,
    preprocess_option,
    target_option,
    click.option("-o", "--output", type=file_path, metavar="FILE", help="Where to write.  [default: beside the input]"),
    click.option(
        "--report",
        type=file_path,
        metavar="FILE",
        help="Write all that was done as JSON, or as a page with curves when FILE ends in .html.",
    ),
    metric_option,
    click.option("--max-drop", metavar="SHARE", help="Accuracy that may be lost, such as 2%.  [default: 2%]"),
    seed_option,
    threads_option,
    input_shape_option,
    verbose_option,
    click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors."),
)
_OF_THE_TRAINING = (
    click.option(
        "--epochs",
        type=click.IntRange(1),
        help="Times that all training samples are seen.  [default: 30, with --minutes what fits]",
    ),
    click.option("--minutes", type=click.FloatRange(0), help="Time to train; the epochs are made to fit."),
    click.option("--lr", type=click.FloatRange(0), help="Highest learning rate.  [default: 0.0003]"),
    click.option("--batch", type=click.IntRange(1), help="Samples a step.  [default: 64]"),
    click.option(
        "--augment",
        multiple=True,
        metavar="STEP",
        help="Change samples at random: flip, crop:4, scale:0.1, noise:0.1, shift:0.1, mix:0.5, module:function; in "
        "turn.  [default: auto]",
    ),
    click.option(
        "--option",
        "more",
        multiple=True,
        metavar="KEY=VALUE",
        help="Another option of the pass; see onnxedge passes show.",
    ),
)


def run_options(function: F) -> F:
    """Declare what every run takes."""
    return _all(function, _OF_THE_RUN)


def pass_options(function: F) -> F:
    """Declare what the pass that trains takes."""
    return _all(function, _OF_THE_TRAINING)


def _all(function: F, options: tuple[Callable[[Any], Any], ...]) -> F:
    for option in reversed(options):
        function = option(function)
    return function


def split_options(options: Mapping[str, Any], more: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what the user gave as (arguments of the run, options of the pass)."""
    given = {key: value for key, value in options.items() if value is not None and value != ()}
    chosen = {key: list(value) if isinstance(value, tuple) else value for key, value in given.items() if key in _NAMED}
    return {key: value for key, value in given.items() if key not in _NAMED}, {**read_options(more), **chosen}


def files_of(*files: Path | None) -> tuple[Path, ...]:
    """Return the files that were given."""
    return tuple(file for file in files if file is not None)
