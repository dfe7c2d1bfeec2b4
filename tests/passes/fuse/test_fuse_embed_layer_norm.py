"""fuse-embed-layer-norm: two and three embeddings, constant positions, and sums of another kind."""

from __future__ import annotations

import pytest
from onnxedge_passes.fuse.norm.fuse_embed_layer_norm import FuseEmbedLayerNorm

HEAD = "g (int64[B, 3] i, int64[B, 3] t, int64[1, 3] p) => (float[B, 3, 2] y)"
TABLES = (
    "float[4, 2] w = {1, 2, 3, 4, 5, 6, 7, 8}, float[4, 2] s = {0.1, 0, 0.2, 0, 0.3, 0, 0.4, 0},"
    " float[4, 2] q = {0, 0.1, 0, 0.2, 0, 0.3, 0, 0.4}, float[2] g = {1, 2}, float[2] b = {3, 4}"
)
NORM = "y = LayerNormalization<epsilon=0.001>(z, g, b)"
LOOK = "a = Gather(w, i) c = Gather(q, p) d = Gather(s, t)"
CASTS = "ii = Cast<to=6>(i) pp = Cast<to=6>(p)"
CUDA = {"target": "ort-cuda"}


def kernel(inputs: str) -> str:
    return f"y, m = com.microsoft.EmbedLayerNormalization<epsilon=0.001>({inputs})"


def test_words_positions_and_segments(check) -> None:
    check(
        FuseEmbedLayerNorm(),
        f"{HEAD} <{TABLES}> {{ {LOOK} e = Add(a, c) z = Add(e, d) {NORM} }}",
        f"{HEAD} <{TABLES}> {{ pp = Cast<to=6>(p) ii = Cast<to=6>(i) tt = Cast<to=6>(t)"
        f" {kernel('ii, tt, w, q, s, g, b, , pp')} }}",
        **CUDA,
    )


def test_words_and_positions(check) -> None:
    check(
        FuseEmbedLayerNorm(),
        f"{HEAD} <{TABLES}> {{ a = Gather(w, i) c = Gather(q, p) z = Add(a, c) {NORM} }}",
        f"{HEAD} <{TABLES}> {{ pp = Cast<to=6>(p) ii = Cast<to=6>(i) {kernel('ii, , w, q, , g, b, , pp')} }}",
        **CUDA,
    )


def test_positions_first(check) -> None:
    check(
        FuseEmbedLayerNorm(),
        f"{HEAD} <{TABLES}> {{ a = Gather(w, i) c = Gather(q, p) z = Add(c, a) {NORM} }}",
        f"{HEAD} <{TABLES}> {{ pp = Cast<to=6>(p) ii = Cast<to=6>(i) {kernel('ii, , w, q, , g, b, , pp')} }}",
        **CUDA,
    )


def test_constant_positions(check) -> None:
    rows = "{0.1, 0.2, 0.3, 0.4, 0.5, 0.6}"
    check(
        FuseEmbedLayerNorm(),
        f"{HEAD} <{TABLES}, float[1, 3, 2] k = {rows}> {{ a = Gather(w, i) d = Gather(s, t) e = Add(a, k)"
        f" z = Add(d, e) {NORM} }}",
        f"{HEAD} <{TABLES}, float[3, 2] k = {rows}> {{ ii = Cast<to=6>(t) tt = Cast<to=6>(i)"
        f" {kernel('ii, tt, s, k, w, g, b')} }}",
        **CUDA,
    )


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("a = Gather(w, i) x = Cast<to=1>(i) u = Unsqueeze(x, last) z = Add(a, u)", "something else is added"),
        (f"{LOOK} f = Gather(w, t) e = Add(a, c) h = Add(d, f) z = Add(e, h)", "it adds up two or three embeddings"),
        ("a = Gather(w, i) r = Relu(q) c = Gather(r, p) z = Add(c, a)", "something else is added"),
        ("z = Gather(w, i)", "it adds up two or three embeddings"),
    ],
)
def test_stays_with_a_reason(check, body: str, reason: str) -> None:
    reasons = check(FuseEmbedLayerNorm(), f"{HEAD} <{TABLES}, int64[1] last = {{-1}}> {{ {body} {NORM} }}", **CUDA)
    assert len(reasons) == 1
    assert reasons[0].startswith(f"EmbedLayerNormalization not fused: {reason}")


def test_other_targets(check) -> None:
    body = f"a = Gather(w, i) c = Gather(q, p) z = Add(a, c) {NORM}"
    reasons = check(FuseEmbedLayerNorm(), f"{HEAD} <{TABLES}> {{ {body} }}", target="ort-cpu")
    assert reasons == ["EmbedLayerNormalization not fused: target ort-cpu lists no kernel for it"]
    lone = f"a = Gather(w, i) z = Relu(a) {NORM}"
    assert check(FuseEmbedLayerNorm(), f"{HEAD} <{TABLES}> {{ {lone} }}", target="ort-cpu") == []


def test_rows_that_are_computed_are_not_near(check) -> None:
    body = f"ii = Abs(i) a = Gather(w, ii) r = Relu(a) z = Add(a, r) {NORM}"
    assert check(FuseEmbedLayerNorm(), f"{HEAD} <{TABLES}> {{ {body} }}", **CUDA) == []


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("a = Gather(w, i) r = Relu(a) z, , , o = {}(r, a, g, b)", None),
        ("a = Gather(w, i) x = Gather(s, t) r = Relu(x) y = {}(a, r, g, b)", "something else is added"),
        ("a = Gather(w, i) x = Gather(s, t) y, , , o = {}(a, x, g, b)", "the sum has other readers"),
        ("a = Gather(w, i) x = Gather(s, t) y = {}(a, x, g, b)", None),
    ],
    ids=["read twice", "a part is computed", "a sum that others read", "nothing against it"],
)
def test_sums_that_another_kernel_took(check, body: str, reason: str | None) -> None:
    skip = "com.microsoft.SkipLayerNormalization<epsilon=0.001>"
    head = HEAD.replace("=> (", "=> (float[B, 3, 2] o, ") if " o = " in body else HEAD
    text = f"{head} <{TABLES}> {{ {body.format(skip)} {'y = Relu(z)' if 'z,' in body else ''} }}"
    reasons = check(FuseEmbedLayerNorm(), text, **CUDA)
    assert len(reasons) == (reason is not None)
    assert all(said.startswith(f"EmbedLayerNormalization not fused: {reason}") for said in reasons)
