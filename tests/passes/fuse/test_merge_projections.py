"""merge-projections: any number of products of one value, with and without biases, and weights that are shared."""

from __future__ import annotations

import pytest
from conftest import parse
from onnxedge_passes.fuse.linear.merge_projections import MergeProjections

HEAD = "g (float[B, 2] x) => (float[B, 2] p, float[B, 1] q)"
WEIGHTS = "float[2, 2] v = {1, 2, 3, 4}, float[2, 1] w = {5, 6}"
MERGED = "float[2, 3] m = {1, 2, 5, 3, 4, 6}"
SPLIT = "p, q = Split<axis=-1>(s, n)"
CUDA = {"target": "ort-cuda"}


def test_products(check) -> None:
    check(
        MergeProjections(),
        f"{HEAD} <{WEIGHTS}> {{ z = Relu(x) p = MatMul(z, v) q = MatMul(z, w) }}",
        f"{HEAD} <{MERGED}, int64[2] n = {{2, 1}}> {{ z = Relu(x) s = MatMul(z, m) {SPLIT} }}",
        **CUDA,
    )


def test_a_graph_input_and_an_old_opset(check) -> None:
    check(
        MergeProjections(),
        f"{HEAD} <{WEIGHTS}> {{ p = MatMul(x, v) q = MatMul(x, w) }}",
        f"{HEAD} <{MERGED}> {{ s = MatMul(x, m) p, q = Split<axis=-1, split=[2, 1]>(s) }}",
        opset=11,
        **CUDA,
    )


def test_biases(check) -> None:
    biases = "float[2] a = {7, 8}, float[1] b = {9}"
    check(
        MergeProjections(),
        f"{HEAD} <{WEIGHTS}, {biases}> {{ t = MatMul(x, v) p = Add(t, a) u = MatMul(x, w) q = Add(b, u) }}",
        f"{HEAD} <{MERGED}, float[3] b = {{7, 8, 9}}, int64[2] n = {{2, 1}}>"
        f" {{ t = MatMul(x, m) s = Add(t, b) {SPLIT} }}",
        **CUDA,
    )


def test_gemm(check) -> None:
    turned = "float[2, 2] v = {1, 3, 2, 4}, float[2, 1] w = {5, 6}, float[2] a = {7, 8}, float[1] b = {9}"
    check(
        MergeProjections(),
        f"{HEAD} <{turned}> {{ p = Gemm<transB=1>(x, v, a) q = Gemm(x, w, b) }}",
        f"{HEAD} <{MERGED}, float[3] b = {{7, 8, 9}}, int64[2] n = {{2, 1}}> {{ s = Gemm(x, m, b) {SPLIT} }}",
        **CUDA,
    )


@pytest.mark.parametrize(
    ("body", "reasons"),
    [
        (f"<{WEIGHTS}> {{ p = MatMul(x, v) y = Relu(x) q = MatMul(y, w) }}", []),
        (
            f"<{WEIGHTS}, float[1] b = {{9}}> {{ p = MatMul(x, v) u = MatMul(x, w) q = Add(u, b) }}",
            ["some have a bias and some none"] * 2,
        ),
        ("<float[2, 2] v = {1, 2, 3, 4}> { p = MatMul(x, v) r = MatMul(x, v) q = ReduceSum(r) }", []),
        (
            f"<{WEIGHTS}> {{ p = MatMul(x, v) r = MatMul(x, w) s = Add(r, w) q = ReduceSum(s) }}",
            ["a weight has other readers"],
        ),
        (
            "<float[2, 2] v = {1, 2, 3, 4}> { p = MatMul(x, v) t = Transpose<perm=[1, 0]>(x) r = MatMul(x, t)"
            " q = ReduceSum(r) }",
            ["a weight is computed at run time"],
        ),
        (
            f"<{WEIGHTS}> {{ p = Gemm(x, v) q = Gemm<alpha=2.0>(x, w) }}",
            ["one is scaled, transposed, exported twice or has another bias than a vector"],
        ),
    ],
    ids=["another value", "one bias", "one weight", "a shared weight", "a weight at run time", "scaled"],
)
def test_stays(check, body: str, reasons: list[str]) -> None:
    said = check(MergeProjections(), f"{HEAD.replace('float[B, 1] q', 'float q')} {body}", runs=False, **CUDA)
    assert said == [f"products not merged: {reason}" for reason in reasons]


def test_other_targets_say_it_once(check) -> None:
    body = f"<{WEIGHTS}> {{ p = MatMul(x, v) q = MatMul(x, w) }}"
    reasons = check(MergeProjections(), f"{HEAD} {body}", target="ort-cpu")
    assert reasons == ["products not merged: target ort-cpu does not gain by it"]


def test_outputs_exported_twice(applied) -> None:
    model = parse(f"{HEAD} <{WEIGHTS}> {{ p = MatMul(x, v) q = MatMul(x, w) }}")
    model.graph.outputs.append(model.graph.outputs[1])
    assert applied(MergeProjections(), model, "ort-cuda")[0].rewrites == 0
