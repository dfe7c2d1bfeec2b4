"""absorb-heads: Attention between the Transposes of exporters."""

from __future__ import annotations

import pytest
from onnxedge_passes.fuse.attention import AbsorbHeads

HEAD = "g (float[B, T, 8] q, float[B, S, 8] k, float[B, S, 12] v{more}) => (float[B, T, 12] y)"
SHAPES = "<int64[4] hs = {0, 0, 2, 4}, int64[4] vs = {0, 0, 2, 6}, int64[3] ms = {0, 0, 12}>"
BEFORE = (
    "qs = Reshape(q, hs) qh = Transpose<perm=[0, 2, 1, 3]>(qs) ks = Reshape(k, hs)"
    " kh = Transpose<perm=[0, 2, 1, 3]>(ks) ws = Reshape(v, vs) vh = Transpose<perm=[0, 2, 1, 3]>(ws)"
)
AFTER = "o = Transpose<perm=[0, 2, 1, 3]>(oh) y = Reshape(o, ms)"
OPTIONS = {"opset": 23, "ir_version": 11}


@pytest.mark.parametrize(
    ("more", "mask", "attributes"),
    [
        ("", "", "scale=0.25"),
        (", float[B, 1, T, S] m", ", m", "softcap=2.0, scale=0.5"),
        ("", "", "is_causal=1, scale=1.0"),
    ],
)
def test_heads_are_absorbed(check, more: str, mask: str, attributes: str) -> None:
    head = HEAD.format(more=more)
    check(
        AbsorbHeads(),
        f"{head} {SHAPES} {{ {BEFORE} oh = Attention<{attributes}>(qh, kh, vh{mask}) {AFTER} }}",
        f"{head} {{ y = Attention<{attributes}, q_num_heads=2, kv_num_heads=2>(q, k, v{mask}) }}",
        **OPTIONS,
    )


def test_groups_of_heads(check) -> None:
    head = "g (float[B, T, 8] q, float[B, S, 4] k, float[B, S, 4] v) => (float[B, T, 8] y)"
    shapes = "<int64[4] hs = {0, 0, 2, 4}, int64[4] vs = {0, 0, 1, 4}, int64[3] ms = {0, 0, 8}>"
    body = BEFORE.replace("Reshape(k, hs)", "Reshape(k, vs)")
    check(
        AbsorbHeads(),
        f"{head} {shapes} {{ {body} oh = Attention(qh, kh, vh) {AFTER} }}",
        f"{head} {{ y = Attention<q_num_heads=2, kv_num_heads=1, scale=0.5>(q, k, v) }}",
        **OPTIONS,
    )


PACKED = (
    "r = Reshape(q, hs) t = Transpose<perm=[2, 0, 3, 1, 4]>(r) qh = Gather<axis=0>(t, i0) kh = Gather<axis=0>(t, i1)"
    " vh = Gather<axis=0>(t, i2)"
)


def test_queries_keys_and_values_side_by_side(check) -> None:
    head = "g (float[B, T, 24] q) => (float[B, T, 8] y)"
    numbers = "int64 i0 = {0}, int64 i1 = {1}, int64 i2 = {2}, int64[5] hs = {0, 0, 3, 2, 4}, int64[3] ms = {0, 0, 8}"
    check(
        AbsorbHeads(),
        f"{head} <{numbers}> {{ {PACKED} oh = Attention(qh, kh, vh) {AFTER} }}",
        f"{head} <int64[3] n = {{8, 8, 8}}> {{ a, b, c = Split<axis=2>(q, n)"
        " y = Attention<q_num_heads=2, kv_num_heads=2, scale=0.5>(a, b, c) }",
        **OPTIONS,
    )


def test_a_scale_outside_becomes_that_of_the_operator(check) -> None:
    check(
        AbsorbHeads(),
        f"{HEAD.format(more='')} {SHAPES[:-1]}, float c = {{0.25}}> {{ qc = Mul(q, c) {BEFORE.replace('(q,', '(qc,')}"
        f" oh = Attention<scale=2.0>(qh, kh, vh) {AFTER} }}",
        f"{HEAD.format(more='')} {{ y = Attention<q_num_heads=2, kv_num_heads=2, scale=0.5>(q, k, v) }}",
        **OPTIONS,
    )


@pytest.mark.parametrize(
    "body",
    [
        f"{BEFORE} oh = Attention(qh, kh, vh) e = Exp(oh) o = Transpose<perm=[0, 2, 1, 3]>(e) y = Reshape(o, ms)",
        f"{BEFORE} ke = Exp(kh) oh = Attention(qh, ke, vh) {AFTER}",
    ],
    ids=["a function behind", "a function before"],
)
def test_stays(check, body: str) -> None:
    check(AbsorbHeads(), f"{HEAD.format(more='')} {SHAPES} {{ {body} }}", **OPTIONS)


def test_a_cache_is_said(check) -> None:
    more = ", float[B, 2, P, 4] pk, float[B, 2, P, 6] pv"
    text = f"{HEAD.format(more=more)} {SHAPES} {{ {BEFORE} oh, nk, nv = Attention(qh, kh, vh, , pk, pv) {AFTER} }}"
    assert check(AbsorbHeads(), text, **OPTIONS) == [
        "heads not left to Attention: it keeps a cache, or its scores are read"
    ]
