"""Attributes of the wrong type, missing, out of range or not numbers."""

from __future__ import annotations

from typing import Any

import onnx

from hostile.maker import Change, Maker, changed, from_text, model_of, proto, spliced

IMAGE = "g (float[1, 4, 8, 8] x) => (float[A, B, C, D] y) <float[4, 4, 3, 3] w> {{ {} }}"


def _image(nodes: str) -> str:
    graph = IMAGE.format(nodes)
    return graph if ", w)" in nodes else graph.replace("<float[4, 4, 3, 3] w>", "")


def _weights(model: onnx.ModelProto) -> None:
    for tensor in model.graph.initializer:
        if not tensor.float_data and not tensor.raw_data:
            tensor.raw_data = bytes(4 * 4 * 4 * 3 * 3)


def _image_case(nodes: str, opset: int = 17) -> Maker:
    return from_text(_image(nodes), opset, change=_weights)


def _attribute(index: int, name: str, value: Any) -> Change:
    def change(model: onnx.ModelProto) -> None:
        node = model.graph.node[index]
        kept = [a for a in node.attribute if a.name != name]
        del node.attribute[:]
        node.attribute.extend([*kept, onnx.helper.make_attribute(name, value)])

    return change


def _twice(model: onnx.ModelProto) -> None:
    model.graph.node[0].attribute.extend([onnx.helper.make_attribute("axis", 0), onnx.helper.make_attribute("axis", 1)])


def _type(kind: int) -> Change:
    """Return a change of an attribute's type; what is no type at all goes in as bytes."""
    return lambda model: model.graph.node[0].attribute[0].MergeFromString(b"\xa0\x01" + bytes([kind]))


SOFTMAX = "g (float[N, 4] x) => (float[N, 4] y) { y = Softmax<axis=1>(x) }"
CAST = "g (float[N, 4] x) => (float[N, 4] y) { y = Cast<to=1>(x) }"
LEAKY = "g (float[N, 4] x) => (float[N, 4] y) { y = LeakyRelu<alpha=0.5>(x) }"
TURN = "g (float[A, B, C] x) => (float[D, E, F] y) {{ y = Transpose<perm={}>(x) }}"
JOIN = "g (float[N, 4] x) => (float[M, 4] y) {{ y = Concat<axis={}>(x, x) }}"
NORM = (
    "g (float[N, 2, 4] x) => (float[N, 2, 4] y) <float[2] a = {{1, 1}}, float[2] b = {{0, 0}}, float[2] v = {{1, 1}}>"
    " {{ y = BatchNormalization<epsilon={}>(x, a, b, b, v) }}"
)


def _reference() -> onnx.ModelProto:
    node = onnx.helper.make_node("Softmax", ["x"], ["y"])
    node.attribute.add(name="axis", ref_attr_name="k", type=onnx.AttributeProto.INT)
    value = onnx.helper.make_tensor_value_info
    return model_of(onnx.helper.make_graph([node], "g", [value("x", 1, ["N", 4])], [value("y", 1, ["N", 4])]))


def _bad_utf8() -> bytes:
    text = 'g (float[N, 4] x) => (float[N, 4] y) { y = Einsum<equation="QQQQQQ">(x) }'
    from hostile.maker import parse

    return parse(text).SerializeToString().replace(b"QQQQQQ", b"\xff\xfe\xfd\xfc\xfb\xfa")


MODELS: dict[str, Maker] = {
    "axis is a string": changed(_attribute(0, "axis", "one"), SOFTMAX),
    "axis is a list": changed(_attribute(0, "axis", [1, 1]), SOFTMAX),
    "axis is a float": changed(_attribute(0, "axis", 1.0), SOFTMAX),
    "axis is a tensor": changed(_attribute(0, "axis", onnx.helper.make_tensor("t", 7, [], [1])), SOFTMAX),
    "axis is a graph": changed(_attribute(0, "axis", onnx.GraphProto()), SOFTMAX),
    "axis 99": changed(_attribute(0, "axis", 99), SOFTMAX),
    "axis -2^63": changed(_attribute(0, "axis", -(2**63)), SOFTMAX),
    "axis twice": changed(_twice, "g (float[N, 4] x) => (float[N, 4] y) { y = Softmax(x) }"),
    "axis without a type": changed(lambda m: m.graph.node[0].attribute[0].ClearField("type"), SOFTMAX),
    "axis of type 99": changed(_type(99), SOFTMAX),
    "axis of type FLOATS with an integer": changed(_type(6), SOFTMAX),
    "attribute nobody knows": changed(_attribute(0, "axes_of_evil", 1), SOFTMAX),
    "attribute without a name": changed(lambda m: setattr(m.graph.node[0].attribute[0], "name", ""), SOFTMAX),
    "reference outside of a function": proto(_reference),
    "Cast to nothing": changed(lambda m: m.graph.node[0].ClearField("attribute"), CAST),
    "Cast to 0": changed(_attribute(0, "to", 0), CAST),
    "Cast to 999": changed(_attribute(0, "to", 999), CAST),
    "Cast to -2^63": changed(_attribute(0, "to", -(2**63)), CAST),
    "slope NaN": changed(_attribute(0, "alpha", float("nan")), LEAKY),
    "slope infinite": changed(_attribute(0, "alpha", float("-inf")), LEAKY),
    "epsilon NaN": from_text(NORM.format(0.5), change=_attribute(0, "epsilon", float("nan"))),
    "epsilon -1": from_text(NORM.format(-1.0)),
    "epsilon infinite": from_text(NORM.format(0.5), change=_attribute(0, "epsilon", float("inf"))),
    **{
        f"perm {perm}": from_text(TURN.format(perm))
        for perm in ([0, 1, 3], [0, 0, 1], [-1, -2, -3], [0, 1], [2, 1, 0, 3], [2**62, 0, 1])
    },
    **{
        f"perm {perm} over ones": from_text(TURN.format(perm).replace("float[A, B, C]", "float[1, 1, C]"))
        for perm in ([0, 0, 1], [0, 1], [0, 1, 3])
    },
    **{
        f"Unsqueeze axes {axes} of a size": from_text(
            "g (float[N, 4] x) => (float[A, B] y) { s = Shape(x) a = Constant<value_ints=AXES>() u = Unsqueeze(s, a)"
            " t = Squeeze(u) z = Expand(x, t) y = Relu(z) }".replace("AXES", axes)
        )
        for axes in ("[0, 0]", "[0, 2, 5]", "[-9]", "[9223372036854775807]")
    },
    **{f"Concat axis {axis}": from_text(JOIN.format(axis)) for axis in (2, -3, 2**62)},
    "Concat of nothing": from_text("g (float[N, 4] x) => (float[M, 4] y) { a = Concat<axis=0>() y = Add(x, a) }"),
    "Concat of holes": from_text("g (float[N, 4] x) => (float[M, 4] y) { y = Concat<axis=0>(x, , x) }"),
    "Concat without axis": changed(lambda m: m.graph.node[0].ClearField("attribute"), JOIN.format(0)),
    "Constant of nothing": from_text(spliced("c = Constant() y = Add(x, c)")),
    "Constant of two things": from_text(spliced("c = Constant<value_float=1.0, value_int=1>() y = Add(x, c)")),
    "Constant of no numbers": from_text(
        spliced("c = Constant<value_floats=[1.0]>() y = Add(x, c)"),
        change=lambda m: m.graph.node[0].attribute[0].ClearField("floats"),
    ),
    "If without else": from_text(
        spliced("<bool t = {1}>", "y = If(t) <then_branch = p () => (float[1] r) { r = Relu(x) }>")
    ),
    "Loop without body": from_text(spliced("<int64 n = {3}, bool t = {1}>", "y = Loop(n, t, x)")),
    "Scan of too many inputs": from_text(
        spliced(
            "y = Scan<num_scan_inputs=9, body = b (float u) => (float o) { o = Relu(u) }>(x)",
        )
    ),
    "Scan of -1 inputs": from_text(
        spliced("y = Scan<num_scan_inputs=-1, body = b (float u) => (float o) { o = Relu(u) }>(x)")
    ),
    "Einsum of no equation": from_text(spliced('y = Einsum<equation = "i,,,,->->i">(x)')),
    "Einsum with a repeated index": from_text(
        "g (float[2, 3, 3] x, float[2, 3, 3] z) => (float[2, 3, 3] y)"
        ' { y = Einsum<equation="...ii,...jj->...ij">(x, z) }'
    ),
    "Einsum of bytes": proto(_bad_utf8),
    "Conv pads negative": _image_case("y = Conv<pads=[-9, -9, -9, -9]>(x, w)"),
    "Conv pads odd": _image_case("y = Conv<pads=[1, 1, 1]>(x, w)"),
    "Conv pads huge": _image_case("y = Conv<pads=[4611686018427387904, 0, 4611686018427387904, 0]>(x, w)"),
    "Conv strides 0": _image_case("y = Conv<strides=[0, 0]>(x, w)"),
    "Conv dilations 0": _image_case("y = Conv<dilations=[0, 0]>(x, w)"),
    "Conv dilations negative": _image_case("y = Conv<dilations=[-1, -1]>(x, w)"),
    "Conv group 0": _image_case("y = Conv<group=0>(x, w)"),
    "Conv group -1": _image_case("y = Conv<group=-1>(x, w)"),
    "Conv group 3": _image_case("y = Conv<group=3>(x, w)"),
    "Conv kernel not the weight's": _image_case("y = Conv<kernel_shape=[5, 5]>(x, w)"),
    "Conv auto_pad of nonsense": _image_case('y = Conv<auto_pad="BOTH">(x, w)'),
    "Pad into Conv negative": _image_case(
        "p = Constant<value_ints=[0, 0, -3, -3, 0, 0, -3, -3]>() a = Pad(x, p) y = Conv(a, w)"
    ),
    "MaxPool kernel 0": _image_case("y = MaxPool<kernel_shape=[0, 0]>(x)"),
    "MaxPool kernel -1": _image_case("y = MaxPool<kernel_shape=[-1, -1]>(x)"),
    "MaxPool kernel larger than the image": _image_case("y = MaxPool<kernel_shape=[99, 99]>(x)"),
    "MaxPool without kernel": _image_case("y = MaxPool(x)"),
    "AveragePool pads as large as the kernel": _image_case(
        "y = AveragePool<kernel_shape=[2, 2], pads=[2, 2, 2, 2]>(x)"
    ),
    "DepthToSpace block 0": _image_case("y = DepthToSpace<blocksize=0>(x)"),
    "SpaceToDepth block 0": _image_case("y = SpaceToDepth<blocksize=0>(x)"),
    "SpaceToDepth block 3": _image_case("y = SpaceToDepth<blocksize=3>(x)"),
    "LRN size 0": _image_case("y = LRN<size=0>(x)"),
    "Pad mode of nonsense": _image_case('p = Constant<value_ints=[0, 0, 1, 1, 0, 0, 1, 1]>() y = Pad<mode="x">(x, p)'),
    "Flatten axis -9": _image_case("y = Flatten<axis=-9>(x)"),
    "Resize mode of nonsense": _image_case(
        's = Constant<value_floats=[1.0, 1.0, 2.0, 2.0]>() y = Resize<mode="x">(x, , s)'
    ),
    "Resize scale NaN": _image_case(
        "y = Resize(x, , k)".replace("y =", "z = Constant<value_floats=[0.0, 0.0, 0.0, 0.0]>() k = Div(z, z) y =")
    ),
    "Resize scale negative": _image_case("s = Constant<value_floats=[1.0, 1.0, -2.0, -2.0]>() y = Resize(x, , s)"),
    "Shape start after end": from_text(
        spliced("s = Shape<start=1, end=0>(x) k = Size(s) f = Cast<to=1>(k) y = Add(f, x)")
    ),
    "Shape start -2^63": from_text(
        spliced("s = Shape<start=-9223372036854775808, end=9223372036854775807>(x) f = Cast<to=1>(s) y = Add(f, x)")
    ),
    "LSTM of no size": from_text(
        "g (float[3, 2, 4] x) => (float[3, 1, 2, 5] y) <float[1, 20, 4] w, float[1, 20, 5] r>"
        " { y = LSTM<hidden_size=-1>(x, w, r) }",
        change=lambda m: [
            setattr(t, "raw_data", bytes(80 * n)) for t, n in zip(m.graph.initializer, (4, 5), strict=False)
        ],
    ),
    "EyeLike of type 999": from_text(
        "g (float[3, 3] x) => (float[3, 3] y) { a = EyeLike<dtype=999>(x) y = Add(a, x) }"
    ),
    "RandomNormal of a negative shape": from_text(spliced("a = RandomNormal<shape=[-1]>() y = Add(a, x)")),
    "100,000 integers": changed(_attribute(0, "perm", list(range(100_000))), TURN.format([2, 1, 0])),
    "10,000 attributes": changed(
        lambda m: m.graph.node[0].attribute.extend(onnx.helper.make_attribute(f"a{i}", i) for i in range(10_000)),
        SOFTMAX,
    ),
}
