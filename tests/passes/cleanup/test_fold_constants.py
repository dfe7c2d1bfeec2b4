"""fold-constants: values, shapes, bounds."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from onnxedge_passes.cleanup.constants.evaluate import Evaluator
from onnxedge_passes.cleanup.constants.fold_constants import FoldConstants

from onnxedge.api import weight_bytes

HEAD = "g (float[2] x) => (float[M] y)"

BOMBS = {
    "ConstantOfShape": "<int64[1] s = {1000000000}> { c = ConstantOfShape(s) y = Concat<axis=0>(x, c) }",
    "Tile": "<float[1] a = {1}, int64[1] b = {4000000000}> { c = Tile(a, b) y = Concat<axis=0>(x, c) }",
    "Expand": "<float[1] a = {1}, int64[1] b = {4000000000}> { c = Expand(a, b) y = Concat<axis=0>(x, c) }",
    "Pad": "<float[1] a = {1}, int64[2] b = {4000000000, 4000000000}> { c = Pad(a, b) y = Concat<axis=0>(x, c) }",
    "Range": "<float a = {0}, float b = {1e12}, float d = {1}> { c = Range(a, b, d) y = Concat<axis=0>(x, c) }",
}


def test_chain_of_constants(check) -> None:
    check(
        FoldConstants(),
        f"{HEAD} <float[2] a = {{1, 4}}> {{ b = Sqrt(a) c = Neg(b) d = Concat<axis=0>(c, b)"
        " y = Concat<axis=0>(x, d) }",
        f"{HEAD} <float[4] d = {{-1, -2, 1, 2}}> {{ y = Concat<axis=0>(x, d) }}",
    )


def test_constant_nodes_in_each_form(check) -> None:
    check(
        FoldConstants(),
        f"{HEAD} {{ a = Constant<value_floats=[1.0, 2.0]>() k = Constant<value_int=1>() f = Cast<to=1>(k)"
        " b = Add(a, f) y = Mul(x, b) }",
        f"{HEAD} <float[2] b = {{2, 3}}> {{ y = Mul(x, b) }}",
    )


def test_shape_of_known_dimensions(check) -> None:
    check(
        FoldConstants(),
        "g (float[N, 64, 1, 1] x) => (float[N, 64] y) <int64 i = {1}, int64[1] z = {0}, int64[1] m = {-1}>"
        " { s = Shape(x) n = Gather(s, i) u = Unsqueeze(n, z) t = Concat<axis=0>(m, u) y = Reshape(x, t) }",
        "g (float[N, 64, 1, 1] x) => (float[N, 64] y) <int64[2] t = {-1, 64}> { y = Reshape(x, t) }",
    )


def test_dynamic_dimension_becomes_a_copied_one(check) -> None:
    check(
        FoldConstants(),
        "g (float[N, 4, 2] x) => (float[N, K] y) <int64 i = {0}, int64[1] z = {0}, int64[1] m = {-1}>"
        " { r = Relu(x) s = Shape(x) n = Gather(s, i) u = Unsqueeze(n, z) t = Concat<axis=0>(u, m) y = Reshape(r, t) }",
        "g (float[N, 4, 2] x) => (float[N, K] y) <int64[2] t = {0, -1}> { r = Relu(x) y = Reshape(r, t) }",
    )


def test_dynamic_dimension_in_another_place_becomes_minus_one(check) -> None:
    check(
        FoldConstants(),
        "g (float[N, 4, 2] x) => (float[8, N] y) <int64[1] i = {0}, int64[1] m = {8}>"
        " { s = Shape(x) n = Gather(s, i) t = Concat<axis=0>(m, n) y = Reshape(x, t) }",
        "g (float[N, 4, 2] x) => (float[8, N] y) <int64[2] t = {8, -1}> { y = Reshape(x, t) }",
    )


def test_two_inputs_with_one_symbol_are_not_believed(check) -> None:
    check(
        FoldConstants(),
        "g (float[N, 4] x, float[N, 4] w) => (float[A, B] y) <int64[1] i = {0}, int64[1] m = {-1}>"
        " { s = Shape(w) n = Gather(s, i) t = Concat<axis=0>(n, m) y = Reshape(x, t) }",
    )


def test_declared_inner_shapes_are_not_believed(check) -> None:
    check(
        FoldConstants(),
        "g (float[N] x) => (int64[1] y) <int64[1] z = {0}, float[7] b>"
        " { b = Relu(x) s = Shape(b) t = Neg(s) y = Add(t, z) }",
        "g (float[N] x) => (int64[1] y) { b = Relu(x) s = Shape(b) y = Neg(s) }",
    )


def test_overflow_and_nan_come_out_as_in_the_runtime(check) -> None:
    check(
        FoldConstants(),
        f"{HEAD} <float[2] a = {{-1, 0}}, float[2] z = {{0, 0}}> {{ r = Sqrt(a) d = Div(z, z)"
        " s = Add(r, d) y = Concat<axis=0>(x, s) }",
        f"{HEAD} <float[2] s = {{nan, nan}}> {{ y = Concat<axis=0>(x, s) }}",
    )


@pytest.mark.parametrize("body", BOMBS.values(), ids=BOMBS)
def test_bombs_are_not_evaluated(check, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    evaluated: list[ir.Node] = []
    monkeypatch.setattr(Evaluator, "evaluate", lambda self, nodes, known: (evaluated.extend(nodes), ({}, {}))[1])
    reasons = check(FoldConstants(), f"{HEAD} {body}", runs=False, infer=False)
    assert not evaluated
    assert reasons == ["not folded: it would add more bytes than max_constant_bytes allows"]


def test_doubling_ends_at_the_bound(rewritten) -> None:
    doubled = " ".join(f"c{i + 1} = Concat<axis=0>(c{i}, c{i})" for i in range(60))
    text = f"{HEAD} <float[2] c0 = {{1, 2}}> {{ {doubled} y = Concat<axis=0>(x, c60) }}"
    model, reasons = rewritten(FoldConstants(), text, infer=False)
    assert len(model.graph) > 40
    assert weight_bytes(model) <= 1 << 17
    assert set(reasons) == {"not folded: it would add more bytes than max_constant_bytes allows"}


def test_weights_may_be_turned_around(check) -> None:
    check(
        FoldConstants(max_constant_bytes=4),
        "g (float[2, 2] x) => (float[2, 2] y) <float[2, 2] w = {1, 2, 3, 4}> { t = Transpose(w) y = MatMul(x, t) }",
        "g (float[2, 2] x) => (float[2, 2] y) <float[2, 2] t = {1, 3, 2, 4}> { y = MatMul(x, t) }",
    )


def test_integer_division_by_zero_is_left_to_the_runtime(check) -> None:
    reasons = check(
        FoldConstants(),
        "g (int64[1] x) => (int64[1] y) <int64[1] a = {5}, int64[1] b = {0}> { c = Div(a, b) y = Add(x, c) }",
        runs=False,
    )
    assert reasons == ["not folded: integer division by 0, or of the least integer by -1"]


def test_dequantized_weights_stay_small(check) -> None:
    text = f"{HEAD} <int8[2] q = {{1, 2}}, float s = {{0.5}}> {{ w = DequantizeLinear(q, s) y = Mul(x, w) }}"
    reasons = check(FoldConstants(), text)
    assert reasons == ["not folded: weights behind it stay small; fold(dequantize=true) folds them"]
    check(FoldConstants(dequantize=True), text, f"{HEAD} <float[2] w = {{0.5, 1}}> {{ y = Mul(x, w) }}")


def test_an_overridable_initializer_is_no_constant(check) -> None:
    check(FoldConstants(), "g (float[2] x, float[2] w = {1, 2}) => (float[2] y) { n = Neg(w) y = Mul(x, n) }")


def test_random_stays(check) -> None:
    check(FoldConstants(), "g (float[2] x) => (float[2] y) { r = RandomNormal<shape=[2]>() y = Add(x, r) }", runs=False)


def test_in_a_branch(check) -> None:
    head, tail = (
        "g (bool c, float[2] x) => (float[2] y) { y = If(c) <then_branch = t () => (float[2] a)",
        (", else_branch = e () => (float[2] b) { b = Neg(x) }> }"),
    )
    check(
        FoldConstants(),
        f"{head} {{ k = Constant<value_floats=[1.0, 4.0]>() r = Sqrt(k) a = Mul(x, r) }} {tail}",
        f"{head} <float[2] r = {{1, 2}}> {{ a = Mul(x, r) }} {tail}",
    )
