"""inline-if: the branch that is taken stands in the place of the If."""

from __future__ import annotations

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest
from onnxedge_passes.cleanup.control.inline_if import InlineIf
from onnxedge_passes.cleanup.fold import Fold

from onnxedge.api import Session

HEAD = "g (float[2] x) => (float[2] y)"
BRANCHES = "then_branch = t () => (float[2] r) { r = Relu(x) }, else_branch = e () => (float[2] r) { r = Neg(x) }"


@pytest.mark.parametrize(("value", "operator"), [(1, "Relu"), (0, "Neg")])
def test_the_branch_that_is_taken(check, value: int, operator: str) -> None:
    check(
        InlineIf(),
        f"{HEAD} <bool c = {{{value}}}> {{ y = If(c) <{BRANCHES}> }}",
        f"{HEAD} {{ y = {operator}(x) }}",
    )


def test_a_condition_of_one_element(check) -> None:
    check(InlineIf(), f"{HEAD} <bool[1] c = {{1}}> {{ y = If(c) <{BRANCHES}> }}", f"{HEAD} {{ y = Relu(x) }}")


def test_a_computed_condition_stays(check) -> None:
    reasons = check(InlineIf(), f"g (float[2] x, bool c) => (float[2] y) {{ y = If(c) <{BRANCHES}> }}")
    assert reasons == ["not inlined: its condition is computed when the model runs"]


def test_a_condition_that_a_caller_may_override_stays(check) -> None:
    check(InlineIf(), f"g (float[2] x, bool c = {{1}}) => (float[2] y) {{ y = If(c) <{BRANCHES}> }}")


def test_initializers_of_the_branch_move(check) -> None:
    check(
        InlineIf(),
        f"{HEAD} <bool c = {{1}}, float[2] w = {{5, 6}}> {{ z = Add(x, w) y = If(c)"
        " <then_branch = t () => (float[2] r) <float[2] k = {1, 2}> { q = Mul(z, k) r = Add(q, w) },"
        " else_branch = e () => (float[2] r) { r = Neg(z) }> }",
        f"{HEAD} <float[2] w = {{5, 6}}, float[2] k = {{1, 2}}> {{ z = Add(x, w) q = Mul(z, k) y = Add(q, w) }}",
    )


def test_outputs_that_need_an_identity(check) -> None:
    check(
        InlineIf(),
        "g (float[2] x) => (float[2] a, float[2] b, float[2] d) <bool c = {1}>"
        " { a, b, d = If(c) <then_branch = t () => (float[2] r, float[2] r, float[2] k) <float[2] k = {1, 2}>"
        " { r = Relu(x) }, else_branch = e () => (float[2] r, float[2] s, float[2] u)"
        " { r = Neg(x) s = Neg(x) u = Neg(x) }> }",
        "g (float[2] x) => (float[2] a, float[2] b, float[2] d) <float[2] k = {1, 2}>"
        " { a = Relu(x) b = Identity(a) d = Identity(k) }",
        runs=False,  # ONNX Runtime 1.31 leaves the second of two equal outputs of a branch unwritten
    )


def test_an_output_with_readers_and_an_unused_one(check) -> None:
    check(
        InlineIf(),
        "g (float[2] x) => (float[2] y, float[2] z) <bool c = {0}> { a, b, y = If(c)"
        " <then_branch = t () => (float[2] p, float[2] q, float[2] r) { p = Relu(x) q = Exp(x) r = Abs(x) },"
        " else_branch = e () => (float[2] p, float[2] q, float[2] r) { p = Neg(x) q = Neg(x) r = Sqrt(x) }>"
        " z = Add(a, y) }",
        "g (float[2] x) => (float[2] y, float[2] z) { p = Neg(x) q = Neg(x) y = Sqrt(x) z = Add(p, y) }",
    )


NESTED = """
g (float[2] x, bool d) => (float[2] y) <bool c = {1}> {
  y = If(d) <
    then_branch = t () => (float[2] r) {
      a = Exp(x)
      r = If(c) <
        then_branch = tt () => (float[2] s) { b = Neg(a) s = If(c) <
          then_branch = ttt () => (float[2] u) { u = Mul(a, b) },
          else_branch = tte () => (float[2] u) { u = Add(a, x) }> },
        else_branch = te () => (float[2] s) { s = Abs(a) }>
    },
    else_branch = e () => (float[2] r) { r = Relu(x) }>
}
"""


def test_inside_another_subgraph_and_nested(check) -> None:
    check(
        InlineIf(),
        NESTED,
        "g (float[2] x, bool d) => (float[2] y) { y = If(d) <then_branch = t () => (float[2] r)"
        " { a = Exp(x) b = Neg(a) r = Mul(a, b) }, else_branch = e () => (float[2] r) { r = Relu(x) }> }",
    )


def test_names_that_two_bodies_share(rewritten) -> None:
    text = (
        "g (float[2] x, bool d) => (float[2] y, float[2] z) <bool c = {1}> {"
        f" y = If(c) <{BRANCHES.replace('r = Relu', 'm = Abs(x) r = Relu')}>"
        " z = If(d) <then_branch = t () => (float[2] r) { m = Exp(x) r = Relu(m) },"
        " else_branch = e () => (float[2] r) { m = Tanh(x) r = Neg(m) }> }"
    )
    model, _ = rewritten(InlineIf(), text)
    names = [value.name for graph in model.graphs() for node in graph for value in node.outputs]
    assert names.count("m") == 2  # in the two branches that stay; none of them shadows an outer one
    assert len([node for node in model.graph if node.op_type == "Abs"]) == 1
    Session(model)


def test_values_that_only_a_dropped_branch_read_die(check) -> None:
    check(
        Fold(),
        f"{HEAD} <bool c = {{1}}> {{ big = Exp(x) y = If(c) <then_branch = t () => (float[2] r) {{ r = Relu(x) }},"
        " else_branch = e () => (float[2] r) { r = Neg(big) }> }",
        f"{HEAD} {{ y = Relu(x) }}",
    )


def test_a_squeeze_of_torch(check) -> None:
    check(
        Fold(),
        "g (float[N, 1, 4] x) => (float[A, B] y) <int64 i = {1}, int64 one = {1}, int64[1] a = {1}>"
        " { s = Shape(x) d = Gather(s, i) c = Equal(d, one) r = If(c)"
        " <then_branch = t () => (q) { q = Squeeze(x, a) }, else_branch = e () => (q) { q = Identity(x) }>"
        " y = Relu(r) }",
        "g (float[N, 1, 4] x) => (float[A, B] y) <int64[1] a = {1}> { r = Squeeze(x, a) y = Relu(r) }",
        infer=False,
    )


@pytest.mark.parametrize(("opset", "inlined"), [(13, False), (17, True)])
def test_a_sequence_that_is_given_through(rewritten, opset: int, inlined: bool) -> None:
    text = (
        "g (seq(float[2]) s) => (seq(float[2]) y) <bool c = {1}> { y = If(c)"
        " <then_branch = t () => (seq(float[2]) r, seq(float[2]) r) { r = SequenceErase(s) },"
        " else_branch = e () => (seq(float[2]) r) { r = SequenceErase(s) }> }"
    ).replace("(seq(float[2]) r, seq(float[2]) r)", "(seq(float[2]) r)")
    model, reasons = rewritten(InlineIf(), text, infer=False, opset=opset)
    assert [node.op_type for node in model.graph] == ["SequenceErase"]
    twice = text.replace("=> (seq(float[2]) y)", "=> (seq(float[2]) y, seq(float[2]) z)").replace("y = If", "y, z = If")
    twice = twice.replace("() => (seq(float[2]) r)", "() => (seq(float[2]) r, seq(float[2]) r)")
    model, reasons = rewritten(InlineIf(), twice, infer=False, opset=opset)
    assert bool(reasons) is not inlined
    assert ("Identity" in [node.op_type for node in model.graph]) is inlined


FUNCTION = """
<ir_version: 8, opset_import: ["": 17, "acme": 1]>
g (float[2] x) => (float[2] y) { y = acme.Choose(x) }
<domain: "acme", opset_import: ["": 17]>
Choose(v) => (w) {
  c = Constant<value = bool {1}>()
  w = If(c) <then_branch = t () => (float[2] r) <float[2] k = {1, 2}> { r = Mul(v, k) },
             else_branch = e () => (float[2] r) { r = Neg(v) }>
}
"""


def test_inside_a_local_function(applied) -> None:
    before, model = (ir.serde.deserialize_model(onnx.parser.parse_model(FUNCTION)) for _ in range(2))
    assert applied(InlineIf(), model)[0].rewrites == 1
    body = next(iter(model.functions.values()))
    assert [node.op_type for node in body] == ["Constant", "Mul"]
    x = np.array([3.0, -2.0], np.float32)
    mine, other = (Session(m, level="disable").run({"x": x})["y"] for m in (before, model))
    np.testing.assert_array_equal(mine, other)


SAME = {
    "equal nodes": ("r = Relu(x)", "r = Relu(x)", "y = Relu(x)"),
    "in another order": (
        "a = Exp(x) b = Neg(x) r = Sub(a, b)",
        "p = Neg(x) q = Exp(x) r = Sub(q, p)",
        "a = Exp(x) b = Neg(x) y = Sub(a, b)",
    ),
    "dead nodes, which go": ("s = Neg(x) t = Exp(s) r = Relu(x)", "r = Relu(x)", "y = Relu(x)"),
    "constants": (
        "m = Constant<value = float[2] {1, 2}>() r = Mul(x, m)",
        "l = Constant<value = float[2] {1, 2}>() r = Mul(x, l)",
        "m = Constant<value = float[2] {1, 2}>() y = Mul(x, m)",
    ),
    "branches inside": (
        "r = If(d) <then_branch = tt () => (u) { u = Exp(x) }, else_branch = te () => (u) { u = Neg(x) }>",
        "r = If(d) <then_branch = tt () => (v) { v = Exp(x) }, else_branch = te () => (v) { v = Neg(x) }>",
        "y = If(d) <then_branch = tt () => (u) { u = Exp(x) }, else_branch = te () => (u) { u = Neg(x) }>",
    ),
}
DIFFERENT = {
    "another operator": ("r = Relu(x)", "r = Neg(x)"),
    "another attribute": ("r = Elu<alpha=1.0>(x)", "r = Elu<alpha=2.0>(x)"),
    "the other way round": ("a = Exp(x) r = Sub(a, x)", "a = Exp(x) r = Sub(x, a)"),
    "the position of a missing input": ('r = Clip(x, "", k)', 'r = Clip(x, k, "")'),
    "random draws": ("r = RandomNormalLike(x)", "r = RandomNormalLike(x)"),
    "another domain, which may keep state": ("r = acme.Count(x)", "r = acme.Count(x)"),
}


def conditional(first: str, second: str) -> str:
    return (
        "g (float[2] x, bool c, bool d) => (float[2] y) <float k = {0.5}> { y = If(c)"
        f" <then_branch = t () => (r) {{ {first} }}, else_branch = e () => (r) {{ {second} }}> }}"
    )


@pytest.mark.parametrize(("first", "second", "after"), SAME.values(), ids=SAME)
def test_two_branches_that_compute_the_same(check, first: str, second: str, after: str) -> None:
    head = "g (float[2] x, bool c, bool d) => (float[2] y) <float k = {0.5}>"
    check(InlineIf(), conditional(first, second), f"{head} {{ {after} }}", infer=False)


@pytest.mark.parametrize(("first", "second"), DIFFERENT.values(), ids=DIFFERENT)
def test_two_branches_that_may_differ(check, first: str, second: str) -> None:
    runs = not any(word in first for word in ("Random", "acme"))
    check(InlineIf(), conditional(first, second), infer=False, runs=runs)


def test_initializers_of_two_branches(check) -> None:
    text = (
        f"{HEAD.replace('x)', 'x, bool c)', 1)} {{ y = If(c)"
        " <then_branch = t () => (r) <float[2] k = {1, 2}> { r = Mul(x, k) },"
        " else_branch = e () => (r) <float[2] k = {1, OTHER}> { r = Mul(x, k) }> }"
    )
    check(InlineIf(), text.replace("OTHER", "3"), infer=False)
    after = f"{HEAD.replace('x)', 'x, bool c)', 1)} <float[2] k = {{1, 2}}> {{ y = Mul(x, k) }}"
    check(InlineIf(), text.replace("OTHER", "2"), after, infer=False)


def test_branches_that_become_equal(check) -> None:
    nested = "r = If(d) <then_branch = tt () => (u) { u = Exp(x) }, else_branch = te () => (v) { v = Exp(x) }>"
    after = "g (float[2] x, bool c, bool d) => (float[2] y) <float k = {0.5}> { y = Exp(x) }"
    check(InlineIf(), conditional(nested, "r = Exp(x)"), after, infer=False)
