"""eliminate-identity: each neutral form goes, each look-alike stays."""

from __future__ import annotations

import pytest
from onnxedge_passes.cleanup.eliminate_identity import EliminateIdentity

HEAD = "g (float[N, 3] x) => (float[N, 3] y)"

NEUTRAL = {
    "identity": "{ a = Identity(x) y = Relu(a) }",
    "dropout": "{ a = Dropout(x) y = Relu(a) }",
    "cast to the same type": "{ a = Cast<to=1>(x) y = Relu(a) }",
    "reshape with copied dimensions": "<int64[2] s = {0, -1}> { a = Reshape(x, s) y = Relu(a) }",
    "flatten of a matrix": "{ a = Flatten(x) y = Relu(a) }",
    "transpose in order": "{ a = Transpose<perm=[0, 1]>(x) y = Relu(a) }",
    "pad by nothing": "<int64[4] p = {0, 0, 0, 0}> { a = Pad(x, p) y = Relu(a) }",
    "slice of everything": "<int64[1] s = {0}, int64[1] e = {3}, int64[1] k = {1}>"
    " { a = Slice(x, s, e, k) y = Relu(a) }",
    "tile once": "<int64[2] t = {1, 1}> { a = Tile(x, t) y = Relu(a) }",
    "concat of one": "{ a = Concat<axis=0>(x) y = Relu(a) }",
    "expand to ones": "<int64[2] s = {1, 1}> { a = Expand(x, s) y = Relu(a) }",
    "times 1": "<float[3] one = {1, 1, 1}> { a = Mul(one, x) y = Relu(a) }",
    "over 1": "<float one = {1}> { a = Div(x, one) y = Relu(a) }",
    "minus 0": "<float[1] z = {0}> { a = Sub(x, z) y = Relu(a) }",
    "to the power of 1": "<float one = {1}> { a = Pow(x, one) y = Relu(a) }",
    "the larger of one value": "{ a = Max(x, x) y = Relu(a) }",
    "gather of everything": "<int64[3] i = {0, 1, 2}> { a = Gather<axis=1>(x, i) y = Relu(a) }",
    "split into one part": "<int64[1] s = {3}> { a = Split<axis=1>(x, s) y = Relu(a) }",
    "resize by 1": '<float[2] s = {1, 1}> { a = Resize<mode="linear">(x, , s) y = Relu(a) }',
    "where that always takes one side": "<bool[1] c = {0}, float[1, 1] z = {5}> { a = Where(c, z, x) y = Relu(a) }",
    "where both sides are one": "<bool[3] c = {0, 1, 0}> { a = Where(c, x, x) y = Relu(a) }",
    "a Relu of a Relu": "{ a = Relu(x) y = Relu(a) }",
    "plus -0.0": "<float[1] z = {-0.0}> { a = Add(x, z) y = Relu(a) }",
}

DIFFERENT = {
    "the mean of one value": "{ a = Mean(x, x) y = Relu(a) }",
    "gather in another order": "<int64[3] i = {0, 2, 1}> { a = Gather<axis=1>(x, i) y = Relu(a) }",
    "where that takes a broadcast side": "<bool[1] c = {1}, float[1, 1] z = {5}> { a = Where(c, z, x) y = Relu(a) }",
    "1 over x": "<float one = {1}> { a = Div(one, x) y = Relu(a) }",
    "0 minus x": "<float z = {0}> { a = Sub(z, x) y = Relu(a) }",
    "plus +0.0": "<float z = {0}> { a = Add(x, z) y = Relu(a) }",
    "a slice that cuts": "<int64[1] s = {0}, int64[1] e = {2}, int64[1] k = {0}> { a = Slice(x, s, e, k) y = Relu(a) }",
    "cast back": "{ b = Cast<to=10>(x) a = Cast<to=1>(b) y = Relu(a) }",
    "transpose": "{ b = Transpose<perm=[1, 0]>(x) y = Transpose<perm=[1, 0]>(b) }",
    "a root of another operator": "{ a = Abs(x) b = Relu(a) y = Sqrt(b) }",
    "another domain's Identity": "{ a = acme.Identity(x) y = Relu(a) }",
    "input to output": "{ y = Identity(x) }",
}


@pytest.mark.parametrize("body", NEUTRAL.values(), ids=NEUTRAL)
def test_goes(check, body: str) -> None:
    check(EliminateIdentity(), f"{HEAD} {body}", f"{HEAD} {{ y = Relu(x) }}")


@pytest.mark.parametrize("body", DIFFERENT.values(), ids=DIFFERENT)
def test_stays(check, body: str) -> None:
    check(EliminateIdentity(), f"{HEAD} {body}", runs="acme" not in body)


def test_broadcast_that_changes_the_shape_stays(check) -> None:
    check(EliminateIdentity(), "g (float[3] x) => (float[M, 3] y) <float[2, 1] one = {1, 1}> { y = Mul(x, one) }")


def test_unknown_dimension_against_a_constant_stays(check) -> None:
    check(EliminateIdentity(), "g (float[N] x) => (float[M] y) <float[2] one = {1, 1}> { y = Mul(x, one) }")


def test_add_of_zero_says_why(check) -> None:
    reasons = check(EliminateIdentity(), f"{HEAD} <float z = {{0}}> {{ y = Add(x, z) }}")
    assert reasons == ["not removed: adding +0.0 turns -0.0 into 0.0"]


def test_integer_zero_goes(check) -> None:
    head = "g (int64[N] x) => (int64[N] y)"
    check(EliminateIdentity(), f"{head} <int64 z = {{0}}> {{ a = Add(x, z) y = Abs(a) }}", f"{head} {{ y = Abs(x) }}")


def test_dropout_whose_mask_is_read_stays(check) -> None:
    check(EliminateIdentity(), "g (float[N] x) => (float[N] y, bool[N] m) { y, m = Dropout(x) }")


def test_training_dropout_of_nothing_goes(check) -> None:
    text = f"{HEAD} <float r = {{0}}, bool t = {{1}}> {{ a = Dropout(x, r, t) y = Relu(a) }}"
    check(EliminateIdentity(), text, f"{HEAD} {{ y = Relu(x) }}")


def test_training_dropout_stays(check) -> None:
    text = f"{HEAD} <float r = {{0.5}}, bool t = {{1}}> {{ y = Dropout<seed=1>(x, r, t) }}"
    check(EliminateIdentity(), text, runs=False)


def test_inside_a_subgraph(check) -> None:
    head = "g (bool c, float[3] x) => (float[3] y)"
    text = (
        "{{ y = If(c) <then_branch = t () => (float[3] a) {{ {0} }},"
        " else_branch = e () => (float[3] b) {{ b = Neg(x) }}> }}"
    )
    check(
        EliminateIdentity(),
        f"{head} {text.format('d = Identity(x) a = Relu(d)')}",
        f"{head} {text.format('a = Relu(x)')}",
    )


def test_outer_value_as_a_branch_output_stays(check) -> None:
    check(
        EliminateIdentity(),
        "g (bool c, float[3] x) => (float[3] y) { r = Relu(x) y = If(c) <then_branch = t () => (float[3] a)"
        " { a = Identity(r) }, else_branch = e () => (float[3] b) { b = Neg(r) }> }",
    )


def test_old_slice_with_attributes(check) -> None:
    check(
        EliminateIdentity(),
        f"{HEAD} {{ a = Slice<axes=[1], starts=[0], ends=[2147483647]>(x) y = Relu(a) }}",
        f"{HEAD} {{ y = Relu(x) }}",
        opset=9,
    )


def test_an_overridable_one_is_no_constant(check) -> None:
    check(EliminateIdentity(), "g (float[3] x, float one = {1}) => (float[3] y) { y = Mul(x, one) }")


LOGIC = {
    "and": "<bool t = {1}> { a = And(x, t) y = Not(a) }",
    "or": "<bool[1] f = {0}> { a = Or(f, x) y = Not(a) }",
    "xor": "<bool f = {0}> { a = Xor(x, f) y = Not(a) }",
    "with itself": "{ a = And(x, x) y = Not(a) }",
}


@pytest.mark.parametrize("body", LOGIC.values(), ids=LOGIC)
def test_logic_goes(check, body: str) -> None:
    check(EliminateIdentity(), f"g (bool[N] x) => (bool[N] y) {body}", "g (bool[N] x) => (bool[N] y) { y = Not(x) }")


def test_logic_that_decides_stays(check) -> None:
    check(EliminateIdentity(), "g (bool[N] x) => (bool[N] y) <bool t = {1}> { a = Or(x, t) y = Not(a) }")
