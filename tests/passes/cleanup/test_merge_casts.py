"""merge-casts: casts in a row, and casts to another value's type."""

from __future__ import annotations

import pytest
from onnxedge_passes.cleanup.merge_casts import MergeCasts

MERGED = {
    "there and back": (
        "g (float16[N] x) => (float16[N] y) { a = Cast<to=1>(x) b = Cast<to=10>(a) y = Relu(b) }",
        "g (float16[N] x) => (float16[N] y) { y = Relu(x) }",
    ),
    "integers by way of wider ones": (
        "g (int32[N] x) => (int8[N] y) { a = Cast<to=7>(x) y = Cast<to=3>(a) }",
        "g (int32[N] x) => (int8[N] y) { y = Cast<to=3>(x) }",
    ),
    "booleans by way of floats": (
        "g (bool[N] x) => (int64[N] y) { a = Cast<to=1>(x) y = Cast<to=7>(a) }",
        "g (bool[N] x) => (int64[N] y) { y = Cast<to=7>(x) }",
    ),
    "there and back, from input to output": (
        "g (float16[N] x) => (float16[N] y) { a = Cast<to=1>(x) y = Cast<to=10>(a) }",
        "g (float16[N] x) => (float16[N] y) { y = Identity(x) }",
    ),
    "the type of another value": (
        "g (float[N] x, int64[M] t) => (int64[N] y) { y = CastLike(x, t) }",
        "g (float[N] x, int64[M] t) => (int64[N] y) { y = Cast<to=7>(x) }",
    ),
}

KEPT = {
    "digits are lost": "g (float[N] x) => (float[N] y) { a = Cast<to=10>(x) y = Cast<to=1>(a) }",
    "range is lost": "g (int64[N] x) => (int64[N] y) { a = Cast<to=6>(x) y = Cast<to=7>(a) }",
    "a fraction to fill with":
        "g (float[N] x) => (int64[N] y)"
        " { s = Shape(x) a = ConstantOfShape<value=float[1] {2.5}>(s) y = Cast<to=7>(a) }",
    "a number to fill with that is too large":
        "g (float[N] x) => (int8[N] y) { s = Shape(x) a = ConstantOfShape<value=int64[1] {300}>(s) y = Cast<to=3>(a) }",
    "sign is lost": "g (int32[N] x) => (int64[N] y) { a = Cast<to=12>(x) y = Cast<to=7>(a) }",
    "a float out of an integer's range": "g (float[N] x) => (int32[N] y) { a = Cast<to=11>(x) y = Cast<to=6>(a) }",
    "an integer by way of a float that holds it, to a narrower one":
        "g (int32[N] x) => (int8[N] y) { a = Cast<to=11>(x) y = Cast<to=3>(a) }",
}  # fmt: skip


@pytest.mark.parametrize(("before", "after"), MERGED.values(), ids=MERGED)
def test_merges(check, before: str, after: str) -> None:
    check(MergeCasts(), before, after)


@pytest.mark.parametrize("text", KEPT.values(), ids=KEPT)
def test_stays(check, text: str) -> None:
    check(MergeCasts(), text)


@pytest.mark.parametrize(("value", "to", "filling"), [("<value=int64[1] {3}>", 1, [3.0]), ("", 7, [0])])
def test_a_filled_tensor(rewritten, value: str, to: int, filling: list[float]) -> None:
    kind = {1: "float", 7: "int64"}[to]
    head = f"g (float[N] x) => ({kind}[N] y)"
    model, _ = rewritten(MergeCasts(), f"{head} {{ s = Shape(x) a = ConstantOfShape{value}(s) y = Cast<to={to}>(a) }}")
    assert [node.op_type for node in model.graph] == ["Shape", "ConstantOfShape"]
    made = model.graph[1].attributes.get_tensor("value")
    assert (made.numpy().tolist(), int(made.dtype)) == (filling, to)


def test_a_saturating_cast_keeps_its_attribute(check) -> None:
    check(
        MergeCasts(),
        "g (float[N] x, float8e4m3fn[M] t) => (float8e4m3fn[N] y) { y = CastLike<saturate=0>(x, t) }",
        "g (float[N] x, float8e4m3fn[M] t) => (float8e4m3fn[N] y) { y = Cast<to=17, saturate=0>(x) }",
        opset=19,
        ir_version=9,
        runs=False,
    )
