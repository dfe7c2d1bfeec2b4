"""``onnxedge targets``: the registered targets, and all that one of them says."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import click

from onnxedge.cli.options import complete_names, verbose_option
from onnxedge.errors import one_line
from onnxedge.report.text import plural


@click.group(invoke_without_command=True, short_help="List the targets; targets show NAME tells all about one.")
@verbose_option
@click.pass_context
def targets(ctx: click.Context, verbose: bool) -> None:
    """List all targets, built-in and vendors'; `targets show NAME` tells all about one."""
    del verbose
    if ctx.invoked_subcommand is None:
        _list()


@targets.command()
@click.argument("name", shell_complete=lambda ctx, param, incomplete: complete_names("onnxedge.targets", incomplete))
def show(name: str) -> None:
    """Show all rules of target NAME, or of the target in a TOML file."""
    from onnxedge.registry import find_target

    target = find_target(name)
    for field in dataclasses.fields(target):
        value = getattr(target, field.name)
        if dataclasses.is_dataclass(value):
            click.echo(f"\n[{field.name}]")
            for inner in dataclasses.fields(value):
                _echo(inner.name, getattr(value, inner.name))
        elif value is not None:
            _echo(field.name, value)
    if target.quantization is None:
        click.echo("\nno integer rules: nothing is quantized for this target")


def _echo(name: str, value: Any) -> None:
    """Print one rule; what holds records itself, such as kernel costs, takes a line for each."""
    if isinstance(value, Mapping) and any(dataclasses.is_dataclass(item) for item in value.values()):
        click.echo(name)
        for key, item in value.items():
            facts = ((field.name, getattr(item, field.name)) for field in dataclasses.fields(item))
            _echo_line(f"  {key}", "; ".join(f"{label} {_plain(fact, ' ')}" for label, fact in facts))
    elif isinstance(value, Mapping):
        _echo_line(name, ", ".join(f"{key} {_plain(item, ' ')}" for key, item in value.items()) or "none")
    else:
        _echo_line(name, _plain(value, ", "))


def _echo_line(name: str, text: str) -> None:
    click.echo(click.wrap_text(f"{one_line(name):<22} {one_line(text)}", 96, "", " " * 23))


def _plain(value: Any, separator: str) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return separator.join(map(str, value)) or "none"
    return str(value)


def _list() -> None:
    from rich.text import Text

    from onnxedge.cli.console import output_console
    from onnxedge.registry import list_targets
    from onnxedge.report.terminal import plain_table

    table = plain_table("target", "measured", ">integer ops", "description", "from")
    broken = 0
    for entry, target in list_targets():
        if target is None:
            broken += 1
            cells = (Text(one_line(entry.name), style="red"), Text("broken", style="red"), "", entry.error)
        else:
            integer = "none" if target.quantization is None else str(len(target.quantization.integer))
            measured = Text("here" if target.timed_here else "elsewhere")
            cells = (Text(one_line(entry.name), style="bold"), measured, integer, target.description)
        table.add_row(*cells[:3], one_line(cells[3]), one_line(entry.distribution))
    console = output_console()
    console.print(table)
    if broken:
        console.print()
        console.print(Text(f"{plural(broken, 'target')} cannot be used; the others are not affected", style="yellow"))
