"""scatter-all: scatters that write every element."""

from __future__ import annotations

import pytest
from onnxedge_passes.cleanup.scatter_all import ScatterAll

FIXED = "g (float[3, 4] x, float[3, 4] u) => (float[3, 4] y)"
OPEN = "g (float[N, 4] x, float[N, 4] u) => (float[N, 4] y)"
NUMBERS = "int64 zero = {0}, int64 one = {1}, int64[1] last = {-1}"
COUNT = "s = Shape(x) n = Gather(s, zero) r = Range(zero, n, one) i = Unsqueeze(r, last)"
TURNED = "g (float[4, N] x, float[N, 4] u) => (float[N, 4] y)"

TAKEN = {
    "constant rows": f"{FIXED} <int64[3, 1] i = {{0, 1, 2}}> {{ a = ScatterND(x, i, u) y = Relu(a) }}",
    "counted rows": f"{OPEN} <{NUMBERS}> {{ {COUNT} a = ScatterND(x, i, u) y = Relu(a) }}",
    "a part of the shape": f"{OPEN} <{NUMBERS}> {{ s = Shape<start=0, end=1>(x) n = Squeeze(s) r = Range(zero, n, one)"
    " i = Unsqueeze(r, last) a = ScatterND(x, i, u) y = Relu(a) }",
    "another axis brought to the front": f"{TURNED} <{NUMBERS}> {{ {COUNT.replace('Gather(s, zero)', 'Gather(s, one)')}"
    " t = Transpose<perm=[1, 0]>(x) a = ScatterND(t, i, u) y = Relu(a) }",
}
KEPT = {
    "another order": f"{FIXED} <int64[3, 1] i = {{0, 2, 1}}> {{ a = ScatterND(x, i, u) y = Relu(a) }}",
    "some rows": "g (float[3, 4] x, float[2, 4] u) => (float[3, 4] y) <int64[2, 1] i = {0, 1}>"
    " { a = ScatterND(x, i, u) y = Relu(a) }",
    "a sum": f'{FIXED} <int64[3, 1] i = {{0, 1, 2}}> {{ a = ScatterND<reduction="add">(x, i, u) y = Relu(a) }}',
    "from the second row": f"{OPEN} <{NUMBERS}> {{ {COUNT.replace('Range(zero', 'Range(one')}"
    " a = ScatterND(x, i, u) y = Relu(a) }",
    "the size of another axis": f"{TURNED} <{NUMBERS}> {{ {COUNT} t = Transpose<perm=[1, 0]>(x)"
    " a = ScatterND(t, i, u) y = Relu(a) }",
    "the size of another value": f"{OPEN} <{NUMBERS}> {{ {COUNT.replace('Shape(x)', 'Shape(u)')}"
    " a = ScatterND(x, i, u) y = Relu(a) }",
}


@pytest.mark.parametrize("text", TAKEN.values(), ids=TAKEN)
def test_the_updates_are_taken(check, text: str) -> None:
    check(ScatterAll(), text, f"{text.split(' <')[0]} {{ y = Relu(u) }}", opset=18)


@pytest.mark.parametrize("text", KEPT.values(), ids=KEPT)
def test_stays(check, text: str) -> None:
    check(ScatterAll(), text, opset=18, runs="Range(one" not in text and "Transpose" not in text)
