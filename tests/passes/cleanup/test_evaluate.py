"""Folding stays within its bounds, and what breaks the runtime is left to it."""

from __future__ import annotations

import sys

import numpy as np
import onnx.numpy_helper
import onnx.parser
import onnx_ir as ir
import pytest
from onnxedge_passes.cleanup.constants import fold_constants
from onnxedge_passes.cleanup.constants.fold_constants import FoldConstants
from onnxedge_passes.cleanup.fold import Fold

import onnxedge
from onnxedge.api import graphs_of, weight_bytes

HEAD = "g (float[2] x) => (float[M] y)"
EVEN = "g (int64[1] x) => (int64[1] y)"


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def test_what_is_common_needs_no_process(check, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise AssertionError("a process was asked for")

    monkeypatch.setattr(fold_constants, "Isolated", refused)
    check(
        FoldConstants(),
        f"{EVEN} <int64[2] a = {{7, -8}}, int64[2] b = {{2, -3}}, int64 i = {{1}}, int64[1] z = {{0}}>"
        " { c = Div(a, b) d = Gather(c, i) e = Unsqueeze(d, z) f = Cast<to=7>(e) p = ReduceProd<keepdims=1>(c)"
        " q = Sub(f, p) y = Add(x, q) }",
        f"{EVEN} <int64[1] q = {{-4}}> {{ y = Add(x, q) }}",
    )


def test_values_inside_of_a_batch_that_others_read(check) -> None:
    """Of nodes that run together only what others read is taken out, and everything where nobody reads any of it."""
    constants = "float[2] w = {1, 2}, float[2] v = {3, 4}"
    check(
        FoldConstants(),
        f"g (float[2] x) => (float[2] y, float[2] z) <{constants}>"
        " { a = Add(w, v) b = Mul(a, a) c = Neg(b) y = Add(x, c) z = Mul(x, a) }",
        "g (float[2] x) => (float[2] y, float[2] z) <float[2] a = {4, 6}, float[2] c = {-16, -36}>"
        " { y = Add(x, c) z = Mul(x, a) }",
    )
    check(FoldConstants(), f"{HEAD} <{constants}> {{ a = Add(w, v) y = Relu(x) }}", f"{HEAD} {{ y = Relu(x) }}")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it may not die")
def test_what_kills_the_runtime_is_found_among_others(check) -> None:
    reasons = check(
        FoldConstants(),
        "g (float[2] x) => (float[2] y, int64[A, B, C] z) <int64[3] s = {4, 0, 1}, float[2, 2] w = {1, 2, 3, 4},"
        " float[2] v = {1, 1}, int64 k = {1}> { e = ConstantOfShape<value = int64[1] {0}>(s) u = Unique<axis=0>(e)"
        " m = MatMul(w, v) n = MatMul(w, m) o = MatMul(w, n) y = Add(x, o) z = Mul(u, k) }",
        "g (float[2] x) => (float[2] y, int64[A, B, C] z) <int64[4, 0, 1] e = {}, float[2] o = {91, 199},"
        " int64 k = {1}> { u = Unique<axis=0>(e) y = Add(x, o) z = Mul(u, k) }",
        runs=False,
    )
    assert reasons == ["not folded: the runtime crashes on it (SIGABRT)"]


def test_the_least_integer_by_minus_one(check) -> None:
    text = "<int64[1] a = {VALUE}, int64[1] b = {-1}> { c = Div(a, b) y = Add(x, c) }"
    reasons = check(FoldConstants(), f"{EVEN} {text.replace('VALUE', str(-(2**63)))}", runs=False)
    assert reasons == ["not folded: integer division by 0, or of the least integer by -1"]
    check(FoldConstants(), f"{EVEN} {text.replace('VALUE', '5')}", f"{EVEN} <int64[1] c = {{-5}}> {{ y = Add(x, c) }}")


@pytest.mark.skipif(sys.platform != "linux", reason="no limit of memory elsewhere")
def test_what_takes_too_much_memory(check) -> None:
    text = "g (float[2] x) => (float[2, 2] y) <float[2, 2] w = {1, 2, 3, 4}> { m = MatMul(w, w) y = Add(x, m) }"
    (reason, *_) = check(FoldConstants(max_memory_bytes=1), text)
    assert "memory" in reason or "crash" in reason


def test_many_small_growths_add_up(rewritten) -> None:
    made = " ".join(f"c{i} = Expand(a, s) d{i} = Mul(c{i}, b{i})" for i in range(50))
    weights = ", ".join(f"float b{i} = {{{i}}}" for i in range(50))
    text = (
        f"g (float[2] x) => (float[M] y) <float a = {{1}}, int64[1] s = {{100}}, {weights}>"
        f" {{ {made} y = Concat<axis=0>(x, {', '.join(f'd{i}' for i in range(50))}) }}"
    )
    model, reasons = rewritten(FoldConstants(), text)
    assert weight_bytes(model) < 6000
    assert set(reasons) == {"not folded: it would add more bytes than max_growth allows"}


def test_weights_that_are_filled_stay_small(rewritten) -> None:
    """light_vgg19 of the ONNX model zoo: its weights are ConstantOfShape, 513 MB when folded."""
    text = (
        "g (float[1, 4096] x) => (float[1, 1000] y) <int64[2] s = {1000, 4096}, int64[2] t = {1, 0}>"
        " { w = ConstantOfShape<value = float[1] {0.5}>(s) v = Transpose<perm=[1, 0]>(w) y = MatMul(x, v) }"
    )
    model, reasons = rewritten(Fold(), text)
    assert "ConstantOfShape" in operators(model)
    assert weight_bytes(model) < 100
    assert reasons


def test_a_large_constant_of_which_only_the_shape_is_read(check) -> None:
    check(
        Fold(),
        f"{EVEN} <int64[1] s = {{1000000000}}> {{ c = ConstantOfShape(s) d = Shape(c) y = Add(x, d) }}",
        f"{EVEN} <int64[1] d = {{1000000000}}> {{ y = Add(x, d) }}",
    )


def test_constants_of_the_graph_outside(check) -> None:
    check(
        FoldConstants(),
        "g (float[2] x, bool c) => (float[2] y) <float[2] a = {1, 4}> { y = If(c)"
        " <then_branch = t () => (float[2] r) { s = Sqrt(a) r = Mul(x, s) },"
        " else_branch = e () => (float[2] r) { r = Neg(x) }> }",
        "g (float[2] x, bool c) => (float[2] y) { y = If(c) <then_branch = t () => (float[2] r)"
        " <float[2] s = {1, 2}> { r = Mul(x, s) }, else_branch = e () => (float[2] r) { r = Neg(x) }> }",
    )


def test_an_exported_constant_stays_a_node(check) -> None:
    check(
        FoldConstants(),
        "g (float[2] x) => (float[2] y, float[2] z) <float[2] a = {1, 4}> { b = Sqrt(a) z = Neg(b) y = Add(x, b) }",
        "g (float[2] x) => (float[2] y, float[2] z) <float[2] b = {1, 2}> { z = Neg(b) y = Add(x, b) }",
    )


def test_constants_that_are_no_dense_tensors_stay(check) -> None:
    check(
        FoldConstants(),
        'g (float[2] x) => (string[2] y, string z) { y = Constant<value_strings=["a", "b"]>()'
        ' w = Constant<value_string="c">() z = Identity(w) }',
        runs=False,
    )


def test_operators_on_text_and_loops_over_constants_do_not_run_here(check) -> None:
    reasons = check(
        FoldConstants(),
        "g (float[3] x) => (float[3] y, float z) <int64[2] a = {0, 1}, float f = {1}, int64 n = {100000000}>"
        ' { t = TfIdfVectorizer<max_gram_length=1, max_skip_count=0, min_gram_length=1, mode="TF", ngram_counts=[0],'
        " ngram_indexes=[0, 1, 2], pool_int64s=[0, 1, 2]>(a) y = Add(x, t)"
        " l = Loop(n, , f) <body = b (int64 i, bool c, float v) => (bool c, float w) { w = Neg(v) }> z = Neg(l) }",
        runs=False,
    )
    assert reasons == [
        "not folded: operators on text are left to the runtime",
        "not folded: constants that a subgraph computes are left to the runtime",
    ]


RANDOM = """
<ir_version: 8, opset_import: ["": 17, "acme": 1]>
g (float[2] x, bool c) => (float[2] y, float[2] z) {
  s = Constant<value = float[2] {0.5, 0.5}>()
  y = acme.Noise(x)
  z = If(c) <then_branch = t () => (float[2] r) { b = Bernoulli(s) r = Add(x, b) },
             else_branch = e () => (float[2] r) { n = RandomUniformLike(s) r = Add(x, n) }>
}
<domain: "acme", opset_import: ["": 17]>
Noise(v) => (w) {
  s = Constant<value = float[2] {0.5, 0.5}>() t = Constant<value = bool {1}>() r = Constant<value_float=0.5>()
  d = Dropout(s, r, t) n = RandomNormalLike(s) m = Add(n, d) w = Add(v, m)
}
"""


def test_random_operators_stay_everywhere(applied) -> None:
    model = ir.serde.deserialize_model(onnx.parser.parse_model(RANDOM))
    applied(Fold(), model)
    left = {node.op_type for graph in graphs_of(model) for node in graph}
    assert {"Bernoulli", "RandomUniformLike", "RandomNormalLike", "Dropout"} <= left


@pytest.mark.parametrize("dtype", ["int32", "int64", "float"])
def test_overflow_as_the_runtime_has_it(check, dtype: str) -> None:
    most, twice = {"int32": (2**31 - 1, -2), "int64": (2**63 - 1, -2), "float": ("3e38", "inf")}[dtype]
    head = f"g ({dtype}[1] x) => ({dtype}[1] y)"
    before = f"{head} <{dtype}[1] a = {{{most}}}> {{ b = Add(a, a) y = Mul(x, b) }}"
    check(FoldConstants(), before, f"{head} <{dtype}[1] b = {{{twice}}}> {{ y = Mul(x, b) }}")


@pytest.mark.parametrize("operator", ["MatMul(x, t)", "Gemm(x, t)"])
def test_a_weight_that_folding_lets_the_runtime_pack(operator: str) -> None:
    """Packed weights are summed in another order, but for what the runtime folds itself: that is no broken promise."""
    head = '<ir_version: 8, opset_import: ["": 17]> g (float[1, 512] x) => (float[1, 64] y)'
    proto = onnx.parser.parse_model(f"{head} {{ t = Transpose(w) y = {operator} }}")
    weight = np.random.default_rng(0).standard_normal((64, 512)).astype(np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    (record,) = onnxedge.optimize(proto, "fold").report.passes
    assert (record.status, record.verified) == ("applied", "numeric")


def test_a_weight_that_is_cut_up_and_put_together(check) -> None:
    """As PyTorch reorders the gates of an LSTM; each Slice alone would add a quarter of the model."""
    head = "g (float[1, 8] x) => (float[512, 8] y)"
    rows = " ".join(f"s{i} = Slice(w, p{i}, p{i + 1}, z)" for i in range(4))
    ends = ", ".join(f"int64[1] p{i} = {{{128 * i}}}" for i in range(5))
    numbers = ", ".join(str(i % 7) for i in range(8 * 512))
    turned = ", ".join(str(i % 7) for part in (3, 0, 2, 1) for i in range(1024 * part, 1024 * (part + 1)))
    check(
        FoldConstants(),
        f"{head} <float[512, 8] w = {{{numbers}}}, int64[1] z = {{0}}, {ends}>"
        f" {{ {rows} v = Concat<axis=0>(s3, s0, s2, s1) y = Mul(x, v) }}",
        f"{head} <float[512, 8] v = {{{turned}}}> {{ y = Mul(x, v) }}",
    )
