"""gather-to-slice: evenly spaced indices."""

from __future__ import annotations

import pytest
from onnxedge_passes.cleanup.gather_to_slice import GatherToSlice

HEAD = "g (float[N, 8, 3] x) => (float[A, B, C] y)"

CUT = {
    "in a row": ("2, 3, 4", "{2}", "{5}", "{1}"),
    "every second": ("1, 3, 5, 7", "{1}", "{8}", "{2}"),
    "backwards": ("6, 4, 2", "{6}", "{1}", "{-2}"),
    "backwards to the first": ("2, 1, 0", "{2}", "{-9223372036854775807}", "{-1}"),
}
KEPT = {
    "another step": f"{HEAD} <int64[3] i = {{1, 2, 4}}> {{ y = Gather<axis=1>(x, i) }}",
    "the same again": f"{HEAD} <int64[3] i = {{1, 1, 1}}> {{ y = Gather<axis=1>(x, i) }}",
    "counted from the end": f"{HEAD} <int64[3] i = {{-3, -2, -1}}> {{ y = Gather<axis=1>(x, i) }}",
    "one index": f"{HEAD} <int64[1] i = {{1}}> {{ y = Gather<axis=1>(x, i) }}",
    "a matrix of indices": "g (float[N, 8] x) => (float[A, B, C] y) <int64[2, 2] i = {1, 2, 3, 4}>"
    " { y = Gather<axis=1>(x, i) }",
    "a vector": "g (float[8] x) => (float[A] y) <int64[2] i = {1, 2}> { y = Gather(x, i) }",
}


@pytest.mark.parametrize(("indices", "start", "end", "step"), CUT.values(), ids=CUT)
@pytest.mark.parametrize("axis", [1, -2])
def test_cuts(check, indices: str, start: str, end: str, step: str, axis: int) -> None:
    check(
        GatherToSlice(),
        f"{HEAD} <int64[{len(indices.split(','))}] i = {{{indices}}}> {{ y = Gather<axis={axis}>(x, i) }}",
        f"{HEAD} <int64[1] b = {start}, int64[1] e = {end}, int64[1] a = {{1}}, int64[1] s = {step}>"
        " { y = Slice(x, b, e, a, s) }",
    )


@pytest.mark.parametrize("text", KEPT.values(), ids=KEPT)
def test_stays(check, text: str) -> None:
    assert check(GatherToSlice(), text) == []


@pytest.mark.parametrize("indices", ["0, 1", "7, 8"], ids=["an unknown size", "out of range"])
def test_what_the_runtime_may_refuse_stays(check, indices: str) -> None:
    size = "M" if indices[0] == "0" else "8"
    text = f"g (float[N, {size}] x) => (float[A, B] y) <int64[2] i = {{{indices}}}> {{ y = Gather<axis=1>(x, i) }}"
    check(GatherToSlice(), text, runs=False)
