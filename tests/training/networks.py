"""Small networks that go through prepare-training, the composer and the worker."""

from __future__ import annotations

UNET = """g (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y)
    <float[4, 3, 3, 3] first, float[4, 4, 3, 3] second, float[4, 4, 4, 4] up, float[4, 4, 3, 3] skip,
     float[4, 12, 1, 1] last, float[4] bias, float[4] s = {1, 2}, float[4] twice = {1, 1, 2, 2}> {
        a = Conv<auto_pad="SAME_UPPER">(x, first)
        b = Softplus(a)
        c = AveragePool<kernel_shape=[3, 3],strides=[2, 2],pads=[1, 1, 1, 1]>(b)
        d = Conv<auto_pad="SAME_LOWER">(c, second)
        e = Elu(d)
        f = ConvTranspose<strides=[2, 2],pads=[1, 1, 1, 1]>(e, up)
        h = Resize<mode="linear">(e, , twice)
        i = Conv<pads=[1, 1, 1, 1]>(b, skip)
        j = Concat<axis=1>(f, h, i)
        y = Conv(j, last, bias)
    }"""
MOBILE = """g (float[N, 4, 8, 8] x) => (float[N, 5] y)
    <float[8, 4, 1, 1] wide, float[8, 1, 3, 3] deep, float[8, 8, 1, 1] gate, float[8, 8] head, float[8, 5] last,
     float[8, 1, 1] slope = {0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8}> {
        a = Conv(x, wide)
        b = HardSwish(a)
        c = Conv<group=8,auto_pad="SAME_UPPER",strides=[2, 2]>(b, deep)
        d = PRelu(c, slope)
        e = GlobalMaxPool(d)
        f = Conv(e, gate)
        h = HardSigmoid(f)
        i = Mul(d, h)
        j = GlobalAveragePool(i)
        k = Flatten(j)
        l = MatMul(k, head)
        m = Mish(l)
        y = MatMul(m, last)
    }"""
NORMS = """g (float[N, 4, 4, 4] x) => (float[N, 6] y)
    <float[8, 4, 3, 3] conv, float[8] scale, float[8] shift, float[8, 8, 1, 1] next, float[8] scale2, float[8] shift2,
     float[32, 6] head, int64[1] last = {-1}> {
        a = Conv<pads=[1, 1, 1, 1]>(x, conv)
        b = GroupNormalization<num_groups=2>(a, scale, shift)
        c = Selu(b)
        d = Conv(c, next)
        e = InstanceNormalization(d, scale2, shift2)
        f = SpaceToDepth<blocksize=2>(e)
        h = ReduceMax<keepdims=0>(f, last)
        i = ReduceMean<keepdims=0>(h, last)
        y = MatMul(i, head)
    }"""
TOKENS = """g (float[N, 6, 8] x) => (float[N, 3] y)
    <float[8, 8] q, float[8, 8] k, float[8, 8] v, float[8] gain, float[8] bias, float[6, 8] place, float[8, 3] head,
     int64[1] tokens = {1}> {
        a = MatMul(x, q)
        placed = Add(a, place)
        b = MatMul(placed, k)
        turned = Transpose<perm=[0, 2, 1]>(b)
        c = MatMul(placed, turned)
        d = Softmax(c)
        e = MatMul(placed, v)
        f = MatMul(d, e)
        h = Sum(f, placed, e)
        i = LayerNormalization(h, gain, bias)
        j = Gelu(i)
        l = ReduceSum<keepdims=0>(j, tokens)
        y = MatMul(l, head)
    }"""
#: name -> opset, shape of a sample, text
NETWORKS = {
    "a U-Net": (17, (3, 8, 8), UNET.replace(", float[4] s = {1, 2}", "")),
    "depthwise, squeeze and excite": (18, (4, 8, 8), MOBILE),
    "norms of groups": (21, (4, 4, 4), NORMS),
    "tokens": (20, (6, 8), TOKENS),
}
