"""Graphs of a few nodes that make terabytes, or run for ever."""

from __future__ import annotations

from hostile.maker import Maker, changed, from_text, reduced, spliced, texts

CUBE = "int64[3] shape = {3000, 3000, 3000}"
DOUBLINGS = " ".join(f"c{i + 1} = Concat<axis=0>(c{i}, c{i})" for i in range(33))
ONE = "float[1] one = {1}"
ROW = "int64[1] n = {200000}"
TRUE = "bool t = {1}"
BODY = "<body = b (int64 i, bool c, float[1] v) => (bool d, float[1] w) { d = Identity(c) w = Relu(v) }>"
MANY = "int64 n = {1000000000000}"


def _nested_loops(depth: int, trips: int) -> str:
    body = f"w{depth} = Relu(v{depth})"
    for level in range(depth, 0, -1):
        loop = (
            f"Loop(n, t, v{level - 1}) <body = b{level} (int64 i{level}, bool c{level}, float[1] v{level}) =>"
            f" (bool d{level}, float[1] w{level}) {{ d{level} = Identity(c{level}) {body} }}>"
        )
        body = f"w{level - 1} = {loop}"
    graph = spliced(f"<int64 n = {{{trips}}}, {TRUE}>", body, "y = Relu(w0)")
    return graph.replace("float[1] x", "float[1] v0")


def _nested_ifs(depth: int) -> str:
    body = f"r{depth} = Relu(x)"
    for level in range(depth, 0, -1):
        body = (
            f"r{level - 1} = If(t) <then_branch = p{level} () => (float[1] r{level}) {{ {body} }},"
            f" else_branch = q{level} () => (float[1] e{level}) {{ e{level} = Neg(x) }}>"
        )
    return spliced(f"<{TRUE}>", body, "y = Relu(r0)")


def _functions(depth: int, calls: int) -> Maker:
    """Make functions that each call the next one some times: ``calls ** depth`` nodes when inlined."""
    imports = '<domain: "f", opset_import: ["": 17, "f": 1]>'
    parts = [f"{imports} h{depth} (v0) => (w) {{ w = Relu(v0) }}"]
    for level in range(depth):
        nodes = " ".join(f"v{i + 1} = f.h{level + 1}(v{i})" for i in range(calls))
        parts.append(f"{imports} h{level} (v0) => (v{calls}) {{ {nodes} }}")
    return from_text(spliced("y = f.h0(x)"), functions=" ".join(parts))


CONSTANT = {
    "ConstantOfShape": reduced("big = ConstantOfShape(shape)", CUBE),
    "Expand": reduced("big = Expand(one, shape)", f"{CUBE}, {ONE}"),
    "Tile": reduced("big = Tile(one, n)", f"int64[1] n = {{27000000000}}, {ONE}"),
    "Range": reduced("big = Range(a, e, s)", "int64 a = {0}, int64 e = {27000000000}, int64 s = {1}", "int"),
    "Range of a dimension": "g (float[27000000000] x) => (int64[N] y) <int64 a = {0}, int64 s = {1}>"
    " { n = Size(x) y = Range(a, n, s) }",
    "Range of tiny steps": reduced("big = Range(a, e, s)", "float a = {0}, float e = {1e30}, float s = {1e-30}"),
    "Concat doubling": reduced(f"{DOUBLINGS} big = Identity(c33)", "float[1] c0 = {1}"),
    "Concat doubling of integers": reduced(f"{DOUBLINGS} big = Identity(c33)", "int64[1] c0 = {1}", "int"),
    "Concat doubling of strings": spliced(
        '<string[1] c0 = {"aaaaaaaa"}>', DOUBLINGS, "s = Shape(c33) f = Cast<to=1>(s) y = Add(f, x)"
    ),
    "Concat doubling of the input": f"g (float[N] c0) => (float[M] y) {{ {DOUBLINGS} y = Relu(c33) }}",
    "Concat doubling of a shape": spliced(
        "s0 = Shape(x)",
        *(f"s{i + 1} = Concat<axis=0>(s{i}, s{i})" for i in range(33)),
        "k = Size(s33) f = Cast<to=1>(k) y = Add(f, x)",
    ),
    "Gather doubling": reduced(
        " ".join(f"c{i + 1} = Gather<axis=0>(c{i}, k)" for i in range(34)) + " big = Identity(c34)",
        "float[1] c0 = {1}, int64[2] k = {0, 0}",
    ),
    "Pad": reduced("big = Pad(one, p)", f"int64[2] p = {{0, 27000000000}}, {ONE}"),
    "Resize": reduced("big = Resize(w, , s)", "float[1, 1, 1, 1] w = {1}, float[4] s = {1, 1, 100000, 100000}"),
    "OneHot": reduced("big = OneHot(k, d, v)", "int64[1] k = {1}, int64 d = {27000000000}, float[2] v = {0, 1}"),
    "EyeLike": reduced("a = ConstantOfShape(shape) big = EyeLike<dtype=1>(a)", "int64[2] shape = {90000, 90000}"),
    "MatMul of constants": reduced("a = ConstantOfShape(shape) big = MatMul(a, a)", "int64[2] shape = {12000, 12000}"),
    "MatMul outer product": reduced(
        "a = Reshape(b, col) c = Reshape(b, row) big = MatMul(a, c)".replace("a =", "b = ConstantOfShape(n) a =", 1),
        f"{ROW}, int64[2] col = {{-1, 1}}, int64[2] row = {{1, -1}}",
    ),
    "Einsum outer product": reduced(
        'a = ConstantOfShape(n) big = Einsum<equation = "i,j,k,l->ijkl">(a, a, a, a)', "int64[1] n = {1000}"
    ),
    "Einsum that takes for ever": reduced(
        'a = ConstantOfShape(n) big = Einsum<equation = "ab,bc,cd,de,ef,fg->ag">(a, a, a, a, a, a)',
        "int64[2] n = {3000, 3000}",
    ),
    "Where broadcast": reduced(
        "b = ConstantOfShape(n) a = Reshape(b, col) k = Cast<to=9>(b) big = Where(k, a, b)",
        f"{ROW}, int64[2] col = {{-1, 1}}",
    ),
    "Add broadcast": reduced(
        "b = ConstantOfShape(n) a = Reshape(b, col) big = Add(a, b)", f"{ROW}, int64[2] col = {{-1, 1}}"
    ),
    "Mul of a diagonal product": reduced(
        "b = ConstantOfShape(n) a = Reshape(b, p) c = Reshape(b, q) d = Mul(a, b) big = Mul(d, c)",
        "int64[1] n = {3000}, int64[2] p = {-1, 1}, int64[3] q = {-1, 1, 1}",
    ),
    "NonZero": reduced(
        "a = ConstantOfShape<value=one>(shape) big = NonZero(a)".replace("<value=one>", ""), CUBE, "int"
    ),
    "Unique": reduced("a = ConstantOfShape(shape) big = Unique(a)", CUBE),
    "CumSum": reduced("a = ConstantOfShape(shape) big = CumSum(a, k)", f"{CUBE}, int64 k = {{0}}"),
    "RandomNormal": reduced("big = RandomNormal<shape=[3000, 3000, 3000]>()"),
    "Multinomial": reduced(
        "a = Reshape(x, k) big = Multinomial<sample_size=2000000000>(a)", "int64[2] k = {1, 1}", "int"
    ),
    "HannWindow": reduced("big = HannWindow(n)", "int64 n = {27000000000}"),
    "MelWeightMatrix": reduced(
        "big = MelWeightMatrix(m, d, r, a, b)",
        "int64 m = {1000000}, int64 d = {1000000}, int64 r = {16000}, float a = {0}, float b = {8000}",
    ),
    "DFT": reduced("big = DFT(w, n)", "float[1, 1, 1] w = {1}, int64 n = {27000000000}"),
    "ConvTranspose stride": reduced(
        "big = ConvTranspose<strides=[100000, 100000]>(w, v)",
        "float[1, 1, 2, 2] w = {1, 2, 3, 4}, float[1, 1, 1, 1] v = {1}",
    ),
    "Conv pads": reduced(
        "big = Conv<pads=[100000, 100000, 100000, 100000]>(w, v)",
        "float[1, 1, 1, 1] w = {1}, float[1, 1, 1, 1] v = {1}",
    ),
    "MaxUnpool": reduced(
        "big = MaxUnpool<kernel_shape=[1, 1]>(w, k, o)",
        "float[1, 1, 1, 1] w = {1}, int64[1, 1, 1, 1] k = {0}, int64[4] o = {1, 1, 100000, 100000}",
    ),
    "RoiAlign": reduced(
        "big = RoiAlign<output_height=100000, output_width=100000>(w, r, k)",
        "float[1, 1, 1, 1] w = {1}, float[1, 4] r = {0, 0, 1, 1}, int64[1] k = {0}",
    ),
    "SequenceConstruct doubling": spliced(
        f"<{ONE}>",
        "s0 = SequenceConstruct(one)",
        *(f"t{i} = ConcatFromSequence<axis=0>(s{i}) s{i + 1} = SequenceConstruct(t{i}, t{i})" for i in range(33)),
        "big = ConcatFromSequence<axis=0>(s33) s = ReduceSum<keepdims=0>(big) y = Add(s, x)",
    ),
    "SplitToSequence": spliced(
        "<int64[1] n = {100000000}>",
        "a = ConstantOfShape(n) q = SplitToSequence<keepdims=0>(a)",
        "k = SequenceLength(q) f = Cast<to=1>(k) y = Add(f, x)",
    ),
    "shape that overflows": reduced("big = ConstantOfShape(n)", "int64[2] n = {4294967296, 4294967296}"),
    "Tile that overflows": reduced("big = Tile(one, n)", f"int64[1] n = {{4611686018427387904}}, {ONE}"),
    "Expand that overflows": reduced("big = Expand(one, n)", f"int64[3] n = {{2147483648, 2147483648, 8}}, {ONE}"),
    "computed shape": reduced("a = Mul(n, n) b = Mul(a, n) big = Expand(one, b)", f"int64[1] n = {{10000}}, {ONE}"),
    "Expand by the input's shape": spliced(
        "<int64[1] n = {27000000000}>", "k = Shape(x) m = Mul(k, n) big = Expand(x, m) y = ReduceSum<keepdims=0>(big)"
    ),
    "a hundred 1 MB constants": spliced(
        "<int64[1] n = {262144}, float[1] z = {0}>",
        *(f"a{i} = ConstantOfShape<value = float[1] {{{i}}}>(n)" for i in range(100)),
        "b0 = Add(x, z)",
        *(f"b{i + 1} = Mul(b{i}, a{i})" for i in range(100)),
        "s = ReduceSum<keepdims=0>(b100) y = Add(s, x)",
    ),
}

ENDLESS = {
    "Loop of 10^12": spliced(f"<{MANY}, {TRUE}>", f"y = Loop {BODY} (n, t, x)"),
    "Loop without end": spliced(f"<{TRUE}>", f"y = Loop {BODY} (, t, x)"),
    "Loop of constants alone": spliced(f"<{MANY}, {TRUE}, {ONE}>", f"a = Loop {BODY} (n, t, one) y = Add(a, x)"),
    "Loop of 10^9 scan outputs": spliced(
        "<int64 n = {1000000000}, bool t = {1}>",
        "a = Loop(n, t) <body = b (int64 i, bool c) => (bool d, float[1] w) { d = Identity(c) w = Relu(x) }>",
        "s = ReduceSum<keepdims=0>(a) y = Add(s, x)",
    ),
    "Loop that doubles": spliced(
        "<int64 n = {40}, bool t = {1}>",
        "a = Loop(n, t, x) <body = b (int64 i, bool c, float[M] v) => (bool d, float[K] w)"
        " { d = Identity(c) w = Concat<axis=0>(v, v) }> s = ReduceSum<keepdims=0>(a) y = Add(s, x)",
    ),
    "Loop that lengthens a sequence": spliced(
        "<int64 n = {1000000000}, bool t = {1}>",
        "q = SequenceConstruct(x) r = Loop(n, t, q) <body = b (int64 i, bool c, seq(float[1]) v) =>"
        " (bool d, seq(float[1]) w) { d = Identity(c) w = SequenceInsert(v, x) }>",
        "k = SequenceLength(r) f = Cast<to=1>(k) y = Add(f, x)",
    ),
    "three nested Loops": _nested_loops(3, 100_000),
    "Scan over a constant": spliced(
        "<int64[1] n = {1000000000}>",
        "c = ConstantOfShape(n) a, r = Scan<num_scan_inputs=1, body = b (float[1] v, float u) => (float[1] w, float o)"
        " { w = Relu(v) o = Relu(u) }>(x, c) y = Relu(a)",
    ),
    "If nest of 30": _nested_ifs(30),
}


def _nest(depth: int) -> Maker:
    """Make nested graphs beyond what the parser takes: wrapped in bytes, innermost first."""

    def make(folder):  # type: ignore[no-untyped-def]
        import onnx

        from hostile.maker import parse, write

        model = parse(_nested_ifs(2))
        inner = onnx.GraphProto()
        inner.CopyFrom(model.graph.node[0].attribute[0].g)
        data = inner.SerializeToString()
        for _ in range(depth):
            attribute = _field(1, b"then_branch") + _field(6, data) + b"\xa0\x01\x05"
            node = _field(1, b"t") + _field(2, b"r") + _field(4, b"If") + _field(5, attribute)
            data = _field(1, node) + _field(2, b"p")
        model.graph.node[0].attribute[0].ClearField("g")
        attribute = model.graph.node[0].attribute[0].SerializeToString() + _field(6, data)
        node = onnx.NodeProto()
        node.CopyFrom(model.graph.node[0])
        del node.attribute[0]
        spoilt = node.SerializeToString() + _field(5, attribute)
        del model.graph.node[0]
        graph = _field(1, spoilt) + model.graph.SerializeToString()
        model.ClearField("graph")
        return write(model.SerializeToString() + _field(7, graph), folder)

    return make


def _field(number: int, data: bytes) -> bytes:
    length, head = len(data), bytearray([number << 3 | 2])
    while True:
        head.append(length & 127 | (128 if length > 127 else 0))
        length >>= 7
        if not length:
            return bytes(head) + data


MODELS: dict[str, Maker] = {
    **texts(CONSTANT),
    **texts(ENDLESS),
    "Upsample": from_text(
        reduced("big = Upsample(w, s)", "float[1, 1, 1, 1] w = {1}, float[4] s = {1, 1, 100000, 100000}").replace(
            "<keepdims=0>", "<keepdims=0, axes=[0, 1, 2, 3]>"
        ),
        9,
    ),
    "Col2Im": from_text(
        reduced("big = Col2Im(w, o, k)", "float[1, 1, 1] w = {1}, int64[2] o = {100000, 100000}, int64[2] k = {1, 1}"),
        18,
    ),
    "StringConcat doubling": from_text(
        spliced(
            '<string[1] c0 = {"aaaaaaaa"}, string[1] e = {"a"}>',
            *(f"c{i + 1} = StringConcat(c{i}, c{i})" for i in range(33)),
            "k = Equal(c33, e) f = Cast<to=1>(k) y = Add(f, x)",
        ),
        20,
    ),
    "CenterCropPad": from_text(
        reduced("big = CenterCropPad(w, o)", "float[1, 1] w = {1}, int64[2] o = {100000, 100000}"), 18
    ),
    "AffineGrid": from_text(
        reduced("big = AffineGrid(w, o)", "float[1, 2, 3] w = {1, 0, 0, 0, 1, 0}, int64[4] o = {1, 1, 100000, 100000}"),
        20,
    ),
    "If nest of 90": _nest(90),
    "If nest of 1,000": _nest(1000),
    "If nest of 10,000": _nest(10_000),
    "2^40 nodes in functions": _functions(40, 2),
    "10^9 nodes in functions": _functions(9, 10),
    "functions 500 deep": _functions(500, 1),
    "a function called 20,000 times": _functions(1, 20_000),
    "doc string of 50 MB": changed(lambda m: setattr(m, "doc_string", "a" * 50_000_000)),
}
