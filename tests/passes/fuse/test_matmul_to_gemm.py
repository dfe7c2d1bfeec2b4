"""matmul-to-gemm: products of matrices and what is added to them."""

from __future__ import annotations

import pytest
from onnxedge_passes.fuse.linear.matmul_to_gemm import MatmulToGemm

HEAD = "g (float[N, 2] x) => (float[N, 2] y)"
WEIGHT = "float[2, 2] w = {1, 2, 3, 4}"
BODY = "{ a = MatMul(x, w) y = Add(a, b) }"


@pytest.mark.parametrize("bias", ["float[2] b = {5, 5}", "float[1, 2] b = {5, 5}", "float b = {5}"])
@pytest.mark.parametrize("order", ["a, b", "b, a"])
def test_becomes_a_gemm(check, bias: str, order: str) -> None:
    check(
        MatmulToGemm(),
        f"{HEAD} <{WEIGHT}, {bias}> {{ a = MatMul(x, w) y = Add({order}) }}",
        f"{HEAD} <{WEIGHT}, float[2] b = {{5, 5}}> {{ y = Gemm(x, w, b) }}",
    )


@pytest.mark.parametrize(
    ("graph", "weights"),
    [
        ("g (float[3, 2] x) => (float[3, 2] y)", f"<{WEIGHT}, float[3, 2] b = {{1, 2, 3, 4, 5, 6}}>"),
        ("g (float[3, 2] x, float[2, 2] w) => (float[3, 2] y)", "<float[2] b = {5, 6}>"),
        ("g (float[N, 2] x, float[2] b) => (float[N, 2] y)", f"<{WEIGHT}>"),
    ],
    ids=["bias of the product's shape", "weight at run time", "bias at run time"],
)
def test_takes_the_bias_as_it_is(check, graph: str, weights: str) -> None:
    check(MatmulToGemm(), f"{graph} {weights} {BODY}", f"{graph} {weights} {{ y = Gemm(x, w, b) }}")


@pytest.mark.parametrize(
    "text",
    [
        f"g (float[N, 3, 2] x) => (float[N, 3, 2] y) <{WEIGHT}, float[2] b = {{5, 6}}> {BODY}",
        f"g (float[3, 2] x) => (float[3, 2] y) <{WEIGHT}, float[3, 1] b = {{5, 6, 7}}> {BODY}",
        f"g (float[1, 2] x) => (float[3, 2] y) <{WEIGHT}, float[3, 2] b = {{1, 2, 3, 4, 5, 6}}> {BODY}",
        f"g (float[3, 2] x, float[3, 2] b) => (float[3, 2] y) <{WEIGHT}> {BODY}",
        f"g (int32[3, 2] x) => (int32[3, 2] y) <int32[2, 2] w = {{1, 2, 3, 4}}, int32[2] b = {{5, 6}}> {BODY}",
    ],
    ids=["not a matrix", "a column", "a bias of more rows", "a short cut", "integers"],
)
def test_stays(check, text: str) -> None:
    check(MatmulToGemm(), text)


def test_other_readers_are_named(check) -> None:
    reasons = check(
        MatmulToGemm(), f"{HEAD} <{WEIGHT}, float[2] b = {{5, 6}}> {{ a = MatMul(x, w) d = Add(a, b) y = Mul(a, d) }}"
    )
    assert reasons == ["not turned into a Gemm: the product has other readers or is exported"]
