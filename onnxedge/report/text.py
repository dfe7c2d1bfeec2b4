"""Numbers as people read them; nothing heavy is imported, so that errors print at once."""

from __future__ import annotations

from collections.abc import Iterable

from onnxedge.errors import one_line


def bytes_text(count: float) -> str:
    """Return bytes with a decimal unit, such as ``288 kB``."""
    return _scaled(count, (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)), "B")


def count_text(count: float) -> str:
    """Return a count with a decimal unit, such as ``40.8 M``."""
    return _scaled(count, (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)), "")


def _scaled(count: float, units: Iterable[tuple[str, float]], plain: str) -> str:
    for unit, size in units:
        if abs(count) >= 0.9995 * size:
            return f"{_three_digits(count / size)} {unit}"
    return f"{count:g} {plain}".strip()


def _three_digits(number: float) -> str:
    magnitude = abs(number)
    return f"{number:.2f}" if magnitude < 9.995 else f"{number:.1f}" if magnitude < 99.95 else f"{number:.0f}"


def milliseconds_text(milliseconds: float) -> str:
    """Return a latency with three digits and its unit, such as ``1.24 ms``."""
    return f"{milliseconds:.3f} ms" if milliseconds < 0.9995 else f"{_three_digits(milliseconds)} ms"


def seconds_text(seconds: float) -> str:
    """Return a duration, such as ``0.3 s`` or ``12 min 05 s``."""
    if seconds < 599.5:
        return f"{seconds:.1f} s" if seconds < 99.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"


def percent_text(share: float, digits: int = 1) -> str:
    """Return a share of 0..1 in per cent, such as ``97.4 %``."""
    return f"{100 * share:.{digits}f} %"


def change_text(before: float, after: float) -> str:
    """Return a relative change with its sign, such as ``-73.6 %``; empty where it started from nothing."""
    if before == after:
        return "same"
    return f"{100 * (after - before) / before:+.1f} %" if before else ""


def plural(count: int, noun: str) -> str:
    """Return a count with its noun, such as ``1 pass`` or ``3 nodes``."""
    if count == 1:
        return f"1 {noun}"
    return f"{count:,} {noun}es" if noun.endswith("s") else f"{count:,} {noun}s"


def shape_text(shape: Iterable[int | str | None] | None) -> str:
    """Return a shape, such as ``N x 3 x 224 x 224``; ``?`` for what is unknown."""
    if shape is None:
        return "unknown shape"
    return " x ".join("?" if dim is None else one_line(str(dim)) for dim in shape) or "scalar"


def middle_cut(text: str, limit: int) -> str:
    """Return one line of at most ``limit`` characters, cut in the middle: names of nodes differ at their ends."""
    line = one_line(text)
    head = (limit - 1) // 3
    return line if len(line) <= limit else f"{line[:head]}…{line[len(line) - (limit - 1 - head) :]}"


def label_text(label: str, limit: int) -> str:
    """Return ``Operator 'name'`` of at most ``limit`` characters: the name's end stays, where nodes differ."""
    line = one_line(label)
    operator, quote, name = line.partition(" '")
    short = operator if len(operator) <= 12 else f"{operator[:9]}…"
    if len(line) <= limit or not quote or limit < len(short) + 12:
        return middle_cut(line, limit)
    name = name.removesuffix(f"/{operator}'").removesuffix("'")  # exporters end the name with the operator
    room = limit - len(short) - 3
    return f"{short} '{name if len(name) <= room else '…' + name[len(name) - room + 1 :]}'"
