"""fuse-rms-norm: spellings of several exporters, the standard operator, and the spelling that the runtime fuses."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import parse
from onnxedge_passes.fuse.norm.fuse_rms_norm import FuseRmsNorm

from onnxedge.api import Session

HEAD = "g (float[N, 3, 4] x) => (float[N, 3, 4] y)"
SCALE = "float[4] g = {1, 2, -1, 0.5}"
CONSTANTS = (
    f"<{SCALE}, float e = {{0.001}}, float one = {{1}}, float two = {{2}}, float mh = {{-0.5}}, int64[1] ax = {{-1}}>"
)
VARIANCE = "v = ReduceMean(q, ax) w = Add(v, e)"
SPELLINGS = {
    "product, Reciprocal": f"q = Mul(x, x) {VARIANCE} s = Sqrt(w) r = Reciprocal(s) n = Mul(x, r) y = Mul(n, g)",
    "gamma first": f"q = Pow(x, two) {VARIANCE} s = Sqrt(w) r = Reciprocal(s) n = Mul(x, r) y = Mul(g, n)",
    "Pow": f"q = Pow(x, two) {VARIANCE} r = Pow(w, mh) n = Mul(r, x) y = Mul(g, n)",
    "gamma into the root": f"q = Mul(x, x) {VARIANCE} s = Sqrt(w) r = Div(g, s) y = Mul(x, r)",
    "ReduceSumSquare": "v = ReduceSumSquare(x, ax) h = Mul(v, quarter) w = Add(h, e) s = Sqrt(w) n = Div(x, s)"
    " y = Mul(n, g)",
}
BY_RUNTIME = {
    "Div": f"q = Pow(x, two) {VARIANCE} s = Sqrt(w) n = Div(x, s) y = Mul(n, g)",
    "Div of one": f"q = Pow(x, two) {VARIANCE} s = Sqrt(w) r = Div(one, s) n = Mul(x, r) y = Mul(g, n)",
}
OTHERS = {
    "layer normalization": "m = ReduceMean(x, ax) d = Sub(x, m) q = Mul(d, d) v = ReduceMean(q, ax) w = Add(v, e)"
    " s = Sqrt(w) n = Div(d, s) y = Mul(n, g)",
    "no root": f"q = Mul(x, x) {VARIANCE} n = Div(x, w) y = Mul(n, g)",
    "sum for mean": "q = Mul(x, x) v = ReduceSum(q, ax) w = Add(v, e) s = Sqrt(w) n = Div(x, s) y = Mul(n, g)",
    "another axis": "q = Mul(x, x) v = ReduceMean(q, middle) w = Add(v, e) s = Sqrt(w) n = Div(x, s) y = Mul(n, g)",
}


def with_constants(body: str) -> str:
    constants = CONSTANTS.replace(">", ", float quarter = {0.25}, int64[1] middle = {1}>")
    return f"{HEAD} {constants} {{ {body} }}"


@pytest.mark.parametrize("body", [*SPELLINGS.values(), *BY_RUNTIME.values()], ids=[*SPELLINGS, *BY_RUNTIME])
def test_the_standard_operator_at_opset_23(check, body: str) -> None:
    check(
        FuseRmsNorm(),
        with_constants(body),
        f"{HEAD} <{SCALE}> {{ y = RMSNormalization<axis=-1, epsilon=0.001>(x, g) }}",
        opset=23,
        ir_version=11,
        target="generic",
    )


@pytest.mark.parametrize("body", SPELLINGS.values(), ids=SPELLINGS)
def test_the_runtimes_spelling_before(check, body: str) -> None:
    check(FuseRmsNorm(), with_constants(body), with_constants(BY_RUNTIME["Div"]), opset=18)


@pytest.mark.parametrize("body", BY_RUNTIME.values(), ids=BY_RUNTIME)
def test_what_the_runtime_fuses_stays(check, body: str) -> None:
    reasons = check(FuseRmsNorm(), with_constants(body), opset=18)
    assert reasons == ["RMS normalization left as it is: the runtime fuses this spelling itself"]


@pytest.mark.parametrize("body", OTHERS.values(), ids=OTHERS)
def test_stays(check, body: str) -> None:
    assert check(FuseRmsNorm(), with_constants(body), opset=23, ir_version=11) == []


def test_old_opset_on_other_targets_is_said(check) -> None:
    reasons = check(FuseRmsNorm(), with_constants(BY_RUNTIME["Div"]), opset=18, target="generic")
    assert reasons == ["RMS normalization not fused: the operator comes with opset 23"]


def test_another_reader_is_said(check) -> None:
    text = with_constants(BY_RUNTIME["Div"] + " z = Relu(w)").replace("=> (", "=> (float[N, 3, 1] z, ")
    reasons = check(FuseRmsNorm(), text, opset=23, ir_version=11)
    assert reasons == ["RMS normalization not fused: a value inside it has other readers"]


def test_without_a_scale_before_opset_23_is_said(check) -> None:
    text = with_constants(f"q = Mul(x, x) {VARIANCE} s = Sqrt(w) y = Div(x, s)")
    reasons = check(FuseRmsNorm(), text, opset=18)
    assert reasons == ["RMS normalization not fused: before opset 23 the runtime knows only one with a scale"]


def test_float16_with_casts_inside(rewritten) -> None:
    body = (
        f"f = Cast<to=1>(x) q = Pow(f, two) {VARIANCE} s = Sqrt(w) r = Reciprocal(s) n = Mul(f, r)"
        " h = Cast<to=10>(n) gh = Cast<to=10>(g) y = Mul(gh, h)"
    )
    text = with_constants(body).replace("float[N", "float16[N")
    model, _ = rewritten(FuseRmsNorm(), text, opset=23, ir_version=11)
    assert [node.op_type for node in model.graph].count("RMSNormalization") == 1


RESIDUAL = "g (float[N, T, 4] a, float[N, T, 4] k) => (float[N, T, 4] y)"
SKIP = "com.microsoft.SkipSimplifiedLayerNormalization<epsilon=0.001>(a, k, g)"


@pytest.mark.parametrize("body", [*SPELLINGS.values(), *BY_RUNTIME.values()], ids=[*SPELLINGS, *BY_RUNTIME])
def test_behind_a_residual_addition_where_the_target_has_a_kernel(check, body: str) -> None:
    text = with_constants(f"x = Add(a, k) {body}").replace(HEAD, RESIDUAL)
    check(FuseRmsNorm(), text, f"{RESIDUAL} <{SCALE}> {{ y = {SKIP} }}", opset=18, target="ort-cuda")


@pytest.mark.parametrize("exported", [False, True])
def test_a_residual_sum_that_others_read(check, exported: bool) -> None:
    head = RESIDUAL.replace("y)", f"y, float[N, T, 4] {'x' if exported else 'z'})")
    rest = "" if exported else "z = Neg(x)"
    text = with_constants(f"x = Add(a, k) {BY_RUNTIME['Div']} {rest}").replace(HEAD, head)
    check(FuseRmsNorm(), text, f"{head} <{SCALE}> {{ y, , , x = {SKIP} {rest} }}", opset=18, target="ort-cuda")


def test_a_residual_sum_of_float16_with_casts_inside(check) -> None:
    head = RESIDUAL.replace("float[", "float16[")
    body = f"s = Add(a, k) x = Cast<to=1>(s) q = Mul(x, x) {VARIANCE} d = Sqrt(w) n = Div(x, d) o = Mul(n, g)"
    check(
        FuseRmsNorm(),
        with_constants(f"{body} y = Cast<to=10>(o)").replace(HEAD, head),
        f"{head} <float16[4] g = {{15360, 16384, 48128, 14336}}> {{ y = {SKIP} }}",  # the bits of 1, 2, -1 and 0.5
        opset=18,
        target="ort-cuda",
    )


def test_a_residual_of_another_shape_stays_outside(check) -> None:
    head = RESIDUAL.replace("N, T, 4] k", "1, T, 4] k")
    check(
        FuseRmsNorm(),
        with_constants(f"x = Add(a, k) {BY_RUNTIME['Div']}").replace(HEAD, head),
        f"{head} <{SCALE}> {{ x = Add(a, k) y = {TWICE} }}",
        opset=18,
        target="ort-cuda",
    )


TWICE = "com.microsoft.SkipSimplifiedLayerNormalization<epsilon=0.004>(x, x, g)"


@pytest.mark.parametrize("body", [*SPELLINGS.values(), *BY_RUNTIME.values()], ids=[*SPELLINGS, *BY_RUNTIME])
def test_of_a_value_twice_where_nothing_is_added(check, body: str) -> None:
    check(FuseRmsNorm(), with_constants(body), f"{HEAD} <{SCALE}> {{ y = {TWICE} }}", opset=18, target="ort-cuda")


def test_of_a_value_twice_without_a_scale(check) -> None:
    text = with_constants(f"q = Mul(x, x) {VARIANCE} s = Sqrt(w) y = Div(x, s)")
    after = f"{HEAD} <float[4] g = {{1, 1, 1, 1}}> {{ y = {TWICE} }}"
    check(FuseRmsNorm(), text, after, opset=18, target="ort-cuda")


def test_doubling_rounds_nothing() -> None:
    head = "g (float[N, T, 768] x, float[N, T, 768] z, float[768] g) => (float[N, T, 768] y)"
    twice, once = (
        Session(parse(f"{head} {{ y = com.microsoft.SkipSimplifiedLayerNormalization<epsilon={epsilon}>(x, {k}, g) }}"))
        for k, epsilon in (("x", 4e-5), ("z", 1e-5))
    )
    rng = np.random.default_rng(0)
    for shape in ((1, 1, 768), (2, 7, 768), (0, 3, 768)):
        for scale in (0.0, 1e-30, 1e-3, 1.0, 1e3, 1e15):
            x, g = (rng.standard_normal(size).astype(np.float32) for size in (shape, 768))
            feed = {"x": x * np.float32(scale), "z": np.zeros_like(x), "g": g}
            np.testing.assert_array_equal(twice.run(feed)["y"], once.run(feed)["y"])


@pytest.mark.parametrize("rank", [2, 4])
def test_another_rank_is_said(check, rank: int) -> None:
    text = with_constants(BY_RUNTIME["Div"]).replace("[N, 3, 4]", f"[{'N, 3, 3, 4' if rank == 4 else 'N, 4'}]")
    reasons = check(FuseRmsNorm(), text, opset=18, target="ort-cuda")
    assert reasons == ["SkipSimplifiedLayerNormalization not fused: it takes values of rank 3"]


def test_float16_that_may_overflow_is_said(check) -> None:
    body = f"x = Cast<to=1>(h) q = Mul(x, x) {VARIANCE} d = Sqrt(w) n = Div(x, d) o = Mul(n, g) y = Cast<to=10>(o)"
    text = with_constants(body).replace(HEAD, HEAD.replace("float", "float16").replace("x)", "h)"))
    reasons = check(FuseRmsNorm(), text, opset=18, target="ort-cuda")
    assert reasons == ["SkipSimplifiedLayerNormalization not fused: without a sum before it it takes float32"]


def test_nothing_is_taken_twice_from_opset_23_on(check) -> None:
    after = f"{HEAD} <{SCALE}> {{ y = RMSNormalization<axis=-1, epsilon=0.001>(x, g) }}"
    text = with_constants(BY_RUNTIME["Div"])
    check(FuseRmsNorm(), text, after, opset=23, ir_version=11, target="ort-cuda")
