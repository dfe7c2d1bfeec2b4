"""fuse-instance-norm: images, the inside of a group normalization, and what is a layer normalization."""

from __future__ import annotations

import pytest
from onnxedge_passes.fuse.norm.fuse_instance_norm import FuseInstanceNorm

HEAD = "g (float[N, 3, H, W] x) => (float[N, 3, H, W] y)"
CONSTANTS = "<float[3, 1, 1] g = {1, 2, -1}, float[3, 1, 1] b = {0, 1, 2}, float e = {0.001}, float two = {2}>"
BODY = (
    "m = ReduceMean<axes=[2, 3]>(x) d = Sub(x, m) q = Pow(d, two) v = ReduceMean<axes=[2, 3]>(q) w = Add(v, e)"
    " s = Sqrt(w) n = Div(d, s)"
)


def test_fuses_with_parameters(check) -> None:
    check(
        FuseInstanceNorm(),
        f"{HEAD} {CONSTANTS} {{ {BODY} o = Mul(n, g) y = Add(o, b) }}",
        f"{HEAD} <float[3] g = {{1, 2, -1}}, float[3] b = {{0, 1, 2}}>"
        " { y = InstanceNormalization<epsilon=0.001>(x, g, b) }",
    )


def test_global_average_pool_and_negative_axes(check) -> None:
    body = BODY.replace("ReduceMean<axes=[2, 3]>(x)", "GlobalAveragePool(x)").replace("[2, 3]", "[-1, -2]")
    check(
        FuseInstanceNorm(),
        f"{HEAD} {CONSTANTS} {{ {body} y = Relu(n) }}",
        f"{HEAD} <float[3] g = {{1, 1, 1}}, float[3] b = {{0, 0, 0}}>"
        " { n = InstanceNormalization<epsilon=0.001>(x, g, b) y = Relu(n) }",
    )


def test_groups_behind_a_reshape(check) -> None:
    head = "g (float[2, 4, 3, 3] x) => (float[2, 2, 18] y)"
    body = BODY.replace("[2, 3]", "[2]").replace("(x", "(r").replace("(d, s)", "(d, s) y = Relu(n)")
    check(
        FuseInstanceNorm(),
        f"{head} <float e = {{0.001}}, float two = {{2}}, int64[3] k = {{0, 2, -1}}> {{ r = Reshape(x, k) {body} }}",
        f"{head} <float[2] g = {{1, 1}}, float[2] b = {{0, 0}}, int64[3] k = {{0, 2, -1}}>"
        " { r = Reshape(x, k) n = InstanceNormalization<epsilon=0.001>(r, g, b) y = Relu(n) }",
    )


@pytest.mark.parametrize(
    "text",
    [
        f"g (float[N, 3, 4] x) => (float[N, 3, 4] y) {CONSTANTS} {{ {BODY.replace('[2, 3]', '[2]')} y = Relu(n) }}",
        f"g (float[N, C, H, W] x) => (float[N, C, H, W] y) {CONSTANTS} {{ {BODY} y = Relu(n) }}",
        f"{HEAD} {CONSTANTS} {{ {BODY.replace('[2, 3]', '[1, 2, 3]')} y = Relu(n) }}",
    ],
    ids=["tokens of a transformer", "unknown channels", "over the channels too"],
)
def test_stays(check, text: str) -> None:
    assert check(FuseInstanceNorm(), text) == []


def test_another_reader_is_said(check) -> None:
    text = f"{HEAD} {CONSTANTS} {{ {BODY} y = Mul(n, g) z = Relu(v) }}".replace("=> (", "=> (float[N, 3, 1, 1] z, ")
    reasons = check(FuseInstanceNorm(), text)
    assert reasons == ["instance normalization not fused: a value inside it has other readers"]
