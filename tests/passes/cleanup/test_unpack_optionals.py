"""unpack-optionals: what an optional value holds is read without it."""

from __future__ import annotations

import pytest
from onnxedge_passes.cleanup.unpack_optionals import UnpackOptionals

ELEMENT, FLAG = "g (float[N, 2] x) => (float[N, 2] y)", "g (float[N, 2] x) => (bool y)"

UNPACKED = {
    "the element": (
        f"{ELEMENT} {{ o = Optional(x) a = OptionalGetElement(o) y = Relu(a) }}",
        f"{ELEMENT} {{ y = Relu(x) }}",
    ),
    "the element of a tensor": (
        f"{ELEMENT} {{ r = Neg(x) a = OptionalGetElement(r) y = Relu(a) }}",
        f"{ELEMENT} {{ r = Neg(x) y = Relu(r) }}",
    ),
    "exported": (f"{ELEMENT} {{ o = Optional(x) y = OptionalGetElement(o) }}", f"{ELEMENT} {{ y = Identity(x) }}"),
    "something": (
        f"{FLAG} {{ o = Optional(x) a = OptionalHasElement(o) y = Not(a) }}",
        f"{FLAG} <bool c = {{1}}> {{ a = Identity(c) y = Not(a) }}",
    ),
    "nothing": (
        f"{FLAG} {{ a = OptionalHasElement() y = Not(a) }}",
        f"{FLAG} <bool c = {{0}}> {{ a = Identity(c) y = Not(a) }}",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("before", "after"), UNPACKED.values(), ids=UNPACKED)
def test_unpacks(check, before: str, after: str) -> None:
    check(UnpackOptionals(), before, after, opset=18)


def test_what_comes_from_elsewhere_stays(check) -> None:
    text = "g (optional(float[2]) x) => (bool y) { a = OptionalHasElement(x) y = Not(a) }"
    check(UnpackOptionals(), text, opset=18, runs=False)
