"""What is coupled: the units of a group, and that a cut computes what the masked model does, on live weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir
import pytest
from branching import BRANCHING
from convolutions import CONVOLUTIONS
from onnxedge_passes.prune import Prune
from onnxedge_passes.prune.branches import close_branches
from onnxedge_passes.prune.compensation import masked_constants
from onnxedge_passes.prune.cut import Cut
from onnxedge_passes.prune.facts import Facts
from onnxedge_passes.prune.groups import Groups, find_groups
from onnxedge_passes.prune.prune import analyse, prepare
from onnxedge_passes.prune.surgery import apply
from onnxedge_passes.prune.trial import masked
from sequences import SEQUENCES
from sharing import HELD, SHARING, held
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

from onnxedge.api import Array, Context, Feed, Session, from_arrays, refresh_scopes, weight_bytes
from onnxedge.target import load_packaged_target

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


MODELS: dict[str, tuple[Callable[[], ir.Model], tuple[int, ...], set[tuple[int, int]]]] = {
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
    **CONVOLUTIONS,
    **SEQUENCES,
    **BRANCHING,
    **SHARING,
}


def bare(model: ir.Model, sample: Array) -> Groups:
    """Return the groups of a model as it stands."""
    refresh_scopes(model)
    return find_groups(Facts(model, {"x": sample[:2]}))


def analysed(model: ir.Model, sample: Array) -> Groups:
    """Return the groups as the pass finds them, with BatchNormalization, Einsum and stored weights seen through."""
    calibration = from_arrays(Session(model).inputs, {"x": sample})
    context = Context(load_packaged_target("onnxedge.targets", "ort-cpu"), calibration, original=model.clone(), seed=0)
    context.begin("prune")
    refresh_scopes(model)
    prepare(model, context)
    return analyse(model, context)


@pytest.mark.parametrize("name", HELD)
def test_what_has_two_roles_is_held(name: str) -> None:
    model, samples, reason = held(name)
    groups = bare(model, samples)
    assert groups.free == []
    assert any(reason in told for _, _, told in groups.labels.locks)


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
    before = weight_bytes(model)
    samples = images(shape, 3, seed)
    assert_cut_equals_masked(groups, some_units(groups, seed), [{"x": sign * samples} for sign in (1, -1)])
    assert weight_bytes(model) < before


def assert_cut_equals_masked(groups: Groups, removed: Array, feeds: Sequence[Feed]) -> None:
    """Cut the model and compare it with the original in which the weights that read what goes are 0."""
    model, cut = groups.labels.facts.model, Cut(groups, removed)
    assert cut.failures == []
    constants = masked_constants(groups, removed)
    wanted = [Session(masked(model, constants), level="disable").run(feed) for feed in feeds]
    apply(cut, constants)
    close_branches(model)
    for feed, outputs in zip(feeds, wanted, strict=True):
        found = Session(model, level="disable").run(feed)
        for name, array in outputs.items():
            assert_equal(found[name], array)


@pytest.mark.parametrize("name", MODELS)
def test_dead_channels_go_and_nothing_else(name: str) -> None:
    """Half of every group is dead: no output changes, and all that can be saved is."""
    make, shape, _ = MODELS[name]
    model = make()
    groups = analysed(model, images(shape))
    dead = [group.units[::2][: len(group.units) - 1] for group in groups.free]
    kill(groups, np.concatenate(dead))
    full = macs_at(groups, [len(group.units) for group in groups.free])
    alive = macs_at(groups, [len(group.units) - len(gone) for group, gone in zip(groups.free, dead, strict=True)])
    wanted = both(model, shape, 5)
    close_branches(model)
    context = Context(
        load_packaged_target("onnxedge.targets", "ort-cpu"),
        from_arrays(Session(model).inputs, {"x": images(shape)}),
        original=model.clone(),
        seed=0,
    )
    context.begin("prune")
    share = (alive + groups.other_macs) / (full + groups.other_macs)
    result = Prune(macs=share + 1e-6, importance="l2", repair="none", multiple=1).run(model, context)
    for array, expected in zip(both(model, shape, 5), wanted, strict=True):
        assert_equal(array, expected)
    saved = result.figures["macs_before"] - result.figures["macs_after"]
    assert saved * groups.labels.facts.samples >= 0.95 * (full - alive)


def both(model: ir.Model, shape: tuple[int, ...], seed: int) -> list[Array]:
    """Return the outputs for samples and for their opposites, which take the other branch of an If."""
    session, samples = Session(model, level="disable"), images(shape, 3, seed)
    return [array for sign in (1, -1) for array in session.run({"x": sign * samples}).values()]


def kill(groups: Groups, units: Array) -> None:
    """Set to zero what makes some units and what reads them."""
    for reader in groups.labels.readers:
        tensor = reader.weight.const_value
        assert tensor is not None
        weight = tensor.numpy().copy()
        for axis, labels in ((reader.axes.output, reader.begins), (reader.axes.input, reader.ends)):
            np.moveaxis(weight, axis, 0)[np.isin(groups.units_of(labels), units)] = 0
        reader.weight.const_value = ir.tensor(weight, name=reader.weight.name)


def macs_at(groups: Groups, kept: list[int]) -> float:
    """Return the multiply-accumulates of the weights for numbers of kept units."""
    return sum(cost.macs * cost.output.at(kept) * cost.input.at(kept) for cost in groups.costs)


def assert_equal(found: Array, wanted: Array) -> None:
    """Equal to 1e-5 of the largest number."""
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5 * float(np.abs(wanted).max()))


def test_shapes_of_inner_values_follow_and_never_lie() -> None:
    """A size that has a name (four heads of N samples as ``4*N``) has none that is known behind the cut."""
    model = attention()
    inner = {value.name: value for node in model.graph for value in node.outputs}
    inner["q2"].shape, inner["k2"].shape = ir.Shape(["N", 6, 4, 4]), ir.Shape(["N", 6, "heads", 4])
    groups = bare(model, images((6, 16)))
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


TOKENS = """g (float[1,3,8] x) => (float[1,5,4] y) {
  a = MatMul(x, w0)
  b = Concat<axis=1>(tokens, a)
  c = Relu(b)
  y = MatMul(c, w1)
}"""


def test_constant_tokens_beside_channels_are_cut_with_them() -> None:
    model = build(TOKENS, {"w0": (8, 6), "w1": (6, 4), "tokens": (1, 2, 6)})
    groups = bare(model, images((3, 8), 1))
    assert [len(group.units) for group in groups.free] == [6]
    removed = some_units(groups, 0)
    constants = masked_constants(groups, removed)
    feed = {"x": images((3, 8), 1)}
    wanted = Session(masked(model, constants)).run(feed)["y"]
    apply(Cut(groups, removed), constants)
    assert_equal(Session(model).run(feed)["y"], wanted)


def test_channels_in_one_row_with_fixed_ones_are_told() -> None:
    text = """g (float[N,10] x) => (float[N,4,2] y) {
      a = MatMul(x, w0)  b = Concat<axis=1>(a, x)  c = Reshape(b, rows)  y = MatMul(c, w1) }"""
    groups = bare(build(text, {"w0": (10, 6), "w1": (4, 2)}, {"rows": [0, 4, 4]}), images((10,)))
    assert groups.free == []
    assert "lies along one axis with fixed channels" in [group.reason for group in groups.locked if group.begins]
