"""``onnxedge passes``: the registered passes, and all that one of them says about itself."""

from __future__ import annotations

import click

from onnxedge.cli.options import complete_pass, verbose_option
from onnxedge.errors import one_line
from onnxedge.report.text import plural


@click.group(invoke_without_command=True, short_help="List the passes; passes show NAME tells all about one.")
@verbose_option
@click.pass_context
def passes(ctx: click.Context, verbose: bool) -> None:
    """List all passes, built-in and vendors'; `passes show NAME` tells all about one."""
    del verbose
    if ctx.invoked_subcommand is None:
        _list()


@passes.command()
@click.argument("name", shell_complete=complete_pass)
def show(name: str) -> None:
    """Show what pass NAME does, what it promises, and its options."""
    from onnxedge.documentation import describe
    from onnxedge.registry import find_pass

    text = describe(find_pass(name))
    click.echo(f"{text.name}: {text.promise}" + ("; reads calibration samples" if text.needs_calibration else ""))
    click.echo()
    click.echo(text.text.replace("``", ""))
    click.echo()
    if not text.options:
        click.echo("No options.")
        return
    click.echo("Options:")
    for option in text.options:
        click.echo(f"  {option.name}={option.default}  ({option.type})")
        if option.comment:
            click.echo(click.wrap_text(option.comment, 96, "      ", "      "))


def _list() -> None:
    from rich.text import Text

    from onnxedge.cli.console import output_console
    from onnxedge.documentation import describe
    from onnxedge.registry import list_passes
    from onnxedge.report.terminal import plain_table

    table = plain_table("pass", "outputs", "what it does", "from")
    broken = 0
    for entry, cls in list_passes():
        if cls is None:
            broken += 1
            name, promise, text = Text(one_line(entry.name), style="red"), Text("broken", style="red"), entry.error
        else:
            name, promise, text = (
                Text(one_line(entry.name), style="bold"),
                Text(cls.accuracy),
                describe(cls).summary.replace("``", ""),
            )
        table.add_row(name, promise, one_line(text), one_line(entry.distribution))
    console = output_console()
    if not table.row_count:
        console.print("no pass is installed; reinstall onnxedge")
        return
    console.print(table)
    if broken:
        console.print()
        console.print(Text(f"{plural(broken, 'pass')} cannot be used; the others are not affected", style="yellow"))
