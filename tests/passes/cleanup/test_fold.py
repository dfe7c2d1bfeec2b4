"""fold: the four passes together."""

from __future__ import annotations

import numpy as np
import onnx.parser
import onnx_ir as ir
from onnxedge_passes.cleanup.fold import Fold

from onnxedge.api import Context, Session, refresh_scopes
from onnxedge.target import load_packaged_target

FUNCTION = """
<ir_version: 8, opset_import: ["": 17, "acme": 1]>
g (float[2] x) => (float[2] y) { y = acme.Scale<k=2.0>(x) }
<domain: "acme", opset_import: ["": 17]>
Scale<k>(v) => (w) {
  one = Constant<value_float=4.0>()
  root = Sqrt(one)
  factor = Constant<value_float: float = @k>()
  both = Mul(root, factor)
  i = Identity(v)
  w = Mul(i, both)
}
<domain: "acme", opset_import: ["": 17]>
Unused(v) => (w) { w = Neg(v) }
"""


def test_an_exported_shape_chain_goes(check) -> None:
    check(
        Fold(),
        "g (float[N, 8, 1, 1] x) => (float[N, 8] y, float[N, 8] z)"
        " { s = Shape(x) t = Shape(x) i = Constant<value_int=0>() a = Gather(s, i) b = Gather(t, i)"
        " k = Constant<value_ints=[0]>() ua = Unsqueeze(a, k) ub = Unsqueeze(b, k) m = Constant<value_ints=[-1]>()"
        " sa = Concat<axis=0>(ua, m) sb = Concat<axis=0>(ub, m) ra = Reshape(x, sa) rb = Reshape(x, sb)"
        " y = Relu(ra) z = Neg(rb) }",
        "g (float[N, 8, 1, 1] x) => (float[N, 8] y, float[N, 8] z) <int64[2] s = {0, -1}>"
        " { r = Reshape(x, s) y = Relu(r) z = Neg(r) }",
    )


def test_a_clean_graph_stays(check) -> None:
    check(Fold(), "g (float[N, 2] x) => (float[N, 2] y) <float[2] b = {1, 2}> { y = Add(x, b) }")


def test_reasons_are_those_of_the_graph_that_comes_out(check) -> None:
    """Each once, though some steps ran again after the last change and others did not."""
    reasons = check(
        Fold(),
        "g (float[2] x, bool c) => (float[2] y) <int64[2] a = {1, 2}, int64[2] z = {0, 1}>"
        " { i = Identity(x) k = Constant<value_floats=[1.0, 2.0]>() d = Div(a, z) f = Cast<to=1>(d)"
        " b = If(c) <then_branch = t () => (float[2] u) { u = Add(i, k) },"
        " else_branch = e () => (float[2] v) { v = Mul(i, k) }> y = Add(b, f) }",
        "g (float[2] x, bool c) => (float[2] y)"
        " <int64[2] a = {1, 2}, int64[2] z = {0, 1}, float[2] k = {1.0, 2.0}>"
        " { d = Div(a, z) f = Cast<to=1>(d)"
        " b = If(c) <then_branch = t () => (float[2] u) { u = Add(x, k) },"
        " else_branch = e () => (float[2] v) { v = Mul(x, k) }> y = Add(b, f) }",
        runs=False,
    )
    assert reasons == [
        "not folded: integer division by 0, or of the least integer by -1",
        "not inlined: its condition is computed when the model runs",
    ]


def test_inside_a_local_function() -> None:
    before, model = (ir.serde.deserialize_model(onnx.parser.parse_model(FUNCTION)) for _ in range(2))
    context = Context(load_packaged_target("onnxedge.targets", "generic"), None, original=before)  # type: ignore[arg-type]
    refresh_scopes(model)
    Fold().run(model, context)
    assert [key[1] for key in model.functions] == ["Scale"]
    body = next(iter(model.functions.values()))
    assert sorted(node.op_type for node in body) == ["Constant", "Constant", "Mul", "Mul"]
    x = np.array([1.0, -2.0], np.float32)
    mine, other = (Session(m, level="disable").run({"x": x})["y"] for m in (before, model))
    np.testing.assert_array_equal(mine, other)
