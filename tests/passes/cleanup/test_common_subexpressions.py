"""common-subexpressions: equal nodes once, and only equal ones."""

from __future__ import annotations

import pytest
from onnxedge_passes.cleanup.common_subexpressions import CommonSubexpressions

DIFFERENT = {
    "random draws": "g () => (float y) { a = RandomNormal<shape=[2]>() b = RandomNormal<shape=[2]>() y = Sub(a, b) }",
    "attributes": "g (float[2] x) => (float[2] y) { a = Elu<alpha=1.0>(x) b = Elu<alpha=2.0>(x) y = Sub(a, b) }",
    "custom operators": "g (float[2] x) => (float[2] y) { a = acme.Draw(x) b = acme.Draw(x) y = Sub(a, b) }",
    "position of an empty input": "g (float[2] x) => (float[2] y) <float c = {1}>"
    ' { a = Clip(x, "", c) b = Clip(x, c, "") y = Sub(a, b) }',
    "two exported values": "g (float[2] x) => (float[2] y, float[2] z) { y = Relu(x) z = Relu(x) }",
    "input order": "g (float[2] x) => (float[2] y) { e = Exp(x) a = Sub(x, e) b = Sub(e, x) y = Mul(a, b) }",
}


def test_chains_collapse(check) -> None:
    check(
        CommonSubexpressions(),
        "g (float[2] x) => (float[2] y) { a = Exp(x) b = Exp(x) c = Neg(a) d = Neg(b) y = Mul(c, d) }",
        "g (float[2] x) => (float[2] y) { a = Exp(x) c = Neg(a) y = Mul(c, c) }",
    )


def test_equal_initializers_make_equal_nodes(check) -> None:
    check(
        CommonSubexpressions(),
        "g (float[2] x) => (float[2] y) <float[2] v = {1, 2}, float[2] w = {1, 2}>"
        " { a = Mul(x, v) b = Mul(x, w) y = Sub(a, b) }",
        "g (float[2] x) => (float[2] y) <float[2] v = {1, 2}> { a = Mul(x, v) y = Sub(a, a) }",
    )


def test_one_exported_value(check) -> None:
    check(
        CommonSubexpressions(),
        "g (float[2] x) => (float[2] y, float[2] z) { a = Relu(x) y = Relu(x) z = Neg(a) }",
        "g (float[2] x) => (float[2] y, float[2] z) { y = Relu(x) z = Neg(y) }",
    )


@pytest.mark.parametrize("text", DIFFERENT.values(), ids=DIFFERENT)
def test_stays(check, text: str) -> None:
    check(CommonSubexpressions(), text, runs="acme" not in text and "Random" not in text)


def test_overridable_initializers_are_not_merged(check) -> None:
    check(
        CommonSubexpressions(),
        "g (float[2] x, float[2] v = {1, 2}, float[2] w = {1, 2}) => (float[2] y)"
        " { a = Mul(x, v) b = Mul(x, w) y = Sub(a, b) }",
    )


def test_tensors_that_training_updates_are_not_merged(check) -> None:
    """ONNX Runtime writes the new mean into the old one's memory: a bias that shares it would change."""
    check(
        CommonSubexpressions(),
        "g (float[4, 2] x) => (float[4, 2] y)"
        " <float[2] s = {1, 2}, float[2] b = {0, 0}, float[2] m = {0, 0}, float[2] v = {1, 1}>"
        " { a = Add(x, b) y, n, w = BatchNormalization<training_mode=1>(a, s, b, m, v) }",
    )
