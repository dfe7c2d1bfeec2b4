"""pack-attention: three products, a merged one, Gemm between Reshapes, masks and biases, and what cannot be packed."""

from __future__ import annotations

import pytest
from conftest import parse
from onnxedge_passes.fuse.attention.pack_attention import PackAttention

CUDA = {"target": "ort-cuda"}
HEAD = "g (float[B, T, 2] x, float[1, 1, T, T] m) => (float[B, T, 2] y)"
WEIGHTS = "float[2, 2] p = {1, 2, 3, 4}, float[2, 2] q = {0, -1, 1, 2}, float[2, 2] r = {2, 1, 0, 1}"
BIASES = "float[2] a = {1, 0}, float[2] c = {0.5, -1}"
WHOLE = "float[2, 6] w = {1, 2, 0, -1, 2, 1, 3, 4, 1, 2, 0, 1}"
PRODUCTS = "q0 = MatMul(x, p) k0 = MatMul(x, q) v0 = MatMul(x, r)"
CALL = "y = com.microsoft.MultiHeadAttention<num_heads=2, scale=0.25>"
PACKED = "y = com.microsoft.Attention<num_heads=2, scale=0.25>"


def test_products_of_which_one_has_a_bias(check) -> None:
    check(
        PackAttention(),
        f"{HEAD} <{WEIGHTS}, {BIASES}> {{ {PRODUCTS} k1 = Add(a, k0) {CALL}(q0, k1, v0) }}",
        f"{HEAD} <{WHOLE}, float[6] b = {{0, 0, 1, 0, 0, 0}}> {{ {PACKED}(x, w, b) }}",
        **CUDA,
    )


def test_a_mask_its_own_bias_and_causality(check) -> None:
    own = "float[6] o = {1, 2, 3, 4, 5, 6}"
    check(
        PackAttention(),
        f"{HEAD} <{WEIGHTS}, {BIASES}, {own}> {{ {PRODUCTS} k1 = Add(k0, a)"
        f" {CALL.replace('>', ', unidirectional=1>')}(q0, k1, v0, o, , m) }}",
        f"{HEAD} <{WHOLE}, float[6] b = {{1, 2, 4, 4, 5, 6}}>"
        f" {{ {PACKED.replace('>', ', unidirectional=1>')}(x, w, b, , , m) }}",
        **CUDA,
    )


def test_a_merged_product_in_another_order(check) -> None:
    check(
        PackAttention(),
        f"{HEAD} <float[2, 6] w = {{2, 1, 1, 2, 0, -1, 0, 1, 3, 4, 1, 2}}, float[6] b = {{5, 6, 1, 2, 3, 4}}>"
        f" {{ t = MatMul(x, w) s = Add(t, b) v, q, k = Split<axis=-1>(s) {CALL}(q, k, v) }}",
        f"{HEAD} <{WHOLE}, float[6] b = {{1, 2, 3, 4, 5, 6}}> {{ {PACKED}(x, w, b) }}",
        **CUDA,
    )


def test_values_of_another_width(check) -> None:
    check(
        PackAttention(),
        f"{HEAD.replace('2] y', '4] y')} <{WEIGHTS}, float[2, 4] z = {{1, 2, 3, 4, 5, 6, 7, 8}}>"
        f" {{ q0 = MatMul(x, p) k0 = MatMul(x, q) v0 = MatMul(x, z) {CALL}(q0, k0, v0) }}",
        f"{HEAD.replace('2] y', '4] y')} <float[2, 8] w = {{1, 2, 0, -1, 1, 2, 3, 4, 3, 4, 1, 2, 5, 6, 7, 8}},"
        " float[8] b = {0, 0, 0, 0, 0, 0, 0, 0}>"
        f" {{ {PACKED.replace('>', ', qkv_hidden_sizes=[2, 2, 4]>')}(x, w, b) }}",
        **CUDA,
    )


@pytest.mark.parametrize(("batch", "tokens"), [("2", "3"), ("B", "3"), ("B", "T")])
def test_gemm_between_reshapes(check, batch: str, tokens: str) -> None:
    head = HEAD.replace("B", batch).replace("T", tokens)
    text = (
        f"{head} <{WHOLE}, float[6] b = {{1, 2, 3, 4, 5, 6}}, int64[2] rows = {{-1, 2}}, int64[3] back = {{-1, 3, 6}}>"
        " { f = Reshape(x, rows) t = Gemm(f, w, b) s = Reshape(t, back) q, k, v = Split<axis=2>(s)"
        f" {CALL}(q, k, v) }}"
    )
    after = f"{head} <{WHOLE}, float[6] b = {{1, 2, 3, 4, 5, 6}}> {{ {PACKED}(x, w, b) }}"
    reasons = check(PackAttention(), text, after if tokens == "3" else None, runs=tokens == "3", **CUDA)
    assert bool(reasons) == (tokens == "T")  # that as many rows stay together is not known


def test_a_merged_product_between_reshapes_of_its_parts(check) -> None:
    head = HEAD.replace("B", "2").replace("T", "3")
    check(
        PackAttention(),
        f"{head} <{WHOLE}, int64[2] rows = {{-1, 2}}, int64[3] back = {{-1, 3, 2}}> {{ f = Reshape(x, rows)"
        " t = MatMul(f, w) q2, k2, v2 = Split<axis=1>(t)"
        f" q = Reshape(q2, back) k = Reshape(k2, back) v = Reshape(v2, back) {CALL}(q, k, v) }}",
        f"{head} <{WHOLE}, float[6] b = {{0, 0, 0, 0, 0, 0}}> {{ {PACKED}(x, w, b) }}",
        **CUDA,
    )


def test_parts_of_a_part_stay(check) -> None:
    text = (
        f"{HEAD} <float[2, 12] w = {{1, 2, 0, -1, 2, 1, 3, 4, 1, 2, 0, 1, 3, 2, 1, 0, 1, 1, 2, 2, 3, 3, 4, 4}}>"
        f" {{ t = MatMul(x, w) r, s = Split<axis=-1>(t) q, k, v = Split<axis=-1>(r) {CALL}(q, k, v) }}"
    )
    assert "not all products of" in check(PackAttention(), text, **CUDA)[0]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (f"n = Neg(x) k0 = MatMul(n, q) q0 = MatMul(x, p) v0 = MatMul(x, r) {CALL}(q0, k0, v0)", "not all products of"),
        (f"q0 = MatMul(x, p) k0 = MatMul(x, q) v0 = MatMul(x, q) {CALL}(q0, k0, v0)", "not all products of"),
        (f"{PRODUCTS} {CALL}(q0, x, v0)", "not all products of"),
        (f"{PRODUCTS} z = Neg(k0) u = {CALL[4:]}(q0, k0, v0) y = Add(u, z)", "have other readers"),
        (f"{PRODUCTS} d = Neg(a) o = Concat<axis=0>(d, c, a) {CALL}(q0, k0, v0, o)", "is computed at run time"),
        (f"{PRODUCTS} {CALL}(q0, k0, v0, , keys)", "a mask by key or a cache"),
    ],
    ids=["two sources", "a shared weight", "no product", "another reader", "a computed bias", "a mask by key"],
)
def test_stays_with_a_reason(check, body: str, reason: str) -> None:
    constants = f"{WEIGHTS}, {BIASES}, int32[2] keys = {{1, 1}}"
    reasons = check(PackAttention(), f"{HEAD} <{constants}> {{ {body} }}", **CUDA)
    assert len(reasons) == 1
    assert reasons[0].startswith("packed attention not made: ")
    assert reason in reasons[0]


def test_an_exported_product(check) -> None:
    head = HEAD.replace("y)", "y, float[B, T, 2] k0)")
    reasons = check(PackAttention(), f"{head} <{WEIGHTS}> {{ {PRODUCTS} {CALL}(q0, k0, v0) }}", **CUDA)
    assert "have other readers" in reasons[0]


def test_an_output_exported_twice(applied) -> None:
    model = parse(f"{HEAD} <{WEIGHTS}> {{ {PRODUCTS} {CALL}(q0, k0, v0) }}")
    model.graph.outputs.append(model.graph.outputs[0])
    result, reasons = applied(PackAttention(), model, "ort-cuda")
    assert result.rewrites == 0
    assert reasons == ["packed attention not made: its output is exported twice"]


@pytest.mark.parametrize("target", ["ort-cpu", "generic"])
def test_other_targets(check, target: str) -> None:
    reasons = check(PackAttention(), f"{HEAD} <{WEIGHTS}> {{ {PRODUCTS} {CALL}(q0, k0, v0) }}", target=target)
    assert reasons == [f"packed attention not made: target {target} lists no kernel for it"]
    other = PRODUCTS.replace("v0 = MatMul(x", "z = Relu(x) v0 = MatMul(z")
    assert check(PackAttention(), f"{HEAD} <{WEIGHTS}> {{ {other} {CALL}(q0, k0, v0) }}", target=target) == []
