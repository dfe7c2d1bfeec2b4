"""Each operator that push-transposes writes in another order of the axes, as each opset spells it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from conftest import apply, canonical, parse
from onnxedge_passes.layout.push_transposes import PushTransposes

from onnxedge.api import Session

OPSETS = (7, 9, 10, 11, 13, 18, 21)
LAST, FIRST = "Transpose<perm=[0, 2, 3, 1]>", "Transpose<perm=[0, 3, 1, 2]>"
AXES = "int64[2] k = {1, 2}"
MIDDLE = "int64[1] s = {1}, int64[1] e = {-1}, int64[1] k = {2}"

#: (first opset, last opset, initializers, nodes from t to a, both in NHWC; t is [N, 4, 6, 3])
SAME_AXES = {
    "relu": (7, 21, "", "a = Relu(t)"),
    "clip, attributes": (7, 10, "", "a = Clip<min=-0.5, max=0.5>(t)"),
    "clip, inputs": (11, 21, "float l = {-0.5}, float h = {0.5}", "a = Clip(t, l, h)"),
    "dropout": (7, 21, "", "a, m = Dropout(t)"),
    "a bias for each channel": (7, 21, "float[3] b = {1, 2, 3}", "a = Add(b, t)"),
    "a slope for each channel": (7, 21, "float[3] b = {1, 2, 3}", "a = PRelu(t, b)"),
    "a choice": (9, 21, "bool[6, 1] c = {0, 1, 0, 1, 1, 0}, float n = {7}", "a = Where(c, t, n)"),
    "minimum": (8, 21, "float[3] b = {0, 1, 2}", "a = Min(t, b)"),
    "concat": (7, 21, "", "r = Relu(t) a = Concat<axis=3>(t, r)"),
    "concat, negative": (11, 21, "", "r = Relu(t) a = Concat<axis=-3>(t, r)"),
    "split, attribute": (7, 12, "", "b, c = Split<axis=3, split=[1, 2]>(t) a = Mul(b, c)"),
    "split, input": (13, 21, "int64[2] p = {1, 2}", "b, c = Split<axis=-1>(t, p) a = Mul(b, c)"),
    "pad, attribute": (7, 10, "", "a = Pad<pads=[0, 1, 2, 0, 0, 3, 0, 1], value=2.0>(t)"),
    "pad, input": (11, 21, "int64[8] p = {0, 1, 2, 0, 0, 3, 0, 1}", 'a = Pad<mode="reflect">(t, p)'),
    "pad, some axes": (18, 21, "int64[2] p = {1, 2}, float v = {3}, int64[1] k = {-2}", "a = Pad(t, p, v, k)"),
    "slice, attributes": (7, 9, "", "a = Slice<starts=[1, 0], ends=[3, -1], axes=[2, 3]>(t)"),
    "slice, attributes, first axes": (7, 9, "", "a = Slice<starts=[0, 1], ends=[9, 3]>(t)"),
    "slice, inputs": (10, 21, MIDDLE, "a = Slice(t, s, e, k)"),
    "slice, first axes": (10, 21, "int64[2] s = {0, 1}, int64[2] e = {9, 3}", "a = Slice(t, s, e)"),
    "upsample, attribute": (7, 8, "", "a = Upsample<scales=[1.0, 2.0, 3.0, 1.0]>(t)"),
    "upsample, input": (9, 9, "float[4] f = {1, 2, 3, 1}", "a = Upsample(t, f)"),
    "resize": (10, 10, "float[4] f = {1, 2, 3, 1}", 'a = Resize<mode="nearest">(t, f)'),
    "resize, roi": (11, 21, "float[0] n = {}, float[4] f = {1, 2, 3, 1}", 'a = Resize<mode="linear">(t, n, f)'),
    "softmax of all from an axis on": (7, 12, "", "a = Softmax(t)"),
    "softmax": (13, 21, "", "a = Softmax(t)"),
    "mean, attribute": (7, 17, "", "a = ReduceMean<axes=[1, 2]>(t)"),
    "mean, input": (18, 21, AXES, "a = ReduceMean(t, k)"),
    "sum, attribute": (7, 12, "", "a = ReduceSum<axes=[3]>(t)"),
    "sum, input": (13, 21, "int64[1] k = {-1}", "a = ReduceSum(t, k)"),
    "argmax": (7, 21, "", "a = ArgMax<axis=3>(t)"),
    "top": (10, 21, "int64[1] k = {2}", "a, i = TopK<axis=-1>(t, k)"),
    "gather": (7, 21, "int64[3] i = {2, 0, 1}", "a = Gather<axis=3>(t, i)"),
    "gather, elements": (11, 21, "", "i = ArgMax<axis=3>(t) a = GatherElements<axis=3>(t, i)"),
    "cumulative": (11, 21, "int64 k = {-2}", "a = CumSum(t, k)"),
    "tile": (7, 21, "int64[4] r = {1, 2, 1, 3}", "a = Tile(t, r)"),
    "expand": (8, 21, "int64[3] r = {1, 6, 1}", "a = Expand(t, r)"),
    "quantize": (
        *(10, 21, "float s = {0.1}, uint8 z = {128}"),
        "q = QuantizeLinear(t, s, z) a = DequantizeLinear(q, s, z)",
    ),
    "normalize": (7, 21, "", "a = LpNormalization<axis=3>(t)"),
    "squeeze and unsqueeze, attributes": (
        *(7, 12, ""),
        "m = ReduceMax<axes=[1]>(t) s = Squeeze<axes=[1]>(m) r = Relu(s) a = Unsqueeze<axes=[1]>(r)",
    ),
    "squeeze and unsqueeze, inputs": (
        *(13, 17, "int64[1] k = {1}"),
        "m = ReduceMax<axes=[1]>(t) s = Squeeze(m, k) r = Relu(s) a = Unsqueeze(r, k)",
    ),
    "a channel shuffle": (
        *(7, 21, "int64[5] s = {-1, 4, 6, 3, 1}, int64[4] b = {0, 0, 0, -1}, int64[5] d = {0, 0, 0, 3, 2}"),
        "c = Concat<axis=3>(t, t) v = Reshape(c, d) w = Transpose<perm=[0, 1, 2, 4, 3]>(v) a = Reshape(w, b)",
    ),
    "sizes": (
        *(7, 21, "int64[1] j = {2}, int64[4] s = {-1, 4, 6, 3}"),
        "r = Relu(t) z = Shape(r) h = Gather(z, j) f = Cast<to=1>(h) a = Mul(r, f)",
    ),
    "some sizes": (
        *(15, 21, ""),
        "r = Relu(t) z = Shape<start=-3, end=-1>(r) f = Cast<to=1>(z) m = ReduceProd<keepdims=0>(f) a = Mul(r, m)",
    ),
}  # fmt: skip


def applied_to(text: str, opset: int) -> tuple[ir.Model, ir.Model]:
    ir_version = 8 if opset < 21 else 10
    before, after = parse(text, opset, ir_version), parse(text, opset, ir_version)
    apply(PushTransposes(), after)
    assert apply(PushTransposes(), after)[0].rewrites == 0
    return before, after


def assert_equal(before: ir.Model, after: ir.Model, *shapes: tuple[int, ...]) -> None:
    first, second = Session(before, level="disable"), Session(after, level="disable")
    for shape in shapes:
        feed = {"x": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
        for mine, other in zip(first.run(feed).values(), second.run(feed).values(), strict=True):
            np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-5)
            assert mine.shape == other.shape


def transposes(model: ir.Model) -> list[str]:
    return [line for line in canonical(model) if ":Transpose" in line]


@pytest.mark.parametrize("name", SAME_AXES)
def test_every_opset(name: str) -> None:
    start, end, initializers, body = SAME_AXES[name]
    for opset in (version for version in OPSETS if start <= version <= end):
        text = f"g (float[N, 3, 4, 6] x) => (y) <{initializers}> {{ t = {LAST}(x) {body} y = {FIRST}(a) }}"
        before, after = applied_to(text, opset)
        assert len(transposes(after)) == body.count("Transpose"), (opset, canonical(after))
        assert_equal(before, after, (1, 3, 4, 6), (3, 3, 4, 6))


HEAD = "g (float[N, 3, 4, 6] x) => (y)"
REGROUPED = {
    "one channel is taken": f"{HEAD} <int64 i = {{1}}> {{ t = {LAST}(x) y = Gather<axis=3>(t, i) }}",
    "channels are split": f"{HEAD} <int64[5] s = {{0, 0, 0, 2, -1}}, int64[2] i = {{0, 2}}> {{ t = {LAST}(x)"
    " c = Concat<axis=3>(t, t) r = Reshape(c, s) g = Gather<axis=4>(r, i) y = Transpose<perm=[0, 3, 4, 1, 2]>(g) }",
    "space is merged": f"{HEAD} <int64[3] s = {{0, -1, 3}}>"
    f" {{ t = {LAST}(x) r = Reshape(t, s) a = Sigmoid(r) y = Transpose<perm=[0, 2, 1]>(a) }}",
    "an axis is new": f"{HEAD} <int64[5] s = {{0, 4, 1, 6, 3}}>"
    f" {{ t = {LAST}(x) a = Tanh(t) r = Reshape(a, s) y = Transpose<perm=[0, 4, 1, 2, 3]>(r) }}",
    "a product with the last axis": f"{HEAD} <float[6, 2] w = {{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 1, 2}}>"
    " { t = Transpose<perm=[0, 2, 1, 3]>(x) m = MatMul(t, w) y = Transpose<perm=[0, 2, 1, 3]>(m) }",
    "a normalization of the last axis": "g (float[N, 3, 4, 6] x) => (y) <float[6] s = {1, 2, 3, 4, 5, 6}>"
    " { t = Transpose<perm=[0, 2, 1, 3]>(x) m = LayerNormalization(t, s) y = Transpose<perm=[0, 2, 1, 3]>(m) }",
}  # fmt: skip

STAY = {
    "channels merge with space": (13, f"{HEAD} <int64[2] s = {{0, -1}}> {{ t = {LAST}(x) y = Reshape(t, s) }}"),
    "two sizes that are not known": (
        *(13,),
        f"{HEAD.replace('4, 6', 'H, W')} <int64[5] s = {{0, 0, 0, 3, 2}}> {{ t = {LAST}(x)"
        " c = Concat<axis=3>(t, t) r = Reshape(c, s) y = Transpose<perm=[0, 3, 4, 1, 2]>(r) }",
    ),
    "zeros that mean zero": (
        *(14,),
        f"{HEAD} <int64[3] s = {{-1, 24, 3}}>"
        f" {{ t = {LAST}(x) r = Reshape<allowzero=1>(t, s) y = Transpose<perm=[0, 2, 1]>(r) }}",
    ),
    "a softmax over the last axis of several": (
        *(11,),
        f"{HEAD} {{ t = {LAST}(x) a = Softmax<axis=3>(t) y = {FIRST}(a) }}",
    ),
    "a normalization whose axis moves": (
        *(17,),
        f"{HEAD} <float[3] s = {{1, 2, 3}}> {{ t = {LAST}(x) a = LayerNormalization(t, s) y = {FIRST}(a) }}",
    ),
    "a size computed at run time": (
        *(13,),
        f"{HEAD} {{ t = {LAST}(x) z = Shape(x) a = Expand(t, z) y = {FIRST}(a) }}".replace("Shape(x)", "Shape(t)"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("text", REGROUPED.values(), ids=REGROUPED)
@pytest.mark.parametrize("opset", [17, 21])
def test_axes_that_stay_together(text: str, opset: int) -> None:
    before, after = applied_to(text, opset)
    assert not transposes(after), canonical(after)
    assert_equal(before, after, (1, 3, 4, 6), (3, 3, 4, 6))


@pytest.mark.parametrize(("opset", "text"), STAY.values(), ids=STAY)
def test_stays(opset: int, text: str) -> None:
    before, after = applied_to(text, opset)
    assert canonical(after) == canonical(before)
    assert any("Transpose not moved past it" in reason for reason in apply(PushTransposes(), after)[1])


def test_a_bias_meets_its_convolution() -> None:
    text = (
        f"{HEAD} <float[2, 3, 1, 1] w = {{1, 2, 3, 4, 5, 6}}, float[2] b = {{1, 2}}>"
        f" {{ c = Conv(x, w) t = {LAST}(c) y = Add(t, b) }}"
    )
    before, after = applied_to(text, 13)
    assert [node.op_type for node in after.graph] == ["Conv", "Add", "Transpose"]
    assert_equal(before, after, (1, 3, 4, 6), (2, 3, 4, 6))


def test_an_activation_of_a_runtime_is_no_wall() -> None:
    head = HEAD.replace("(y)", "(float[A, B, C, D] y)")
    text = f"{head} {{ t = {LAST}(x) a = com.microsoft.QuickGelu<alpha=1.7>(t) y = {FIRST}(a) }}"
    before, after = applied_to(text, 13)
    assert not transposes(after)
    assert_equal(before, after, (2, 3, 4, 6))


def test_an_output_named_twice_stays() -> None:
    text = f"g (float[2, 3, 4, 6] x) => (y, y) {{ t = {LAST}(x) a = Relu(t) y = {FIRST}(a) }}"
    model = parse(text)
    assert apply(PushTransposes(), model)[0].rewrites in (0, 1)
    assert apply(PushTransposes(), model)[0].rewrites == 0
