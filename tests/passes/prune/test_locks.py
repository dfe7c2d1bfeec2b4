"""What cannot be pruned, with its reason; and what looks like it but can."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from convolutions import quantized
from onnxedge_passes.prune import Prune
from onnxedge_passes.prune.compensation import masked_constants
from onnxedge_passes.prune.cut import Cut
from onnxedge_passes.prune.facts import Facts
from onnxedge_passes.prune.groups import find_groups
from onnxedge_passes.prune.surgery import apply, remnants
from onnxedge_passes.prune.trial import carry_out, masked
from sequences import bert, fused, vit
from test_groups import analysed, assert_equal, bare
from topologies import Shapes, build, images

from onnxedge.api import Context, Session, from_arrays
from onnxedge.target import load_packaged_target

CONV = {"w0": (8, 3, 1, 1), "w1": (4, 8, 1, 1)}
MATRICES = {"w0": (8, 8), "w1": (8, 4)}

LOCKED: dict[str, tuple[str, Shapes]] = {
    "reaches a graph output": ("g (float[N,3,8,8] x) => (float[N,8,8,8] y) { y = Conv(x, w0) }", {"w0": (8, 3, 1, 1)}),
    "Softmax over the channels": (
        "g (float[N,3,8,8] x) => (float[N,4,8,8] y) { a = Conv(x, w0) b = Softmax<axis=1>(a) y = Conv(b, w1) }",
        CONV,
    ),
    "ReduceMax over the channels": (
        "g (float[N,3,8,8] x) => (float[N,4,8,8] y) { a = Conv(x, w0) m = ReduceMax<axes=[1]>(a) b = Sub(a, m) "
        "y = Conv(b, w1) }",
        CONV,
    ),
    "LRN over the channels": (
        "g (float[N,3,8,8] x) => (float[N,4,8,8] y) { a = Conv(x, w0) b = LRN<size=3>(a) y = Conv(b, w1) }",
        CONV,
    ),
    "LayerNormalization over the channels": (
        "g (float[N,8] x) => (float[N,4] y) { a = MatMul(x, w0) b = LayerNormalization(a, w2) y = MatMul(b, w1) }",
        {**MATRICES, "w2": (8,)},
    ),
    "meets channels that are fixed": (
        "g (float[N,8,8,8] x) => (float[N,4,8,8] y) { a = Conv(x, w0) b = Add(a, x) y = Conv(b, w1) }",
        {"w0": (8, 8, 1, 1), "w1": (4, 8, 1, 1)},
    ),
    "TopK has no rule for channels": (
        "g (float[N,8] x) => (float[N,4] y) { a = MatMul(x, w0) k = Constant<value_ints=[3]>() b, i = TopK(a, k) "
        "y = MatMul(b, w1) }",
        {"w0": (8, 8), "w1": (3, 4)},
    ),
    "another output that is read": (
        "g (float[N,3,8,8] x) => (float[N,4,7,7] y, int64[N,8,7,7] i) { a = Conv(x, w0) "
        "b, i = MaxPool<kernel_shape=[2,2]>(a) y = Conv(b, w1) }",
        CONV,
    ),
    "read inside a subgraph": (
        "g (float[N,8] x) => (float[N,4] y) { a = MatMul(x, w0) n = Constant<value_int=2>() t = "
        "Constant<value=bool {1}>() "
        "b = Loop(n, t, x)<body = l (int64 i, bool c, float[N,8] p) => (bool d, float[N,8] q) { d = Identity(c) "
        "q = Add(p, a) }> e = Add(a, b) y = MatMul(e, w1) }",
        MATRICES,
    ),
    "computes with the number of channels": (
        "g (float[N,8] x) => (float[N,4] y) { a = MatMul(x, w0) s = Shape(a) i = Constant<value_int=1>() "
        "n = Gather(s, i) f = Cast<to=1>(n) b = Div(a, f) y = MatMul(b, w1) }",
        MATRICES,
    ),
    "summed in a product of two activations": (
        "g (float[N,6,8] x) => (float[N,6,4] y) { a = MatMul(x, w0) t = Transpose<perm=[0,2,1]>(a) b = MatMul(a, t) "
        "y = MatMul(b, w1) }",
        {"w0": (8, 8), "w1": (6, 4)},
    ),
    "grouped ConvTranspose": (
        "g (float[N,3,8,8] x) => (float[N,4,8,8] y) { a = Conv(x, w0) b = ConvTranspose<group=2>(a, w2) "
        "y = Conv(b, w1) }",
        {**CONV, "w2": (8, 4, 1, 1)},
    ),
    "GroupNormalization over the channels": (
        "g (float[N,3,8,8] x) => (float[N,4,8,8] y) { a = Conv(x, w0) "
        "b = GroupNormalization<num_groups=1>(a, w2, w3) y = Conv(b, w1) }",
        {**CONV, "w2": (8,), "w3": (8,)},
    ),
    "scale is computed at run time": (
        "g (float[N,3,8,8] x) => (float[N,4,8,8] y) { a = Conv(x, w0) m = ReduceMax<keepdims=0>(x) s = Abs(m) "
        "q = QuantizeLinear(a, s) d = DequantizeLinear(q, s) y = Conv(d, w1) }",
        CONV,
    ),
    "weight is computed at run time": (
        "g (float[N,8] x) => (float[N,4] y) { a = MatMul(x, w0) v = Mul(w2, w2) b = Gemm(a, v) y = MatMul(b, w1) }",
        {**MATRICES, "w2": (8, 8)},
    ),
}


@pytest.mark.parametrize("reason", LOCKED)
def test_locked_with_reason(reason: str) -> None:
    text, weights = LOCKED[reason]
    model = build(text, weights, opset=21 if "GroupNorm" in reason else 17)
    shape = {"[N,3,8,8] x": (3, 8, 8), "[N,8,8,8] x": (8, 8, 8), "[N,6,8] x": (6, 8)}
    groups = bare(model, images(next((size for key, size in shape.items() if key in text), (8,))))
    removed = np.zeros(len(groups.component), bool)
    for group in groups.free:
        removed[group.units[::2]] = True
    told = [r for _, _, r in groups.labels.locks] + [r for _, _, r in Cut(groups, removed).failures]
    assert any(reason in one for one in told)
    if not any(reason in r for _, _, r in Cut(groups, removed).failures):
        assert not any(reader.node.outputs[0].name == "a" for group in groups.free for reader in group.begins)


def test_overridable_weights_stay() -> None:
    text = "g (float[N,3,8,8] x) => (float[N,4,8,8] y) { a = Conv(x, w0) y = Conv(a, w1) }"
    assert bare(build(text, CONV, overridable=True), images((3, 8, 8))).free == []


def test_unknown_domain_is_a_wall() -> None:
    text = "g (float[N,3,8,8] x) => (float[N,4,8,8] y) { a = Conv(x, w0) b = com.microsoft.Gelu(a) y = Conv(b, w1) }"
    model = build(text, CONV, domains=', "com.microsoft" : 1')
    assert [len(group.units) for group in bare(model, images((3, 8, 8))).free] == [8]
    other = build(text.replace("Gelu(a)", "SampleOp(a)"), CONV, domains=', "com.microsoft" : 1')
    groups = bare(other, images((3, 8, 8)))
    assert groups.free == []
    assert any("no rule" in group.reason for group in groups.locked)


def test_a_local_function_is_a_wall() -> None:
    text = """g (float[N,3,8,8] x) => (float[N,4,8,8] y) {
      a = Conv(x, w0) b = local.twice(a) c = Relu(b) y = Conv(c, w1) }
    <domain: "local", opset_import: ["" : 17]> twice (p) => (q) { q = Add(p, p) }"""
    model = build(text, CONV, domains=', "local" : 1')
    groups = bare(model, images((3, 8, 8)))
    assert groups.free == []
    assert any("twice has no rule" in group.reason for group in groups.locked)


def test_a_bias_of_each_head_is_cut_and_one_computed_at_run_time_locks() -> None:
    model = fused()
    assert {len(group.units) for group in bare(model, images((6, 16))).free} == {4}
    text = "g (float[N,6,16] x, float[48] bias) => (float[N,6,16] y) { q = MatMul(x, wq) k = MatMul(x, wk) "
    text += "v = MatMul(x, wv) a = com.microsoft.MultiHeadAttention<num_heads=4>(q, k, v, bias) y = MatMul(a, wo) }"
    weights = {"wq": (16, 16), "wk": (16, 16), "wv": (16, 16), "wo": (16, 16)}
    other = build(text, weights, domains=', "com.microsoft" : 1')
    groups = find_groups(Facts(other, {"x": images((6, 16), 2), "bias": np.ones(48, np.float32)}))
    assert groups.free == []
    assert any("for each head" in reason for _, _, reason in groups.labels.locks)


@pytest.mark.parametrize("make", [bert, vit])
def test_all_heads_go_with_their_block(make: Callable[[], ir.Model]) -> None:
    """No Reshape can follow a cut that leaves no head; none needs to, since it goes too."""
    model = make()
    shape = (6, 16) if make is bert else (3, 8, 8)
    groups = analysed(model, images(shape))
    left = remnants(groups)
    removed = np.zeros(len(groups.component), bool)
    whole = [number for number, remnant in enumerate(left) if remnant is not None]
    assert whole
    for number in whole:
        removed[groups.free[number].units] = True
    constants = masked_constants(groups, removed)
    feed = {"x": images(shape, 3, 2)}
    wanted = Session(masked(model, constants)).run(feed)
    carry_out(groups, left, removed, constants)
    found = Session(model).run(feed)
    for output, array in wanted.items():
        assert_equal(found[output], array)
    assert not any(node.op_type == "Softmax" for node in model.graph)


def test_a_shape_that_several_share_is_changed_for_those_that_are_cut() -> None:
    """One Concat gives both the shape of the heads; the second is locked by a graph output."""
    text = """g (float[N,6,16] x) => (float[N,6,16] y, float[N,6,4,4] z) {
      s = Shape<start=0, end=2>(x)  heads = Concat<axis=0>(s, four, four)
      a = MatMul(x, w0)  b = Reshape(a, heads)  e = Transpose<perm=[0,1,3,2]>(b)
      c = Softmax<axis=-2>(e)  t = Transpose<perm=[0,1,3,2]>(c)  d = Reshape(t, flat)  y = MatMul(d, w1)
      u = MatMul(x, w2)  z = Reshape(u, heads)
    }"""
    weights = {"w0": (16, 16), "w1": (16, 16), "w2": (16, 16)}
    model = build(text, weights, {"four": [4], "flat": [0, 0, -1]})
    groups = analysed(model, images((6, 16)))
    assert [(len(group.units), group.channels) for group in groups.free] == [(4, 4)]
    removed = np.zeros(len(groups.component), bool)
    removed[groups.free[0].units[:1]] = True
    constants = masked_constants(groups, removed)
    feed = {"x": images((6, 16), 3, 1)}
    wanted = Session(masked(model, constants)).run(feed)
    apply(Cut(groups, removed), constants)
    found = Session(model).run(feed)
    for output, array in wanted.items():
        assert_equal(found[output], array)


def test_stored_weights_are_stored_again() -> None:
    """A pruned Q/DQ model holds int8 weights, and its refitted ones are in range."""
    model = quantized()
    data = from_arrays(Session(model).inputs, {"x": images((3, 8, 8))})
    context = Context(load_packaged_target("onnxedge.targets", "ort-cpu"), data, original=model.clone(), seed=0)
    context.begin("prune")
    before = Session(model).run({"x": images((3, 8, 8), 3, 4)})["y"]
    result = Prune(ratio=0.75, multiple=1).run(model, context)
    assert result.rewrites
    stored = [node for node in model.graph if node.op_type == "DequantizeLinear" and node.inputs[0].is_initializer()]
    assert [node.inputs[0].const_value.dtype for node in stored] == [ir.DataType.INT8] * 2
    found = Session(model).run({"x": images((3, 8, 8), 3, 4)})["y"]
    assert float(np.square(found - before).mean()) < 0.2 * float(np.square(before).mean())
