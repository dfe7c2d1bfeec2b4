"""Declared types and shapes that are not what is computed."""

from __future__ import annotations

import onnx

from hostile.maker import Change, Maker, changed, from_text, spliced, texts

INNER = "g (float[N, 4] x) => (float[N, 4] y) {{ a = Relu(x) b = Neg(a) {rest} }}"
VIEWS = INNER.format(rest="s = Shape(b) r = Reshape(b, s) y = Identity(r)")
BRANCH = (
    "g (float[N, 4] x) => (float[N, 4] y) <bool t = {1}> { a = If(t) <then_branch = p () => (float%s r) { r = Relu(x) }"
    ", else_branch = q () => (float%s s) { s = Neg(x) }> k = Shape(a) y = Reshape(a, k) }"
)
LOOP = (
    "g (float[N, 4] x) => (float[N, 4] y) <int64 n = {3}, bool t = {1}> { a = Loop(n, t, x) <body = b (int64 i, bool c,"
    " float%s v) => (bool d, float%s w) { d = Identity(c) w = Relu(v) }> k = Shape(a) y = Reshape(a, k) }"
)
FLOAT, INT64, STRING = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64, onnx.TensorProto.STRING


def _info(name: str, kind: int, shape: list[int | str] | None) -> Change:
    return lambda model: model.graph.value_info.append(onnx.helper.make_tensor_value_info(name, kind, shape))


def _output(kind: int, shape: list[int | str] | None) -> Change:
    return lambda model: model.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("y", kind, shape))


def _input(kind: int, shape: list[int | str] | None) -> Change:
    return lambda model: model.graph.input[0].CopyFrom(onnx.helper.make_tensor_value_info("x", kind, shape))


def _dim(name: str) -> Change:
    return lambda model: setattr(model.graph.input[0].type.tensor_type.shape.dim[0], "dim_param", name)


def _sequence(model: onnx.ModelProto) -> None:
    info = onnx.helper.make_tensor_sequence_value_info("y", FLOAT, [4])
    model.graph.output[0].CopyFrom(info)


MODELS: dict[str, Maker] = {
    "inner dimension": changed(_info("a", FLOAT, ["N", 5]), VIEWS),
    "inner dimension fixed": changed(_info("a", FLOAT, [7, 4]), VIEWS),
    "inner rank": changed(_info("b", FLOAT, [4]), VIEWS),
    "inner scalar": changed(_info("b", FLOAT, []), VIEWS),
    "inner type": changed(_info("a", INT64, ["N", 4]), VIEWS),
    "inner string": changed(_info("b", STRING, ["N", 4]), VIEWS),
    "inner type 0": changed(_info("a", 0, ["N", 4]), VIEWS),
    "inner type 999": changed(_info("a", 999, ["N", 4]), VIEWS),
    "inner negative": changed(_info("a", FLOAT, [-3, 4]), VIEWS),
    "inner 2^62": changed(_info("a", FLOAT, [2**62, 2**62]), VIEWS),
    "inner told twice": changed(lambda m: (_info("a", FLOAT, [1, 4])(m), _info("a", FLOAT, [2, 4])(m)), VIEWS),
    "value that is nowhere": changed(_info("absent", FLOAT, [4]), VIEWS),
    "input told again": changed(_info("x", INT64, [4]), VIEWS),
    "shape of the shape": changed(_info("s", INT64, [3]), VIEWS),
    "output dimension": changed(_output(FLOAT, ["N", 5]), VIEWS),
    "output fixed": changed(_output(FLOAT, [1, 4]), VIEWS),
    "output rank": changed(_output(FLOAT, [4]), VIEWS),
    "output rank 0": changed(_output(FLOAT, []), VIEWS),
    "output type": changed(_output(INT64, ["N", 4]), VIEWS),
    "output type 0": changed(_output(0, ["N", 4]), VIEWS),
    "output without shape": changed(_output(FLOAT, None), VIEWS),
    "output without type": changed(lambda m: m.graph.output[0].ClearField("type"), VIEWS),
    "output a sequence": changed(_sequence, VIEWS),
    "input without shape": changed(_input(FLOAT, None), VIEWS),
    "input without type": changed(lambda m: m.graph.input[0].ClearField("type"), VIEWS),
    "input type 0": changed(_input(0, ["N", 4]), VIEWS),
    "input type 999": changed(_input(999, ["N", 4]), VIEWS),
    "input negative": changed(_input(FLOAT, [-1, 4]), VIEWS),
    "input empty": changed(_input(FLOAT, [0, 4]), VIEWS),
    "input 2^63-1": changed(_input(FLOAT, [2**63 - 1, 4]), VIEWS),
    "input of a terabyte": changed(_input(FLOAT, [1 << 20, 1 << 20]), VIEWS),
    "input of rank 0": changed(_input(FLOAT, []), VIEWS),
    "input of strings": changed(_input(STRING, ["N", 4]), VIEWS),
    "dimension called 4": changed(_dim("4"), VIEWS),
    "dimension called -1": changed(_dim("-1"), VIEWS),
    "dimension called nothing": changed(_dim(""), VIEWS),
    "dimension called with a newline": changed(_dim("a\nb\x00c"), VIEWS),
    "dimension called with a formula": changed(_dim("(N*2)**99**99"), VIEWS),
    "dimension called unk__0": changed(_dim("unk__0"), VIEWS),
    **texts(
        {
            "one symbol, two sizes": "g (float[N] x, float[N] z) => (float[N] y) <int64[1] o = {0}>"
            " { a = Concat<axis=0>(x, z) k = Shape(x) y = Slice(a, o, k) }",
            "one symbol within one input": "g (float[N, N] x) => (float[N, N] y) { s = Shape(x) i = Constant<value_ints"
            " = [0, 0]>() k = Gather(s, i) y = Reshape(x, k) }",
            "branches of other shapes": BRANCH % ("[1]", "[7, 7, 7]"),
            "branches without shape": BRANCH % ("[]", "[]"),
            "loop variable of another shape": LOOP % ("[2]", "[3]"),
            "loop result of another rank": LOOP % ("[N, 4]", "[1, 1, 1]"),
            "weight that broadcasts": "g (float[1] x) => (float[1] y) <float[5] w = {1, 1, 1, 1, 1}> { y = Mul(x, w) }",
            "output symbol of another": "g (float[N, M] x) => (float[M, N] y) { y = Relu(x) }",
            "scan output as one step": "g (float[3] x) => (float[1] y) <int64 n = {3}, bool t = {1}> { y = Loop(n, t)"
            " <body = b (int64 i, bool c) => (bool d, float[3] w) { d = Identity(c) w = Relu(x) }> }",
        }
    ),
    "initializer declared wider": from_text(
        "g (float[N, 3, 8, 8] x, float[8, 3, 1, 1] w) => (float[N, 4, 8, 8] y) { y = Conv(x, w) }",
        change=lambda m: m.graph.initializer.append(onnx.helper.make_tensor("w", FLOAT, [4, 3, 1, 1], [0.5] * 12)),
    ),
    "initializer declared of another type": from_text(
        "g (float[4] x, int64[4] w) => (float[4] y) { y = Mul(x, w) }",
        change=lambda m: m.graph.initializer.append(onnx.helper.make_tensor("w", FLOAT, [4], [1.0] * 4)),
    ),
    "function's values": from_text(
        spliced("y = f.h(x)"),
        functions='<domain: "f", opset_import: ["": 17]> h (a) => (b) { c = Relu(a) b = Neg(c) }',
        change=lambda m: m.functions[0].value_info.append(onnx.helper.make_tensor_value_info("c", INT64, [9, 9])),
    ),
}
