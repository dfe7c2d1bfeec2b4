"""Constant arithmetic that kernels crash on, or answer in ways of their own."""

from __future__ import annotations

from hostile.maker import Maker, from_text, reduced, texts

SMALLEST = "-9223372036854775808"
ROW = "float[3] w = {1, 2, 3}"
MATRIX = "float[2, 3] w = {1, 2, 3, 4, 5, 6}"
CONV = "g (float[N, 1, 4, 4] x) => (float[N, 1, 4, 4] y)"
IMAGE = "float[1, 1, 2, 2] w = {1, 2, 3, 4}"


def _int(nodes: str, weights: str) -> str:
    return reduced(nodes, weights, "int")


CASES = {
    "smallest int64 / -1": _int("big = Div(a, b)", f"int64[1] a = {{{SMALLEST}}}, int64[1] b = {{-1}}"),
    "smallest int32 / -1": _int("big = Div(a, b)", "int32[1] a = {-2147483648}, int32[1] b = {-1}"),
    "smallest int64 mod -1": _int("big = Mod(a, b)", f"int64[1] a = {{{SMALLEST}}}, int64[1] b = {{-1}}"),
    "int64 / 0": _int("big = Div(a, b)", "int64[1] a = {1}, int64[1] b = {0}"),
    "int64 mod 0": _int("big = Mod(a, b)", "int64[1] a = {1}, int64[1] b = {0}"),
    "int64 / computed 0": _int("c = Sub(a, a) big = Div(a, c)", "int64[1] a = {1}"),
    "shape mod 0": "g (float[N] x) => (float[1] y) <int64[1] z = {0}> { s = Shape(x) m = Mod(s, z) y = Cast<to=1>(m) }",
    "shape / 0": "g (float[N] x) => (float[1] y) <int64[1] z = {0}> { s = Shape(x) m = Div(s, z) y = Cast<to=1>(m) }",
    "-smallest": _int("a = Neg(n) big = Abs(a)", f"int64[1] n = {{{SMALLEST}}}"),
    "integer overflow": _int("a = Mul(n, n) big = Add(a, n)", "int64[1] n = {9223372036854775807}"),
    "int32 Pow": _int("big = Pow(a, b)", "int32[1] a = {0}, int32[1] b = {-1}"),
    "shift by 99": _int(
        'a = BitShift<direction="LEFT">(n, k) big = Cast<to=7>(a)', "uint64[1] n = {1}, uint64[1] k = {99}"
    ),
    "float mod 0": reduced("big = Mod<fmod=1>(a, b)", "float[1] a = {1}, float[1] b = {0}"),
    "0 / 0": reduced("a = Sub(w, w) big = Div(a, a)", ROW),
    "Log of negative": reduced("a = Neg(w) big = Log(a)", ROW),
    "NaN to int64": _int("a = Sub(w, w) b = Div(a, a) big = Cast<to=7>(b)", ROW),
    "infinity to int8": _int("a = Sub(w, w) b = Div(w, a) big = Cast<to=3>(b)", ROW),
    "1e30 to int32": _int("big = Cast<to=6>(w)", "float[2] w = {1e30, -1e30}"),
    "text to float": reduced("big = Cast<to=1>(t)", 'string[2] t = {"1.5", "not a number"}'),
    "text to int": _int("big = Cast<to=7>(t)", 'string[1] t = {"99999999999999999999999"}'),
    "Gather out of range": reduced("big = Gather(w, k)", f"{ROW}, int64[1] k = {{99}}"),
    "Gather far out of range": reduced("big = Gather(w, k)", f"{ROW}, int64[1] k = {{{SMALLEST}}}"),
    "Gather from nothing": reduced("a = Slice(w, z, z) big = Gather(a, z)", f"{ROW}, int64[1] z = {{0}}"),
    "Gather of a shape": "g (float[N] x) => (float[1] y) <int64[1] k = {5}> { s = Shape(x) m = Gather(s, k)"
    " y = Cast<to=1>(m) }",
    "GatherElements out of range": reduced("big = GatherElements(w, k)", f"{ROW}, int64[1] k = {{-99}}"),
    "GatherND out of range": reduced("big = GatherND(w, k)", f"{ROW}, int64[1, 1] k = {{99}}"),
    "GatherND too deep": reduced("big = GatherND(w, k)", f"{ROW}, int64[1, 3] k = {{0, 0, 0}}"),
    "ScatterND out of range": reduced(
        "big = ScatterND(w, k, u)", f"{ROW}, int64[1, 1] k = {{1000000}}, float[1] u = {{9}}"
    ),
    "ScatterElements out of range": reduced(
        "big = ScatterElements(w, k, u)", f"{ROW}, int64[1] k = {{1000000}}, float[1] u = {{9}}"
    ),
    "Slice by 0": reduced("big = Slice(w, z, e, z, z)", f"{ROW}, int64[1] z = {{0}}, int64[1] e = {{3}}"),
    "Slice by the smallest": reduced(
        "big = Slice(w, e, z, z, s)",
        f"{ROW}, int64[1] z = {{0}}, int64[1] e = {{3}}, int64[1] s = {{{SMALLEST}}}",
    ),
    "Slice backwards over the end": reduced(
        "big = Slice(w, b, e, z, s)",
        f"{ROW}, int64[1] z = {{0}}, int64[1] b = {{9223372036854775807}}, int64[1] e = {{{SMALLEST}}},"
        " int64[1] s = {-1}",
    ),
    "Slice of an axis twice": reduced(
        "big = Slice(w, s, e, a)", f"{MATRIX}, int64[2] s = {{0, 1}}, int64[2] e = {{1, 2}}, int64[2] a = {{1, 1}}"
    ),
    "Slice of other counts": reduced("big = Slice(w, s, e)", f"{MATRIX}, int64[2] s = {{0, 0}}, int64[1] e = {{1}}"),
    "Reshape of two unknowns": reduced("big = Reshape(w, s)", f"{MATRIX}, int64[2] s = {{-1, -1}}"),
    "Reshape to another size": reduced("big = Reshape(w, s)", f"{MATRIX}, int64[1] s = {{7}}"),
    "Reshape to -2": reduced("big = Reshape(w, s)", f"{MATRIX}, int64[2] s = {{-2, -3}}"),
    "Reshape to 0 beyond the rank": reduced("big = Reshape(w, s)", f"{MATRIX}, int64[3] s = {{2, 3, 0}}"),
    "Reshape that overflows": reduced("big = Reshape(w, s)", f"{MATRIX}, int64[3] s = {{4294967296, 4294967296, 6}}"),
    "Reshape of nothing": reduced(
        "a = Slice(w, z, z) big = Reshape(a, s)", f"{MATRIX}, int64[1] z = {{0}}, int64[2] s = {{0, -1}}"
    ),
    "Reshape the input to nothing": "g (float[N] x) => (float[M] y) <int64[2] s = {-1, -1}> { y = Reshape(x, s) }",
    "Range by 0": _int("big = Range(a, b, c)", "int64 a = {0}, int64 b = {9}, int64 c = {0}"),
    "Range backwards": _int("big = Range(a, b, c)", "int64 a = {9}, int64 b = {0}, int64 c = {1}"),
    "Range by NaN": reduced("n = Div(z, z) big = Range(z, z, n)", "float z = {0}"),
    "Pad more than there is": reduced("big = Pad(w, p)", f"{ROW}, int64[2] p = {{-2, -2}}"),
    "Pad by reflection beyond": reduced('big = Pad<mode="reflect">(w, p)', f"{ROW}, int64[2] p = {{9, 9}}"),
    "Tile by -1": reduced("big = Tile(w, n)", f"{ROW}, int64[1] n = {{-1}}"),
    "Tile by 0": reduced("big = Tile(w, n)", f"{ROW}, int64[1] n = {{0}}"),
    "Expand to -1": reduced("big = Expand(w, n)", f"{ROW}, int64[2] n = {{-1, 3}}"),
    "Expand that does not fit": reduced("big = Expand(w, n)", f"{ROW}, int64[1] n = {{5}}"),
    "ConstantOfShape of -1": reduced("big = ConstantOfShape(n)", "int64[1] n = {-1}"),
    "Split to other sizes": reduced("big, r = Split(w, n)", f"{ROW}, int64[2] n = {{2, 2}}"),
    "Split to -1": reduced("big, r = Split(w, n)", f"{ROW}, int64[2] n = {{4, -1}}"),
    "TopK of more than there is": reduced("big, i = TopK(w, n)", f"{ROW}, int64[1] n = {{9}}"),
    "TopK of -1": reduced("big, i = TopK(w, n)", f"{ROW}, int64[1] n = {{-1}}"),
    "OneHot of -1": reduced("big = OneHot(k, d, v)", "int64[1] k = {0}, int64 d = {-1}, float[2] v = {0, 1}"),
    "Unsqueeze an axis twice": reduced("big = Unsqueeze(w, k)", f"{ROW}, int64[2] k = {{0, 0}}"),
    "Unsqueeze axis 99": reduced("big = Unsqueeze(w, k)", f"{ROW}, int64[1] k = {{99}}"),
    "Squeeze what is not 1": reduced("big = Squeeze(w, k)", f"{ROW}, int64[1] k = {{0}}"),
    "ReduceSum of axis 99": reduced("big = ReduceSum(w, k)", f"{ROW}, int64[1] k = {{99}}"),
    "ReduceMax of nothing": reduced("a = Slice(w, z, z) big = ReduceMax<keepdims=1>(a)", f"{ROW}, int64[1] z = {{0}}"),
    "ReduceMean of nothing": reduced("a = Slice(w, z, z) big = ReduceMean(a)", f"{ROW}, int64[1] z = {{0}}"),
    "ArgMax of nothing": _int("a = Slice(w, z, z) big = ArgMax(a)", f"{ROW}, int64[1] z = {{0}}"),
    "Softmax of nothing": reduced("a = Slice(w, z, z) big = Softmax(a)", f"{ROW}, int64[1] z = {{0}}"),
    "MatMul that does not fit": reduced("big = MatMul(w, w)", MATRIX),
    "MatMul over nothing": reduced(
        "a = Slice(w, z, z, o) b = Transpose(a) big = MatMul(a, b)", f"{MATRIX}, int64[1] z = {{0}}, int64[1] o = {{1}}"
    ),
    "Add that does not fit": reduced("big = Add(w, v)", f"{ROW}, float[2] v = {{1, 2}}"),
    "Add that fits only at run time": "g (float[N] x) => (float[3] y) <float[3] w = {1, 2, 3}> { y = Add(x, w) }",
    "Concat that does not fit": reduced("big = Concat<axis=0>(w, v)", f"{MATRIX}, float[1, 2] v = {{1, 2}}"),
    "Where that does not fit": reduced(
        "big = Where(k, w, v)", f"{ROW}, bool[2] k = {{1, 0}}, float[3] v = {{4, 5, 6}}"
    ),
    "Compress by too many": reduced(
        "big = Compress<axis=0>(w, k)", f"{ROW}, bool[9] k = {{1, 1, 1, 1, 1, 1, 1, 1, 1}}"
    ),
    "CumSum of axis 99": reduced("big = CumSum(w, k)", f"{ROW}, int64 k = {{99}}"),
    "Trilu by the largest": reduced("big = Trilu(w, k)", f"{MATRIX}, int64 k = {{9223372036854775807}}"),
    "Trilu by the smallest": reduced("big = Trilu(w, k)", f"{MATRIX}, int64 k = {{{SMALLEST}}}"),
    "Resize to 0": reduced("big = Resize(w, , , s)", f"{IMAGE}, int64[4] s = {{1, 1, 0, 0}}"),
    "Resize to -1": reduced("big = Resize(w, , , s)", f"{IMAGE}, int64[4] s = {{1, 1, -1, -1}}"),
    "Conv larger than the image": reduced(
        "big = Conv(w, v)", f"{IMAGE}, float[1, 1, 3, 3] v = {{1, 2, 3, 4, 5, 6, 7, 8, 9}}"
    ),
    "MaxPool larger than the image": reduced("big = MaxPool<kernel_shape=[3, 3]>(w)", IMAGE),
    "ReverseSequence too far": reduced("big = ReverseSequence(w, n)", f"{MATRIX}, int64[3] n = {{9, 9, 9}}"),
    "SequenceAt out of range": reduced("q = SequenceConstruct(w) big = SequenceAt(q, k)", f"{ROW}, int64 k = {{7}}"),
    "Clip to less than nothing": reduced("big = Clip(w, a, b)", f"{ROW}, float a = {{3}}, float b = {{1}}"),
    "Clip to NaN": reduced("z = Sub(a, a) n = Div(z, z) big = Clip(w, n, a)", f"{ROW}, float a = {{3}}"),
    "LayerNormalization of axis 99": reduced("big = LayerNormalization<axis=99>(w, w)", ROW),
    "BatchNormalization of negative variance": reduced(
        "big = BatchNormalization(w, a, a, a, v)", f"{IMAGE}, float[1] a = {{1}}, float[1] v = {{-5}}"
    ),
    "Conv and BatchNormalization of negative variance": f"{CONV} <float[1, 1, 1, 1] w = {{2}}, float[1] a = {{1}},"
    " float[1] v = {-5}> { c = Conv(x, w) y = BatchNormalization(c, a, a, a, v) }",
    "Conv and BatchNormalization of other sizes": f"{CONV} <float[1, 1, 1, 1] w = {{2}}, float[3] a = {{1, 1, 1}}>"
    " { c = Conv(x, w) y = BatchNormalization(c, a, a, a, a) }",
    "Conv with an infinite weight": f"{CONV} <float[1, 1, 1, 1] w = {{1e38}}, float[1] k = {{1e38}}>"
    " { c = Conv(x, w) y = Mul(c, k) }",
    "QuantizeLinear by 0": reduced("q = QuantizeLinear(w, s) big = DequantizeLinear(q, s)", f"{ROW}, float s = {{0}}"),
    "Einsum that does not fit": reduced(
        'big = Einsum<equation="ij,ij->i">(w, v)', f"{MATRIX}, float[3, 2] v = {{1, 2, 3, 4, 5, 6}}"
    ),
    "Size of 2^62": _int(
        "a = Expand(w, n) big = Size(a)", "float[1, 1] w = {1}, int64[2] n = {2147483648, 2147483648}"
    ),
    "Loop of -1 trips": "g (float[1] x) => (float[1] y) <int64 n = {-1}, bool t = {1}> { y = Loop(n, t, x) <body = b"
    " (int64 i, bool c, float[1] v) => (bool d, float[1] w) { d = Identity(c) w = Relu(v) }> }",
    "Scan over nothing": "g (float[1] x, float[0] z) => (float[1] y) { y, r = Scan<num_scan_inputs=1, body = b"
    " (float[1] v, float u) => (float[1] w, float o) { w = Relu(v) o = Relu(u) }>(x, z) }",
    "DepthToSpace that does not fit": reduced("big = DepthToSpace<blocksize=2>(w)", IMAGE),
    "Unique of NaN": reduced("z = Sub(w, w) n = Div(z, z) big = Unique(n)", ROW),
    "NonZero of a scalar": _int("big = NonZero(w)", "float w = {1}"),
    "HannWindow of -1": reduced("big = HannWindow(n)", "int64 n = {-1}"),
}

MODELS: dict[str, Maker] = {
    **texts(CASES),
    "RegexFullMatch that backtracks": from_text(
        'g (float[1] x) => (float[1] y) <string[1] t = {"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab"}>'
        ' { m = RegexFullMatch<pattern="(a+)+$">(t) f = Cast<to=1>(m) y = Add(f, x) }',
        20,
    ),
    "RegexFullMatch of nonsense": from_text(
        'g (float[1] x) => (float[1] y) <string[1] t = {"a"}>'
        ' { m = RegexFullMatch<pattern="((((">(t) f = Cast<to=1>(m) y = Add(f, x) }',
        20,
    ),
    "Attention of 0 heads": from_text(
        "g (float[1, 4, 8] x) => (float[1, 4, 8] y) { y = Attention<q_num_heads=0, kv_num_heads=0>(x, x, x) }", 23
    ),
}
