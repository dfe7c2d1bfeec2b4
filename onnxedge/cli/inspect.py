"""``onnxedge inspect``: what a model is made of and what it costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxedge.cli.options import (
    input_shape_option,
    json_option,
    model_argument,
    read_input_shapes,
    target_option,
    verbose_option,
)
from onnxedge.errors import one_line, shortened
from onnxedge.report.text import bytes_text, count_text, percent_text, plural, shape_text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from onnxedge.inspection import Inspection, OperatorCount, Port

_TARGET = "ort-cpu"  #: whose integer kernels are asked about when none is named
MAX_OPERATORS = 30  #: lines of the operator table
MAX_REASONS = 10  #: reasons to stay float that are listed
MAX_PORTS = 12  #: inputs and outputs that are listed


@click.command(short_help="Show what a model is made of and what it costs.")
@model_argument()
@target_option
@input_shape_option
@click.option(
    "--groups", is_flag=True, help="Show the channel groups instead: what is pruned together, and what is locked."
)
@json_option
@verbose_option
def inspect(
    model: Path, target: str | None, input_shapes: tuple[str, ...], groups: bool, as_json: bool, verbose: bool
) -> None:
    """Show operators, opset, inputs and outputs, parameters, MACs, bytes and activation memory of MODEL.

    Also what the target would run in integers, as the graph stands; `fuse` makes more of it fit.

    With --groups, every group of channels that must go together: its width, the constants that are cut along with it,
    each with its axis and how a unit u of the group maps to positions along it; then what is locked, where and why.
    No samples are needed.

    \b
    Examples:
      onnxedge inspect model.onnx --target tensorrt
      onnxedge inspect model.onnx --groups
      onnxedge inspect model.onnx --groups --json | jq '.channel_groups.locked[] | .name + ": " + .reason'
    """
    shapes = read_input_shapes(input_shapes)

    from onnxedge.inspection import inspect_model
    from onnxedge.model.io import load
    from onnxedge.registry import find_target

    chip = find_target(target or _TARGET)
    loaded = load(model)
    if groups:
        from onnxedge.cli.groups import show_groups

        show_groups(loaded, model, chip, shapes, as_json=as_json, every_row=verbose)
        return
    found = inspect_model(loaded, path=model, target=chip, input_shapes=shapes)
    if as_json:
        click.echo(found.to_json(), nl=False)
        return
    from onnxedge.cli.console import output_console

    _print(found, output_console(), every_row=verbose)


def _print(found: Inspection, console: Console, *, every_row: bool) -> None:
    from rich.text import Text

    for name, text in _facts(found, every_row=every_row):
        console.print(Text.assemble((f"{name:<12} ", "bold"), text), soft_wrap=True)
    console.print()
    console.print(_operator_table(found, every_row=every_row))
    hidden = 0 if every_row else len(found.operators) - MAX_OPERATORS
    if hidden > 0:
        console.print(Text(f"... and {plural(hidden, 'operator')} more (--verbose or --json)"))
    _print_reasons(found, console, every_row=every_row)


def _print_reasons(found: Inspection, console: Console, *, every_row: bool) -> None:
    """Print why nodes would stay float on the target."""
    from rich.text import Text

    if not found.float_reasons:
        return
    console.print()
    console.print(Text("would stay float, and why", style="bold"))
    reasons = list(found.float_reasons.items())
    for reason, count in reasons if every_row else reasons[:MAX_REASONS]:
        console.print(Text(f"{count:>5,}x  {shortened(reason, 200)}"))
    if len(reasons) > MAX_REASONS and not every_row:
        console.print(Text(f"  ... and {plural(len(reasons) - MAX_REASONS, 'reason')} more (--verbose or --json)"))


def _facts(found: Inspection, *, every_row: bool) -> Iterator[tuple[str, str]]:
    """Yield the lines above the table: what, and the text."""
    yield "model", one_line(found.name)
    if found.producer:
        yield "producer", shortened(found.producer, 60)
    opsets = ", ".join(f"{one_line(domain)} {version}" for domain, version in found.opsets.items())
    yield "opset", f"{opsets}; IR version {found.ir_version}"
    yield from _ports("input", found.inputs, every_row)
    if found.overridable:
        yield "", plural(found.overridable, "initializer") + " may be fed too, in place of the stored ones"
    yield from _ports("output", found.outputs, every_row)
    size = found.size
    extra = [plural(found.subgraph_count, "subgraph")] * bool(found.subgraph_count)
    extra += [plural(found.functions, "local function")] * bool(found.functions)
    yield "nodes", f"{size.nodes:,}" + (f" in the graph, {' and '.join(extra)}" if extra else "")
    dtypes = ", ".join(f"{bytes_text(count)} {dtype}" for dtype, count in found.weight_dtypes.items())
    yield "parameters", f"{size.parameters:,}" + (f" ({dtypes})" if dtypes else "")
    yield "file", f"{bytes_text(size.file_bytes)} ({size.file_bytes:,} bytes)"
    yield "MACs", _macs_text(found)
    yield "activations", _activations_text(found)
    if found.assumed:
        yield "assumed", found.assumed
    if found.target:
        yield "target", _target_text(found)


def _ports(kind: str, ports: Sequence[Port], every_row: bool) -> Iterator[tuple[str, str]]:
    shown = ports if every_row else ports[:MAX_PORTS]
    for port in shown:
        yield kind, f"{shortened(port.name, 60)}: {port.dtype} {shape_text(port.shape)}"
    if len(shown) < len(ports):
        yield "", f"... and {plural(len(ports) - len(shown), kind)} more (--verbose or --json)"


def _macs_text(found: Inspection) -> str:
    unknown = sum(row.unknown for row in found.operators)
    if not unknown:
        return f"{found.size.macs or 0:,}"
    nodes = plural(unknown, "node")
    return (
        f"at least {found.size.macs:,}; {nodes} of unknown shape not counted"
        if found.size.macs
        else f"unknown: {nodes} of unknown shape"
    )


def _activations_text(found: Inspection) -> str:
    activations = found.activations
    if activations.unknown:
        unknown = f"; {plural(activations.unknown, 'value')} of unknown size not counted"
    else:
        unknown = ""
    at = f" at {shortened(activations.at, 60)}" if activations.at else ""
    return f"{'at least ' if unknown else ''}{bytes_text(activations.peak_bytes)} at the peak{at}{unknown}"


def _target_text(found: Inspection) -> str:
    if found.quantized:
        return f"{one_line(found.target)}: the model is quantized already ({plural(found.quantized, 'QuantizeLinear')})"
    if not any(row.roles for row in found.operators):
        return f"{one_line(found.target)} would run nothing in integers: it has no rules for these operators"
    integer = sum(row.roles.get("integer", 0) for row in found.operators)
    share = f", {percent_text(found.integer_macs)} of the MACs" if found.integer_macs is not None else ""
    nodes = plural(integer, "node")
    return f"{one_line(found.target)} would run {nodes} in integers{share}, by its rules"


def _operator_table(found: Inspection, *, every_row: bool) -> Table:
    from onnxedge.report.terminal import plain_table

    rules = any(row.roles for row in found.operators)
    table = plain_table("operator", ">nodes", ">parameters", ">MACs", ">share", *([found.target] if rules else []))
    total = sum(row.macs for row in found.operators)
    for row in found.operators if every_row else found.operators[:MAX_OPERATORS]:
        work = "unknown" if row.unknown == row.nodes else count_text(row.macs) if row.macs else ""
        cells = [
            shortened(row.operator, 40),
            f"{row.nodes:,}",
            count_text(row.parameters) if row.parameters else "",
            work,
            percent_text(row.macs / total) if row.macs else "",
        ]
        table.add_row(*cells, *([_roles_text(row)] if rules else []))
    return table


def _roles_text(row: OperatorCount) -> str:
    """Return how the target runs an operator: one word, or counts where its nodes differ."""
    if len(row.roles) == 1:
        return next(iter(row.roles))
    return ", ".join(f"{count} {role}" for role, count in row.roles.items())
