"""What a pass says about itself is read from its class: promise, options, ``#:`` comments."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

from onnxedge.documentation import describe
from onnxedge.passes import Pass


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explained(Pass):
    """Explain options.

    More text.
    """

    name: ClassVar[str] = "explained"
    ratio: float = 0.5  #: share of channels, 0..1
    #: which way to go;
    #: two lines
    way: Literal["up", "down"] = "up"
    long: tuple[str, ...] = (
        "a",  #: a default on lines of its own
    )
    plain: int | None = None


def test_a_pass_describes_itself() -> None:
    text = describe(Explained)
    assert (text.name, text.summary, text.needs_calibration) == ("explained", "Explain options.", False)
    assert text.promise == "outputs stay equal to the last bit"
    assert [(o.name, o.type, o.default) for o in text.options] == [
        ("ratio", "number", "0.5"),
        ("way", "up|down", "up"),
        ("long", "list of text", "[a]"),
        ("plain", "whole number|none", "none"),
    ]
    assert [o.comment for o in text.options] == [
        "share of channels, 0..1",
        "which way to go; two lines",
        "a default on lines of its own",
        "",
    ]


def test_a_made_class_has_no_comments() -> None:
    made = dataclasses.make_dataclass("Made", [("size", int, 3)], bases=(Pass,), frozen=True, kw_only=True)
    made.name = "made"  # type: ignore[attr-defined]
    assert [o.comment for o in describe(made).options] == [""]
