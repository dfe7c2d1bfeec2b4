"""``onnxedge training``: where onnxruntime-training lies, and its installation beside the environment."""

from __future__ import annotations

import click

from onnxedge.cli.options import verbose_option
from onnxedge.errors import one_line


@click.group(invoke_without_command=True, short_help="Install the package that models are trained with.")
@verbose_option
@click.pass_context
def training(ctx: click.Context, verbose: bool) -> None:
    """Tell where the package lies that engine `ort-training` runs on; `training install` puts it there."""
    del verbose
    if ctx.invoked_subcommand is None:
        from onnxedge.training.overlay import environment

        found = environment()
        click.echo(one_line(f"onnxruntime-training in {found.overlay}, run by {found.python}"))


@training.command()
@click.option("--python", default="", metavar="PATH", help="Interpreter to run in, with numpy and onnx; default: own.")
def install(python: str) -> None:
    """Install onnxruntime-training into a folder of its own (32 MB), never beside onnxruntime."""
    from onnxedge.training.overlay import install as put

    made = put(python)
    click.echo(one_line(f"installed in {made.overlay}, run by {made.python}"))
