"""Options that several commands share: their types, their completion, and how their text is read."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from onnxedge.errors import UserError

F = TypeVar("F", bound=Callable[..., Any])

file_path = click.Path(path_type=Path)


def model_argument(name: str = "model") -> Callable[[F], F]:
    """Declare a model file as an argument; that it exists and is a model is checked when it is loaded."""
    return click.argument(name, type=file_path)


target_option: Callable[[F], F] = click.option(
    "--target",
    metavar="NAME|FILE.toml",
    shell_complete=lambda ctx, param, incomplete: complete_names("onnxedge.targets", incomplete),
    help="Runtime and hardware that the model is made for.",
)
input_shape_option: Callable[[F], F] = click.option(
    "--input-shape",
    "input_shapes",
    multiple=True,
    metavar="NAME:1x3x224x224",
    help="Shape of an input to measure with, where it is free; once an input.",
)
threads_option: Callable[[F], F] = click.option(
    "--threads", type=click.IntRange(1, 1024), help="Threads of ONNX Runtime, also in what is timed.  [default: 1]"
)
seed_option: Callable[[F], F] = click.option(
    "--seed", type=click.IntRange(0, 2**63 - 1), help="Seed of all randomness.  [default: 0]"
)
verbose_option: Callable[[F], F] = click.option(
    "-v", "--verbose", is_flag=True, help="Tell every step and every note; show tracebacks."
)
calib_option: Callable[[F], F] = click.option(
    "--calib",
    type=click.Path(),
    metavar="DATA",
    help="Samples to fit on: npz, npy, a folder, or module:function.",
)
eval_option: Callable[[F], F] = click.option(
    "--eval", type=click.Path(), metavar="DATA", help="Labelled samples to measure on; nothing is fitted to them."
)
train_option: Callable[[F], F] = click.option(
    "--train",
    "--data",
    "train",
    type=click.Path(),
    metavar="DATA",
    help="Samples to train on, in the same forms as --calib; labels `y` for losses that need some.",
)
metric_option: Callable[[F], F] = click.option(
    "--metric", metavar="NAME", help="What is measured where the samples have labels.  [default: top1]"
)
json_option: Callable[[F], F] = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
preprocess_option: Callable[[F], F] = click.option(
    "--preprocess",
    metavar="TEXT",
    help='What is done to the samples, such as "resize=256,crop=224,scale=1/255,mean=...,std=...,layout=NCHW".',
)


def complete_names(group: str, incomplete: str) -> list[CompletionItem]:
    """Return the registered names that begin so, from the entry points alone; nothing of a plugin is imported."""
    from importlib.metadata import entry_points

    names = sorted({point.name for point in entry_points(group=group)})
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def complete_pass(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the name of one pass."""
    del ctx, param
    return complete_names("onnxedge.passes", incomplete)


def complete_pipeline(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the last pass of a pipeline text; inside parentheses there is nothing to offer."""
    del ctx, param
    if incomplete.count("(") > incomplete.count(")"):
        return []
    before, comma, last = incomplete.rpartition(",")
    return [CompletionItem(f"{before}{comma}{item.value}") for item in complete_names("onnxedge.passes", last)]


def read_input_shapes(texts: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """Turn ``NAME:1x3x224x224`` into shapes by input name; the name may hold colons itself.

    Raises:
        UserError: a text of another form, or the same input twice.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for text in texts:
        name, colon, dims = text.rpartition(":")
        numbers = dims.lower().split("x")
        if not colon or not name or not all(n.isascii() and n.isdigit() and 0 < int(n) < 2**31 for n in numbers):
            raise UserError(f"--input-shape {text!r}: needs NAME:DIMxDIM..., such as input:1x3x224x224")
        if name in shapes:
            raise UserError(f"--input-shape: input {name!r} is given twice")
        shapes[name] = tuple(map(int, numbers))
    return shapes


def read_share(text: str | float, option: str) -> float:
    """Turn ``2%`` or ``0.02`` into a share of 0..1.

    Raises:
        UserError: no number, or outside of 0..1.
    """
    written = str(text).strip()
    try:
        share = float(written[:-1]) / 100 if written.endswith("%") else float(written)
    except ValueError:
        raise UserError(f"{option}: {written!r} is not a number; write 2% or 0.02") from None
    if not 0 <= share <= 1:
        raise UserError(f"{option}: {written!r} is not between 0 and 100 %; write 2% or 0.02")
    return share


def read_size(text: str | int, option: str) -> int:
    """Turn ``16GiB``, ``500MB`` or a number of bytes into bytes.

    Raises:
        UserError: of another form.
    """
    found = re.fullmatch(r"\s*(\d{1,18}(?:\.\d{1,6})?)\s*([kmgt]?)(i?)b?\s*", str(text), re.IGNORECASE | re.ASCII)
    if found is None:
        raise UserError(f"{option}: {str(text)!r} is no size; write 16GiB or 500MB")
    number, prefix, binary = found.groups()
    return int(float(number) * (1024 if binary else 1000) ** " kmgt".index(prefix.lower() or " "))


def given(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that the user gave, so that defaults stand in one place: the function that is called."""
    return {key: value for key, value in options.items() if value is not None}
