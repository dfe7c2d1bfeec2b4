"""The errors that onnxedge raises on purpose, and the exit code of each."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


class OnnxEdgeError(Exception):
    """Base of all errors raised on purpose; the command line prints the message alone."""

    exit_code = 1


class UserError(OnnxEdgeError):
    """Report bad input: one line that says what, where, why and what next."""

    exit_code = 2


class PassError(OnnxEdgeError):
    """Report a pass that broke its promise: our fault or a vendor's, never the user's.

    Attributes:
        pass_name: name of the pass in the pipeline.
        reproducer: folder with the model before the pass, the pipeline text and the seed, where one was left.
    """

    exit_code = 1

    def __init__(self, pass_name: str, message: str, reproducer: Path | None = None) -> None:
        where = f"; reproducer in {reproducer}" if reproducer is not None else ""
        super().__init__(f"{pass_name}: {message}{where}")
        self.pass_name = pass_name
        self.reproducer = reproducer


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` for the nearest known name, or an empty string."""
    nearest = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""


def first_line(error: BaseException, limit: int = 300) -> str:
    """Return an error's message on one line of at most ``limit`` characters, its type where it has no message."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"


def one_line(text: str) -> str:
    """Return text with line breaks and control characters escaped, so that it prints as one harmless line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def shortened(text: str, limit: int) -> str:
    """Return one line of at most ``limit`` characters, cut with ``…`` where it was longer."""
    line = one_line(text)
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"
