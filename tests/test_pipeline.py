"""Pipeline text to passes and back; errors point at their place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxedge.errors import UserError, did_you_mean
from onnxedge.passes import Pass
from onnxedge.pipeline import PipelineError, build_pass, format_pipeline, parse_pipeline


@dataclass(frozen=True, kw_only=True)
class Thin(Pass):
    """Stand in for a pass with options of every type."""

    name: ClassVar[str] = "thin"
    macs: float | None = None
    method: Literal["l1", "l2"] = "l1"
    skip: tuple[str, ...] = ()
    count: int = 3
    deep: bool = False
    label: str = ""


def find(name: str) -> type[Pass]:
    if name != "thin":
        raise UserError(f"no pass is called {name!r}{did_you_mean(name, ['thin'])}")
    return Thin


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("thin", "thin"),
        ("thin()", "thin"),
        (" thin ( macs = 50% , method=L2 ) ,\n thin", "thin(macs=0.5,method=l2),thin"),
        ("thin(macs=1/4)", "thin(macs=0.25)"),
        ("thin(macs=none)", "thin"),
        ('thin(skip=[head.*,"a,b"],deep=yes)', 'thin(skip=[head.*,"a,b"],deep=true)'),
        ("thin(skip=head*)", "thin(skip=[head*])"),
        ("thin(label='it''s')", None),
    ],
)
def test_text_prints_back(text: str, canonical: str | None) -> None:
    if canonical is None:
        with pytest.raises(PipelineError):
            parse_pipeline(text, find)
        return
    passes = parse_pipeline(text, find)
    assert format_pipeline(passes) == canonical
    assert parse_pipeline(canonical, find) == passes


@given(
    st.builds(
        Thin,
        macs=st.none() | st.floats(0, 1),
        method=st.sampled_from(["l1", "l2"]),
        skip=st.lists(st.text(max_size=8)).map(tuple),
        count=st.integers(-5, 10**6),
        deep=st.booleans(),
        label=st.text(max_size=8),
    )
)
def test_any_options_survive_the_text(step: Thin) -> None:
    assert parse_pipeline(format_pipeline([step]), find) == (step,)


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        ("", 0, "is empty"),
        ("thin,", 5, "a pass is expected, found the end"),
        ("thin,,thin", 5, "a pass is expected"),
        ("thin(", 5, "'\\)' is missing"),
        ("thin)", 4, "',' is expected"),
        ("thim,thin", 0, "did you mean 'thin'"),
        ("thin(mac=1)", 5, "did you mean 'macs'"),
        ("thin(method=l3)", 5, "'l3' is none of l1, l2"),
        ("thin(count=1.5)", 5, "not a whole number"),
        ("thin(macs=x)", 5, "not a number"),
        ("thin(count=1,count=2)", 13, "given twice"),
        ("thin(macs=)", 10, "a value is missing"),
        ('thin(label="a', 11, "does not end"),
        ("thin(deep=maybe)", 5, "not true or false"),
    ],
)
def test_errors_point_at_their_place(text: str, column: int, message: str) -> None:
    with pytest.raises(PipelineError, match=message) as error:
        parse_pipeline(text, find)
    assert error.value.column == column
    assert error.value.caret == f"{text}\n{' ' * column}^"
    assert "\n" not in str(error.value)
    assert "^" in str(error.value)


def test_recipe_options_give_way_to_the_text() -> None:
    (step,) = parse_pipeline("thin(count=1)", find, {"thin": {"count": 7, "macs": 0.5}})
    assert step == Thin(count=1, macs=0.5)
    with pytest.raises(UserError, match="not in the pipeline"):
        parse_pipeline("thin", find, {"thick": {}})
    with pytest.raises(UserError, match="no option 'counts'; did you mean 'count'"):
        parse_pipeline("thin", find, {"thin": {"counts": 1}})
    with pytest.raises(UserError, match="does not fit"):
        build_pass(Thin, {"count": {"a": 1}})
