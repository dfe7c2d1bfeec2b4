"""What ``onnxedge inspect --groups`` prints: the channel groups of a model, and what is locked."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxedge.errors import one_line, shortened
from onnxedge.report.text import label_text, middle_cut, plural

if TYPE_CHECKING:
    import onnx_ir as ir
    from rich.console import Console

    from onnxedge.parts import ChannelGroup, ChannelGroups, Member
    from onnxedge.target import Target

MAX_GROUPS = 100  #: groups that are listed, and locked ones
MAX_MEMBERS = 60  #: lines of one group
MAX_SLICES = 3  #: runs of positions that are written out


def show_groups(
    model: ir.Model,
    path: Path,
    target: Target,
    input_shapes: Mapping[str, Sequence[int]],
    *,
    as_json: bool,
    every_row: bool,
) -> None:
    """Find the channel groups and print them, as text or added to the JSON of ``onnxedge inspect``."""
    from onnxedge.channels import channel_groups
    from onnxedge.cli.console import output_console
    from onnxedge.runtime import CannotRun

    found: ChannelGroups | None = None
    unknown = ""
    try:
        found = channel_groups(model, target=target, input_shapes=input_shapes)
    except CannotRun as err:
        unknown = str(err)
    if as_json:
        from onnxedge.inspection import inspect_model

        inspected = inspect_model(model, path=path, target=target, input_shapes=input_shapes)
        groups = dataclasses.asdict(found) if found is not None else None
        told = {**dataclasses.asdict(inspected), "channel_groups": groups, "channel_groups_unknown": unknown}
        click.echo(json.dumps(told, indent=1))
        return
    console = output_console()
    if found is None:
        console.print(f"{one_line(path.name)}: the channel groups are not known: {one_line(unknown)}", soft_wrap=True)
        return
    _print(found, path, console, every_row=every_row)


def _print(found: ChannelGroups, path: Path, console: Console, *, every_row: bool) -> None:
    from rich.text import Text

    from onnxedge.report.terminal import plain_table

    def say(text: str, style: str = "") -> None:
        console.print(Text(text, style=style), soft_wrap=True)

    say(f"{one_line(path.name)}: {plural(len(found.free), 'channel group')} can be cut, {len(found.locked)} cannot")
    if found.free:
        say("makes: output axis of a weight; reads: input axis; follows: bias and scales; u counts a group's units")
    for number, group in enumerate(found.free if every_row else found.free[:MAX_GROUPS], 1):
        say("")
        say(f"{number}. {label_text(group.name, console.width - 40)}: {_width(group)}", "bold")
        lines = list(_lines(group, console.width))
        for line in lines if every_row else lines[:MAX_MEMBERS]:
            say(line)
        if len(lines) > MAX_MEMBERS and not every_row:
            say(f"  ... and {plural(len(lines) - MAX_MEMBERS, 'constant')} more (--verbose or --json)")
    if len(found.free) > MAX_GROUPS and not every_row:
        say(f"... and {plural(len(found.free) - MAX_GROUPS, 'group')} more (--verbose or --json)")
    if not found.locked and not found.notes:
        return
    say("")
    say("locked, and why", "bold")
    table = plain_table("channels of", ">width", "why", "where")
    wide = (console.width - 12) // 3
    for group in found.locked if every_row else found.locked[:MAX_GROUPS]:
        width = str(group.units * group.channels)
        table.add_row(label_text(group.name, wide), width, shortened(group.reason, 200), label_text(group.where, wide))
    for note in found.notes if every_row else found.notes[:MAX_GROUPS]:
        table.add_row(label_text(note.where, wide), "", shortened(note.reason.removeprefix("channels stay: "), 200), "")
    console.print(table)
    if len(found.locked) > MAX_GROUPS and not every_row:
        say(f"... and {plural(len(found.locked) - MAX_GROUPS, 'group')} more (--verbose or --json)")


def _width(group: ChannelGroup) -> str:
    if group.channels == 1:
        return plural(group.units, "channel")
    return f"{plural(group.units, 'unit')} of {group.channels} channels"


def _lines(group: ChannelGroup, width: int) -> Iterator[str]:
    """Yield a line for each node and axis; constants of a node that are cut alike share one."""
    merged: dict[tuple[bool, str, int, str], tuple[str, list[str]]] = {}
    for member in group.members:
        key = (member.side == "reads", member.node, member.axis, _positions(member))
        merged.setdefault(key, (member.side, []))[1].append(member.operand)
    wide = width - 62
    for (_, node, axis, positions), (side, operands) in merged.items():
        names = middle_cut(", ".join(operands), 27)
        yield f"  {side:<8} {label_text(node, wide):<{wide}} {names:<27} axis {axis}  {positions}"


def _positions(member: Member) -> str:
    """Return which positions of the axis are the group's, and the index map where a slice does not say it."""
    if member.slices == ((0, member.size, 1),):
        text = f"all {member.size}"
    else:
        runs = [f"{start}:{stop}" + (f":{step}" if step != 1 else "") for start, stop, step in member.slices]
        more = f", ... {len(runs) - MAX_SLICES} more" if len(runs) > MAX_SLICES else ""
        text = f"{', '.join(runs[:MAX_SLICES])}{more} of {member.size}"
    if member.count == 1:
        return text if member.index else f"{text}; in another order"
    if member.index and member.index != "in order":
        return f"{text}; {member.index}"
    return f"{text}; {f'{member.count} each' if member.count else 'as many as each unit has'}"
