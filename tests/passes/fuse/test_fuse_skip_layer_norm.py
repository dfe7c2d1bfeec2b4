"""fuse-skip-layer-norm: the sum alone, read by others, with a bias, and sums that the kernel cannot take."""

from __future__ import annotations

import pytest
from conftest import assert_same_outputs, parse
from onnxedge_passes.cleanup.constants.fold_constants import FoldConstants
from onnxedge_passes.fuse.norm.fuse_skip_layer_norm import FuseSkipLayerNorm

HEAD = "g (float[B, T, 4] x, float[B, T, 4] r) => (float[B, T, 4] y)"
SCALE = "float[4] g = {1, 2, -1, 0.5}, float[4] b = {0, 1, 2, 3}"
NORM = "y = LayerNormalization<axis=-1, epsilon=0.001>(s, g, b)"
CUDA = {"target": "ort-cuda"}


def test_fuses(check) -> None:
    check(
        FuseSkipLayerNorm(),
        f"{HEAD} <{SCALE}> {{ s = Add(x, r) {NORM} }}",
        f"{HEAD} <{SCALE}> {{ y = com.microsoft.SkipLayerNormalization<epsilon=0.001>(x, r, g, b) }}",
        **CUDA,
    )


def test_a_sum_that_others_read(check) -> None:
    head = HEAD.replace("=> (", "=> (float[B, T, 4] z, ")
    check(
        FuseSkipLayerNorm(),
        f"{head} <{SCALE}> {{ s = Add(x, r) {NORM} z = Relu(s) }}",
        f"{head} <{SCALE}> {{ y, , , s = com.microsoft.SkipLayerNormalization<epsilon=0.001>(x, r, g, b)"
        " z = Relu(s) }",
        **CUDA,
    )


def test_an_exported_sum(check) -> None:
    head = HEAD.replace("=> (", "=> (float[B, T, 4] s, ")
    check(
        FuseSkipLayerNorm(),
        f"{head} <{SCALE}> {{ s = Add(x, r) {NORM} }}",
        f"{head} <{SCALE}> {{ y, , , s = com.microsoft.SkipLayerNormalization<epsilon=0.001>(x, r, g, b) }}",
        **CUDA,
    )


def test_a_bias(check) -> None:
    bias = "float[4] a = {1, 2, 3, 4}"
    check(
        FuseSkipLayerNorm(),
        f"{HEAD} <{SCALE}, {bias}> {{ h = Add(a, x) s = Add(r, h) {NORM} }}",
        f"{HEAD} <{SCALE}, {bias}> {{ y = com.microsoft.SkipLayerNormalization<epsilon=0.001>(x, r, g, b, a) }}",
        **CUDA,
    )


def test_root_mean_square(check) -> None:
    check(
        FuseSkipLayerNorm(),
        f"{HEAD} <{SCALE}> {{ s = Add(x, r) y = RMSNormalization<axis=-1, epsilon=0.001>(s, g) }}",
        f"{HEAD} <{SCALE}> {{ y = com.microsoft.SkipSimplifiedLayerNormalization<epsilon=0.001>(x, r, g) }}",
        opset=23,
        ir_version=11,
        **CUDA,
    )


@pytest.mark.parametrize(
    ("head", "norm", "reason"),
    [
        (HEAD.replace("[B, T, 4] r", "[1, T, 4] r"), NORM, "the shapes of what is added are not known to be equal"),
        (HEAD.replace("B, T", "T"), NORM, "it takes values of rank 3"),
        (HEAD.replace("T,", "4,"), NORM.replace("-1", "1").replace("g, b", "G"), "the normalization is over more than"),
        (HEAD, f"o = Exp(b) {NORM.replace('g, b', 'g, o')}", "gamma or beta is computed at run time"),
        (HEAD.replace("4]", "1]"), NORM, "gamma or beta is no vector as long as the last axis"),
    ],
)
def test_stays_with_a_reason(check, head: str, norm: str, reason: str) -> None:
    text = f"{head} <{SCALE}, float[4, 4] G> {{ s = Add(x, r) {norm} }}".replace(", float[4, 4] G>", ">")
    if "G)" in norm:
        values = ", ".join(["1"] * 16)
        text = text.replace(SCALE, f"{SCALE}, float[4, 4] G = {{{values}}}")
    reasons = check(FuseSkipLayerNorm(), text, runs="1]" not in head, **CUDA)
    assert len(reasons) == 1
    assert reasons[0].startswith(f"SkipLayerNormalization not fused: {reason}")


@pytest.mark.parametrize("target", ["ort-cpu", "generic"])
def test_other_targets(check, target: str) -> None:
    reasons = check(FuseSkipLayerNorm(), f"{HEAD} <{SCALE}> {{ s = Add(x, r) {NORM} }}", target=target)
    assert reasons == [f"SkipLayerNormalization not fused: target {target} lists no kernel for it"]
    assert check(FuseSkipLayerNorm(), f"{HEAD} <{SCALE}> {{ s = Add(x, b) {NORM} }}", target=target) == []


@pytest.mark.parametrize(
    ("shape", "inputs", "reasons"),
    [
        ("1, T, 4", "s, s", ["sum not taken into SkipLayerNormalization: {}"]),
        ("1, T, 4", "x, s", []),
        ("B, T, 4", "s, s", []),  # by the rules that fuse raw operators, before
    ],
)
def test_a_sum_that_is_normalized_alone_is_said(check, shape: str, inputs: str, reasons: list[str]) -> None:
    head = HEAD.replace("B, T, 4] r", f"{shape}] r")
    text = (
        f"{head} <{SCALE}> {{ s = Add(x, r) y = com.microsoft.SkipLayerNormalization<epsilon=0.004>({inputs}, g, b) }}"
    )
    said = [reason.format("the shapes of what is added are not known to be equal") for reason in reasons]
    assert check(FuseSkipLayerNorm(), text, **CUDA) == said


def test_sizes_that_are_computed_from_another_input(applied) -> None:
    """Two inputs declare the same names; the shape of ``r`` is computed from one of them, in another order."""
    head = "g (float[B, T, 4] x, float[T, B, 4] h, float[B, T] m) => (float[B, T, 4] y, float[B, T] n)"
    axes = "int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}, int64[1] four = {4}"
    text = (
        f"{head} <{SCALE}, {axes}> {{ k = Shape(x) p = Slice(k, zero, one) q = Slice(k, one, two)"
        f" t = Concat<axis=0>(p, q, four) e = Exp(h) r = Reshape(e, t) s = Add(x, r) {NORM} n = Neg(m) }}"
    )
    original, model = parse(text), parse(text)
    applied(FoldConstants(), model, "ort-cuda", infer=False)
    applied(FuseSkipLayerNorm(), model, "ort-cuda", infer=False)
    assert [node.op_type for node in model.graph].count("SkipLayerNormalization") == 1
    assert_same_outputs(original, model, exact=False)
