"""Graphs put together wrongly, and names that are no identifiers."""

from __future__ import annotations

import onnx

from hostile.maker import TINY, Change, Maker, changed, from_text, model_of, parse, proto, spliced, texts

TWO = "g (float[4] x) => (float[4] y) { a = Relu(x) y = Neg(a) }"
FLOAT = onnx.TensorProto.FLOAT


def _rename(old: str, new: str) -> Change:
    """Return a change of a value's name wherever it stands."""

    def change(model: onnx.ModelProto) -> None:
        graph = model.graph
        for node in graph.node:
            for names in (node.input, node.output):
                for index, name in enumerate(names):
                    names[index] = new if name == old else name
        for info in (*graph.input, *graph.output, *graph.initializer):
            info.name = new if info.name == old else info.name

    return change


def _name_nodes(*names: str) -> Change:
    def change(model: onnx.ModelProto) -> None:
        for node, name in zip(model.graph.node, names, strict=True):
            node.name = name

    return change


def _node(op: str, inputs: list[str], outputs: list[str], **attributes: object) -> onnx.NodeProto:
    return onnx.helper.make_node(op, inputs, outputs, **attributes)


def _graph(*nodes: onnx.NodeProto, outputs: tuple[str, ...] = ("y",), inputs: tuple[str, ...] = ("x",)) -> Maker:
    def build() -> onnx.ModelProto:
        value = onnx.helper.make_tensor_value_info
        made = [value(name, FLOAT, [4]) for name in inputs], [value(name, FLOAT, [4]) for name in outputs]
        return model_of(onnx.helper.make_graph(nodes, "g", *made))

    return proto(build)


def _initializer(name: str, count: int = 4, times: int = 1) -> Change:
    tensor = onnx.helper.make_tensor(name, FLOAT, [count], [1.0] * count)
    return lambda model: model.graph.initializer.extend([tensor] * times)


def _swap(model: onnx.ModelProto) -> None:
    first, second = model.graph.node
    nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in (second, first)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _bytes_name() -> bytes:
    return (
        parse(TWO.replace("a =", "QQQQ =").replace("(a)", "(QQQQ)"))
        .SerializeToString()
        .replace(b"QQQQ", b"\xff\xfe\x80\x81")
    )


def _function(text: str, graph: str = "y = f.h(x)") -> Maker:
    return from_text(spliced(graph), functions=f'<domain: "f", opset_import: ["": 17]> {text}')


def _overrides_add(model: onnx.ModelProto) -> None:
    model.functions[0].domain = ""
    model.functions[0].name = "Relu"
    model.graph.node[0].domain, model.graph.node[0].op_type = "", "Relu"


BRANCH = (
    "g (float[4] x) => (float[4] y) <bool t = {1}> { a = Relu(x) y = If(t) <then_branch = p () => (float[4] r)"
    " { %s }, else_branch = q () => (%s) { %s }> }"
)
LONG = "n" * 1_000_000

MODELS: dict[str, Maker] = {
    "no graph": changed(lambda m: m.ClearField("graph"), TWO),
    "empty graph": changed(lambda m: (m.graph.Clear(), m.graph.SetInParent()), TWO),
    "graph without a name": changed(lambda m: m.graph.ClearField("name"), TWO),
    "no nodes": changed(lambda m: m.graph.ClearField("node"), TWO),
    "no outputs": changed(lambda m: m.graph.ClearField("output"), TWO),
    "no inputs": from_text("g () => (float[1] y) { c = Constant<value_floats=[1.0]>() y = Relu(c) }"),
    "output written twice": _graph(_node("Relu", ["x"], ["y"]), _node("Neg", ["x"], ["y"])),
    "one node writes it twice": _graph(_node("Split", ["x"], ["y", "y"])),
    "output listed twice": changed(lambda m: m.graph.output.append(m.graph.output[0]), TWO),
    "output listed thrice behind an Identity": _graph(
        _node("Relu", ["x"], ["a"]), _node("Identity", ["a"], ["y"]), outputs=("y", "a", "y", "a")
    ),
    "input listed twice": changed(lambda m: m.graph.input.append(m.graph.input[0]), TWO),
    "output that nobody makes": _graph(_node("Relu", ["x"], ["a"])),
    "input that nobody makes": _graph(_node("Add", ["x", "absent"], ["y"])),
    "input is output": _graph(_node("Relu", ["x"], ["y"]), outputs=("y", "x")),
    "input is output, no nodes": _graph(outputs=("x",)),
    "weight is output": from_text(
        TINY, change=lambda m: m.graph.output.append(onnx.helper.make_tensor_value_info("b", FLOAT, [4]))
    ),
    "use before definition": changed(_swap, TWO),
    "node names repeated": changed(_name_nodes("same", "same"), TWO),
    "node names empty": changed(_name_nodes("", ""), TWO),
    "node without an operator": _graph(_node("", ["x"], ["y"])),
    "operator nobody knows": _graph(_node("Frobnicate", ["x"], ["y"])),
    "node without outputs": _graph(_node("Relu", ["x"], ["y"]), _node("Relu", ["x"], [])),
    "node with empty outputs": _graph(_node("Relu", ["x"], ["y"]), _node("Relu", ["x"], [""])),
    "node without inputs": _graph(_node("Relu", [], ["a"]), _node("Relu", ["x"], ["y"])),
    "node with too many inputs": _graph(_node("Relu", ["x", "x", "x"], ["y"])),
    "node with too many outputs": _graph(_node("Relu", ["x"], ["y", "z"])),
    "required input empty": _graph(_node("Add", ["x", ""], ["y"])),
    "empty trailing inputs": _graph(_node("Clip", ["x", "", ""], ["y"])),
    "graph input without a name": _graph(_node("Relu", ["x"], ["y"]), inputs=("x", "")),
    "graph output without a name": _graph(_node("Relu", ["x"], ["y"]), outputs=("y", "")),
    "weight twice": changed(_initializer("a1", times=2), TWO),
    "weight twice and read": from_text(
        "g (float[4] x) => (float[4] y) { y = Add(x, w) }", change=_initializer("w", times=2)
    ),
    "weight named as a node's output": changed(_initializer("a"), TWO),
    "weight named as the output": changed(_initializer("y"), TWO),
    "weight named as an input of another shape": changed(_initializer("x", 5), TWO),
    "weight without a name": changed(_initializer(""), TWO),
    "weight nobody reads": changed(_initializer("unused", 1000), TWO),
    "value named with a newline": changed(_rename("a", "a\nb\r\t"), TWO),
    "value named with NUL": changed(_rename("a", "a\x00b"), TWO),
    "value named in colour": changed(_rename("a", "\x1b[31m\x1b]0;owned\x07"), TWO),
    "value named in Arabic": changed(_rename("a", "\u202e\u0627\u0628\ufeff\U0001f9e8"), TWO),
    "value named with 1 MB": changed(_rename("a", LONG), TWO),
    "value named by bytes that are no text": proto(_bytes_name),
    "value named as a path": changed(_rename("a", "../../../etc/passwd"), TWO),
    "value named as a format": changed(_rename("a", "%s%n{0.__class__}"), TWO),
    "input named with a newline": changed(_rename("x", "x\ny"), TWO),
    "input named with NUL": changed(_rename("x", "x\x00y"), TWO),
    "input named with a slash": changed(_rename("x", "serving/default:0"), TWO),
    "output named with 1 MB": changed(_rename("y", LONG), TWO),
    "weight named as a path": from_text(TINY, change=_rename("w", "../../w")),
    "weight named with NUL": from_text(TINY, change=_rename("w", "w\x00")),
    "node named with 1 MB": changed(_name_nodes(LONG, ""), TWO),
    "operator named with 1 MB": _graph(_node(LONG, ["x"], ["y"])),
    "operator named with a newline": _graph(_node("Re\nlu", ["x"], ["y"])),
    "unknown operator named with a newline": _graph(_node("Re\nlu", ["x"], ["y"], domain="ac\nme")),
    "metadata twice": changed(lambda m: [m.metadata_props.add(key="k", value=str(i)) for i in range(3)], TWO),
    "metadata of 5 MB": changed(lambda m: m.metadata_props.add(key="k", value="v" * 5_000_000), TWO),
    "metadata of our own": changed(lambda m: m.metadata_props.add(key="onnxedge.pipeline", value="\n({["), TWO),
    "folded names taken": from_text(
        "g (float[1] x) => (float[1] y) <float[1] c = {1}, float[1] a_folded = {2}, float[1] a_folded_1 = {3}>"
        " { a = Neg(c) b = Add(x, a) d = Add(b, a_folded) y = Add(d, a_folded_1) }"
    ),
    **texts(
        {
            "branch shadows an outer value": BRANCH % ("a = Neg(x) r = Relu(a)", "float[4] s", "s = Identity(a)"),
            "branch shadows an input": BRANCH % ("x = Neg(a) r = Relu(x)", "float[4] s", "s = Identity(a)"),
            "branches define the same name": BRANCH % ("k = Neg(x) r = Relu(k)", "float[4] r", "k = Abs(x) r = Neg(k)"),
            "branches of different counts": BRANCH % ("r = Neg(x)", "float[4] s, float[4] u", "s = Abs(x) u = Neg(x)"),
            "branch of no nodes": BRANCH % ("", "float[4] s", "s = Abs(x)"),
            "branch gives an outer value": BRANCH.replace("p () => (float[4] r)", "p () => (float[4] a)")
            % ("", "float[4] s", "s = Abs(x)"),
            "branch with inputs": BRANCH.replace("p ()", "p (float[4] u)") % ("r = Neg(u)", "float[4] s", "s = Abs(x)"),
            "branch reads what comes later": spliced(
                "<bool t = {1}>",
                "a = If(t) <then_branch = p () => (float[1] r) { r = Add(x, z) }, else_branch = q () => (float[1] s)"
                " { s = Neg(x) }> z = Relu(x) y = Add(a, z)",
            ),
            "branch reads a sibling's value": spliced(
                "<bool t = {1}>",
                "y = If(t) <then_branch = p () => (float[1] r) { k = Neg(x) r = Abs(k) },"
                " else_branch = q () => (float[1] s) { s = Neg(k) }>",
            ),
            "outer reads a branch's value": spliced(
                "<bool t = {1}>",
                "a = If(t) <then_branch = p () => (float[1] r) { k = Neg(x) r = Abs(k) },"
                " else_branch = q () => (float[1] s) { s = Neg(x) }> y = Add(a, k)",
            ),
            "body of two trip counts": spliced(
                "<int64[2] n = {3, 4}, bool t = {1}>",
                "y = Loop(n, t, x) <body = b (int64 i, bool c, float[1] v) => (bool d, float[1] w)"
                " { d = Identity(c) w = Relu(v) }>",
            ),
            "body of too few outputs": spliced(
                "<int64 n = {3}, bool t = {1}>",
                "y = Loop(n, t, x) <body = b (int64 i, bool c, float[1] v) => (bool d) { d = Identity(c) }>",
            ),
            "condition is a float": BRANCH.replace("bool t", "float t") % ("r = Neg(x)", "float[4] s", "s = Abs(x)"),
            "condition of two elements": BRANCH.replace("bool t = {1}", "bool[2] t = {1, 0}")
            % ("r = Neg(x)", "float[4] s", "s = Abs(x)"),
        }
    ),
    "function without the output": _function("h (a) => (b) { c = Relu(a) }"),
    "function of too few inputs": _function("h (a, c) => (b) { b = Add(a, c) }"),
    "function of too many inputs": _function("h (a) => (b) { b = Relu(a) }", "y = f.h(x, x)"),
    "function that is not there": _function("k (a) => (b) { b = Relu(a) }"),
    "function twice": from_text(
        spliced("y = f.h(x)"),
        functions='<domain: "f", opset_import: ["": 17]> h (a) => (b) { b = Relu(a) }',
        change=lambda m: m.functions.append(m.functions[0]),
    ),
    "function of equal inputs": _function("h (a, a) => (b) { b = Relu(a) }", "y = f.h(x, x)"),
    "function gives its input": _function("h (a) => (a) { b = Relu(a) }"),
    "function reads the graph's values": _function("h (a) => (b) { b = Add(a, x) }"),
    "function wants an attribute": _function("h <k> (a) => (b) { b = LeakyRelu<alpha: float = @k>(a) }"),
    "function of an attribute of another type": _function(
        "h <k> (a) => (b) { b = LeakyRelu<alpha: float = @k>(a) }", 'y = f.h<k="text">(x)'
    ),
    "function stands in for an operator": from_text(
        spliced("y = f.h(x)"),
        functions='<domain: "f", opset_import: ["": 17]> h (a) => (b) { b = Neg(a) }',
        change=_overrides_add,
    ),
}
