"""What a pass says about itself: its docstring, its promise, and its options with their ``#:`` comments."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from dataclasses import dataclass

from onnxedge.passes import Accuracy, Pass
from onnxedge.pipeline import format_value, option_types, type_text

PROMISES: dict[Accuracy, str] = {
    "exact": "outputs stay equal to the last bit",
    "rounding": "outputs stay equal but for the rounding of float arithmetic",
    "lossy": "outputs change; how much is measured and reported",
}

_COMMENT = re.compile(r"#:\s?(.*)")


@dataclass(frozen=True)
class OptionText:
    """Describe one option of a pass: name, type in words, default as pipeline text, and its comment."""

    name: str
    type: str
    default: str
    comment: str


@dataclass(frozen=True)
class PassText:
    """Describe a pass.

    Attributes:
        name: in pipelines.
        promise: in words.
        summary: first line of the docstring.
        text: the whole docstring.
        needs_calibration: whether it reads the calibration samples.
        options: in the order of the fields.
    """

    name: str
    promise: str
    summary: str
    text: str
    needs_calibration: bool
    options: tuple[OptionText, ...]


def describe(cls: type[Pass]) -> PassText:
    """Return what a pass says about itself."""
    text = inspect.cleandoc(cls.__doc__ or "")
    hints = option_types(cls)
    comments = option_comments(cls)
    options = tuple(
        OptionText(field.name, type_text(hints[field.name]), _default(field), comments.get(field.name, ""))
        for field in dataclasses.fields(cls)
    )
    return PassText(cls.name, PROMISES[cls.accuracy], text.split("\n", 1)[0], text, cls.needs_calibration, options)


def _default(option: dataclasses.Field[object]) -> str:
    if option.default is not dataclasses.MISSING:
        return format_value(option.default)
    if option.default_factory is not dataclasses.MISSING:
        return format_value(option.default_factory())
    return "none: it must be given"


def option_comments(cls: type[Pass]) -> dict[str, str]:
    """Return the ``#:`` comments of a pass's fields, read from the source, base classes included.

    A comment stands behind the field, or on lines of its own just above it. Empty where there is no source.
    """
    comments: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        try:
            source = inspect.cleandoc("\n" + inspect.getsource(base))
            tree = ast.parse(source)
        except (OSError, TypeError, SyntaxError):  # made at run time, or installed without its source
            continue
        lines = source.splitlines()
        body = tree.body[0].body if tree.body and isinstance(tree.body[0], ast.ClassDef) else []
        for field in body:
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                comments[field.target.id] = _comment_at(lines, field.lineno - 1, field.end_lineno or field.lineno)
    return {name: text for name, text in comments.items() if text}


def _comment_at(lines: list[str], first: int, end: int) -> str:
    """Return the comment of a field that stands on ``lines[first:end]``."""
    above = first
    while above > 0 and lines[above - 1].strip().startswith("#:"):
        above -= 1
    parts = [match[1].strip() for line in lines[above:end] if (match := _COMMENT.search(line))]
    return " ".join(parts)
