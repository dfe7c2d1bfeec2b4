"""inline-functions: bodies in place of calls, counted before."""

from __future__ import annotations

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest
from onnxedge_passes.cleanup.control.inline_functions import InlineFunctions

from onnxedge.api import Context, Session, to_proto
from onnxedge.target import load_packaged_target


def context_of(model: ir.Model) -> Context:
    return Context(load_packaged_target("onnxedge.targets", "generic"), None, original=model.clone())  # type: ignore[arg-type]


HEAD = '<ir_version: 10, opset_import: ["": 17, "acme": 1]>'


def model_of(text: str) -> ir.Model:
    return ir.serde.deserialize_model(onnx.parser.parse_model(text))


def compare(text: str, applied, *, functions: int = 0, **options: object) -> tuple[ir.Model, list[str]]:
    """Inline, run before and after on the same inputs, and expect a number of functions to be left."""
    before, model = model_of(text), model_of(text)
    _, reasons = applied(InlineFunctions(**options), model)
    assert len(model.functions) == functions
    first, second = Session(before, level="disable"), Session(model, level="disable")
    feed = {
        spec.name: np.array(True) if spec.dtype == "bool" else np.array([3.0, -2.0], np.float32)
        for spec in first.inputs
    }
    mine, other = first.run(feed), second.run(feed)
    for name, array in mine.items():
        np.testing.assert_array_equal(array, other[name])
    assert applied(InlineFunctions(**options), model)[0].rewrites == 0
    return model, reasons


ATTRIBUTES = f"""{HEAD}
g (float[2] x) => (float[2] y, float[2] z) {{ y = acme.Scale<k=3.0>(x) t = acme.Scale(y) z = Relu(t) }}
<domain: "acme", opset_import: ["": 17]>
Scale<k: float = 5.0>(v) => (w) {{ f = Constant<value_float: float = @k>() w = Mul(v, f) }}
"""


def test_attributes_given_and_default(applied) -> None:
    model, _ = compare(ATTRIBUTES, applied)
    assert [node.op_type for node in model.graph] == ["Constant", "Mul", "Constant", "Mul", "Relu"]


NESTED = f"""{HEAD}
g (float[2] x, bool c) => (float[2] y) {{
  v = Exp(x)
  y = If(c) <then_branch = t () => (float[2] r) {{ r = acme.Outer<a=2.0>(v) }},
             else_branch = e () => (float[2] r) {{ r = Neg(v) }}>
}}
<domain: "acme", opset_import: ["": 17, "acme": 1]>
Outer<a>(v) => (w) {{ s = acme.Inner<k: float = @a>(v) u = acme.Inner<k: float = 0.5>(s) w = Add(u, v) }}
<domain: "acme", opset_import: ["": 17]>
Inner<k>(v) => (w) {{ v_1 = Elu<alpha: float = @k>(v) w = Neg(v_1) }}
"""


def test_nested_calls_inside_a_branch(applied) -> None:
    model, _ = compare(NESTED, applied)
    branch = list(model.graph)[1].attributes["then_branch"].as_graph()
    assert [node.op_type for node in branch] == ["Elu", "Neg", "Elu", "Neg", "Add"]
    assert [round(node.attributes.get_float("alpha"), 1) for node in branch if node.op_type == "Elu"] == [2.0, 0.5]


def test_functions_by_name(applied) -> None:
    model, _ = compare(NESTED, applied, functions=1, names=("acme::Inner",))
    assert [key[1] for key in model.functions] == ["Outer"]
    assert [node.op_type for node in next(iter(model.functions.values()))] == ["Elu", "Neg", "Elu", "Neg", "Add"]
    model, _ = compare(NESTED, applied, functions=1, names=("Out*",))
    assert [key[1] for key in model.functions] == ["Inner"]


BODIES = f"""{HEAD}
g (float[2] x, bool c) => (float[2] y, float[2] z, float[2] i) {{
  r = Neg(x) i = Identity(r)
  y = acme.Both(x, c) z = acme.Both(r, c)
}}
<domain: "acme", opset_import: ["": 17]>
Both(v, c) => (w) {{
  w = If(c) <then_branch = t () => (float[2] r) <float[2] i = {{1, 2}}> {{ r = Mul(v, i) }},
             else_branch = e () => (float[2] r) {{ r = Neg(v) }}>
}}
"""


def test_names_of_nested_graphs_do_not_shadow(applied) -> None:
    model, _ = compare(BODIES, applied)
    onnx.checker.check_model(to_proto(model), full_check=True)
    outer = {value.name for node in model.graph for value in node.outputs}
    inner = {
        name
        for graph in model.graph.subgraphs()
        for name in (*graph.initializers, *(v.name for n in graph for v in n.outputs))
    }
    assert not outer & inner


THROUGH = f"""{HEAD}
g (float[2] x) => (float[2] a, float[2] b, float[2] d) {{ a, b, d = acme.Through(x) }}
<domain: "acme", opset_import: ["": 17]>
Through(v) => (v, w, w) {{ w = Neg(v) }}
"""


def test_outputs_that_are_inputs_or_repeated(applied) -> None:
    model = model_of(THROUGH)  # ONNX Runtime 1.31 does not load it
    assert applied(InlineFunctions(), model)[0].rewrites == 1
    outputs = Session(model).run({"x": np.array([3.0, -2.0], np.float32)})
    assert {name: array.tolist() for name, array in outputs.items()} == {"a": [3, -2], "b": [-3, 2], "d": [-3, 2]}


OPTIONAL = f"""{HEAD}
g (float[2] x) => (float[2] y) {{ m = Constant<value_float=1.0>() y = acme.Clamp(x, "", m) }}
<domain: "acme", opset_import: ["": 17]>
Clamp(v, low, high, unused) => (w, dropped) {{ w = Clip(v, low, high) dropped = Neg(v) }}
"""


def test_missing_inputs_and_outputs(applied) -> None:
    before = model_of(OPTIONAL)
    applied(InlineFunctions(), before)
    clip = next(node for node in before.graph if node.op_type == "Clip")
    assert clip.inputs[1] is None
    assert clip.inputs[2] is not None
    assert Session(before).run({"x": np.array([3.0, -2.0], np.float32)})["y"].tolist() == [1.0, -2.0]


@pytest.mark.parametrize(("operator", "inlined"), [("Relu(v)", True), ("Softmax(v)", False)])
def test_another_opset(operator: str, inlined: bool) -> None:
    model = model_of(
        f'<ir_version: 10, opset_import: ["": 17, "acme": 1]> g (float[2] x) => (float[2] y) {{ y = acme.F(x) }}'
        f'<domain: "acme", opset_import: ["": {14 if inlined else 12}]> F(v) => (w) {{ w = {operator} }}'
    )
    context = context_of(model)
    assert bool(InlineFunctions().run(model, context).rewrites) is inlined
    reasons = [] if inlined else ["not inlined: Softmax means something else in the caller's opset"]
    assert [note.reason for note in context.notes] == reasons


def test_a_bomb_is_counted_and_not_tried(applied) -> None:
    bodies = "\n".join(
        f'<domain: "acme", opset_import: ["": 17, "acme": 1]> F{i}(v) => (w)'
        f" {{ a = acme.F{i + 1}(v) w = acme.F{i + 1}(a) }}"
        for i in range(40)
    )
    last = '<domain: "acme", opset_import: ["": 17]> F40(v) => (w) { w = Neg(v) }'
    model = model_of(f"{HEAD} g (float[2] x) => (float[2] y) {{ y = acme.F0(x) }} {bodies} {last}")
    result, reasons = applied(InlineFunctions(), model, infer=False)
    assert result.rewrites == 0
    assert len(model.functions) == 41
    assert reasons == ["not inlined: it would add over a billion nodes, more than max_added_nodes allows"]
