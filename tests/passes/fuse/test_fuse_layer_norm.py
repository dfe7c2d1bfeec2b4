"""fuse-layer-norm: raw spellings from several exporters, and normalizations of another kind."""

from __future__ import annotations

import pytest
from conftest import assert_same_outputs, parse
from onnxedge_passes.fuse.norm.fuse_layer_norm import FuseLayerNorm
from onnxedge_passes.fuse.norm.keep_layer_norm import KeepLayerNorm

HEAD = "g (float[2, 3, 4] x) => (float[2, 3, 4] y)"
SCALE = "float[4] g = {1, 2, -1, 0.5}, float[4] b = {0, 1, 2, 3}"
CONSTANTS = f"<{SCALE}, float e = {{0.001}}, float two = {{2}}, float half = {{0.5}}, float mh = {{-0.5}}>"
MEAN, VARIANCE = "m = ReduceMean<axes=[-1]>(x) d = Sub(x, m)", "v = ReduceMean<axes=[-1]>(q) w = Add(v, e)"
NORMAL = f"{MEAN} q = Mul(d, d) {VARIANCE} s = Sqrt(w) n = Div(d, s)"
FUSED = f"{HEAD} <{SCALE}> {{ y = LayerNormalization<axis=-1, epsilon=0.001>(x, g, b) }}"

SPELLINGS = {
    "PyTorch": f"{MEAN} q = Pow(d, two) {VARIANCE} s = Sqrt(w) n = Div(d, s) o = Mul(n, g) y = Add(o, b)",
    "product, Pow": f"{MEAN} q = Mul(d, d) {VARIANCE} s = Pow(w, half) n = Div(d, s) o = Mul(g, n) y = Add(b, o)",
    "reciprocal root": f"{MEAN} q = Mul(d, d) {VARIANCE} s = Pow(w, mh) n = Mul(d, s) o = Mul(g, n) y = Add(b, o)",
    "TFLite": "m = GlobalAveragePool(x) d = Sub(x, m) q = Mul(d, d) v = GlobalAveragePool(q) w = Add(v, e) s = Sqrt(w)"
    " r = Reciprocal(s) k = Mul(r, g) mk = Mul(m, k) o = Sub(b, mk) xk = Mul(x, k) y = Add(xk, o)",
    "mean of squares": "m = ReduceMean<axes=[2]>(x) xx = Mul(x, x) p = ReduceMean<axes=[2]>(xx) mm = Mul(m, m)"
    " v = Sub(p, mm) w = Add(v, e) s = Sqrt(w) d = Sub(x, m) n = Div(d, s) o = Mul(n, g) y = Add(o, b)",
}

OTHERS = {
    "root mean square": "q = Mul(x, x) v = ReduceMean<axes=[-1]>(q) w = Add(v, e) s = Sqrt(w) n = Div(x, s)"
    " o = Mul(n, g) y = Add(o, b)",
    "no root": f"{MEAN} q = Mul(d, d) {VARIANCE} s = Pow(w, two) n = Div(d, s) o = Mul(n, g) y = Add(o, b)",
    "another value's mean": "z = Exp(x) m = ReduceMean<axes=[-1]>(z) d = Sub(x, m) q = Mul(d, d)"
    f" {VARIANCE} s = Sqrt(w) n = Div(d, s) o = Mul(n, g) y = Add(o, b)",
}


@pytest.mark.parametrize("body", SPELLINGS.values(), ids=SPELLINGS)
def test_fuses(check, body: str) -> None:
    check(FuseLayerNorm(), f"{HEAD} {CONSTANTS} {{ {body} }}", FUSED)


@pytest.mark.parametrize("body", OTHERS.values(), ids=OTHERS)
def test_stays(check, body: str) -> None:
    assert check(FuseLayerNorm(), f"{HEAD} {CONSTANTS} {{ {body} }}") == []


def test_dynamic_batch_and_time(check) -> None:
    check(
        FuseLayerNorm(),
        f"g (float[N, T, 4] x) => (float[N, T, 4] y) {CONSTANTS} {{ {SPELLINGS['PyTorch']} }}",
        FUSED.replace("[2, 3, 4]", "[N, T, 4]"),
    )


@pytest.mark.parametrize(
    ("end", "after"),
    [
        ("y = Mul(n, g)", "y = LayerNormalization<axis=-1, epsilon=0.001>(x, g)"),
        (
            "o = Mul(n, g) p = Add(o, b) y = Add(p, x)",
            "p = LayerNormalization<axis=-1, epsilon=0.001>(x, g, b) y = Add(p, x)",
        ),
    ],
    ids=["without beta", "a residual addition stays outside"],
)
def test_other_ends(check, end: str, after: str) -> None:
    check(FuseLayerNorm(), f"{HEAD} {CONSTANTS} {{ {NORMAL} {end} }}", f"{HEAD} <{SCALE}> {{ {after} }}")


def test_gamma_at_run_time_stays_behind_the_fused_part(check) -> None:
    head = "g (float[2, 3, 4] x, float[4] t) => (float[2, 3, 4] y)"
    check(
        FuseLayerNorm(),
        f"{head} {CONSTANTS} {{ {NORMAL} y = Mul(n, t) }}",
        f"{head} <float[4] g = {{1, 1, 1, 1}}>"
        " { n = LayerNormalization<axis=-1, epsilon=0.001>(x, g) y = Mul(n, t) }",
    )


def test_old_opsets_are_said(check) -> None:
    reasons = check(FuseLayerNorm(), f"{HEAD} {CONSTANTS} {{ {SPELLINGS['PyTorch']} }}", opset=13)
    assert reasons == ["layer normalization not fused: the operator comes with opset 17"]


@pytest.mark.parametrize("body", SPELLINGS.values(), ids=SPELLINGS)
def test_old_opsets_where_the_target_has_a_kernel(check, body: str) -> None:
    after = f"{HEAD} <{SCALE}> {{ y = com.microsoft.SkipLayerNormalization<epsilon=0.004>(x, x, g, b) }}"
    check(FuseLayerNorm(), f"{HEAD} {CONSTANTS} {{ {body} }}", after, opset=13, target="ort-cuda")


@pytest.mark.parametrize("beta", [True, False])
def test_old_opsets_behind_a_residual_addition(check, beta: bool) -> None:
    head = "g (float[N, T, 4] a, float[N, T, 4] k) => (float[N, T, 4] y, float[N, T, 4] z)"
    end = "o = Mul(n, g) y = Add(o, b)" if beta else "y = Mul(n, g)"
    body = f"x = Add(a, k) {NORMAL} {end} z = Exp(x)"
    kernel = f"com.microsoft.SkipLayerNormalization<epsilon=0.001>(a, k, g{', b' if beta else ''})"
    check(
        FuseLayerNorm(),
        f"{head} {CONSTANTS} {{ {body} }}",
        f"{head} <{SCALE}> {{ y, , , x = {kernel} z = Exp(x) }}",
        opset=13,
        target="ort-cuda",
    )


@pytest.mark.parametrize("shape", ["[6, 4]", "[2, 3, 4, 4]"])
def test_old_opsets_and_another_rank_are_said(check, shape: str) -> None:
    text = f"{HEAD} {CONSTANTS} {{ {SPELLINGS['PyTorch']} }}".replace("[2, 3, 4]", shape)
    assert check(FuseLayerNorm(), text, opset=13, target="ort-cuda") == [
        "layer normalization not fused: the operator comes with opset 17, and SkipLayerNormalization is not for it:"
        " it takes values of rank 3"
    ]


def test_other_readers_are_said(check) -> None:
    text = f"g (float[2, 3, 4] x) => (float[2, 3, 4] y, float[2, 3, 1] s) {CONSTANTS} {{ {SPELLINGS['PyTorch']} }}"
    assert check(FuseLayerNorm(), text) == ["layer normalization not fused: a value inside it has other readers"]


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        ("g (float[2, 3, 4] x) => (float[2, 3, 4] y)", "other axes than the last ones or the channels"),
        ("g (float[N, 3, 4] x) => (float[N, 3, 4] y)", "axes of unknown size"),
    ],
)
def test_other_axes_are_said(check, head: str, reason: str) -> None:
    body = SPELLINGS["PyTorch"].replace("axes=[-1]", "axes=[0]").replace("o = Mul(n, g) y = Add(o, b)", "y = Neg(n)")
    assert check(FuseLayerNorm(), f"{head} {CONSTANTS} {{ {body} }}") == [
        f"layer normalization not fused: it is over {reason}"
    ]


ADDED = "g (float[2, 3, 4] x, float[2, 3, 4] r) => (float[2, 3, 4] y)"


def test_keep_layer_norm_on_onnx_runtime(check) -> None:
    rows = SCALE.replace("float[4]", "float[1, 4]")
    body = "{ z = Add(x, r) y = LayerNormalization(z, g, b) }"
    check(KeepLayerNorm(), f"{ADDED} <{SCALE}> {body}", f"{ADDED} <{rows}> {body}")


@pytest.mark.parametrize(
    ("body", "target"),
    [
        ("{ z = Add(x, r) y = LayerNormalization(z, g, b) }", "generic"),
        ("{ z = Mul(x, r) y = LayerNormalization(z, g, b) }", "ort-cpu"),
    ],
    ids=["another runtime", "no addition"],
)
def test_keep_layer_norm_leaves_others(check, body: str, target: str) -> None:
    check(KeepLayerNorm(), f"{ADDED} <{SCALE}> {body}", target=target)


CHANNELS = (
    "m = ReduceMean<axes=[1]>(x) d = Sub(x, m) q = Pow(d, two) v = ReduceMean<axes=[1]>(q) w = Add(v, e) s = Sqrt(w)"
    " n = Div(d, s) o = Mul(n, g) y = Add(o, b)"
)
IMAGE = "g (float[N, 3, 4, 5] x) => (float[N, 3, 4, 5] y)"
IMAGE_CONSTANTS = "<float[3, 1, 1] g = {1, 2, -1}, float[3, 1, 1] b = {0, 1, 2}, float e = {0.001}, float two = {2}>"


def test_over_the_channels_between_transposes(check) -> None:
    check(
        FuseLayerNorm(),
        f"{IMAGE} {IMAGE_CONSTANTS} {{ {CHANNELS} }}",
        f"{IMAGE} <float[3] g = {{1, 2, -1}}, float[3] b = {{0, 1, 2}}> {{ t = Transpose<perm=[0, 2, 3, 1]>(x)"
        " u = LayerNormalization<axis=-1, epsilon=0.001>(t, g, b) y = Transpose<perm=[0, 3, 1, 2]>(u) }",
    )


def test_over_the_channels_elsewhere_is_said(check) -> None:
    reasons = check(FuseLayerNorm(), f"{IMAGE} {IMAGE_CONSTANTS} {{ {CHANNELS} }}", target="generic")
    assert reasons == ["layer normalization over the channels not fused: it would need two Transposes"]


def test_casts_inside_a_float16_model_are_dropped(rewritten) -> None:
    text = (
        "g (float16[2, 3, 4] x) => (float16[2, 3, 4] y)"
        f" {CONSTANTS} {{ f = Cast<to=1>(x) {MEAN.replace('(x', '(f')} q = Pow(d, two) {VARIANCE} s = Sqrt(w)"
        " n = Div(d, s) o = Mul(n, g) p = Add(o, b) y = Cast<to=10>(p) }"
    )
    model, _ = rewritten(FuseLayerNorm(), text)
    assert [node.op_type for node in model.graph] == ["LayerNormalization"]
    assert_same_outputs(parse(text), model, exact=False)


SHARED = "g (float[N, 3, 4] x) => (float[N, 3, 4] y, float[N, 3, 1] z)"
NORM = "LayerNormalization<axis=-1, epsilon=0.001>(x, g, b)"
SPELLED = SPELLINGS["PyTorch"]
INVERSE = SPELLED.replace("n = Div(d, s)", "r = Reciprocal(s) n = Mul(d, r)")
SQUARES = "d = Sub(x, m) q = Pow(d, two) v = ReduceMean<axes=[-1]>(q)"


@pytest.mark.parametrize(
    ("body", "after"),
    [
        (f"{SPELLED} z = Relu(m)", f"y, m = {NORM} z = Relu(m)"),
        (SPELLED.replace("d = Sub", "z = Relu(m) d = Sub"), f"y, m = {NORM} z = Relu(m)"),
        (f"{INVERSE} z = Relu(r)", f"y, , r = {NORM} z = Relu(r)"),
        (f"{INVERSE} u = Mul(m, r) z = Neg(u)", f"y, m, r = {NORM} u = Mul(m, r) z = Neg(u)"),
        (f"{SPELLED} z = Relu(v)", f"y = {NORM} m = ReduceMean<axes=[-1]>(x) {SQUARES} z = Relu(v)"),
        (f"{SPELLED} p = Mul(m, v) z = Exp(p)", f"y, m = {NORM} {SQUARES} p = Mul(m, v) z = Exp(p)"),
    ],
    ids=["mean", "mean, before the end", "inverse deviation", "both", "variance", "mean and variance"],
)
def test_statistics_that_others_read(check, body: str, after: str) -> None:
    check(FuseLayerNorm(), f"{SHARED} {CONSTANTS} {{ {body} }}", f"{SHARED} {CONSTANTS} {{ {after} }}")


def test_an_exported_mean(check) -> None:
    head = SHARED.replace(" z)", " m)")
    check(FuseLayerNorm(), f"{head} {CONSTANTS} {{ {SPELLED} }}", f"{head} {CONSTANTS} {{ y, m = {NORM} }}")


def test_a_normalized_value_that_others_read(check) -> None:
    head = SHARED.replace("1] z)", "4] z)")
    check(
        FuseLayerNorm(),
        f"{head} {CONSTANTS} {{ {SPELLED} z = Relu(n) }}",
        f"{head} <{SCALE}, float[4] one = {{1, 1, 1, 1}}> {{ n = {NORM.replace('g, b', 'one')}"
        " o = Mul(n, g) y = Add(o, b) z = Relu(n) }",
    )


def test_the_mean_stays_where_the_target_may_not_give_it(check) -> None:
    check(
        FuseLayerNorm(),
        f"{SHARED} {CONSTANTS} {{ {SPELLED} z = Relu(m) }}",
        f"{SHARED} {CONSTANTS} {{ y = {NORM} m = ReduceMean<axes=[-1]>(x) z = Relu(m) }}",
        target="generic",
    )


def test_a_mean_whose_axis_is_dropped(check) -> None:
    head = SHARED.replace("3, 1] z", "3] z")
    check(
        FuseLayerNorm(),
        f"{head} <{SCALE}, float e = {{0.001}}, float two = {{2}}, int64[1] last = {{-1}}>"
        f" {{ {SPELLED} u = Squeeze(m, last) z = Relu(u) }}",
        f"{head} <{SCALE}, int64[1] last = {{-1}}> {{ y, m = {NORM} u = Squeeze(m, last) z = Relu(u) }}",
    )


def test_an_output_exported_twice(applied) -> None:
    model = parse(f"{HEAD} {CONSTANTS} {{ {SPELLED} }}")
    model.graph.outputs.append(model.graph.outputs[0])
    applied(FuseLayerNorm(), model, "ort-cpu")
    assert [node.op_type for node in model.graph] == ["LayerNormalization", "Add"]  # without beta: the sum is exported
