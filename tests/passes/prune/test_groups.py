"""What is coupled: the units of a group, and that a cut computes what the masked model does, on live weights."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnxedge_passes.prune.compensation import masked_constants
from onnxedge_passes.prune.cut import Cut
from onnxedge_passes.prune.facts import Facts
from onnxedge_passes.prune.groups import Groups, find_groups
from onnxedge_passes.prune.prune import masked
from onnxedge_passes.prune.surgery import apply
from topologies import (
    ATTENTION,
    ATTENTION_WEIGHTS,
    DENSE,
    DENSE_WEIGHTS,
    MOBILE,
    MOBILE_WEIGHTS,
    RESIDUAL,
    RESIDUAL_WEIGHTS,
    RESNEXT,
    RESNEXT_WEIGHTS,
    SHARED,
    SHARED_WEIGHTS,
    SHUFFLE,
    SHUFFLE_WEIGHTS,
    UNET,
    UNET_WEIGHTS,
    ZERO_PAD,
    ZERO_PAD_WEIGHTS,
    build,
    images,
)

from onnxedge.api import Array, Session, refresh_scopes

PADS = {"starts": [0, 0], "ends": [99, 99], "axes": [2, 3], "steps": [2, 2], "pads": [0, 4, 0, 0, 0, 4, 0, 0]}


def zero_pad() -> ir.Model:
    return build(ZERO_PAD, ZERO_PAD_WEIGHTS, PADS)


def shuffle() -> ir.Model:
    return build(SHUFFLE, SHUFFLE_WEIGHTS, {"split": [0, 3, 6, 8, 8], "join": [0, 18, 8, 8]})


def unet() -> ir.Model:
    return build(UNET, UNET_WEIGHTS, {"sizes": [6, 6], "scales": np.array([1, 1, 2, 2], np.float32)})


def attention() -> ir.Model:
    return build(ATTENTION, ATTENTION_WEIGHTS, {"heads": [0, 0, 4, 4], "flat": [0, 0, 16]})


def flattened() -> ir.Model:
    """Return attention as ``flatten-projections`` leaves it."""
    text = ATTENTION.replace("q0 = MatMul(x, wq)", "r = Reshape(x, rows)").replace("Add(q0, bq)", "Gemm(r, wq, bq)")
    for letter in "kv":
        text = text.replace(f"MatMul(x, w{letter})", f"Gemm(r, w{letter}, b{letter})")
    weights = {**ATTENTION_WEIGHTS, "bk": (16,), "bv": (16,)}
    return build(text, weights, {"rows": [-1, 16], "heads": [-1, 6, 4, 4], "flat": [0, 0, 16]})


FUSED_QKV = """g (float[N,6,16] x) => (float[N,6,16] y) {
  a = MatMul(x, w0)
  q0, k0, v0 = Split<axis=2>(a, thirds)
  s = Shape(x)
  i0 = Constant<value_int=0>()
  i1 = Constant<value_int=1>()
  n = Gather(s, i0)
  t = Gather(s, i1)
  ax = Constant<value_ints=[0]>()
  n1 = Unsqueeze(n, ax)
  t1 = Unsqueeze(t, ax)
  hd = Constant<value_ints=[4,4]>()
  any = Constant<value_ints=[-1]>()
  heads = Concat<axis=0>(n1, t1, any, four)
  flat = Concat<axis=0>(n1, t1, any)
  q1 = Reshape(q0, heads)
  k1 = Reshape(k0, heads)
  v1 = Reshape(v0, heads)
  q = Transpose<perm=[0,2,1,3]>(q1)
  k = Transpose<perm=[0,2,3,1]>(k1)
  v = Transpose<perm=[0,2,1,3]>(v1)
  u = MatMul(q, k)
  p = Softmax<axis=-1>(u)
  o = MatMul(p, v)
  o2 = Transpose<perm=[0,2,1,3]>(o)
  o3 = Reshape(o2, flat)
  b = MatMul(o3, w1)
  y = Add(b, x)
}"""

PIXELS = """g (float[N,3,8,8] x) => (float[N,2,16,16] y) {
  a = Conv(x, w0, b0)
  b = Relu(a)
  c = DepthToSpace<blocksize=2>(b)
  d = Gather<axis=1>(c, order)
  e = Conv(d, w1, b1)
  f = Relu(e)
  h = SpaceToDepth<blocksize=2>(f)
  i = DepthToSpace<blocksize=2, mode="CRD">(h)
  y = Conv(i, w2)
}"""

OLD = """g (float[N,3,8,8] x) => (float[N,4,8,8] y) {
  a = Conv(x, w0, b0)
  b = Relu(a)
  c, d = Split<axis=1>(b)
  e = Slice<axes=[1], starts=[0], ends=[3]>(c)
  f = Conv(e, w1, b1)
  h = Pad<pads=[0,2,0,0,0,1,0,0]>(f)
  i = Add(h, d)
  y = Conv(i, w2, b2)
}"""


def fused_qkv() -> ir.Model:
    return build(FUSED_QKV, {"w0": (16, 48), "w1": (16, 16)}, {"thirds": [16, 16, 16], "four": [4]})


def pixels() -> ir.Model:
    weights = {"w0": (16, 3, 1, 1), "b0": (16,), "w1": (8, 4, 1, 1), "b1": (8,), "w2": (2, 8, 1, 1)}
    return build(PIXELS, weights, {"order": [3, 1, 0, 2]})


def old() -> ir.Model:
    weights = {"w0": (16, 3, 1, 1), "b0": (16,), "w1": (5, 3, 1, 1), "b1": (5,), "w2": (4, 8, 1, 1), "b2": (4,)}
    return build(OLD, weights, opset=9)


MODELS = {
    "residual": (lambda: build(RESIDUAL, RESIDUAL_WEIGHTS), (3, 8, 8), {(8, 1), (12, 1), (16, 1)}),
    "zero_pad": (zero_pad, (3, 8, 8), {(8, 1), (16, 1)}),
    "dense": (lambda: build(DENSE, DENSE_WEIGHTS), (3, 8, 8), {(8, 1), (6, 1), (10, 1)}),
    "mobile": (lambda: build(MOBILE, MOBILE_WEIGHTS), (3, 8, 8), {(8, 1), (24, 1)}),
    "resnext": (lambda: build(RESNEXT, RESNEXT_WEIGHTS), (3, 8, 8), {(4, 4)}),
    "shuffle": (shuffle, (3, 8, 8), {(8, 3), (2, 9), (8, 3)}),
    "unet": (unet, (3, 8, 8), {(8, 1), (16, 1), (6, 1), (6, 2)}),
    "attention": (attention, (6, 16), {(4, 4), (32, 1)}),
    "flattened": (flattened, (6, 16), {(4, 4), (32, 1)}),
    "fused_qkv": (fused_qkv, (6, 16), {(4, 12)}),
    "pixels": (pixels, (3, 8, 8), {(4, 4), (2, 4)}),
    "old": (old, (3, 8, 8), {(3, 1), (5, 1)}),
    "shared": (lambda: build(SHARED, SHARED_WEIGHTS), (4, 8, 8), {(8, 1)}),
}


def analysed(model: ir.Model, sample: Array) -> Groups:
    refresh_scopes(model)
    return find_groups(Facts(model, {"x": sample[:2]}))


def some_units(groups: Groups, seed: int) -> Array:
    """Return a random removal that leaves at least one unit of each group."""
    rng = np.random.default_rng(seed)
    removed = np.zeros(len(groups.component), bool)
    for group in groups.free:
        count = rng.integers(1, len(group.units))
        removed[rng.choice(group.units, count, replace=False)] = True
    return removed


@pytest.mark.parametrize("name", MODELS)
def test_units_of_each_topology(name: str) -> None:
    make, shape, expected = MODELS[name]
    groups = analysed(make(), images(shape))
    assert {(len(group.units), group.channels) for group in groups.free} == expected


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", MODELS)
def test_cut_equals_masked(name: str, seed: int) -> None:
    make, shape, _ = MODELS[name]
    model = make()
    groups = analysed(model, images(shape))
    removed = some_units(groups, seed)
    cut = Cut(groups, removed)
    assert cut.failures == []
    constants = masked_constants(groups, removed)
    feed = {"x": images(shape, 3, seed)}
    wanted = Session(masked(model, constants)).run(feed)
    apply(cut, constants)
    found = Session(model).run(feed)
    for output, array in wanted.items():
        np.testing.assert_allclose(found[output], array, rtol=1e-4, atol=1e-5)
    weights = {v.name: v.const_value.size for v in model.graph.initializers.values() if v.const_value is not None}
    assert sum(weights.values()) < sum(v.const_value.size for v in make().graph.initializers.values() if v.const_value)


def test_shapes_of_inner_values_follow_and_never_lie() -> None:
    """A size that has a name (four heads of N samples as ``4*N``) has none that is known behind the cut."""
    model = attention()
    inner = {value.name: value for node in model.graph for value in node.outputs}
    inner["q2"].shape, inner["k2"].shape = ir.Shape(["N", 6, 4, 4]), ir.Shape(["N", 6, "heads", 4])
    groups = analysed(model, images((6, 16)))
    removed = np.zeros(len(groups.component), bool)
    removed[next(group for group in groups.free if group.channels == 4).units[:1]] = True
    apply(Cut(groups, removed), masked_constants(groups, removed))
    assert inner["q2"].shape == ir.Shape(["N", 6, 3, 4])
    assert inner["k2"].shape == ir.Shape(["N", 6, None, 4])


def test_shared_weight_stays_shared() -> None:
    model = build(SHARED, SHARED_WEIGHTS)
    groups = analysed(model, images((4, 8, 8)))
    removed = some_units(groups, 0)
    apply(Cut(groups, removed), masked_constants(groups, removed))
    heads = [node for node in model.graph if node.op_type == "Conv"]
    assert heads[0].inputs[1] is heads[1].inputs[1]
    assert heads[2].inputs[1] is heads[3].inputs[1]


LOCKED = {
    "graph output": ("g (float[N,3,8,8] x) => (float[N,8,8,8] y) { y = Conv(x, w0) }", {"w0": (8, 3, 1, 1)}),
    "Softmax": (
        "g (float[N,3,8,8] x) => (float[N,4,8,8] y) { a = Conv(x, w0) b = Softmax<axis=1>(a) y = Conv(b, w1) }",
        {"w0": (8, 3, 1, 1), "w1": (4, 8, 1, 1)},
    ),
    "LayerNormalization": (
        "g (float[N,8] x) => (float[N,4] y) { a = MatMul(x, w0) b = LayerNormalization(a, w2) y = MatMul(b, w1) }",
        {"w0": (8, 8), "w1": (8, 4), "w2": (8,)},
    ),
    "fixed": (
        "g (float[N,8,8,8] x) => (float[N,4,8,8] y) { a = Conv(x, w0) b = Add(a, x) y = Conv(b, w1) }",
        {"w0": (8, 8, 1, 1), "w1": (4, 8, 1, 1)},
    ),
    "TopK": (
        "g (float[N,8] x) => (float[N,4] y) { a = MatMul(x, w0) k = Constant<value_ints=[3]>() b, i = TopK(a, k) "
        "y = MatMul(b, w1) }",
        {"w0": (8, 8), "w1": (3, 4)},
    ),
    "subgraph": (
        "g (float[N,8] x) => (float[N,4] y) { a = MatMul(x, w0) s = ReduceSum<keepdims=0>(x) "
        "z = Constant<value_float=0.0>() c = Greater(s, z) "
        "b = If(c)<then_branch = t () => (float[N,8] p) { p = Relu(a) }, "
        "else_branch = e () => (float[N,8] q) { q = Neg(a) }> y = MatMul(a, w1) d = MatMul(b, w1) }",
        {"w0": (8, 8), "w1": (8, 4)},
    ),
    "number of channels": (
        "g (float[N,8] x) => (float[N,4] y) { a = MatMul(x, w0) s = Shape(a) i = Constant<value_int=1>() "
        "n = Gather(s, i) f = Cast<to=1>(n) b = Div(a, f) y = MatMul(b, w1) }",
        {"w0": (8, 8), "w1": (8, 4)},
    ),
}


@pytest.mark.parametrize("reason", LOCKED)
def test_locked_with_reason(reason: str) -> None:
    text, weights = LOCKED[reason]
    model = build(text, weights)
    shape = (3, 8, 8) if "[N,3,8,8]" in text else (8, 8, 8) if "[N,8,8,8] x" in text else (8,)
    groups = analysed(model, images(shape))
    removed = np.zeros(len(groups.component), bool)
    for group in groups.free:
        removed[group.units[::2]] = True
    reasons = [group.reason for group in groups.locked if group.begins] + [
        r for _, _, r in Cut(groups, removed).failures
    ]
    assert any(reason in told for told in reasons)


def test_overridable_weights_stay() -> None:
    model = build(DENSE, DENSE_WEIGHTS, overridable=True)
    assert analysed(model, images((3, 8, 8))).free == []


def test_unknown_domain_is_a_wall() -> None:
    text = "g (float[N,3,8,8] x) => (float[N,4,8,8] y) { a = Conv(x, w0) b = com.microsoft.Gelu(a) y = Conv(b, w1) }"
    model = build(text, {"w0": (8, 3, 1, 1), "w1": (4, 8, 1, 1)}, domains=', "com.microsoft" : 1')
    assert [len(group.units) for group in analysed(model, images((3, 8, 8))).free] == [8]
    weights = {"w0": (8, 3, 1, 1), "w1": (4, 8, 1, 1)}
    other = build(text.replace("Gelu(a)", "SampleOp(a)"), weights, domains=', "com.microsoft" : 1')
    groups = analysed(other, images((3, 8, 8)))
    assert groups.free == []
    assert any("no rule" in group.reason for group in groups.locked)
