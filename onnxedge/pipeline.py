"""Pipeline text: ``prune(macs=0.5),fuse,int8(method=entropy)`` to passes and back.

Grammar::

    pipeline = [ step { "," step } ]
    step     = name [ "(" [ option { "," option } ] ")" ]
    option   = key "=" value
    value    = word | quoted string | "[" value { "," value } "]"

A word runs to the next ``,``, ``)`` or ``]``. Numbers may be written ``1/4`` or ``50%``. The same text stands on
the command line, in a recipe, in the report and in the metadata of the model that came out.
"""

from __future__ import annotations

import dataclasses
import re
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from onnxedge.errors import UserError, did_you_mean
from onnxedge.passes import Pass

Find = Callable[[str], type[Pass]]
Value = str | list["Value"]

_PLAIN = re.compile(r"[A-Za-z0-9_.*?/+:%-]+")  #: words that need no quotation marks


@dataclass(frozen=True)
class Step:
    """Hold one step of a pipeline as it was written, with the column of each part for error messages."""

    name: str
    column: int
    options: tuple[tuple[str, Value, int], ...] = ()  #: (key, value, column)


def parse_pipeline(text: str, find: Find, overrides: Mapping[str, Mapping[str, Any]] | None = None) -> tuple[Pass, ...]:
    """Build the passes of a pipeline text; all of them or none.

    Args:
        text: the pipeline.
        find: gives the class of a pass; raises UserError for an unknown name.
        overrides: pass name -> options, from a recipe; options in the text win over them.

    Raises:
        UserError: with the text and a caret under what is wrong.
    """
    passes = []
    steps = _Reader(text).pipeline()
    for step in steps:
        try:
            cls = find(step.name)
        except UserError as err:
            raise _error(text, step.column, str(err)) from err
        options: dict[str, Any] = dict((overrides or {}).get(step.name, {}))
        hints = option_types(cls)
        for key, value, column in step.options:
            if key not in hints:
                raise _error(
                    text, column, f"{step.name} has no option {key!r}{did_you_mean(key, hints) or _choice(hints)}"
                )
            try:
                options[key] = convert(value, hints[key])
            except ValueError as err:
                raise _error(text, column, f"{step.name}: {key}: {err}") from err
        passes.append(build_pass(cls, options))
    unused = set(overrides or {}) - {step.name for step in steps}
    if unused:
        name = min(unused)
        raise UserError(
            f"recipe: options for {name!r}, which is not in the pipeline{did_you_mean(name, [s.name for s in steps])}"
        )
    return tuple(passes)


def build_pass(cls: type[Pass], options: Mapping[str, Any]) -> Pass:
    """Build a pass from options that are already typed, or raw as a recipe has them.

    Raises:
        UserError: an unknown option or a value that does not fit.
    """
    hints = option_types(cls)
    values = {}
    for key, value in options.items():
        if key not in hints:
            raise UserError(f"{cls.name}: no option {key!r}{did_you_mean(key, hints) or _choice(hints)}")
        try:
            values[key] = convert(value, hints[key]) if isinstance(value, str | list) else _checked(value, hints[key])
        except ValueError as err:
            raise UserError(f"{cls.name}: {key}: {err}") from err
    return cls(**values)


def format_pipeline(passes: Iterable[Pass]) -> str:
    """Return the text that builds the same passes again; options at their defaults are left out."""
    return ",".join(format_pass(step) for step in passes)


def format_pass(step: Pass) -> str:
    """Return one pass as pipeline text."""
    options = []
    for option in dataclasses.fields(step):
        value = getattr(step, option.name)
        default = option.default_factory() if option.default_factory is not dataclasses.MISSING else option.default
        if value != default:
            options.append(f"{option.name}={format_value(value)}")
    return step.name + (f"({','.join(options)})" if options else "")


def option_types(cls: type[Pass]) -> dict[str, Any]:
    """Return the options of a pass and their types."""
    hints = get_type_hints(cls)
    return {option.name: hints[option.name] for option in dataclasses.fields(cls)}


def convert(value: Value, hint: Any) -> Any:
    """Turn a written value into the type of an option.

    Raises:
        ValueError: it does not fit; the message says what would.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if type(None) in arguments and value == "none":
            return None
        return _first_fit(value, [a for a in arguments if a is not type(None)])
    if origin is Literal:
        for choice in arguments:
            if str(choice).lower() == str(value).lower():
                return choice
        raise ValueError(
            f"{value!r} is none of {', '.join(map(str, arguments))}{did_you_mean(str(value), map(str, arguments))}"
        )
    if origin is tuple:
        items = value if isinstance(value, list) else [value]
        return tuple(convert(item, arguments[0]) for item in items)
    if isinstance(value, list):
        raise ValueError(f"a list does not fit; needs {type_text(hint)}")
    if hint is bool:
        if value.lower() not in ("true", "false", "yes", "no", "on", "off", "1", "0"):
            raise ValueError(f"{value!r} is not true or false")
        return value.lower() in ("true", "yes", "on", "1")
    if hint in (int, float):
        return _number(value, hint)
    if hint is str:
        return value
    if hasattr(hint, "parse"):  # a type with a text of its own: ``parse`` reads it, ``str`` writes it
        return hint.parse(value)
    raise ValueError(f"options of type {type_text(hint)} cannot be written as text")


def _first_fit(value: Value, hints: Sequence[Any]) -> Any:
    reasons = []
    for hint in hints:
        try:
            return convert(value, hint)
        except ValueError as err:
            reasons.append(str(err))
    raise ValueError("; ".join(reasons))


def _number(text: str, hint: type[int] | type[float]) -> int | float:
    written = text.removesuffix("%")
    try:
        # An exponent goes through float: as a fraction, 1e999999999 has a billion digits.
        number = Fraction(float(written) if "e" in written.lower() else written) / (1 if written == text else 100)
        if hint is float or number.denominator == 1:
            return hint(number)
    except (ValueError, ZeroDivisionError, OverflowError):
        pass
    raise ValueError(f"{text!r} is not {'a whole number' if hint is int else 'a number'}")


def _checked(value: Any, hint: Any) -> Any:
    """Check a value that is typed already, such as a number in a TOML recipe."""
    if value is None and type(None) in get_args(hint):
        return None
    if isinstance(value, bool | int | float):
        return convert(str(value).lower() if isinstance(value, bool) else repr(value), hint)
    if isinstance(value, tuple):
        return convert([str(item) for item in value], hint)
    if type(value) in (hint, *get_args(hint)):
        return value
    raise ValueError(f"{value!r} does not fit; needs {type_text(hint)}")


def format_value(value: Any) -> str:
    """Return the value of an option as pipeline text."""
    if isinstance(value, tuple):
        return f"[{','.join(format_value(item) for item in value)}]"
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    text = str(value)
    if isinstance(value, str) and (text == "none" or not _PLAIN.fullmatch(text)):
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return text


def type_text(hint: Any) -> str:
    """Return the type of an option as users read it."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return "|".join(map(str, arguments))
    if origin in (Union, types.UnionType):
        return "|".join("none" if a is type(None) else type_text(a) for a in arguments)
    if origin is tuple:
        return f"list of {type_text(arguments[0])}"
    known = {int: "whole number", float: "number", bool: "true|false", str: "text"}
    return known.get(hint, str(getattr(hint, "syntax", hint)))


def _choice(names: Iterable[str]) -> str:
    known = ", ".join(names)
    return f"; it has {known}" if known else "; it has no options"


def _error(text: str, column: int, message: str) -> UserError:
    """Return an error whose one line shows the place by a caret."""
    return PipelineError(text, column, message)


class PipelineError(UserError):
    """Report an error in a pipeline text, with a caret under the place.

    Attributes:
        text: the pipeline text.
        column: 0-based column of the error.
    """

    def __init__(self, text: str, column: int, message: str) -> None:
        marked = f"{text[:column]}^{text[column:]}" if text else "^"
        super().__init__(f"pipeline '{' '.join(marked.split())}', column {column + 1}: {message}")
        self.text, self.column = text, column

    @property
    def caret(self) -> str:
        """Return two lines: the pipeline text and a caret under the place."""
        return f"{self.text}\n{' ' * self.column}^"


class _Reader:
    """Read pipeline text with a cursor; every error knows its column."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0

    def pipeline(self) -> list[Step]:
        steps: list[Step] = []
        self._space()
        while self.at < len(self.text):
            if steps:
                self._expect(",")
            steps.append(self._step())
            self._space()
        if not steps:
            raise _error(self.text, 0, "is empty; name at least one pass, such as fuse")
        return steps

    def _step(self) -> Step:
        self._space()
        column = self.at
        name = self._name("a pass")
        self._space()
        if not self._peek("("):
            return Step(name, column)
        self.at += 1
        options: list[tuple[str, Value, int]] = []
        self._space()
        while not self._peek(")"):
            if options:
                self._expect(",")
                self._space()
            options.append(self._option(options))
            self._space()
        self.at += 1
        return Step(name, column, tuple(options))

    def _option(self, earlier: Sequence[tuple[str, Value, int]]) -> tuple[str, Value, int]:
        column = self.at
        key = self._name("an option")
        if any(key == other for other, _, _ in earlier):
            raise _error(self.text, column, f"option {key!r} is given twice")
        self._space()
        self._expect("=")
        self._space()
        return key, self._value(), column

    def _value(self) -> Value:
        if self._peek("["):
            self.at += 1
            items: list[Value] = []
            self._space()
            while not self._peek("]"):
                if items:
                    self._expect(",")
                    self._space()
                items.append(self._value())
                self._space()
            self.at += 1
            return items
        if self._peek('"') or self._peek("'"):
            return self._quoted()
        start = self.at
        while self.at < len(self.text) and self.text[self.at] not in ",()[]":
            self.at += 1
        word = self.text[start : self.at].strip()
        if not word:
            raise _error(self.text, start, "a value is missing")
        return word

    def _quoted(self) -> str:
        quote, start = self.text[self.at], self.at
        self.at += 1
        letters = []
        while self.at < len(self.text) and self.text[self.at] != quote:
            if self.text[self.at] == "\\":
                self.at += 1
            letters.append(self.text[self.at : self.at + 1])
            self.at += 1
        if self.at >= len(self.text):
            raise _error(self.text, start, "the quotation does not end")
        self.at += 1
        return "".join(letters)

    def _name(self, what: str) -> str:
        start = self.at
        while self.at < len(self.text) and (self.text[self.at].isalnum() or self.text[self.at] in "-_."):
            self.at += 1
        if start == self.at:
            found = repr(self.text[start]) if start < len(self.text) else "the end"
            raise _error(self.text, start, f"{what} is expected, found {found}")
        return self.text[start : self.at]

    def _peek(self, character: str) -> bool:
        if self.at >= len(self.text) and character in ")]":
            raise _error(self.text, len(self.text), f"{character!r} is missing")
        return self.text.startswith(character, self.at)

    def _expect(self, character: str) -> None:
        if not self.text.startswith(character, self.at):
            found = repr(self.text[self.at]) if self.at < len(self.text) else "the end"
            raise _error(self.text, self.at, f"{character!r} is expected, found {found}")
        self.at += 1

    def _space(self) -> None:
        while self.at < len(self.text) and self.text[self.at].isspace():
            self.at += 1
