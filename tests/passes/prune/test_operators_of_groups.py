"""Operators one by one: those that channels pass through, and those that hold them, with the reason."""

from __future__ import annotations

import pytest
from onnxedge_passes.prune.groups import Groups
from test_groups import analysed, assert_cut_equals_masked, some_units
from topologies import Shapes, build, images

from onnxedge.api import Array

#: what stands between a = Conv(x, w0) and y = Conv(b, w1), both of eight channels
PASSES = {
    "GridSample": "p = Constant<value=float[1,2,1,2] {0.1, 0.2, -0.3, 0.4}>() s = Shape<start=0, end=1>(x) "
    "t = Constant<value_ints=[1,1,1]>() u = Concat<axis=0>(s, t) g1 = Expand(p, u) b = GridSample(a, g1)",
    "RoiAlign": "r = Constant<value=float[3,4] {0, 0, 4, 4, 1, 1, 6, 6, 2, 2, 5, 7}>() i = "
    "Constant<value_ints=[0,0,0]>() "
    "b = RoiAlign<output_height=2, output_width=2>(a, r, i)",
    "MaxRoiPool": "r = Constant<value=float[2,5] {0, 0, 0, 4, 4, 0, 1, 1, 6, 6}>() "
    "b = MaxRoiPool<pooled_shape=[2,2]>(a, r)",
    "CumSum over space": "i = Constant<value_int=2>() b = CumSum(a, i)",
    "TopK over space": "c = ReduceMax<axes=[2,3]>(a) b = Mul(c, a)",
    "GlobalLpPool": "b = GlobalLpPool(a)",
    "LpNormalization over space": "b = LpNormalization<axis=3>(a)",
    "MeanVarianceNormalization": "b = MeanVarianceNormalization<axes=[2,3]>(a)",
    "Tile over space": "r = Constant<value_ints=[1,1,2,1]>() b = Tile(a, r)",
    "Trilu": "b = Trilu(a)",
    "Tile over the channels": "r = Constant<value_ints=[1,2,1,1]>() c = Tile(a, r) d, b = Split<axis=1>(c, uneven)",
    "Mean": "c = Neg(a) d = Abs(a) b = Mean(a, c, d)",
    "Where": "z = Constant<value_float=0.0>() c = Greater(a, z) d = Exp(a) b = Where(c, a, d)",
    "a comparison with the batch": "s = Shape(a) i = Constant<value_int=0>() n = Gather(s, i) "
    "m = Constant<value_int=100000>() c = Less(n, m) f = Cast<to=1>(c) b = Mul(a, f)",
    "Pad over space": 'c = Pad<mode="reflect">(a, border) b = Relu(c)',
    "Softmax over space": "b = Softmax<axis=3>(a)",
    "ReduceLogSumExp over space": "b = ReduceLogSumExp<axes=[2]>(a)",
    "Gather over space": "i = Constant<value_ints=[3,1]>() b = Gather<axis=2>(a, i)",
    "SpaceToDepth and back": "c = SpaceToDepth<blocksize=2>(a) b = DepthToSpace<blocksize=2>(c)",
    "CastLike": "d = Cast<to=11>(a) b = CastLike(d, a)",
    "PRelu with one slope": "z = Constant<value=float[1] {0}>() b = PRelu(a, z)",
}

#: the same; the reason that is told
HOLDS = {
    "TopK": "k = Constant<value_ints=[8]>() b, i = TopK<axis=1>(a, k)",
    "CumSum over the channels": "i = Constant<value_int=1>() b = CumSum(a, i)",
    "ArgMax over the channels": "c = ArgMax<axis=1>(a) d = Cast<to=1>(c) b = Mul(a, d)",
    "GatherElements depends on data": "c = ReduceMean<axes=[1]>(x) d = Cast<to=7>(c) e = Expand(d, full) m = "
    "Constant<value_int=8>() "
    "i = Mod(e, m) b = GatherElements<axis=1>(a, i)",
    "GatherND depends on data": "c = ReduceMin(x) d = Abs(c) e = Cast<to=7>(d) m = Constant<value_int=1>() "
    "i = Mod(e, m) j = Reshape(i, ones) t = Transpose<perm=[1,0,2,3]>(a) h = GatherND(t, j) "
    "k = Transpose<perm=[1,0,2,3]>(h) b = Add(a, k)",
    "ScatterElements has no rule": "i = Constant<value=int64[1,1,1,1] {2}>() u = Constant<value=float[1,1,1,1] {1}>() "
    "b = ScatterElements<axis=1>(a, i, u)",
    "ScatterND has no rule": "i = Constant<value=int64[1,4] {0,1,0,0}>() u = Constant<value_floats=[5.0]>() "
    "b = ScatterND(a, i, u)",
    "OneHot has no rule": "c = Cast<to=7>(a) d = Constant<value_ints=[8]>() v = Constant<value_floats=[0.0,1.0]>() "
    "e = OneHot<axis=1>(c, d, v) b = ReduceMax<axes=[2], keepdims=0>(e)",
    "NonZero has no rule": "c = NonZero(a) d = Cast<to=1>(c) e = ReduceMean(d) b = Mul(a, e)",
    "Compress has no rule": "f = Constant<value=bool[8] {1,1,1,1,1,1,1,1}>() b = Compress<axis=1>(a, f)",
    "Unique has no rule": "c = Round(a) d = Unique(c) e = ReduceMax(d) b = Mul(a, e)",
    "Hardmax over the channels": "b = Hardmax<axis=1>(a)",
    "LpNormalization over the channels": "b = LpNormalization<axis=1>(a)",
    "MeanVarianceNormalization over the channels": "b = MeanVarianceNormalization<axes=[1,2,3]>(a)",
    "ReduceL2 over the channels": "c = ReduceL2<axes=[1]>(a) b = Div(a, c)",
    "RandomNormalLike has no rule": "c = RandomNormalLike<seed=1.0>(a) z = Constant<value_float=0.0>() d = Mul(c, z) "
    "b = Add(a, d)",
    "Bernoulli has no rule": "p = Sigmoid(a) c = Bernoulli<seed=1.0>(p) z = Constant<value_float=0.0>() d = Mul(c, z) "
    "e = ReduceSum(d) b = Add(a, e)",
    "MaxPool has another output that is read": "c, i = MaxPool<kernel_shape=[2,2], strides=[2,2]>(a) "
    "b = MaxUnpool<kernel_shape=[2,2], strides=[2,2]>(c, i)",
    "DynamicQuantizeLinear": "q, s, z = DynamicQuantizeLinear(a) b = DequantizeLinear(q, s, z)",
    "Gather depends on data": "i = Cast<to=7>(a) m = Constant<value_int=3>() j = Mod(i, m) "
    "t = Constant<value_floats=[0.5,1.5,2.5]>() k = Gather(t, j) b = Add(a, k)",
    "Pad depends on data": "m = ReduceMax<axes=[0,2,3], keepdims=0>(a) n = Mul(m, m) o = Sign(n) p = Sub(o, o) "
    "q = Cast<to=7>(p) b = Pad(a, q)",
    "InstanceNormalization depends on data": "s = ReduceMax<axes=[0,2,3], keepdims=0>(a) x9 = Tile(x, three) h "
    "= Constant<value_floats=[1.0]>() "
    "t = Concat<axis=0>(s, h) c = InstanceNormalization(x9, t, t) d = Slice(c, zero, eight, first) b = Add(a, d)",
    "Slice cannot follow the cut": "c = Slice(a, first, eight, first, two) b = Concat<axis=1>(c, c)",
    "Pad cannot follow the cut": 'c = Pad<mode="reflect">(a, mirror) b = Slice(c, zero, eight, first)',
    "computes with the number of channels": "n = Size(a) m = Constant<value_int=100000>() c = Less(n, m) "
    "f = Cast<to=1>(c) b = Mul(a, f)",
    "GridSample depends on data": "r = Reshape(a, grid) b = GridSample(a, r)",
    "ReverseSequence has no rule": "l = Constant<value_ints=[4]>() c = ReduceMean<axes=[2,3], keepdims=0>(a) "
    "s = Shape<start=0, end=1>(x) l1 = Expand(l, s) d = ReverseSequence<batch_axis=0, time_axis=1>(c, l1) "
    "e = Unsqueeze(d, last) b = Add(e, a)",
}


def graph(middle: str) -> Groups:
    text = f"g (float[N,3,8,8] x) => (float y) {{ a = Conv(x, w0, b0) {middle} "
    text += "end = Conv(b, w1) y = ReduceSum<keepdims=0>(end) }"
    weights: Shapes = {"w0": (8, 3, 1, 1), "b0": (8,), "w1": (4, 8, 1, 1)}
    constants: dict[str, list[int] | Array] = {
        "zero": [0], "eight": [8], "first": [1], "three": [1, 3, 1, 1], "last": [2, 3], "full": [1, 8, 8, 8],
        "two": [2], "mirror": [0, 1, 0, 0, 0, 1, 0, 0], "border": [0, 0, 1, 1, 0, 0, 1, 1],
        "ones": [1, 1], "uneven": [8, 8], "grid": [-1, 8, 32, 2],
    }  # fmt: skip
    return analysed(build(text, weights, constants), images((3, 8, 8), 8))


@pytest.mark.parametrize("name", PASSES)
def test_channels_pass(name: str) -> None:
    groups = graph(PASSES[name])
    assert {(len(group.units), group.channels) for group in groups.free} == {(8, 1)}
    assert_cut_equals_masked(groups, some_units(groups, 1), [{"x": images((3, 8, 8), 2, 1)}])


@pytest.mark.parametrize("reason", HOLDS)
def test_channels_are_held(reason: str) -> None:
    groups = graph(HOLDS[reason])
    assert groups.free == []
    told = [group.reason for group in groups.locked if group.begins]
    assert any(reason in one for one in told), told
