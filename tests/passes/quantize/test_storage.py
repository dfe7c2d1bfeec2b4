"""int8(mode=storage) in bodies of If, Loop and Scan and in local functions, and what it leaves alone."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from onnxedge_passes.quantize import Int8
from precision import apply, normal, outputs, sqnr

from onnxedge.api import Array, Result, optimized_graph, to_proto

HEAD = '<ir_version: 8, opset_import: ["": 17, "acme": 1]>'
D = 64


def model_of(text: str, functions: str = "", opset: int = 17) -> onnx.ModelProto:
    return onnx.parser.parse_model(f"{HEAD.replace('17', str(opset))} {text} {functions}")


def fill(graph: onnx.GraphProto, **weights: Array) -> None:
    graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())


def body(proto: onnx.ModelProto, node: int, name: str) -> onnx.GraphProto:
    return next(a.g for a in proto.graph.node[node].attribute if a.name == name)


def run(proto: onnx.ModelProto, target: str = "ort-cpu") -> tuple[ir.Model, ir.Model, Result, str]:
    """Return a model before and after, the result, and the notes."""
    before, model = ir.serde.deserialize_model(proto), ir.serde.deserialize_model(proto)
    result, notes = apply(Int8(mode="storage"), model, None, target)
    onnx.checker.check_model(to_proto(model), full_check=True)
    return before, model, result, notes


def everywhere(graph: onnx.GraphProto) -> list[str]:
    """Return the operators of a graph and of all in it."""
    inside = [a.g for node in graph.node for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
    return [node.op_type for node in graph.node] + [kind for g in inside for kind in everywhere(g)]


def branches() -> onnx.ModelProto:
    """Return an If whose branches have a weight each, under one name."""
    proto = model_of(f"""g (float[N,{D}] x, bool c) => (float[N,{D}] y) {{
      y = If(c) <then_branch = t () => (float[N,{D}] p) {{ p = MatMul(x, w) }},
                 else_branch = f () => (float[N,{D}] q) {{ h = Relu(x)  q = MatMul(h, w) }}> }}""")
    fill(body(proto, 0, "then_branch"), w=normal(D, D) / 8)
    fill(body(proto, 0, "else_branch"), w=normal(D, D, seed=1) / 8)
    return proto


def loop() -> onnx.ModelProto:
    proto = model_of(f"""g (float[N,{D}] x, int64 n) => (float[N,{D}] y) {{
      y = Loop(n, , x) <body = b (int64 i, bool k, float[N,{D}] h) => (bool k2, float[N,{D}] h2)
                        {{ k2 = Identity(k)  m = MatMul(h, w)  h2 = Tanh(m) }}> }}""")
    fill(body(proto, 0, "body"), w=normal(D, D) / 8)
    return proto


FEEDS: dict[str, list[dict[str, Array]]] = {
    "branches": [{"x": normal(3, D, seed=5), "c": np.array(c)} for c in (True, False)],
    "loop": [{"x": normal(3, D, seed=5), "n": np.array(n)} for n in (0, 1, 4)],
}


@pytest.mark.parametrize("target", ["ort-cpu", "generic"])
@pytest.mark.parametrize("make", [branches, loop], ids=lambda make: make.__name__)
def test_weights_of_bodies(make: object, target: str) -> None:
    assert callable(make)
    before, model, result, _ = run(make(), target)
    count = {"branches": 2, "loop": 1}[make.__name__]
    assert result.figures["stored_weights"] == count
    size, old = (len(to_proto(m).SerializeToString()) for m in (model, before))
    assert size < 0.4 * old
    for feed in FEEDS[make.__name__]:
        assert sqnr(outputs(before, feed)[0], outputs(model, feed)[0]) > 30
    if target == "ort-cpu":  # made float once, not in each round
        assert not {"Cast", "Mul", "DequantizeLinear"} & set(everywhere(optimized_graph(model).graph))


def test_a_body_that_reads_the_main_graph_s_weight() -> None:
    proto = model_of(f"""g (float[N,{D}] x, bool c) => (float[N,{D}] y) {{
      y = If(c) <then_branch = t () => (float[N,{D}] p) {{ p = MatMul(x, w) }},
                 else_branch = f () => (float[N,{D}] q) {{ q = Neg(x) }}> }}""")
    fill(proto.graph, w=normal(D, D) / 8)
    before, model, result, _ = run(proto)
    assert result.figures["stored_weights"] == 1
    for feed in FEEDS["branches"]:
        assert sqnr(outputs(before, feed)[0], outputs(model, feed)[0]) > 30


def function() -> onnx.ModelProto:
    """Return a function with a weight, called twice."""
    calls = f"g (float[N,{D}] x) => (float[N,{D}] y) {{ h = acme.dense(x)  y = acme.dense(h) }}"
    text = '<domain: "acme", opset_import: ["": 17]> dense (a) => (b) { m = MatMul(a, w)  b = Tanh(m) }'
    proto = model_of(calls, text)
    constant = onnx.helper.make_node("Constant", [], ["w"], value=onnx.numpy_helper.from_array(normal(D, D) / 8, "w"))
    proto.functions[0].node.insert(0, constant)
    return proto


def test_a_weight_of_a_local_function() -> None:
    before, model, result, _ = run(function())
    assert result.figures["stored_weights"] == 1
    assert len(to_proto(model).SerializeToString()) < 0.4 * len(to_proto(before).SerializeToString())
    assert not {"Cast", "Mul"} & set(everywhere(optimized_graph(model).graph))
    x = {"x": normal(3, D, seed=5)}
    assert sqnr(outputs(before, x)[0], outputs(model, x)[0]) > 30
    again, _ = apply(Int8(mode="storage"), model)
    assert again.rewrites == 0


def test_a_constant_that_is_an_attribute_of_the_function_stays() -> None:
    proto = function()
    node = proto.functions[0].node[0]
    attribute = node.attribute[0]
    tensor = onnx.TensorProto()
    tensor.CopyFrom(attribute.t)
    attribute.Clear()
    attribute.name, attribute.ref_attr_name, attribute.type = "value", "weight", onnx.AttributeProto.TENSOR
    proto.functions[0].attribute.append("weight")
    for call in proto.graph.node:
        call.attribute.append(onnx.helper.make_attribute("weight", tensor))
    before, model, result, _ = run(proto)
    assert result.rewrites == 0
    x = {"x": normal(3, D, seed=5)}
    np.testing.assert_array_equal(outputs(before, x)[0], outputs(model, x)[0])


def test_a_body_s_weight_that_is_its_output_or_not_finite_stays() -> None:
    proto = branches()
    then, other = body(proto, 0, "then_branch"), body(proto, 0, "else_branch")
    array = normal(D, D)
    array[0, 0] = np.inf
    other.initializer[0].CopyFrom(onnx.numpy_helper.from_array(array, "w"))
    del then.node[:]
    then.output[0].CopyFrom(onnx.helper.make_tensor_value_info("w", 1, [D, D]))
    other.output[0].type.CopyFrom(then.output[0].type)
    other.node[1].input[0] = "w"
    other.node[1].input[1] = "w"
    proto.graph.output[0].type.CopyFrom(then.output[0].type)
    _, _, result, notes = run(proto)
    assert result.rewrites == 0
    assert "holds infinities or NaN" in notes


def test_a_recurrent_weight_has_a_scale_for_each_row_of_its_gates() -> None:
    from test_dynamic import recurrent

    model = recurrent("GRU", 3)
    rows = np.repeat(np.array([1e-3, 1.0], np.float32), 96)[None, :, None]
    weight = model.graph.initializers["w"]
    assert weight.const_value is not None
    weight.const_value = ir.tensor(weight.const_value.numpy() * rows)
    before = model.clone()
    result, _ = apply(Int8(mode="storage"), model)
    assert result.figures["stored_weights"] >= 2
    x = {"x": normal(7, 2, 32, seed=4)}
    for first, other in zip(outputs(before, x), outputs(model, x), strict=True):
        assert sqnr(first, other) > 35
    scales = [v.const_value for v in model.graph.initializers.values() if v.name and v.name.startswith("s")]
    assert (1, 192, 1) in [tuple(s.shape.numpy()) for s in scales if s is not None]
