"""slices-to-split: Slices that take a value apart."""

from __future__ import annotations

import pytest
from onnxedge_passes.fuse.slices_to_split import SlicesToSplit

HEAD = "g (float[N, 6] x) => (float[A, B] p, float[A, C] q)"
BOUNDS = "int64[1] z = {0}, int64[1] two = {2}, int64[1] four = {4}, int64[1] last = {99}, int64[1] one = {1}"
NUMBERS = f"{BOUNDS}, int64[1] minus = {{-4}}, int64[1] end = {{-1}}"


@pytest.mark.parametrize("rest", ["two, last, one", "minus, last, end"])
def test_becomes_a_split(check, rest: str) -> None:
    before = f"{HEAD} <{NUMBERS}> {{ p = Slice(x, z, two, one) q = Slice(x, {rest}) }}"
    check(SlicesToSplit(), before, f"{HEAD} <int64[2] w = {{2, 4}}> {{ p, q = Split<axis=1>(x, w) }}")


def test_attributes_before_opset_13(check) -> None:
    before = f"{HEAD} <{NUMBERS}> {{ a = Relu(x) q = Slice(a, two, last, one) p = Slice(a, z, two, one) }}"
    check(SlicesToSplit(), before, f"{HEAD} {{ a = Relu(x) p, q = Split<axis=1, split=[2, 4]>(a) }}", opset=11)


@pytest.mark.parametrize(
    "body",
    [
        "p = Slice(x, z, four, one) q = Slice(x, two, last, one)",
        "p = Slice(x, z, two, one) q = Slice(x, four, last, one)",
        "p = Slice(x, z, two, one) q = Slice(x, two, last, one, two)",
        "p = Slice(x, z, two, one) q = Slice(x, two, last, z)",
    ],
    ids=["overlap", "a gap", "steps", "other axes"],
)
def test_stays(check, body: str) -> None:
    check(SlicesToSplit(), f"{HEAD} <{NUMBERS}> {{ {body} }}", opset=17)


@pytest.mark.parametrize("dims", ["N, M", "6"], ids=["an unknown size", "a vector"])
def test_other_shapes_stay(check, dims: str) -> None:
    letters = "A, B" if "," in dims else "A"
    axis = "one" if "," in dims else "z"
    check(
        SlicesToSplit(),
        f"g (float[{dims}] x) => (float[{letters}] p, float[{letters}] q) <{NUMBERS}>"
        f" {{ p = Slice(x, z, two, {axis}) q = Slice(x, two, last, {axis}) }}",
    )
