"""The traps of rewriting that other optimizers fell into, each as the smallest graph that has it.

Each goes through ``fold,fuse`` for each target and is held to what ``tests/conformance.py`` holds the cases of ONNX to:
no crash, refusal or rollback, a valid model, the same interface, the same outputs on several inputs, idempotence.
"""

from __future__ import annotations

import conformance
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from traps import feeds_for, hold, operators, optimized, parse

VALUES = {
    "zeros of a second Reshape copy what the first one made": """g (float[N,4,6] x) => (float[A,B,C] y)
        <int64[3] s = {-1, 8, 3}, int64[3] t = {0, 0, -1}> { a = Reshape(x, s) y = Reshape(a, t) }""",
    "zeros of a Reshape behind a Transpose": """g (float[N,4,6] x) => (float[A,B] y) <int64[2] t = {0, -1}>
        { a = Transpose<perm=[1,0,2]>(x) y = Reshape(a, t) }""",
    "zeros of a Reshape behind Unsqueeze": """g (float[N,6] x) => (float[A,B,C] y) <int64[1] i = {0},
        int64[3] t = {0, 0, -1}> { a = Unsqueeze(x, i) y = Reshape(a, t) }""",
    "zeros that are sizes": """g (float[0,6] x) => (float[A,B] y) <int64[2] t = {6, 0}>
        { a = Relu(x) y = Reshape<allowzero=1>(a, t) }""",
    "two Flattens": "g (float[N,4,6] x) => (float[A,B] y) { a = Flatten<axis=2>(x) y = Flatten<axis=1>(a) }",
    "an empty optional input is a position": """g (float[N,4] x) => (float[N,4] y) <float c = {0.5}>
        { a = Clip(x, , c) b = Clip(x, c) y = Sub(a, b) }""",
    "outputs are positions": """g (float[N,4] x) => (float[A,B] y) <int64[1] k = {2}>
        { v, i = TopK(x, k) w, j = TopK<largest=0>(x, k) a = Cast<to=1>(i) b = Add(w, a) y = Sub(v, b) }""",
    "adding 0.0 is not nothing": """g (float[N,4] x) => (float[N,4] y) <float z = {0}> { a = Add(x, z) y =
        Reciprocal(a) }""",
    "a factor of 0 keeps NaN": "g (float[N,4] x) => (float[N,4] y) <float z = {0}> { a = Sqrt(x) y = Mul(a, z) }",
    "x - x of infinities": """g (float[N,4] x) => (float[N,4] y) { a = Exp(x) b = Reciprocal(x) c = Sub(b, b) y =
        Add(a, c) }""",
    "x / x": "g (float[N,4] x) => (float[N,4] y) { y = Div(x, x) }",
    "double negation of the smallest integer": """g (int8[N,4] x) => (int8[N,4] y) { a = Abs(x) b = Neg(a) y = Neg(b)
        }""",
    "Cast there and back loses": "g (float[N,4] x) => (float[N,4] y) { a = Cast<to=10>(x) y = Cast<to=1>(a) }",
    "Cast by way of bool": "g (float[N,4] x) => (int64[N,4] y) { a = Cast<to=9>(x) y = Cast<to=7>(a) }",
    "Cast by way of a narrow integer": "g (int64[N,4] x) => (int64[N,4] y) { a = Cast<to=3>(x) y = Cast<to=7>(a) }",
    "Cast wider and back": """g (float16[N,4] x) => (float16[N,4] y) { a = Cast<to=1>(x) b = Relu(a) y =
        Cast<to=10>(b) }""",
    "a scalar has no shape to lend": """g (float[N,4] x) => (float[A,B] y) <float[1,1,1] o = {1}> { a = Mul(x, o) y =
        Squeeze(a) }""",
    "an operand that makes the value larger": """g (float[4] x) => (float[A,B] y) <float[3,1] o = {1, 1, 1}> { y =
        Mul(x, o) }""",
    "Clip with min above max": """g (float[N,4] x) => (float[N,4] y) <float a = {2}, float b = {-1}, float c = {0}>
        { u = Clip(x, a, b) y = Clip(u, c) }""",
    "Clip with NaN": """g (float[N,4] x) => (float[N,4] y) <float a = {-1}, float b = {1}>
        { u = Sqrt(x) v = Clip(u, a, b) y = Relu(v) }""",
    "integers overflow": """g (int32[N] x) => (int32[N] y) <int32 a = {2147483647}, int32 b = {2}>
        { c = Mul(a, b) y = Add(x, c) }""",
    "division of integers by zero at run time": """g (int32[N] x) => (int32[N] y) <int32 a = {6}>
        { b = Mul(x, x) c = Add(b, a) y = Div(a, c) }""",
    "shape of a range of axes": """g (float[N,4,6] x) => (int64[A] y) { a = Shape<start=-2,end=-1>(x) b =
        Shape<start=1>(x)
        y = Concat<axis=0>(a, b) }""",
    "shape of an empty range": """g (float[N,4] x) => (int64[A] y) { a = Shape<start=2,end=1>(x) b = Shape(x) y =
        Concat<axis=0>(a, b) }""",
    "a slice of negative step": """g (float[N,6] x) => (float[A,B] y) <int64[1] s = {4}, int64[1] e = {0}, int64[1] a
        = {1},
        int64[1] p = {-2}, int64[1] z = {0}, int64[1] o = {1}> { u = Slice(x, s, e, a, p) y = Slice(u, z, o, a) }""",
    "a slice past the end": """g (float[N,6] x) => (float[A,B] y) <int64[1] s = {-100}, int64[1] e = {100}, int64[1]
        a = {1}>
        { y = Slice(x, s, e, a) }""",
    "slices of slices": """g (float[N,10] x) => (float[A,B] y) <int64[1] s = {2}, int64[1] e = {-2}, int64[1] f = {-9},
        int64[1] a = {1}> { u = Slice(x, s, e, a) y = Slice(u, s, f, a) }""",
    "concatenation of empty parts": """g (float[N,4] x) => (float[A,B] y) <int64[1] s = {2}, int64[1] a = {1}>
        { u = Slice(x, s, s, a) y = Concat<axis=1>(u, x, u) }""",
    "one value split and put together in another order": """g (float[N,6] x) => (float[A,B] y) <int64[2] s = {3, 3}>
        { a, b = Split<axis=1>(x, s) y = Concat<axis=1>(b, a) }""",
    "a slice across one value put together with itself": """g (float[3,4] x) => (float[A,B] y) <int64[1] s = {1},
        int64[1] e = {6}, int64[1] a = {0}> { u = Concat<axis=0>(x, x) y = Slice(u, s, e, a) }""",
    "views that change nothing between an input and outputs": """g (float[3,4] x) => (float[A,B] y, float[C,D] z)
        { s = Shape(x) a = Reshape(x, s) y = Identity(a) z = Reshape(a, s) }""",
    "Expand by a shape of ones of higher rank": """g (float[N,4] x) => (float[A,B,C] y) <int64[3] s = {1, 1, 1}> { y
        = Expand(x, s) }""",
    "Tile once of higher rank": "g (float[N,4] x) => (float[A,B] y) <int64[2] s = {1, 1}> { y = Tile(x, s) }",
    "a Transpose of equal sizes": "g (float[4,4] x) => (float[4,4] y) { a = Transpose(x) y = Sub(a, x) }",
    "Squeeze of what happens to be 1": """g (float[N,1,4] x) => (float[A,B] y) <int64[1] i = {1}> { a = Squeeze(x, i)
        y = Relu(a) }""",
    "a mean of nothing": """g (float[N,0] x) => (float[A,B] y) { a = ReduceSum(x) b = ReduceProd<axes=[1]>(x) y =
        Add(a, b) }""",
    "reduction of no axes": """g (float[N,4] x) => (float[A,B] y) <int64[0] i = {}>
        { y = ReduceSum<noop_with_empty_axes=1>(x, i) }""",
    "Where with a constant condition that broadcasts": """g (float[N,4] x, float[N,4] z) => (float[N,4] y) <bool[1,1]
        c = {1}>
        { a = Where(c, x, z) y = Relu(a) }""",
    "Pow of a negative base": "g (float[N,4] x) => (float[N,4] y) <float e = {2}> { a = Pow(x, e) y = Sqrt(a) }",
    "Sigmoid of large numbers": """g (float[N,4] x) => (float[N,4] y) <float k = {100}> { a = Mul(x, k) b =
        Sigmoid(a) y = Mul(a, b) }""",
    "softplus of large numbers": """g (float[N,4] x) => (float[N,4] y) <float k = {100}, float o = {1}> { a = Mul(x,
        k) b = Exp(a) c = Add(b, o) y = Log(c) }""",
    "Gemm with alpha, beta and a column": """g (float[N,3] x) => (float[N,4] y) <float[1,1] c = {2}>
        { a = Gemm<alpha=0.5,beta=2.0>(x, w, c) y = Mul(a, c) }""",
    "Gemm without a bias": """g (float[N,3] x) => (float[N,4] y) <float[4] c = {1, 2, 3, 4}> { a = Gemm(x, w) y =
        Add(a, c) }""",
    "a bias that differs from row to row": """g (float[3,3] x) => (float[3,4] y) <float[3,1] c = {1, 2, 3}> { a =
        MatMul(x, w) y = Add(a, c) }""",
    "a factor along rows": """g (float[3,3] x) => (float[3,4] y) <float[3,1] c = {1, 2, 3}> { a = MatMul(x, w) y =
        Mul(a, c) }""",
    "MatMul of a vector": """g (float[3] x) => (float[4] y) <float[4] c = {1, 2, 3, 4}> { a = MatMul(x, w) y = Add(a,
        c) }""",
    "the product read twice": """g (float[N,3] x) => (float[N,4] y) <float[4] c = {1, 2, 3, 4}>
        { a = MatMul(x, w) b = Add(a, c) d = Mul(a, c) y = Sub(b, d) }""",
    "a scalar as axes": """g (float[N,4] x) => (float[A,B,C] y) <int64 i = {1}> { a = Unsqueeze(x, i)
        b = Transpose<perm=[1,0,2]>(a) c = Relu(b) y = Transpose<perm=[1,0,2]>(c) }""",
}  # fmt: skip


@pytest.mark.parametrize("trap", VALUES)
def test_values(trap: str) -> None:
    """Values that a rewrite by the book changes."""
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((3, 4)).astype(np.float32)} if ", w" in VALUES[trap] else {}
    hold(parse(VALUES[trap], **weights))


PADS = ("[0,0,1,1,0,0,1,1]", "[0,0,3,3,0,0,3,3]", "[0,0,1,0,0,0,0,2]", "[0,0,-1,0,0,0,0,1]", "[0,1,0,0,0,1,0,0]")
POOLS = (
    "AveragePool<kernel_shape=[2,2]>",
    "AveragePool<kernel_shape=[3,3],pads=[1,1,1,1]>",
    "AveragePool<kernel_shape=[3,3],pads=[1,1,1,1],count_include_pad=1>",
    "AveragePool<kernel_shape=[2,2],strides=[2,2],ceil_mode=1>",
    'AveragePool<kernel_shape=[2,2],auto_pad="SAME_UPPER">',
    'AveragePool<kernel_shape=[2,2],auto_pad="VALID">',
    "MaxPool<kernel_shape=[2,2]>",
    "MaxPool<kernel_shape=[3,3],pads=[1,1,1,1]>",
    "MaxPool<kernel_shape=[2,2],dilations=[2,2]>",
    "MaxPool<kernel_shape=[2,2],strides=[2,2],ceil_mode=1>",
    "LpPool<kernel_shape=[2,2]>",
)


@pytest.mark.parametrize("pool", POOLS)
def test_pads_before_pooling(pool: str) -> None:
    """Zeros around an image are averaged or not, beat negative maxima, and may fill a whole window."""
    for pads in PADS:
        for value, before in (("0", "Neg"), ("0", "Relu"), ("-1e38", "Neg"), ("1", "Relu")):
            text = f"""g (float[N,2,5,5] x) => (float[A,B,C,D] y) <int64[8] p = {{{pads[1:-1]}}}, float v = {{{value}}}>
                {{ a = {before}(x) b = Pad(a, p, v) y = {pool}(b) }}"""
            hold(parse(text, opset=18))


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
@pytest.mark.parametrize("attributes", ["", ',auto_pad="NOTSET"', ",pads=[1,0,0,1]", ",strides=[2,2],group=2"])
def test_pads_before_convolution(mode: str, attributes: str) -> None:
    rng = np.random.default_rng(0)
    group = 2 if "group" in attributes else 1
    weight = rng.standard_normal((4, 2 // group, 3, 3)).astype(np.float32)
    text = f"""g (float[N,2,5,5] x) => (float[A,B,C,D] y) <int64[8] p = {{0,0,1,1,0,0,1,1}}>
        {{ b = Pad<mode="{mode}">(x, p) y = Conv<kernel_shape=[3,3]{attributes}>(b, w) }}"""
    hold(parse(text, opset=19, ir_version=9, w=weight))


def test_auto_pad_that_is_empty() -> None:
    """An empty text is no padding, not SAME."""
    weight = np.ones((1, 1, 3, 3), np.float32)
    model = parse("g (float[N,1,5,5] x) => (float[A,B,C,D] y) { y = Conv<kernel_shape=[3,3]>(x, w) }", w=weight)
    model.graph.node[0].attribute.append(helper.make_attribute("auto_pad", ""))
    case = conformance.Case("auto_pad", model, feeds_for(model), [], 0.0, 0.0)
    assert not conformance.conform(case).faults


def test_a_cast_like_that_does_not_saturate() -> None:
    """The Cast it becomes must keep ``saturate=0``: 1000 is NaN in float8, not 448."""
    text = """g (float[N] x, float8e4m3fn[1] l) => (float[N] y) <float[3] k = {1000, 1, -1000}>
        { a = CastLike<saturate=0>(k, l) b = Cast<to=1>(a) c = CastLike<saturate=0>(x, l) d = Cast<to=1>(c)
          y = Add(b, d) }"""
    model = parse(text, opset=19, ir_version=9)
    like = numpy_helper.to_array(helper.make_tensor("l", TensorProto.FLOAT8E4M3FN, [1], [1.0]))
    hold(model, [{"x": np.array([1000.0, 2.0, 0.3], np.float32), "l": like}])


TRAINING = {
    "Dropout": """g (float[64] x) => (float[64] y, bool[64] m) <float r = {0.5}, bool t = {1}>
        { y, m = Dropout<seed=3>(x, r, t) }""",
    "Dropout twice": """g (float[64] x) => (float[64] y) <float r = {0.5}, bool t = {1}>
        { a = Dropout<seed=3>(x, r, t) b = Dropout<seed=4>(x, r, t) y = Sub(a, b) }""",
    "mask of Dropout at inference": """g (float[N,4] x) => (float[N,4] y, bool[N,4] m) { a, m = Dropout(x) y =
        Relu(a) }""",
    "Dropout that is told at run time": """g (float[N,4] x, bool t) => (float[N,4] y) <float r = {0}> { y =
        Dropout(x, r, t) }""",
    "BatchNormalization": """g (float[4,2,3] x) => (float[4,2,3] y, float[2] n, float[2] v)
        <float[2] s = {1, 2}, float[2] b = {0, 1}, float[2] m = {0, 1}, float[2] u = {1, 1}>
        { y, n, v = BatchNormalization<training_mode=1>(x, s, b, m, u) }""",
    "BatchNormalization that updates one of two equal tensors": """g (float[4,2,3] x) => (float[4,2,3] y, float[2] n,
        float[2] v)
        <float[2] s = {1, 1}, float[2] b = {0, 0}, float[2] m = {0, 0}, float[2] u = {1, 1}>
        { a, n, v = BatchNormalization<training_mode=1>(x, s, b, m, u) y = BatchNormalization(a, s, b, m, u) }""",
    "Conv before BatchNormalization": """g (float[4,2,3,3] x) => (float[4,2,3,3] y)
        <float[2,2,1,1] w = {1, 2, 3, 4}, float[2] s = {1, 2}, float[2] b = {0, 1}, float[2] m = {0, 1}, float[2] u =
        {1, 1}>
        { a = Conv(x, w) y, n, v = BatchNormalization<training_mode=1>(a, s, b, m, u) }""",
}  # fmt: skip


@pytest.mark.parametrize("trap", TRAINING)
def test_training(trap: str) -> None:
    """What trains is not what infers."""
    model = parse(TRAINING[trap])
    before = operators(model)
    hold(model)
    if "inference" not in trap and "run time" not in trap:
        assert sorted(operators(optimized(model))) == sorted(before)


@pytest.mark.parametrize(
    "draw",
    ["RandomNormal<shape=[4]>()", "RandomUniform<shape=[4]>()", "RandomNormalLike(x)", "RandomUniformLike(x)"],
)
def test_two_random_draws_are_not_one(draw: str) -> None:
    model = parse(f"g (float[4] x) => (float[4] y) {{ a = {draw} b = {draw} c = Sub(a, b) y = Add(c, x) }}")
    assert operators(optimized(model)) == operators(model)


def test_bernoulli_and_multinomial_stay() -> None:
    text = """g (float[4] x) => (float[4] y) <float[1,4] p = {0.1, 0.2, 0.3, 0.4}, float[4] h = {0.5, 0.5, 0.5, 0.5}>
        { a = Bernoulli(h) b = Bernoulli(h) m = Multinomial<sample_size=4>(p) n = Multinomial<sample_size=4>(p)
          c = Sub(a, b) d = Sub(m, n) e = Cast<to=1>(d) f = Squeeze(e) g = Add(c, f) y = Add(g, x) }"""
    assert operators(optimized(parse(text))) == operators(parse(text))
